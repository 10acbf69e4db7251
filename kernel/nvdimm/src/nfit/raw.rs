//! The NFIT's structures as they lie in memory (ACPI 6.5 §5.2.26.2 to §5.2.26.9): little-endian, unaligned.
//!
//! Only the fixed part of each structure is described, in its oldest and therefore shortest form: a newer
//! revision may add fields at the end, and those are left alone.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes before the first structure: the common table header and a reserved word.
pub const FIRST_STRUCTURE: usize = crate::acpi::sdt::HEADER_BYTES + 4;

/// Structure types (ACPI 6.5 §5.2.26).
pub mod kind {
    /// System physical address (SPA) range.
    pub const SPA_RANGE: u16 = 0;
    /// Memory device to SPA range map.
    pub const MEMORY_DEVICE: u16 = 1;
    /// Interleave.
    pub const INTERLEAVE: u16 = 2;
    /// SMBIOS management information.
    pub const SMBIOS: u16 = 3;
    /// NVDIMM control region.
    pub const CONTROL_REGION: u16 = 4;
    /// NVDIMM block data window region.
    pub const BLOCK_WINDOW: u16 = 5;
    /// Flush hint addresses.
    pub const FLUSH_HINT: u16 = 6;
    /// Platform capabilities.
    pub const CAPABILITIES: u16 = 7;
}

/// What each structure begins with.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct StructureHeader {
    /// One of [`kind`].
    pub kind: U16,
    /// Length of the structure in bytes, this header included.
    pub length: U16,
}

/// Bit of [`SpaRange::flags`]: the proximity domain is valid.
pub const SPA_PROXIMITY_VALID: u16 = 1 << 1;

/// Type 0: a range of system physical addresses.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SpaRange {
    /// Type and length.
    pub header: StructureHeader,
    /// The name by which memory devices refer to the range; zero is reserved.
    pub range_index: U16,
    /// Bit 1 says that the proximity domain is valid.
    pub flags: U16,
    /// Zero.
    pub reserved: U32,
    /// The NUMA node, as in the SRAT.
    pub proximity_domain: U32,
    /// What the range is for, a GUID in its mixed-endian byte order.
    pub type_guid: [u8; 16],
    /// First address of the range.
    pub base: U64,
    /// Length in bytes.
    pub length: U64,
    /// UEFI memory attributes (`EFI_MEMORY_WB` and so on).
    pub attributes: U64,
}

/// Type 1: the part of a memory device that lies behind an SPA range.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct MemoryDeviceMap {
    /// Type and length.
    pub header: StructureHeader,
    /// The device's handle, which is its `_ADR` as well.
    pub handle: U32,
    /// SMBIOS type 17 handle.
    pub physical_id: U16,
    /// Region number within the device.
    pub region_id: U16,
    /// The [`SpaRange::range_index`] that it belongs to; zero for none.
    pub range_index: U16,
    /// The control region that it belongs to.
    pub control_index: U16,
    /// How much of the device is in the range, in bytes.
    pub region_size: U64,
    /// Offset of this part from the range's base, in bytes.
    pub region_offset: U64,
    /// Where it begins in the device's own address space.
    pub device_base: U64,
    /// The interleave structure that applies; zero for none.
    pub interleave_index: U16,
    /// How many devices share the range line by line.
    pub interleave_ways: U16,
    /// State flags, see [`crate::nfit::DeviceFlags`].
    pub flags: U16,
    /// Zero.
    pub reserved: U16,
}

/// Type 2: how the lines of a range are spread over its devices. A `u32` offset for each line follows.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Interleave {
    /// Type and length.
    pub header: StructureHeader,
    /// The name by which memory devices refer to this structure.
    pub interleave_index: U16,
    /// Zero.
    pub reserved: U16,
    /// How many line offsets follow.
    pub line_count: U32,
    /// Bytes in a line.
    pub line_size: U32,
}

/// Type 3: SMBIOS tables for the devices follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Smbios {
    /// Type and length.
    pub header: StructureHeader,
    /// Zero.
    pub reserved: U32,
}

/// Type 4: who made a device. The block-window fields, which only some devices have, are left out.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ControlRegion {
    /// Type and length.
    pub header: StructureHeader,
    /// The name by which memory devices refer to this structure.
    pub control_index: U16,
    /// Identifier of the vendor.
    pub vendor_id: U16,
    /// Identifier of the device.
    pub device_id: U16,
    /// Revision of the device.
    pub revision_id: U16,
    /// Vendor of the controller.
    pub subsystem_vendor_id: U16,
    /// Identifier of the controller.
    pub subsystem_device_id: U16,
    /// Revision of the controller.
    pub subsystem_revision_id: U16,
    /// Bit 0: the manufacturing fields are valid.
    pub valid_fields: u8,
    /// Where it was made.
    pub manufacturing_location: u8,
    /// When it was made.
    pub manufacturing_date: U16,
    /// Zero.
    pub reserved: [u8; 2],
    /// Serial number.
    pub serial_number: U32,
    /// Region format interface code (0x0301 is byte-addressable, no energy backed).
    pub format_interface: U16,
    /// How many block control windows there are.
    pub block_windows: U16,
}

/// Type 5: the data windows of a device that is read in blocks.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BlockWindow {
    /// Type and length.
    pub header: StructureHeader,
    /// The control region that it belongs to.
    pub control_index: U16,
    /// How many windows there are.
    pub windows: U16,
    /// Where the first window begins.
    pub window_offset: U64,
    /// Bytes in a window.
    pub window_size: U64,
    /// Bytes that can be reached through the windows.
    pub capacity: U64,
    /// Where the first block begins.
    pub first_block: U64,
}

/// Type 6: addresses whose writing drains the memory controller's queues. A `u64` for each hint follows.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct FlushHint {
    /// Type and length.
    pub header: StructureHeader,
    /// The device that the hints are for.
    pub handle: U32,
    /// How many addresses follow.
    pub hint_count: U16,
    /// Zero.
    pub reserved: [u8; 6],
}

/// Type 7: what the platform does for persistence.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Capabilities {
    /// Type and length.
    pub header: StructureHeader,
    /// Number of the highest capability bit that is valid.
    pub highest_valid: u8,
    /// Zero.
    pub reserved: [u8; 3],
    /// The capability bits, see [`crate::nfit::PlatformCapabilities`].
    pub bits: U32,
    /// Zero.
    pub reserved2: U32,
}
