//! A task's memory for a device: for one transfer, or registered.

use alloc::boxed::Box;
use alloc::sync::{Arc, Weak};
use core::panic::Location;

use iommu::domain::Mapping;
use iommu::entry::Rights;
use mm::addr::{PfnRange, VirtAddr};
use mm::machine::Machine;
use mm::pins::{PinnedPages, Word};
use mm::region::device::{CutOff, DeviceAccess};
use mm::region::gate::By;
use mm::region::{MemoryRegion, RegionOwner, RegionRef, Terms};
use mm::space::{Access, AddressSpace};

use super::devices::{DmaDevice, TRANSIENT};
use super::past::{self, Registered};
use super::{DmaError, DmaTarget, faults};
use crate::console::report;
use crate::mem::machine::{KernelMachine, mm};

/// A registration that a device uses. Dropping it gives the pages back, once the device is cut off.
#[must_use = "the registration is given back when this is dropped"]
pub struct DmaRegion {
    region: MemoryRegion<KernelMachine>,
    reference: RegionRef<KernelMachine>,
    mapping: Arc<Mapping>,
}

/// What the registration has of the device.
struct Translations {
    device: Arc<DmaDevice>,
    mapping: Arc<Mapping>,
    registered: Registered,
}

impl DeviceAccess for Translations {
    fn revoke(self: Box<Self>, by: By) -> CutOff {
        let Self { device, mapping, registered } = *self;
        let began = mm().machine.now_ns();
        let done = device.revoke(&mapping);
        let now = mm().machine.now_ns();
        let ns = now.saturating_sub(began);
        if faults::speaks() {
            let (iova, bytes) = (mapping.address(), mapping.bytes());
            let cause = match by {
                By::Kernel => "revoked",
                By::Owner => "given-back",
            };
            report!(
                "dma_revoked device={} key={}{} iova={iova:#x} bytes={bytes} cause={cause} leaves={} tables={} commands={} at_ns={now} ns={ns}",
                Word(device.name()),
                registered.key,
                past::Fields(Some(&registered)),
                done.leaves,
                done.tables,
                done.commands,
            );
        }
        past::remember(registered);
        CutOff { ranges: done.ranges, leaves: done.leaves, commands: done.commands, ns }
    }
}

impl DmaDevice {
    /// Registers `nr_pages` pages from `start` on, and maps them for this device until they are given back or revoked. The
    /// device may write where `terms` say so.
    ///
    /// # Errors
    /// See [`DmaError`]; nothing is registered or mapped then.
    #[track_caller]
    pub fn register(
        self: &Arc<Self>,
        space: &AddressSpace<KernelMachine>,
        start: VirtAddr,
        nr_pages: u64,
        terms: &Terms<'_>,
        owner: Weak<dyn RegionOwner>,
    ) -> Result<DmaRegion, DmaError> {
        let region = MemoryRegion::register(space, start, nr_pages, terms, owner)?;
        let (key, mut mapped) = (region.key(), None);
        let registered = Registered { key, owner: Arc::clone(space.shared_name()), place: Location::caller() };
        region.admit(|frames, writable| {
            let rights = if writable { Rights::READ | Rights::WRITE } else { Rights::READ };
            let mapping = Arc::new(self.map(frames, rights, key)?);
            mapped = Some(Arc::clone(&mapping));
            // Nobody can end it before this is over: so it is told before its end is.
            self.say_mapped(&registered, &mapping);
            let translations = Translations { device: Arc::clone(self), mapping, registered };
            Ok::<Box<dyn DeviceAccess>, DmaError>(Box::new(translations))
        })?;
        let mapping = mapped.expect("a device that was let in has its mapping");
        Ok(DmaRegion { reference: region.reference(), region, mapping })
    }

    fn say_mapped(&self, registered: &Registered, mapping: &Mapping) {
        if faults::speaks() {
            report!(
                "dma_mapped device={} key={}{} iova={:#x} bytes={} rights={} at_ns={}",
                Word(self.name()),
                registered.key,
                past::Fields(Some(registered)),
                mapping.address(),
                mapping.bytes(),
                mapping.rights(),
                mm().machine.now_ns(),
            );
        }
    }

    /// Maps pinned pages for one transfer. The device may `write` to them, or only read.
    ///
    /// # Errors
    /// [`DmaError::Map`]; the pins are given back then.
    pub fn map_pins(self: &Arc<Self>, pins: PinnedPages<KernelMachine>, write: bool) -> Result<DmaPins, DmaError> {
        let rights = if write { Rights::READ | Rights::WRITE } else { Rights::READ };
        let mapping = self.map(pins.frames(), rights, TRANSIENT)?;
        Ok(DmaPins { device: Arc::clone(self), mapping, pins })
    }
}

impl DmaRegion {
    /// The registration's number.
    pub fn key(&self) -> u64 {
        self.region.key()
    }
    /// For what works on the owner's behalf without a device.
    pub fn reference(&self) -> RegionRef<KernelMachine> {
        self.region.reference()
    }
}

impl DmaTarget for DmaRegion {
    fn iova(&self) -> u64 {
        self.mapping.address()
    }
    fn len_bytes(&self) -> u64 {
        self.mapping.bytes()
    }
    fn check(&self, access: Access) -> Result<(), DmaError> {
        Ok(self.reference.check(access)?)
    }
    fn frames(&self) -> &[PfnRange] {
        self.reference.frames()
    }
}

/// Pins that a device uses for one transfer. Dropping it cuts the device off, and gives them back then.
#[must_use = "the device is cut off when this is dropped"]
pub struct DmaPins {
    device: Arc<DmaDevice>,
    mapping: Mapping,
    /// Dropped after the device was cut off.
    pins: PinnedPages<KernelMachine>,
}

impl DmaTarget for DmaPins {
    fn iova(&self) -> u64 {
        self.mapping.address()
    }
    fn len_bytes(&self) -> u64 {
        self.mapping.bytes()
    }
    fn check(&self, access: Access) -> Result<(), DmaError> {
        // Nobody takes them away before the transfer's end.
        if access == Access::Write && !self.mapping.rights().contains(Rights::WRITE) {
            return Err(DmaError::ReadOnly);
        }
        Ok(())
    }
    fn frames(&self) -> &[PfnRange] {
        self.pins.frames()
    }
}

impl Drop for DmaPins {
    fn drop(&mut self) {
        self.device.revoke(&self.mapping);
    }
}
