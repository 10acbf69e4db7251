//! Ranges of a device in failure notifications, and how they are clipped to a part of the device.
//!
//! Pure functions over byte offsets. Ends are inclusive, because the last byte of a device of the largest size
//! has no offset behind it. The whole device is spelled `offset 0, length u64::MAX`; that pair is recognised
//! before anything is added to it, because adding would wrap.

use core::fmt;

use crate::holder::NotifyError;
use crate::mutant::Mutant;

/// The length that, with offset 0, means the whole device.
pub const WHOLE: u64 = u64::MAX;

/// A run of bytes with inclusive ends. Never empty.
///
/// ```
/// use dax::range::ByteSpan;
///
/// let failed = ByteSpan::from_len(4096, 8192).unwrap();
/// let part = ByteSpan::new(8192, u64::MAX).unwrap();
/// let hit = failed.intersection(part).unwrap();
/// assert_eq!((hit.first(), hit.last()), (8192, 12287));
/// assert_eq!(hit.relative_to(part).unwrap().first(), 0);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteSpan {
    first: u64,
    last: u64,
}

impl ByteSpan {
    /// `first ..= last`, or `None` where `last` lies before `first`.
    pub const fn new(first: u64, last: u64) -> Option<Self> {
        if first <= last { Some(Self { first, last }) } else { None }
    }
    /// `len` bytes from `offset` on; `None` where `len` is zero or the last byte's offset does not fit in 64 bits.
    pub const fn from_len(offset: u64, len: u64) -> Option<Self> {
        match len.checked_sub(1) {
            Some(rest) => match offset.checked_add(rest) {
                Some(last) => Some(Self { first: offset, last }),
                None => None,
            },
            None => None,
        }
    }
    /// Offset of the first byte.
    pub const fn first(self) -> u64 {
        self.first
    }
    /// Offset of the last byte, which belongs to the span.
    pub const fn last(self) -> u64 {
        self.last
    }
    /// Length in bytes, or `None` for all of the 2^64 bytes that offsets can name.
    pub const fn len_bytes(self) -> Option<u64> {
        (self.last - self.first).checked_add(1)
    }
    /// The bytes that both spans cover.
    pub fn intersection(self, other: Self) -> Option<Self> {
        Self::new(self.first.max(other.first), self.last.min(other.last))
    }
    /// The same bytes counted from the start of `part`, which holds them all; `None` where it does not.
    pub const fn relative_to(self, part: Self) -> Option<Self> {
        if self.first < part.first || self.last > part.last {
            return None;
        }
        Some(Self { first: self.first - part.first, last: self.last - part.first })
    }
}

impl fmt::Display for ByteSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..={:#x}", self.first, self.last)
    }
}

/// Clips a notified range to `part`, the bytes of the device that a holder (a file system, say) occupies.
///
/// Offset 0 with length [`WHOLE`] gives all of `part`. The result keeps the device's offsets; see
/// [`ByteSpan::relative_to`] for the holder's own.
///
/// # Errors
/// [`NotifyError::NoSuchAddress`] where no byte of the range lies in `part`: wholly outside, or empty. A range
/// whose end would pass the last 64-bit offset ends at that offset.
pub fn clip(offset: u64, len: u64, part: ByteSpan) -> Result<ByteSpan, NotifyError> {
    if offset == 0 && len == WHOLE && !Mutant::WholeNotRecognised.is_on() {
        return Ok(part);
    }
    let Some(rest) = len.checked_sub(1) else {
        return Err(NotifyError::NoSuchAddress);
    };
    let notified = ByteSpan {
        first: offset,
        last: offset.saturating_add(rest - u64::from(Mutant::LastByteLost.is_on() && rest > 0)),
    };
    notified.intersection(part).ok_or(NotifyError::NoSuchAddress)
}
