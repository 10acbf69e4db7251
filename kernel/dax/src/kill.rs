//! Killing a DAX device, in the one order in which nobody is left out.
//!
//! | step | why here |
//! |---|---|
//! | nobody new: dying | a holder that came later would not be told; a file opened later could not be used |
//! | tell the holders, with `PRE_REMOVE` | while the device is alive: they have to read and write it to put their house in order. With `GONE` where it has left already: there is nothing to read or write, and they end at once |
//! | dead | no new access begins; a fault is answered by SIGBUS |
//! | wait for the readers | an access that began before may still install a mapping; afterwards none can |
//! | forget the holders | a holder that was being told must not vanish under the teller, which is a reader |
//!
//! Linux: `kill_dax()` in `drivers/dax/super.c`.

use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::device::{DaxDevice, Dead, Live};
use crate::holder::{Answer, NotifyFlags};
use crate::mutant::Mutant;
use crate::range::WHOLE;
use crate::srcu::GracePeriod;

/// What [`kill_dax`] has just done. Given to its observer in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nobody new.
    Dying,
    /// The holders have been told.
    Told,
    /// The device is dead.
    Dead,
    /// The readers from before have gone.
    ReadersGone,
    /// The holders are forgotten.
    HoldersCleared,
}

impl Phase {
    /// All of them, in order.
    pub const ALL: [Self; 5] = [Self::Dying, Self::Told, Self::Dead, Self::ReadersGone, Self::HoldersCleared];

    /// The word for machine-readable lines.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dying => "dying",
            Self::Told => "holders_told",
            Self::Dead => "dead",
            Self::ReadersGone => "readers_gone",
            Self::HoldersCleared => "holders_cleared",
        }
    }
    /// What has been done, in plain words.
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Dying => "nobody new is let in",
            Self::Told => "the holders were told, the device is alive",
            Self::Dead => "the device is dead: no new access begins",
            Self::ReadersGone => "no access from before is under way",
            Self::HoldersCleared => "the holders are forgotten",
        }
    }
}

impl core::fmt::Display for Phase {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.name())
    }
}

/// What killing a device met.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KillReport {
    /// The holders, oldest first, and what they answered.
    pub answers: Vec<Answer>,
    /// The wait for readers.
    pub readers: GracePeriod,
    /// Holders that were still registered when they were forgotten.
    pub holders_cleared: usize,
}

/// Kills the device. `relax` is called in every round of waiting for readers; `observe` after each phase,
/// with what has been met so far.
///
/// The holders are told that it is about to leave: see [`kill_dax_as`].
///
/// It cannot fail: what the holders answer is recorded and changes nothing. Must not be called with interrupts off
/// or with a [`LiveGuard`](crate::device::LiveGuard) of the same device in hand.
pub fn kill_dax(
    live: Live,
    relax: &mut dyn FnMut(),
    observe: &mut dyn FnMut(Phase, &KillReport),
) -> (Dead, KillReport) {
    kill_dax_as(live, NotifyFlags::PRE_REMOVE, relax, observe)
}

/// As [`kill_dax`], with `flags` for the holders: [`NotifyFlags::GONE`] of a device that has left already.
pub fn kill_dax_as(
    live: Live,
    flags: NotifyFlags,
    relax: &mut dyn FnMut(),
    observe: &mut dyn FnMut(Phase, &KillReport),
) -> (Dead, KillReport) {
    match live.take() {
        Some(device) => kill(device, flags, relax, observe),
        None => unreachable!("a live handle has its device"),
    }
}

pub(crate) fn kill(
    device: Arc<DaxDevice>,
    flags: NotifyFlags,
    relax: &mut dyn FnMut(),
    observe: &mut dyn FnMut(Phase, &KillReport),
) -> (Dead, KillReport) {
    let mut report = KillReport::default();
    if Mutant::KillClearsFirst.is_on() {
        device.set_dead();
    } else {
        device.set_dying();
    }
    observe(Phase::Dying, &report);
    // The device is alive, so the only error there is cannot come.
    report.answers = device.notify_failure(0, WHOLE, flags).unwrap_or_default();
    observe(Phase::Told, &report);
    device.set_dead();
    observe(Phase::Dead, &report);
    if !Mutant::KillDoesNotWait.is_on() {
        report.readers = device.srcu().synchronize(relax);
    }
    observe(Phase::ReadersGone, &report);
    report.holders_cleared = device.clear_holders();
    observe(Phase::HoldersCleared, &report);
    (Dead::new(device), report)
}
