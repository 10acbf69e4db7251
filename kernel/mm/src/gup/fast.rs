//! The lockless walk: steps 1 to 5 of the left column of [`crate::gup`].
//!
//! What one leaf maps, a single page before all, is the common case and has a way of its own: a walk, a look-up, one
//! compare-and-swap and two loads.
//!
//! Many pages under one page table go in runs: as long as entries follow each other (the next frame, the same rights)
//! and their pages lie side by side in one block of metadata, neither rights nor metadata are looked up anew. A run
//! takes each page's reference and reads its entry again, and reads the entry above once, after the last reference:
//! that is later than the protocol asks for, so it sees no less.

use super::{IRQS_OFF_STEPS, PinSink, Quick, Walk};
use crate::addr::{ENTRIES, PAGE_SHIFT, PageSize, Pfn, VirtAddr};
use crate::entry::Entry;
use crate::machine::{GROUP, IrqOff, Machine, Point};
use crate::meta::{Covering, Folio, Page};
use crate::mutant::Mutant;
use crate::pagemap::LongTermPin;
use crate::sync::{AtomicU64, Ordering};

/// A present entry where a walk ended, and the entry above it.
struct Leaf<'m> {
    slot: &'m AtomicU64,
    entry: Entry,
    level: u8,
    above: Above<'m>,
}

impl Leaf<'_> {
    /// The frame that this leaf of `size` maps at the address `at`, and how many pages it maps from there on.
    #[inline(always)]
    fn at(&self, size: PageSize, at: u64) -> (Pfn, u64) {
        let inside = at >> PAGE_SHIFT & (size.nr_pages() - 1);
        // The frames of a leaf are aligned to its size.
        (Pfn::new(self.entry.pfn().as_u64() | inside), size.nr_pages() - inside)
    }
}

/// The entry that leads to a table, as it was when the walk passed it.
#[derive(Clone, Copy)]
struct Above<'m> {
    slot: &'m AtomicU64,
    entry: Entry,
}

/// How far a step came.
struct Step {
    /// One past the last address pinned.
    next: u64,
    /// The fast path may go on there.
    go_on: bool,
}

/// What became of a run.
struct Run {
    /// Its first frame.
    first: Pfn,
    /// Pages pinned.
    nr_pages: u64,
    /// Nothing stands against going on behind it.
    go_on: bool,
}

/// Why a run has ended before its time.
enum End {
    /// The next entry maps something else.
    OtherRun,
    /// The next page cannot be had without a lock.
    Refused,
}

/// As many steps as there can be: the deliberate fault.
const WITHOUT_BOUND: u64 = u64::MAX >> PAGE_SHIFT;

impl Run {
    /// Nothing is pinned: go slow.
    const NONE: Self = Self { first: Pfn::new(0), nr_pages: 0, go_on: false };
}

/// Is the entry what it was? Accessed and dirty bits do not count.
///
/// SeqCst, as the taking of the reference before it: neither may pass the other, or a zap in between would go
/// unnoticed.
#[inline(always)]
fn is_unchanged(slot: &AtomicU64, was: Entry) -> bool {
    let now = Entry::from_bits(slot.load(Ordering::SeqCst));
    // The first question answers nearly all.
    now == was || now.same_translation(was)
}

/// The same where the entry is not what it was to the bit. It looks again, which sees no less. A function of its own and
/// marked as rare, so that the common way keeps nothing in registers for it: it costs a pin 12 instructions otherwise.
#[cold]
#[inline(never)]
fn is_unchanged_but_for_use(slot: &AtomicU64, was: Entry) -> bool {
    is_unchanged(slot, was)
}

impl Above<'_> {
    #[inline(always)]
    fn is_unchanged(self) -> bool {
        is_unchanged(self.slot, self.entry) || Mutant::NoUpperRecheck.is_on()
    }
}

impl<M: Machine, const PIN: bool> Walk<'_, M, PIN> {
    /// Pins the page at `at`, if a page table maps it and it can be had without a lock.
    #[inline(always)]
    pub(super) fn page(&self, at: u64) -> Quick {
        let irq = self.enter();
        let quick = match self.walk_down(&irq, at) {
            Some(leaf) => self.take_one(&leaf),
            None => Quick::No,
        };
        // Interrupts come back on in each way by itself, so that nobody need remember meanwhile which one it was.
        match quick {
            Quick::Pinned(pfn) => {
                drop(irq);
                Quick::Pinned(pfn)
            }
            other => {
                drop(irq);
                other
            }
        }
    }

    /// Pins `nr_pages` pages from `at` on, if one huge leaf maps them all and they can be had without a lock.
    #[inline(always)]
    pub(super) fn huge_leaf(&self, at: u64, nr_pages: u64) -> Quick {
        let irq = self.enter();
        // By size, so that each way has its own constants.
        match self.walk(&irq, at) {
            Some(leaf) if leaf.level == 2 => self.part_of(&leaf, PageSize::Size2M, at, nr_pages),
            Some(leaf) if leaf.level == 3 => self.part_of(&leaf, PageSize::Size1G, at, nr_pages),
            _ => Quick::No,
        }
    }

    #[inline(always)]
    fn part_of(&self, leaf: &Leaf<'_>, size: PageSize, at: u64, nr_pages: u64) -> Quick {
        let (pfn, most) = leaf.at(size, at);
        if nr_pages <= most { self.take_checked(pfn, nr_pages as u32, leaf) } else { Quick::No }
    }

    /// Pins what can be had without a lock, from `start` on, at most up to `end`; answers how far that is. Interrupts
    /// come on after each [`IRQS_OFF_STEPS`] steps.
    #[inline(always)]
    pub(super) fn pages<S: PinSink>(&self, start: u64, end: u64, sink: &mut S) -> u64 {
        let mut at = start;
        loop {
            let Step { next, go_on } = self.some_pages(at, end, sink);
            // The end first: it is the common case.
            if next == end || !go_on || sink.room() == 0 {
                return next;
            }
            at = next;
        }
    }

    /// The first of them, with interrupts off.
    #[inline(always)]
    fn some_pages<S: PinSink>(&self, start: u64, end: u64, sink: &mut S) -> Step {
        let irq = self.enter();
        let (mut at, mut left) = (start, if Mutant::IrqsOffForAll.is_on() { WITHOUT_BOUND } else { IRQS_OFF_STEPS });
        loop {
            let Some(leaf) = self.walk(&irq, at) else { return Step { next: at, go_on: false } };
            let most = end.min(at.saturating_add(left << PAGE_SHIFT));
            let is_huge = leaf.level > 1;
            let Step { next, go_on } = if is_huge {
                self.leaf(&leaf, (at, if S::BY_PAGE { most } else { end }), sink)
            } else {
                self.table(&irq, leaf.above, (at, most), sink)
            };
            let steps = if is_huge && !S::BY_PAGE { 1 } else { (next - at) >> PAGE_SHIFT };
            // The end first: it is the common case.
            if next == end || !go_on || steps >= left || sink.room() == 0 {
                return Step { next, go_on };
            }
            (at, left) = (next, left - steps);
        }
    }

    /// Turns interrupts off for the walk.
    #[inline(always)]
    fn enter(&self) -> IrqOff<'_, M> {
        let machine = &self.mm().machine;
        let irq = IrqOff::new(machine);
        if Mutant::GupIrqsOn.is_on() {
            machine.irq_enable();
        }
        irq
    }

    /// The entry that says what `at` is mapped to, whether it is present or not. `None` where a table above is missing,
    /// or where the space is not loaded on this CPU, so that its shootdowns would not wait for us.
    #[inline(always)]
    fn walk<'m>(&self, irq: &IrqOff<'m, M>, at: u64) -> Option<Leaf<'m>> {
        let (machine, va, root) = (irq.machine(), VirtAddr::new(at), self.space.root());
        if machine.loaded() != root {
            return None;
        }
        let mut level = machine.levels();
        let slot = machine.entry(root.pfn(), va.index(level));
        let mut above = Above { slot, entry: Entry::from_bits(slot.load(Ordering::Acquire)) };
        // The root has no leaves.
        if !above.entry.is_user_table() {
            return None;
        }
        loop {
            level -= 1;
            let slot = machine.entry(above.entry.pfn(), va.index(level));
            // Acquire; pairs with the Release half of the install.
            let entry = Entry::from_bits(slot.load(Ordering::Acquire));
            // One test a level: what is no table is a leaf or empty, which who uses it tells apart.
            if level == 1 || !entry.is_user_table() {
                return Some(Leaf { slot, entry, level, above });
            }
            above = Above { slot, entry };
        }
    }

    /// The same where page tables lead down to the last level; `None` where they do not. By their addresses, and without
    /// a level to remember: each instruction here is one of every pin.
    #[inline(always)]
    fn walk_down<'m>(&self, irq: &IrqOff<'m, M>, at: u64) -> Option<Leaf<'m>> {
        let (machine, va) = (irq.machine(), VirtAddr::new(at));
        let root = machine.loaded();
        if root != self.space.root() {
            return None;
        }
        let mut level = machine.levels();
        let mut slot = machine.entry_at(root, va.index(level));
        loop {
            // Acquire; pairs with the Release half of the install.
            let table = Entry::from_bits(slot.load(Ordering::Acquire)).user_table()?;
            let above = Above { slot, entry: table.entry() };
            level -= 1;
            slot = machine.entry_at(table.addr(), va.index(level));
            if level == 1 {
                let entry = Entry::from_bits(slot.load(Ordering::Acquire));
                return Some(Leaf { slot, entry, level, above });
            }
        }
    }

    /// Does the entry allow what is wanted? Not so an empty one.
    #[inline(always)]
    fn allows(&self, entry: Entry) -> bool {
        entry.has(self.want.rights())
    }

    /// May the page be pinned for as long as is asked for?
    #[inline(always)]
    fn tolerates(&self, page: &Page) -> bool {
        !self.want.long_term() || (self.want.revocable() && page.long_term() == LongTermPin::Revocable)
    }

    /// The pages of one huge leaf, from `at` on, as one run.
    #[inline(always)]
    fn leaf<S: PinSink>(&self, leaf: &Leaf<'_>, (at, end): (u64, u64), sink: &mut S) -> Step {
        let Some(size) = PageSize::from_level(leaf.level) else { return Step { next: at, go_on: false } };
        let (pfn, most) = leaf.at(size, at);
        let nr_pages = most.min((end - at) >> PAGE_SHIFT).min(sink.room());
        if self.take_checked(pfn, nr_pages as u32, leaf).pinned(self.space, PIN, nr_pages).is_none() {
            return Step { next: at, go_on: false };
        }
        sink.push(pfn, nr_pages);
        Step { next: at + (nr_pages << PAGE_SHIFT), go_on: true }
    }

    /// As [`take_checked`](Self::take_checked), for the page of a leaf of the last level. It gives up where a closer look
    /// would be needed: at a count that another CPU changes meanwhile, or that refuses. The walk for many pages comes
    /// next, without a lock too, and looks closer.
    #[inline(always)]
    fn take_one(&self, leaf: &Leaf<'_>) -> Quick {
        if !self.allows(leaf.entry) {
            return Quick::No;
        }
        let (mm, pfn) = (self.mm(), leaf.entry.pfn());
        // SAFETY: interrupts are off, and the frame was read from a present entry in this walk.
        let Some(page) = (unsafe { mm.meta.lookup_page(pfn) }) else { return Quick::No };
        if !self.tolerates(page) {
            return Quick::No;
        }
        mm.machine.reached(Point::GupLeafRead);
        if !page.try_take_one::<PIN>() {
            return Quick::No;
        }
        mm.machine.reached(Point::GupPinned);
        // SeqCst: as in `is_unchanged`.
        let is_same = |slot: &AtomicU64, was: Entry| {
            slot.load(Ordering::SeqCst) == was.bits() || is_unchanged_but_for_use(slot, was)
        };
        let leaf_is = is_same(leaf.slot, leaf.entry) || Mutant::NoEntryRecheck.is_on();
        let above_is = || is_same(leaf.above.slot, leaf.above.entry) || Mutant::NoUpperRecheck.is_on();
        if leaf_is && above_is() { Quick::Pinned(pfn) } else { Quick::GiveBack(pfn) }
    }

    /// Takes references on the folio of `pfn`, which the huge leaf maps with the rights that are wanted, and looks again
    /// at both entries (G1).
    #[inline(always)]
    fn take_checked(&self, pfn: Pfn, nr_pages: u32, leaf: &Leaf<'_>) -> Quick {
        // Above the last level an entry is a leaf only if it says so.
        if !leaf.entry.has(self.want.rights() | Entry::HUGE) {
            return Quick::No;
        }
        let mm = self.mm();
        // SAFETY: interrupts are off, and the frame was read from a present entry in this walk.
        let Some(page) = (unsafe { mm.meta.lookup_page(pfn) }) else { return Quick::No };
        if !self.tolerates(page) {
            return Quick::No;
        }
        mm.machine.reached(Point::GupLeafRead);
        if self.take(page, nr_pages).is_err() {
            return Quick::No;
        }
        mm.machine.reached(Point::GupPinned);
        let leaf_is = is_unchanged(leaf.slot, leaf.entry) || Mutant::NoEntryRecheck.is_on();
        if leaf_is && leaf.above.is_unchanged() { Quick::Pinned(pfn) } else { Quick::GiveBack(pfn) }
    }

    /// The leaves of the page table that `above` leads to, from `at` on, run by run.
    #[inline(always)]
    fn table<S: PinSink>(&self, irq: &IrqOff<'_, M>, above: Above<'_>, (at, end): (u64, u64), sink: &mut S) -> Step {
        let mut at = at;
        let mut index = VirtAddr::new(at).index(1);
        loop {
            let most = ((end - at) >> PAGE_SHIFT).min(sink.room()).min((ENTRIES - index) as u64);
            if most == 0 {
                return Step { next: at, go_on: true };
            }
            let run = self.run(irq, above, index, most);
            if run.nr_pages > 0 {
                sink.push(run.first, run.nr_pages);
                at += run.nr_pages << PAGE_SHIFT;
                index += run.nr_pages as usize;
            }
            if !run.go_on {
                return Step { next: at, go_on: false };
            }
        }
    }

    /// Pins up to `most` pages whose entries follow each other, from that at `index` on.
    #[inline(always)]
    fn run(&self, irq: &IrqOff<'_, M>, above: Above<'_>, index: usize, most: u64) -> Run {
        let table = above.entry.pfn();
        let first = Entry::from_bits(irq.machine().entry(table, index).load(Ordering::Acquire));
        if !self.allows(first) {
            return Run::NONE;
        }
        let pfn = first.pfn();
        // SAFETY: interrupts are off, and the frame was read from a present entry in this walk. Of the pages behind
        // it in their block, each is used only once its own entry was read, too.
        let run = match unsafe { self.mm().meta.lookup_run(pfn, most) } {
            None => return Run::NONE,
            Some(Covering::Pages(pages)) => self.run_of_pages(irq, (table, index), first, pages),
            Some(Covering::Part(folio, nr_pages)) => self.run_of_folio(irq, (table, index), first, (folio, nr_pages)),
        };
        if !above.is_unchanged() {
            self.give_back(pfn, run.nr_pages);
            return Run::NONE;
        }
        run
    }

    /// Small pages: a reference on each.
    #[inline(never)]
    fn run_of_pages(&self, irq: &IrqOff<'_, M>, (table, index): (Pfn, usize), first: Entry, pages: &[Page]) -> Run {
        let machine = irq.machine();
        // `pages` was cut to what the table has, so no index passes its end.
        let lead = index.wrapping_neg() % GROUP;
        let (head, rest) = pages.split_at(lead.min(pages.len()));
        let (groups, tail) = rest.as_chunks::<GROUP>();
        let (mut taken, mut end) = self.take_few(machine, (table, index), first, head);
        if end.is_ok() {
            let more;
            (more, end) = self.take_groups(machine, (table, index + taken), first.nth_page(taken), groups);
            taken += more;
        }
        if end.is_ok() && !tail.is_empty() {
            let more;
            (more, end) = self.take_few(machine, (table, index + taken), first.nth_page(taken), tail);
            taken += more;
        }
        let go_on = match end {
            Ok(()) => true,
            // Unless it is the first entry, which has changed since it was read.
            Err(End::OtherRun) => taken > 0,
            Err(End::Refused) => false,
        };
        let (pfn, nr_pages) = (first.pfn(), taken as u64);
        // After the references, so that the answers are those of the pages that are pinned.
        if self.want.long_term() && !pages[..taken].iter().all(|page| self.tolerates(page)) {
            self.give_back(pfn, nr_pages);
            return Run::NONE;
        }
        Run { first: pfn, nr_pages, go_on }
    }

    /// Takes references as long as the entries from that at `index` on are as expected: page by page.
    fn take_few(
        &self,
        machine: &M,
        (table, index): (Pfn, usize),
        first: Entry,
        pages: &[Page],
    ) -> (usize, Result<(), End>) {
        for (nth, page) in pages.iter().enumerate() {
            let slot = machine.entry(table, index + nth);
            if let Err(end) = self.take_next(machine, slot, page, first.nth_page(nth)) {
                return (nth, Err(end));
            }
        }
        (pages.len(), Ok(()))
    }

    /// The same for whole groups. A function of its own, so that its loop has all registers.
    #[inline(never)]
    fn take_groups(
        &self,
        machine: &M,
        (table, index): (Pfn, usize),
        first: Entry,
        groups: &[[Page; GROUP]],
    ) -> (usize, Result<(), End>) {
        let (mut group, mut expected) = (index / GROUP, first);
        for (done, pages) in groups.iter().enumerate() {
            let slots = machine.entries(table, group);
            for nth in 0..GROUP {
                if let Err(end) = self.take_next(machine, slots[nth], &pages[nth], expected.nth_page(nth)) {
                    return (done * GROUP + nth, Err(end));
                }
            }
            group = group.wrapping_add(1);
            expected = expected.nth_page(GROUP);
        }
        (groups.len() * GROUP, Ok(()))
    }

    /// Takes a reference on `page` if the entry in `slot` is as expected, before and after.
    #[inline(always)]
    fn take_next(&self, machine: &M, slot: &AtomicU64, page: &Page, expected: Entry) -> Result<(), End> {
        let entry = Entry::from_bits(slot.load(Ordering::Acquire));
        if entry != expected && !entry.same_translation(expected) {
            return Err(End::OtherRun);
        }
        machine.reached(Point::GupLeafRead);
        if self.take(page, 1).is_err() {
            return Err(End::Refused);
        }
        machine.reached(Point::GupPinned);
        if !is_unchanged(slot, entry) && !Mutant::NoEntryRecheck.is_on() {
            self.give_back(entry.pfn(), 1);
            return Err(End::Refused);
        }
        Ok(())
    }

    /// Small leaves over one large folio: one addition for all of them.
    #[inline(always)]
    fn run_of_folio(
        &self,
        irq: &IrqOff<'_, M>,
        (table, index): (Pfn, usize),
        first: Entry,
        (folio, most): (Folio<'_>, u64),
    ) -> Run {
        let machine = irq.machine();
        let follow = |order, most: u64| {
            let expected = core::iter::successors(Some(first), |entry| Some(entry.next_page()));
            let follows = |&(index, expected): &(usize, Entry)| {
                Entry::from_bits(machine.entry(table, index).load(order)).same_translation(expected)
            };
            (index..ENTRIES).zip(expected).take(most as usize).take_while(follows).count() as u64
        };
        let nr_pages = follow(Ordering::Acquire, most);
        if nr_pages == 0 || !self.tolerates(folio.page) {
            return Run::NONE;
        }
        machine.reached(Point::GupLeafRead);
        if self.take(folio.page, nr_pages as u32).is_err() {
            return Run::NONE;
        }
        machine.reached(Point::GupPinned);
        if follow(Ordering::SeqCst, nr_pages) < nr_pages && !Mutant::NoEntryRecheck.is_on() {
            self.give_back(first.pfn(), nr_pages);
            return Run::NONE;
        }
        Run { first: first.pfn(), nr_pages, go_on: true }
    }
}
