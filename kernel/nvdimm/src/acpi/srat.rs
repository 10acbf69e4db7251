//! The System Resource Affinity Table, for the one thing that we use of it: where memory may be plugged in (ACPI 6.5
//! §5.2.16.2).

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::sdt::Header;
use super::{AcpiInfo, AcpiNotice, root};
use crate::nfit::ByteRange;

/// How many ranges are kept; each further one is reported.
pub const MAX_HOT_RANGES: usize = 16;

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Fixed {
    header: Header,
    reserved: [u8; 12],
}

/// Type 1: to which proximity domain a range of memory belongs.
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Memory {
    kind: u8,
    length: u8,
    domain: U32,
    reserved: [u8; 2],
    base: U64,
    len_bytes: U64,
    reserved_2: U32,
    flags: U32,
    reserved_3: U64,
}

const MEMORY: u8 = 1;
/// Bit of the flags: the entry counts.
const ENABLED: u32 = 1;
/// Bit of the flags: memory may be plugged in there.
const HOT_PLUGGABLE: u32 = 1 << 1;

/// Reads a table into `info`.
pub(super) fn read(bytes: &[u8], info: &mut AcpiInfo<'_>) -> Result<(), AcpiNotice> {
    let (_, table) = root::check(bytes, b"SRAT", size_of::<Fixed>())?;
    let mut offset = size_of::<Fixed>();
    while let Some([kind, length]) = table.get(offset..).and_then(|rest| rest.first_chunk()) {
        let (length, left_bytes) = (usize::from(*length), table.len() - offset);
        if length < 2 || length > left_bytes {
            info.note(AcpiNotice::SratEntry { offset, claimed_bytes: length as u8, left_bytes });
            break;
        }
        if *kind == MEMORY
            && let Err(notice) = add(offset, &table[offset..offset + length], info)
        {
            info.note(notice);
        }
        offset += length;
    }
    Ok(())
}

fn add(offset: usize, entry: &[u8], info: &mut AcpiInfo<'_>) -> Result<(), AcpiNotice> {
    // An entry's length came from 8 bits.
    let short = AcpiNotice::SratEntryShort { offset, claimed_bytes: entry.len() as u8 };
    let (memory, _) = Memory::ref_from_prefix(entry).map_err(|_| short)?;
    let flags = memory.flags.get();
    if flags & ENABLED == 0 || flags & HOT_PLUGGABLE == 0 {
        return Ok(());
    }
    let range = ByteRange { base: memory.base.get(), len_bytes: memory.len_bytes.get() };
    if range.len_bytes == 0 || range.base.checked_add(range.len_bytes).is_none() {
        return Err(AcpiNotice::SratRange { offset, base: range.base, len_bytes: range.len_bytes });
    }
    info.hot_ranges.try_push(range).map_err(|_| AcpiNotice::TooManyHotRanges { base: range.base })
}
