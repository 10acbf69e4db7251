//! The rule of gup-fast (G1): a reference first, and then the entries again. It stands here alone, in
//! [`Walk::take_and_recheck`], for a single page, a huge leaf and a run; what counts as unchanged is
//! [`Seen::is_unchanged`]. Why: [`crate::gup`].

use super::Walk;
use crate::addr::{ENTRIES, Pfn};
use crate::entry::Entry;
use crate::machine::{Machine, Point};
use crate::meta::Page;
use crate::mutant::Mutant;
use crate::sync::{AtomicU64, Ordering};

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

    /// Is the entry what it was? Accessed and dirty bits do not count.
    ///
    /// SeqCst, as the taking of the reference before it: neither may pass the other, or a zap in between would go
    /// unnoticed.
    #[inline(always)]
    pub(super) fn is_unchanged<const ONE: bool>(self) -> bool {
        let now = Entry::from_bits(self.slot.load(Ordering::SeqCst));
        // The first question answers nearly all.
        now == self.entry || if ONE { self.is_unchanged_but_for_use() } else { now.same_translation(self.entry) }
    }

    /// The second question, for one page. It looks again, which sees no less. A function of its own and marked as rare, so
    /// that the common way keeps nothing in registers for it: it costs a pin 12 instructions otherwise. (Where pages are
    /// many it is the call that costs.)
    #[cold]
    #[inline(never)]
    fn is_unchanged_but_for_use(self) -> bool {
        self.is_unchanged::<false>()
    }

    /// [`is_unchanged`](Self::is_unchanged), of the entry that leads to the leaf's table.
    #[inline(always)]
    pub(super) fn still_leads_there<const ONE: bool>(self) -> bool {
        self.is_unchanged::<ONE>() || Mutant::NoUpperRecheck.is_on()
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
    /// Are the entries what they were? `ONE`: see [`Walk::take_and_recheck`].
    fn are_unchanged<const ONE: bool>(&self) -> bool;
}

impl Recheck for Seen<'_> {
    #[inline(always)]
    fn are_unchanged<const ONE: bool>(&self) -> bool {
        self.is_unchanged::<ONE>()
    }
}

impl<M: Machine> Recheck for Row<'_, M> {
    #[inline(always)]
    fn are_unchanged<const ONE: bool>(&self) -> bool {
        self.follow(Ordering::SeqCst) == self.nr_pages
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
    /// **The rule** (G1; steps 3 to 5): takes `nr` references on `page`, and then looks whether the entries are still what
    /// they were when it was found. Each pin of the fast path is taken here. Who takes several, one after the other,
    /// under one table may look at the entry above once, after the last.
    ///
    /// `ONE`: one reference, and at the first attempt or not at all.
    #[inline(always)]
    pub(super) fn take_and_recheck<const ONE: bool>(
        &self,
        page: &Page,
        nr: u32,
        entries: impl Recheck,
        above: Option<Seen<'_>>,
    ) -> Taken {
        let machine = &self.mm().machine;
        machine.reached(Point::GupLeafRead);
        let taken = if ONE { page.try_take_one::<PIN>() } else { self.take(page, nr).is_ok() };
        if !taken {
            return Taken::Refused;
        }
        machine.reached(Point::GupPinned);
        if !entries.are_unchanged::<ONE>() && !Mutant::NoEntryRecheck.is_on() {
            return Taken::Stale;
        }
        match above {
            Some(above) if !above.still_leads_there::<ONE>() => Taken::Stale,
            _ => Taken::Kept,
        }
    }
}
