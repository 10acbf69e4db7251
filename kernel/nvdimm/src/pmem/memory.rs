//! What the driver needs of the kernel below it: a mapping of the range, and copies that last.

use core::fmt;

use mm::addr::PfnRange;
use mm::sync::Arc;

/// The medium did not give back what was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MediaError {
    /// It has lost it.
    Lost {
        /// Offset of the first byte that was lost, from the beginning of the mapped range.
        offset_bytes: u64,
    },
    /// It is not there any more, or was not all the while: what was read came from nowhere, what was written went there.
    Gone,
}

/// What was written may not last: whoever keeps the memory did not confirm it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlushError {
    /// The device says that it could not do it.
    Refused {
        /// The device's own word for why.
        code: u32,
    },
    /// The device answered with fewer bytes than an answer has.
    ShortAnswer {
        /// How many came.
        bytes: usize,
    },
    /// The device did not answer in time.
    NoAnswer,
    /// There is no device any more, or it has stopped working.
    Gone,
    /// The device's queue cannot be set up.
    NoQueue,
}

impl fmt::Display for FlushError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { code } => write!(f, "the device could not flush (code {code})"),
            Self::ShortAnswer { bytes } => write!(f, "the device answered with {bytes} bytes"),
            Self::NoAnswer => f.write_str("the device did not answer in time"),
            Self::Gone => f.write_str("the device is gone, or has stopped working"),
            Self::NoQueue => f.write_str("the device's queue cannot be set up"),
        }
    }
}

impl core::error::Error for FlushError {}

/// Persistent memory that the kernel has mapped. Offsets count bytes from the beginning of the range.
///
/// The caller stays inside the range. The implementation may stop the kernel where it does not.
pub trait PmemMemory: Send + Sync {
    /// Copies bytes out.
    ///
    /// # Errors
    /// [`MediaError`] where the CPU reports that a byte is lost, or the memory has gone; `into` is then worth nothing.
    fn read(&self, offset_bytes: u64, into: &mut [u8]) -> Result<(), MediaError>;

    /// Copies bytes in and writes back each cache line that it touched. Durable after the next
    /// [`fence`](Self::fence), not before.
    ///
    /// # Errors
    /// [`MediaError`] where the CPU reports that the medium did not take a byte.
    fn write(&self, offset_bytes: u64, from: &[u8]) -> Result<(), MediaError>;

    /// Waits until all that this CPU has written back is in the platform's power-fail domain; of memory that somebody
    /// else keeps, until he has confirmed that it lasts.
    ///
    /// # Errors
    /// [`FlushError`] where he does not. What was written before may then be lost with the next power cut.
    fn fence(&self) -> Result<(), FlushError>;

    /// Was the memory there all the time until now? Memory that cannot leave by itself always was.
    fn is_there(&self) -> bool {
        true
    }
}

/// Why the kernel could not map a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapFailed {
    /// No memory for page tables.
    OutOfMemory,
    /// The kernel's part of the address space has no room for the range.
    NoRoom,
    /// The memory is not there.
    Gone,
    /// The memory needs its device for stores to last, and that does not work.
    NoFlush(FlushError),
}

impl fmt::Display for MapFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfMemory => f.write_str("no memory for the page tables of the direct map"),
            Self::NoRoom => f.write_str("the kernel's address space has no room for the range"),
            Self::Gone => f.write_str("the memory is not there"),
            Self::NoFlush(error) => error.fmt(f),
        }
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
