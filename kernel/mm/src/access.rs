//! What an access wants, what may become of it, and what a fault asks: words that everybody uses, and that name nobody.

use core::fmt;

use crate::addr::{PageSize, Pfn, VirtAddr};

/// What an access wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A load.
    Read,
    /// A store.
    Write,
    /// An instruction fetch.
    Exec,
}

/// Why the memory is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SigBusCause {
    /// The device has been removed, or is being removed.
    DeviceGone,
    /// The page has lost its contents (poison).
    Poisoned,
    /// The offset lies beyond the end of the file or device.
    BeyondEnd,
    /// The file system has been shut down.
    ShutDown,
    /// The file system has no block left for the page that a store would make.
    NoSpace,
}

impl SigBusCause {
    /// All causes.
    pub const ALL: [Self; 5] = [Self::DeviceGone, Self::Poisoned, Self::BeyondEnd, Self::ShutDown, Self::NoSpace];
}

impl fmt::Display for SigBusCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DeviceGone => "device-gone",
            Self::Poisoned => "poisoned",
            Self::BeyondEnd => "beyond-end",
            Self::ShutDown => "shut-down",
            Self::NoSpace => "no-space",
        })
    }
}

/// A fault that could not be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultError {
    /// Nothing is mapped there (SIGSEGV, `SEGV_MAPERR`), or the address is not in the user half.
    NotMapped(VirtAddr),
    /// The mapping does not allow it (SIGSEGV, `SEGV_ACCERR`).
    AccessDenied(VirtAddr),
    /// The memory behind the mapping is gone (SIGBUS).
    SigBus {
        /// First address that is lost.
        addr: VirtAddr,
        /// How many bytes are lost there, as far as this fault knows.
        len_bytes: u64,
        /// Why.
        cause: SigBusCause,
    },
    /// The count of references on the page has no room for one more.
    TooManyRefs(VirtAddr),
    /// No memory for a table page or for page metadata.
    OutOfMemory,
}

impl fmt::Display for FaultError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotMapped(addr) => write!(f, "nothing is mapped at {addr}"),
            Self::AccessDenied(addr) => {
                write!(f, "the mapping at {addr} does not allow this access")
            }
            Self::SigBus { addr, len_bytes, cause } => write!(f, "{len_bytes} bytes at {addr} are gone: {cause}"),
            Self::TooManyRefs(addr) => write!(f, "too many references on the page at {addr}: its count has no room"),
            Self::OutOfMemory => f.write_str("out of memory"),
        }
    }
}

/// Why a range could not be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// Empty, wrapping, not page-aligned, or not inside the user half.
    BadRange,
    /// The range begins at address 0: the first page stays free, so that a null pointer is caught.
    AtZero,
    /// Something is mapped in the range already.
    Occupied,
    /// Address, length and offset must all be multiples of this.
    Misaligned(PageSize),
    /// An end of the range lies inside a mapping that promises leaves of this size, and not at a multiple of it.
    CutsLeaf(PageSize),
    /// The provider refuses: the device is gone, or the range lies beyond its end.
    Refused(SigBusCause),
    /// A mapping for writing of memory that takes no writes.
    ReadOnly,
    /// Memory is short: for the VMA, or for the parts of one that is to be cut.
    OutOfMemory,
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadRange => f.write_str("the range is empty, wraps, is not page-aligned or leaves the user half"),
            Self::AtZero => f.write_str("the range begins at address 0, where nothing is ever mapped"),
            Self::Occupied => f.write_str("something is mapped in the range already"),
            Self::Misaligned(size) => {
                write!(f, "address, length and offset must be multiples of {size}")
            }
            Self::CutsLeaf(size) => {
                write!(f, "the mapping is made of leaves of {size}, and is cut at multiples of that only")
            }
            Self::Refused(cause) => write!(f, "refused: {cause}"),
            Self::ReadOnly => f.write_str("the memory takes no writes: it can be mapped for reading only"),
            Self::OutOfMemory => f.write_str("out of memory"),
        }
    }
}

/// What a fault asks of the provider of a VMA.
#[derive(Clone, Copy, Debug)]
pub struct FaultRequest {
    /// Faulting page.
    pub addr: VirtAddr,
    /// Its offset in the mapping, in base pages.
    pub offset_pages: u64,
    /// Is it a store?
    pub write: bool,
    /// The largest leaf that the VMA has room for around the address.
    pub max_size: PageSize,
}

/// The provider's answer: where the data is.
#[derive(Clone, Copy, Debug)]
pub struct FaultTarget {
    /// Frame of the faulting base page.
    pub pfn: Pfn,
    /// The largest leaf for which the frames around `pfn` run parallel to the offsets around the fault.
    pub size: PageSize,
}
