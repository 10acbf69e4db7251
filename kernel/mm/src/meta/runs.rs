//! References by the run: one for each leaf entry that maps a run of frames.
//!
//! Unmapping 1 GiB of 4 KiB leaves drops 262,144 references. Over one large folio that is one subtraction; over
//! order-0 pages it is one subtraction a page and one visit to the lock a chunk, or, where a page table maps a whole
//! block that nobody else uses, one look at each page.

use super::page::Page;
use super::raw::{Folio, Found};
use super::tree::Spot;
use super::{GetError, Inner, Lent, MetaError, MetaStore, Owner, nature, refused};
use crate::addr::{PageSize, Pfn};

/// What [`MetaStore::get_or_create_run`] gives: references on the first part of the run that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Frames covered, from the first on; a multiple of the leaf.
    pub nr_pages: u64,
    /// Size of the folios that cover them.
    pub folio: PageSize,
    /// The leaf that one reference was taken for: what was asked, or the folio's size if that is smaller.
    pub leaf: PageSize,
}

impl MetaStore {
    /// As [`get_or_create`](Self::get_or_create), for the leaves of size `leaf` that shall map `nr_pages` frames
    /// from `first` on (both multiples of `leaf`): takes one reference for each leaf over the first part of the
    /// run, as far as one large folio or one chunk of order-0 pages reaches. Call again for the rest. The folios
    /// are `want` large where they are new and that fits. `owner` is that of `first`; the offsets of what follows
    /// rise with the frames.
    ///
    /// # Errors
    /// See [`MetaError`]; no reference was taken then.
    pub fn get_or_create_run(
        &self,
        first: Pfn,
        nr_pages: u64,
        leaf: PageSize,
        want: PageSize,
        owner: Owner,
    ) -> Result<Run, MetaError> {
        debug_assert!(first.is_aligned(leaf) && nr_pages != 0 && nr_pages.is_multiple_of(leaf.nr_pages()));
        let mut inner = self.inner.lock();
        // The first leaf decides the folio's size, and holds the folio for the rest.
        let found = self.find_or_make(&mut inner, first, want.max(leaf), owner, 1)?;
        if found.size == PageSize::Size4K {
            let rest = self.fill_chunk(&mut inner, &found, nr_pages - 1, owner);
            return Ok(Run { nr_pages: 1 + rest, folio: found.size, leaf: found.size });
        }
        drop(inner);
        let leaf = leaf.min(found.size);
        let inside = (found.head.as_u64() + found.size.nr_pages() - first.as_u64()).min(nr_pages);
        let leaves = (inside >> leaf.order()) as u32;
        if leaves > 1 && self.owned(first, "get").page.try_get(leaves - 1).is_err() {
            self.put(first, 1);
            return Err(MetaError::Overflow);
        }
        Ok(Run { nr_pages: u64::from(leaves) << leaf.order(), folio: found.size, leaf })
    }

    /// One reference on each order-0 page after `held`, within its chunk and its range of the page map, up to
    /// `most`. Answers how many: a page that cannot be had ends it.
    fn fill_chunk(&self, inner: &mut Inner, held: &Lent, most: u64, owner: Owner) -> u64 {
        let first = held.head.add(1);
        let most = most.min(held.range.end().as_u64() - first.as_u64());
        if most == 0 || first.is_aligned(PageSize::Size2M) {
            return 0;
        }
        let Spot::Chunk(chunk) = self.tree.find(&inner.held, first) else { return 0 };
        let (taken, made) = fill(chunk.pages_from(first, most), held, owner);
        if made != 0 {
            self.tree.pages_came(&mut inner.held, first, made);
            self.came(&held.map, made as u64);
        }
        taken
    }

    /// Takes one further reference for each leaf of size `leaf` that maps the run, on behalf of one who owns a
    /// reference on each folio of it.
    ///
    /// # Errors
    /// [`MetaError::Overflow`]; none was taken then.
    ///
    /// # Panics
    /// Nobody holds one of the folios (G8).
    pub fn get_run(&self, first: Pfn, nr_pages: u64, leaf: PageSize) -> Result<(), MetaError> {
        let (mut taken, mut result) = (0, Ok(()));
        self.each_part(first, nr_pages, leaf, "get without a reference", &mut |part| {
            let mut take = |pfn, page: &Page, leaves: u32| {
                result = result.and_then(|()| page.try_get(leaves).map_err(|error| refused(pfn, error)));
                taken += if result.is_ok() { u64::from(leaves) << leaf.order() } else { 0 };
            };
            match part {
                Part::Folio(pfn, page, _, leaves) => take(pfn, page, leaves),
                Part::Pages(pfn, pages) => pages.iter().zip(0..).for_each(|(page, nth)| take(pfn.add(nth), page, 1)),
            }
        });
        if result.is_err() {
            self.put_run(first, taken, leaf);
        }
        result
    }

    /// Drops one reference for each leaf of size `leaf` that mapped the run (`first` and `nr_pages` are multiples
    /// of `leaf`). The caller owns them. Metadata goes with the last reference.
    ///
    /// # Panics
    /// A reference is missing (G8), or a leaf is larger than the folio that it mapped.
    pub fn put_run(&self, first: Pfn, nr_pages: u64, leaf: PageSize) {
        self.each_part(first, nr_pages, leaf, "put without a get", &mut |part| match part {
            Part::Folio(pfn, page, size, leaves) => {
                if let Err(dropped) = page.sub::<false>(leaves) {
                    self.dropped(pfn, size, dropped);
                }
            }
            Part::Pages(pfn, pages) => {
                if pages[0].is_edge() {
                    // Neighbours may be another page map's: each is retired by itself.
                    (0..pages.len()).for_each(|i| self.put(pfn.add(i as u64), 1));
                } else {
                    let dead = Page::put_each(pages, pfn);
                    if dead != 0 {
                        self.retire_pages(pfn, dead as u64);
                    }
                }
            }
        });
    }

    /// Drops one pin, with its reference, of each frame of the run, however they were pinned. The caller owns them.
    ///
    /// # Panics
    /// A frame is not pinned (G8).
    #[inline]
    pub fn unpin_run(&self, first: Pfn, nr_pages: u64) {
        if nr_pages == 1 { self.unpin(first, 1) } else { self.unpin_many(first, nr_pages) }
    }

    #[inline(never)]
    fn unpin_many(&self, first: Pfn, nr_pages: u64) {
        self.each_part(first, nr_pages, PageSize::Size4K, "unpin without a pin", &mut |part| match part {
            Part::Folio(pfn, page, size, frames) => {
                if let Err(dropped) = page.sub::<true>(frames) {
                    self.dropped(pfn, size, dropped);
                }
            }
            Part::Pages(pfn, pages) => {
                for (i, page) in pages.iter().enumerate() {
                    if let Err(dropped) = page.sub::<true>(1) {
                        self.dropped(pfn.add(i as u64), PageSize::Size4K, dropped);
                    }
                }
            }
        });
    }

    /// Cuts a run that the caller owns references on into large folios and pieces of chunks.
    fn each_part(&self, first: Pfn, nr_pages: u64, leaf: PageSize, what: &str, part: &mut impl FnMut(Part<'_>)) {
        let end = first.add(nr_pages);
        let mut pfn = first;
        while pfn < end {
            let left = end.as_u64() - pfn.as_u64();
            let inside = match self.owned_run(pfn, what) {
                Found::Chunk(chunk) => {
                    assert!(leaf == PageSize::Size4K, "page {pfn}: {what}: a {leaf} leaf over a 4KiB folio");
                    let pages = chunk.pages_from(pfn, left);
                    let len = pages.len() as u64;
                    part(Part::Pages(pfn, pages));
                    len
                }
                Found::Large(Folio { page, head, size }) => {
                    assert!(leaf <= size, "page {pfn}: {what}: a {leaf} leaf over a {size} folio");
                    let inside = (head.as_u64() + size.nr_pages() - pfn.as_u64()).min(left);
                    part(Part::Folio(pfn, page, size, (inside >> leaf.order()) as u32));
                    inside
                }
            };
            pfn = pfn.add(inside);
        }
    }
}

/// A part of a run.
enum Part<'a> {
    /// So many leaves map a part, from this frame on, of one folio of this size.
    Folio(Pfn, &'a Page, PageSize, u32),
    /// Order-0 pages of one chunk.
    Pages(Pfn, &'a [Page]),
}

/// Takes one reference on each page after `held`, whose owner is `owner`, making those that nobody holds. Answers
/// how many in all, and how many new.
fn fill(pages: &[Page], held: &Lent, owner: Owner) -> (u64, usize) {
    let first = held.head.add(1);
    let mut nature = nature(first, PageSize::Size4K, &held.map, held.range);
    let any_poisoned = held.map.any_poisoned(first, pages.len() as u64);
    let (mut taken, mut made) = (0, 0);
    for page in pages {
        match page.try_get(1) {
            Ok(()) => {}
            Err(GetError::Zero) => {
                nature.head = first.add(taken);
                nature.poisoned = any_poisoned && held.map.any_poisoned(nature.head, 1);
                page.make(nature, Owner { mapping: owner.mapping, offset: owner.offset + taken + 1 }, 1);
                made += 1;
            }
            Err(GetError::Overflow) => break,
        }
        taken += 1;
    }
    (taken, made)
}
