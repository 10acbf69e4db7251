//! Devices with a domain of their own, and the memory that their drivers give them.

use alloc::string::String;
use alloc::sync::Arc;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use iommu::domain::{Domain, MapError, Mapping, Revocation};
use iommu::entry::Rights;
use iommu::fault::SourceId;
use iommu::queue::QueueError;
use mm::addr::{PAGE_SIZE, Pfn, PfnRange};
use mm::machine::Machine;
use mm::sync::SleepLock;
use mm::trace::{Kind, Mark};
use spin::Once;
use virtio_drivers::transport::pci::bus::DeviceFunction;

use super::DmaError;
use super::faults::{FaultLog, Watch};
use crate::cpu::lock::IrqLock;
use crate::cpu::trace;
use crate::io::pci;
use crate::io::vtd::{self, NoDomain, Unit, UnitHardware};
use crate::mem::machine::mm;
use crate::mem::{layout, memory};

/// More devices than this do no DMA.
pub const MAX_DEVICES: usize = 16;

/// Found by interrupt handlers, too: never moved, never taken away.
static DEVICES: [Once<Arc<DmaDevice>>; MAX_DEVICES] = [const { Once::new() }; MAX_DEVICES];
/// How many there are. Held while one is made.
static NR_DEVICES: SleepLock<usize> = SleepLock::new(0);

/// The devices, in the order of their making.
pub fn devices() -> impl Iterator<Item = &'static Arc<DmaDevice>> {
    DEVICES.iter().filter_map(Once::get)
}

/// Why a function does no DMA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoDma {
    /// There is no IOMMU that translates for it.
    NoUnit,
    /// It has no domain.
    NoDomain(NoDomain),
    /// There are [`MAX_DEVICES`] already.
    TooMany,
}

impl fmt::Display for NoDma {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoUnit => f.write_str("no IOMMU translates for it, and without one no device reaches memory"),
            Self::NoDomain(why) => why.fmt(f),
            Self::TooMany => write!(f, "{MAX_DEVICES} devices do DMA already, which is the most"),
        }
    }
}

/// A PCI function that does DMA, with a translation domain of its own. Never goes away.
pub struct DmaDevice {
    name: String,
    function: DeviceFunction,
    unit: Arc<Unit>,
    pub(super) domain: Arc<Domain<UnitHardware>>,
    pub(super) faults: FaultLog,
    /// Its domain could not be invalidated: it does no DMA any more. Held while its right to do so is changed.
    stopped: IrqLock<bool>,
    /// How often the right to do DMA was taken from it.
    halts: AtomicU64,
}

impl DmaDevice {
    /// Gives `function` a domain, in which nothing is mapped yet, and lets it do DMA.
    ///
    /// # Errors
    /// [`NoDma`].
    pub fn attach(name: &str, function: DeviceFunction) -> Result<Arc<Self>, NoDma> {
        let unit = vtd::unit_of(function).ok_or(NoDma::NoUnit)?;
        let mut nr_devices = NR_DEVICES.take(|| mm().machine.relax());
        let place = DEVICES.get(*nr_devices).ok_or(NoDma::TooMany)?;
        let domain = unit.new_domain(vtd::source_of(function)).map_err(NoDma::NoDomain)?;
        let device = Self {
            name: name.into(),
            function,
            unit,
            domain,
            faults: FaultLog::new(),
            stopped: IrqLock::new(false),
            halts: AtomicU64::new(0),
        };
        let device = place.call_once(|| Arc::new(device));
        *nr_devices += 1;
        device.allow();
        Ok(Arc::clone(device))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }
    /// How the IOMMU knows it.
    pub fn source(&self) -> SourceId {
        vtd::source_of(self.function)
    }
    /// Its domain.
    pub fn domain(&self) -> &Arc<Domain<UnitHardware>> {
        &self.domain
    }
    /// Faults of it that were recorded.
    pub fn nr_faults(&self) -> u64 {
        self.faults.count()
    }
    /// Does its unit have to hear of each new mapping, too?
    pub fn is_told_of_mappings(&self) -> bool {
        self.unit.capabilities().caching_mode || self.unit.capabilities().write_buffer
    }
    /// Was it cut off as a whole?
    pub fn is_stopped(&self) -> bool {
        *self.stopped.lock()
    }
    /// Lets it do DMA, as far as its domain goes. `false`: it was cut off as a whole, for good.
    pub fn allow(&self) -> bool {
        let stopped = self.stopped.lock();
        if !*stopped {
            pci::enable(self.function);
        }
        !*stopped
    }
    /// Takes the right to do DMA from it, until it is [allowed](Self::allow) again.
    pub fn forbid(&self) {
        let _stopped = self.stopped.lock();
        self.halt();
    }
    fn halt(&self) {
        pci::stop_dma(self.function);
        self.halts.fetch_add(1, Ordering::Relaxed);
    }
    /// How often the right to do DMA was taken from it. Transfers end at the host bridge then, and no fault tells.
    pub fn nr_halts(&self) -> u64 {
        self.halts.load(Ordering::Relaxed)
    }

    /// Memory of the driver's own, `2^order` frames of RAM, zeroed, which the device reads and writes. `None` where there
    /// is no memory, or no room in the domain.
    pub fn own_memory(self: &Arc<Self>, order: u32) -> Option<OwnMemory> {
        let first = memory::alloc(order)?;
        let frames = PfnRange::new(first, 1 << order)?;
        let base: *mut u8 = layout::direct_ptr(first.addr());
        let len_bytes = PAGE_SIZE << order;
        // SAFETY: RAM, ours, in the direct map.
        unsafe { base.write_bytes(0, len_bytes as usize) };
        match self.map(&[frames], Rights::READ | Rights::WRITE, OWN) {
            Ok(mapping) => Some(OwnMemory { device: Arc::clone(self), first, order, mapping }),
            Err(_) => {
                memory::free(first, order);
                None
            }
        }
    }

    /// Begins to watch for what speaks against a transfer. See the head of [`dma`](super).
    pub fn watch(self: &Arc<Self>) -> Watch {
        Watch::begin(self)
    }

    /// Maps frames for the device.
    ///
    /// # Errors
    /// [`DmaError::Map`], [`DmaError::Stopped`]. Nothing is mapped then, or the device does no DMA any more.
    pub(super) fn map(&self, runs: &[PfnRange], rights: Rights, tag: u64) -> Result<Mapping, DmaError> {
        if self.is_stopped() {
            return Err(DmaError::Stopped);
        }
        // What is kept of a mapping is small, and asked for as if it was there.
        if !mm().machine.may_grow() {
            return Err(DmaError::Map(MapError::NoMemory));
        }
        let mapped = self.domain.map(runs, rights, tag).map_err(|error| {
            if let MapError::Queue(error) = error {
                self.stop(error);
            }
            DmaError::Map(error)
        });
        if trace::BUILT_IN
            && let Ok(mapping) = &mapped
        {
            mm().machine.mark(Mark::new(Kind::DmaMapped, mapping.address(), mapping.bytes()));
        }
        mapped
    }

    /// Takes a range away from the device. When this returns it reaches none of it: where the IOMMU does not do as it is
    /// told, the device loses the right to do DMA at all.
    pub(super) fn revoke(&self, mapping: &Mapping) -> Revocation {
        let revocation = self.domain.revoke(mapping);
        if let Some(error) = revocation.failed {
            self.stop(error);
        }
        if trace::BUILT_IN {
            mm().machine.mark(Mark::new(Kind::DmaRevoked, mapping.address(), mapping.bytes()));
        }
        revocation
    }

    /// Takes the right to do DMA from it for good. Whoever returns from here knows that it has none.
    fn stop(&self, error: QueueError) {
        let mut stopped = self.stopped.lock();
        self.halt();
        let is_news = !core::mem::replace(&mut *stopped, true);
        drop(stopped);
        if is_news {
            log::error!(target: "dma", "{}: {error}; the device does no DMA any more", self.name);
        }
    }
}

/// The tag of what belongs to the driver; those of registrations count from 1.
pub const OWN: u64 = 0;
/// The tag of what is pinned for one transfer.
pub const TRANSIENT: u64 = u64::MAX;

/// Memory of a driver's own, mapped for its device as long as this lives.
pub struct OwnMemory {
    device: Arc<DmaDevice>,
    first: Pfn,
    order: u32,
    mapping: Mapping,
}

impl OwnMemory {
    /// Where the device finds it.
    pub fn iova(&self) -> u64 {
        self.mapping.address()
    }
    /// How long it is.
    pub fn len_bytes(&self) -> u64 {
        PAGE_SIZE << self.order
    }
    /// Where the kernel finds it. The device may store there at any time.
    pub fn ptr(&self) -> *mut u8 {
        layout::direct_ptr(self.first.addr())
    }
}

impl Drop for OwnMemory {
    fn drop(&mut self) {
        // Reached by nobody any more, one way or the other.
        self.device.revoke(&self.mapping);
        memory::free(self.first, self.order);
    }
}
