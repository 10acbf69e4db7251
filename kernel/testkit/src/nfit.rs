//! NFITs (ACPI 6.5 §5.2.26), sound ones and broken ones, and what must hold whatever a table says.
//!
//! The bytes are written field by field, and not by the parser's own description of them: a field that is in the wrong
//! place there would be in the same wrong place here.

use nvdimm::nfit::{
    ByteRange, DeviceFlags, Level, Limits, MAX_DEVICES, MAX_NOTICES, MemoryAttributes, Nfit, Owner, PAGE_BYTES,
    PlatformCapabilities, RangeKind, SIGNATURE, Taken, parse,
};

/// Bytes of the header that every ACPI table has, of which the tenth is the checksum.
const HEADER_BYTES: usize = 36;
const CHECKSUM: usize = 9;
/// Bytes before the first structure: the common table header and a reserved word.
pub const FIRST_STRUCTURE: usize = HEADER_BYTES + 4;

/// RAM, for [`Limits::taken`].
#[must_use]
pub const fn ram(base: u64, len_bytes: u64) -> Taken {
    Taken { range: ByteRange { base, len_bytes }, by: Owner::Ram }
}

/// A memory device's part of a range. The default has no fault, no range, and nothing in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceRow {
    /// The device's handle.
    pub handle: u32,
    /// Its handle in the SMBIOS.
    pub physical_id: u16,
    /// The range that it lies behind.
    pub range_index: u16,
    /// The control region that describes it.
    pub control_index: u16,
    /// How many bytes of it are in the range.
    pub len_bytes: u64,
    /// Where they begin, counted from the range's base.
    pub offset_bytes: u64,
    /// How many devices share the range line by line.
    pub ways: u16,
    /// Its state.
    pub flags: DeviceFlags,
}

impl Default for DeviceRow {
    fn default() -> Self {
        let (handle, physical_id, range_index, control_index) = (0, 0, 0, 0);
        let (len_bytes, offset_bytes, ways, flags) = (0, 0, 1, DeviceFlags::empty());
        Self { handle, physical_id, range_index, control_index, len_bytes, offset_bytes, ways, flags }
    }
}

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
        let valid = if proximity_domain.is_some() { 1_u16 << 1 } else { 0 };
        self.structure(0, 56, |body| {
            body.extend(range_index.to_le_bytes());
            body.extend(valid.to_le_bytes());
            body.extend([0; 4]);
            body.extend(proximity_domain.unwrap_or(0).to_le_bytes());
            body.extend(type_guid);
            for word in [range.base, range.len_bytes, attributes.bits()] {
                body.extend(word.to_le_bytes());
            }
        })
    }

    /// Appends a memory device that lies behind the whole of a range, described by control region `control_index`.
    #[must_use]
    pub fn device(self, handle: u32, range_index: u16, control_index: u16, len_bytes: u64, flags: DeviceFlags) -> Self {
        self.device_row(DeviceRow { handle, range_index, control_index, len_bytes, flags, ..DeviceRow::default() })
    }

    /// Appends a memory device with all its fields chosen freely.
    #[must_use]
    pub fn device_row(self, row: DeviceRow) -> Self {
        self.structure(1, 48, |body| {
            body.extend(row.handle.to_le_bytes());
            body.extend(row.physical_id.to_le_bytes());
            // Its region.
            body.extend([0; 2]);
            body.extend(row.range_index.to_le_bytes());
            body.extend(row.control_index.to_le_bytes());
            body.extend(row.len_bytes.to_le_bytes());
            body.extend(row.offset_bytes.to_le_bytes());
            // First address in the device; no interleave structure.
            body.extend([0; 10]);
            body.extend(row.ways.to_le_bytes());
            body.extend(row.flags.bits().to_le_bytes());
            body.extend([0; 2]);
        })
    }

    /// Appends a control region.
    #[must_use]
    pub fn control(self, control_index: u16, serial_number: u32) -> Self {
        self.structure(4, 32, |body| {
            for half in [control_index, 0x8086, 1, 1] {
                body.extend(half.to_le_bytes());
            }
            // The subsystem, and when and where it was made.
            body.extend([0; 12]);
            body.extend(serial_number.to_le_bytes());
            // Byte-addressable, no energy backed; no block windows.
            body.extend(0x0301_u16.to_le_bytes());
            body.extend([0; 2]);
        })
    }

    /// Appends the platform's capabilities, of which bits 0 to `highest_valid` count.
    #[must_use]
    pub fn platform(self, highest_valid: u8, bits: PlatformCapabilities) -> Self {
        self.structure(7, 16, |body| {
            body.extend([highest_valid, 0, 0, 0]);
            body.extend(bits.bits().to_le_bytes());
            body.extend([0; 4]);
        })
    }

    /// Appends a structure of any type and claimed length, right or wrong, with `body` after its header.
    #[must_use]
    pub fn raw(mut self, kind: u16, claimed_bytes: u16, body: &[u8]) -> Self {
        self.structures.extend(kind.to_le_bytes());
        self.structures.extend(claimed_bytes.to_le_bytes());
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
        let length = FIRST_STRUCTURE + self.structures.len();
        let mut table = Vec::with_capacity(length);
        table.extend(SIGNATURE);
        table.extend(u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
        // Revision and checksum.
        table.extend([1, 0]);
        table.extend(*b"UNPLUGTESTNFIT");
        table.extend(1_u32.to_le_bytes());
        table.extend(*b"UNPL");
        table.extend(1_u32.to_le_bytes());
        table.resize(FIRST_STRUCTURE, 0);
        table.extend(self.structures);
        seal(&mut table);
        table
    }

    /// Appends a structure of `len` bytes, whose `body` comes after type and length.
    fn structure(self, kind: u16, len: u16, body: impl FnOnce(&mut Vec<u8>)) -> Self {
        let mut bytes = Vec::new();
        body(&mut bytes);
        assert_eq!(bytes.len() + 4, usize::from(len), "structure of type {kind}");
        self.raw(kind, len, &bytes)
    }
}

/// Makes the checksum right again after a change. A table shorter than its header is left as it is.
pub fn seal(table: &mut [u8]) {
    if table.len() < HEADER_BYTES {
        return;
    }
    table[CHECKSUM] = 0;
    table[CHECKSUM] = table.iter().fold(0, |sum: u8, byte| sum.wrapping_sub(*byte));
}

/// Makes the checksum wrong.
pub fn spoil(table: &mut [u8]) {
    seal(table);
    if let Some(checksum) = table.get_mut(CHECKSUM) {
        *checksum = checksum.wrapping_add(1);
    }
}

/// Parses the tables and checks what came out against what went in.
///
/// # Panics
/// If a range that was handed out is one that should have been refused, if a notice does not fit one line, or if
/// the parser itself panics.
pub fn check(tables: &[&[u8]], limits: Limits<'_>) -> Nfit {
    let nfit = parse(tables.iter().copied(), limits);
    for (number, range) in nfit.ranges.iter().enumerate() {
        assert!(range.len_bytes > 0 && range.len_bytes.is_multiple_of(PAGE_BYTES), "length of {range:x?}");
        assert!(range.base.is_multiple_of(PAGE_BYTES), "base of {range:x?}");
        let end = range.base.checked_add(range.len_bytes);
        assert!(end.is_some_and(|end| end <= limits.phys_end()), "end of {range:x?}");
        for taken in limits.taken {
            assert!(!taken.range.overlaps(&range.bytes()), "{range:x?} overlaps {taken:x?}");
        }
        for earlier in &nfit.ranges[..number] {
            assert!(!earlier.bytes().overlaps(&range.bytes()), "{range:x?} overlaps {earlier:x?}");
        }
        assert!(nfit.devices_of(range).count() <= MAX_DEVICES);
    }
    assert!(nfit.ranges.is_sorted_by_key(|range| range.base), "ranges out of order");
    for device in &nfit.devices {
        assert!(nfit.ranges.iter().any(|range| device.is_behind(range)), "{device:x?} lies behind nothing");
    }
    assert!(nfit.notices_dropped == 0 || nfit.notices.len() == MAX_NOTICES, "a notice was dropped too early");
    let all_serious = nfit.notices.iter().all(|notice| notice.level() == Level::Serious);
    assert!(nfit.serious_dropped == 0 || all_serious, "a serious notice was dropped, and another one kept");
    for notice in &nfit.notices {
        let line = format!("{notice}");
        assert!(!line.is_empty() && line.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "line {line:?}");
        assert!(line.len() <= 200, "line of {} bytes: {line}", line.len());
        assert!(!notice.key().contains(' '));
    }
    nfit
}
