//! Physical region pages: where a transfer's bytes are, page by page (1.4 §4.3). Behind an IOMMU they are I/O virtual pages.
//!
//! The first entry may begin inside a page. A second page is the second entry; more than two are in a list, which the
//! second entry then points at. Here a list is one page, so that a transfer has at most 512 whole pages.

use core::fmt;

use crate::mutant::Mutant;
use crate::registers::PAGE_BYTES;

/// Entries of a list of one page.
pub const LIST_ENTRIES: usize = 512;
/// The most bytes of a transfer, wherever it begins.
pub const MOST_BYTES: u64 = LIST_ENTRIES as u64 * PAGE_BYTES;

/// The two entries of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prps {
    /// Where the data begins.
    pub first: u64,
    /// The second page, or the list of all but the first, or 0.
    pub second: u64,
}

impl Prps {
    /// A command without data.
    pub const NONE: Self = Self { first: 0, second: 0 };
}

/// Why a range cannot be written as PRPs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrpError {
    /// It has no byte.
    Empty,
    /// It begins at no multiple of four.
    Unaligned(u64),
    /// It has so many bytes.
    TooLong(u64),
    /// It ends beyond 64 bits.
    Wraps(u64),
}

impl fmt::Display for PrpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("a transfer of no bytes"),
            Self::Unaligned(at) => write!(f, "the data begins at {at:#x}, which is no multiple of 4"),
            Self::TooLong(bytes) => write!(f, "a transfer of {bytes} bytes, at most {MOST_BYTES} are one command"),
            Self::Wraps(at) => write!(f, "the data begins at {at:#x} and ends beyond 64 bits"),
        }
    }
}

impl core::error::Error for PrpError {}

/// The entries for `len_bytes` bytes at `iova`. What belongs in the list at `list` is handed to `put`, with its place there.
///
/// # Errors
/// [`PrpError`]; then `put` was not called.
pub fn build(iova: u64, len_bytes: u64, list: u64, mut put: impl FnMut(usize, u64)) -> Result<Prps, PrpError> {
    if len_bytes == 0 {
        return Err(PrpError::Empty);
    }
    if !iova.is_multiple_of(4) {
        return Err(PrpError::Unaligned(iova));
    }
    if len_bytes > MOST_BYTES {
        return Err(PrpError::TooLong(len_bytes));
    }
    let last = iova.checked_add(len_bytes - 1).ok_or(PrpError::Wraps(iova))?;
    let (first_page, last_page) = (iova / PAGE_BYTES, last / PAGE_BYTES);
    let rest = (first_page + 1..=last_page).map(|page| page * PAGE_BYTES);
    let second = match last_page - first_page {
        0 => 0,
        1 if !Mutant::SecondPageAsList.is_on() => last_page * PAGE_BYTES,
        _ => {
            let skipped = usize::from(Mutant::ListFromTheThirdPage.is_on());
            rest.skip(skipped).enumerate().for_each(|(at, page)| put(at, page));
            list
        }
    };
    Ok(Prps { first: iova, second })
}

#[cfg(test)]
mod tests {
    use super::*;
    extern crate std;
    use std::vec::Vec;

    fn built(iova: u64, len_bytes: u64) -> (Result<Prps, PrpError>, Vec<u64>) {
        let mut list = Vec::new();
        let prps = build(iova, len_bytes, 0xaaaa_a000, |at, page| {
            assert_eq!(at, list.len());
            list.push(page);
        });
        (prps, list)
    }

    #[test]
    fn one_page_two_pages_and_a_list() {
        assert_eq!(built(0x1000, 4096), (Ok(Prps { first: 0x1000, second: 0 }), Vec::new()));
        assert_eq!(built(0x1200, 512), (Ok(Prps { first: 0x1200, second: 0 }), Vec::new()));
        assert_eq!(built(0x1e00, 1024), (Ok(Prps { first: 0x1e00, second: 0x2000 }), Vec::new()));
        let list = Prps { first: 0x1e00, second: 0xaaaa_a000 };
        assert_eq!(built(0x1e00, 4096 + 1024), (Ok(list), [0x2000, 0x3000].to_vec()));
    }

    #[test]
    fn what_cannot_be_written_so() {
        assert_eq!(built(0x1000, 0).0, Err(PrpError::Empty));
        assert_eq!(built(0x1002, 512).0, Err(PrpError::Unaligned(0x1002)));
        assert_eq!(built(0x1000, MOST_BYTES + 1).0, Err(PrpError::TooLong(MOST_BYTES + 1)));
        let high = u64::MAX - 511;
        assert_eq!(built(high, 1024), (Err(PrpError::Wraps(high)), Vec::new()));
        // The most, from the last word of a page on: the list is full.
        let (prps, list) = built(0x1ffc, MOST_BYTES);
        assert!(prps.is_ok() && list.len() == LIST_ENTRIES);
    }
}
