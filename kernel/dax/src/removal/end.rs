//! That a removal ends: what is checked at the end of step 4, registrations, and the wait for pins in step 5.

use alloc::string::ToString;
use alloc::vec::Vec;

use mm::lock_check;
use mm::machine::{Machine, has_room};
use mm::meta::LiveFolio;
use mm::pagemap::MapState;
use mm::reach::find_leaf;
use mm::region::device::CutOff;
use mm::region::{RegionInfo, TakeBack};

use super::report::{PinFound, Waiting};
use super::{Cause, Facts, Removal, RemovalEnv, RemovalWatch};
use crate::device::State;
use crate::mutant::Mutant;

/// First notice of a wait for pins after this many nanoseconds; each further one after twice as long.
const FIRST_NOTICE_NS: u64 = 10_000_000;
/// Folios named in a notice.
const NAMED_FOLIOS: usize = 4;

impl<M: Machine, E: RemovalEnv<M>> Removal<'_, M, E> {
    /// What every later step relies on, and the end of the wait for pins: no page table leads to the device, and none can
    /// any more, whatever a holder has answered or failed to do. In debug builds, between the steps, so that no figure of
    /// the report has it in.
    ///
    /// # Panics
    /// Where it does not hold.
    pub(super) fn assert_unreachable(&self) {
        let device = &self.report.device;
        // A fault finds the one, or whoever serves it the other.
        assert_eq!(self.map.state(), MapState::Dying, "removal of {device}: its page map still makes folios");
        let alive = self.dead.as_ref().is_some_and(|dead| dead.device().state() != State::Dead);
        assert!(!alive, "removal of {device}: its DAX device is not dead");
        if self.report.idle {
            return;
        }
        if let Some(leaf) = find_leaf(self.mm, &self.map) {
            let answers = self.report.kill.iter().flat_map(|kill| &kill.answers).map(ToString::to_string);
            let answers = answers.collect::<Vec<_>>().join("; ");
            panic!("removal of {device}: after the shootdown {leaf}. Holders: {answers}");
        }
    }

    /// Waits until nobody holds a page of the device. Final, because its page map is dying.
    pub(super) fn wait_for_pins(&mut self) {
        lock_check::might_sleep("pins");
        if self.map.is_drained() || Mutant::DrainDoesNotWait.is_on() {
            return;
        }
        let began = self.mm.machine.now_ns();
        let found = self.waiting(0);
        // First, because who hears of the wait may give them back.
        self.name_pins(began);
        self.env.watch().waiting(&found);
        self.report.drained.found = found;
        let mut notice = FIRST_NOTICE_NS;
        while !self.map.is_drained() {
            self.report.drained.rounds += 1;
            self.mm.machine.relax();
            let ns = self.mm.machine.now_ns() - began;
            if ns >= notice {
                notice = notice.saturating_mul(2);
                let waiting = self.waiting(ns);
                self.env.watch().waiting(&waiting);
            }
        }
        self.report.drained.ns = self.mm.machine.now_ns() - began;
    }

    /// Puts those of the pins that the pin ledger knows into the report, as many as there is memory for.
    fn name_pins(&mut self, now_ns: u64) {
        let Self { mm, report, map, .. } = self;
        let pins = &mut report.drained.pins;
        mm.pins.for_each(&mut |record| {
            if map.ranges().iter().any(|range| record.holds_any(*range))
                && has_room(&mm.machine, pins)
                && let Some(pin) = PinFound::new(&mm.machine, record, now_ns)
            {
                pins.push(pin);
            }
        });
    }

    /// Who is waited for. Work is proportional to the live metadata of this device.
    fn waiting(&self, ns: u64) -> Waiting {
        let mut waiting = Waiting { ns, ..Waiting::default() };
        let mut add = |folio: LiveFolio| {
            waiting.folios += 1;
            waiting.refs += u64::from(folio.counts.refs);
            waiting.pins += u64::from(folio.counts.pins);
            if waiting.some.len() < NAMED_FOLIOS {
                waiting.some.push(folio);
            }
        };
        for &range in self.map.ranges() {
            self.mm.meta.for_each_live_in(range, &mut add);
        }
        waiting
    }

    /// Asks the owners of registrations for them, or calls them in; answers how many those were.
    pub(super) fn ask(&mut self, facts: &mut Facts) -> u64 {
        let Self { mm, env, report, map, .. } = self;
        let is_gone = report.cause == Cause::Gone && !Mutant::GraceForGone.is_on();
        let mut asked = |region: &RegionInfo<'_>| {
            report.note_registration(&mm.machine, region);
            env.watch().asked(region);
        };
        // Of memory that is not there nothing can be put in order: its owners have no time for that, and hear of it at
        // their next use.
        let found = match is_gone {
            true => mm.regions.call_in(map, map.ranges(), &mut asked),
            false => mm.regions.ask(map, map.ranges(), &mut asked),
        };
        facts.note("registrations_asked", found.asked);
        facts.note("registrations_looked_at", found.looked_at);
        self.has_registrations = found.looked_at > 0;
        found.asked
    }

    /// Revokes what has not been given back, once its owner has had its time.
    pub(super) fn take_back(&mut self, facts: &mut Facts) {
        let Self { mm, env, report, map, has_registrations, .. } = self;
        let (mut nr, mut uses, mut cut_off) = (0, 0, CutOff::default());
        let began = mm.machine.now_ns();
        // Only where there may be any: it is asked of the hardware. The report's list may lack some, for want of memory or
        // because somebody had asked for them before.
        let has_any = *has_registrations;
        let blocked = if has_any { env.watch().blocked_transfers() } else { 0 };
        if !Mutant::PinsNotTakenBack.is_on() {
            mm.regions.take_back(&mm.machine, map, map.ranges(), &mut |told| {
                if let TakeBack::Revoked(revoked) = told {
                    nr += 1;
                    uses += revoked.uses;
                    cut_off.add(revoked.cut_off.unwrap_or_default());
                    report.note_revoked(revoked);
                }
                env.watch().taking_back(told);
            });
        }
        facts.note("registrations_revoked", nr);
        facts.note("uses_waited_for", uses);
        facts.note("device_ranges_revoked", cut_off.ranges);
        facts.note("invalidation_commands", cut_off.commands);
        let now_blocked = if has_any { env.watch().blocked_transfers() } else { 0 };
        facts.note("blocked_transfers", now_blocked.saturating_sub(blocked));
        facts.note("grace_ns", mm.machine.now_ns() - began);
    }
}
