//! One line for each thing that is wrong with a table.

use core::fmt;

use super::memory_map::Taken;
use super::types::{
    ByteRange, DeviceFlags, DeviceHandle, Guid, MAX_DEVICES, MAX_RANGES, MemoryAttributes, PAGE_BYTES, RangeKind,
};
use crate::acpi::sdt::TableError;

/// How much a [`Notice`] means; the least comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// A machine in order may say so.
    Normal,
    /// Something is not as it should be, and costs nothing, or only what is said about a device.
    Strange,
    /// A range is not used.
    Refused,
    /// Data were lost, or may be, or the rest of a table is not known.
    Serious,
}

/// Something that the table says and that we refuse, skip, or find worth a line. `Display` gives that line.
///
/// An `offset` counts bytes from the beginning of the table; a `range_index` is the table's own name for a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The table as a whole is not to be trusted: nothing of it is used.
    TableRefused(TableError),
    /// A structure's length is zero, so that no later one can be found: the walk ends.
    StructureEmpty {
        /// Where the structure begins.
        offset: usize,
        /// Its type.
        kind: u16,
    },
    /// A structure goes beyond the table's end, or is shorter than its own header: the walk ends.
    StructureTruncated {
        /// Where the structure begins.
        offset: usize,
        /// How long it claims to be, in bytes; `None` if the table ends before that field.
        claimed_bytes: Option<u16>,
        /// How many bytes of the table are left.
        left_bytes: usize,
    },
    /// A structure is too short for its type: it is skipped.
    StructureTooShort {
        /// Where the structure begins.
        offset: usize,
        /// Its type.
        kind: u16,
        /// How long it is, in bytes.
        claimed_bytes: u16,
        /// How long it must be, in bytes.
        need_bytes: u64,
    },
    /// A structure of a type that we do not know: it is skipped.
    UnknownStructure {
        /// Where the structure begins.
        offset: usize,
        /// Its type.
        kind: u16,
    },
    /// A range of a known kind that is not persistent memory: it is left alone.
    OtherRange {
        /// The range's name.
        range_index: u16,
        /// What it is for.
        kind: RangeKind,
        /// Where it is.
        range: ByteRange,
    },
    /// A range whose kind we do not know: it is left alone.
    UnknownRange {
        /// The range's name.
        range_index: u16,
        /// Its kind.
        guid: Guid,
    },
    /// A range's name is zero, which is reserved: no memory device can refer to the range. It is used.
    RangeIndexZero {
        /// Where it is.
        range: ByteRange,
    },
    /// Two ranges have the same name: which devices lie behind which is not known. Both are used.
    RangeIndexTaken {
        /// The name.
        range_index: u16,
    },
    /// A range of no bytes.
    RangeEmpty {
        /// The range's name.
        range_index: u16,
        /// Where it would begin.
        base: u64,
    },
    /// A range's end is beyond what 64 bits can say.
    RangeWraps {
        /// The range's name.
        range_index: u16,
        /// Where it is.
        range: ByteRange,
    },
    /// A range lies, or ends, above what the CPU can address.
    RangeAboveLimit {
        /// The range's name.
        range_index: u16,
        /// Where it is.
        range: ByteRange,
        /// The first address that the CPU cannot reach.
        phys_end: u64,
    },
    /// A range that somebody else has, by the firmware's memory map or by what PCI functions say.
    RangeTaken {
        /// The range's name.
        range_index: u16,
        /// Where it is.
        range: ByteRange,
        /// Who has which part.
        taken: Taken,
    },
    /// A range that shares bytes with an earlier one.
    RangeOverlapsRange {
        /// The range's name.
        range_index: u16,
        /// Where it is.
        range: ByteRange,
        /// The earlier range's name.
        other_index: u16,
    },
    /// A range in which the firmware keeps a disk or CD image.
    RangeHoldsImage {
        /// The range's name.
        range_index: u16,
        /// Where the image is.
        image: ByteRange,
    },
    /// A range does not hold one whole page.
    RangeSmallerThanPage {
        /// The range's name.
        range_index: u16,
        /// Where it is.
        range: ByteRange,
    },
    /// A range was cut to whole pages.
    RangeTrimmed {
        /// The range's name.
        range_index: u16,
        /// What the table says.
        range: ByteRange,
        /// What is used.
        used: ByteRange,
    },
    /// More ranges than we can hold: this one lies above those that are kept.
    TooManyRanges {
        /// The range's name.
        range_index: u16,
        /// Where it is.
        range: ByteRange,
    },
    /// A range that does not allow write-back caching. It is used.
    RangeNotWriteBack {
        /// The range's name.
        range_index: u16,
        /// What it allows.
        attributes: MemoryAttributes,
    },
    /// More memory devices than we can hold: the range is used, the device is not listed.
    TooManyDevices {
        /// The device.
        handle: DeviceHandle,
    },
    /// The device lost data, or may lose it, or is in bad health. See [`DeviceFlags::READ_ONLY`] for what follows.
    DeviceState {
        /// The device.
        handle: DeviceHandle,
        /// The name of the range that it lies behind, which need not be one that is used; zero for none.
        range_index: u16,
        /// Its state, of which only [`DeviceFlags::TOLD`] is told.
        flags: DeviceFlags,
    },
    /// A device's part is larger than the range that it lies behind, or goes beyond its end.
    RegionTooLarge {
        /// The device.
        handle: DeviceHandle,
        /// The range's name.
        range_index: u16,
        /// The part, counted from the range's base.
        part: ByteRange,
        /// The range's length in bytes.
        range_bytes: u64,
    },
    /// More devices are said to share the range line by line than lie behind it.
    InterleaveWays {
        /// The range's name.
        range_index: u16,
        /// How many are said to share it.
        ways: u16,
        /// How many there are.
        nr_devices: u32,
    },
    /// A device lies behind a range twice: the second time it is not listed.
    DeviceTwice {
        /// The device.
        handle: DeviceHandle,
        /// The range's name.
        range_index: u16,
    },
    /// Two devices, which differ in their SMBIOS handles or serial numbers, have the same handle. Both are listed.
    HandleTaken {
        /// The handle.
        handle: DeviceHandle,
        /// The ranges that they lie behind, by name.
        range_indices: [u16; 2],
    },
}

impl Notice {
    /// A word for machine-readable lines. It never changes.
    #[must_use]
    pub const fn key(&self) -> &'static str {
        match self {
            Self::TableRefused(TableError::NoHeader { .. }) => "table_short",
            Self::TableRefused(TableError::Signature { .. }) => "bad_signature",
            Self::TableRefused(TableError::Length { .. }) => "bad_length",
            Self::TableRefused(TableError::Checksum { .. }) => "bad_checksum",
            Self::StructureEmpty { .. } => "structure_empty",
            Self::StructureTruncated { .. } => "structure_truncated",
            Self::StructureTooShort { .. } => "structure_short",
            Self::UnknownStructure { .. } => "structure_unknown",
            Self::OtherRange { .. } => "range_other",
            Self::UnknownRange { .. } => "range_unknown",
            Self::RangeIndexZero { .. } => "range_index_zero",
            Self::RangeIndexTaken { .. } => "range_index_taken",
            Self::RangeEmpty { .. } => "range_empty",
            Self::RangeWraps { .. } => "range_wraps",
            Self::RangeAboveLimit { .. } => "range_above_limit",
            Self::RangeTaken { .. } => "range_taken",
            Self::RangeOverlapsRange { .. } => "range_overlaps_range",
            Self::RangeHoldsImage { .. } => "range_holds_image",
            Self::RangeSmallerThanPage { .. } => "range_small",
            Self::RangeTrimmed { .. } => "range_trimmed",
            Self::TooManyRanges { .. } => "too_many_ranges",
            Self::RangeNotWriteBack { .. } => "range_not_write_back",
            Self::TooManyDevices { .. } => "too_many_devices",
            Self::DeviceState { .. } => "device_state",
            Self::RegionTooLarge { .. } => "region_large",
            Self::InterleaveWays { .. } => "interleave_ways",
            Self::DeviceTwice { .. } => "device_twice",
            Self::HandleTaken { .. } => "handle_taken",
        }
    }

    /// How much it means.
    #[must_use]
    pub const fn level(&self) -> Level {
        match self {
            Self::OtherRange { kind, .. } if kind.is_normal() => Level::Normal,
            Self::TableRefused(_)
            | Self::StructureEmpty { .. }
            | Self::StructureTruncated { .. }
            | Self::RangeHoldsImage { .. }
            | Self::DeviceState { .. } => Level::Serious,
            Self::RangeEmpty { .. }
            | Self::RangeWraps { .. }
            | Self::RangeAboveLimit { .. }
            | Self::RangeTaken { .. }
            | Self::RangeOverlapsRange { .. }
            | Self::RangeSmallerThanPage { .. }
            | Self::TooManyRanges { .. } => Level::Refused,
            _ => Level::Strange,
        }
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::TableRefused(error) => write!(f, "{error}; table not used"),
            Self::StructureEmpty { .. }
            | Self::StructureTruncated { .. }
            | Self::StructureTooShort { .. }
            | Self::UnknownStructure { .. } => self.fmt_structure(f),
            Self::TooManyDevices { .. }
            | Self::DeviceState { .. }
            | Self::RegionTooLarge { .. }
            | Self::InterleaveWays { .. }
            | Self::DeviceTwice { .. }
            | Self::HandleTaken { .. } => self.fmt_device(f),
            _ => self.fmt_range(f),
        }
    }
}

impl Notice {
    /// The line for a fault of the table's structure.
    fn fmt_structure(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::StructureEmpty { offset, kind } => {
                write!(f, "structure at {offset:#x} (type {kind}) has a length of zero; rest of table not read")
            }
            Self::StructureTruncated { offset, claimed_bytes: Some(claimed), left_bytes } => write!(
                f,
                "structure at {offset:#x} claims {claimed} bytes where {left_bytes} are left; rest of table not read"
            ),
            Self::StructureTruncated { offset, claimed_bytes: None, left_bytes } => write!(
                f,
                "structure at {offset:#x} is cut off: {left_bytes} bytes are left, less than a structure's header"
            ),
            Self::StructureTooShort { offset, kind, claimed_bytes, need_bytes } => write!(
                f,
                "structure at {offset:#x} (type {kind}) has {claimed_bytes} bytes and needs {need_bytes}; skipped"
            ),
            Self::UnknownStructure { offset, kind } => {
                write!(f, "structure at {offset:#x} has unknown type {kind}; skipped")
            }
            _ => Ok(()),
        }
    }

    /// The line for a fault of a memory device.
    fn fmt_device(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::TooManyDevices { handle } => {
                write!(f, "memory device {handle} is not listed: there is room for {MAX_DEVICES}")
            }
            Self::DeviceState { handle, range_index, flags } => {
                match range_index {
                    0 => f.write_str("behind no range: ")?,
                    _ => write!(f, "range {range_index}: ")?,
                }
                write!(f, "memory device {handle} {flags}")
            }
            Self::RegionTooLarge { handle, range_index, part, range_bytes } => write!(
                f,
                "range {range_index}: the part of memory device {handle} ({part}) is larger than the range, \
                 {range_bytes:#x} bytes"
            ),
            Self::InterleaveWays { range_index, ways, nr_devices } => write!(
                f,
                "range {range_index}: {ways} memory devices are said to share it line by line, and {nr_devices} lie behind it"
            ),
            Self::DeviceTwice { handle, range_index } => {
                write!(f, "range {range_index}: memory device {handle} lies behind it twice; listed once")
            }
            Self::HandleTaken { handle, range_indices: [first, second] } => write!(
                f,
                "ranges {first} and {second}: two memory devices have the handle {handle}; which is meant is not known"
            ),
            _ => Ok(()),
        }
    }

    /// The line for a fault of a range.
    fn fmt_range(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::OtherRange { range_index, kind, range } => {
                write!(f, "range {range_index} ({range}) is {kind}; left alone")
            }
            Self::UnknownRange { range_index, guid } => {
                write!(f, "range {range_index} has unknown kind {guid}; left alone")
            }
            Self::RangeIndexZero { range } => {
                write!(f, "range {range} has the reserved index 0; used, but its memory devices are not known")
            }
            Self::RangeIndexTaken { range_index } => {
                write!(f, "range index {range_index} is used twice; both ranges are used")
            }
            Self::RangeEmpty { range_index, base } => {
                write!(f, "range {range_index} at {base:#x} has a length of zero; not used")
            }
            Self::RangeWraps { range_index, range } => {
                write!(f, "range {range_index} ({range}) wraps beyond 64 bits; not used")
            }
            Self::RangeAboveLimit { range_index, range, phys_end } => write!(
                f,
                "range {range_index} ({range}) goes above the CPU's last physical address {:#x}; not used",
                phys_end - 1
            ),
            Self::RangeTaken { range_index, range, taken } => {
                write!(f, "range {range_index} ({range}) overlaps {taken}; not used")
            }
            Self::RangeOverlapsRange { range_index, range, other_index } => {
                write!(f, "range {range_index} ({range}) overlaps range {other_index}; not used")
            }
            Self::RangeHoldsImage { range_index, image } => {
                write!(f, "range {range_index} holds an image of the firmware's ({image}); not used")
            }
            Self::RangeSmallerThanPage { range_index, range } => {
                write!(f, "range {range_index} ({range}) does not hold one whole page of {PAGE_BYTES} bytes; not used")
            }
            Self::RangeTrimmed { range_index, range, used } => {
                write!(f, "range {range_index} ({range}) is cut to whole pages: {used}")
            }
            Self::TooManyRanges { range_index, range } => {
                write!(f, "range {range_index} ({range}) is not used: there is room for the lowest {MAX_RANGES} ranges")
            }
            Self::RangeNotWriteBack { range_index, attributes } => write!(
                f,
                "range {range_index} does not allow write-back caching (attributes {:#x}); used all the same",
                attributes.bits()
            ),
            _ => Ok(()),
        }
    }
}
