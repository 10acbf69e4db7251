//! One line for each thing that is wrong with a table.

use core::fmt;

use super::types::{
    ByteRange, DeviceFlags, DeviceHandle, Guid, MAX_DEVICES, MAX_RANGES, MemoryAttributes, PAGE_BYTES, RangeKind,
};
use crate::acpi::sdt::TableError;

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
    /// A range that the firmware's memory map has as RAM too.
    RangeOverlapsRam {
        /// The range's name.
        range_index: u16,
        /// Where it is.
        range: ByteRange,
        /// The RAM.
        ram: ByteRange,
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
    /// More ranges than we can hold.
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
    /// The firmware did not map the device into the range: the range is not used.
    DeviceNotMapped {
        /// The device.
        handle: DeviceHandle,
        /// The range's name.
        range_index: u16,
    },
    /// The device lost data, or may lose it. The range is used.
    DeviceUnsafe {
        /// The device.
        handle: DeviceHandle,
        /// The range's name.
        range_index: u16,
        /// Why.
        flags: DeviceFlags,
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
            Self::RangeOverlapsRam { .. } => "range_overlaps_ram",
            Self::RangeOverlapsRange { .. } => "range_overlaps_range",
            Self::RangeHoldsImage { .. } => "range_holds_image",
            Self::RangeSmallerThanPage { .. } => "range_small",
            Self::RangeTrimmed { .. } => "range_trimmed",
            Self::TooManyRanges { .. } => "too_many_ranges",
            Self::RangeNotWriteBack { .. } => "range_not_write_back",
            Self::TooManyDevices { .. } => "too_many_devices",
            Self::DeviceNotMapped { .. } => "device_not_mapped",
            Self::DeviceUnsafe { .. } => "device_unsafe",
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
            Self::TooManyDevices { .. } | Self::DeviceNotMapped { .. } | Self::DeviceUnsafe { .. } => {
                self.fmt_device(f)
            }
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
            Self::DeviceNotMapped { handle, range_index } => write!(
                f,
                "range {range_index}: the firmware did not map memory device {handle} into it; range not used"
            ),
            Self::DeviceUnsafe { handle, range_index, flags } => {
                write!(f, "range {range_index}: memory device {handle} ")?;
                let mut separator = "";
                for (flag, text) in [
                    (DeviceFlags::SAVE_FAILED, "failed to save its data"),
                    (DeviceFlags::RESTORE_FAILED, "failed to restore its data"),
                    (DeviceFlags::FLUSH_FAILED, "was not flushed at the last power loss"),
                    (DeviceFlags::NOT_ARMED, "is not armed: writes may not survive a power loss"),
                ] {
                    if flags.contains(flag) {
                        write!(f, "{separator}{text}")?;
                        separator = ", ";
                    }
                }
                Ok(())
            }
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
            Self::RangeOverlapsRam { range_index, range, ram } => {
                write!(f, "range {range_index} ({range}) overlaps RAM ({ram}); not used")
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
                write!(f, "range {range_index} ({range}) is not used: there is room for {MAX_RANGES} ranges")
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
