//! The label area of an NVDIMM: which parts of it are namespaces.
//!
//! The area begins with two index blocks, of which one is current and the other is the one before it. An index block has
//! a bitmap of the slots that follow; a label is in use where its bit is **clear**. Whoever changes a label writes it to
//! a free slot and then the next index block, so that a slot is a label only by what the current index block says:
//! slots also hold versions that were given up, and labels that were freed.
//!
//! Linux: `drivers/nvdimm/label.c`; UEFI 2.10 §13.19.

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

use crate::{Medium, Uuid, array_at, fletcher, has, u16_at, u32_at, u64_at};

const SIGNATURE: &[u8; 16] = b"NAMESPACE_INDEX\0";
/// Bytes of an index block without its bitmap.
const HEAD: usize = 72;
/// Index blocks are multiples of this many bytes.
const INDEX_ALIGN: u64 = 256;
const CHECKSUM_AT: usize = 64;
/// Where the checksum of a label of version 1.2 is.
const LABEL_CHECKSUM_AT: usize = 248;
/// The largest index block that is read: that of some 500,000 slots.
const MAX_INDEX: u64 = 64 << 10;
/// The smallest and the largest area that is looked at.
const AREAS: core::ops::RangeInclusive<u64> = 1024..=64 << 20;

/// Labels in use that are read. Those that are made have 1,020 slots at most in QEMU's 128 KiB, and use a few.
pub const MAX_LABELS: u32 = 1024;

/// The label is being written, or its writer was interrupted.
pub const UPDATING: u32 = 8;

/// An index block that was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    /// 0 or 1: the first or the second.
    pub number: u64,
    /// Goes round: 1, 2, 3, 1.
    pub sequence: u32,
    /// Version, major and minor.
    pub version: (u16, u16),
    /// Bytes of a label: 128 until version 1.1, 256 from 1.2 on.
    pub label_bytes: u64,
    /// Where the first slot is.
    pub first_slot: u64,
    /// How many slots there are.
    pub nr_slots: u32,
    free: Vec<u8>,
}

impl Index {
    /// Is there a label in the slot?
    #[must_use]
    pub fn is_used(&self, slot: u32) -> bool {
        let byte = self.free.get(slot as usize / 8).copied().unwrap_or(0xff);
        slot < self.nr_slots && byte & (1 << (slot % 8)) == 0
    }

    /// Comes `other` right after it?
    fn is_before(&self, other: &Self) -> bool {
        other.sequence == self.sequence % 3 + 1
    }
}

/// A label in use, as it is on the medium but for what was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// The namespace's own UUID: what `ndctl` calls `raw_uuid` where an info block has another.
    pub uuid: Uuid,
    /// Its name; mostly empty.
    pub name: String,
    /// As they are there; [`UPDATING`] is the one that is looked at, and is clear.
    pub flags: u32,
    /// Labels of the namespace: one for each NVDIMM of an interleave set.
    pub nr_labels: u16,
    /// Which of them this is.
    pub position: u16,
    /// Names the interleave set.
    pub set_cookie: u64,
    /// Bytes of a sector.
    pub sector_bytes: u64,
    /// Where the namespace begins, in the NVDIMM's own addresses.
    pub dpa: u64,
    /// Its size in bytes.
    pub len_bytes: u64,
    /// The slot.
    pub slot: u32,
    /// What the namespace is to be, since version 1.2: [`ABSTRACTION_BTT`] for instance.
    pub abstraction: Option<Uuid>,
}

/// The abstraction of a namespace in sector mode, by its UUID's bytes: BTT 2.0, whose info block is at the beginning.
pub const ABSTRACTION_BTT: Uuid =
    Uuid([0xfc, 0x3b, 0x63, 0x18, 0x35, 0x17, 0x17, 0x42, 0x8a, 0xc9, 0x17, 0x23, 0x92, 0x82, 0xd3, 0xf8]);

/// What is wrong with an area, in one line each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// An index block is there and cannot be trusted, for this reason.
    Index(u64, &'static str),
    /// Neither index block can be trusted: no label can.
    NoIndex,
    /// So many slots are in use, more than [`MAX_LABELS`]. Which of them share bytes would not be known: none is read.
    TooMany(u32),
    /// A slot that is in use holds no label, for this reason.
    Slot(u32, &'static str),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Index(number, why) => write!(f, "label area: index block {number}: {why}"),
            Self::NoIndex => f.write_str("label area: neither index block can be trusted, so no label is"),
            Self::TooMany(used) => {
                write!(f, "label area: {used} slots are in use, more than {MAX_LABELS}, so no label is read")
            }
            Self::Slot(slot, why) => write!(f, "label area: slot {slot}: {why}; it is left alone"),
        }
    }
}

/// What a label area says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Area {
    /// The current index block; `None` where there is none that can be trusted.
    pub index: Option<Index>,
    /// The labels in use, by slot.
    pub labels: Vec<Label>,
    /// What was wrong.
    pub faults: Vec<Fault>,
}

/// Reads an area. `None` where nothing in it says that it is one: then the whole range is one namespace.
#[must_use]
pub fn read(medium: &dyn Medium) -> Option<Area> {
    let len = medium.len_bytes();
    if !AREAS.contains(&len) {
        return None;
    }
    let mut area = Area::default();
    let first = block(medium, 0, 0, &mut area.faults);
    // Where the second one is follows from the first one's size, or from the area's.
    let size = first.as_ref().map_or_else(|| index_bytes(len, 128), |index| index.first_slot / 2);
    let mut second = block(medium, 1, size, &mut area.faults);
    if first.is_none() && second.is_none() && index_bytes(len, 256) != size {
        second = block(medium, 1, index_bytes(len, 256), &mut area.faults);
    }
    area.index = match (first, second) {
        (Some(first), Some(second)) => Some(if second.is_before(&first) { first } else { second }),
        (first, second) => first.or(second),
    };
    let Some(index) = area.index.clone() else {
        if area.faults.is_empty() {
            return None;
        }
        area.faults.push(Fault::NoIndex);
        return Some(area);
    };
    let used = || (0..index.nr_slots).filter(|&slot| index.is_used(slot));
    // Below the number of slots.
    let nr_used = used().count() as u32;
    if nr_used > MAX_LABELS {
        area.faults.push(Fault::TooMany(nr_used));
        return Some(area);
    }
    for slot in used() {
        match label(medium, &index, slot) {
            Ok(label) => area.labels.push(label),
            Err(why) => area.faults.push(Fault::Slot(slot, why)),
        }
    }
    Some(area)
}

/// The size of an index block in an area of `len` bytes with such labels.
fn index_bytes(len: u64, label_bytes: u64) -> u64 {
    let slots = len / (label_bytes + 1);
    (HEAD as u64 + slots.div_ceil(8)).next_multiple_of(INDEX_ALIGN)
}

/// Index block `number`, at `at`; `None` where there is none that can be trusted, with a fault unless nothing is there.
fn block(medium: &dyn Medium, number: u64, at: u64, faults: &mut Vec<Fault>) -> Option<Index> {
    let mut head = [0; HEAD];
    if medium.read(at, &mut head).is_err() {
        faults.push(Fault::Index(number, "cannot be read"));
        return None;
    }
    if !has(&head, 0, SIGNATURE) {
        return None;
    }
    checked(medium, number, at, &head).map_err(|why| faults.push(Fault::Index(number, why))).ok()
}

fn checked(medium: &dyn Medium, number: u64, at: u64, head: &[u8; HEAD]) -> Result<Index, &'static str> {
    let (mine, size, other) = (u64_at(head, 24), u64_at(head, 32), u64_at(head, 40));
    if !(INDEX_ALIGN..=MAX_INDEX).contains(&size) || !size.is_multiple_of(INDEX_ALIGN) {
        return Err("its size is impossible");
    }
    let mut bytes = vec![0; size as usize];
    medium.read(at, &mut bytes).map_err(|_| "cannot be read")?;
    if !fletcher::is_right(&bytes, CHECKSUM_AT) {
        return Err("its checksum is wrong");
    }
    let version = (u16_at(head, 60), u16_at(head, 62));
    let label_bytes = match version {
        (1, 0 | 1) => 128,
        (1, 2) => 128_u64 << head[19].min(8),
        _ => return Err("its version is not known"),
    };
    let sequence = u32_at(head, 20);
    if !(1..=3).contains(&sequence) {
        return Err("its sequence number is not 1, 2 or 3");
    }
    let (first_slot, nr_slots) = (u64_at(head, 48), u32_at(head, 56));
    let places = (number * size, (1 - number) * size, 2 * size);
    if (mine, other, first_slot) != places || mine != at {
        return Err("it says that it is somewhere else");
    }
    let slots_bytes = u64::from(nr_slots).checked_mul(label_bytes).and_then(|bytes| bytes.checked_add(first_slot));
    let bitmap = bytes.get(HEAD..).unwrap_or_default();
    if slots_bytes.is_none_or(|end| end > medium.len_bytes()) || bitmap.len() < (nr_slots as usize).div_ceil(8) {
        return Err("it has more slots than there is room for");
    }
    if !matches!(label_bytes, 128 | 256) || (version.1 >= 2) != (label_bytes == 256) {
        return Err("its labels have an unknown size");
    }
    Ok(Index { number, sequence, version, label_bytes, first_slot, nr_slots, free: bitmap.to_vec() })
}

/// The label of a slot that is in use.
fn label(medium: &dyn Medium, index: &Index, slot: u32) -> Result<Label, &'static str> {
    let mut room = [0; 256];
    let bytes = room.get_mut(..index.label_bytes as usize).ok_or("its size is impossible")?;
    // Inside the area: the index block was checked.
    let at = index.first_slot + u64::from(slot) * index.label_bytes;
    medium.read(at, bytes).map_err(|_| "cannot be read")?;
    let has_checksum = index.label_bytes == 256;
    if has_checksum && !fletcher::is_right(bytes, LABEL_CHECKSUM_AT) {
        return Err("its label's checksum is wrong");
    }
    if u32_at(bytes, 120) != slot {
        return Err("its label says that it belongs to another slot");
    }
    let flags = u32_at(bytes, 80);
    if flags & UPDATING != 0 {
        return Err("its label was not written to its end");
    }
    let name: Vec<u8> = array_at::<64>(bytes, 16).into_iter().take_while(|&byte| byte != 0).collect();
    Ok(Label {
        uuid: Uuid(array_at(bytes, 0)),
        name: String::from_utf8_lossy(&name).into_owned(),
        flags,
        nr_labels: u16_at(bytes, 84),
        position: u16_at(bytes, 86),
        set_cookie: u64_at(bytes, 88),
        sector_bytes: u64_at(bytes, 96),
        dpa: u64_at(bytes, 104),
        len_bytes: u64_at(bytes, 112),
        slot,
        abstraction: has_checksum.then(|| Uuid(array_at(bytes, 144))),
    })
}
