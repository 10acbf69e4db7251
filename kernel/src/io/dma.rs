//! What a device may reach of memory, and what a driver is handed of it.
//!
//! Nothing is translated here: an I/O virtual address is the physical one.

use alloc::string::String;
use alloc::sync::{Arc, Weak};
use core::fmt;

use mm::addr::{PAGE_SIZE, Pfn, PfnRange, VirtAddr};
use mm::pins::PinnedPages;
use mm::region::{MemoryRegion, RegionError, RegionOwner, RegionRef, Terms, UseError};
use mm::space::{Access, AddressSpace};
use virtio_drivers::transport::pci::bus::DeviceFunction;

use crate::mem::machine::KernelMachine;
use crate::mem::{layout, memory};

/// A PCI function that does DMA.
pub struct DmaDevice {
    name: String,
    source: DeviceFunction,
}

/// Why a function cannot do DMA.
#[derive(Clone, Copy, Debug)]
pub struct NoDma;

impl fmt::Display for NoDma {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("there is no IOMMU")
    }
}

/// Why a transfer failed or a target cannot be had.
#[derive(Clone, Copy, Debug)]
pub enum DmaError {
    /// The registration is none.
    Region(RegionError),
    /// It was revoked, or given back.
    Use(UseError),
    /// Its frames are not in a row.
    Scattered,
}

impl fmt::Display for DmaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Region(error) => write!(f, "{error}"),
            Self::Use(error) => write!(f, "{error}"),
            Self::Scattered => f.write_str("its frames are not in a row"),
        }
    }
}

/// What a driver is handed for a transfer: an I/O virtual address range, nothing else.
pub trait DmaTarget: Send + Sync {
    /// Where it begins.
    fn iova(&self) -> u64;
    /// How many bytes it has.
    fn len_bytes(&self) -> u64;
    /// Is it still there?
    ///
    /// # Errors
    /// [`DmaError`].
    fn check(&self) -> Result<(), DmaError>;
}

/// RAM of a driver's own.
pub struct OwnMemory {
    pfn: Pfn,
    order: u32,
}

impl OwnMemory {
    /// Where the device has it.
    pub fn iova(&self) -> u64 {
        self.pfn.addr().as_u64()
    }
    /// Where the kernel has it.
    pub fn ptr(&self) -> *mut u8 {
        layout::direct_ptr(self.pfn.addr())
    }
    /// How many bytes.
    pub fn len_bytes(&self) -> u64 {
        PAGE_SIZE << self.order
    }
}

impl Drop for OwnMemory {
    fn drop(&mut self) {
        memory::free(self.pfn, self.order);
    }
}

/// A registration.
pub struct DmaRegion {
    _region: MemoryRegion<KernelMachine>,
    reference: RegionRef<KernelMachine>,
    frames: PfnRange,
}

impl DmaTarget for DmaRegion {
    fn iova(&self) -> u64 {
        self.frames.start().addr().as_u64()
    }
    fn len_bytes(&self) -> u64 {
        self.frames.nr_pages() * PAGE_SIZE
    }
    fn check(&self) -> Result<(), DmaError> {
        self.reference.check(Access::Read).map_err(DmaError::Use)
    }
}

/// Pins for one transfer.
pub struct DmaPins(PinnedPages<KernelMachine>);

impl DmaTarget for DmaPins {
    fn iova(&self) -> u64 {
        self.0.frames()[0].start().addr().as_u64()
    }
    fn len_bytes(&self) -> u64 {
        self.0.frames()[0].nr_pages() * PAGE_SIZE
    }
    fn check(&self) -> Result<(), DmaError> {
        Ok(())
    }
}

/// Since when faults count.
pub struct Watch;

impl Watch {
    /// # Errors
    /// [`DmaError`].
    pub fn end(self, target: &dyn DmaTarget) -> Result<(), DmaError> {
        target.check()
    }
}

impl DmaDevice {
    /// # Errors
    /// [`NoDma`].
    pub fn attach(name: &str, function: DeviceFunction) -> Result<Arc<Self>, NoDma> {
        Ok(Arc::new(Self { name: name.into(), source: function }))
    }
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }
    /// Who it is on the bus.
    pub fn source(&self) -> DeviceFunction {
        self.source
    }
    /// RAM of the driver's own.
    pub fn own_memory(self: &Arc<Self>, order: u32) -> Option<OwnMemory> {
        memory::alloc(order).map(|pfn| OwnMemory { pfn, order })
    }
    /// # Errors
    /// [`DmaError`].
    #[track_caller]
    pub fn register(
        self: &Arc<Self>,
        space: &AddressSpace<KernelMachine>,
        start: VirtAddr,
        nr_pages: u64,
        terms: &Terms<'_>,
        owner: Weak<dyn RegionOwner>,
    ) -> Result<DmaRegion, DmaError> {
        let region = MemoryRegion::register(space, start, nr_pages, terms, owner).map_err(DmaError::Region)?;
        let reference = region.reference();
        let first = reference.access(Access::Read).map_err(DmaError::Use)?.frame(0).ok_or(DmaError::Scattered)?;
        let frames = PfnRange::new(first, nr_pages).ok_or(DmaError::Scattered)?;
        Ok(DmaRegion { _region: region, reference, frames })
    }
    /// # Errors
    /// [`DmaError`].
    pub fn map_pins(self: &Arc<Self>, pins: PinnedPages<KernelMachine>, _write: bool) -> Result<DmaPins, DmaError> {
        if pins.frames().len() != 1 { Err(DmaError::Scattered) } else { Ok(DmaPins(pins)) }
    }
    /// Begins to watch.
    pub fn watch(&self) -> Watch {
        Watch
    }
}
