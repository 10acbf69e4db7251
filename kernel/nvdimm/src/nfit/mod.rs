//! The NVDIMM Firmware Interface Table: where persistent memory is (ACPI 6.5 §5.2.25).
//!
//! The table is a header and a row of structures, each of which begins with its type and its length. Nothing else
//! says where the next one begins, so a wrong length costs the rest of the table, and a wrong field costs its own
//! structure only:
//!
//! | fault | what is lost |
//! |---|---|
//! | signature, length or checksum of the table | the table |
//! | a structure of length zero, or one that goes beyond the table's end | that structure and all after it |
//! | a structure too short for its type, or of unknown type | that structure |
//! | a range that is empty, wraps, cannot be addressed, overlaps RAM or an earlier range | that range |
//! | part of a page at a range's end | that part |
//!
//! Each fault gives one [`Notice`]. [`parse`] is a pure function: it reads nothing but the slices it is given (the
//! package forbids `unsafe`, so that an access outside would panic), ends after three walks over each table (each
//! step of a walk moves on by at least four bytes), allocates nothing, and never panics on any input. A property
//! test and a fuzz target hold it to that.

mod notice;
mod ram;
mod raw;
mod types;

pub use notice::Notice;
pub use ram::{MAX_RAM_RANGES, RamMap};
pub use types::{
    ByteRange, DeviceFlags, DeviceHandle, Guid, Limits, MAX_DEVICES, MAX_NOTICES, MAX_RANGES, MemoryAttributes,
    MemoryDevice, Nfit, OtherStructures, PAGE_BYTES, PersistentRange, PlatformCapabilities, RangeKind,
};

use arrayvec::ArrayVec;
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use crate::acpi::sdt;
use raw::kind;

/// The table's signature.
pub const SIGNATURE: [u8; 4] = *b"NFIT";

/// Reads any number of tables. There should be one; what later ones say is held against what earlier ones said.
///
/// Each table is the whole of it, header included; bytes after the length that it claims are ignored. A table that
/// is faulty as a whole gives a notice and does not harm the others. No table at all gives an empty [`Nfit`].
#[must_use]
pub fn parse<'t>(tables: impl IntoIterator<Item = &'t [u8]>, limits: Limits<'_>) -> Nfit {
    let mut parser = Parser { limits, nfit: Nfit::default() };
    for (number, bytes) in tables.into_iter().enumerate() {
        match sdt::check(bytes, &SIGNATURE, raw::FIRST_STRUCTURE) {
            Ok((_, table)) => parser.read_table(u8::try_from(number).unwrap_or(u8::MAX), table),
            Err(error) => parser.nfit.note(Notice::TableRefused(error)),
        }
    }
    // Tables list devices in any order (QEMU: that of a hash table). Numbered by address, they keep their names.
    parser.nfit.ranges.sort_unstable_by_key(|range| range.base);
    parser.nfit
}

/// One structure, whose length has been checked against the table's end.
struct Structure<'t> {
    offset: usize,
    kind: u16,
    bytes: &'t [u8],
}

impl<'t> Structure<'t> {
    /// The structure as `T`, with what follows `T` in it.
    ///
    /// # Errors
    /// A notice if the structure is shorter than `T`.
    fn view<T: FromBytes + KnownLayout + Immutable + Unaligned>(&self) -> Result<(&'t T, &'t [u8]), Notice> {
        T::ref_from_prefix(self.bytes).map_err(|_| self.too_short(size_of::<T>() as u64))
    }

    fn too_short(&self, need_bytes: u64) -> Notice {
        // A structure's length came from 16 bits.
        let claimed_bytes = u16::try_from(self.bytes.len()).unwrap_or(u16::MAX);
        Notice::StructureTooShort { offset: self.offset, kind: self.kind, claimed_bytes, need_bytes }
    }

    /// The notice to give if `count` things of `each` bytes do not fit into `tail`.
    fn check_tail(&self, tail: &[u8], count: u64, each: u64) -> Result<(), Notice> {
        let need = count * each;
        if (tail.len() as u64) < need {
            return Err(self.too_short((self.bytes.len() - tail.len()) as u64 + need));
        }
        Ok(())
    }
}

/// Walks a checked table's structures. After an error there is nothing more.
struct Structures<'t> {
    table: &'t [u8],
    offset: usize,
}

impl<'t> Iterator for Structures<'t> {
    type Item = Result<Structure<'t>, Notice>;

    fn next(&mut self) -> Option<Self::Item> {
        let offset = self.offset;
        let rest = self.table.get(offset..).filter(|rest| !rest.is_empty())?;
        self.offset = self.table.len();
        let left_bytes = rest.len();
        let Ok((header, _)) = raw::StructureHeader::ref_from_prefix(rest) else {
            return Some(Err(Notice::StructureTruncated { offset, claimed_bytes: None, left_bytes }));
        };
        let (kind, length) = (header.kind.get(), header.length.get());
        if length == 0 {
            return Some(Err(Notice::StructureEmpty { offset, kind }));
        }
        let whole = usize::from(length);
        match rest.get(..whole).filter(|_| whole >= size_of::<raw::StructureHeader>()) {
            Some(bytes) => {
                self.offset = offset + whole;
                Some(Ok(Structure { offset, kind, bytes }))
            }
            None => Some(Err(Notice::StructureTruncated { offset, claimed_bytes: Some(length), left_bytes })),
        }
    }
}

impl Nfit {
    fn note(&mut self, notice: Notice) {
        if self.notices.try_push(notice).is_err() {
            self.notices_dropped = self.notices_dropped.saturating_add(1);
        }
    }

    /// Takes back each range that `is_bad` picks, with a notice for each, and the devices that lay behind them.
    fn refuse(&mut self, is_bad: impl Fn(&PersistentRange) -> bool, notice: impl Fn(&PersistentRange) -> Notice) {
        let Self { ranges, devices, .. } = self;
        let bad: ArrayVec<_, MAX_RANGES> = ranges.iter().copied().filter(&is_bad).collect();
        ranges.retain(|range| !is_bad(range));
        devices.retain(|device| ranges.iter().any(|range| device.is_behind(range)));
        bad.iter().for_each(|range| self.note(notice(range)));
    }
}

struct Parser<'a> {
    limits: Limits<'a>,
    nfit: Nfit,
}

impl Parser<'_> {
    /// Reads a checked table in three walks, since a device may come before the range that it lies behind, and a
    /// control region before the device that it describes.
    fn read_table(&mut self, number: u8, table: &[u8]) {
        let structures = || Structures { table, offset: raw::FIRST_STRUCTURE };
        for structure in structures() {
            if let Err(notice) = structure.and_then(|structure| self.first_walk(number, &structure)) {
                self.nfit.note(notice);
            }
        }
        // What these walks find wrong with a structure's shape, the first walk has noted.
        for structure in structures().flatten() {
            self.second_walk(number, &structure);
        }
        for structure in structures().flatten().filter(|s| s.kind == kind::CONTROL_REGION) {
            if let Ok((control, _)) = structure.view() {
                self.read_control(number, control);
            }
        }
    }

    /// Takes in the ranges, and checks the shape of each structure.
    fn first_walk(&mut self, table: u8, structure: &Structure<'_>) -> Result<(), Notice> {
        let others = &mut self.nfit.others;
        match structure.kind {
            kind::SPA_RANGE => self.read_range(table, structure.view()?.0),
            kind::MEMORY_DEVICE => structure.view::<raw::MemoryDeviceMap>().map(drop)?,
            kind::INTERLEAVE => {
                let (interleave, tail) = structure.view::<raw::Interleave>()?;
                structure.check_tail(tail, interleave.line_count.get().into(), 4)?;
                others.interleaves += 1;
            }
            kind::SMBIOS => {
                structure.view::<raw::Smbios>()?;
                others.smbios += 1;
            }
            kind::CONTROL_REGION => {
                structure.view::<raw::ControlRegion>()?;
                others.control_regions += 1;
            }
            kind::BLOCK_WINDOW => {
                structure.view::<raw::BlockWindow>()?;
                others.block_windows += 1;
            }
            kind::FLUSH_HINT => {
                let (hint, tail) = structure.view::<raw::FlushHint>()?;
                structure.check_tail(tail, hint.hint_count.get().into(), 8)?;
                others.flush_hints += 1;
            }
            kind::CAPABILITIES => {
                let (capabilities, _) = structure.view::<raw::Capabilities>()?;
                let valid = u32::MAX >> 31_u8.saturating_sub(capabilities.highest_valid);
                self.nfit.platform |= PlatformCapabilities::from_bits_retain(capabilities.bits.get() & valid);
            }
            kind => {
                return Err(Notice::UnknownStructure { offset: structure.offset, kind });
            }
        }
        Ok(())
    }

    /// Holds devices and firmware images against the ranges that the first walk took in.
    fn second_walk(&mut self, table: u8, structure: &Structure<'_>) {
        match structure.kind {
            kind::SPA_RANGE => {
                if let Ok((range, _)) = structure.view() {
                    self.read_image(range);
                }
            }
            kind::MEMORY_DEVICE => {
                if let Ok((device, _)) = structure.view() {
                    self.read_device(table, device);
                }
            }
            _ => {}
        }
    }

    /// Takes in a range if it is persistent memory and nothing speaks against it.
    fn read_range(&mut self, table: u8, spa: &raw::SpaRange) {
        let range_index = spa.range_index.get();
        let range = ByteRange { base: spa.base.get(), len_bytes: spa.length.get() };
        match RangeKind::from_guid(&spa.type_guid) {
            Some(RangeKind::Persistent) => {}
            Some(kind) => {
                return self.nfit.note(Notice::OtherRange { range_index, kind, range });
            }
            None => {
                let guid = Guid(spa.type_guid);
                return self.nfit.note(Notice::UnknownRange { range_index, guid });
            }
        }
        let used = match self.check_range(range_index, range) {
            Ok(used) => used,
            Err(notice) => return self.nfit.note(notice),
        };
        if self.nfit.ranges.is_full() {
            return self.nfit.note(Notice::TooManyRanges { range_index, range });
        }
        if used != range {
            self.nfit.note(Notice::RangeTrimmed { range_index, range, used });
        }
        if range_index == 0 {
            self.nfit.note(Notice::RangeIndexZero { range });
        } else if self.nfit.ranges.iter().any(|r| (r.table, r.range_index) == (table, range_index)) {
            self.nfit.note(Notice::RangeIndexTaken { range_index });
        }
        let attributes = MemoryAttributes::from_bits_retain(spa.attributes.get());
        if !attributes.contains(MemoryAttributes::WB) {
            self.nfit.note(Notice::RangeNotWriteBack { range_index, attributes });
        }
        let has_domain = spa.flags.get() & raw::SPA_PROXIMITY_VALID != 0;
        self.nfit.ranges.push(PersistentRange {
            base: used.base,
            len_bytes: used.len_bytes,
            range_index,
            proximity_domain: has_domain.then(|| spa.proximity_domain.get()),
            attributes,
            table,
        });
    }

    /// The whole pages of a range that can be used.
    ///
    /// # Errors
    /// The notice that says why it cannot.
    fn check_range(&self, range_index: u16, range: ByteRange) -> Result<ByteRange, Notice> {
        if range.len_bytes == 0 {
            return Err(Notice::RangeEmpty { range_index, base: range.base });
        }
        let Some(end) = range.base.checked_add(range.len_bytes) else {
            return Err(Notice::RangeWraps { range_index, range });
        };
        let phys_end = self.limits.phys_end();
        if end > phys_end {
            return Err(Notice::RangeAboveLimit { range_index, range, phys_end });
        }
        if let Some(ram) = self.limits.ram.iter().find(|ram| ram.overlaps(&range)) {
            return Err(Notice::RangeOverlapsRam { range_index, range, ram: *ram });
        }
        if let Some(other) = self.nfit.ranges.iter().find(|other| other.bytes().overlaps(&range)) {
            return Err(Notice::RangeOverlapsRange { range_index, range, other_index: other.range_index });
        }
        range.trimmed_to_pages().ok_or(Notice::RangeSmallerThanPage { range_index, range })
    }

    /// Drops the ranges in which the firmware keeps an image: to write there would destroy it.
    fn read_image(&mut self, spa: &raw::SpaRange) {
        if !RangeKind::from_guid(&spa.type_guid).is_some_and(RangeKind::is_firmware_image) {
            return;
        }
        let image = ByteRange { base: spa.base.get(), len_bytes: spa.length.get() };
        self.nfit.refuse(
            |range| range.bytes().overlaps(&image),
            |range| Notice::RangeHoldsImage { range_index: range.range_index, image },
        );
    }

    /// Takes in a memory device if the range that it lies behind was taken in.
    fn read_device(&mut self, table: u8, map: &raw::MemoryDeviceMap) {
        let range_index = map.range_index.get();
        let handle = DeviceHandle(map.handle.get());
        let flags = DeviceFlags::from_bits_retain(map.flags.get());
        let device = MemoryDevice {
            handle,
            physical_id: map.physical_id.get(),
            range_index,
            region_len_bytes: map.region_size.get(),
            region_offset_bytes: map.region_offset.get(),
            interleave_ways: map.interleave_ways.get(),
            flags,
            serial_number: None,
            control_index: map.control_index.get(),
            table,
        };
        if !self.nfit.ranges.iter().any(|range| device.is_behind(range)) {
            return;
        }
        if flags.contains(DeviceFlags::MAP_FAILED) {
            return self
                .nfit
                .refuse(|range| device.is_behind(range), |_| Notice::DeviceNotMapped { handle, range_index });
        }
        if flags.intersects(DeviceFlags::UNSAFE) {
            self.nfit.note(Notice::DeviceUnsafe { handle, range_index, flags });
        }
        if self.nfit.devices.try_push(device).is_err() {
            self.nfit.note(Notice::TooManyDevices { handle });
        }
    }

    /// Gives the devices that a control region describes their serial number.
    fn read_control(&mut self, table: u8, control: &raw::ControlRegion) {
        let control_index = control.control_index.get();
        for device in &mut self.nfit.devices {
            if control_index != 0 && (device.table, device.control_index) == (table, control_index) {
                device.serial_number = Some(control.serial_number.get());
            }
        }
    }
}
