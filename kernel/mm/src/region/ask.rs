//! Asking for registrations: the first step of taking them back.

use super::{Asked, NOT_ASKED, Notice, Region, RegionInfo, Regions};
use crate::addr::PfnRange;
use crate::machine::Machine;
use crate::mutant::Mutant;
use crate::pagemap::DevPagemap;
use crate::sync::Ordering;

impl<M: Machine> Region<M> {
    /// Begins the owner's grace period, unless it has begun; without one, its end is now, whether it has begun or not. Says
    /// whether this was the first to ask.
    fn ask(&self, has_grace: bool, asked: &mut dyn FnMut(&RegionInfo<'_>)) -> bool {
        let (owner, now_ns) = (self.owner.upgrade().filter(|_| has_grace), self.mm.machine.now_ns());
        // An owner that has ended and left its registration behind has nothing to do with a grace period.
        let grace_ns = if owner.is_some() && !Mutant::NoGrace.is_on() { self.grace_ns } else { 0 };
        let deadline_ns = now_ns.saturating_add(grace_ns).min(NOT_ASKED - 1);
        // Relaxed: times. What orders anything is the list's lock and the gate. Of several that ask at once the first says when,
        // and before the deadline: who finds that passed may revoke at once.
        let _ = self.asked_ns.compare_exchange(NOT_ASKED, now_ns, Ordering::Relaxed, Ordering::Relaxed);
        // Release; pairs with the Acquire in `next_of`.
        if self.deadline_ns.compare_exchange(NOT_ASKED, deadline_ns, Ordering::Release, Ordering::Relaxed).is_err() {
            if !has_grace {
                self.deadline_ns.fetch_min(deadline_ns, Ordering::Relaxed);
            }
            return false;
        }
        asked(&self.info());
        if let Some(owner) = owner {
            owner.asked(&Notice { key: self.key, deadline_ns });
        }
        true
    }

    /// How long its owner has had by now, where the deadline was found passed. What uses in flight and the device take from
    /// here on is not its owner's time.
    pub(super) fn had_ns(&self) -> u64 {
        let asked_ns = self.asked_ns.load(Ordering::Relaxed);
        assert_ne!(asked_ns, NOT_ASKED, "registrations: {} is revoked, and was not asked for", self.key);
        self.mm.machine.now_ns().saturating_sub(asked_ns)
    }
}

impl<M: Machine> Regions<M> {
    /// Asks the owner of each registration that holds a frame of `ranges`, which are `map`'s, to give it back, unless
    /// somebody has; `asked` hears of each before its owner does. Work is proportional to the registrations of `map`,
    /// and their runs. Called with no lock held.
    pub fn ask(&self, map: &DevPagemap, ranges: &[PfnRange], asked: &mut dyn FnMut(&RegionInfo<'_>)) -> Asked {
        self.ask_each(map, ranges, true, asked)
    }

    /// As [`ask`](Self::ask), of memory that is not there any more: no owner is told or has time, and one that was asked has
    /// none left. [`take_back`](Self::take_back) then waits for uses in flight alone.
    pub fn call_in(&self, map: &DevPagemap, ranges: &[PfnRange], asked: &mut dyn FnMut(&RegionInfo<'_>)) -> Asked {
        self.ask_each(map, ranges, false, asked)
    }

    fn ask_each(
        &self,
        map: &DevPagemap,
        ranges: &[PfnRange],
        has_grace: bool,
        asked: &mut dyn FnMut(&RegionInfo<'_>),
    ) -> Asked {
        let (mut after, mut found) = (0, Asked::default());
        while let Some(region) = self.first_after(after, map, ranges, &mut found.looked_at) {
            after = region.key;
            found.asked += u64::from(region.ask(has_grace, asked));
        }
        found
    }
}
