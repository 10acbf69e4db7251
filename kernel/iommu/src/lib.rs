//! What stands between a device and memory: translation domains of an IOMMU, as Intel VT-d has them.
//!
//! | module | what it is |
//! |---|---|
//! | [`dmar`] | the firmware's table: which units there are, and for which devices |
//! | [`caps`] | what a unit can do |
//! | [`entry`] | root, context and second-level entries |
//! | [`hardware`] | what this package needs of the unit below it |
//! | [`command`], [`queue`] | invalidations, and the ring that they go through |
//! | [`contexts`] | which device is in which domain |
//! | [`domain`] | I/O virtual addresses, their tables, and how a translation dies |
//! | [`fault`] | what the unit says of a transfer that it blocked |
//! | [`records`] | how its records of that are taken |
//! | [`completion`] | what stands against a device's word that a transfer has ended well |
//! | [`throttle`] | how often it may interrupt for that |
//!
//! Nothing here names a register's address or a CPU instruction. The kernel implements [`Hardware`](hardware::Hardware)
//! with real tables and the real queue, the package `testkit` with an emulated unit whose stale translations persist until
//! they are invalidated, the models with a checker's atomics. The protocol is told in `docs/dma.md`.
//!
//! Sections are those of the *Intel Virtualization Technology for Directed I/O* specification, revision 4.0 ("VT-d").
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod caps;
pub mod command;
pub mod completion;
pub mod contexts;
pub mod dmar;
pub mod domain;
pub mod entry;
pub mod fault;
pub mod hardware;
pub mod mutant;
pub mod queue;
pub mod records;
pub mod source;
pub mod throttle;

pub use mutant::Mutant;

use mm::addr::ENTRIES;

/// Bits of an address that choose an entry of one table: 9. (Fewer under a checker.)
pub const INDEX_BITS: u32 = ENTRIES.trailing_zeros();

/// log2 of the pages that one entry of a table of `level` spans: 0, 9, 18, 27, 36.
#[inline]
pub const fn order(level: u8) -> u32 {
    INDEX_BITS * (level as u32 - 1)
}

/// Index of the entry for page number `page` in a table of `level`.
#[inline]
pub const fn index(page: u64, level: u8) -> usize {
    (page >> order(level)) as usize & (ENTRIES - 1)
}
