//! The driver of the IOMMU: Intel VT-d, as QEMU's `intel-iommu` has it.
//!
//! Tables, ranges and their revocation are the package `iommu`'s; here are the registers, the invalidation queue's memory,
//! and which unit serves which function. A unit is switched on with no function in its root table: what no driver has
//! given a domain is blocked from then on, whatever the firmware left running (D1).

mod queue;
mod registers;

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering};

use iommu::caps::{Capabilities, Levels, Unusable};
use iommu::command::{Command, Context, Iotlb};
use iommu::contexts::{AttachError, Contexts};
use iommu::dmar::{self, Dmar};
use iommu::domain::Domain;
use iommu::fault::{Fault, SourceId};
use iommu::hardware::Hardware;
use iommu::queue::QueueError;
use iommu::records;
use mm::addr::{ENTRIES, Pfn};
use mm::machine::Machine;
use spin::Once;
use virtio_drivers::transport::pci::bus::DeviceFunction;

use self::queue::Queue;
use self::registers::{Command as Switch, REGISTER_BYTES, UnitRegisters};
use crate::console::report;
use crate::cpu::ipi::VECTOR_IOMMU;
use crate::cpu::lock::IrqLock;
use crate::io::pci::{self, Registers};
use crate::mem::machine::mm;
use crate::mem::{books, memory, paging};

/// Why a unit is not used.
#[derive(Clone, Copy, Debug)]
enum Refused {
    /// It lacks something.
    Unusable(Unusable),
    /// Its registers cannot be mapped.
    Registers(paging::MapError),
    /// There is no memory for its tables.
    OutOfMemory,
    /// It does not acknowledge what it is told.
    Silent,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unusable(error) => error.fmt(f),
            Self::Registers(error) => write!(f, "its registers cannot be mapped: {error}"),
            Self::OutOfMemory => f.write_str("there is no memory for its tables"),
            Self::Silent => f.write_str("it does not acknowledge commands"),
        }
    }
}

/// What the package `iommu` needs of a unit: memory for tables, and the way to it.
pub struct UnitHardware {
    registers: UnitRegisters,
    queue: Queue,
    /// The unit looks into the CPU's cache.
    coherent: bool,
}

/// Why a function has no domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoDomain {
    /// All numbers are taken, of which there are so many.
    NoNumber(u32),
    /// There is no memory for its root table.
    NoMemory,
    /// It was not put there.
    Attach(AttachError),
}

impl fmt::Display for NoDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoNumber(nr) => write!(f, "all {nr} domains of the IOMMU are taken"),
            Self::NoMemory => f.write_str("there is no memory for its domain's tables"),
            Self::Attach(error) => error.fmt(f),
        }
    }
}

/// A unit that translates.
pub struct Unit {
    hardware: Arc<UnitHardware>,
    capabilities: Capabilities,
    levels: Levels,
    /// Which function is in which domain.
    contexts: Contexts<UnitHardware>,
    next_domain: AtomicU32,
    /// Fault records are read by one CPU at a time.
    faults: IrqLock<()>,
}

/// The units that translate, and the table that says whom they serve.
struct Units {
    dmar: Dmar,
    /// By the number of the unit in the table; `None` where it is not used.
    units: Vec<Option<Arc<Unit>>>,
}

static UNITS: Once<Units> = Once::new();
/// Why there is none that translates, in words.
static WHY_NONE: Once<String> = Once::new();

/// Reads the DMAR table, and switches every unit on that can reach `needed_bits` of physical addresses. Called once, at
/// boot, before a device does DMA for us.
pub fn start(table: Option<&[u8]>, needed_bits: u8) {
    let none = |why: String| _ = WHY_NONE.call_once(|| why);
    let Some(table) = table else {
        none("there is no IOMMU".into());
        log::info!(target: "iommu", "there is none: no device does DMA to persistent memory");
        return;
    };
    let dmar = match dmar::parse(table) {
        Ok(dmar) => dmar,
        Err(error) => {
            none(format!("there is no IOMMU that can be used (DMAR: {error})"));
            return log::warn!(target: "firmware", "DMAR: {error}; no device does DMA to persistent memory");
        }
    };
    for notice in &dmar.notices {
        log::warn!(target: "firmware", "{notice}");
    }
    UNITS.call_once(|| {
        let units = dmar.units.iter().enumerate().map(|(at, unit)| match Unit::start(unit.registers.as_u64(), dmar.host_address_width, needed_bits) {
            Ok(started) => {
                started.describe(at, unit.registers.as_u64());
                Some(Arc::new(started))
            }
            Err(reason) => {
                let registers = unit.registers;
                // The first one's reason stands for all.
                none(format!("there is no IOMMU that can be used ({reason})"));
                log::warn!(target: "iommu", "unit {at} at {registers}: {reason}; it is not used, and no device behind it");
                None
            }
        });
        let units = units.collect();
        Units { dmar, units }
    });
}

/// The units that translate.
pub fn units() -> impl Iterator<Item = &'static Arc<Unit>> {
    UNITS.get().into_iter().flat_map(|units| units.units.iter().flatten())
}

/// Why no unit translates, in words; `None` where one does.
pub fn why_none() -> Option<&'static str> {
    match units().next() {
        Some(_) => None,
        None => Some(WHY_NONE.get().map_or("there is no IOMMU", String::as_str)),
    }
}

/// The unit that translates for `function`.
pub fn unit_of(function: DeviceFunction) -> Option<Arc<Unit>> {
    let Units { dmar, units } = UNITS.get()?;
    let named = dmar.unit_behind(0, source_of(function), &pci::behind)?;
    let at = dmar.units.iter().position(|unit| core::ptr::eq(unit, named))?;
    units.get(at)?.clone()
}

/// The identifier that a function's requests carry.
pub fn source_of(function: DeviceFunction) -> SourceId {
    let DeviceFunction { bus, device, function } = function;
    SourceId { bus, device, function }
}

impl Unit {
    fn start(registers: u64, host_bits: u8, needed_bits: u8) -> Result<Self, Refused> {
        let map = |len_bytes| Registers::map(registers, len_bytes).map(UnitRegisters::new).map_err(Refused::Registers);
        let first = map(REGISTER_BYTES)?;
        let (version, cap, ecap) = first.capabilities();
        let capabilities = Capabilities::decode(cap, ecap, version).with_host_bits(host_bits);
        let records_end = u64::from(capabilities.fault_offset) + 16 * u64::from(capabilities.nr_fault_records);
        let registers = if records_end > REGISTER_BYTES { map(records_end)? } else { first };
        let levels = capabilities.check(needed_bits).map_err(Refused::Unusable)?;
        let queue = Queue::new().ok_or(Refused::OutOfMemory)?;
        let hardware = Arc::new(UnitHardware { registers, queue, coherent: capabilities.coherent });
        let contexts = Contexts::new(Arc::clone(&hardware), capabilities.caching_mode);
        let contexts = contexts.ok_or(Refused::OutOfMemory)?;
        let (next_domain, faults) = (AtomicU32::new(1), IrqLock::new(()));
        let unit = Self { hardware, capabilities, levels, contexts, next_domain, faults };
        unit.switch_on()?;
        Ok(unit)
    }

    /// First the tables, then what reads them.
    fn switch_on(&self) -> Result<(), Refused> {
        let acknowledged = |yes: bool| if yes { Ok(()) } else { Err(Refused::Silent) };
        let registers = &self.hardware.registers;
        acknowledged(registers.quiesce())?;
        registers.mask_faults(true);
        // Of before; what still comes is told when the interrupt is switched on.
        self.take_faults(&mut |_| ());
        registers.set_queue(self.hardware.queue.page());
        acknowledged(registers.command(Switch::Queue))?;
        registers.set_root(self.contexts.root());
        acknowledged(registers.command(Switch::SetRoot))?;
        // What the unit may have kept from before (§6.5.5).
        self.hardware
            .invalidate(&[Command::Context(Context::Global), Command::Iotlb(Iotlb::Global)])
            .map_err(|_| Refused::Silent)?;
        registers.route_faults(arch::apic::id(), VECTOR_IOMMU);
        acknowledged(registers.command(Switch::Translate))
    }

    fn describe(&self, at: usize, registers: u64) {
        let Self { capabilities, levels, .. } = self;
        let bits = capabilities.address_bits;
        let leaves = match (capabilities.large_2m, capabilities.large_1g) {
            (true, true) => "4K,2M,1G",
            (true, false) => "4K,2M",
            _ => "4K",
        };
        log::info!(
            target: "iommu",
            "unit {at} at {registers:#x} translates: {bits} bits, {} levels, leaves {leaves}, {} domains, {} fault records",
            levels.count(),
            capabilities.nr_domains,
            capabilities.nr_fault_records,
        );
        report!(
            "iommu unit={at} registers={registers:#x} bits={bits} levels={} leaves={leaves} domains={} max_mask={} fault_records={} coherent={}",
            levels.count(),
            capabilities.nr_domains,
            capabilities.max_mask,
            capabilities.nr_fault_records,
            u8::from(capabilities.coherent),
        );
    }

    /// What it can do.
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }
    /// Switches the interrupt for faults.
    pub fn mask_faults(&self, masked: bool) {
        self.hardware.registers.mask_faults(masked);
    }

    /// Puts `source` into a new domain, in which nothing is mapped. One caller at a time.
    ///
    /// # Errors
    /// One clear line.
    pub fn new_domain(&self, source: SourceId) -> Result<Arc<Domain<UnitHardware>>, NoDomain> {
        let id = self.next_domain.load(Ordering::Relaxed);
        let id = u16::try_from(id).ok().filter(|&id| u32::from(id) < self.capabilities.nr_domains);
        let id = id.ok_or(NoDomain::NoNumber(self.capabilities.nr_domains))?;
        let domain = Domain::new(Arc::clone(&self.hardware), id, self.levels, &self.capabilities);
        let domain = domain.ok_or(NoDomain::NoMemory)?;
        self.contexts.attach(source, &domain).map_err(NoDomain::Attach)?;
        self.next_domain.store(u32::from(id) + 1, Ordering::Relaxed);
        Ok(domain)
    }

    /// Calls `each` with every fault that was recorded, and `None` where some were lost, and frees the records; nobody else
    /// gets past here before what was found is counted. `false`: others have come all the while, and there are more. From an
    /// interrupt handler, too.
    pub fn take_faults(&self, each: &mut dyn FnMut(Option<Fault>)) -> bool {
        let _one_reader = self.faults.lock();
        records::take_all(self, each)
    }
}

impl records::Registers for Unit {
    fn status(&self) -> u32 {
        self.hardware.registers.fault_status()
    }
    fn clear_status(&self, bits: u32) {
        self.hardware.registers.clear_fault_status(bits);
    }
    fn nr_records(&self) -> u64 {
        self.capabilities.nr_fault_records.into()
    }
    fn take(&self, nr: u64) -> Option<[u64; 2]> {
        self.hardware.registers.take_fault(u64::from(self.capabilities.fault_offset) + nr * 16)
    }
}

/// Writes entries back for a unit that does not look into the CPU's cache.
fn write_back(table: Pfn, first: usize, count: usize) {
    let base: *const u8 = crate::mem::layout::direct_ptr(table.addr());
    // SAFETY: a table frame in the direct map; only addresses are used.
    arch::cache::write_back(unsafe { core::slice::from_raw_parts(base.add(first * 8), count * 8) });
    arch::cache::fence();
}

impl Hardware for UnitHardware {
    fn alloc_table(&self) -> Option<Pfn> {
        // None of those that are put by: whoever maps can be refused.
        let table = if memory::is_short() { None } else { memory::alloc_zeroed() }?;
        books::set_apart(1);
        if !self.coherent {
            write_back(table, 0, ENTRIES);
        }
        Some(table)
    }
    fn free_table(&self, table: Pfn) {
        books::set_apart(-1);
        memory::free(table, 0);
    }
    fn entry(&self, table: Pfn, index: usize) -> &core::sync::atomic::AtomicU64 {
        paging::entry(table, index)
    }
    fn write_back(&self, table: Pfn, first: usize, count: usize) {
        if !self.coherent {
            write_back(table, first, count);
        }
    }
    fn invalidate(&self, commands: &[Command]) -> Result<(), QueueError> {
        self.queue.run(&self.registers, commands)
    }
    fn relax(&self) {
        mm().machine.relax();
    }
}
