//! PCI: configuration space through the two legacy ports, and a walk over the buses.
//!
//! The ports reach the first 256 bytes of each function's space, which is all that virtio needs; the memory-mapped way
//! (ECAM) would only add the rest.

use alloc::vec;
use alloc::vec::Vec;

use arch::port;
use virtio_drivers::transport::pci::bus::{ConfigurationAccess, DeviceFunction, HeaderType, PciRoot};

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

/// Every function with this vendor and device number, in the order of their addresses, on all buses that the firmware
/// has numbered.
pub fn find(vendor: u16, device: u16) -> Vec<DeviceFunction> {
    let root = PciRoot::new(Ports);
    let mut found = Vec::new();
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
            if (info.vendor_id, info.device_id) == (vendor, device) {
                found.push(function);
            }
        }
    }
    found.sort_unstable();
    found
}

/// A device with one function may answer for it under every number.
fn exists(function: DeviceFunction) -> bool {
    let first = DeviceFunction { function: 0, ..function };
    function.function == 0 || Ports.read_word(first, HEADER) & MULTIFUNCTION != 0
}
