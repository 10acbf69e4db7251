//! The portable heart of Unplug: page tables, page metadata, gup-fast, gather and shootdown.
//!
//! Nothing here names a CPU instruction. What `mm` needs of the machine below it is the trait
//! [`machine::Machine`]; the kernel implements it with real registers, and [`emu`] implements it with an
//! emulated machine in which stale translations persist until they are flushed, so that every algorithm in
//! this package runs unchanged under host tests, property tests and loom.
//!
//! How to read it: [`addr`] and [`entry`] are the nouns; [`table`] walks, installs and zaps; [`meta`] is what
//! Linux calls `struct page`; [`shootdown`] and [`gather`] are how a translation dies; [`space`] is an address
//! space; [`gup`] pins pages without a lock; [`pins`], [`account`] and [`region`] are pins that somebody keeps;
//! [`losses`] is how lost frames come to [`failure`], which takes pages away.
#![cfg_attr(not(any(test, feature = "emu", loom, shuttle)), no_std)]

extern crate alloc;

pub mod account;
pub mod addr;
#[cfg(all(any(test, feature = "emu"), not(any(loom, shuttle))))]
pub mod emu;
pub mod entry;
pub mod failure;
pub mod fault;
pub mod frame;
pub mod gather;
pub mod gup;
pub mod held;
pub mod ledger;
pub mod losses;
pub mod machine;
pub mod mapping;
pub mod meta;
pub mod mutant;
pub mod pagemap;
pub mod pins;
mod promote;
pub mod reach;
pub mod region;
pub mod rmap;
pub mod shootdown;
pub mod space;
pub mod sync;
pub mod table;
pub mod tlb;
pub mod vma;
pub mod world;
