//! The tree's shape: what is at a frame number, growing the way to it, pruning what is empty. All under the lock.
//!
//! # How long a chunk stays
//! Each page of a chunk begins and ends a *life* with each walk of its count from zero to zero. The number of
//! lives that have begun and whose end was not yet brought to the lock is kept beside the pointer to the chunk, and
//! the chunk goes when it is zero. There can be more such lives than pages: a page may come to life again before the
//! CPU that ended its life before has taken the lock. What does not fit beside the pointer is in
//! [`Held::excess`](super::raw::Held::excess), and leaves first.

use arrayvec::ArrayVec;

use super::page::{Nature, Owner, Page};
use super::raw::{Chunk, FAN_OUT, GibTable, Held, MibTable, NewPage, Node, Orphan, Slot, Top, View};
use crate::addr::{PageSize, Pfn};
use crate::ledger::{Kind, Ledger};
use crate::sync::Arc;

/// What covers a frame.
pub(super) enum Spot<'a> {
    /// Nothing, in the whole naturally aligned block of this size around the frame.
    Free(PageSize),
    /// One large folio. Its count may be zero: then its last holder is on the way to bury it.
    Folio(&'a Page),
    /// The metadata of a block of order-0 folios. That of the frame may have a count of zero.
    Chunk(&'a Chunk),
}

/// Memory for metadata is exhausted.
pub(super) struct Exhausted;

/// The tree, and whom to charge for its memory.
pub(super) struct Tree {
    pub(super) top: Top,
    ledger: Arc<Ledger>,
}

/// The slots on the way to a frame, as far as there are any.
pub(super) struct Path<'a> {
    pub(super) top: &'a Slot<GibTable>,
    pub(super) gib: Option<&'a Slot<MibTable>>,
    pub(super) mib: Option<&'a Slot<Chunk>>,
}

impl Tree {
    /// An empty tree.
    pub(super) fn new(ledger: Arc<Ledger>) -> Self {
        Self { top: Top::new(), ledger }
    }

    /// What covers `pfn`.
    pub(super) fn find<'a>(&'a self, held: &'a Held, pfn: Pfn) -> Spot<'a> {
        let gib = match self.top.slot(pfn).map(|slot| slot.view(held)) {
            Some(View::Node(table)) => table.slot(pfn, PageSize::Size1G),
            _ => return Spot::Free(PageSize::Size1G),
        };
        let mib = match gib.view(held) {
            View::Node(table) => table.slot(pfn, PageSize::Size2M),
            View::Folio(page) => return Spot::Folio(page),
            View::Empty => return Spot::Free(PageSize::Size1G),
        };
        match mib.view(held) {
            View::Node(chunk) => Spot::Chunk(chunk),
            View::Folio(page) => Spot::Folio(page),
            View::Empty => Spot::Free(PageSize::Size2M),
        }
    }

    /// The page that covers `pfn`. Its count may be zero.
    pub(super) fn page<'a>(&'a self, held: &'a Held, pfn: Pfn) -> Option<&'a Page> {
        match self.find(held, pfn) {
            Spot::Folio(page) => Some(page),
            Spot::Chunk(chunk) => Some(chunk.page(pfn)),
            Spot::Free(_) => None,
        }
    }

    #[inline]
    pub(super) fn path<'a>(&'a self, held: &'a Held, pfn: Pfn) -> Path<'a> {
        let top = self.top.slot(pfn).expect("a page map lies in the physical address space");
        let gib = match top.view(held) {
            View::Node(table) => Some(table.slot(pfn, PageSize::Size1G)),
            _ => None,
        };
        let mib = match gib.map(|slot| slot.view(held)) {
            Some(View::Node(table)) => Some(table.slot(pfn, PageSize::Size2M)),
            _ => None,
        };
        Path { top, gib, mib }
    }

    // ---- growing ----

    /// The node below `slot`, made if there is none; `parent` is the slot whose node `slot` is in.
    fn descend<'a, P: Node, C: Node>(
        &self,
        slot: &'a Slot<C>,
        parent: Option<&Slot<P>>,
        held: &'a Held,
    ) -> Result<&'a C, Exhausted> {
        match slot.view(held) {
            View::Node(node) => Ok(node),
            View::Folio(page) => panic!("page {}: a table in the place of a live folio", page.head()),
            View::Empty => {
                let node = slot.plant_node(held, C::allocate().ok_or(Exhausted)?);
                self.charge(size_of::<C>() as i64);
                if let Some(parent) = parent {
                    parent.set_used(held, parent.used(held) + 1);
                }
                Ok(node)
            }
        }
    }

    /// The slots down to the block of `size` (1 GiB or 2 MiB) around `pfn`, made where there are none.
    fn grow<'a>(&'a self, held: &'a Held, pfn: Pfn, size: PageSize) -> Result<Path<'a>, Exhausted> {
        let top = self.top.slot(pfn).expect("a page map lies in the physical address space");
        let gib = self.descend::<GibTable, _>(top, None, held)?.slot(pfn, PageSize::Size1G);
        let mib = match size {
            PageSize::Size1G => None,
            _ => Some(self.descend(gib, Some(top), held)?.slot(pfn, PageSize::Size2M)),
        };
        Ok(Path { top, gib: Some(gib), mib })
    }

    /// Plants the metadata of one large folio into its empty block.
    pub(super) fn plant(&self, held: &mut Held, nature: Nature, owner: Owner, refs: u32) -> Result<(), Exhausted> {
        let page = NewPage::allocate(held).ok_or(Exhausted)?;
        let Ok(path) = self.grow(held, nature.head, nature.size) else {
            page.give_back(held);
            self.prune(held, nature.head);
            return Err(Exhausted);
        };
        page.make(nature, owner, refs);
        match (path.gib, path.mib) {
            (Some(gib), Some(mib)) => {
                mib.plant_folio(held, page);
                gib.set_used(held, gib.used(held) + 1);
            }
            (Some(gib), None) => {
                gib.plant_folio(held, page);
                path.top.set_used(held, path.top.used(held) + 1);
            }
            _ => unreachable!("grow leads at least to a 1 GiB block"),
        }
        self.charge(size_of::<Page>() as i64);
        Ok(())
    }

    /// The chunk of `pfn`, made if there is none. It stays only if a page of it is taken into use next.
    pub(super) fn chunk<'a>(&'a self, held: &'a mut Held, pfn: Pfn) -> Result<&'a Chunk, Exhausted> {
        let grown = self.grow(held, pfn, PageSize::Size4K).and_then(|path| match path.mib {
            Some(mib) => self.descend(mib, path.gib, held).map(drop),
            None => Err(Exhausted),
        });
        if grown.is_err() {
            self.prune(held, pfn);
        }
        match self.find(held, pfn) {
            Spot::Chunk(chunk) => Ok(chunk),
            _ => Err(Exhausted),
        }
    }

    /// `nr` pages of the chunk of `pfn` came to life.
    pub(super) fn pages_came(&self, held: &mut Held, pfn: Pfn, nr: usize) {
        let mib = self.path(held, pfn).mib.expect("a page in use is in a chunk");
        let used = mib.used(held) + nr;
        mib.set_used(held, used.min(FAN_OUT));
        let excess = used.saturating_sub(FAN_OUT);
        if excess != 0 {
            *held.excess.entry(pfn.align_down(PageSize::Size2M)).or_default() += excess;
        }
    }

    // ---- pruning ----

    /// `nr` lives of pages of the chunk of `pfn` have ended.
    pub(super) fn pages_gone(&self, held: &mut Held, pfn: Pfn, nr: usize) {
        let block = pfn.align_down(PageSize::Size2M);
        let mut nr = nr;
        if let Some(excess) = held.excess.get_mut(&block) {
            let taken = nr.min(*excess);
            (*excess, nr) = (*excess - taken, nr - taken);
            if *excess == 0 {
                held.excess.remove(&block);
            }
        }
        let mib = self.path(held, pfn).mib.expect("a page in use is in a chunk");
        let used = mib.used(held).checked_sub(nr).expect("as many lives end as have begun");
        mib.set_used(held, used);
        if used == 0 {
            self.prune(held, pfn);
        }
    }

    /// Takes the metadata of the large folio of `size` at `head` out and frees it.
    pub(super) fn uproot(&self, held: &mut Held, head: Pfn, size: PageSize) {
        let orphan = {
            let path = self.path(held, head);
            let gib = path.gib.expect("a live folio has a way to it");
            match path.mib {
                Some(mib) if size == PageSize::Size2M => {
                    let orphan = mib.detach(held).map(AnyOrphan::Chunk);
                    gib.set_used(held, gib.used(held) - 1);
                    orphan
                }
                _ => {
                    let orphan = gib.detach(held).map(AnyOrphan::Mib);
                    path.top.set_used(held, path.top.used(held) - 1);
                    orphan
                }
            }
        };
        if let Some(orphan) = orphan {
            self.charge(-(orphan.free(held) as i64));
        }
        self.prune(held, head);
    }

    // lab 6 begin: prune
    /// Frees the nodes on the way to `pfn` that have nothing in use, from the bottom.
    pub(super) fn prune(&self, held: &mut Held, pfn: Pfn) {
        let mut orphans = ArrayVec::<AnyOrphan, 3>::new();
        {
            let path = self.path(held, pfn);
            if let (Some(gib), Some(mib)) = (path.gib, path.mib)
                && is_bare(mib, held)
            {
                orphans.extend(mib.detach(held).map(AnyOrphan::Chunk));
                gib.set_used(held, gib.used(held) - 1);
            }
            if let Some(gib) = path.gib
                && is_bare(gib, held)
            {
                orphans.extend(gib.detach(held).map(AnyOrphan::Mib));
                path.top.set_used(held, path.top.used(held) - 1);
            }
            if is_bare(path.top, held) {
                orphans.extend(path.top.detach(held).map(AnyOrphan::Gib));
            }
        }
        for orphan in orphans {
            self.charge(-(orphan.free(held) as i64));
        }
    }
    // lab 6 end

    fn charge(&self, bytes: i64) {
        self.ledger.charge(Kind::MetadataBytes, bytes);
    }

    // ---- listing ----

    /// Calls `visit` with folios that have a reference, rising, in the frames from `from` on and below `end`, until it
    /// says that it has enough, or `most` places were looked at. Answers where to go on, and how many places.
    pub(super) fn look(
        &self,
        held: &Held,
        (from, end): (Pfn, Pfn),
        most: u64,
        visit: &mut dyn FnMut(&Page) -> bool,
    ) -> (Pfn, u64) {
        let (mut at, mut looks) = (from, 0);
        // Answers whether to go on.
        let mut live = |page: &Page| page.refs() == 0 || visit(page);
        while at < end && looks < most {
            let block = match self.find(held, at) {
                Spot::Free(PageSize::Size1G) => {
                    looks += 1;
                    at = self.end_of_free(held, at);
                    continue;
                }
                Spot::Free(size) => size,
                Spot::Folio(page) if live(page) => page.size(),
                Spot::Folio(_) => return (at, looks),
                Spot::Chunk(chunk) => {
                    let next = at.align_down(PageSize::Size2M).add(PageSize::Size2M.nr_pages());
                    let rest = chunk.pages_from(at, u64::MAX).len() as u64;
                    let nr = rest.min(end.as_u64() - at.as_u64()).min(most - looks);
                    for page in chunk.pages_from(at, nr) {
                        if !live(page) {
                            return (at, looks);
                        }
                        (at, looks) = (at.add(1), looks + 1);
                    }
                    // In a model there are fewer pages than frames.
                    if nr == rest {
                        at = next;
                    }
                    continue;
                }
            };
            (at, looks) = (at.align_down(block).add(block.nr_pages()), looks + 1);
        }
        (at, looks)
    }

    /// One past the empty block around `pfn`: 1 GiB, or 512 GiB where nothing of that is in use.
    fn end_of_free(&self, held: &Held, pfn: Pfn) -> Pfn {
        match self.top.slot(pfn).map(|slot| slot.view(held)) {
            Some(View::Node(_)) => pfn.align_down(PageSize::Size1G).add(PageSize::Size1G.nr_pages()),
            _ => Top::end_of_slot(pfn),
        }
    }
}

pub(super) enum AnyOrphan {
    Gib(Orphan<GibTable>),
    Mib(Orphan<MibTable>),
    Chunk(Orphan<Chunk>),
}

impl AnyOrphan {
    #[inline]
    pub(super) fn free(self, held: &mut Held) -> usize {
        match self {
            Self::Gib(orphan) => orphan.free(held),
            Self::Mib(orphan) => orphan.free(held),
            Self::Chunk(orphan) => orphan.free(held),
        }
    }
}

/// An empty node: in a slot that leads to a node none of whose slots is in use.
fn is_bare<C: Node>(slot: &Slot<C>, held: &Held) -> bool {
    matches!(slot.view(held), View::Node(_)) && slot.used(held) == 0
}
