//! The kernel's persistent memory: ranges found at boot, the pmem device attached to each, and its device-dax file.
//!
//! A slot is a range of the NFIT or the memory of a virtio-pmem device; its device comes and goes.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicUsize, Ordering};

use dax::devdax::DevDax;
use dax::device::{DataCache, DaxDevice, DaxError};
use dax::inject::Place;
use dax::removal::{Method, RemovalReport, Waiting};
use dax::slot::{DeviceSlot, SlotError};
use media::namespace::{Mode, Namespace};
use mm::addr::{PageSize, PfnRange};
use mm::ledger::Kind;
use mm::pagemap::MemoryKind;
use nvdimm::nfit::{DeviceFlags, Limits, Owner};
use nvdimm::pmem::{self, AttachError, Config, PmemDevice, PmemDriver, Refused, Step};
use nvdimm::virtio_pmem;
use spin::Once;

use crate::bringup::acpi;
use crate::io::pci;
use crate::mem::machine::{KernelMachine, mm};
use crate::mem::memory;
use crate::mem::reserve::{FAULTS, Section};
use crate::pmem::host::Host;
use crate::pmem::{namespaces, nvdimms, removal_log, virtio};
use crate::task::services;

/// The steps of an attach: those of the driver, and the device-dax file.
pub const ATTACH_STEPS: usize = Step::ALL.len() + 1;

/// A range of persistent memory, and the place of its device.
pub struct Slot {
    /// The device's name: `pmem0`, `pmem1`, … for what the NFIT reports, then `vpmem0`, … for virtio-pmem.
    pub name: String,
    /// The frames that the provider reports; of a namespace, those of its data.
    pub frames: PfnRange,
    /// Why the memory takes no writes; `None` where it takes them.
    pub read_only: Option<DeviceFlags>,
    /// The number of its region, which is that of its range among the NFIT's; `None` for virtio-pmem.
    pub region: Option<usize>,
    /// The namespace that it is; `None` for a range without labels.
    pub namespace: Option<Namespace>,
    provider: Provider,
    occupancy: DeviceSlot<Attached>,
    /// The report of the last removal. At most one of all has parts in the reserve: see [`settle`].
    last: mm::sync::Mutex<Option<Arc<RemovalReport>>>,
}

/// Where a slot's memory comes from.
enum Provider {
    /// The NFIT.
    Nvdimm,
    /// A virtio-pmem device, with the driver that it has for itself.
    Virtio(PmemDriver<KernelMachine>),
}

impl Slot {
    /// Where its memory comes from, in a word.
    pub fn provider(&self) -> &'static str {
        match self.provider {
            Provider::Nvdimm => "nvdimm",
            Provider::Virtio(_) => "virtio-pmem",
        }
    }

    pub(super) fn driver<'d>(&'d self, devices: &'d Devices) -> &'d PmemDriver<KernelMachine> {
        match &self.provider {
            Provider::Nvdimm => &devices.driver,
            Provider::Virtio(own) => own,
        }
    }

    /// What its memory is used for, where nobody says anything else. Lent memory lasts only by flushes, which a file
    /// system does and a program that maps the device may forget.
    pub fn kind(&self) -> MemoryKind {
        match self.provider {
            Provider::Nvdimm if self.mode() == Some(Mode::FsDax) => MemoryKind::FsDax,
            Provider::Nvdimm => MemoryKind::DevDax,
            Provider::Virtio(_) => MemoryKind::FsDax,
        }
    }
}

/// An attached device.
struct Attached {
    device: PmemDevice<KernelMachine>,
    /// Its device-dax file; `None` where it is for file systems.
    file: Option<Arc<DevDax<KernelMachine>>>,
}

pub(super) struct Devices {
    driver: PmemDriver<KernelMachine>,
    slots: Box<[Slot]>,
}

static DEVICES: Once<Devices> = Once::new();

/// Finds the NVDIMMs and the virtio-pmem devices, and makes a slot for each that can be used. `cache` is what the drivers
/// are told of the CPU's data cache. Called once; nothing is attached yet.
pub fn find(tables: &[&[u8]], phys_bits: u8, cache: DataCache) {
    let mut map = acpi::memory_map(memory::regions());
    pci::windows().into_iter().for_each(|window| map.add(window, Owner::Pci));
    let limits = Limits { phys_bits, taken: &map.taken() };
    let nfit = nvdimms::find(tables, limits);
    if cache == DataCache::Aliasing {
        log::warn!(target: "dax", "the data cache counts as one that aliases (dax.aliasing=1)");
    }
    init(namespaces::ranges(nfit), virtio::find(limits), cache);
}

/// Makes a slot for each range.
fn init(
    nvdimms: Vec<namespaces::Range>,
    lent: impl IntoIterator<Item = (PfnRange, Arc<virtio::Queue>)>,
    cache: DataCache,
) {
    DEVICES.call_once(|| {
        let driver = PmemDriver::new(mm(), Arc::new(Host), cache);
        let slot = |given: namespaces::Given, provider| Slot {
            name: given.name,
            frames: given.frames,
            read_only: given.read_only,
            region: given.region,
            namespace: given.namespace,
            provider,
            occupancy: DeviceSlot::new(),
            last: mm::sync::Mutex::default(),
        };
        let nvdimms = namespaces::split(&driver, nvdimms).into_iter();
        let lent = lent.into_iter().enumerate();
        let slots = nvdimms
            .map(|given| slot(given, Provider::Nvdimm))
            .chain(lent.map(|(at, (frames, queue))| {
                let own = virtio_pmem::driver(&driver, Arc::new(Host), queue);
                let name = format!("vpmem{at}");
                let given = namespaces::Given { name, frames, read_only: None, region: None, namespace: None };
                slot(given, Provider::Virtio(own))
            }))
            .collect();
        Devices { driver, slots }
    });
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

/// The slots, NVDIMMs first; empty where there is no persistent memory.
pub fn slots() -> &'static [Slot] {
    DEVICES.get().map_or(&[], |devices| &devices.slots)
}

/// The slot of the device of this name.
pub fn slot_named(name: &str) -> Option<usize> {
    slots().iter().position(|slot| slot.name == name)
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

pub(super) fn devices_and_slot(at: usize) -> Result<(&'static Devices, &'static Slot), DeviceError> {
    let devices = DEVICES.get().ok_or(DeviceError::NoSlot(at))?;
    Ok((devices, devices.slots.get(at).ok_or(DeviceError::NoSlot(at))?))
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
    let (_, slot) = devices_and_slot(at)?;
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
    let (devices, slot) = devices_and_slot(at)?;
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
        slot.driver(devices).attach(&config, &mut watched).map_err(|(step, error)| DeviceError::Attach(step, error))?;
    let file = new_file(&device, &section)?;
    let (size, has_dax) = (device.size_bytes(), device.dax().is_some());
    slot.occupancy.attach(Attached { device, file }).map_err(|(error, _)| error)?;
    Ok((size, has_dax))
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
    let (_, slot) = devices_and_slot(at).map_err(|error| format!("{error}"))?;
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
    let (devices, slot) = devices_and_slot(at).map_err(|error| format!("{error}"))?;
    not_attached(at)?;
    let change = if wanted { PmemDriver::create_area } else { PmemDriver::destroy_area };
    if let Some(why) = slot.left_alone() {
        return Err(why);
    }
    change(slot.driver(devices), &slot.name, slot.frames).map_err(|error| format!("{error}"))
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
    remove_with(at, method, waits, false)
}

/// As [`remove`], without a word on the console.
///
/// # Errors
/// As for [`remove`].
pub fn remove_quietly(at: usize, method: Method) -> Result<Arc<RemovalReport>, DeviceError> {
    remove_with(at, method, &mut |_| (), true)
}

fn remove_with(
    at: usize,
    method: Method,
    waits: &mut dyn FnMut(&Waiting),
    quiet: bool,
) -> Result<Arc<RemovalReport>, DeviceError> {
    let (_, slot) = devices_and_slot(at)?;
    let (Attached { device, file }, _removing) = slot.occupancy.begin_removal()?;
    settle();
    let section = services::enter_section();
    if !quiet {
        log::info!("{}: going away, {}", slot.name, removal_log::method_in_words(method));
    }
    let mappings: Vec<_> = file.iter().map(|file| Arc::clone(file.mapping())).collect();
    // What keeps the file open from here on are the mappings alone.
    drop(file);
    let told = &mut || announce(News::HoldersTold(at));
    let mut watch = removal_log::Watch { name: &slot.name, frames: slot.frames, told, waits, quiet };
    let report = device.remove(mappings, method, &mut watch);
    announce(News::Gone(at));
    let report = Arc::new(report);
    let shortages = section.shortages();
    drop(section);
    if shortages > 0 && !quiet {
        log::warn!("{}: memory ran out {shortages} times; the reserve has served", slot.name);
    }
    Ok(keep(at, slot, report, shortages > 0))
}

/// Keeps the report of a removal, which is the last one of its slot from now on. Where memory ran short, parts of it are
/// in the reserve, which the next removal needs; by now the device's tables and metadata have gone, and there is mostly
/// memory for a copy. Where there is none it stays there, until [`settle`]. Answers what is kept.
fn keep(at: usize, slot: &Slot, report: Arc<RemovalReport>, was_short: bool) -> Arc<RemovalReport> {
    let copy = if was_short { removal_log::out_of_reserve(&report) } else { Some(Arc::clone(&report)) };
    let stays = copy.is_none();
    let kept = copy.unwrap_or(report);
    let before = slot.last.lock().replace(Arc::clone(&kept));
    drop(before);
    if stays {
        log::info!("{}: memory is short still: the report is kept in the reserve", slot.name);
        settle_one(IN_RESERVE.swap(at + 1, Ordering::AcqRel), Some(at));
    }
    kept
}

/// Number of the slot, plus one, whose report has parts in the reserve; 0 where none has.
static IN_RESERVE: AtomicUsize = AtomicUsize::new(0);

/// An attach or a removal is about to begin, and may need all of the reserve: a report that lies there is copied out of
/// it or, where memory is short even now, forgotten.
fn settle() {
    settle_one(IN_RESERVE.swap(0, Ordering::AcqRel), None);
}

/// The same for the report of one slot, by its number plus one; not for that of slot `but`, which is a newer one.
fn settle_one(number: usize, but: Option<usize>) {
    let Some(at) = number.checked_sub(1).filter(|&at| Some(at) != but) else { return };
    let slot = &slots()[at];
    let Some(report) = slot.last.lock().clone() else { return };
    let copy = removal_log::out_of_reserve(&report);
    if copy.is_none() {
        log::warn!("{}: memory is short still: the report of its removal is kept no longer", slot.name);
    }
    let mut last = slot.last.lock();
    // Unless a removal has put a newer one there.
    let before = if last.as_ref().is_some_and(|last| Arc::ptr_eq(last, &report)) {
        core::mem::replace(&mut *last, copy)
    } else {
        None
    };
    drop(last);
    drop(before);
}

/// The report of the last removal from slot `at`; `None` where there was none, or where memory was so short that it
/// could not be kept when the next attach or removal began.
///
/// # Errors
/// [`DeviceError::NoSlot`].
pub fn last_removal(at: usize) -> Result<Option<Arc<RemovalReport>>, DeviceError> {
    Ok(devices_and_slot(at)?.1.last.lock().clone())
}

/// The device-dax file of slot `at`.
///
/// # Errors
/// As for [`remove`]; [`DeviceError::ForFileSystem`] where the device is for a file system, and
/// [`DaxError::NotSupported`] where it came up without DAX.
pub fn file(at: usize) -> Result<Arc<DevDax<KernelMachine>>, DeviceError> {
    let (_, slot) = devices_and_slot(at)?;
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
    let (devices, slot) = devices_and_slot(at)?;
    slot.occupancy.with(|_| ())?;
    let block = slot.driver(devices).find_block(&slot.name);
    match slot.driver(devices).find_dax(&slot.name) {
        Some(dax) => Ok(dax),
        // Its places go in the first step of a removal, and those of the DAX device and of the block device together.
        None if block.is_none() => Err(DeviceError::DeviceSlot(SlotError::Removing)),
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

/// The block path of slot `at`, found by its name.
///
/// # Errors
/// As for [`remove`].
pub fn block(at: usize) -> Result<Arc<nvdimm::pmem::block::BlockDevice<KernelMachine>>, DeviceError> {
    let (devices, slot) = devices_and_slot(at)?;
    slot.occupancy.with(|_| ())?;
    slot.driver(devices).find_block(&slot.name).ok_or(DeviceError::DeviceSlot(SlotError::Removing))
}
