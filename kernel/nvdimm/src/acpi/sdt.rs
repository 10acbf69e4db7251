//! The header that all ACPI tables share (ACPI 6.5 §5.2.6), checked.
//!
//! A table is a slice whose end we know, and a length that a table claims is only ever compared with that end.

use core::fmt;

use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Size of [`Header`], in bytes.
pub const HEADER_BYTES: usize = size_of::<Header>();

/// The 36 bytes with which each system description table begins (ACPI 6.5, table 5.4).
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Header {
    /// Four ASCII letters that name the kind of table.
    pub signature: [u8; 4],
    /// Length of the whole table in bytes, header included.
    pub length: U32,
    /// Revision of the kind of table.
    pub revision: u8,
    /// Makes all bytes of the table add up to zero, modulo 256.
    pub checksum: u8,
    /// Who made the machine.
    pub oem_id: [u8; 6],
    /// Which table of that maker.
    pub oem_table_id: [u8; 8],
    /// Which revision of that table.
    pub oem_revision: U32,
    /// Who made the program that made the table.
    pub creator_id: [u8; 4],
    /// Which revision of that program.
    pub creator_revision: U32,
}

/// Why a table was refused as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableError {
    /// There are fewer bytes than a header takes.
    NoHeader {
        /// How many bytes there are.
        have_bytes: usize,
    },
    /// The table is of another kind.
    Signature {
        /// The signature that was found.
        found: [u8; 4],
        /// The signature that was asked for.
        wanted: [u8; 4],
    },
    /// The length in the header is less than the fixed part of the table, or more than the bytes that there are.
    Length {
        /// The length that the header claims, in bytes.
        claimed_bytes: u32,
        /// How many bytes there are.
        have_bytes: usize,
        /// The least that a table of this kind takes, in bytes.
        need_bytes: usize,
    },
    /// The bytes do not add up to zero.
    Checksum {
        /// What they add up to, modulo 256.
        sum: u8,
    },
}

impl fmt::Display for TableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NoHeader { have_bytes } => {
                write!(f, "table has {have_bytes} bytes, less than its {HEADER_BYTES}-byte header")
            }
            Self::Signature { found, wanted } => {
                write!(f, "table signature is \"{}\", not \"{}\"", found.escape_ascii(), wanted.escape_ascii())
            }
            Self::Length { claimed_bytes, have_bytes, need_bytes } => write!(
                f,
                "table claims a length of {claimed_bytes} bytes; it must be at least {need_bytes} and there are \
                 {have_bytes}"
            ),
            Self::Checksum { sum } => write!(f, "table has a bad checksum: its bytes add up to {sum:#04x}, not to 0"),
        }
    }
}

/// The sum of all bytes, modulo 256. A sound table gives zero.
#[must_use]
pub fn byte_sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// Checks a table's signature, length and checksum, and returns it cut to the length that it claims.
///
/// `fixed_bytes` is the least that a table of this kind takes, header included. Bytes after the claimed length
/// are ignored: firmware may have mapped more than the table.
///
/// # Errors
/// The first fault that is found, as a [`TableError`]; none of the table is to be used then.
pub fn check<'a>(
    bytes: &'a [u8],
    signature: &[u8; 4],
    fixed_bytes: usize,
) -> Result<(&'a Header, &'a [u8]), TableError> {
    let have_bytes = bytes.len();
    let Ok((header, _)) = Header::ref_from_prefix(bytes) else {
        return Err(TableError::NoHeader { have_bytes });
    };
    if header.signature != *signature {
        return Err(TableError::Signature { found: header.signature, wanted: *signature });
    }
    let claimed_bytes = header.length.get();
    let need_bytes = fixed_bytes.max(HEADER_BYTES);
    let table = usize::try_from(claimed_bytes).ok().filter(|len| *len >= need_bytes).and_then(|len| bytes.get(..len));
    let Some(table) = table else {
        return Err(TableError::Length { claimed_bytes, have_bytes, need_bytes });
    };
    match byte_sum(table) {
        0 => Ok((header, table)),
        sum => Err(TableError::Checksum { sum }),
    }
}
