//! Makes NFITs, sound ones and broken ones, for tests: host tests read them, end-to-end tests hand them to QEMU.

use alloc::vec::Vec;

use zerocopy::{Immutable, IntoBytes};

use super::raw::{self, StructureHeader, kind};
use super::types::{ByteRange, MemoryAttributes, RangeKind};
use super::{DeviceFlags, PlatformCapabilities, SIGNATURE};
use crate::acpi::sdt::{HEADER_BYTES, Header, byte_sum};

/// A table in the making. The methods append structures; [`finish`](Self::finish) gives the bytes.
#[derive(Clone, Debug, Default)]
pub struct NfitBuilder {
    structures: Vec<u8>,
}

impl NfitBuilder {
    /// A table without structures.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a range of some kind, write-back cacheable and non-volatile, in proximity domain 0.
    #[must_use]
    pub fn range(self, range_index: u16, kind: RangeKind, range: ByteRange) -> Self {
        let guid = RangeKind::GUIDS.iter().find(|(known, _)| *known == kind).map_or([0; 16], |(_, guid)| *guid);
        let attributes = MemoryAttributes::WB | MemoryAttributes::NV;
        self.range_with(range_index, guid, range, attributes, Some(0))
    }

    /// Appends a persistent range.
    #[must_use]
    pub fn persistent(self, range_index: u16, base: u64, len_bytes: u64) -> Self {
        self.range(range_index, RangeKind::Persistent, ByteRange { base, len_bytes })
    }

    /// Appends a range with all its fields chosen freely.
    #[must_use]
    pub fn range_with(
        self,
        range_index: u16,
        type_guid: [u8; 16],
        range: ByteRange,
        attributes: MemoryAttributes,
        proximity_domain: Option<u32>,
    ) -> Self {
        self.structure(&raw::SpaRange {
            header: header::<raw::SpaRange>(kind::SPA_RANGE),
            range_index: range_index.into(),
            flags: if proximity_domain.is_some() { raw::SPA_PROXIMITY_VALID } else { 0 }.into(),
            reserved: 0.into(),
            proximity_domain: proximity_domain.unwrap_or(0).into(),
            type_guid,
            base: range.base.into(),
            length: range.len_bytes.into(),
            attributes: attributes.bits().into(),
        })
    }

    /// Appends a memory device that lies behind the whole of a range, described by control region `control_index`.
    #[must_use]
    pub fn device(self, handle: u32, range_index: u16, control_index: u16, len_bytes: u64, flags: DeviceFlags) -> Self {
        self.structure(&raw::MemoryDeviceMap {
            header: header::<raw::MemoryDeviceMap>(kind::MEMORY_DEVICE),
            handle: handle.into(),
            physical_id: 0.into(),
            region_id: 0.into(),
            range_index: range_index.into(),
            control_index: control_index.into(),
            region_size: len_bytes.into(),
            region_offset: 0.into(),
            device_base: 0.into(),
            interleave_index: 0.into(),
            interleave_ways: 1.into(),
            flags: flags.bits().into(),
            reserved: 0.into(),
        })
    }

    /// Appends a control region.
    #[must_use]
    pub fn control(self, control_index: u16, serial_number: u32) -> Self {
        self.structure(&raw::ControlRegion {
            header: header::<raw::ControlRegion>(kind::CONTROL_REGION),
            control_index: control_index.into(),
            vendor_id: 0x8086.into(),
            device_id: 1.into(),
            revision_id: 1.into(),
            subsystem_vendor_id: 0.into(),
            subsystem_device_id: 0.into(),
            subsystem_revision_id: 0.into(),
            valid_fields: 0,
            manufacturing_location: 0,
            manufacturing_date: 0.into(),
            reserved: [0; 2],
            serial_number: serial_number.into(),
            format_interface: 0x0301.into(),
            block_windows: 0.into(),
        })
    }

    /// Appends the platform's capabilities, of which bits 0 to `highest_valid` count.
    #[must_use]
    pub fn platform(self, highest_valid: u8, bits: PlatformCapabilities) -> Self {
        self.structure(&raw::Capabilities {
            header: header::<raw::Capabilities>(kind::CAPABILITIES),
            highest_valid,
            reserved: [0; 3],
            bits: bits.bits().into(),
            reserved2: 0.into(),
        })
    }

    /// Appends a structure of any type and claimed length, right or wrong, with `body` after its header.
    #[must_use]
    pub fn raw(mut self, kind: u16, claimed_bytes: u16, body: &[u8]) -> Self {
        let header = StructureHeader { kind: kind.into(), length: claimed_bytes.into() };
        self.structures.extend_from_slice(header.as_bytes());
        self.structures.extend_from_slice(body);
        self
    }

    /// Appends bytes as they are.
    #[must_use]
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.structures.extend_from_slice(bytes);
        self
    }

    /// The table: header, length and checksum as they should be.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        let length = raw::FIRST_STRUCTURE + self.structures.len();
        let header = Header {
            signature: SIGNATURE,
            length: u32::try_from(length).unwrap_or(u32::MAX).into(),
            revision: 1,
            checksum: 0,
            oem_id: *b"UNPLUG",
            oem_table_id: *b"TESTNFIT",
            oem_revision: 1.into(),
            creator_id: *b"UNPL",
            creator_revision: 1.into(),
        };
        let mut table = Vec::with_capacity(length);
        table.extend_from_slice(header.as_bytes());
        table.resize(raw::FIRST_STRUCTURE, 0);
        table.extend_from_slice(&self.structures);
        seal(&mut table);
        table
    }

    fn structure<T: IntoBytes + Immutable>(self, structure: &T) -> Self {
        self.bytes(structure.as_bytes())
    }
}

/// Makes the checksum right again after a change. A table shorter than its header is left as it is.
pub fn seal(table: &mut [u8]) {
    if table.len() < HEADER_BYTES {
        return;
    }
    let checksum = core::mem::offset_of!(Header, checksum);
    table[checksum] = 0;
    table[checksum] = 0_u8.wrapping_sub(byte_sum(table));
}

/// Makes the checksum wrong.
pub fn spoil(table: &mut [u8]) {
    seal(table);
    if let Some(checksum) = table.get_mut(core::mem::offset_of!(Header, checksum)) {
        *checksum = checksum.wrapping_add(1);
    }
}

fn header<T>(kind: u16) -> StructureHeader {
    // Each of our structures has fewer than 100 bytes.
    StructureHeader { kind: kind.into(), length: (size_of::<T>() as u16).into() }
}
