//! gup-fast with two threads on the emulated machine, small enough for Miri: see `miri_store.rs`.
#![cfg(not(any(loom, shuttle)))]

mod common;

use common::gup_rig::FAST;
use common::pin_unmap::pins_against_unmaps;

// covers: G1, G2, G3, G5, G8
#[test]
fn a_pin_against_an_unmap_of_its_page() {
    pins_against_unmaps(2, 1, FAST);
}
