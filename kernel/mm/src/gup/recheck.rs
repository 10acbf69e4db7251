//! The rule of gup-fast (G1): a reference first, and then the entries again. It stands here alone, in
//! [`Walk::take_and_recheck`], for a single page, a huge leaf and a run; what counts as unchanged is
//! [`Seen::is_unchanged`]. Why: [`crate::gup`].

use super::Walk;
use crate::addr::{ENTRIES, Pfn};
use crate::entry::Entry;
use crate::machine::{GROUP, Machine, Point};
use crate::meta::Page;
use crate::mutant::Mutant;
use crate::sync::{AtomicU64, Ordering};
use crate::trace::{Kind, Mark, mark};

/// An entry as it was when the walk read it.
#[derive(Clone, Copy)]
pub(super) struct Seen<'m> {
    pub(super) slot: &'m AtomicU64,
    pub(super) entry: Entry,
}

impl<'m> Seen<'m> {
    /// Acquire; pairs with the Release half of the install.
    #[inline(always)]
    pub(super) fn read(slot: &'m AtomicU64) -> Self {
        Self { slot, entry: Entry::from_bits(slot.load(Ordering::Acquire)) }
    }

    /// Is the entry what it was? Accessed and dirty bits do not count; where `AT_ONCE`, they do: see
    /// [`Walk::take_and_recheck`].
    ///
    /// SeqCst, as the taking of the reference before it: neither may pass the other, or a zap in between would go
    /// unnoticed.
    #[inline(always)]
    pub(super) fn is_unchanged<const AT_ONCE: bool>(self) -> bool {
        let now = Entry::from_bits(self.slot.load(Ordering::SeqCst));
        // The first question answers nearly all.
        now == self.entry || (!AT_ONCE && now.same_translation(self.entry))
    }

    /// [`is_unchanged`](Self::is_unchanged), of the entry that leads to the leaf's table.
    #[inline(always)]
    pub(super) fn still_leads_there<const AT_ONCE: bool>(self) -> bool {
        self.is_unchanged::<AT_ONCE>() || Mutant::NoUpperRecheck.is_on()
    }
}

/// Entries in a row, the first of which is `first`, and each of which maps the next page in the same way.
pub(super) struct Row<'m, M> {
    pub(super) machine: &'m M,
    pub(super) table: Pfn,
    pub(super) index: usize,
    pub(super) first: Entry,
    pub(super) nr_pages: u64,
}

impl<M: Machine> Row<'_, M> {
    /// How many of them, from the first on, are still so.
    pub(super) fn follow(&self, order: Ordering) -> u64 {
        let expected = core::iter::successors(Some(self.first), |entry| Some(entry.next_page()));
        let follows = |&(index, expected): &(usize, Entry)| {
            Entry::from_bits(self.machine.entry(self.table, index).load(order)).same_translation(expected)
        };
        (self.index..ENTRIES).zip(expected).take(self.nr_pages as usize).take_while(follows).count() as u64
    }
}

/// What a walk has read and looks at again. A trait and not a closure, which would not become a part of the loop that
/// calls it as early: 1.2 instructions of each page of a run.
pub(super) trait Recheck {
    /// Are the entries what they were? `AT_ONCE`: see [`Walk::take_and_recheck`].
    fn are_unchanged<const AT_ONCE: bool>(&self) -> bool;
    /// The first of them, for a trace.
    #[allow(dead_code, reason = "what a student writes in the part of lab 5 need not trace")]
    fn first(&self) -> Entry;
}

impl Recheck for Seen<'_> {
    #[inline(always)]
    fn are_unchanged<const AT_ONCE: bool>(&self) -> bool {
        self.is_unchanged::<AT_ONCE>()
    }
    #[inline(always)]
    fn first(&self) -> Entry {
        self.entry
    }
}

impl<M: Machine> Recheck for Row<'_, M> {
    #[inline(always)]
    fn are_unchanged<const AT_ONCE: bool>(&self) -> bool {
        self.follow(Ordering::SeqCst) == self.nr_pages
    }
    #[inline(always)]
    fn first(&self) -> Entry {
        self.first
    }
}

/// What became of references that were asked for.
pub(super) enum Taken {
    /// They are had, and the entries are what they were.
    Kept,
    /// They are had, and are to be given back: an entry has changed.
    Stale,
    /// There are none.
    Refused,
}

impl<M: Machine, const PIN: bool> Walk<'_, M, PIN> {
    // lab 5 begin: look again
    /// **The rule** (G1; steps 3 to 5): takes `nr` references on `page`, and then looks whether the entries are still what
    /// they were when it was found. Each pin of the fast path is taken here. Who takes several, one after the other,
    /// under one table may look at the entry above once, after the last.
    ///
    /// `AT_ONCE`: at the first attempt or not at all; an accessed or dirty bit that the CPU sets at this very
    /// moment is a change, too. So there is no loop and no call, and nothing is kept in registers for them: whoever fails so
    /// comes again, and looks closer.
    #[inline(always)]
    pub(super) fn take_and_recheck<const AT_ONCE: bool>(
        &self,
        page: &Page,
        nr: u32,
        entries: impl Recheck,
        above: Option<Seen<'_>>,
    ) -> Taken {
        let machine = &self.mm().machine;
        let first = entries.first();
        let mark = |kind| mark!(machine, Mark::pages(kind, first.pfn(), nr.into()));
        mark!(machine, Mark::new(Kind::EntryRead, first.bits(), nr.into()));
        machine.reached(Point::GupLeafRead);
        let taken = if AT_ONCE { page.try_take_at_once::<PIN>(nr) } else { self.take(page, nr).is_ok() };
        if !taken {
            mark(Kind::RefRefused);
            return Taken::Refused;
        }
        mark(Kind::RefTaken);
        machine.reached(Point::GupPinned);
        if !entries.are_unchanged::<AT_ONCE>() && !Mutant::NoEntryRecheck.is_on() {
            mark(Kind::Stale);
            return Taken::Stale;
        }
        match above {
            Some(above) if !above.still_leads_there::<AT_ONCE>() => {
                mark(Kind::Stale);
                Taken::Stale
            }
            _ => {
                mark(Kind::Kept);
                Taken::Kept
            }
        }
    }
    // lab 5 end

    /// The same for groups of pages whose entries follow each other from `first` on, that at the start of `group`, and which
    /// are all held as the first one is: in each group a reference on every page, and then every entry again. Ends at the
    /// first group in which something is otherwise; answers how many there are before it, and on how many pages of that one
    /// there are references, whose entries are still to be read again ([`keep_unchanged`](Self::keep_unchanged)).
    ///
    /// The references of a group first, and then its entries: for each page that is later than the rule asks for, so it sees
    /// no less. A function of its own that calls nobody, so that its loop has all registers.
    #[inline(never)]
    pub(super) fn take_alike(
        &self,
        machine: &M,
        (table, group): (Pfn, usize),
        first: Entry,
        groups: &[[Page; GROUP]],
    ) -> (usize, usize) {
        let Some(([page, ..], _)) = groups.split_first() else { return (0, 0) };
        let (mut like, mut expected) = (page.like::<PIN>(), first);
        let mut done = 0;
        // By index: in a build with checks an iterator asks for each step whether its pointer wraps.
        while done < groups.len() {
            let (pages, slots) = (&groups[done], machine.entries(table, group.wrapping_add(done)));
            if !(0..GROUP).all(|nth| Seen::read(slots[nth]).entry == expected.nth_page(nth)) {
                return (done, 0);
            }
            let refused = |nth: &usize| {
                machine.reached(Point::GupLeafRead);
                !pages[*nth].try_take_like(&mut like)
            };
            if let Some(nth) = (0..GROUP).find(refused) {
                return (done, nth);
            }
            let changed = |nth: usize| {
                machine.reached(Point::GupPinned);
                let this = Seen { slot: slots[nth], entry: expected.nth_page(nth) };
                // Also at an accessed or dirty bit, which `keep_unchanged` then sees to be no change.
                !this.is_unchanged::<true>() && !Mutant::NoEntryRecheck.is_on()
            };
            let mark = |kind| mark!(machine, Mark::pages(kind, expected.pfn(), GROUP as u64));
            mark(Kind::RefTaken);
            if (0..GROUP).any(changed) {
                return (done, GROUP);
            }
            mark(Kind::Kept);
            expected = expected.nth_page(GROUP);
            done = done.wrapping_add(1);
        }
        (groups.len(), 0)
    }

    /// There are references on `nr` pages whose entries follow each other from `first` on, that at `index`: keeps those up to
    /// the first whose entry has changed, and answers how many.
    pub(super) fn keep_unchanged(&self, (table, index): (Pfn, usize), first: Entry, nr: usize) -> usize {
        let unchanged = |&nth: &usize| {
            let slot = self.mm().machine.entry(table, index + nth);
            Seen { slot, entry: first.nth_page(nth) }.is_unchanged::<false>() || Mutant::NoEntryRecheck.is_on()
        };
        let kept = (0..nr).take_while(unchanged).count();
        if kept < nr {
            self.give_back(first.nth_page(kept).pfn(), (nr - kept) as u64);
        }
        kept
    }
}
