//! The NVDIMM Firmware Interface Table: where persistent memory is (ACPI 6.5 §5.2.26).
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
//! | a range that is empty, wraps, cannot be addressed, overlaps what somebody else has or an earlier range | that range |
//! | more ranges than [`MAX_RANGES`] | the highest |
//! | part of a page at a range's end | that part |
//! | a device behind a range that says of itself that it lost data, or will | writing to that range |
//!
//! Each fault gives one [`Notice`]. [`parse`] is a pure function: it reads nothing but the slices it is given (the
//! package forbids `unsafe`, so that an access outside would panic), ends after four walks over each table (each
//! step of a walk moves on by at least four bytes), asks once for memory, which does not depend on the input, and never
//! panics on any. A property test and a fuzz target hold it to that.

mod devices;
mod memory_map;
mod notice;
mod ram;
mod raw;
mod types;

pub use memory_map::{MemoryMap, Owner, Taken};
pub use notice::{Level, Notice};
pub use ram::{MAX_RAM_RANGES, RamMap};
pub use types::{
    ByteRange, DeviceFlags, DeviceHandle, DevicePlace, Guid, Limits, MAX_DEVICES, MAX_NOTICES, MAX_RANGES,
    MemoryAttributes, MemoryDevice, Nfit, OtherStructures, PAGE_BYTES, PersistentRange, PlatformCapabilities,
    RangeKind,
};

use alloc::vec::Vec;

use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use crate::acpi::sdt;
use raw::kind;

/// The table's signature.
pub const SIGNATURE: [u8; 4] = *b"NFIT";

/// A whole table around the structures of one, as who gives them out without a header leaves it to us.
#[must_use]
pub fn table_of(structures: &[u8]) -> Vec<u8> {
    let mut table = alloc::vec![0; raw::FIRST_STRUCTURE];
    table.extend_from_slice(structures);
    let len = u32::try_from(table.len()).unwrap_or(u32::MAX);
    table[..4].copy_from_slice(&SIGNATURE);
    table[4..8].copy_from_slice(&len.to_le_bytes());
    table[8] = 1;
    table[9] = 0_u8.wrapping_sub(sdt::byte_sum(&table));
    table
}

/// Reads any number of tables. There should be one; what later ones say is held against what earlier ones said.
///
/// Each table is the whole of it, header included; bytes after the length that it claims are ignored. A table that
/// is faulty as a whole gives a notice and does not harm the others. No table at all gives an empty [`Nfit`].
#[must_use]
pub fn parse<'t>(tables: impl IntoIterator<Item = &'t [u8], IntoIter: Clone>, limits: Limits<'_>) -> Nfit {
    let tables = tables.into_iter();
    let checked = || tables.clone().map(|bytes| sdt::check(bytes, &SIGNATURE, raw::FIRST_STRUCTURE));
    let sound = || {
        (0_u8..=u8::MAX)
            .chain(core::iter::repeat(u8::MAX))
            .zip(checked())
            .filter_map(|(number, table)| table.ok().map(|(_, table)| (number, table)))
    };
    let mut parser = Parser { limits, images: RamMap::default(), nfit: Nfit::with_room() };
    // An image of the firmware's may be named after the range in which it lies, and in another table.
    sound().for_each(|(_, table)| parser.find_images(table));
    for error in checked().filter_map(Result::err) {
        parser.nfit.note(Notice::TableRefused(error));
    }
    for (number, table) in sound() {
        parser.read_table(number, table);
    }
    parser.check_devices();
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
    /// Adds a notice. Where there is no room, the last one of the least serious gives way, be it the new one.
    fn note(&mut self, notice: Notice) {
        if self.notices.len() < MAX_NOTICES {
            return self.notices.push(notice);
        }
        let least = self.notices.iter().enumerate().rev().min_by_key(|(_, kept)| kept.level());
        let dropped = match least {
            Some((at, kept)) if kept.level() < notice.level() => {
                let kept = self.notices.remove(at);
                self.notices.push(notice);
                kept
            }
            _ => notice,
        };
        self.notices_dropped = self.notices_dropped.saturating_add(1);
        if dropped.level() == Level::Serious {
            self.serious_dropped = self.serious_dropped.saturating_add(1);
        }
    }
}

struct Parser<'a> {
    limits: Limits<'a>,
    /// Where the firmware keeps images of its own.
    images: RamMap,
    nfit: Nfit,
}

/// A checked table's structures.
fn structures(table: &[u8]) -> Structures<'_> {
    Structures { table, offset: raw::FIRST_STRUCTURE }
}

impl Parser<'_> {
    /// Reads a checked table in three walks, since a device may come before the range that it lies behind, and a
    /// control region before the device that it describes.
    fn read_table(&mut self, number: u8, table: &[u8]) {
        for structure in structures(table) {
            if let Err(notice) = structure.and_then(|structure| self.first_walk(number, &structure)) {
                self.nfit.note(notice);
            }
        }
        // What these walks find wrong with a structure's shape, the first walk has noted.
        for structure in structures(table).flatten().filter(|s| s.kind == kind::MEMORY_DEVICE) {
            if let Ok((device, _)) = structure.view() {
                self.read_device(number, device);
            }
        }
        for structure in structures(table).flatten().filter(|s| s.kind == kind::CONTROL_REGION) {
            if let Ok((control, _)) = structure.view() {
                self.read_control(number, control);
            }
        }
    }

    /// Notes where the firmware keeps an image of its own: to write there would destroy it.
    fn find_images(&mut self, table: &[u8]) {
        for structure in structures(table).flatten().filter(|s| s.kind == kind::SPA_RANGE) {
            if let Ok((spa, _)) = structure.view::<raw::SpaRange>()
                && RangeKind::from_guid(&spa.type_guid).is_some_and(RangeKind::is_firmware_image)
            {
                self.images.add(ByteRange { base: spa.base.get(), len_bytes: spa.length.get() });
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
        if !self.make_room(range_index, used) {
            return;
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
        // Tables list ranges in any order (QEMU: that of a hash table). Numbered by address, they keep their names.
        let at = self.nfit.ranges.partition_point(|other| other.base < used.base);
        let range = PersistentRange {
            base: used.base,
            len_bytes: used.len_bytes,
            range_index,
            proximity_domain: has_domain.then(|| spa.proximity_domain.get()),
            attributes,
            flags: DeviceFlags::empty(),
            nr_devices: 0,
            claimed_bytes: range.len_bytes,
            table,
        };
        self.nfit.ranges.insert(at, range);
    }

    /// Whether there is room for a range, which overlaps none that is kept: where there is not, the highest gives way.
    fn make_room(&mut self, range_index: u16, range: ByteRange) -> bool {
        if self.nfit.ranges.len() < MAX_RANGES {
            return true;
        }
        let is_lower = self.nfit.ranges.last().is_some_and(|highest| range.base < highest.base);
        let gone = if is_lower { self.nfit.ranges.pop() } else { None };
        let (gone_index, gone) = gone.map_or((range_index, range), |gone| (gone.range_index, gone.bytes()));
        self.nfit.note(Notice::TooManyRanges { range_index: gone_index, range: gone });
        is_lower
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
        if let Some(taken) = self.limits.taken.iter().find(|taken| taken.range.overlaps(&range)) {
            return Err(Notice::RangeTaken { range_index, range, taken: *taken });
        }
        if let Some(image) = self.images.as_slice().iter().find(|image| image.overlaps(&range)) {
            return Err(Notice::RangeHoldsImage { range_index, image: *image });
        }
        if let Some(other) = self.nfit.ranges.iter().find(|other| other.bytes().overlaps(&range)) {
            return Err(Notice::RangeOverlapsRange { range_index, range, other_index: other.range_index });
        }
        range.trimmed_to_pages().ok_or(Notice::RangeSmallerThanPage { range_index, range })
    }
}
