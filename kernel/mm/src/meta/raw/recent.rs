//! What each CPU has looked up last, so that the next look-up in the same block follows no pointer of the tree.
//!
//! # Protocol
//! A CPU fills and asks its own cell, with interrupts off, for frames that it has just read from a present entry: under the
//! right that `MetaStore::lookup` demands. Whoever frees metadata, under the store's lock, first empties each cell that
//! leads to it.
//!
//! ```text
//!  a CPU, interrupts off                        the end of the block's metadata
//!  1 read a present entry                       a clear the entry, shoot down: waits for 1-3
//!  2 its block is the cell's? that is it        b drop the last reference
//!  3 else walk the tree, and fill the cell      c empty the cells that lead there
//!                                               d free it
//! ```
//! - *c* sees what 3 has filled: the reference of the entry of 1 is dropped only after this CPU has answered (*a* before
//!   *b*), and a reference that was taken meanwhile is dropped after 3, too.
//! - 2 sees what *c* has emptied: an entry that leads to the block again is made after other metadata was made for it, which
//!   comes after *c* and *d*, under the same lock. Who reads that entry comes after all of it.
//! - Between the two words of a cell nobody comes who would take one of them for true: they are asked by their own CPU
//!   alone, and *c* only ever makes the first one say nothing. If it does so while the CPU fills the cell for another block,
//!   the next look-up walks the tree.
//!
//! So all accesses are relaxed: what orders them is the protocol of [`crate::gup`].

use crate::addr::{PageSize, Pfn};
use crate::mutant::Mutant;
use crate::sync::{AtomicPtr, AtomicU64, Ordering};

/// No block goes by this: frame numbers have 40 bits.
const NOTHING: u64 = u64::MAX;

/// The cell of one CPU. In a cache line of its own, for all others leave it alone.
#[repr(C, align(64))]
pub struct Recent {
    /// Which block: its first frame, where one folio covers it, and its last, where it is divided into pages.
    block: AtomicU64,
    /// The metadata: a `Page`, or a `Chunk`.
    pub(super) at: AtomicPtr<()>,
}

impl Recent {
    pub(crate) fn new() -> Self {
        Self { block: AtomicU64::new(NOTHING), at: AtomicPtr::new(core::ptr::null_mut()) }
    }

    /// What the 2 MiB block of `pfn` goes by where it is divided into pages.
    #[inline(always)]
    pub(super) fn divided(pfn: Pfn) -> u64 {
        pfn.as_u64() | (PageSize::Size2M.nr_pages() - 1)
    }

    #[inline(always)]
    pub(super) fn is_of(&self, block: u64) -> bool {
        let this = self.block.load(Ordering::Relaxed);
        // The fault keeps to blocks of the same kind: what is found is the wrong thing, and not a thing of another kind.
        let alike = || this != NOTHING && (this ^ block) & (PageSize::Size2M.nr_pages() - 1) == 0;
        this == block || (Mutant::RecentOfAnyBlock.is_on() && alike())
    }

    #[inline(always)]
    pub(super) fn fill<T>(&self, block: u64, at: &T) {
        self.at.store(core::ptr::from_ref(at).cast_mut().cast(), Ordering::Relaxed);
        self.block.store(block, Ordering::Relaxed);
    }
}

/// Empties the cells that lead to `freed`: step c.
pub(super) fn forget(cells: &[Recent], freed: *mut ()) {
    for cell in cells {
        if cell.at.load(Ordering::Relaxed) == freed && !Mutant::RecentNotEmptied.is_on() {
            cell.block.store(NOTHING, Ordering::Relaxed);
        }
    }
}
