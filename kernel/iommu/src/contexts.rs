//! Which device is in which domain: the root table and the context tables (VT-d §3.4).
//!
//! A device leaves its domain by *clear, invalidate, wait* too, and of two caches: the context cache, which remembers where a
//! device's tables begin, and the IOTLB, whose translations outlive the context entry through which they were found.

use alloc::collections::BTreeMap;
use core::fmt;
use core::ops::Bound;

use mm::addr::Pfn;
use mm::sync::{Arc, Mutex, Ordering};

use crate::Mutant;
use crate::command::{Command, Context, Iotlb};
use crate::domain::Domain;
use crate::entry::{ContextEntry, RootEntry};
use crate::hardware::Hardware;
use crate::queue::QueueError;
use crate::source::SourceId;

/// Why a device did not come into a domain, or did not leave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachError {
    /// No memory for the bus's context table.
    NoMemory,
    /// It is in a domain already, or is leaving one.
    Attached {
        /// The number of that domain.
        domain: u16,
    },
    /// The unit did not answer.
    Queue(QueueError),
}

impl fmt::Display for AttachError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoMemory => f.write_str("no memory for a context table"),
            Self::Attached { domain } => write!(f, "the device is in domain {domain} already"),
            Self::Queue(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for AttachError {}

/// A device that is in a domain.
#[derive(Debug)]
struct Attached<H: Hardware> {
    domain: Arc<Domain<H>>,
    life: Life,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    In,
    /// Its entry is cleared, and the unit may not have forgotten it.
    Leaving,
    /// The unit did not answer: the domain's tables stay for ever.
    Lost(QueueError),
}

/// The devices of one unit.
#[derive(Debug)]
pub struct Contexts<H: Hardware> {
    hw: Arc<H>,
    root: Pfn,
    /// The unit may remember that an entry was not present.
    caching_mode: bool,
    devices: Mutex<BTreeMap<SourceId, Attached<H>>>,
}

impl<H: Hardware> Contexts<H> {
    /// No device is in any domain: each transfer is blocked. `None`: no memory for the root table.
    pub fn new(hw: Arc<H>, caching_mode: bool) -> Option<Self> {
        let root = hw.alloc_table()?;
        Some(Self { hw, root, caching_mode, devices: Mutex::new(BTreeMap::new()) })
    }

    /// The root table, whose address the unit's register is told.
    pub const fn root(&self) -> Pfn {
        self.root
    }

    /// The domain that a device is in.
    pub fn domain_of(&self, source: SourceId) -> Option<Arc<Domain<H>>> {
        self.devices.lock().get(&source).map(|attached| attached.domain.clone())
    }

    /// Shows each device and its domain, without a lock; who comes and goes meanwhile may be shown or not.
    pub fn for_each(&self, each: &mut dyn FnMut(SourceId, &Arc<Domain<H>>)) {
        let mut from = Bound::Unbounded;
        loop {
            let devices = self.devices.lock();
            let next = devices.range((from, Bound::Unbounded)).next();
            let Some((source, domain)) = next.map(|(source, attached)| (*source, attached.domain.clone())) else {
                return;
            };
            drop(devices);
            each(source, &domain);
            from = Bound::Excluded(source);
        }
    }

    /// Puts a device into a domain, which stays as long as the device is in it.
    ///
    /// # Errors
    /// See [`AttachError`]; the device is in no domain then, or in the one in which it was. Where the unit did
    /// not answer it may reach the domain for ever, which then stays.
    pub fn attach(&self, source: SourceId, domain: &Arc<Domain<H>>) -> Result<(), AttachError> {
        mm::lock_check::might_sleep("a device that comes into a domain");
        {
            let mut devices = self.devices.lock();
            if let Some(attached) = devices.get(&source) {
                return Err(AttachError::Attached { domain: attached.domain.id() });
            }
            let table = self.context_table(source.bus).ok_or(AttachError::NoMemory)?;
            let entry = ContextEntry::new(domain.id(), domain.root(), domain.levels());
            let at = 2 * usize::from(source.devfn());
            // The half that says "present" comes last.
            self.hw.entry(table, at + 1).store(entry.high, Ordering::Release);
            self.hw.write_back(table, at + 1, 1);
            self.hw.entry(table, at).store(entry.low, Ordering::Release);
            self.hw.write_back(table, at, 1);
            devices.insert(source, Attached { domain: domain.clone(), life: Life::In });
        }
        if self.caching_mode {
            // That nothing was there is remembered as domain 0's.
            let commands = [
                Command::Context(Context::Device { domain: 0, source }),
                Command::Iotlb(Iotlb::Domain { domain: domain.id() }),
            ];
            if let Err(error) = self.hw.invalidate(&commands) {
                let _ = self.detach(source);
                return Err(AttachError::Queue(error));
            }
        }
        Ok(())
    }

    /// Takes a device out of its domain. When this returns nothing that it does is translated: clear, invalidate both
    /// caches, wait; then the domain may go. `false`: it was in none, or another has taken it out.
    ///
    /// # Errors
    /// The unit did not answer: the device counts as in the domain for ever, so that its tables stay.
    pub fn detach(&self, source: SourceId) -> Result<bool, QueueError> {
        mm::lock_check::might_sleep("a device that leaves a domain");
        let id = loop {
            let mut devices = self.devices.lock();
            let Some(attached) = devices.get_mut(&source) else { return Ok(false) };
            match attached.life {
                Life::In => {
                    attached.life = Life::Leaving;
                    let id = attached.domain.id();
                    self.clear(source);
                    break id;
                }
                Life::Leaving => {}
                Life::Lost(error) => return Err(error),
            }
            drop(devices);
            self.hw.relax();
        };
        let commands =
            [Command::Context(Context::Device { domain: id, source }), Command::Iotlb(Iotlb::Domain { domain: id })];
        let nr = if Mutant::ContextOnly.is_on() { 1 } else { commands.len() };
        let told = self.hw.invalidate(&commands[..nr]);
        let mut devices = self.devices.lock();
        if let (Err(error), Some(attached)) = (told, devices.get_mut(&source)) {
            attached.life = Life::Lost(error);
            return Err(error);
        }
        let attached = devices.remove(&source);
        // Outside the lock: with the last of its devices the domain may go.
        drop(devices);
        drop(attached);
        Ok(true)
    }

    /// Clears a device's context entry.
    fn clear(&self, source: SourceId) {
        let Some(table) = self.root_entry(source.bus).table() else { return };
        let at = 2 * usize::from(source.devfn());
        self.hw.entry(table, at).store(0, Ordering::Release);
        self.hw.entry(table, at + 1).store(0, Ordering::Release);
        self.hw.write_back(table, at, 2);
    }

    fn root_entry(&self, bus: u8) -> RootEntry {
        let at = 2 * usize::from(bus);
        RootEntry { low: self.hw.entry(self.root, at).load(Ordering::Relaxed), high: 0 }
    }

    /// The context table of a bus, made where it is missing. It stays.
    fn context_table(&self, bus: u8) -> Option<Pfn> {
        if let Some(table) = self.root_entry(bus).table() {
            return Some(table);
        }
        let (table, at) = (self.hw.alloc_table()?, 2 * usize::from(bus));
        self.hw.entry(self.root, at).store(RootEntry::new(table).low, Ordering::Release);
        self.hw.write_back(self.root, at, 1);
        Some(table)
    }
}

impl<H: Hardware> Drop for Contexts<H> {
    fn drop(&mut self) {
        // Nobody has told the unit: it reaches the domains of these devices on. The root table stays for the same reason.
        let devices = core::mem::take(&mut *self.devices.lock());
        devices.into_values().for_each(|attached| core::mem::forget(attached.domain));
    }
}
