//! What the driver needs of the kernel below it: a mapping of the range, and copies that last.

use core::fmt;

use mm::addr::PfnRange;
use mm::sync::Arc;

/// The medium did not give back what was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MediaError {
    /// Offset of the first byte that was lost, from the beginning of the mapped range.
    pub offset_bytes: u64,
}

/// Persistent memory that the kernel has mapped. Offsets count bytes from the beginning of the range.
///
/// The caller stays inside the range. The implementation may stop the kernel where it does not.
pub trait PmemMemory: Send + Sync {
    /// Copies bytes out.
    ///
    /// # Errors
    /// [`MediaError`] where the CPU reports that a byte is lost; `into` is then worth nothing.
    fn read(&self, offset_bytes: u64, into: &mut [u8]) -> Result<(), MediaError>;

    /// Copies bytes in and writes back each cache line that it touched. Durable after the next
    /// [`fence`](Self::fence), not before.
    ///
    /// # Errors
    /// [`MediaError`] where the CPU reports that the medium did not take a byte.
    fn write(&self, offset_bytes: u64, from: &[u8]) -> Result<(), MediaError>;

    /// Waits until all that this CPU has written back is in the platform's power-fail domain.
    fn fence(&self);
}

/// Why the kernel could not map a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapFailed {
    /// No memory for page tables.
    OutOfMemory,
    /// The kernel's part of the address space has no room for the range.
    NoRoom,
}

impl fmt::Display for MapFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OutOfMemory => "no memory for the page tables of the direct map",
            Self::NoRoom => "the kernel's address space has no room for the range",
        })
    }
}

impl core::error::Error for MapFailed {}

/// The kernel, as the driver sees it.
pub trait PmemHost: Send + Sync {
    /// Maps a range for the kernel, with the largest leaves that fit.
    ///
    /// # Errors
    /// [`MapFailed`], and nothing is mapped then.
    fn map(&self, range: PfnRange) -> Result<Arc<dyn PmemMemory>, MapFailed>;

    /// Takes the mapping away and waits until no CPU has a translation of it. What [`map`](Self::map) gave out is
    /// not used any more, though it may still exist.
    fn unmap(&self, range: PfnRange);
}
