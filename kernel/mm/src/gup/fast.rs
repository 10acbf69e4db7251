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
use crate::meta::{Covering, Folio, Looked, Page};
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

/// Entries of a root table that are of the user half.
const USER_TOPS: u64 = 1 << 8;

/// As many steps as there can be: the deliberate fault.
const WITHOUT_BOUND: u64 = u64::MAX >> PAGE_SHIFT;

impl Run {
    /// Nothing is pinned: go slow.
    const NONE: Self = Self { first: Pfn::new(0), nr_pages: 0, go_on: false };
}

impl<M: Machine, const PIN: bool> Walk<'_, M, PIN> {
    /// Pins the page at `at`, whatever the size of the leaf that maps it, if it can be had without a lock. It gives up where
    /// a closer look would be needed: at a count that another CPU changes meanwhile, or that refuses. The walk for many
    /// pages comes next, without a lock too, and looks closer.
    #[inline(always)]
    pub(super) fn page(&self, irq: &IrqOff<'_, M>, at: u64) -> FastResult {
        // By size, so that each way has its own constants.
        match self.walk(irq, at) {
            Some(leaf) if leaf.level == 1 => self.pin_small(irq, &leaf),
            Some(leaf) if leaf.level == 2 => self.part_of(irq, &leaf, PageSize::Size2M, at, 1),
            Some(leaf) if leaf.level == 3 => self.part_of(irq, &leaf, PageSize::Size1G, at, 1),
            _ => FastResult::Miss,
        }
    }

    /// Pins `nr_pages` pages from `at` on, if one huge leaf maps them all and they can be had without a lock.
    #[inline(always)]
    pub(super) fn huge_leaf(&self, at: u64, nr_pages: u64) -> FastResult {
        let irq = self.enter();
        // By size, so that each way has its own constants.
        match self.walk(&irq, at) {
            Some(leaf) if leaf.level == 2 => self.part_of(&irq, &leaf, PageSize::Size2M, at, nr_pages),
            Some(leaf) if leaf.level == 3 => self.part_of(&irq, &leaf, PageSize::Size1G, at, nr_pages),
            _ => FastResult::Miss,
        }
    }

    #[inline(always)]
    fn part_of(&self, irq: &IrqOff<'_, M>, leaf: &Leaf<'_>, size: PageSize, at: u64, nr_pages: u64) -> FastResult {
        let (inside, most) = Leaf::at(size, at);
        // One comparison for both: no pages are none of a leaf's.
        if nr_pages.wrapping_sub(1) < most {
            self.pin_huge::<true>(irq, leaf, inside, nr_pages)
        } else {
            FastResult::Miss
        }
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
                self.leaf(&irq, &leaf, (at, if S::BY_PAGE { most } else { end }), sink)
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
    pub(super) fn enter(&self) -> IrqOff<'_, M> {
        let machine = &self.mm().machine;
        let irq = IrqOff::new(machine);
        if Mutant::GupIrqsOn.is_on() {
            machine.irq_enable();
        }
        irq
    }

    /// The entry that says what `at` is mapped to, whether it is present or not. `None` where `at` is not in the user half,
    /// where a table above is missing, or where the space is not loaded on this CPU, so that its shootdowns would not wait for us.
    ///
    /// Each level has its own way out, so who asks for the level next has it for nothing.
    #[inline(always)]
    fn walk<'m>(&self, irq: &IrqOff<'m, M>, at: u64) -> Option<Leaf<'m>> {
        let (machine, va) = (irq.machine(), VirtAddr::new(at));
        let root = machine.loaded();
        if root != self.space.root() {
            return None;
        }
        let mut level = machine.levels();
        // The index into the root says whether the address is in the user half at all, and wraps in none of it.
        let top = at >> (PAGE_SHIFT + 9 * (u32::from(level) - 1));
        if top >= USER_TOPS {
            return None;
        }
        let mut this = Seen::read(machine.entry_at(root, top as usize));
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
                None => return Some(Leaf { this, level, above }),
            }
        }
    }

    /// May the page be pinned for as long as is asked for?
    #[inline(always)]
    pub(super) fn tolerates(&self, page: &Page) -> bool {
        !self.request.long_term() || (self.request.revocable() && page.long_term() == LongTermPin::Revocable)
    }

    /// The pages of one huge leaf, from `at` on, as one run.
    #[inline(always)]
    fn leaf<S: PinSink>(&self, irq: &IrqOff<'_, M>, leaf: &Leaf<'_>, (at, end): (u64, u64), sink: &mut S) -> Step {
        let Some(size) = PageSize::from_level(leaf.level) else { return Step { next: at, go_on: false } };
        let (inside, most) = Leaf::at(size, at);
        let nr_pages = most.min((end - at) >> PAGE_SHIFT).min(sink.room());
        let result = self.pin_huge::<false>(irq, leaf, inside, nr_pages);
        let Some(pfn) = result.pinned_or_give_back(self.space, PIN, nr_pages) else {
            return Step { next: at, go_on: false };
        };
        sink.push(pfn, nr_pages);
        Step { next: at + (nr_pages << PAGE_SHIFT), go_on: true }
    }

    /// Pins the page of a small leaf.
    #[inline(always)]
    fn pin_small(&self, irq: &IrqOff<'_, M>, leaf: &Leaf<'_>) -> FastResult {
        // An empty entry has none.
        if !leaf.this.entry.has(self.request.rights()) {
            return FastResult::Miss;
        }
        let pfn = leaf.pfn(0);
        let recent = irq.machine().recent(|| self.mm().meta.recents());
        // SAFETY: interrupts are off, the frame was read from a present entry in this walk, and the cell is this CPU's.
        let page = match unsafe { recent.small(pfn) } {
            Looked::Page(page) => page,
            // SAFETY: as above.
            Looked::Nothing => match unsafe { self.mm().meta.lookup_anew::<false>(pfn, recent) } {
                Some(page) => page,
                None => return FastResult::Miss,
            },
        };
        self.pin_leaf::<true>(leaf, page, pfn, 1)
    }

    /// Pins `nr_pages` pages of a huge leaf, from that on which is so far inside. `AT_ONCE`: see
    /// [`take_and_recheck`](Self::take_and_recheck).
    #[inline(always)]
    fn pin_huge<const AT_ONCE: bool>(
        &self,
        irq: &IrqOff<'_, M>,
        leaf: &Leaf<'_>,
        inside: u64,
        nr_pages: u64,
    ) -> FastResult {
        // Above the last level an entry is a leaf only if it says so.
        if !leaf.this.entry.has(self.request.rights() | Entry::HUGE) {
            return FastResult::Miss;
        }
        let recent = irq.machine().recent(|| self.mm().meta.recents());
        let first = leaf.pfn(0);
        // SAFETY: as in `pin_small`.
        let page = match unsafe { recent.huge(first) } {
            Looked::Page(page) => page,
            // SAFETY: as in `pin_small`.
            Looked::Nothing => match unsafe { self.mm().meta.lookup_anew::<true>(first, recent) } {
                Some(page) => page,
                None => return FastResult::Miss,
            },
        };
        self.pin_leaf::<AT_ONCE>(leaf, page, leaf.pfn(inside), nr_pages as u32)
    }

    /// Pins `nr` pages of a leaf, from `pfn` on, with the metadata that was found for them.
    #[inline(always)]
    fn pin_leaf<const AT_ONCE: bool>(&self, leaf: &Leaf<'_>, page: &Page, pfn: Pfn, nr: u32) -> FastResult {
        if !self.tolerates(page) {
            return FastResult::Miss;
        }
        match self.take_and_recheck::<AT_ONCE>(page, nr, leaf.this, Some(leaf.above)) {
            Taken::Kept => FastResult::Pinned(pfn),
            Taken::Stale => FastResult::Changed(pfn),
            Taken::Refused => FastResult::Miss,
        }
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
            // The next frame is elsewhere, and so may be those behind it.
            if run.nr_pages == 1 && most > 1 {
                let (done, go_on) = self.scattered(irq, above, (index, most as usize - 1), sink);
                at += (done as u64) << PAGE_SHIFT;
                index += done;
                if !go_on {
                    return Step { next: at, go_on };
                }
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

    /// The same for whole groups: those that are as expected in all ways at once, and any other page by page.
    fn take_groups(
        &self,
        machine: &M,
        (table, index): (Pfn, usize),
        first: Entry,
        groups: &[[Page; GROUP]],
    ) -> (usize, Result<(), End>) {
        let mut done = 0;
        loop {
            let at = done * GROUP;
            let (more, part) =
                self.take_alike(machine, (table, index / GROUP + done), first.nth_page(at), &groups[done..]);
            done += more;
            let (at, Some(pages)) = (done * GROUP, groups.get(done)) else { return (done * GROUP, Ok(())) };
            let kept = self.keep_unchanged((table, index + at), first.nth_page(at), part);
            if kept < part {
                return (at + kept, Err(End::Refused));
            }
            let (rest, end) =
                self.take_few(machine, (table, index + at + part), first.nth_page(at + part), &pages[part..]);
            if end.is_err() {
                return (at + part + rest, end);
            }
            done += 1;
        }
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
