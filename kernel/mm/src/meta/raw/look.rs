//! The lock-free look: from a frame number to its folio.

use core::marker::PhantomData;

use super::super::{MetaStore, Owner};
use super::recent::Recent;
use super::{Chunk, MibTable, Page};
use crate::addr::{PageSize, Pfn};
use crate::sync::Ordering;

/// A folio, found.
#[derive(Clone, Copy, Debug)]
pub struct Folio<'a> {
    /// Its metadata.
    pub page: &'a Page,
    /// Its first frame.
    pub head: Pfn,
    /// Its size.
    pub size: PageSize,
}

/// Where a walk over many frames was last: see [`MetaStore::lookup_near`].
#[derive(Default)]
pub struct Near<'a>(Option<(Pfn, &'a Chunk)>);

/// Where a walk over frames that are far from each other was last: see [`MetaStore::lookup_far`].
pub(crate) struct Far<'a> {
    /// The number of the GiB of `table`; before the first look-up one that there is not.
    gib: u64,
    table: *const MibTable,
    _of: PhantomData<&'a MibTable>,
}

impl Default for Far<'_> {
    fn default() -> Self {
        Self { gib: u64::MAX, table: core::ptr::null(), _of: PhantomData }
    }
}

/// What [`MetaStore::lookup_far`] finds.
#[repr(u8)]
pub(crate) enum FarFound<'a> {
    /// A page of a 2 MiB block.
    Small(&'a Page),
    /// A folio of 2 MiB.
    Large(&'a Page),
    /// Something else, or nothing.
    Other,
}

/// What covers a run of frames: see [`MetaStore::lookup_run`].
pub enum Covering<'a> {
    /// Order-0 pages, side by side, from the first frame of the run on.
    Pages(&'a [Page]),
    /// One large folio, which covers so many frames of the run from its first on.
    Part(Folio<'a>, u64),
}

/// What a lock-free walk comes to.
pub(in super::super) enum Found<'a> {
    /// A folio of 2 MiB or 1 GiB.
    Large(Folio<'a>),
    /// The pages of a 2 MiB block.
    Chunk(&'a Chunk),
}

impl<'a> Found<'a> {
    #[inline]
    fn large(page: &'a Page, pfn: Pfn, size: PageSize) -> Option<Self> {
        Some(Self::Large(Folio::found(page, pfn, size)))
    }
}

impl MetaStore {
    /// The folio that covers `pfn`: the pointer to the root, three more dependent loads, no store, no lock. `None`
    /// where no folio is live.
    ///
    /// # Safety
    /// For as long as the answer is used, the folio that covers `pfn` has a reference that cannot go: the caller
    /// owns one, or runs with interrupts off and has read `pfn` from a present entry in this walk (whose reference
    /// is dropped only after a shootdown that waits for this CPU), or holds off every retirement in the same
    /// 2 MiB block by a reference of its own on another order-0 folio there. In the last case the answer may be a
    /// page with a count of zero, which [`Page::try_get`] refuses.
    #[inline]
    pub unsafe fn lookup(&self, pfn: Pfn) -> Option<Folio<'_>> {
        // SAFETY: the caller's word is what is asked for.
        match unsafe { self.walk(pfn)? } {
            Found::Chunk(chunk) => Some(Folio::found(chunk.page(pfn), pfn, PageSize::Size4K)),
            Found::Large(folio) => Some(folio),
        }
    }

    /// The metadata alone that [`lookup`](Self::lookup) finds.
    ///
    /// # Safety
    /// As for [`lookup`](Self::lookup).
    #[inline(always)]
    pub unsafe fn lookup_page(&self, pfn: Pfn) -> Option<&Page> {
        // SAFETY: the caller's word is what is asked for.
        match unsafe { self.walk(pfn)? } {
            Found::Chunk(chunk) => Some(chunk.page(pfn)),
            Found::Large(folio) => Some(folio.page),
        }
    }

    /// # Safety
    /// As for [`lookup`](Self::lookup).
    #[inline(always)]
    pub(super) unsafe fn walk(&self, pfn: Pfn) -> Option<Found<'_>> {
        // SAFETY: the tables on the way to a folio exist as long as it has a reference, which it has (the caller's
        // word); so has its own metadata.
        unsafe {
            let Ok(gibs) = self.tree.top.slot(pfn)?.peek() else { return None };
            let mibs = match gibs.slot(pfn, PageSize::Size1G).peek() {
                Ok(table) => table,
                Err(page) => return Found::large(page?, pfn, PageSize::Size1G),
            };
            match mibs.slot(pfn, PageSize::Size2M).peek() {
                Ok(chunk) => Some(Found::Chunk(chunk)),
                Err(page) => Found::large(page?, pfn, PageSize::Size2M),
            }
        }
    }

    /// As [`lookup`](Self::lookup), for a walk over many frames: where `pfn` is in the same 2 MiB block of order-0
    /// pages as the frame before it, no pointer is followed.
    ///
    /// # Safety
    /// As for [`lookup`](Self::lookup), for every frame that was looked up with this `near`, until now.
    #[inline]
    pub unsafe fn lookup_near<'a>(&'a self, pfn: Pfn, near: &mut Near<'a>) -> Option<Folio<'a>> {
        let block = pfn.align_down(PageSize::Size2M);
        if let Some((known, chunk)) = near.0
            && known == block
        {
            return Some(Folio::found(chunk.page(pfn), pfn, PageSize::Size4K));
        }
        // SAFETY: the caller's word is what is asked for.
        match unsafe { self.walk(pfn)? } {
            Found::Chunk(chunk) => {
                near.0 = Some((block, chunk));
                Some(Folio::found(chunk.page(pfn), pfn, PageSize::Size4K))
            }
            Found::Large(folio) => Some(folio),
        }
    }

    /// As [`lookup_page`](Self::lookup_page), for a walk over many frames that are far from each other: where `pfn` is in the
    /// GiB of the frame before it, the upper two levels are not followed. A folio of 1 GiB it does not find.
    ///
    /// # Safety
    /// As for [`lookup`](Self::lookup), for every frame that was looked up with this `far`, until now.
    #[inline(always)]
    pub(crate) unsafe fn lookup_far<'a>(&'a self, pfn: Pfn, far: &mut Far<'a>) -> FarFound<'a> {
        let gib = pfn.as_u64() >> PageSize::Size1G.order();
        if far.gib != gib {
            // SAFETY: as in `walk`.
            let table = unsafe {
                let gibs = self.tree.top.slot(pfn).and_then(|slot| slot.peek().ok());
                gibs.and_then(|gibs| gibs.slot(pfn, PageSize::Size1G).peek().ok())
            };
            let Some(table) = table else { return FarFound::Other };
            (far.gib, far.table) = (gib, core::ptr::from_ref(table));
        }
        // SAFETY: as in `walk`; the table that is remembered exists for as long as the folio that it was found for.
        match unsafe { (*far.table).slot(pfn, PageSize::Size2M).peek() } {
            Ok(chunk) => FarFound::Small(chunk.page(pfn)),
            Err(Some(page)) => FarFound::Large(page),
            Err(None) => FarFound::Other,
        }
    }

    /// As [`lookup`](Self::lookup), for the first part of a run of `nr_pages` frames from `pfn` on: as far as one large
    /// folio or one 2 MiB block of order-0 pages reaches.
    ///
    /// # Safety
    /// As for [`lookup`](Self::lookup), for `pfn`; and for each further page of the answer before it is used.
    #[inline(always)]
    pub unsafe fn lookup_run(&self, pfn: Pfn, nr_pages: u64) -> Option<Covering<'_>> {
        // SAFETY: the caller's word is what is asked for.
        Some(match unsafe { self.walk(pfn)? } {
            Found::Chunk(chunk) => Covering::Pages(chunk.pages_from(pfn, nr_pages)),
            Found::Large(folio) => {
                let inside = folio.head.as_u64() + folio.size.nr_pages() - pfn.as_u64();
                Covering::Part(folio, inside.min(nr_pages))
            }
        })
    }

    /// The folio of `pfn` for one who says that it owns a reference on it, or the end of the kernel (G8).
    #[inline]
    pub(crate) fn owned(&self, pfn: Pfn, what: &str) -> Folio<'_> {
        // SAFETY: the caller is a public verb whose contract is that its caller owns a reference, and the answer
        // does not outlive that reference. A caller that owns none has a bug, which the count or the empty slot
        // betrays.
        match unsafe { self.lookup(pfn) } {
            Some(folio) => folio,
            None => nobody(pfn, what),
        }
    }
    /// As [`owned`](Self::owned), for one who owns references on the frames after `pfn` too.
    #[inline]
    pub(in super::super) fn owned_run(&self, pfn: Pfn, what: &str) -> Found<'_> {
        // SAFETY: as for `owned`.
        match unsafe { self.walk(pfn) } {
            Some(found) => found,
            None => nobody(pfn, what),
        }
    }
}

/// A put where nothing is: names the page (G8).
#[cold]
#[inline(never)]
fn nobody(pfn: Pfn, what: &str) -> ! {
    panic!("page {pfn}: {what}: nobody holds it (it has no metadata)");
}

impl<'a> Folio<'a> {
    #[inline]
    fn found(page: &'a Page, pfn: Pfn, size: PageSize) -> Self {
        Self { page, head: pfn.align_down(size), size }
    }
    /// Owner of `pfn`, which the folio covers.
    pub fn owner_of(&self, pfn: Pfn) -> Owner {
        let owner = self.page.owner();
        Owner { mapping: owner.mapping, offset: owner.offset + (pfn.as_u64() - self.head.as_u64()) }
    }
}

/// What a look-up has come to. Not an `Option`, in which a null pointer says that there is nothing: whoever has a page
/// would ask for that, each time.
#[repr(u8)]
pub(crate) enum Looked<'a> {
    /// The metadata.
    Page(&'a Page),
    /// There is none.
    Nothing,
}

impl Recent {
    /// The metadata of `pfn`, if this CPU has looked up its block last, and that is divided into pages.
    ///
    /// # Safety
    /// Interrupts are off, `pfn` was read from a present entry in this walk, and this is the cell of this CPU, of the store
    /// that has the metadata.
    #[inline(always)]
    pub(crate) unsafe fn small(&self, pfn: Pfn) -> Looked<'_> {
        if !self.is_of(Recent::divided(pfn)) {
            return Looked::Nothing;
        }
        // SAFETY: such a number is that of a chunk, which exists: it was not freed since, for then the cell would be empty,
        // and it is not freed now (the caller's word).
        let chunk = unsafe { &*self.at.load(Ordering::Relaxed).cast::<Chunk>() };
        Looked::Page(chunk.page(pfn))
    }

    /// The same for the folio that a huge leaf maps, or a part of: `first` is the leaf's first frame.
    ///
    /// # Safety
    /// As for [`small`](Self::small).
    #[inline(always)]
    pub(crate) unsafe fn huge(&self, first: Pfn) -> Looked<'_> {
        if !self.is_of(first.as_u64()) {
            return Looked::Nothing;
        }
        // SAFETY: such a number is that of a folio's block; otherwise as in `small`.
        Looked::Page(unsafe { &*self.at.load(Ordering::Relaxed).cast::<Page>() })
    }
}

impl MetaStore {
    /// The cells, by CPU.
    #[inline(always)]
    pub fn recents(&self) -> &[Recent] {
        &self.recents
    }

    /// As [`lookup_page`](Self::lookup_page), and the next time the cell of this CPU has it. `pfn` is that of a small leaf, or
    /// where `HUGE` the first of a huge one. Apart, so that whoever finds it in the cell puts nothing aside for this.
    ///
    /// # Safety
    /// As for [`Recent::small`].
    #[cold]
    #[inline(never)]
    pub(crate) unsafe fn lookup_anew<'a, const HUGE: bool>(&'a self, pfn: Pfn, recent: &Recent) -> Option<&'a Page> {
        // SAFETY: the caller's word is what is asked for.
        match unsafe { self.walk(pfn)? } {
            Found::Chunk(chunk) => {
                if !HUGE {
                    recent.fill(Recent::divided(pfn), chunk);
                }
                Some(chunk.page(pfn))
            }
            Found::Large(folio) => {
                if HUGE {
                    recent.fill(pfn.as_u64(), folio.page);
                }
                Some(folio.page)
            }
        }
    }
}
