//! The kernel's persistent memory: what is found at boot, the pmem device attached to each [slot](crate::pmem::slots), and its
//! device-dax file.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use dax::devdax::DevDax;
use dax::device::{DataCache, DaxDevice, DaxError};
use dax::inject::Place;
use dax::removal::{Cause, Method, RemovalReport, Waiting};
use dax::slot::{Removing, SlotError};
use mm::addr::PageSize;
use mm::ledger::Kind;
use mm::machine::Machine;
use mm::pagemap::MemoryKind;
use nvdimm::acpi::AcpiInfo;
use nvdimm::nfit::{Limits, Owner, Taken};
use nvdimm::pmem::{self, AttachError, Config, PmemDevice, PmemDriver, Refused, Step};
use nvdimm::virtio_pmem;
use spin::Once;

use crate::bringup::acpi;
use crate::io::pci;
use crate::mem::machine::{KernelMachine, mm};
use crate::mem::memory;
use crate::mem::reserve::{FAULTS, Section};
use crate::pmem::dimms::Watched;
use crate::pmem::host::Host;
use crate::pmem::last_removal::{keep, settle};
use crate::pmem::slots::{Attached, Provider};
pub use crate::pmem::slots::{Slot, slot_named, slots};
use crate::pmem::{dimms, labels, namespaces, nvdimms, removal_log, slots, virtio};
use crate::task::services;

/// The steps of an attach: those of the driver, and the device-dax file.
pub const ATTACH_STEPS: usize = Step::ALL.len() + 1;

/// What is known of physical addresses since boot, for what arrives later.
struct Known {
    phys_bits: u8,
    taken: Vec<Taken>,
}

static KNOWN: Once<Known> = Once::new();

/// What ranges are held against.
pub(super) fn limits() -> Limits<'static> {
    KNOWN
        .get()
        .map_or(Limits { phys_bits: 0, taken: &[] }, |known| Limits { phys_bits: known.phys_bits, taken: &known.taken })
}

/// Finds the NVDIMMs, the virtio-pmem devices and the memory modules, and makes a slot for each that can be used. `cache` is
/// what the drivers are told of the CPU's data cache. Called once; nothing is attached yet.
pub fn find(tables: Option<&AcpiInfo<'_>>, phys_bits: u8, cache: DataCache) {
    let mut map = acpi::memory_map(memory::regions());
    pci::windows().into_iter().for_each(|window| map.add(window, Owner::Pci));
    KNOWN.call_once(|| Known { phys_bits, taken: map.taken() });
    if let Some(info) = tables {
        labels::find(&info.programs);
        dimms::find(info);
    }
    let nfit = nvdimms::find(tables.map_or(&[], |info| &info.nfits), limits());
    if cache == DataCache::Aliasing {
        log::warn!(target: "dax", "the data cache counts as one that aliases (dax.aliasing=1)");
    }
    let driver = PmemDriver::new(mm(), Arc::new(Host), cache);
    slots::init(driver, |driver| {
        let nvdimms = namespaces::split(driver, 0, namespaces::ranges(&nfit)).into_iter();
        let mut slots: Vec<_> = nvdimms.map(|given| Slot::new(given, Provider::Nvdimm)).collect();
        for (at, (frames, queue)) in virtio::find(limits()).into_iter().enumerate() {
            let own = virtio_pmem::driver(driver, Arc::new(Host), queue);
            slots.push(Slot::new(namespaces::Given::whole(format!("vpmem{at}"), frames), Provider::Virtio(own)));
        }
        dimms::add_found(driver, &mut slots);
        slots
    });
    slots().iter().for_each(dimms::say);
}

/// What becomes of the device of a slot, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// It goes away, and its holders have been told.
    HoldersTold(usize),
    /// It has gone.
    Gone(usize),
}

/// Who hears of it.
static LISTENER: Once<fn(News)> = Once::new();

/// From now on `listener` hears of every device. For what is mounted from them; called once.
pub fn listen(listener: fn(News)) {
    LISTENER.call_once(|| listener);
}

fn announce(news: News) {
    if let Some(listener) = LISTENER.get() {
        listener(news);
    }
}

/// Why something could not be done with a device: one clear line.
#[derive(Debug)]
pub enum DeviceError {
    /// No slot has this number.
    NoSlot(usize),
    /// The slot's device is not where it would have to be.
    DeviceSlot(SlotError),
    /// A step of attaching failed.
    Attach(Step, AttachError),
    /// The device has no device-dax file, or it cannot be opened so.
    Dax(DaxError),
    /// The last step of attaching, the device-dax file, was made to fail.
    Injected,
    /// Memory ran out during the last steps of attaching.
    OutOfMemory,
    /// The device is attached for a file system, which has no device-dax file.
    ForFileSystem,
    /// It is a namespace that is not understood.
    LeftAlone(String),
}

impl fmt::Display for DeviceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSlot(at) => write!(f, "there is no NVDIMM {at} (there are {})", slots().len()),
            Self::DeviceSlot(error) => error.fmt(f),
            Self::Attach(step, error) => write!(f, "step {step}: {error}"),
            Self::Dax(error) => error.fmt(f),
            Self::Injected => f.write_str("step file: it was made to fail"),
            Self::OutOfMemory => f.write_str("step file: memory ran out"),
            Self::LeftAlone(why) => f.write_str(why),
            Self::ForFileSystem => f.write_str("the device is attached for a file system: there is no device-dax file"),
        }
    }
}

impl From<SlotError> for DeviceError {
    fn from(error: SlotError) -> Self {
        Self::DeviceSlot(error)
    }
}

pub(super) fn slot(at: usize) -> Result<&'static Slot, DeviceError> {
    slots().get(at).ok_or(DeviceError::NoSlot(at))
}

/// Attaches the device of slot `at` as device-dax.
///
/// # Errors
/// See [`DeviceError`]; nothing is left over then.
pub fn attach(at: usize) -> Result<(), DeviceError> {
    attach_as(at, MemoryKind::DevDax)
}

/// Attaches the device of slot `at` for such a use.
///
/// # Errors
/// As for [`attach`].
pub fn attach_as(at: usize, kind: MemoryKind) -> Result<(), DeviceError> {
    let slot = slot(at)?;
    let (size, has_dax) = attach_quietly(at, kind, &mut |step: Step| {
        crate::console::report!(
            "attach device={} step={step} n={} of={}",
            slot.name,
            step as usize + 1,
            Step::ALL.len()
        );
        Ok(())
    })?;
    let leaves = mm().ledger.count(Kind::DirectMapLeaves);
    let (name, provider) = (&slot.name, slot.provider());
    let used = match kind {
        MemoryKind::DevDax => "as device-dax",
        MemoryKind::FsDax => "for a file system",
    };
    log::info!(
        "{name}: attached {used}, {size} bytes, {leaves} direct-map leaves in all, {} bytes of page metadata",
        mm().ledger.count(Kind::MetadataBytes)
    );
    if !has_dax {
        log::warn!("{name}: comes up without DAX: {}; its sectors can be read and written", DaxError::NotSupported);
    }
    crate::console::report!(
        "attached device={name} provider={provider} kind={kind} dax={} size={size}",
        u8::from(has_dax)
    );
    Ok(())
}

/// As [`attach`], without a word on the console: `supervisor` hears of each step. Answers the device's size in bytes.
///
/// # Errors
/// As for [`attach`].
pub fn attach_supervised(at: usize, supervisor: pmem::Supervisor<'_>) -> Result<u64, DeviceError> {
    Ok(attach_quietly(at, MemoryKind::DevDax, supervisor)?.0)
}

/// Attaches; answers the device's size in bytes, and whether it has DAX.
fn attach_quietly(at: usize, kind: MemoryKind, supervisor: pmem::Supervisor<'_>) -> Result<(u64, bool), DeviceError> {
    let slot = slot(at)?;
    if let Some(why) = slot.left_alone() {
        return Err(DeviceError::LeftAlone(why));
    }
    let config = Config { name: &slot.name, ranges: &[slot.frames], kind, bad_blocks: &[], read_only: slot.read_only };
    settle();
    let section = services::enter_section();
    let mut watched = |step: Step| {
        if section.shortages() > 0 {
            return Err(Refused::OutOfMemory);
        }
        if FAULTS.goes_off(Place::Attach, step as u64 + 1) {
            return Err(Refused::Injected);
        }
        supervisor(step)
    };
    let device =
        slot.driver().attach(&config, &mut watched).map_err(|(step, error)| DeviceError::Attach(step, error))?;
    let file = new_file(&device, &section)?;
    let (size, has_dax, block) = (device.size_bytes(), device.dax().is_some(), Arc::clone(device.block()));
    // Before anybody finds it, so that there is no moment at which somebody uses it and nobody looks.
    let watched = slot.dimm().map(Watched::begin);
    slot.occupancy.attach(Attached { device, file, watched }).map_err(|(error, _)| error)?;
    drop(section);
    // What leaves from here on is noticed, and the device is found by whoever deals with that. What has left since the last
    // step may have come back: that is another stay, of which this device knows nothing, and nobody but we would look.
    if !block.is_there() {
        let ours = |attached: &Attached| Arc::ptr_eq(attached.device.block(), &block);
        let how = How { method: Method::Ranged, cause: Cause::Gone, quiet: true };
        // Somebody may have been faster.
        if slot.occupancy.begin_removal_if(ours).map(|begun| remove_begun(at, begun, how, &mut |_| ())).is_err() {
            wait_for_removal(at);
        }
        return Err(DeviceError::Attach(Step::Announce, AttachError::Gone));
    }
    Ok((size, has_dax))
}

/// Waits until no removal of the device of slot `at` is under way.
pub(super) fn wait_for_removal(at: usize) {
    if let Ok(slot) = slot(at) {
        slot.occupancy.wait(|| mm().machine.relax());
    }
}

/// The last step of attaching: the device-dax file. `None` where the device is for a file system.
fn new_file(
    device: &PmemDevice<KernelMachine>,
    section: &Section,
) -> Result<Option<Arc<DevDax<KernelMachine>>>, DeviceError> {
    if FAULTS.goes_off(Place::Attach, ATTACH_STEPS as u64) {
        return Err(DeviceError::Injected);
    }
    let dax = device.dax().filter(|dax| dax.kind() == MemoryKind::DevDax);
    let file = dax.map(|dax| DevDax::new(mm(), dax, PageSize::Size4K)).transpose().map_err(DeviceError::Dax)?;
    if section.shortages() > 0 { Err(DeviceError::OutOfMemory) } else { Ok(file) }
}

/// Refuses where the memory of slot `at` takes no writes, with the reason.
///
/// # Errors
/// One clear line.
pub fn check_writable(at: usize) -> Result<(), String> {
    let slot = slot(at).map_err(|error| format!("{error}"))?;
    match slot.read_only {
        None => Ok(()),
        Some(why) => Err(format!("{} takes no writes: a memory device behind it {why}", slot.name)),
    }
}

/// Makes, or gives up, the area in which NVDIMM `at` keeps its list of bad blocks. It is not attached.
///
/// # Errors
/// One clear line.
pub fn set_area(at: usize, wanted: bool) -> Result<(), String> {
    check_writable(at)?;
    let slot = slot(at).map_err(|error| format!("{error}"))?;
    not_attached(at)?;
    let change = if wanted { PmemDriver::create_area } else { PmemDriver::destroy_area };
    if let Some(why) = slot.left_alone() {
        return Err(why);
    }
    change(slot.driver(), &slot.name, slot.frames).map_err(|error| format!("{error}"))
}

/// Device `at` must not be attached, for what does that by itself.
///
/// # Errors
/// One clear line.
pub fn not_attached(at: usize) -> Result<(), String> {
    block(at).map_or(Ok(()), |_| Err(format!("device {at} is attached (remove {at} first)")))
}

/// Removes the device of slot `at` from under everybody who uses it.
///
/// # Errors
/// [`DeviceError::NoSlot`], or there is no device, or it is being removed already. A removal that has begun does not
/// fail.
pub fn remove(at: usize, method: Method) -> Result<Arc<RemovalReport>, DeviceError> {
    remove_watched(at, method, &mut |_| ())
}

/// As [`remove`]; `waits` is called whenever the removal says for which pages it waits.
///
/// # Errors
/// As for [`remove`].
pub fn remove_watched(
    at: usize,
    method: Method,
    waits: &mut dyn FnMut(&Waiting),
) -> Result<Arc<RemovalReport>, DeviceError> {
    remove_with(at, How { method, cause: Cause::Asked, quiet: false }, waits)
}

/// As [`remove`], for another cause.
///
/// # Errors
/// As for [`remove`].
pub fn remove_because(at: usize, cause: Cause) -> Result<Arc<RemovalReport>, DeviceError> {
    remove_with(at, How { method: Method::Ranged, cause, quiet: false }, &mut |_| ())
}

/// As [`remove`], without a word on the console.
///
/// # Errors
/// As for [`remove`].
pub fn remove_quietly(at: usize, method: Method) -> Result<Arc<RemovalReport>, DeviceError> {
    remove_with(at, How { method, cause: Cause::Asked, quiet: true }, &mut |_| ())
}

/// As [`remove_because`], without a word on the console.
///
/// # Errors
/// As for [`remove`].
pub fn remove_quietly_because(at: usize, cause: Cause) -> Result<Arc<RemovalReport>, DeviceError> {
    remove_with(at, How { method: Method::Ranged, cause, quiet: true }, &mut |_| ())
}

/// How a device is removed.
#[derive(Clone, Copy)]
struct How {
    method: Method,
    cause: Cause,
    /// Without a word on the console.
    quiet: bool,
}

fn remove_with(at: usize, how: How, waits: &mut dyn FnMut(&Waiting)) -> Result<Arc<RemovalReport>, DeviceError> {
    let begun = slot(at)?.occupancy.begin_removal()?;
    Ok(remove_begun(at, begun, how, waits))
}

/// Removes a device that was taken out of slot `at` for that.
fn remove_begun(
    at: usize,
    begun: (Attached, Removing<'_, Attached>),
    How { method, cause, quiet }: How,
    waits: &mut dyn FnMut(&Waiting),
) -> Arc<RemovalReport> {
    let slot = &slots()[at];
    let (Attached { device, file, watched }, _removing) = begun;
    if cause == Cause::Asked {
        // However it was used when it left: that is over.
        *slot.left_as.lock() = None;
    }
    settle();
    let section = services::enter_section();
    // Of what has gone that is said later.
    if !quiet && cause != Cause::Gone {
        log::info!("{}: going away, {}", slot.name, removal_log::method_in_words(method));
    }
    let mappings: Vec<_> = file.iter().map(|file| Arc::clone(file.mapping())).collect();
    // What keeps the file open from here on are the mappings alone.
    drop(file);
    let told = &mut || announce(News::HoldersTold(at));
    let shot_down = &slot.shot_down_ns;
    let mut watch = removal_log::Watch { name: &slot.name, frames: slot.frames, cause, told, waits, shot_down, quiet };
    let report = device.remove(mappings, method, &mut watch);
    announce(News::Gone(at));
    // Until here, so that a departure during the removal is noticed.
    drop(watched);
    if let Some(dimm) = slot.dimm() {
        dimm.removed();
    }
    let report = Arc::new(report);
    let shortages = section.shortages();
    drop(section);
    if shortages > 0 && !quiet {
        log::warn!("{}: memory ran out {shortages} times; the reserve has served", slot.name);
    }
    keep(at, slot, report, shortages > 0)
}

/// The report of the last removal from slot `at`; `None` where there was none, or where memory was so short that it
/// could not be kept when the next attach or removal began.
///
/// # Errors
/// [`DeviceError::NoSlot`].
pub fn last_removal(at: usize) -> Result<Option<Arc<RemovalReport>>, DeviceError> {
    Ok(slot(at)?.last.lock().clone())
}

/// The device-dax file of slot `at`.
///
/// # Errors
/// As for [`remove`]; [`DeviceError::ForFileSystem`] where the device is for a file system, and
/// [`DaxError::NotSupported`] where it came up without DAX.
pub fn file(at: usize) -> Result<Arc<DevDax<KernelMachine>>, DeviceError> {
    let slot = slot(at)?;
    slot.occupancy.with(|attached| match (&attached.file, attached.device.dax()) {
        (Some(file), _) => Ok(Arc::clone(file)),
        (None, Some(_)) => Err(DeviceError::ForFileSystem),
        (None, None) => Err(DeviceError::Dax(DaxError::NotSupported)),
    })?
}

/// The DAX device of slot `at`, found as a file system finds it: by the name of the block device.
///
/// # Errors
/// As for [`remove`]; [`DaxError::NotSupported`] where it came up without DAX.
pub fn dax(at: usize) -> Result<Arc<DaxDevice>, DeviceError> {
    let slot = slot(at)?;
    slot.occupancy.with(|_| ())?;
    // In this order: in the first step of a removal the block device's place goes before that of the DAX device. So where
    // there is none of these any more, there is none of those.
    match slot.driver().find_dax(&slot.name) {
        Some(dax) => Ok(dax),
        None if slot.driver().find_block(&slot.name).is_none() => Err(DeviceError::DeviceSlot(SlotError::Removing)),
        None => Err(DeviceError::Dax(DaxError::NotSupported)),
    }
}

/// Has the device of slot `at` DAX?
///
/// # Errors
/// As for [`remove`].
pub fn has_dax(at: usize) -> Result<bool, DeviceError> {
    match dax(at) {
        Ok(_) => Ok(true),
        Err(DeviceError::Dax(DaxError::NotSupported)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// What the device of slot `at` is attached for.
///
/// # Errors
/// As for [`remove`].
pub fn kind_in_use(at: usize) -> Result<MemoryKind, DeviceError> {
    Ok(slot(at)?.occupancy.with(|attached| attached.device.pagemap().kind())?)
}

/// The block path of slot `at`, found by its name.
///
/// # Errors
/// As for [`remove`].
pub fn block(at: usize) -> Result<Arc<nvdimm::pmem::block::BlockDevice<KernelMachine>>, DeviceError> {
    let slot = slot(at)?;
    slot.occupancy.with(|_| ())?;
    slot.driver().find_block(&slot.name).ok_or(DeviceError::DeviceSlot(SlotError::Removing))
}
