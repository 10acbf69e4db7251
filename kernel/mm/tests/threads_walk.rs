//! gup-fast with two threads on the emulated machine: more of what `slow_miri_gup.rs` does. Under Miri the first takes a
//! minute, the second many.
#![cfg(not(any(loom, shuttle)))]

mod common;

use common::gup_rig::FAST;
use common::pin_unmap::pins_against_unmaps;
use mm::gup::GupFlags;

// covers: G1, G2, G3, G5, G8
#[test]
fn a_run_of_pins_against_an_unmap_of_the_whole_table() {
    pins_against_unmaps(3, 3, FAST);
}

// covers: G1, G2, G3, G5, G8
#[test]
fn a_pin_that_may_fault_against_an_unmap() {
    pins_against_unmaps(2, 2, GupFlags::WRITE);
}
