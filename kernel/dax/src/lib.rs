//! DAX devices and their life, holders, device-dax, removal.
//!
//! How to read it: [`device`] is a DAX device, alive or dead; [`srcu`] is how its killer waits for those who are
//! using it; [`holder`] is who must be told; [`kill`] is the order of telling, dying and waiting; [`devdax`] is the
//! device as a file that tasks map; [`removal`] takes a device away from everybody; [`slot`] sees to it that this
//! happens once; [`inject`] makes a step of it fail.
//!
//! States are types where they can be. A live device cannot be asked whether it is idle:
//! ```compile_fail,E0599
//! fn ask(live: &dax::device::Live) -> bool {
//!     live.is_idle()
//! }
//! ```
//! and one that was killed can:
//! ```
//! fn ask(dead: &dax::device::Dead) -> bool {
//!     dead.is_idle()
//! }
//! ```
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod slot;
// Not under the model checker, whose types keep an address space from crossing threads; `mm` models those parts.
#[cfg(not(any(loom, shuttle)))]
pub mod devdax;
pub mod device;
pub mod holder;
pub mod inject;
pub mod kill;
pub mod mutant;
pub mod range;
#[cfg(not(any(loom, shuttle)))]
pub mod removal;
pub mod srcu;
