//! The kernel's persistent memory: ranges found at boot, the pmem device attached to each, and its device-dax file.
//!
//! A slot is a range of the NFIT; its device comes and goes. Everything that the portable drivers need of this kernel
//! is here: the direct map, and copies that last.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

use dax::bay::{Bay, BayError};
use dax::devdax::DevDax;
use dax::device::{DataCache, DaxError};
use dax::removal::{Method, RemovalReport, StepRecord, Waiting};
use mm::addr::{PAGE_SIZE, PageSize, PfnRange};
use mm::ledger::Kind;
use mm::machine::Machine;
use mm::pagemap::MemoryKind;
use nvdimm::nfit::{self, Limits};
use nvdimm::pmem::memory::{MapFailed, MediaError, PmemHost, PmemMemory};
use nvdimm::pmem::removal::RemovalWatch;
use nvdimm::pmem::{self, AttachError, Config, PmemDevice, PmemDriver, Step};
use spin::Once;

use crate::machine::{KernelMachine, mm};
use crate::{acpi, layout, memory, paging, time};

/// A range of persistent memory, and the place of its device.
pub struct Slot {
    /// The device's name: `pmem0`, `pmem1`, …
    pub name: String,
    /// The frames that the NFIT reports.
    pub frames: PfnRange,
    bay: Bay<Attached>,
}

/// An attached device.
struct Attached {
    device: PmemDevice<KernelMachine>,
    /// Its device-dax file; `None` where the CPU cannot have DAX.
    file: Option<Arc<DevDax<KernelMachine>>>,
}

struct Devices {
    driver: PmemDriver<KernelMachine>,
    slots: Box<[Slot]>,
}

static DEVICES: Once<Devices> = Once::new();

/// Reads the NFITs, says what they hold and what is wrong with them, and makes a slot for each range that can be used.
/// Called once; nothing is attached yet.
pub fn find(tables: &[&[u8]], phys_bits: u8) {
    let occupied = acpi::occupied(memory::regions());
    let nfit = nfit::parse(tables.iter().copied(), Limits { phys_bits, ram: occupied.as_slice() });
    for notice in &nfit.notices {
        log::warn!(target: "nfit", "{notice}");
    }
    if nfit.notices_dropped != 0 {
        log::warn!(target: "nfit", "{} more faults", nfit.notices_dropped);
    }
    for (id, range) in nfit.ranges.iter().enumerate() {
        let devices = nfit.devices_of(range).count();
        crate::report!(
            "nvdimm id={id} base={:#x} size={} devices={devices} range_index={}",
            range.base,
            range.len_bytes,
            range.range_index
        );
    }
    if nfit.ranges.is_empty() {
        log::info!(target: "nfit", "no NVDIMM found");
    }
    init(nfit.ranges.iter().filter_map(pmem::frames_of));
}

/// Makes a slot for each range.
fn init(ranges: impl IntoIterator<Item = PfnRange>) {
    DEVICES.call_once(|| {
        let slot = |(at, frames)| Slot { name: format!("pmem{at}"), frames, bay: Bay::new() };
        Devices {
            driver: PmemDriver::new(mm(), Arc::new(Host), DataCache::Coherent),
            slots: ranges.into_iter().enumerate().map(slot).collect(),
        }
    });
}

/// The slots; empty where there is no NVDIMM.
pub fn slots() -> &'static [Slot] {
    DEVICES.get().map_or(&[], |devices| &devices.slots)
}

/// Why something could not be done with a device: one clear line.
#[derive(Debug)]
pub enum DeviceError {
    /// No slot has this number.
    NoSlot(usize),
    /// The slot's device is not where it would have to be.
    Bay(BayError),
    /// A step of attaching failed.
    Attach(Step, AttachError),
    /// The device has no device-dax file, or it cannot be opened so.
    Dax(DaxError),
}

impl fmt::Display for DeviceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSlot(at) => write!(f, "there is no NVDIMM {at} (there are {})", slots().len()),
            Self::Bay(error) => error.fmt(f),
            Self::Attach(step, error) => write!(f, "step {step}: {error}"),
            Self::Dax(error) => error.fmt(f),
        }
    }
}

impl From<BayError> for DeviceError {
    fn from(error: BayError) -> Self {
        Self::Bay(error)
    }
}

fn devices_and_slot(at: usize) -> Result<(&'static Devices, &'static Slot), DeviceError> {
    let devices = DEVICES.get().ok_or(DeviceError::NoSlot(at))?;
    Ok((devices, devices.slots.get(at).ok_or(DeviceError::NoSlot(at))?))
}

/// Attaches the device of slot `at` as device-dax.
///
/// # Errors
/// See [`DeviceError`]; nothing is left over then.
pub fn attach(at: usize) -> Result<(), DeviceError> {
    let (devices, slot) = devices_and_slot(at)?;
    let config = Config { name: &slot.name, ranges: &[slot.frames], kind: MemoryKind::DevDax, bad_blocks: &[] };
    let mut step_done = |step: Step| {
        crate::report!("attach device={} step={step} n={} of={}", slot.name, step as usize + 1, Step::ALL.len());
        Ok(())
    };
    let device =
        devices.driver.attach(&config, &mut step_done).map_err(|(step, error)| DeviceError::Attach(step, error))?;
    let file =
        device.dax().map(|dax| DevDax::new(mm(), dax, PageSize::Size4K)).transpose().map_err(DeviceError::Dax)?;
    let size = device.size_bytes();
    slot.bay.attach(Attached { device, file }).map_err(|(error, _)| error)?;
    let leaves = mm().ledger.count(Kind::DirectMapLeaves);
    log::info!(
        "{}: attached as device-dax, {size} bytes, {leaves} direct-map leaves in all, {} bytes of page metadata",
        slot.name,
        mm().ledger.count(Kind::MetadataBytes)
    );
    Ok(())
}

/// Removes the device of slot `at` from under everybody who uses it.
///
/// # Errors
/// [`DeviceError::NoSlot`], or there is no device, or it is being removed already. A removal that has begun does not
/// fail.
pub fn remove(at: usize, method: Method) -> Result<RemovalReport, DeviceError> {
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
) -> Result<RemovalReport, DeviceError> {
    let (_, slot) = devices_and_slot(at)?;
    let (Attached { device, file }, _removing) = slot.bay.begin_removal()?;
    log::info!("{}: going away, {}", slot.name, method_in_words(method));
    let mappings: Vec<_> = file.iter().map(|file| Arc::clone(file.mapping())).collect();
    // What keeps the file open from here on are the mappings alone.
    drop(file);
    Ok(device.remove(mappings, method, &mut Watch { name: &slot.name, frames: slot.frames, waits }))
}

fn method_in_words(method: Method) -> String {
    match method {
        Method::Ranged => "by range: one shootdown for everything".into(),
        Method::PerFrame(frames) => format!("frame by frame for {} frames, the rest by range", frames.nr_pages()),
    }
}

/// The device-dax file of slot `at`.
///
/// # Errors
/// As for [`remove`]; [`DaxError::NotSupported`] where the device came up without DAX.
pub fn file(at: usize) -> Result<Arc<DevDax<KernelMachine>>, DeviceError> {
    let (_, slot) = devices_and_slot(at)?;
    slot.bay.with(|attached| attached.file.clone())?.ok_or(DeviceError::Dax(DaxError::NotSupported))
}

/// The block path of slot `at`.
///
/// # Errors
/// As for [`remove`].
pub fn block(at: usize) -> Result<Arc<nvdimm::pmem::block::BlockDevice<KernelMachine>>, DeviceError> {
    let (_, slot) = devices_and_slot(at)?;
    Ok(slot.bay.with(|attached| Arc::clone(attached.device.block()))?)
}

/// Says every step of a removal on the console, as it ends.
struct Watch<'a> {
    name: &'a str,
    frames: PfnRange,
    waits: &'a mut dyn FnMut(&Waiting),
}

impl RemovalWatch<KernelMachine> for Watch<'_> {
    fn waiting(&mut self, waiting: &Waiting) {
        log::info!("{}: {waiting}", self.name);
        let now = mm().machine.now_ns();
        mm().pins.for_each(&mut |record| {
            if record.holds_any(self.frames) {
                log::info!("{}: waits for {}", self.name, record.describe(now));
            }
        });
        (self.waits)(waiting);
    }
    fn observe(&mut self, record: &StepRecord) {
        log::info!("{}: {record}", self.name);
        crate::report!(
            "removal device={} step={} n={} of={} ns={} problem={}{}",
            self.name,
            record.step,
            record.step.number(),
            dax::removal::Step::ALL.len(),
            record.ns,
            u8::from(record.problem.is_some()),
            FactWords(record),
        );
    }
    fn instructions(&mut self) -> u64 {
        time::cost()
    }
}

/// The facts of a step as ` key=value` words.
struct FactWords<'a>(&'a StepRecord);

impl fmt::Display for FactWords<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.facts.iter().try_for_each(|(name, value)| write!(f, " {name}={value}"))
    }
}

/// This kernel, as the pmem driver sees it.
struct Host;

impl PmemHost for Host {
    fn map(&self, range: PfnRange) -> Result<Arc<dyn PmemMemory>, MapFailed> {
        let leaves = paging::map_device(range).map_err(|error| match error {
            paging::MapError::OutOfMemory => MapFailed::OutOfMemory,
            _ => MapFailed::NoRoom,
        })?;
        mm().ledger.charge(Kind::DirectMapLeaves, leaves as i64);
        Ok(Arc::new(Window { frames: range }))
    }

    fn unmap(&self, range: PfnRange) {
        let leaves = paging::unmap_device(range);
        mm().ledger.charge(Kind::DirectMapLeaves, -(leaves as i64));
    }
}

/// A mapped range. The driver uses it only between `map` and `unmap`.
struct Window {
    frames: PfnRange,
}

impl Window {
    /// The bytes from `offset_bytes` on.
    ///
    /// # Panics
    /// Where they are not all inside the range: the driver has checked that.
    fn pointer(&self, offset_bytes: u64, len: usize) -> *mut u8 {
        let end = offset_bytes.checked_add(len as u64);
        assert!(
            end.is_some_and(|end| end <= self.frames.nr_pages() * PAGE_SIZE),
            "pmem access of {len} bytes at {offset_bytes:#x} outside the device"
        );
        let base: *mut u8 = layout::direct_ptr(self.frames.start().addr());
        base.wrapping_add(offset_bytes as usize)
    }
}

impl PmemMemory for Window {
    fn read(&self, offset_bytes: u64, into: &mut [u8]) -> Result<(), MediaError> {
        let from = self.pointer(offset_bytes, into.len());
        // SAFETY: the driver uses a window only while it is mapped, and `pointer` has checked the bounds. Other CPUs
        // and tasks may store there meanwhile, as to any shared memory: `copy` reads bytes whatever they are, and
        // `into` is ours alone.
        unsafe { core::ptr::copy(from, into.as_mut_ptr(), into.len()) };
        Ok(())
    }

    fn write(&self, offset_bytes: u64, from: &[u8]) -> Result<(), MediaError> {
        let to = self.pointer(offset_bytes, from.len());
        // SAFETY: as for `read`; device memory belongs to no Rust object.
        unsafe { core::ptr::copy(from.as_ptr(), to, from.len()) };
        // SAFETY: the bytes were written just now and are mapped. Only their addresses are used.
        arch::cache::write_back(unsafe { core::slice::from_raw_parts(to, from.len()) });
        Ok(())
    }

    fn fence(&self) {
        arch::cache::fence();
    }
}

/// Reads `len` bytes at `offset_bytes` of slot `at` through the block path.
///
/// # Errors
/// One clear line.
pub fn read_bytes(at: usize, offset_bytes: u64, len: usize) -> Result<Vec<u8>, String> {
    let (block, first, skip, mut sectors) = sectors_around(at, offset_bytes, len)?;
    block.read(first, &mut sectors).map_err(|error| format!("{error}"))?;
    Ok(sectors[skip..][..len].to_vec())
}

/// Writes bytes at `offset_bytes` of slot `at` through the block path. Durable when it returns.
///
/// # Errors
/// One clear line.
pub fn write_bytes(at: usize, offset_bytes: u64, bytes: &[u8]) -> Result<(), String> {
    let (block, first, skip, mut sectors) = sectors_around(at, offset_bytes, bytes.len())?;
    block.read(first, &mut sectors).map_err(|error| format!("{error}"))?;
    sectors[skip..][..bytes.len()].copy_from_slice(bytes);
    block.write(first, &sectors).map_err(|error| format!("{error}"))
}

type Sectors = (Arc<nvdimm::pmem::block::BlockDevice<KernelMachine>>, u64, usize, Vec<u8>);

/// The block device, the first sector of a byte range, the bytes before the range in it, and room for all of them.
fn sectors_around(at: usize, offset_bytes: u64, len: usize) -> Result<Sectors, String> {
    const SECTOR: u64 = nvdimm::pmem::block::SECTOR_BYTES;
    const MOST: usize = 64 << 10;
    if len == 0 || len > MOST {
        return Err(format!("a length of {len} bytes; expected 1 to {MOST}"));
    }
    let block = block(at).map_err(|error| format!("{error}"))?;
    let skip = (offset_bytes % SECTOR) as usize;
    let bytes = (skip + len).next_multiple_of(SECTOR as usize);
    Ok((block, offset_bytes / SECTOR, skip, vec![0; bytes]))
}
