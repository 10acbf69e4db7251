//! Whether a read or a write can be done at all, before anything of it reaches the device.

use core::fmt;

use crate::identify::{Controller, Namespace};
use crate::prp;

/// The most blocks that one command counts.
const MOST_BLOCKS: u64 = 1 << 16;

/// What transfers have to keep to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How many blocks there are.
    pub nr_blocks: u64,
    /// Bytes of a block.
    pub block_bytes: u64,
    /// The most bytes of one command.
    pub max_transfer_bytes: u64,
}

/// Why one cannot be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestError {
    /// It is of no block.
    Empty,
    /// It is of blocks that the disk does not have.
    OutOfRange {
        /// The first block.
        lba: u64,
        /// How many.
        blocks: u64,
        /// How many there are.
        nr_blocks: u64,
    },
    /// It is too large for one command.
    TooLarge {
        /// How many bytes.
        bytes: u64,
        /// The most.
        most: u64,
    },
    /// Its bytes do not all lie inside the target.
    OutsideTarget {
        /// Where in the target it begins.
        offset: u64,
        /// How many bytes.
        bytes: u64,
        /// How many the target has.
        len_bytes: u64,
    },
    /// Its place in the target is no multiple of four, which a PRP needs.
    Unaligned {
        /// Where in the target it begins.
        offset: u64,
    },
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("a transfer of no blocks"),
            Self::OutOfRange { lba, blocks, nr_blocks } => {
                write!(f, "blocks {lba} and {} more, the disk has {nr_blocks}", blocks.saturating_sub(1))
            }
            Self::TooLarge { bytes, most } => write!(f, "{bytes} bytes in one command, at most {most} are allowed"),
            Self::OutsideTarget { offset, bytes, len_bytes } => {
                write!(f, "{bytes} bytes at {offset} of a target that has {len_bytes}")
            }
            Self::Unaligned { offset } => write!(f, "offset {offset} in the target is no multiple of 4"),
        }
    }
}

impl core::error::Error for RequestError {}

impl Limits {
    /// Of a namespace behind a controller.
    #[must_use]
    pub fn new(controller: &Controller, namespace: Namespace) -> Self {
        let Namespace { nr_blocks, block_bytes } = namespace;
        let own = controller.max_transfer_bytes.unwrap_or(u64::MAX);
        let most = own.min(prp::MOST_BYTES).min(MOST_BLOCKS * block_bytes);
        Self { nr_blocks, block_bytes, max_transfer_bytes: most }
    }

    /// Looks at `blocks` blocks from `lba` on, to or from `offset` of a target of `len_bytes` bytes that begins at `iova`.
    /// Answers where the bytes are and how many.
    ///
    /// # Errors
    /// [`RequestError`].
    pub fn check(
        &self,
        (lba, blocks): (u64, u64),
        (iova, len_bytes): (u64, u64),
        offset: u64,
    ) -> Result<(u64, u64), RequestError> {
        if blocks == 0 {
            return Err(RequestError::Empty);
        }
        if lba.checked_add(blocks).is_none_or(|end| end > self.nr_blocks) {
            return Err(RequestError::OutOfRange { lba, blocks, nr_blocks: self.nr_blocks });
        }
        let bytes = blocks.saturating_mul(self.block_bytes);
        if bytes > self.max_transfer_bytes {
            return Err(RequestError::TooLarge { bytes, most: self.max_transfer_bytes });
        }
        let start = iova.checked_add(offset).filter(|start| start.checked_add(bytes).is_some());
        let inside = offset.checked_add(bytes).is_some_and(|end| end <= len_bytes);
        let Some(start) = start.filter(|_| inside) else {
            return Err(RequestError::OutsideTarget { offset, bytes, len_bytes });
        };
        if !start.is_multiple_of(4) {
            return Err(RequestError::Unaligned { offset });
        }
        Ok((start, bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    extern crate std;
    use std::string::ToString;

    const DISK: Limits = Limits { nr_blocks: 1000, block_bytes: 512, max_transfer_bytes: 8192 };

    #[test]
    fn what_fits_and_what_does_not() {
        let check = |place, offset| DISK.check(place, (0x10_0000, 16384), offset);
        assert_eq!(check((999, 1), 512), Ok((0x10_0200, 512)));
        assert_eq!(check((0, 16), 8192), Ok((0x10_2000, 8192)));
        assert_eq!(check((0, 0), 0), Err(RequestError::Empty));
        for place in [(1000, 1), (999, 2), (u64::MAX, 1), (1, u64::MAX)] {
            let expected = RequestError::OutOfRange { lba: place.0, blocks: place.1, nr_blocks: 1000 };
            assert_eq!(check(place, 0), Err(expected));
        }
        assert_eq!(check((0, 17), 0), Err(RequestError::TooLarge { bytes: 8704, most: 8192 }));
        for offset in [15_873, 16_384, u64::MAX, u64::MAX - 0x10_0000] {
            let expected = RequestError::OutsideTarget { offset, bytes: 512, len_bytes: 16384 };
            assert_eq!(check((0, 1), offset), Err(expected));
        }
        assert_eq!(check((0, 1), 2), Err(RequestError::Unaligned { offset: 2 }));
        let line = check((990, 20), 0).expect_err("too far").to_string();
        assert_eq!(line, "blocks 990 and 19 more, the disk has 1000");
    }
}
