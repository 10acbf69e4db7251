//! What a device may reach of memory: the face that drivers see.
//!
//! A device that does DMA is a [`DmaDevice`]: a PCI function with a translation domain of its own in the IOMMU. It reaches
//! what was mapped there, and nothing else (D1). A driver is handed three things to transfer from and to, each of which is
//! a range of I/O virtual addresses for it ([`DmaTarget`]):
//!
//! | what | whose | until |
//! |---|---|---|
//! | [`OwnMemory`] | the driver's: rings, lists | dropped |
//! | [`DmaPins`] | a task's, for one transfer | dropped; a removal waits for it, so each driver says after how long it gives a transfer up |
//! | [`DmaRegion`] | a task's, registered | given back or revoked, whatever is in flight |
//!
//! # A completion is not believed
//! A device whose transfer the IOMMU has blocked says that it was done well (seen with QEMU 7.2's NVMe and virtio-blk). So
//! a driver brackets each transfer: [`DmaDevice::watch`] before it begins, [`Watch::end`] when the device says that it has
//! ended. That looks for faults of the device since, all of them, not only those in the transfer's range: a unit has few
//! records, and merges the faults of one device while a record of it waits. And it asks whether the target was revoked
//! meanwhile (D4).

mod devices;
mod faults;
mod past;
mod region;

use core::fmt;

use mm::addr::PfnRange;
use mm::gup::GupError;
use mm::region::{RegionError, UseError};
use mm::space::Access;

pub use self::devices::{DmaDevice, OwnMemory, devices};
use self::devices::{OWN, TRANSIENT};
pub use self::faults::{
    FaultRecord, LINES_PER_SECOND, Watch, ask_presence, collect, nr_blocked, on_interrupt, overflows, speak, start,
    strays, told,
};
pub use self::region::{DmaPins, DmaRegion};

/// Whose a mapping is, by its tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Whose(pub u64);

impl Whose {
    /// In a word: `driver`, `transient`, or the number of the registration.
    pub fn word(self) -> impl fmt::Display {
        fmt::from_fn(move |f| match self.0 {
            OWN => f.write_str("driver"),
            TRANSIENT => f.write_str("transient"),
            key => write!(f, "{key}"),
        })
    }
}

impl fmt::Display for Whose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            OWN => f.write_str("the driver's own"),
            TRANSIENT => f.write_str("pinned for a transfer"),
            key => write!(f, "registration {key}"),
        }
    }
}

/// What a driver is handed for a transfer: a range of I/O virtual addresses, nothing else.
pub trait DmaTarget: Send + Sync {
    /// Where it begins.
    fn iova(&self) -> u64;
    /// How long it is.
    fn len_bytes(&self) -> u64;
    /// Does it still lead to the memory that it was made for, and may a device do that there? Asked before a transfer: of a
    /// store to what may only be read the IOMMU does not always tell (QEMU 7.2 records none where it has the translation in
    /// its cache).
    ///
    /// # Errors
    /// It was revoked or given back, or may only be read.
    fn check(&self, access: Access) -> Result<(), DmaError>;
    /// The memory that it was made for.
    fn frames(&self) -> &[PfnRange];
}

/// An address in the hands of who does not ask whether he may use it: what comes of that is for the IOMMU to say. For tests, and
/// to show it.
#[derive(Clone, Copy, Debug)]
pub struct Unasked {
    /// Where it begins.
    pub iova: u64,
    /// How long it is.
    pub len_bytes: u64,
}

impl Unasked {
    /// Where `target` is, or was.
    pub fn of(target: &dyn DmaTarget) -> Self {
        Self { iova: target.iova(), len_bytes: target.len_bytes() }
    }
}

impl DmaTarget for Unasked {
    fn iova(&self) -> u64 {
        self.iova
    }
    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }
    fn check(&self, _: Access) -> Result<(), DmaError> {
        Ok(())
    }
    fn frames(&self) -> &[PfnRange] {
        &[]
    }
}

/// Why there is no transfer, or why it counts as failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DmaError {
    /// The pages were not registered.
    Register(RegionError),
    /// The registration cannot be used: revoked, most likely.
    Use(UseError),
    /// The pins are for reading only.
    ReadOnly,
    /// The device may do no DMA, or might not in between.
    Stopped,
    /// The memory has left without a word.
    Gone,
    /// The domain has no room, or there is no memory for its tables.
    Map(iommu::domain::MapError),
    /// The IOMMU has blocked something that the device did meanwhile.
    Fault(FaultRecord),
    /// Faults came faster than the IOMMU can record them: there may have been one of this device.
    FaultsLost,
}

impl fmt::Display for DmaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Register(error) => error.fmt(f),
            Self::Use(error) => error.fmt(f),
            Self::ReadOnly => {
                f.write_str("the pages were pinned for a device that only reads; expected ones that it may write to")
            }
            Self::Stopped => f.write_str("the device may do no DMA, or was not allowed to meanwhile"),
            Self::Gone => f.write_str("the device says it is done, but the memory has left meanwhile"),
            Self::Map(error) => error.fmt(f),
            Self::Fault(record) => write!(f, "the device says it is done, but {record}"),
            Self::FaultsLost => {
                f.write_str("the device says it is done, but faults came faster than the IOMMU records them")
            }
        }
    }
}

impl From<RegionError> for DmaError {
    fn from(error: RegionError) -> Self {
        Self::Register(error)
    }
}

impl From<GupError> for DmaError {
    fn from(error: GupError) -> Self {
        Self::Register(error.into())
    }
}

impl From<UseError> for DmaError {
    fn from(error: UseError) -> Self {
        Self::Use(error)
    }
}
