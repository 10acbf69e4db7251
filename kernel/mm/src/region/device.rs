//! Devices that reach the pages of a registration by themselves, through translations of their own.
//!
//! # Protocol
//! A use ([`gate`](super::gate)) ends by itself and is waited for. What a device does with an address that it was given
//! does not: so it is cut off. The driver of the IOMMU maps the pages for one device, and hands the registration what can
//! take that back, a [`DeviceAccess`]. Whoever ends the registration, owner or kernel, does this (D2):
//!
//! | step | before the next, because |
//! |---|---|
//! | 1 close the gate, wait for uses | a use could just be letting a device in |
//! | 2 [`DeviceAccess::revoke`]: clear, invalidate, wait | a translation that the device still has reaches the page |
//! | 3 give the pins back | |
//!
//! ```text
//!  admit                                      close
//!  1 enter the gate: closed? refused          a close the gate
//!  2 map the pages for the device             b wait until no use is in flight
//!  3 put the access in its place              c take the access out of its place, and revoke it
//!  4 leave                                    d give the pages back
//! ```
//! Either 1 comes before a, and b waits for 4, so that c finds the access; or 1 is refused, and nothing was mapped. To leave
//! between 2 and 3 would be wrong: c could come then, and find nothing. Model: `tests/loom_region.rs`,
//! `a_device_that_is_let_in_against_a_revocation`.

use alloc::boxed::Box;

use super::gate::{By, Gate};
use crate::mutant::Mutant;
use crate::sync::Mutex;

/// The translations by which a device reaches the pages of a registration.
pub trait DeviceAccess: Send {
    /// Takes them away: when this returns the device reaches none of the pages, whatever it has in flight. Bounded; needs
    /// no memory. Called once, with interrupts on and no lock held; `by` is who ends the registration.
    fn revoke(self: Box<Self>, by: By) -> CutOff;
}

/// What cutting a device off has cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CutOff {
    /// Ranges of device addresses that were taken away.
    pub ranges: u64,
    /// Leaves in them.
    pub leaves: u64,
    /// Invalidation commands, without those that wait.
    pub commands: u64,
    /// In nanoseconds.
    pub ns: u64,
}

impl CutOff {
    /// Adds another.
    pub fn add(&mut self, other: Self) {
        self.ranges += other.ranges;
        self.leaves += other.leaves;
        self.commands += other.commands;
        self.ns += other.ns;
    }
}

/// Where a registration keeps its device.
pub struct DevicePlace(Mutex<Option<Box<dyn DeviceAccess>>>);

impl Default for DevicePlace {
    fn default() -> Self {
        Self::new()
    }
}

/// Why a device was not let in.
#[derive(Debug)]
pub enum NotAdmitted<E> {
    /// The registration is closed; nothing was mapped.
    Closed(By),
    /// It has a device already. What was mapped for this one is taken away again.
    Occupied,
    /// It could not be mapped.
    Made(E),
}

impl DevicePlace {
    /// No device.
    pub fn new() -> Self {
        Self(Mutex::new(None))
    }

    /// Lets a device in, behind `gate`: `map` maps the pages for it, and answers what takes that back.
    ///
    /// # Errors
    /// See [`NotAdmitted`].
    pub fn admit<E>(
        &self,
        gate: &Gate,
        map: impl FnOnce() -> Result<Box<dyn DeviceAccess>, E>,
    ) -> Result<(), NotAdmitted<E>> {
        let entered = gate.enter().map_err(NotAdmitted::Closed)?;
        let access = map().map_err(NotAdmitted::Made)?;
        let _entered = (!Mutant::DeviceAdmittedLate.is_on()).then_some(entered);
        let mut place = self.0.lock();
        if place.is_none() {
            *place = Some(access);
            return Ok(());
        }
        drop(place);
        access.revoke(By::Owner);
        Err(NotAdmitted::Occupied)
    }

    /// Cuts the device off, where there is one. The gate is closed, by `by`, and no use is in flight.
    pub fn cut_off(&self, by: By) -> Option<CutOff> {
        if Mutant::DeviceLeftIn.is_on() {
            return None;
        }
        let access = self.0.lock().take();
        access.map(|access| access.revoke(by))
    }
}
