//! PCI: configuration space through the two legacy ports, and a walk over the buses.
//!
//! The ports reach the first 256 bytes of each function's space, which is all that virtio needs; the memory-mapped way
//! (ECAM) would only add the rest.

use alloc::vec;
use alloc::vec::Vec;

use arch::port;
use nvdimm::nfit::ByteRange;
use virtio_drivers::transport::pci::bus::{
    BarInfo, ConfigurationAccess, DeviceFunction, DeviceFunctionInfo, HeaderType, PciRoot,
};

use crate::cpu::lock::IrqLock;

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
    let mut found = Vec::new();
    for_each(|function, info| {
        if (info.vendor_id, info.device_id) == (vendor, device) {
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
