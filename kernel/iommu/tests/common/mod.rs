//! An emulated unit with one device in one domain.
#![allow(dead_code, reason = "each test file uses its part")]

use iommu::caps::Capabilities;
use iommu::contexts::Contexts;
use iommu::domain::{Domain, Mapping};
use iommu::entry::Rights;
use iommu::source::SourceId;
use mm::addr::{PAGE_SIZE, Pfn, PfnRange, PhysAddr};
use mm::sync::Arc;
use testkit::iommu::{Make, Unit};

pub const RW: Rights = Rights::all();
pub const GIB: u64 = 1 << 18;

pub const DEVICE: SourceId = SourceId { bus: 0, device: 4, function: 0 };
pub const OTHER: SourceId = SourceId { bus: 3, device: 31, function: 7 };

pub fn run(start: u64, nr_pages: u64) -> PfnRange {
    PfnRange::new(Pfn::new(start), nr_pages).unwrap()
}

pub struct Rig {
    pub unit: Arc<Unit>,
    pub contexts: Contexts<Unit>,
    pub domain: Arc<Domain<Unit>>,
}

impl Rig {
    pub fn new(make: Make) -> Self {
        Self::with_space(make, make.bits)
    }

    /// With addresses of fewer bits.
    pub fn with_space(make: Make, bits: u8) -> Self {
        let unit = make.build();
        let limits = make.capabilities();
        let contexts = Contexts::new(unit.clone(), limits.caching_mode).unwrap();
        unit.set_root(contexts.root());
        let levels = limits.check(make.bits.min(48)).unwrap();
        let limits = Capabilities { address_bits: bits, ..limits };
        let domain = Domain::new(unit.clone(), 5, levels, &limits).unwrap();
        contexts.attach(DEVICE, &domain).unwrap();
        Self { unit, contexts, domain }
    }

    /// As QEMU's, with the caches of hardware.
    pub fn usual() -> Self {
        Self::new(Make::default())
    }

    /// One page, out of the way of what a test looks at.
    pub fn one(&self, pfn: u64) -> Mapping {
        self.domain.map(&[run(pfn, 1)], RW, pfn).unwrap()
    }

    /// Where the device's store to an address goes.
    pub fn reaches(&self, address: u64) -> Option<PhysAddr> {
        self.unit.device_writes(DEVICE, address, address).ok()
    }

    /// The device can store to page `nth` of a mapping, and reaches this frame.
    #[track_caller]
    pub fn assert_reaches(&self, mapping: &Mapping, nth: u64, pfn: u64) {
        let at = mapping.address() + nth * PAGE_SIZE + 8;
        let reached = self.unit.device_writes(DEVICE, at, at);
        assert_eq!(reached, Ok(PhysAddr::new(pfn * PAGE_SIZE + 8)), "page {nth} of {mapping:?}");
    }

    /// The device is blocked at page `nth`.
    #[track_caller]
    pub fn assert_blocked(&self, mapping: &Mapping, nth: u64) {
        let at = mapping.address() + nth * PAGE_SIZE;
        assert_eq!(self.reaches(at), None, "page {nth} of {mapping:?}");
    }
}

/// `nr` runs of one page each, no two of which follow each other.
pub fn scattered(start: u64, nr: u64) -> Vec<PfnRange> {
    (0..nr).map(|nth| run(start + 2 * nth, 1)).collect()
}
