//! Memory modules (`pc-dimm`) in the machine's slots: found at boot, and watched while a device on one is attached.
//!
//! What the registers mean is in [`nvdimm::hotplug`]; where they are, the firmware's programs say, and where modules may be,
//! its SRAT. What is done when a module comes or goes is in [`departure`](crate::pmem::departure).

use alloc::boxed::Box;
use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use arch::port;
use mm::addr::{PAGE_SIZE, Pfn, PfnRange};
use nvdimm::acpi::{AcpiInfo, aml};
use nvdimm::hotplug::stay::{self, Place};
use nvdimm::hotplug::{Hotplug, Io, Module, Registers};
use nvdimm::nfit::ByteRange;
use nvdimm::pmem::PmemDriver;
use spin::Once;

use crate::console::report;
use crate::cpu::lock::IrqLock;
use crate::cpu::time;
use crate::mem::machine::KernelMachine;
use crate::pmem::devices;
use crate::pmem::host::Host;
use crate::pmem::namespaces::Given;
use crate::pmem::slots::{Provider, Slot};
use crate::task::{sched, watch};

/// The block of registers: a slot is selected by a store, so one CPU at a time uses it, and no interrupt comes in between.
struct Ports {
    first: u16,
    one_user: IrqLock<()>,
}

struct Block(u16);

impl Registers for Ports {
    fn with(&self, work: &mut dyn FnMut(&mut dyn Io)) {
        let _one_user = self.one_user.lock();
        work(&mut Block(self.first));
    }
}

impl Io for Block {
    fn read_u8(&mut self, offset: u16) -> u8 {
        // SAFETY: one of the 24 ports that the firmware says belong to these registers; reading has no effect on memory.
        unsafe { port::read_u8(self.0 + offset) }
    }
    fn read_u32(&mut self, offset: u16) -> u32 {
        // SAFETY: as above.
        unsafe { port::read_u32(self.0 + offset) }
    }
    fn write_u8(&mut self, offset: u16, value: u8) {
        // SAFETY: as above. An eject takes memory away that no Rust object is in: a module's.
        unsafe { port::write_u8(self.0 + offset, value) }
    }
    fn write_u32(&mut self, offset: u16, value: u32) {
        // SAFETY: as above.
        unsafe { port::write_u32(self.0 + offset, value) }
    }
}

/// One slot of the machine, and what is known of the module in it.
pub struct Dimm {
    /// The slot, and the module's stay there.
    pub place: Arc<Place>,
    /// A device on it is attached: whether it is still there is looked at again and again.
    watched: AtomicBool,
    /// When it was noticed that it has left without a word, in nanoseconds since the first line; 0: it was not.
    noticed_ns: AtomicU64,
    /// When that was the last time that a stay has ended.
    last_notice_ns: AtomicU64,
    /// The host may not have it back by asking for it.
    pub keep: AtomicBool,
}

struct Found {
    dimms: Box<[Dimm]>,
    hot: Vec<ByteRange>,
}

static FOUND: Once<Found> = Once::new();
/// How many modules are watched.
static WATCHED: AtomicUsize = AtomicUsize::new(0);
/// Wakes whoever deals with modules that come and go.
static WAKE: Once<fn()> = Once::new();

/// Every slot of the machine; empty where it has none.
pub fn all() -> &'static [Dimm] {
    FOUND.get().map_or(&[], |found| &found.dimms)
}

/// Where modules may be.
pub fn hot_ranges() -> &'static [ByteRange] {
    FOUND.get().map_or(&[], |found| &found.hot)
}

/// From now on `wake` is called when a module is seen to have left: from an interrupt handler, too. Called once.
pub fn wake_by(wake: fn()) {
    WAKE.call_once(|| wake);
}

fn wake() {
    if let Some(wake) = WAKE.get() {
        wake();
    }
}

impl Dimm {
    /// Begins or ends to look again and again whether the module is still there.
    pub(super) fn watch(&'static self, on: bool) {
        if self.watched.swap(on, Ordering::SeqCst) == on {
            return;
        }
        let was_watched =
            if on { WATCHED.fetch_add(1, Ordering::SeqCst) } else { WATCHED.fetch_sub(1, Ordering::SeqCst) };
        if was_watched == usize::from(!on) {
            watch::set(on);
            sched::rearm();
        }
    }

    /// Has the module left without a word? Notes when that was first seen.
    pub fn has_left(&self) -> bool {
        if !self.place.has_left() {
            self.noticed_ns.store(0, Ordering::Relaxed);
            return false;
        }
        let now = time::since_first_line_ns();
        let _noted_before = self.noticed_ns.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
        true
    }

    /// When it was first seen that the module has left; 0: it was not.
    pub fn noticed_ns(&self) -> u64 {
        self.noticed_ns.load(Ordering::Relaxed)
    }

    /// Ends the stay. When it was seen to have ended by itself, or now.
    pub fn end_stay(&self) -> u64 {
        let noticed_ns = match self.noticed_ns.swap(0, Ordering::Relaxed) {
            0 => time::since_first_line_ns(),
            noticed_ns => noticed_ns,
        };
        self.last_notice_ns.store(noticed_ns, Ordering::Relaxed);
        self.place.end();
        noticed_ns
    }

    /// When the end of the last stay was noticed, in nanoseconds since the first line.
    pub fn last_notice_ns(&self) -> u64 {
        self.last_notice_ns.load(Ordering::Relaxed)
    }

    /// A removal of its device is over, in which nobody has looked: if the module has left meanwhile, that is dealt with.
    pub(super) fn removed(&self) {
        if self.has_left() {
            wake();
        }
    }
}

/// Looks at every module that is watched: in the timer's handler.
fn look() {
    let mut any = false;
    for dimm in all().iter().filter(|dimm| dimm.watched.load(Ordering::Relaxed)) {
        any |= dimm.noticed_ns() == 0 && dimm.has_left();
    }
    if any {
        wake();
    }
}

/// Finds the registers and the ranges in which modules may be. Called once.
pub(super) fn find(info: &AcpiInfo<'_>) {
    let registers = match aml::memory_hotplug(&info.programs) {
        Ok(Some(registers)) => registers,
        Ok(None) => return,
        Err(fault) => return log::warn!(target: "dimm", "{fault}"),
    };
    let aml::MemoryHotplug { port, nr_slots } = registers;
    let ports = Arc::new(Ports { first: port, one_user: IrqLock::new(()) });
    let hotplug = Arc::new(Hotplug::new(ports, nr_slots));
    let dimm = |slot| Dimm {
        place: Place::new(&hotplug, slot),
        watched: AtomicBool::new(false),
        noticed_ns: AtomicU64::new(0),
        last_notice_ns: AtomicU64::new(0),
        keep: AtomicBool::new(false),
    };
    FOUND.call_once(|| Found {
        dimms: (0..nr_slots).map(dimm).collect(),
        hot: info.hot_ranges.iter().copied().collect(),
    });
    watch::init(look);
    report!("memory_slots port={port:#x} slots={nr_slots} ranges={}", info.hot_ranges.len());
}

/// The frames of what is in the slot, as far as they can be a device's. Otherwise why not is said.
pub(super) fn usable(dimm: &Dimm, module: &Module) -> Option<PfnRange> {
    let slot = dimm.place.slot();
    let ByteRange { base, len_bytes } = module.range;
    match module.frames(devices::limits(), hot_ranges()) {
        Ok(frames) => Some(frames),
        Err(error) => {
            log::warn!(target: "dimm", "slot {slot}: memory at {base:#x}+{len_bytes:#x}: {error}; it is not used");
            None
        }
    }
}

/// The slot of a module: named after those before it.
pub(super) fn slot_of(
    driver: &PmemDriver<KernelMachine>,
    slots: &[Slot],
    frames: PfnRange,
    dimm: &'static Dimm,
) -> Option<Slot> {
    let at = dimm.place.slot();
    if let Some(other) = slots.iter().find(|slot| slot.frames.overlaps(frames)) {
        log::warn!(target: "dimm", "slot {at}: its memory overlaps that of {}; it is not used", other.name);
        return None;
    }
    let name = format!("dimm{}", slots.iter().filter(|slot| slot.dimm().is_some()).count());
    let (base, size) = (frames.start().addr(), frames.nr_pages() * PAGE_SIZE);
    log::info!(target: "dimm", "{name}: {} MiB from {base} in slot {at}", size >> 20);
    report!("dimm device={name} slot={at} base={base} size={size}");
    let own = stay::driver(driver, Arc::new(Host), &dimm.place);
    Some(Slot::new(Given::whole(name, frames), Provider::Dimm(own, dimm)))
}

/// Adds a slot for each module that is there at boot and can be used.
pub(super) fn add_found(driver: &PmemDriver<KernelMachine>, slots: &mut Vec<Slot>) {
    for dimm in all() {
        let Some(module) = dimm.place.begin() else { continue };
        let slot = usable(dimm, &module).and_then(|frames| slot_of(driver, slots, frames, dimm));
        slots.extend(slot);
    }
}

/// Is the memory there, as far as anybody can know? What is no module's always is.
pub fn is_there(frames: PfnRange) -> bool {
    let slots = devices::slots();
    let mut modules = slots.iter().filter(|slot| slot.frames.overlaps(frames)).filter_map(Slot::dimm);
    modules.all(|dimm| dimm.place.current().is_some_and(|stay| stay.goes_on()))
}

/// Where memory may arrive that no slot has yet: a page of it may be lost, too.
pub fn free_windows() -> Vec<PfnRange> {
    let mut free = Vec::new();
    for hot in hot_ranges() {
        let mut at = hot.base.div_ceil(PAGE_SIZE);
        let end = hot.end() / PAGE_SIZE;
        let mut taken: Vec<_> = devices::slots().iter().map(|slot| slot.frames).collect();
        taken.sort_unstable_by_key(|frames| frames.start());
        for frames in taken {
            let (start, after) = (frames.start().as_u64(), frames.end().as_u64());
            if at < start.min(end) {
                free.extend(PfnRange::new(Pfn::new(at), start.min(end) - at));
            }
            at = at.max(after);
        }
        if at < end {
            free.extend(PfnRange::new(Pfn::new(at), end - at));
        }
    }
    free
}
