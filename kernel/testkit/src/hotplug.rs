//! Slots for memory modules, as QEMU has them: registers, and memory that leaves without a word and comes back.
//!
//! Something may be made to happen [just before](Slots::before) an access by its number: of the registers as a whole, or of
//! memory. So a test goes through every place at which a module can leave.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nvdimm::hotplug::{Io, Registers};
use nvdimm::pmem::memory::{FlushError, MediaError, PmemMemory};

type Act = Box<dyn FnOnce() + Send>;

/// One slot.
#[derive(Clone, Debug, Default)]
struct Slot {
    /// Base, length, and whether the module is there.
    module: Option<(u64, u64)>,
    inserted: bool,
    asked_for: bool,
    event: u32,
}

#[derive(Default)]
struct Inner {
    slots: Vec<Slot>,
    selected: usize,
    reports: Vec<(usize, u32, u32)>,
    /// Accesses so far, and what happens just before which.
    accesses: u64,
    acts: BTreeMap<u64, Act>,
    /// What happens just behind an access of the registers.
    behind: BTreeMap<u64, Act>,
}

/// All slots of a machine.
#[derive(Default)]
pub struct Slots {
    inner: Mutex<Inner>,
}

impl Slots {
    /// So many, empty.
    pub fn new(nr: usize) -> Arc<Self> {
        let slots = Self::default();
        slots.inner().slots.resize(nr, Slot::default());
        Arc::new(slots)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A module that was there from the beginning.
    pub fn cold(&self, slot: usize, base: u64, len_bytes: u64) {
        self.inner().slots[slot] = Slot { module: Some((base, len_bytes)), ..Slot::default() };
    }
    /// Plugs a module in.
    pub fn put(&self, slot: usize, base: u64, len_bytes: u64) {
        let mut inner = self.inner();
        inner.slots[slot].module = Some((base, len_bytes));
        inner.slots[slot].inserted = true;
    }
    /// Pulls it out, without a word. As in QEMU the flags of which nobody has taken notice stay as they are.
    pub fn pull(&self, slot: usize) {
        self.inner().slots[slot].module = None;
    }
    /// Asks for it.
    pub fn ask_for(&self, slot: usize) {
        self.inner().slots[slot].asked_for = true;
    }
    /// Is one there?
    pub fn has(&self, slot: usize) -> bool {
        self.inner().slots[slot].module.is_some()
    }
    /// Slot, event and status of every report so far.
    pub fn reports(&self) -> Vec<(usize, u32, u32)> {
        self.inner().reports.clone()
    }
    /// How many accesses there were.
    pub fn accesses(&self) -> u64 {
        self.inner().accesses
    }
    /// Just before the access with this number, counted from now on, beginning with 0, `act` happens.
    pub fn before(&self, access: u64, act: impl FnOnce() + Send + 'static) {
        let mut inner = self.inner();
        let at = inner.accesses + access;
        inner.acts.insert(at, Box::new(act));
    }
    /// The same just behind an access of the registers.
    pub fn behind(&self, access: u64, act: impl FnOnce() + Send + 'static) {
        let mut inner = self.inner();
        let at = inner.accesses + access;
        inner.behind.insert(at, Box::new(act));
    }
    /// What was to happen and has not does not happen.
    pub fn forget(&self) {
        let mut inner = self.inner();
        inner.acts.clear();
        inner.behind.clear();
    }

    /// Counts an access, and answers its number. What happens before it may use everything.
    fn access(&self) -> u64 {
        let (at, act) = {
            let mut inner = self.inner();
            inner.accesses += 1;
            let at = inner.accesses - 1;
            (at, inner.acts.remove(&at))
        };
        if let Some(act) = act {
            act();
        }
        at
    }
}

impl Registers for Slots {
    fn with(&self, work: &mut dyn FnMut(&mut dyn Io)) {
        let at = self.access();
        work(&mut *self.inner());
        let act = self.inner().behind.remove(&at);
        if let Some(act) = act {
            act();
        }
    }
}

impl Inner {
    fn slot(&mut self) -> Option<&mut Slot> {
        self.slots.get_mut(self.selected)
    }
}

impl Io for Inner {
    fn read_u8(&mut self, offset: u16) -> u8 {
        let Some(slot) = self.slot().filter(|_| offset == 0x14) else { return 0xff };
        u8::from(slot.module.is_some()) | u8::from(slot.inserted) << 1 | u8::from(slot.asked_for) << 2
    }
    fn read_u32(&mut self, offset: u16) -> u32 {
        let Some((base, len)) = self.slot().map(|slot| slot.module.unwrap_or_default()) else { return u32::MAX };
        match offset {
            0x00 => base as u32,
            0x04 => (base >> 32) as u32,
            0x08 => len as u32,
            0x0c => (len >> 32) as u32,
            0x10 => 0,
            _ => u32::MAX,
        }
    }
    fn write_u8(&mut self, offset: u16, value: u8) {
        let Some(slot) = self.slot().filter(|_| offset == 0x14) else { return };
        slot.inserted &= value & 2 == 0;
        slot.asked_for &= value & 4 == 0;
        if value & 8 != 0 {
            slot.module = None;
        }
    }
    fn write_u32(&mut self, offset: u16, value: u32) {
        let at = self.selected;
        match offset {
            0x00 => self.selected = value as usize,
            0x04 => self.slots[at].event = value,
            0x08 => {
                let event = self.slots[at].event;
                self.reports.push((at, event, value));
            }
            _ => {}
        }
    }
}

/// The bytes of a module, whose file keeps them while it is away: loads give 0 then, and stores vanish.
pub struct ModuleBytes {
    slots: Arc<Slots>,
    slot: usize,
    bytes: Mutex<Vec<u8>>,
}

impl ModuleBytes {
    /// Those of the module that comes into `slot`.
    pub fn new(slots: &Arc<Slots>, slot: usize, bytes: Vec<u8>) -> Arc<Self> {
        Arc::new(Self { slots: Arc::clone(slots), slot, bytes: Mutex::new(bytes) })
    }
    /// What the file holds.
    pub fn bytes(&self) -> Vec<u8> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
    /// How many there are.
    pub fn len_bytes(&self) -> u64 {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner).len() as u64
    }

    /// Copies bytes out, or zeroes.
    pub fn load(&self, at: usize, into: &mut [u8]) {
        self.slots.access();
        let bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        if self.slots.has(self.slot) {
            into.copy_from_slice(&bytes[at..at + into.len()]);
        } else {
            into.fill(0);
        }
    }
    /// Copies bytes in, or to nowhere.
    pub fn store(&self, at: usize, from: &[u8]) {
        self.slots.access();
        let mut bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        if self.slots.has(self.slot) {
            bytes[at..at + from.len()].copy_from_slice(from);
        }
    }
}

impl PmemMemory for ModuleBytes {
    fn read(&self, offset_bytes: u64, into: &mut [u8]) -> Result<(), MediaError> {
        self.load(offset_bytes as usize, into);
        Ok(())
    }
    fn write(&self, offset_bytes: u64, from: &[u8]) -> Result<(), MediaError> {
        self.store(offset_bytes as usize, from);
        Ok(())
    }
    fn fence(&self) -> Result<(), FlushError> {
        self.slots.access();
        Ok(())
    }
}
