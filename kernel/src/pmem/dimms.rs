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
use nvdimm::hotplug::presence;
use nvdimm::hotplug::stay::{self, Place};
use nvdimm::hotplug::{self, Hotplug, Io, Module, Registers, Status};
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
    /// So many [watch](Watched) whether it is still there: a device on it that is attached, and who attaches one.
    watchers: AtomicUsize,
    /// When it was noticed that it has left without a word, in nanoseconds since the first line; 0: it was not.
    noticed_ns: AtomicU64,
    /// When that was the last time that a stay has ended.
    last_notice_ns: AtomicU64,
    /// The host may not have it back by asking for it.
    pub keep: AtomicBool,
    /// Modules that have arrived here since boot, each counted once all was done about it that there was to do.
    arrivals: AtomicU64,
    /// Notice was taken of the module, and it is not used: there is no stay, and nothing to be done until another comes.
    not_used: AtomicBool,
}

/// As long as this lives it is looked again and again whether the module is still there.
pub(super) struct Watched(&'static Dimm);

impl Watched {
    /// From now on.
    pub(super) fn begin(dimm: &'static Dimm) -> Self {
        dimm.watchers.fetch_add(1, Ordering::SeqCst);
        watch::begin();
        sched::rearm();
        Self(dimm)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.0.watchers.fetch_sub(1, Ordering::SeqCst);
        watch::end();
        sched::rearm();
    }
}

struct Found {
    dimms: Box<[Dimm]>,
    hot: Vec<ByteRange>,
}

static FOUND: Once<Found> = Once::new();
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
    /// Begins a stay of what is in the slot now; answers what that is. See [`Place::begin`].
    pub(super) fn begin_stay(&self) -> Option<Module> {
        self.not_used.store(false, Ordering::Relaxed);
        self.place.begin()
    }

    /// The module is not used, and why was said: nobody is told that it is there, and it is not looked at again.
    pub(super) fn leave_unused(&self) {
        self.place.end();
        self.not_used.store(true, Ordering::Relaxed);
    }

    /// Is there a module of which notice is to be taken? Not while the stay of another one goes on: that ends first.
    pub(super) fn has_new(&self, status: Status) -> bool {
        let is_known = self.not_used.load(Ordering::Relaxed) && !status.inserted;
        status.enabled && !is_known && self.place.current().is_none()
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

    /// How many modules have arrived here since boot, and were taken into use or not: nothing is under way for them any more.
    pub fn arrivals(&self) -> u64 {
        // Acquire; pairs with the Release in `arrived`.
        self.arrivals.load(Ordering::Acquire)
    }

    /// One more has.
    pub(super) fn arrived(&self) {
        self.arrivals.fetch_add(1, Ordering::Release);
    }

    /// A removal of its device is over, and nobody looks any more: if the module has left in its last moments, that is dealt
    /// with.
    pub(super) fn removed(&self) {
        if self.has_left() {
            wake();
        }
    }
}

/// Looks at every module that is watched: in the timer's handler.
fn look() {
    let mut any = false;
    for dimm in all().iter().filter(|dimm| dimm.watchers.load(Ordering::Relaxed) != 0) {
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
        watchers: AtomicUsize::new(0),
        noticed_ns: AtomicU64::new(0),
        last_notice_ns: AtomicU64::new(0),
        keep: AtomicBool::new(false),
        arrivals: AtomicU64::new(0),
        not_used: AtomicBool::new(false),
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
) -> Slot {
    let name = format!("dimm{}", slots.iter().filter(|slot| slot.dimm().is_some()).count());
    let own = stay::driver(driver, Arc::new(Host), &dimm.place);
    Slot::new(Given::whole(name, frames), Provider::Dimm(own, dimm))
}

/// Does somebody else have some of these frames? Then that is said.
pub(super) fn is_free(other: Option<&Slot>, dimm: &Dimm) -> bool {
    if let Some(other) = other {
        let at = dimm.place.slot();
        log::warn!(target: "dimm", "slot {at}: its memory overlaps that of {}; it is not used", other.name);
    }
    other.is_none()
}

/// Says what a slot is, where it is a module's: once it is in the list, for who hears of it asks for it.
pub(super) fn say(slot: &Slot) {
    let Some(at) = slot.dimm().map(|dimm| dimm.place.slot()) else { return };
    let (name, base, size) = (&slot.name, slot.frames.start().addr(), slot.frames.nr_pages() * PAGE_SIZE);
    log::info!(target: "dimm", "{name}: {} MiB from {base} in slot {at}", size >> 20);
    report!("dimm device={name} slot={at} base={base} size={size}");
}

/// Adds a slot for each module that is there at boot and can be used.
pub(super) fn add_found(driver: &PmemDriver<KernelMachine>, slots: &mut Vec<Slot>) {
    for dimm in all() {
        let Some(module) = dimm.begin_stay() else { continue };
        let in_the_way = |frames: &PfnRange| slots.iter().find(|slot| slot.frames.overlaps(*frames));
        let frames = usable(dimm, &module).filter(|frames| is_free(in_the_way(frames), dimm));
        match frames {
            Some(frames) => slots.push(slot_of(driver, slots, frames, dimm)),
            None => dimm.leave_unused(),
        }
    }
}

/// Is the memory at all of these frames there now? Of a module only while its present stay goes on and has them; memory of
/// which no module is known does not leave. Asks each module once. For an interrupt handler, too.
pub fn are_there(runs: &[PfnRange]) -> bool {
    presence::all_there(runs, there_around)
}

/// The frames around `at` at all of which the memory is there now, if it is there.
fn there_around(at: Pfn) -> Option<PfnRange> {
    let slots = || devices::slots().iter();
    if let Some(fixed) = slots().find(|slot| slot.dimm().is_none() && slot.frames.contains(at)) {
        return Some(fixed.frames);
    }
    // A slot has the frames of modules that have left, too: any stay that has them will do.
    if slots().any(|slot| slot.frames.contains(at)) {
        let staying = |dimm: &Dimm| dimm.place.current().and_then(|stay| Some((stay.frames()?, stay)));
        let (frames, stay) = all().iter().filter_map(staying).find(|(frames, _)| frames.contains(at))?;
        return stay.goes_on().then_some(frames);
    }
    // Of nobody who may leave, up to the next slots.
    let before = slots().map(|slot| slot.frames.end()).filter(|end| *end <= at).max().unwrap_or(Pfn::new(0));
    let behind = slots().map(|slot| slot.frames.start()).filter(|start| *start > at).min().unwrap_or(at.add(1));
    PfnRange::new(before, behind.as_u64() - before.as_u64())
}

/// Where memory may arrive that no slot has yet: a page of it may be lost, too.
pub fn free_windows() -> Vec<PfnRange> {
    let used: Vec<_> = devices::slots().iter().map(|slot| slot.frames).collect();
    hotplug::free_windows(hot_ranges(), devices::limits(), &used)
}
