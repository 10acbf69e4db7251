//! References of many leaves given back at once.
//!
//! # Protocol
//! A leaf of a large folio is mostly its only reference. So the references on large folios are dropped *under* the store's
//! lock, some folios under one hold of it: whoever drops the last one there can bury the folio at once, for nobody else can
//! bury it, or plant another in its place, meanwhile. What others do without the lock stays what it was: a further
//! reference is never taken from zero, and a last one that is dropped outside is brought to the lock afterwards, where a
//! second look from the root finds the folio dead or gone.
//!
//! | giving back, under the lock | another holder, without it |
//! |---|---|
//! | 1. subtracts | subtracts |
//! | 2. the count is zero: buries | the count is zero: takes the lock, looks again, buries |
//!
//! The count reaches zero once, so one of them buries. What is buried is taken out of its slot at once, and freed before the
//! lock is left, when no view of the tables is left.

use arrayvec::ArrayVec;

use super::raw::{Chunk, Held, MibTable, Slot, View};
use super::tree::{AnyOrphan, Tree};
use super::{Inner, MetaStore};
use crate::addr::{PageSize, Pfn};
use crate::ledger::Kind;
use crate::meta::page::Page;
use crate::mutant::Mutant;
use crate::pagemap::MapId;
use crate::sync::{Ordering, fence};

/// Leaves of one size that mapped frames in a row: one reference each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaves {
    /// First frame.
    pub first: Pfn,
    /// How many leaves.
    pub nr: u64,
    /// Size of each.
    pub size: PageSize,
}

impl Leaves {
    /// One leaf.
    #[inline]
    pub const fn one(first: Pfn, size: PageSize) -> Self {
        Self { first, nr: 1, size }
    }
    /// Takes the leaf at `pfn` in, if it follows; answers whether it does.
    #[inline]
    pub(crate) fn extend(&mut self, pfn: Pfn, size: PageSize) -> bool {
        let follows = self.size == size && self.first.as_u64() + (self.nr << size.order()) == pfn.as_u64();
        if follows {
            self.nr += 1;
        }
        follows
    }
}

/// Large folios whose references are dropped under one hold of the store's lock, at most.
const AT_ONCE: usize = 64;

/// Folios of one page map that are taken out under one hold of the lock, until they are freed.
struct Dead {
    orphans: ArrayVec<AnyOrphan, AT_ONCE>,
    map: Option<MapId>,
    /// A frame of each table of 2 MiB blocks, or of 1 GiB blocks, that has nothing left.
    bare: ArrayVec<Pfn, AT_ONCE>,
}

/// The table of 2 MiB blocks that the last folio was found through.
struct Near<'a> {
    slot: &'a Slot<MibTable>,
    table: &'a MibTable,
    /// A frame of it.
    pfn: Pfn,
    /// Slots of it in use.
    used: usize,
}

impl Near<'_> {
    fn holds(&self, pfn: Pfn) -> bool {
        (self.pfn.as_u64() ^ pfn.as_u64()) >> PageSize::Size1G.order() == 0
    }
    /// Brings the number of slots in use up to date.
    fn leave(self, held: &Held, dead: &mut Dead) {
        self.slot.set_used(held, self.used);
        if self.used == 0 {
            dead.bare.push(self.pfn);
        }
    }
}

impl MetaStore {
    /// Drops one reference for each of the leaves. The caller owns them. Metadata goes with the last reference.
    ///
    /// # Panics
    /// A reference is missing (G8), or a leaf is larger than the folio that it mapped.
    pub fn put_leaves(&self, runs: &[Leaves]) {
        for run in runs.iter().filter(|run| run.size == PageSize::Size4K) {
            self.put_run(run.first, run.nr, run.size);
        }
        self.put_large(&mut runs.iter().copied().filter(|run| run.size != PageSize::Size4K));
    }

    /// The same for leaves of 2 MiB and 1 GiB. `runs` is asked under the lock.
    pub(crate) fn put_large(&self, runs: &mut impl Iterator<Item = Leaves>) {
        let mut next = runs.next();
        while next.is_some() {
            let inner = &mut *self.inner.lock();
            let mut dead = Dead { orphans: ArrayVec::new(), map: None, bare: ArrayVec::new() };
            let (mut near, mut looks) = (None, 0);
            while let Some(run) = &mut next
                && looks < AT_ONCE
                && self.put_first(&inner.held, run, &mut near, &mut dead)
            {
                looks += 1;
                if run.nr == 0 {
                    next = runs.next();
                }
            }
            if let Some(near) = near {
                near.leave(&inner.held, &mut dead);
            }
            self.free(inner, dead);
        }
    }

    /// Drops the references of the leaves over the first folio, and takes them off the run. `false`: it is of another page
    /// map than those that are dead, and nothing was done.
    #[inline]
    fn put_first<'a>(&'a self, held: &'a Held, run: &mut Leaves, near: &mut Option<Near<'a>>, dead: &mut Dead) -> bool {
        let (first, leaf) = (run.first, run.size);
        if near.as_ref().is_some_and(|near| !near.holds(first))
            && let Some(near) = near.take()
        {
            near.leave(held, dead);
        }
        if near.is_none() {
            *near = self.tree.near(held, first);
        }
        let Some((page, size)) = self.tree.large(held, first, near.as_ref()) else { self.no_large_folio(*run) };
        let map = page.map_id();
        if dead.map.is_some_and(|before| before != map) {
            return false;
        }
        assert!(leaf <= size, "page {first}: put without a get: a {leaf} leaf over a {size} folio");
        let inside = (first.align_down(size).add(size.nr_pages()).as_u64() - first.as_u64()) >> leaf.order();
        let leaves = run.nr.min(inside);
        run.first = first.add(leaves << leaf.order());
        run.nr -= leaves;
        match page.sub::<false>(leaves as u32) {
            Ok(()) if !Mutant::LeafPutBuries.is_on() => return true,
            Ok(()) => {}
            Err(dropped) => dropped.assert_last(first, size),
        }
        dead.map = Some(map);
        match near {
            Some(near) => {
                dead.orphans.extend(near.block(first).detach(held).map(AnyOrphan::Chunk));
                near.used -= 1;
            }
            None => self.tree.detach_gib(held, first, dead),
        }
        true
    }

    /// Frees what was taken out.
    fn free(&self, inner: &mut Inner, dead: Dead) {
        let Some(map) = dead.map else { return };
        let folios = dead.orphans.len() as u64;
        // Pairs with the Release of `Page::sub`: what their holders did is over.
        fence(Ordering::Acquire);
        let bytes: usize = dead.orphans.into_iter().map(|orphan| orphan.free(&mut inner.held)).sum();
        self.ledger.charge(Kind::MetadataBytes, -(bytes as i64));
        dead.bare.into_iter().for_each(|pfn| self.tree.prune(&mut inner.held, pfn));
        let map = inner.maps.by_id(map).expect("a live folio keeps its page map registered");
        self.gone(map, folios);
    }

    /// There is no large folio where a leaf says so: the end of the kernel (G8).
    #[cold]
    #[inline(never)]
    fn no_large_folio(&self, Leaves { first, size, .. }: Leaves) -> ! {
        let found = self.owned(first, "put without a get").size;
        panic!("page {first}: put without a get: a {size} leaf over a {found} folio");
    }
}

impl Near<'_> {
    #[inline]
    fn block(&self, pfn: Pfn) -> &Slot<Chunk> {
        self.table.slot(pfn, PageSize::Size2M)
    }
}

impl Tree {
    /// The table of 2 MiB blocks around `pfn`; `None` where one folio fills the 1 GiB block, or nothing is in use.
    fn near<'a>(&'a self, held: &'a Held, pfn: Pfn) -> Option<Near<'a>> {
        let slot = self.path(held, pfn).gib?;
        let View::Node(table) = slot.view(held) else { return None };
        Some(Near { slot, table, pfn, used: slot.used(held) })
    }

    /// The metadata of the large folio around `pfn`, and its size.
    #[inline]
    fn large<'a>(&'a self, held: &'a Held, pfn: Pfn, near: Option<&Near<'a>>) -> Option<(&'a Page, PageSize)> {
        let Some(near) = near else { return self.large_gib(held, pfn) };
        match near.table.slot(pfn, PageSize::Size2M).view(held) {
            View::Folio(page) => Some((page, PageSize::Size2M)),
            _ => None,
        }
    }

    #[inline(never)]
    fn large_gib<'a>(&'a self, held: &'a Held, pfn: Pfn) -> Option<(&'a Page, PageSize)> {
        match self.path(held, pfn).gib?.view(held) {
            View::Folio(page) => Some((page, PageSize::Size1G)),
            _ => None,
        }
    }

    /// Takes the folio that fills the 1 GiB block around `pfn` out.
    #[inline(never)]
    fn detach_gib(&self, held: &Held, pfn: Pfn, dead: &mut Dead) {
        let path = self.path(held, pfn);
        dead.orphans.extend(path.gib.and_then(|gib| gib.detach(held)).map(AnyOrphan::Mib));
        let left = path.top.used(held) - 1;
        path.top.set_used(held, left);
        if left == 0 {
            dead.bare.push(pfn);
        }
    }
}
