//! Gather: what was taken out of page tables and waits for the shootdown before it may be freed.
//!
//! The order is *clear the entry, shoot down, then free* (G3), and this type is that order: whatever a zap
//! removes goes into a [`Gather`]; [`Gather::finish`] dispatches one round for all address spaces that were
//! touched, waits for it, and only then gives back table pages and references. A gather that is dropped
//! finishes itself, so that no path can forget.
//!
//! **Without memory.** A few places are inside the gather itself; the lists behind them grow with what is removed. Where
//! they cannot (`Gather::has_room`), a zap shoots down and frees whenever those places are full, and goes on. So a
//! removal needs no memory to succeed, only more rounds.
//!
//! Linux: `mm/mmu_gather.c`.

use alloc::vec::Vec;

use arrayvec::ArrayVec;

use crate::addr::{ENTRIES, PageSize, Pfn, VirtAddr, VirtRange};
use crate::context::MmContext;
use crate::entry::Entry;
use crate::machine::{self, Machine};
use crate::meta::Leaves;
use crate::mutant::Mutant;
use crate::shootdown::{FlushRange, Round, TlbState};
use crate::sync::{Arc, AtomicU64, Ordering};
use crate::table::span_bytes;
use crate::trace::{Kind, Mark, mark};

/// What a zap found and what its shootdown cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ZapStats {
    /// Page-table entries read, in live and in detached tables.
    pub entries_visited: u64,
    /// Leaves removed.
    pub leaves: u64,
    /// Base pages that those leaves mapped.
    pub nr_pages: u64,
    /// Table pages freed.
    pub table_pages: u64,
    /// Rounds of shootdown (1, or 0 where nothing was mapped).
    pub rounds: u64,
    /// Interrupts sent.
    pub ipis: u64,
}

impl ZapStats {
    /// Adds another zap's figures.
    pub fn add(&mut self, other: Self) {
        self.entries_visited += other.entries_visited;
        self.leaves += other.leaves;
        self.nr_pages += other.nr_pages;
        self.table_pages += other.table_pages;
        self.rounds += other.rounds;
        self.ipis += other.ipis;
    }
}

/// A table page that has been unlinked, with everything below it. Its pages are nobody's until a [`Gather`] has it, which
/// frees them after the shootdown: dropped, it is a leak.
#[must_use = "only a gather frees its pages"]
#[derive(Debug)]
pub(crate) struct Detached {
    table: Pfn,
    level: u8,
    /// First address of its span, and between which addresses there may be anything in it.
    base: u64,
    start: u64,
    end: u64,
}

impl Detached {
    /// Puts `new` in place of the entry in `slot`, which leads from a table of `level` to the one that is taken out. The
    /// caller holds the address space exclusively, and issues the shootdown that covers its span. The span begins at `base`;
    /// no VMA has anything in it but between `start` and `end`.
    pub(crate) fn unlink(slot: &AtomicU64, new: Entry, level: u8, base: u64, (start, end): (u64, u64)) -> Self {
        // AcqRel: orders the unlinking before the generation that announces it, and what `new` owns before `new`.
        let old = Entry::from_bits(slot.swap(new.bits(), Ordering::AcqRel));
        debug_assert!(old.is_table(level), "{old:?} is unlinked as a table");
        Self { table: old.pfn(), level: level - 1, base, start, end }
    }

    /// The table that an entry of this one leads to, whose span begins at `base`.
    #[inline]
    fn below(&self, table: Pfn, base: u64) -> Self {
        let end = base + span_bytes(self.level);
        Self { table, level: self.level - 1, base, start: self.start.max(base), end: self.end.min(end) }
    }

    /// The entries that there may be.
    #[inline]
    fn indices(&self) -> core::ops::RangeInclusive<usize> {
        let span = span_bytes(self.level);
        let first = (self.start - self.base) / span;
        let last = (self.end - 1 - self.base) / span;
        first as usize..=(last as usize).min(ENTRIES - 1)
    }
}

/// Entries of a detached table that are looked at together.
const GROUP: usize = if ENTRIES < 16 { ENTRIES } else { 16 };

/// Runs and sub-trees that a gather holds without any memory of its own.
const SPARE: usize = 4;

/// Removed translations on their way to being freed.
///
/// One device is taken away from a task on another CPU:
/// ```
/// use mm::addr::{PAGE_SIZE, Pfn, VirtAddr};
/// use testkit::emu::{self, Frames, Task};
/// use mm::entry::Prot;
/// use mm::gather::Gather;
/// use mm::mapping::unmap_mapping_range;
/// use mm::space::AddressSpace;
///
/// let mm = emu::context(2);
/// let device = Frames::new(&mm, Pfn::new(0x10_0000), 8);
/// let (space, va) = (AddressSpace::new(&mm, "task").unwrap(), VirtAddr::new(0x40_0000_0000));
/// space.map(va, 8 * PAGE_SIZE, Prot::USER_WRITE, &device.ops(), 0).unwrap();
/// let task = Task::start(&space, 1);
/// task.store(va, 7).unwrap();
///
/// let mut gather = Gather::new(&mm);
/// unmap_mapping_range(&device.mapping, 0, u64::MAX, &mut gather);
/// // The entry is cleared, but CPU 1 still reads through its TLB: nothing may be freed yet.
/// assert_eq!(task.run(|_| mm.machine.read(va, true)), Ok(7));
/// assert!(!device.map.is_drained());
///
/// let cost = gather.finish();
/// assert_eq!((cost.leaves, cost.rounds, cost.ipis), (1, 1, 1));
/// assert!(task.run(|_| mm.machine.read(va, true)).is_err(), "a page fault");
/// assert!(device.map.is_drained());
/// ```
#[must_use = "finish it where the time of the shootdown matters; dropping it finishes it too"]
pub struct Gather<M: Machine> {
    mm: Arc<MmContext<M>>,
    round: Round,
    /// Detached sub-trees: the first few, for which there is always room.
    spare_tables: ArrayVec<Detached, SPARE>,
    /// Leaves: the first few.
    spare_runs: ArrayVec<Leaves, SPARE>,
    /// The rest of both.
    tables: Vec<Detached>,
    runs: Vec<Leaves>,
    stats: ZapStats,
}

impl<M: Machine> Gather<M> {
    /// An empty gather. It costs nothing until something is removed.
    pub fn new(mm: &Arc<MmContext<M>>) -> Self {
        Self {
            mm: Arc::clone(mm),
            round: Round::new(),
            spare_tables: ArrayVec::new(),
            spare_runs: ArrayVec::new(),
            tables: Vec::new(),
            runs: Vec::new(),
            stats: ZapStats::default(),
        }
    }

    /// Is there room for one more leaf and one more sub-tree? Where there is not, [`make_room`](Self::make_room) comes
    /// before the next entry is cleared.
    pub(crate) fn has_room(&mut self) -> bool {
        let machine = &self.mm.machine;
        (!self.spare_tables.is_full() || machine::has_room(machine, &mut self.tables))
            && (!self.spare_runs.is_full() || machine::has_room(machine, &mut self.runs))
    }

    /// Shoots down what was issued, and frees everything gathered so far: all of it has been issued.
    pub(crate) fn make_room(&mut self) {
        self.flush();
    }

    /// A leaf has been cleared.
    pub(crate) fn leaf(&mut self, entry: Entry, size: PageSize) {
        mark!(self.mm.machine, Mark::pages(Kind::Cleared, entry.pfn(), size.nr_pages()));
        self.stats.leaves += 1;
        self.stats.nr_pages += size.nr_pages();
        let last = self.runs.last_mut().or(self.spare_runs.last_mut());
        if last.is_some_and(|run| run.extend(entry.pfn(), size)) {
            return;
        }
        let run = Leaves::one(entry.pfn(), size);
        if let Err(full) = self.spare_runs.try_push(run) {
            self.runs.push(full.element());
        }
    }

    /// A table page has been unlinked with everything below it.
    pub(crate) fn subtree(&mut self, detached: Detached) {
        mark!(self.mm.machine, Mark::new(Kind::Unlinked, detached.table.as_u64(), detached.level.into()));
        if let Err(full) = self.spare_tables.try_push(detached) {
            self.tables.push(full.element());
        }
    }

    /// `nr` entries were looked at.
    pub(crate) fn visited(&mut self, nr: u64) {
        self.stats.entries_visited += nr;
    }

    /// All that was cleared so far in `space` is covered by `what`.
    pub(crate) fn issue(&mut self, space: &Arc<TlbState>, what: FlushRange, frees_tables: bool) {
        if !self.round.has_room(&self.mm.machine) {
            // The spaces before this one: nothing of theirs is freed here, and nothing of this one is dispatched.
            self.shoot_down();
        }
        self.round.issue(space, what, frees_tables);
    }

    /// As [`issue`](Self::issue): a table that spanned the page of `size` at `va` has been unlinked.
    pub(crate) fn issue_page(&mut self, space: &Arc<TlbState>, va: VirtAddr, size: PageSize) {
        let what = match VirtRange::new(va, size.bytes()) {
            Some(range) if Mutant::PromoteFlushesOnePage.is_on() => FlushRange::Pages { range, stride: size },
            Some(range) => FlushRange::Pages { range, stride: PageSize::Size4K },
            None => FlushRange::All,
        };
        self.issue(space, what, true);
    }

    /// How much has been issued that is not yet dispatched.
    #[inline]
    pub(crate) fn nr_issued(&self) -> usize {
        self.round.nr_issued()
    }

    /// Has something been issued for `space` that is not yet dispatched?
    pub(crate) fn has_issued(&self, space: &TlbState) -> bool {
        self.round.covers(space)
    }

    /// The CPUs that have `space` loaded now are interrupted too, for what was [issued](Self::has_issued) for it.
    pub(crate) fn include_present(&mut self, space: &TlbState) {
        self.round.include_present(space);
    }

    /// Shoots down, waits, then frees. Answers what was found and what it cost.
    ///
    /// # Panics
    /// When interrupts are off and there is something to wait for.
    pub fn finish(mut self) -> ZapStats {
        self.flush();
        self.stats
    }

    /// What was found so far. Detached sub-trees are counted when they are freed.
    pub fn stats(&self) -> ZapStats {
        self.stats
    }

    /// The shootdown alone: afterwards no CPU can use what was removed, and nothing is freed yet. A removal
    /// reports this as a step of its own.
    ///
    /// # Panics
    /// When interrupts are off and there is something to wait for.
    pub fn shoot_down(&mut self) {
        let round = core::mem::take(&mut self.round);
        if round.is_empty() {
            return;
        }
        if Mutant::PageFreedBeforeSync.is_on() {
            self.put_pages();
        }
        if Mutant::TableFreedBeforeSync.is_on() {
            self.free_tables();
        }
        let dispatched = round.dispatch(&self.mm.shootdown, &self.mm.machine);
        self.stats.rounds += 1;
        self.stats.ipis += u64::from(dispatched.nr_ipis());
        dispatched.sync();
    }

    fn flush(&mut self) {
        self.shoot_down();
        self.put_pages();
        self.free_tables();
    }

    fn put_pages(&mut self) {
        if M::TRACES && !self.spare_runs.is_empty() {
            mark!(self.mm.machine, Mark::new(Kind::LeavesPut, self.stats.leaves, 0));
        }
        self.mm.meta.put_leaves(&core::mem::take(&mut self.spare_runs));
        self.mm.meta.put_leaves(&core::mem::take(&mut self.runs));
    }

    fn free_tables(&mut self) {
        let tables = core::mem::take(&mut self.spare_tables).into_iter().chain(core::mem::take(&mut self.tables));
        for detached in tables {
            let mut puts = Puts { mm: &*self.mm, runs: ArrayVec::new(), full: ArrayVec::new() };
            free_subtree(&self.mm, &mut self.stats, &detached, &mut puts);
            puts.put_blocks();
            puts.flush();
        }
    }
}

/// References to be given back, some of them at a time.
struct Puts<'m, M: Machine> {
    mm: &'m MmContext<M>,
    runs: ArrayVec<Leaves, PUT_AT_ONCE>,
    /// Page tables that are full, each with the one block that it maps.
    full: ArrayVec<(Pfn, Pfn), BLOCKS_AT_ONCE>,
}

/// Runs of leaves that are given back at a time.
const PUT_AT_ONCE: usize = 32;
/// Blocks of small pages that are given back under one hold of the store's lock, with a look at each page.
const BLOCKS_AT_ONCE: usize = 4;

impl<M: Machine> Puts<'_, M> {
    /// A leaf of `size` has gone that mapped the frames from `pfn` on.
    #[inline]
    fn follow(&mut self, pfn: Pfn, size: PageSize) {
        if self.runs.last_mut().is_some_and(|run| run.extend(pfn, size)) {
            return;
        }
        if self.runs.is_full() {
            self.flush();
        }
        self.runs.push(Leaves::one(pfn, size));
    }

    #[inline(never)]
    fn flush(&mut self) {
        self.mm.meta.put_leaves(&self.runs);
        self.runs.clear();
    }

    /// Gives back the leaves of those page tables that map a whole block each, and frees them. Where somebody else uses a
    /// page of the block, its leaves go one by one.
    #[inline(never)]
    fn put_blocks(&mut self) {
        let full = core::mem::take(&mut self.full);
        let blocks: ArrayVec<Pfn, BLOCKS_AT_ONCE> = full.iter().map(|&(_, block)| block).collect();
        let left = self.mm.meta.put_blocks(&blocks);
        for (nth, (table, _)) in full.into_iter().enumerate() {
            if left & 1 << nth != 0 {
                free_leaves(self.mm, table, 0..=ENTRIES - 1, self);
            }
            self.mm.free_table(table);
        }
    }
}

/// Frees a detached table and all below it. Nobody can reach it any more: the sync is done.
fn free_subtree<M: Machine>(mm: &MmContext<M>, stats: &mut ZapStats, detached: &Detached, puts: &mut Puts<'_, M>) {
    let &Detached { table, level, base, .. } = detached;
    let leaf_size = PageSize::from_level(level);
    let indices = detached.indices();
    stats.entries_visited += (indices.end() + 1 - indices.start()) as u64;
    let mut leaves = 0;
    if leaf_size == Some(PageSize::Size4K) {
        let is_all = *indices.start() == 0 && *indices.end() == ENTRIES - 1;
        if let Some(block) = is_all.then(|| one_block(mm, table)).flatten() {
            stats.leaves += ENTRIES as u64;
            stats.nr_pages += ENTRIES as u64;
            stats.table_pages += 1;
            puts.full.push((table, block));
            if puts.full.is_full() {
                puts.put_blocks();
            }
            return;
        }
        leaves = free_leaves(mm, table, indices, puts);
    } else {
        let (next, end) = (*indices.start(), indices.end() + 1);
        // Above them there are tables alone.
        let mut large =
            LargeLeaves { mm, table, next, end, size: leaf_size.unwrap_or(PageSize::Size1G), leaves, tables: false };
        mm.meta.put_large(&mut large);
        leaves = large.leaves;
        for index in indices.filter(|_| large.tables) {
            let entry = entry_of(mm, table, index);
            if entry.is_table(level) {
                free_subtree(mm, stats, &detached.below(entry.pfn(), base + index as u64 * span_bytes(level)), puts);
            }
        }
    }
    stats.leaves += leaves;
    stats.nr_pages += leaf_size.map_or(0, |size| leaves << size.order());
    stats.table_pages += 1;
    mm.free_table(table);
}

/// The leaves of a detached table of level 2 or more, between these entries, as they are asked for.
struct LargeLeaves<'m, M: Machine> {
    mm: &'m MmContext<M>,
    table: Pfn,
    next: usize,
    end: usize,
    size: PageSize,
    /// How many there were so far.
    leaves: u64,
    /// Was there a table too?
    tables: bool,
}

impl<M: Machine> Iterator for LargeLeaves<'_, M> {
    type Item = Leaves;

    #[inline]
    fn next(&mut self) -> Option<Leaves> {
        let (mut next, end) = (self.next, self.end);
        let mut found = None;
        while next < end {
            let entry = entry_of(self.mm, self.table, next);
            next += 1;
            if entry.is_leaf(self.size.level()) {
                self.leaves += 1;
                found = Some(Leaves::one(entry.pfn(), self.size));
                break;
            }
            self.tables |= entry.is_present();
        }
        self.next = next;
        found
    }
}

/// An entry of a detached table.
#[inline(always)]
fn entry_of<M: Machine>(mm: &MmContext<M>, table: Pfn, index: usize) -> Entry {
    // Relaxed: this CPU alone can reach the page now; the sync ordered it after all walks.
    Entry::from_bits(mm.machine.entry(table, index).load(Ordering::Relaxed))
}

/// The 2 MiB block of frames that a detached page table maps, if it maps nothing else and no entry is empty.
fn one_block<M: Machine>(mm: &MmContext<M>, table: Pfn) -> Option<Pfn> {
    // Equal in the bits that say which block, they say so for each.
    let (all, any) = mm.machine.all_and_any(table);
    let block = all.pfn().align_down(PageSize::Size2M);
    (all.is_present() && block == any.pfn().align_down(PageSize::Size2M)).then_some(block)
}

/// Gives back the leaves of a detached page table, of which there are some between these entries; answers how many there
/// were.
///
/// Page tables are nearly all of what a large unmap frees, and most of their entries map one frame after the other.
/// So entries are compared in groups: one test for all of a group that goes on where the run ends.
fn free_leaves<M: Machine>(
    mm: &MmContext<M>,
    table: Pfn,
    indices: core::ops::RangeInclusive<usize>,
    puts: &mut Puts<'_, M>,
) -> u64 {
    let mut leaves: u64 = 0;
    // The entry that would go on with the run.
    let mut expected = None;
    let mut index = *indices.start();
    while index <= *indices.end() {
        if let (Some(first), Some(run), true) = (expected, puts.runs.last_mut(), index + GROUP <= indices.end() + 1) {
            let (mut next, mut differs): (Entry, u64) = (first, 0);
            for nth in 0..GROUP {
                differs |= entry_of(mm, table, index + nth).difference(next);
                next = next.next_page();
            }
            if differs == 0 {
                run.nr += GROUP as u64;
                leaves += GROUP as u64;
                expected = Some(next);
                index += GROUP;
                continue;
            }
        }
        for index in index..(index + GROUP).min(indices.end() + 1) {
            let entry = entry_of(mm, table, index);
            expected = entry.is_present().then(|| entry.next_page());
            if entry.is_present() {
                leaves += 1;
                puts.follow(entry.pfn(), PageSize::Size4K);
            }
        }
        index += GROUP;
    }
    leaves
}

impl<M: Machine> Drop for Gather<M> {
    fn drop(&mut self) {
        self.flush();
    }
}
