//! The lockless walk: steps 1 to 5 of the left column of [`crate::gup`].
//!
//! Each reference is taken by [`Walk::take_and_recheck`]: first the reference, then the entries again.
//!
//! What one leaf maps, a single page before all, is the common case and has a way of its own: a walk, a look-up, one
//! compare-and-swap and two loads.
//!
//! Many pages under one page table go in runs: as long as entries follow each other (the next frame, the same rights)
//! and their pages lie side by side in one block of metadata, neither rights nor metadata are looked up anew. A run
//! takes each page's reference and reads its entry again, and reads the entry above once, after the last reference:
//! that is later than the protocol asks for, so it sees no less.

use super::recheck::{Row, Seen, Taken};
use super::{FastResult, IRQS_OFF_STEPS, PinSink, Walk};
use crate::addr::{ENTRIES, PAGE_SHIFT, PageSize, Pfn, VirtAddr};
use crate::entry::Entry;
use crate::machine::{GROUP, IrqOff, Machine};
use crate::meta::{Covering, Folio, Page};
use crate::mutant::Mutant;
use crate::pagemap::LongTermPin;
use crate::sync::{AtomicU64, Ordering};

/// Where a walk ended: the entry, which may be empty, and that which leads to its table.
struct Leaf<'m> {
    this: Seen<'m>,
    level: u8,
    above: Seen<'m>,
}

impl Leaf<'_> {
    /// How far inside this leaf of `size` the address `at` is, and how many pages it maps from there on.
    #[inline(always)]
    fn at(size: PageSize, at: u64) -> (u64, u64) {
        let inside = at >> PAGE_SHIFT & (size.nr_pages() - 1);
        (inside, size.nr_pages() - inside)
    }

    /// The frame of the page that is so far inside.
    #[inline(always)]
    fn pfn(&self, inside: u64) -> Pfn {
        // The frames of a leaf are aligned to its size.
        Pfn::new(self.this.entry.pfn().as_u64() | inside)
    }
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

impl<M: Machine, const PIN: bool> Walk<'_, M, PIN> {
    /// Pins the page at `at`, if a page table maps it and it can be had without a lock. It gives up where a closer look
    /// would be needed: at a count that another CPU changes meanwhile, or that refuses. The walk for many pages comes
    /// next, without a lock too, and looks closer.
    #[inline(always)]
    pub(super) fn page(&self, at: u64) -> FastResult {
        let irq = self.enter();
        let result = match self.walk::<true>(&irq, at) {
            Some(leaf) => self.pin_leaf::<true>(&leaf, self.request.rights(), 0, 1),
            None => FastResult::Miss,
        };
        // Interrupts come back on in each way by itself, so that nobody need remember meanwhile which one it was.
        match result {
            FastResult::Pinned(pfn) => {
                drop(irq);
                FastResult::Pinned(pfn)
            }
            other => {
                drop(irq);
                other
            }
        }
    }

    /// Pins `nr_pages` pages from `at` on, if one huge leaf maps them all and they can be had without a lock.
    #[inline(always)]
    pub(super) fn huge_leaf(&self, at: u64, nr_pages: u64) -> FastResult {
        let irq = self.enter();
        // By size, so that each way has its own constants.
        match self.walk::<false>(&irq, at) {
            Some(leaf) if leaf.level == 2 => self.part_of(&leaf, PageSize::Size2M, at, nr_pages),
            Some(leaf) if leaf.level == 3 => self.part_of(&leaf, PageSize::Size1G, at, nr_pages),
            _ => FastResult::Miss,
        }
    }

    #[inline(always)]
    fn part_of(&self, leaf: &Leaf<'_>, size: PageSize, at: u64, nr_pages: u64) -> FastResult {
        let (inside, most) = Leaf::at(size, at);
        if nr_pages <= most { self.pin_huge(leaf, inside, nr_pages) } else { FastResult::Miss }
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
            let Some(leaf) = self.walk::<false>(&irq, at) else { return Step { next: at, go_on: false } };
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
    ///
    /// `SMALL`: where page tables lead down to the last level, and `None` where they do not. What is found then has no
    /// level to remember: each instruction here is one of every pin.
    #[inline(always)]
    fn walk<'m, const SMALL: bool>(&self, irq: &IrqOff<'m, M>, at: u64) -> Option<Leaf<'m>> {
        let (machine, va) = (irq.machine(), VirtAddr::new(at));
        let root = machine.loaded();
        if root != self.space.root() {
            return None;
        }
        let mut level = machine.levels();
        let mut this = Seen::read(machine.entry_at(root, va.index(level)));
        // The root has no leaves.
        let mut table = this.entry.user_table()?;
        loop {
            let above = this;
            level -= 1;
            this = Seen::read(machine.entry_at(table.addr(), va.index(level)));
            if level == 1 {
                return Some(Leaf { this, level, above });
            }
            // One test a level: what is no table is a leaf or empty, which who uses it tells apart.
            match this.entry.user_table() {
                Some(below) => table = below,
                None if SMALL => return None,
                None => return Some(Leaf { this, level, above }),
            }
        }
    }

    /// May the page be pinned for as long as is asked for?
    #[inline(always)]
    fn tolerates(&self, page: &Page) -> bool {
        !self.request.long_term() || (self.request.revocable() && page.long_term() == LongTermPin::Revocable)
    }

    /// The pages of one huge leaf, from `at` on, as one run.
    #[inline(always)]
    fn leaf<S: PinSink>(&self, leaf: &Leaf<'_>, (at, end): (u64, u64), sink: &mut S) -> Step {
        let Some(size) = PageSize::from_level(leaf.level) else { return Step { next: at, go_on: false } };
        let (inside, most) = Leaf::at(size, at);
        let nr_pages = most.min((end - at) >> PAGE_SHIFT).min(sink.room());
        let result = self.pin_huge(leaf, inside, nr_pages);
        let Some(pfn) = result.pinned_or_give_back(self.space, PIN, nr_pages) else {
            return Step { next: at, go_on: false };
        };
        sink.push(pfn, nr_pages);
        Step { next: at + (nr_pages << PAGE_SHIFT), go_on: true }
    }

    /// Pins `nr` pages of a leaf, from that on which is so far inside, if the leaf has these flags. `ONE`: see
    /// [`take_and_recheck`](Self::take_and_recheck).
    #[inline(always)]
    fn pin_leaf<const ONE: bool>(&self, leaf: &Leaf<'_>, flags: u8, inside: u64, nr: u32) -> FastResult {
        // An empty entry has none.
        if !leaf.this.entry.has(flags) {
            return FastResult::Miss;
        }
        let pfn = leaf.pfn(inside);
        // SAFETY: interrupts are off, and the frame was read from a present entry in this walk.
        let Some(page) = (unsafe { self.mm().meta.lookup_page(pfn) }) else { return FastResult::Miss };
        if !self.tolerates(page) {
            return FastResult::Miss;
        }
        match self.take_and_recheck::<ONE>(page, nr, leaf.this, Some(leaf.above)) {
            Taken::Kept => FastResult::Pinned(pfn),
            Taken::Stale => FastResult::Changed(pfn),
            Taken::Refused => FastResult::Miss,
        }
    }

    /// The same for `nr_pages` pages of a huge leaf.
    #[inline(always)]
    fn pin_huge(&self, leaf: &Leaf<'_>, inside: u64, nr_pages: u64) -> FastResult {
        // Above the last level an entry is a leaf only if it says so.
        self.pin_leaf::<false>(leaf, self.request.rights() | Entry::HUGE, inside, nr_pages as u32)
    }

    /// The leaves of the page table that `above` leads to, from `at` on, run by run.
    #[inline(always)]
    fn table<S: PinSink>(&self, irq: &IrqOff<'_, M>, above: Seen<'_>, (at, end): (u64, u64), sink: &mut S) -> Step {
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
    fn run(&self, irq: &IrqOff<'_, M>, above: Seen<'_>, index: usize, most: u64) -> Run {
        let table = above.entry.pfn();
        let first = Entry::from_bits(irq.machine().entry(table, index).load(Ordering::Acquire));
        if !first.has(self.request.rights()) {
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
        if !above.still_leads_there::<false>() {
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
        if self.request.long_term() && !pages[..taken].iter().all(|page| self.tolerates(page)) {
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
            if let Err(end) = self.take_next(slot, page, first.nth_page(nth)) {
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
                if let Err(end) = self.take_next(slots[nth], &pages[nth], expected.nth_page(nth)) {
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
    fn take_next(&self, slot: &AtomicU64, page: &Page, expected: Entry) -> Result<(), End> {
        let this = Seen::read(slot);
        if this.entry != expected && !this.entry.same_translation(expected) {
            return Err(End::OtherRun);
        }
        match self.take_and_recheck::<false>(page, 1, this, None) {
            Taken::Kept => return Ok(()),
            Taken::Stale => self.give_back(this.entry.pfn(), 1),
            Taken::Refused => {}
        }
        Err(End::Refused)
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
        let mut row = Row { machine: irq.machine(), table, index, first, nr_pages: most };
        row.nr_pages = row.follow(Ordering::Acquire);
        let nr_pages = row.nr_pages;
        if nr_pages == 0 || !self.tolerates(folio.page) {
            return Run::NONE;
        }
        match self.take_and_recheck::<false>(folio.page, nr_pages as u32, row, None) {
            Taken::Kept => Run { first: first.pfn(), nr_pages, go_on: true },
            Taken::Stale => {
                self.give_back(first.pfn(), nr_pages);
                Run::NONE
            }
            Taken::Refused => Run::NONE,
        }
    }
}
