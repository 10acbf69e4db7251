//! What lies on a medium: read before anything is written, and never believed further than it was checked.
//!
//! | module | what it does | Linux |
//! |---|---|---|
//! | [`probe`] | says what others have made there: file systems, partition tables, info blocks, data | libblkid |
//! | [`label`] | reads an NVDIMM's label area: index blocks and labels | `drivers/nvdimm/label.c` |
//! | [`info`] | reads the info block of a namespace: PFN, DAX, BTT | `drivers/nvdimm/pfn_devs.c`, `btt.c` |
//! | [`btt`] | reads the sectors of a namespace in sector mode | `drivers/nvdimm/btt.c` |
//! | [`set`] | knows which NVDIMMs a label was made for | `drivers/acpi/nfit/core.c` |
//! | [`namespace`] | puts labels and info blocks together | `drivers/nvdimm/namespace_devs.c` |
//!
//! The kernel and the host's commands use the same functions; what differs is the [`Medium`] below. The formats, with
//! versions and where they were measured, are in `docs/media.md`.
//!
//! Every byte comes from outside. Sums are checked, loops have bounds that do not come from the medium, and what does
//! not make sense is one line and is left alone.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod btt;
pub mod fletcher;
pub mod info;
pub mod label;
pub mod namespace;
pub mod probe;
pub mod set;

use core::fmt;

/// Bytes could not be read: they are lost, or do not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unreadable;

/// Bytes that can be looked at: a device, a file, or a part of one.
pub trait Medium {
    /// How many there are.
    fn len_bytes(&self) -> u64;

    /// Reads `into.len()` bytes from `offset` on.
    ///
    /// # Errors
    /// [`Unreadable`] where one of them is lost or lies beyond the end; `into` is then worth nothing.
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Unreadable>;
}

/// Where `len` bytes from `offset` on end, on a medium of `len_bytes`.
///
/// # Errors
/// [`Unreadable`]: beyond the end of the medium.
pub fn end_of(offset: u64, len: u64, len_bytes: u64) -> Result<u64, Unreadable> {
    offset.checked_add(len).filter(|&end| end <= len_bytes).ok_or(Unreadable)
}

impl Medium for &[u8] {
    fn len_bytes(&self) -> u64 {
        self.len() as u64
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Unreadable> {
        let from = usize::try_from(offset).ok().and_then(|from| self.get(from..)).ok_or(Unreadable)?;
        into.copy_from_slice(from.get(..into.len()).ok_or(Unreadable)?);
        Ok(())
    }
}

/// Some bytes in a row of another medium.
pub struct Part<'a> {
    whole: &'a dyn Medium,
    start: u64,
    len_bytes: u64,
}

impl<'a> Part<'a> {
    /// The bytes from `start` on; `None` where they are not all there.
    #[must_use]
    pub fn new(whole: &'a dyn Medium, start: u64, len_bytes: u64) -> Option<Self> {
        end_of(start, len_bytes, whole.len_bytes()).ok()?;
        Some(Self { whole, start, len_bytes })
    }
}

impl Medium for Part<'_> {
    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Unreadable> {
        end_of(offset, into.len() as u64, self.len_bytes)?;
        // Cannot wrap: the part lies inside the whole.
        self.whole.read(self.start.wrapping_add(offset), into)
    }
}

/// A UUID, in the order of its bytes on the medium. Linux writes those of namespaces in the order of the text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Uuid(pub [u8; 16]);

impl Uuid {
    /// No UUID: what an info block names as its parent where there are no labels.
    pub const NIL: Self = Self([0; 16]);
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            if matches!(at, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

/// The `N` bytes from `at` on; those beyond the end count as zero.
pub(crate) fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let rest = bytes.get(at..).unwrap_or_default();
    if let Some(whole) = rest.first_chunk() {
        return *whole;
    }
    let mut array = [0; N];
    for (to, from) in array.iter_mut().zip(rest) {
        *to = *from;
    }
    array
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array_at(bytes, at))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

/// Are these the bytes from `at` on?
pub(crate) fn has(bytes: &[u8], at: usize, wanted: &[u8]) -> bool {
    bytes.get(at..).is_some_and(|rest| rest.starts_with(wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_ends_where_it_ends() {
        let bytes = [1_u8, 2, 3, 4];
        let whole = &bytes[..];
        let part = Part::new(&whole, 1, 2).unwrap();
        let mut into = [0; 2];
        assert_eq!((part.read(0, &mut into), into), (Ok(()), [2, 3]));
        assert_eq!(part.read(1, &mut into), Err(Unreadable));
        assert_eq!(part.read(u64::MAX, &mut into), Err(Unreadable));
        assert_eq!((end_of(1, 3, 4), end_of(4, 0, 4)), (Ok(4), Ok(4)));
        assert_eq!((end_of(2, 3, 4), end_of(u64::MAX, 1, 4)), (Err(Unreadable), Err(Unreadable)));
        assert!(Part::new(&whole, 3, 2).is_none() && Part::new(&whole, u64::MAX, 2).is_none());
        assert_eq!(whole.read(4, &mut into), Err(Unreadable));
    }
}
