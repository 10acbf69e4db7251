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
//! The count reaches zero once, so one of them buries. A block of small pages that one full page table alone maps goes in the
//! same way, with one look at each of its pages. What is buried is taken out of its slot at once, and freed before the
//! lock is left, when no view of the tables is left.

use arrayvec::ArrayVec;

use super::raw::{FAN_OUT, Folio, Held, MibTable, Slot, View};
use super::tree::{AnyOrphan, Tree};
use super::{Inner, Leaves, MetaStore};
use crate::addr::{ENTRIES, PageSize, Pfn};
use crate::ledger::Kind;
use crate::meta::page::Page;
use crate::mutant::Mutant;
use crate::pagemap::MapId;
use crate::sync::{Ordering, fence};

/// Large folios whose references are dropped under one hold of the store's lock, at most.
const AT_ONCE: usize = 64;

/// Folios of one page map whose references are dropped under one hold of the lock; those that die, until they are freed.
#[derive(Default)]
struct Dead {
    orphans: ArrayVec<AnyOrphan, AT_ONCE>,
    map: Option<MapId>,
    /// How many folios they are.
    folios: u64,
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
    #[inline]
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
            let (mut dead, mut near, mut looks) = (Dead::default(), None, 0);
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
            self.free(inner, &mut dead);
        }
    }

    /// Drops the references of the leaves over the first folio, and takes them off the run. `false`: it is of another page
    /// map than those before it, and nothing was done.
    #[inline]
    fn put_first<'a>(&'a self, held: &'a Held, run: &mut Leaves, near: &mut Option<Near<'a>>, dead: &mut Dead) -> bool {
        if !near.as_ref().is_some_and(|near| near.holds(run.first)) {
            self.come_near(held, run.first, near, dead);
        }
        let Some(near) = near else { return self.put_first_gib(held, run, dead) };
        let slot = near.table.slot(run.first, PageSize::Size2M);
        let View::Folio(page) = slot.view(held) else { self.no_large_folio(*run) };
        match put(page, PageSize::Size2M, run, dead) {
            Put::Last => {
                if let Some(orphan) = slot.detach(held) {
                    dead.orphans.push(AnyOrphan::Chunk(orphan));
                }
                dead.folios += 1;
                near.used -= 1;
                true
            }
            Put::Held => true,
            Put::OtherMap => false,
        }
    }

    /// Drops one reference for each entry of some page tables, each of which is full and maps nothing but frames of the 2 MiB
    /// block at one of these frames, in whatever order. The caller owns them. Where they are all that the block's pages have,
    /// its metadata goes as a whole. The answer has bit n for block n where it is not so simple: for that nothing has been
    /// done.
    pub fn put_blocks(&self, blocks: &[Pfn]) -> u64 {
        const { assert!(ENTRIES == FAN_OUT, "a page table has an entry for each page of a block") };
        let (mut left, mut folios, mut next) = (0, 0, 0);
        while next < blocks.len() {
            let inner = &mut *self.inner.lock();
            let held = &inner.held;
            let (mut near, mut dead) = (None, Dead::default());
            while let Some(&first) = blocks.get(next) {
                match self.put_block(held, first, &mut near, &mut dead) {
                    Block::Gone => {}
                    Block::Other => left |= 1 << next,
                    Block::Folio => folios |= 1 << next,
                    Block::OtherMap => break,
                }
                next += 1;
            }
            if let Some(near) = near {
                near.leave(held, &mut dead);
            }
            self.free(inner, &mut dead);
        }
        for (nth, &first) in (0..).zip(blocks) {
            if folios & 1 << nth != 0 {
                self.put_block_of_folio(first);
            }
        }
        left
    }

    #[inline]
    fn put_block<'a>(&'a self, held: &'a Held, first: Pfn, near: &mut Option<Near<'a>>, dead: &mut Dead) -> Block {
        if !near.as_ref().is_some_and(|near| near.holds(first)) {
            self.come_near(held, first, near, dead);
        }
        let Some(near) = near else { return Block::Folio };
        let slot = near.table.slot(first, PageSize::Size2M);
        let View::Node(chunk) = slot.view(held) else { return Block::Folio };
        // A life that has ended but was not yet brought to the lock counts: whoever ended it will look for the chunk.
        let several = !held.excess.is_empty() && held.excess.contains_key(&first);
        if several || slot.used(held) != FAN_OUT {
            return Block::Other;
        }
        // As many references are ours as there are pages. If no page has more than one, there is one for each page, and
        // all are ours: then nobody else can take another, for that needs a reference or the lock.
        let one_each = Page::have_one_at_most(chunk.pages());
        // Pairs with the Release of `Page::sub` and `Page::put_each`.
        fence(Ordering::Acquire);
        let page = chunk.page(first);
        // On the edge of a range there may be pages of more than one map.
        if !one_each && !Mutant::BlockNotLookedAt.is_on() || page.is_edge() {
            return Block::Other;
        }
        let map = page.map_id();
        if *dead.map.get_or_insert(map) != map {
            return Block::OtherMap;
        }
        slot.set_used(held, 0);
        if let Some(orphan) = slot.detach(held) {
            dead.orphans.push(AnyOrphan::Chunk(orphan));
        }
        dead.folios += FAN_OUT as u64;
        near.used -= 1;
        Block::Gone
    }

    /// The same where one large folio covers the block.
    fn put_block_of_folio(&self, first: Pfn) {
        let Folio { page, size, .. } = self.owned(first, "put without a get");
        if let Err(dropped) = page.sub::<false>(ENTRIES as u32) {
            self.dropped(first, size, dropped);
        }
    }

    /// Goes on to the table of 2 MiB blocks around `pfn`, or to none where one folio fills the 1 GiB block.
    #[inline(never)]
    fn come_near<'a>(&'a self, held: &'a Held, pfn: Pfn, near: &mut Option<Near<'a>>, dead: &mut Dead) {
        if let Some(before) = near.take() {
            before.leave(held, dead);
        }
        *near = self.tree.near(held, pfn);
    }

    /// The same for a folio that fills a 1 GiB block.
    #[inline(never)]
    fn put_first_gib(&self, held: &Held, run: &mut Leaves, dead: &mut Dead) -> bool {
        let first = run.first;
        let path = self.tree.path(held, first);
        let Some((gib, View::Folio(page))) = path.gib.map(|gib| (gib, gib.view(held))) else {
            self.no_large_folio(*run)
        };
        match put(page, PageSize::Size1G, run, dead) {
            Put::Last => {
                dead.orphans.extend(gib.detach(held).map(AnyOrphan::Mib));
                dead.folios += 1;
                let left = path.top.used(held) - 1;
                path.top.set_used(held, left);
                if left == 0 {
                    dead.bare.push(first);
                }
                true
            }
            Put::Held => true,
            Put::OtherMap => false,
        }
    }

    /// Frees what was taken out.
    fn free(&self, inner: &mut Inner, dead: &mut Dead) {
        let Some(map) = dead.map.filter(|_| dead.folios != 0) else { return };
        // Pairs with the Release of `Page::sub`: what their holders did is over.
        fence(Ordering::Acquire);
        let bytes: usize = dead.orphans.drain(..).map(|orphan| orphan.free(&mut inner.held)).sum();
        self.ledger.charge(Kind::MetadataBytes, -(bytes as i64));
        dead.bare.drain(..).for_each(|pfn| self.tree.prune(&mut inner.held, pfn));
        let map = inner.maps.by_id(map).expect("a live folio keeps its page map registered");
        self.gone(map, dead.folios);
    }

    /// There is no large folio where a leaf says so: the end of the kernel (G8).
    #[cold]
    #[inline(never)]
    fn no_large_folio(&self, Leaves { first, size, .. }: Leaves) -> ! {
        let found = self.owned(first, "put without a get").size;
        panic!("page {first}: put without a get: a {size} leaf over a {found} folio");
    }
}

/// What came of it when the references of a full page table were given back.
enum Block {
    /// The block's metadata has gone.
    Gone,
    /// Somebody else holds one of its pages, or a life of one was not yet brought to the lock: nothing was done.
    Other,
    /// One large folio covers it: nothing was done.
    Folio,
    /// It is of another page map than those before it: nothing was done.
    OtherMap,
}

/// What came of it when the leaves over a folio were given back.
enum Put {
    /// They were the last to hold it.
    Last,
    /// Others hold it.
    Held,
    /// It is of another page map than those before it: nothing was done.
    OtherMap,
}

/// Drops the references of the leaves over `page`, the folio of `size` with the first of them, and takes them off the run.
#[inline(always)]
fn put(page: &Page, size: PageSize, run: &mut Leaves, dead: &mut Dead) -> Put {
    let (first, leaf, map) = (run.first, run.size, page.map_id());
    if *dead.map.get_or_insert(map) != map {
        return Put::OtherMap;
    }
    assert!(leaf <= size, "page {first}: put without a get: a {leaf} leaf over a {size} folio");
    let mut leaves = run.nr;
    if leaves != 1 {
        let end = first.align_down(size).add(size.nr_pages());
        leaves = leaves.min((end.as_u64() - first.as_u64()) >> leaf.order());
        run.first = first.add(leaves << leaf.order());
    }
    run.nr -= leaves;
    match page.sub::<false>(leaves as u32) {
        Ok(()) if !Mutant::LeafPutBuries.is_on() => return Put::Held,
        Ok(()) => {}
        Err(dropped) => dropped.assert_last(first, size),
    }
    Put::Last
}

impl Tree {
    /// The table of 2 MiB blocks around `pfn`; `None` where one folio fills the 1 GiB block, or nothing is in use.
    fn near<'a>(&'a self, held: &'a Held, pfn: Pfn) -> Option<Near<'a>> {
        let slot = self.path(held, pfn).gib?;
        let View::Node(table) = slot.view(held) else { return None };
        Some(Near { slot, table, pfn, used: slot.used(held) })
    }
}
