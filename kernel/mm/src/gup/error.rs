//! Why nothing was pinned.

use core::fmt;

use crate::access::SigBusCause;
use crate::account::OverLimit;
use crate::addr::VirtAddr;

/// Why nothing was pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GupError {
    /// Invalid argument: zero pages were asked for.
    NoPages,
    /// Invalid argument: there is no room for a single result (what a null result array is to Linux).
    NoRoom,
    /// `start + len` wraps, or leaves the user half.
    BadRange,
    /// Nothing is mapped here.
    NotMapped(VirtAddr),
    /// The mapping here does not allow the access.
    AccessDenied(VirtAddr),
    /// The memory behind the mapping is gone.
    SigBus(VirtAddr, SigBusCause),
    /// The page is not present, and faulting was not allowed.
    NotPresent(VirtAddr),
    /// A long-term pin on memory that does not tolerate one.
    NotSupported(VirtAddr),
    /// A long-term pin that could not be taken back, on memory that tolerates only those that can.
    RevocableOnly(VirtAddr),
    /// The owner's account does not allow it.
    OverLimit(OverLimit),
    /// The count of references on the page here has no room for what is asked for.
    TooManyRefs(VirtAddr),
    /// No memory for what a fault needs, or for the list of what was pinned.
    OutOfMemory,
}

impl From<OverLimit> for GupError {
    fn from(over: OverLimit) -> Self {
        Self::OverLimit(over)
    }
}

impl fmt::Display for GupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPages => f.write_str("invalid argument: no pages are asked for"),
            Self::NoRoom => f.write_str("invalid argument: there is no room for a result"),
            Self::BadRange => f.write_str("the range wraps or leaves the user half"),
            Self::NotMapped(va) => write!(f, "nothing is mapped at {va}"),
            Self::AccessDenied(va) => write!(f, "the mapping at {va} does not allow this access"),
            Self::SigBus(va, cause) => write!(f, "the memory at {va} is gone: {cause}"),
            Self::NotPresent(va) => write!(f, "the page at {va} is not present and may not be faulted in"),
            Self::NotSupported(va) => {
                write!(f, "not supported: the memory at {va} does not tolerate a long-term pin")
            }
            Self::RevocableOnly(va) => {
                write!(f, "a long-term pin of the memory at {va} must be a registration, which can be taken back")
            }
            Self::OverLimit(over) => over.fmt(f),
            Self::TooManyRefs(va) => write!(f, "too many references on the page at {va}: its count has no room"),
            Self::OutOfMemory => f.write_str("out of memory"),
        }
    }
}
