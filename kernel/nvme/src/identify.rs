//! What the controller and its namespace say of themselves: the pages that *Identify* answers (1.4 §5.15).

use core::fmt;

use arrayvec::ArrayString;

use crate::registers::PAGE_BYTES;

/// Bytes of either page.
pub const LEN_BYTES: usize = 4096;

/// What counts of the controller's page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Controller {
    /// The serial number, without the spaces behind it; what is not printable ASCII is a `?`.
    pub serial: ArrayString<20>,
    /// The model, likewise.
    pub model: ArrayString<40>,
    /// The firmware's revision, likewise.
    pub firmware: ArrayString<8>,
    /// MDTS: the most bytes of one transfer; `None` where there is no limit.
    pub max_transfer_bytes: Option<u64>,
    /// NN: the highest number of a namespace.
    pub nr_namespaces: u32,
    /// VWC: what was written lasts after a flush alone.
    pub has_write_cache: bool,
}

/// A namespace that can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// NSZE: how many blocks it has.
    pub nr_blocks: u64,
    /// Bytes of a block: a power of two, 512 to 4,096.
    pub block_bytes: u64,
}

/// Why what was said cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdentifyError {
    /// Fewer bytes than a page.
    Short(usize),
    /// Its submission or completion entries have other sizes, as powers of two: the least and the most.
    EntrySize(u8, u8),
    /// It has no namespace.
    NoNamespace,
    /// The namespace has no block.
    Empty,
    /// Its format has a number beyond those that it has.
    Format(u8),
    /// So many bytes of metadata with each block.
    Metadata(u16),
    /// Blocks of two to this many bytes.
    BlockSize(u8),
    /// More bytes than 64 bits count.
    TooLarge(u64),
}

impl fmt::Display for IdentifyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short(bytes) => write!(f, "identify data of {bytes} bytes, expected {LEN_BYTES}"),
            Self::EntrySize(submission, completion) => write!(
                f,
                "queue entries of sizes {submission:#x} and {completion:#x}, expected 2^6 and 2^4 bytes to be among them"
            ),
            Self::NoNamespace => f.write_str("it has no namespace"),
            Self::Empty => f.write_str("the namespace has no block"),
            Self::Format(number) => write!(f, "the namespace has format {number}, which it does not list"),
            Self::Metadata(bytes) => write!(f, "{bytes} bytes of metadata with each block, expected none"),
            Self::BlockSize(power) => write!(f, "blocks of 2^{power} bytes, expected 2^9 to 2^12"),
            Self::TooLarge(blocks) => write!(f, "{blocks} blocks are more than 64 bits of bytes"),
        }
    }
}

impl core::error::Error for IdentifyError {}

/// The `N` bytes at `at`; zeroes beyond the end.
fn bytes<const N: usize>(page: &[u8], at: usize) -> [u8; N] {
    page.get(at..).and_then(<[u8]>::first_chunk).copied().unwrap_or([0; N])
}

fn byte(page: &[u8], at: usize) -> u8 {
    let [byte] = bytes(page, at);
    byte
}

/// ASCII that is filled up with spaces.
fn text<const N: usize>(page: &[u8], at: usize) -> ArrayString<N> {
    let mut text = ArrayString::new();
    let raw: [u8; N] = bytes(page, at);
    let end = raw.iter().rposition(|&byte| byte != b' ' && byte != 0).map_or(0, |last| last + 1);
    for &byte in &raw[..end] {
        let letter = if byte == b' ' || byte.is_ascii_graphic() { char::from(byte) } else { '?' };
        // One byte for each of N.
        let _ = text.try_push(letter);
    }
    text
}

impl Controller {
    /// From its page.
    ///
    /// # Errors
    /// [`IdentifyError`].
    pub fn parse(page: &[u8]) -> Result<Self, IdentifyError> {
        if page.len() < LEN_BYTES {
            return Err(IdentifyError::Short(page.len()));
        }
        // SQES and CQES: the size that is needed in the lower half, the largest in the upper one.
        let (sqes, cqes) = (byte(page, 512), byte(page, 513));
        let has = |sizes: u8, power: u8| sizes & 0xf <= power && power <= sizes >> 4;
        if !has(sqes, 6) || !has(cqes, 4) {
            return Err(IdentifyError::EntrySize(sqes, cqes));
        }
        let nr_namespaces = u32::from_le_bytes(bytes(page, 516));
        if nr_namespaces == 0 {
            return Err(IdentifyError::NoNamespace);
        }
        // In units of the smallest page, which is ours: others were refused before.
        let max_transfer_bytes = match byte(page, 77) {
            0 => None,
            // More than 64 bits of bytes is no limit.
            power => 1_u64.checked_shl(u32::from(power)).and_then(|pages| pages.checked_mul(PAGE_BYTES)),
        };
        Ok(Self {
            serial: text(page, 4),
            model: text(page, 24),
            firmware: text(page, 64),
            max_transfer_bytes,
            nr_namespaces,
            has_write_cache: byte(page, 525) & 1 != 0,
        })
    }
}

impl Namespace {
    /// From its page.
    ///
    /// # Errors
    /// [`IdentifyError`].
    pub fn parse(page: &[u8]) -> Result<Self, IdentifyError> {
        if page.len() < LEN_BYTES {
            return Err(IdentifyError::Short(page.len()));
        }
        let nr_blocks = u64::from_le_bytes(bytes(page, 0));
        if nr_blocks == 0 {
            return Err(IdentifyError::Empty);
        }
        // NLBAF is one less; FLBAS names the one in use by its lower four bits.
        let (last, used) = (byte(page, 25), byte(page, 26) & 0xf);
        if used > last {
            return Err(IdentifyError::Format(used));
        }
        let format: [u8; 4] = bytes(page, 128 + 4 * usize::from(used));
        match u16::from_le_bytes([format[0], format[1]]) {
            0 => {}
            metadata => return Err(IdentifyError::Metadata(metadata)),
        }
        let power = format[2];
        if !(9..=12).contains(&power) {
            return Err(IdentifyError::BlockSize(power));
        }
        let block_bytes = 1 << power;
        nr_blocks.checked_mul(block_bytes).ok_or(IdentifyError::TooLarge(nr_blocks))?;
        Ok(Self { nr_blocks, block_bytes })
    }

    /// How many bytes it has.
    #[must_use]
    pub const fn len_bytes(&self) -> u64 {
        // Looked at by `parse`.
        self.nr_blocks.saturating_mul(self.block_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    extern crate std;
    use std::string::ToString;
    use std::vec::Vec;

    fn page(fields: &[(usize, &[u8])]) -> Vec<u8> {
        let mut page = std::vec![0; LEN_BYTES];
        fields.iter().for_each(|(at, bytes)| page[*at..][..bytes.len()].copy_from_slice(bytes));
        page
    }

    #[test]
    fn a_controller_as_qemu_says_it() {
        let found = Controller::parse(&page(&[
            (4, b"unplug0             "),
            (24, b"QEMU NVMe Ctrl                          "),
            (64, b"7.2.0\0\xff "),
            (77, &[7]),
            (512, &[0x66, 0x44]),
            (516, &[0, 1, 0, 0]),
            (525, &[7]),
        ]))
        .expect("usable");
        assert_eq!((&*found.serial, &*found.model, &*found.firmware), ("unplug0", "QEMU NVMe Ctrl", "7.2.0??"));
        assert_eq!(
            (found.max_transfer_bytes, found.nr_namespaces, found.has_write_cache),
            (Some(512 << 10), 256, true)
        );
    }

    #[test]
    fn a_controller_that_cannot_be_used() {
        let sizes = |submission, completion| Controller::parse(&page(&[(512, &[submission, completion]), (516, &[1])]));
        assert!(sizes(0x66, 0x44).is_ok_and(|found| found.max_transfer_bytes.is_none()));
        for (submission, completion) in [(0x77, 0x44), (0x55, 0x44), (0x66, 0x55), (0, 0)] {
            assert_eq!(sizes(submission, completion), Err(IdentifyError::EntrySize(submission, completion)));
        }
        assert_eq!(Controller::parse(&page(&[(512, &[0x66, 0x44])])), Err(IdentifyError::NoNamespace));
        assert_eq!(Controller::parse(&[0; 100]), Err(IdentifyError::Short(100)));
        // More than 64 bits is no limit.
        let huge = Controller::parse(&page(&[(512, &[0x66, 0x44]), (516, &[1]), (77, &[255])])).expect("usable");
        assert_eq!(huge.max_transfer_bytes, None);
    }

    #[test]
    fn namespaces() {
        let with = |blocks: u64, last, used, format: [u8; 4]| {
            let at = 128 + 4 * usize::from(used & 0xf);
            Namespace::parse(&page(&[(0, &blocks.to_le_bytes()), (25, &[last, used]), (at, &format)]))
        };
        let found = with(131_072, 7, 0, [0, 0, 9, 0]).expect("usable");
        assert_eq!((found.nr_blocks, found.block_bytes, found.len_bytes()), (131_072, 512, 64 << 20));
        assert_eq!(with(1, 7, 0x14, [0, 0, 12, 0]).map(|found| found.block_bytes), Ok(4096));
        assert_eq!(with(0, 7, 0, [0, 0, 9, 0]), Err(IdentifyError::Empty));
        assert_eq!(with(1, 0, 1, [0, 0, 9, 0]), Err(IdentifyError::Format(1)));
        assert_eq!(with(1, 7, 0, [8, 0, 9, 0]), Err(IdentifyError::Metadata(8)));
        assert_eq!(with(1, 7, 0, [0, 0, 13, 0]), Err(IdentifyError::BlockSize(13)));
        let large = with(1 << 60, 7, 0, [0, 0, 9, 0]).expect_err("too large");
        assert_eq!(large.to_string(), "1152921504606846976 blocks are more than 64 bits of bytes");
    }
}
