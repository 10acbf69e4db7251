//! PCI: configuration space through the two legacy ports, a walk over the buses, and the registers behind a base address
//! register (BAR).
//!
//! The ports reach the first 256 bytes of each function's space, which is all that the drivers need; the memory-mapped
//! way (ECAM) would only add the rest.

use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

use arch::port;
use mm::addr::{PAGE_SIZE, PhysAddr};
use nvdimm::nfit::ByteRange;
use virtio_drivers::transport::pci::bus::{
    BarInfo, Command, ConfigurationAccess, DeviceFunction, DeviceFunctionInfo, HeaderType, PciRoot,
};

use crate::cpu::lock::IrqLock;
use crate::mem::paging::{self, MapError};

/// Which function and register the data port means.
const ADDRESS: u16 = 0xcf8;
/// The register's contents.
const DATA: u16 = 0xcfc;
/// Cache line size, latency, header type, self-test.
const HEADER: u8 = 0x0c;
/// Of a function 0: there are others.
const MULTIFUNCTION: u32 = 1 << 23;
/// Of a bridge: primary, secondary and subordinate bus.
const BUSES: u8 = 0x18;
/// Of a bridge: the windows that it hands on.
const NOT_PREFETCHABLE: u8 = 0x20;
const PREFETCHABLE: u8 = 0x24;
const PREFETCHABLE_BASE_UPPER: u8 = 0x28;
const PREFETCHABLE_LIMIT_UPPER: u8 = 0x2c;

/// An access is a store to one port and one of the other: one CPU at a time.
static PORTS: IrqLock<()> = IrqLock::new(());

/// Configuration space by ports.
#[derive(Debug)]
pub struct Ports;

fn address(function: DeviceFunction, register: u8) -> u32 {
    let DeviceFunction { bus, device, function } = function;
    let place = u32::from(bus) << 16 | u32::from(device & 31) << 11 | u32::from(function & 7) << 8;
    1 << 31 | place | u32::from(register & 0xfc)
}

impl ConfigurationAccess for Ports {
    fn read_word(&self, function: DeviceFunction, register: u8) -> u32 {
        let _one_access = PORTS.lock();
        // SAFETY: the two ports belong to the host bridge, or to nothing (all ones are read then). Reading
        // configuration space touches no memory.
        unsafe {
            port::write_u32(ADDRESS, address(function, register));
            port::read_u32(DATA)
        }
    }

    fn write_word(&mut self, function: DeviceFunction, register: u8, value: u32) {
        let _one_access = PORTS.lock();
        // SAFETY: as above. What a store does to the function is the business of its driver, who holds `&mut`.
        unsafe {
            port::write_u32(ADDRESS, address(function, register));
            port::write_u32(DATA, value);
        }
    }

    unsafe fn unsafe_clone(&self) -> Self {
        Self
    }
}

/// Every function with this vendor and device number, in the order of their addresses.
pub fn find(vendor: u16, device: u16) -> Vec<DeviceFunction> {
    find_by(|info| (info.vendor_id, info.device_id) == (vendor, device))
}

/// Every function of this class: class, subclass, programming interface.
pub fn find_class(class: (u8, u8, u8)) -> Vec<DeviceFunction> {
    find_by(|info| (info.class, info.subclass, info.prog_if) == class)
}

fn find_by(is_meant: impl Fn(&DeviceFunctionInfo) -> bool) -> Vec<DeviceFunction> {
    let mut found = Vec::new();
    for_each(|function, info| {
        if is_meant(info) {
            found.push(function);
        }
    });
    found.sort_unstable();
    found
}

/// The physical addresses that functions and bridges answer at, as the firmware has set them. Called at boot, while no
/// driver uses a function: each one answers nowhere while it is asked how much it takes.
pub fn windows() -> Vec<ByteRange> {
    let mut windows = Vec::new();
    for_each(|function, info| match info.header_type {
        HeaderType::Standard => {
            for bar in PciRoot::new(Ports).bars(function).into_iter().flatten().flatten() {
                if let BarInfo::Memory { address, size, .. } = bar
                    && address != 0
                {
                    windows.push(ByteRange { base: address, len_bytes: size });
                }
            }
        }
        HeaderType::PciPciBridge => windows.extend(bridge_windows(function)),
        _ => {}
    });
    windows
}

/// Lets `function` answer at its BARs and do DMA; its interrupt line stays silent. The firmware enables only what it uses
/// itself.
pub fn enable(function: DeviceFunction) {
    let wanted = Command::MEMORY_SPACE | Command::BUS_MASTER | Command::INTERRUPT_DISABLE;
    PciRoot::new(Ports).set_command(function, wanted);
}

/// Lets `function` answer at its BARs alone: it does no DMA, and its interrupt line stays silent.
pub fn enable_registers(function: DeviceFunction) {
    PciRoot::new(Ports).set_command(function, Command::MEMORY_SPACE | Command::INTERRUPT_DISABLE);
}

/// Takes from `function` the right to do DMA: its transfers end at the host bridge.
pub fn stop_dma(function: DeviceFunction) {
    let mut root = PciRoot::new(Ports);
    let (_, command) = root.get_status_command(function);
    root.set_command(function, command & !Command::BUS_MASTER);
}

/// Why a BAR cannot be used.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum BarError {
    /// It is not there, or it is for ports.
    NotMemory,
    /// The firmware has given it no address.
    NoAddress,
    /// It has so many bytes, and so many are needed.
    TooSmall(u64, u64),
    /// The kernel has no memory for the tables.
    Map(MapError),
}

impl fmt::Display for BarError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotMemory => f.write_str("is not for memory"),
            Self::NoAddress => f.write_str("has no address from the firmware"),
            Self::TooSmall(found, needed) => write!(f, "has {found} bytes, {needed} are needed"),
            Self::Map(error) => write!(f, "cannot be mapped: {error}"),
        }
    }
}

/// A device's registers, mapped uncached for ever.
#[derive(Clone, Copy, Debug)]
pub struct Registers {
    base: u64,
    len_bytes: u64,
}

/// Maps the first `len_bytes` behind BAR `bar` of `function`, which no driver uses yet: it answers nowhere while it is
/// asked how much it takes.
///
/// # Errors
/// [`BarError`].
pub fn map_bar(function: DeviceFunction, bar: u8, len_bytes: u64) -> Result<Registers, BarError> {
    let info = PciRoot::new(Ports).bar_info(function, bar).ok().flatten();
    let Some(BarInfo::Memory { address, size, .. }) = info else { return Err(BarError::NotMemory) };
    if address == 0 {
        return Err(BarError::NoAddress);
    }
    if size < len_bytes {
        return Err(BarError::TooSmall(size, len_bytes));
    }
    Registers::map(address, len_bytes).map_err(BarError::Map)
}

impl Registers {
    /// Maps the `len_bytes` from physical `address` on, where the firmware's tables or a BAR say that registers are.
    ///
    /// # Errors
    /// [`MapError`].
    pub fn map(address: u64, len_bytes: u64) -> Result<Self, MapError> {
        let inside = address % PAGE_SIZE;
        let nr_pages = (inside + len_bytes).div_ceil(PAGE_SIZE);
        let mapped = paging::map_register_pages(PhysAddr::new(address - inside), nr_pages)?;
        Ok(Self { base: mapped.as_u64() + inside, len_bytes })
    }

    /// Where a register of `T` is.
    ///
    /// # Panics
    /// When it is beyond the end or not aligned: offsets are the driver's own.
    fn at<T>(&self, offset: u64) -> *mut T {
        let size = size_of::<T>() as u64;
        let inside = offset.checked_add(size).is_some_and(|end| end <= self.len_bytes);
        assert!(inside && (self.base + offset).is_multiple_of(size), "no register of {size} bytes at {offset:#x}");
        (self.base + offset) as *mut T
    }

    /// Reads 32 bits.
    pub fn read_u32(&self, offset: u64) -> u32 {
        // SAFETY: `at` is inside a mapping of registers that stays for ever. That a read has effects is the driver's business.
        unsafe { self.at::<u32>(offset).read_volatile() }
    }

    /// Reads 64 bits.
    pub fn read_u64(&self, offset: u64) -> u64 {
        // SAFETY: as above.
        unsafe { self.at::<u64>(offset).read_volatile() }
    }

    /// Writes 32 bits. What a device does to memory then is bounded by its translation domain, not by this.
    pub fn write_u32(&self, offset: u64, value: u32) {
        // SAFETY: as above.
        unsafe { self.at::<u32>(offset).write_volatile(value) }
    }

    /// Writes 64 bits.
    pub fn write_u64(&self, offset: u64, value: u64) {
        // SAFETY: as above.
        unsafe { self.at::<u64>(offset).write_volatile(value) }
    }
}

/// The buses behind a bridge, first and last; `None` for what is no bridge.
pub fn behind(source: iommu::source::SourceId) -> Option<(u8, u8)> {
    let iommu::source::SourceId { bus, device, function } = source;
    let function = DeviceFunction { bus, device, function };
    let kind = Ports.read_word(function, HEADER) >> 16 & 0x7f;
    let buses = Ports.read_word(function, BUSES);
    (kind == 1).then_some(((buses >> 8) as u8, (buses >> 16) as u8))
}

/// What a bridge hands on to the functions behind it: without and with prefetching (PCI-to-PCI Bridge Architecture
/// Specification 1.2, §3.2.5.8 to §3.2.5.10). Empty where its end is below its beginning.
fn bridge_windows(bridge: DeviceFunction) -> [ByteRange; 2] {
    // Base and last address in units of 1 MiB, twelve bits each in the upper part of a half word.
    let ends = |word: u32| (u64::from(word & 0xfff0) << 16, u64::from(word >> 16 & 0xfff0) << 16);
    let upper = |register| u64::from(Ports.read_word(bridge, register)) << 32;
    let word = Ports.read_word(bridge, PREFETCHABLE);
    let (plain, mut fetched) = (ends(Ports.read_word(bridge, NOT_PREFETCHABLE)), ends(word));
    if word & 0xf == 1 {
        fetched = (fetched.0 | upper(PREFETCHABLE_BASE_UPPER), fetched.1 | upper(PREFETCHABLE_LIMIT_UPPER));
    }
    [plain, fetched]
        .map(|(base, last)| ByteRange { base, len_bytes: last.saturating_add(1 << 20).saturating_sub(base) })
}

/// Calls `visit` with every function on all buses that the firmware has numbered.
fn for_each(mut visit: impl FnMut(DeviceFunction, &DeviceFunctionInfo)) {
    let root = PciRoot::new(Ports);
    let mut buses = vec![0_u8];
    let mut seen = [false; 256];
    while let Some(bus) = buses.pop() {
        // A bridge that leads back would never end.
        if core::mem::replace(&mut seen[usize::from(bus)], true) {
            continue;
        }
        for (function, info) in root.enumerate_bus(bus).filter(|(function, _)| exists(*function)) {
            if info.header_type == HeaderType::PciPciBridge {
                buses.push((Ports.read_word(function, BUSES) >> 8) as u8);
            }
            visit(function, &info);
        }
    }
}

/// A device with one function may answer for it under every number.
fn exists(function: DeviceFunction) -> bool {
    let first = DeviceFunction { function: 0, ..function };
    function.function == 0 || Ports.read_word(first, HEADER) & MULTIFUNCTION != 0
}
