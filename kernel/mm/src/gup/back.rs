//! The way back: what gup has taken is given back.

use crate::addr::{PageSize, Pfn};
use crate::context::MmContext;
use crate::machine::Machine;
use crate::trace::{Kind, Mark, mark};

/// Gives back pins: `nr_pages` pages in a row from `first` on, however they were pinned.
///
/// # Panics
/// A page that is not pinned (G8).
#[inline]
pub fn unpin<M: Machine>(mm: &MmContext<M>, first: Pfn, nr_pages: u64) {
    mark!(mm.machine, Mark::pages(Kind::Unpinned, first, nr_pages));
    mm.meta.unpin_run(first, nr_pages);
}

/// Gives back plain references of [`get_user_pages_fast`](super::get_user_pages_fast).
///
/// # Panics
/// A page without a reference (G8).
#[inline]
pub fn put_page<M: Machine>(mm: &MmContext<M>, first: Pfn, nr_pages: u64) {
    mark!(mm.machine, Mark::pages(Kind::Unpinned, first, nr_pages));
    if nr_pages == 1 { mm.meta.put(first, 1) } else { mm.meta.put_run(first, nr_pages, PageSize::Size4K) }
}
