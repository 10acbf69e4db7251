//! The lockless walk: steps 1 to 5 of the left column of [`crate::gup`].
//!
//! One page is the common case and has a way of its own: a walk, a look-up, one compare-and-swap and two loads.
//!
//! Many pages under one page table go in runs: as long as entries follow each other (the next frame, the same rights)
//! and their pages lie side by side in one block of metadata, neither rights nor metadata are looked up anew. A run
//! takes each page's reference and reads its entry again, and reads the entry above once, after the last reference:
//! that is later than the protocol asks for, so it sees no less.

use super::{GupFlags, PinSink, Request};
use crate::addr::{ENTRIES, PAGE_SHIFT, PageSize, Pfn, VirtAddr};
use crate::entry::Entry;
use crate::machine::{IrqOff, Machine, Point};
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

impl Above<'_> {
    #[inline(always)]
    fn is_unchanged(self) -> bool {
        is_unchanged(self.slot, self.entry) || Mutant::NoUpperRecheck.is_on()
    }
}

impl<M: Machine, const PIN: bool> Request<'_, M, PIN> {
    /// Pins the one page at `at`, if that can be had without a lock and is no part of a huge leaf.
    #[inline(always)]
    pub(super) fn fast_page<S: PinSink>(&self, at: u64, sink: &mut S) -> bool {
        let irq = self.enter();
        if !self.is_loaded(&irq) {
            return false;
        }
        let Some(leaf) = self.walk(&irq, at) else { return false };
        let pfn = leaf.entry.pfn();
        let pinned = leaf.level == 1 && self.allows(leaf.entry) && self.take_checked(pfn, 1, &leaf);
        if pinned {
            sink.push_one(pfn);
        }
        pinned
    }

    /// Pins what can be had without a lock, from `start` on; answers how far that is.
    #[inline(always)]
    pub(super) fn fast<S: PinSink>(&self, start: u64, sink: &mut S) -> u64 {
        let irq = self.enter();
        if !self.is_loaded(&irq) {
            return start;
        }
        let mut at = start;
        loop {
            let Some(leaf) = self.walk(&irq, at) else { return at };
            let Step { next, go_on } = if leaf.level > 1 {
                self.fast_huge(&irq, &leaf, at, sink)
            } else {
                self.fast_table(&irq, leaf.above, at, sink)
            };
            // The end first: it is the common case.
            if next == self.end || !go_on || sink.room() == 0 {
                return next;
            }
            at = next;
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

    /// Is the space loaded here, so that its shootdowns wait for us?
    #[inline(always)]
    fn is_loaded(&self, irq: &IrqOff<'_, M>) -> bool {
        self.mm().shootdown.is_loaded(irq, self.space.id())
    }

    /// The entry that says what `at` is mapped to, whether it is present or not. `None` where a table above is missing.
    #[inline(always)]
    fn walk<'m>(&self, irq: &IrqOff<'m, M>, at: u64) -> Option<Leaf<'m>> {
        let (machine, va) = (irq.machine(), VirtAddr::new(at));
        let mut level = machine.levels();
        let slot = machine.entry(self.space.tlb().root(), va.index(level));
        let mut above = Above { slot, entry: Entry::from_bits(slot.load(Ordering::Acquire)) };
        // The root has no leaves.
        if !above.entry.is_present() {
            return None;
        }
        loop {
            level -= 1;
            let slot = machine.entry(above.entry.pfn(), va.index(level));
            // Acquire; pairs with the Release half of the install.
            let entry = Entry::from_bits(slot.load(Ordering::Acquire));
            // One test a level: what is no table is a leaf or empty, which the question for rights tells apart.
            if !entry.is_table(level) {
                return Some(Leaf { slot, entry, level, above });
            }
            above = Above { slot, entry };
        }
    }

    /// Does the entry allow what is wanted? Not so an empty one.
    #[inline(always)]
    fn allows(&self, entry: Entry) -> bool {
        let write = self.flags.contains(GupFlags::WRITE) && !Mutant::WriteThroughReadOnly.is_on();
        entry.allows_user(write)
    }

    /// May the page be pinned for as long as is asked for?
    #[inline(always)]
    fn tolerates(&self, page: &Page) -> bool {
        !self.flags.contains(GupFlags::LONGTERM)
            || (page.long_term() == LongTermPin::Revocable && self.flags.contains(GupFlags::REVOCABLE))
    }

    /// The pages of one huge leaf, from `at` on, as one run.
    #[inline(always)]
    fn fast_huge<S: PinSink>(&self, _irq: &IrqOff<'_, M>, leaf: &Leaf<'_>, at: u64, sink: &mut S) -> Step {
        let Some(size) = PageSize::from_level(leaf.level) else { return Step { next: at, go_on: false } };
        let inside = at & (size.bytes() - 1);
        let nr_pages = ((size.bytes() - inside).min(self.end - at) >> PAGE_SHIFT).min(sink.room());
        let pfn = Pfn::new(leaf.entry.pfn().as_u64() + (inside >> PAGE_SHIFT));
        if self.allows(leaf.entry) && self.take_checked(pfn, nr_pages as u32, leaf) {
            sink.push(pfn, nr_pages);
            return Step { next: at + (nr_pages << PAGE_SHIFT), go_on: true };
        }
        Step { next: at, go_on: false }
    }

    /// Takes references on the folio of `pfn`, which the leaf maps, and looks again at both entries (G1).
    #[inline(always)]
    fn take_checked(&self, pfn: Pfn, nr_pages: u32, leaf: &Leaf<'_>) -> bool {
        let mm = self.mm();
        // SAFETY: interrupts are off, and the frame was read from a present entry in this walk.
        let Some(page) = (unsafe { mm.meta.lookup_page(pfn) }) else { return false };
        if !self.tolerates(page) {
            return false;
        }
        mm.machine.reached(Point::GupLeafRead);
        if !self.take(page, nr_pages) {
            return false;
        }
        mm.machine.reached(Point::GupPinned);
        let leaf_is = is_unchanged(leaf.slot, leaf.entry) || Mutant::NoEntryRecheck.is_on();
        if leaf_is && leaf.above.is_unchanged() {
            return true;
        }
        self.give_back(pfn, u64::from(nr_pages));
        false
    }

    /// The leaves of the page table that `above` leads to, from `at` on, run by run.
    #[inline(always)]
    fn fast_table<S: PinSink>(&self, irq: &IrqOff<'_, M>, above: Above<'_>, at: u64, sink: &mut S) -> Step {
        let mut at = at;
        let mut index = VirtAddr::new(at).index(1);
        loop {
            let most = ((self.end - at) >> PAGE_SHIFT).min(sink.room()).min((ENTRIES - index) as u64);
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
        if run.nr_pages > 0 && !above.is_unchanged() {
            self.give_back(pfn, run.nr_pages);
            return Run::NONE;
        }
        run
    }

    /// Small pages: a reference on each. A function of its own, so that its loop has all registers.
    #[inline(never)]
    fn run_of_pages(&self, irq: &IrqOff<'_, M>, (table, index): (Pfn, usize), first: Entry, pages: &[Page]) -> Run {
        let machine = irq.machine();
        let pfn = first.pfn();
        let (mut nr_pages, mut go_on, mut expected) = (0_u64, true, first);
        for page in pages {
            // No more than the table has: `pages` was cut to that.
            let slot = machine.entry(table, index.wrapping_add(nr_pages as usize));
            let entry = Entry::from_bits(slot.load(Ordering::Acquire));
            if entry != expected && !entry.same_translation(expected) {
                // Another run, unless this is the first entry, which has changed since it was read.
                go_on = nr_pages > 0;
                break;
            }
            machine.reached(Point::GupLeafRead);
            if !self.take(page, 1) {
                go_on = false;
                break;
            }
            machine.reached(Point::GupPinned);
            if !is_unchanged(slot, entry) && !Mutant::NoEntryRecheck.is_on() {
                self.give_back(entry.pfn(), 1);
                go_on = false;
                break;
            }
            nr_pages = nr_pages.wrapping_add(1);
            expected = expected.next_page();
        }
        // After the references, so that the answers are those of the pages that are pinned.
        let long_term = self.flags.contains(GupFlags::LONGTERM);
        if long_term && !pages[..nr_pages as usize].iter().all(|page| self.tolerates(page)) {
            self.give_back(pfn, nr_pages);
            return Run::NONE;
        }
        Run { first: pfn, nr_pages, go_on }
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
        if !self.take(folio.page, nr_pages as u32) {
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
