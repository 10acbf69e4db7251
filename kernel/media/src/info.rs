//! The info block of a namespace: what it is used for, and where its data begin.
//!
//! One 4 KiB page, 4 KiB behind the beginning of the namespace. PFN (fsdax) and DAX (devdax) blocks have no copy; that of
//! a BTT arena is repeated in the arena's last page.
//!
//! Linux: `drivers/nvdimm/pfn.h`, `pfn_devs.c` (`nd_pfn_validate`), `btt.h`, `btt_devs.c` (`nd_btt_arena_is_valid`);
//! UEFI 2.10 §6.2.1 for BTT.

use alloc::vec;
use core::fmt;

use crate::{Medium, Uuid, array_at, btt, fletcher, has, u16_at, u32_at, u64_at};

/// Where the info block is, from the beginning of the namespace.
pub const INFO_AT: u64 = 4096;
/// Its size in bytes.
pub const INFO_BYTES: u64 = 4096;
/// The first bytes of a PFN info block.
pub const PFN: &[u8; 16] = b"NVDIMM_PFN_INFO\0";
/// The first bytes of a DAX info block.
pub const DAX: &[u8; 16] = b"NVDIMM_DAX_INFO\0";
/// The first bytes of a BTT info block.
pub const BTT: &[u8; 16] = b"BTT_ARENA_INFO\0\0";

pub(crate) const CHECKSUM_AT: usize = 4088;
const PAGE: u64 = 4096;

/// Where the kernel that uses the namespace keeps what it notes of each page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Map {
    /// In RAM.
    Mem,
    /// On the device itself, between the info block and the data.
    Dev,
}

impl Map {
    /// The word of `ndctl`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mem => "mem",
            Self::Dev => "dev",
        }
    }
}

/// What a PFN or a DAX info block says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pages {
    /// A DAX block (devdax), not a PFN one (fsdax).
    pub is_dax: bool,
    /// Its own UUID.
    pub uuid: Uuid,
    /// That of the namespace's label, or none.
    pub parent: Uuid,
    /// Version, major and minor.
    pub version: (u16, u16),
    /// Where the kernel's notes are.
    pub map: Map,
    /// Where the data begin, from the beginning of the namespace, in bytes.
    pub data_offset: u64,
    /// How many bytes of data there are.
    pub data_bytes: u64,
    /// What the data are aligned to, in bytes.
    pub align: u64,
}

/// What the info blocks of a BTT say, over all arenas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sectors {
    /// Its own UUID.
    pub uuid: Uuid,
    /// That of the namespace's label, or none.
    pub parent: Uuid,
    /// Version, major and minor.
    pub version: (u16, u16),
    /// Bytes of a sector, with those that stand behind it for whoever checks it (of 520, say, 8).
    pub sector_bytes: u64,
    /// Sectors in all.
    pub nr_sectors: u64,
    /// The first arena's block was damaged, and this is its copy.
    pub from_copy: bool,
}

impl Sectors {
    /// Bytes of a sector for whoever uses it: 512 or 4096, as in Linux (`btt_init`).
    #[must_use]
    pub const fn payload_bytes(&self) -> u64 {
        if self.sector_bytes >= PAGE { PAGE } else { 512 }
    }

    /// How many bytes the sectors have.
    #[must_use]
    pub const fn len_bytes(&self) -> u64 {
        self.nr_sectors.saturating_mul(self.payload_bytes())
    }
}

/// An info block that was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Info {
    /// PFN or DAX.
    Pages(Pages),
    /// BTT.
    Sectors(Sectors),
}

/// Why an info block that is there is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Which kind: `PFN`, `DAX` or `BTT`.
    pub kind: &'static str,
    /// Why.
    pub why: &'static str,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} info block: {}", self.kind, self.why)
    }
}

/// Whether these are the first bytes of an info block: its kind, in a word.
#[must_use]
pub fn kind_of(bytes: &[u8]) -> Option<&'static str> {
    [(PFN, "PFN"), (DAX, "DAX"), (BTT, "BTT")]
        .into_iter()
        .find(|(magic, _)| has(bytes, 0, *magic))
        .map(|(_, kind)| kind)
}

/// What an info block has to name as its parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parent {
    /// The UUID of the namespace's label.
    Label(Uuid),
    /// None: there are no labels.
    Unlabelled,
    /// Whatever it likes: whose it is, is not the question.
    Any,
}

impl Parent {
    pub(crate) fn is(self, named: Uuid) -> bool {
        match self {
            Self::Label(uuid) => named == uuid,
            Self::Unlabelled => named == Uuid::NIL,
            Self::Any => true,
        }
    }
}

/// Reads the info block of a namespace that begins at the physical address `start`; where that is `None`, what its data are
/// aligned to is not asked. `Ok(None)`: there is none, and the namespace is raw.
///
/// # Errors
/// There is one, and it is not believed: what the namespace is, is not known.
pub fn read(namespace: &dyn Medium, parent: Parent, start: Option<u64>) -> Result<Option<Info>, Fault> {
    if namespace.len_bytes() < INFO_AT + INFO_BYTES {
        return Ok(None);
    }
    let mut page = vec![0; INFO_BYTES as usize];
    let lost = namespace.read(INFO_AT, &mut page).is_err();
    match kind_of(&page) {
        Some(kind @ ("PFN" | "DAX")) if !lost => {
            let found = pages(namespace, &page, parent, start).map_err(|why| Fault { kind, why })?;
            return Ok(Some(Info::Pages(found)));
        }
        _ => {}
    }
    // Version 2.0 of a BTT begins at once.
    for at in [INFO_AT, 0] {
        if let Some((found, _)) = btt::find(namespace, at, parent)? {
            return Ok(Some(Info::Sectors(found)));
        }
    }
    if lost { Err(Fault { kind: "the", why: "it cannot be read" }) } else { Ok(None) }
}

fn pages(namespace: &dyn Medium, page: &[u8], parent: Parent, start: Option<u64>) -> Result<Pages, &'static str> {
    if !fletcher::is_right(page, CHECKSUM_AT) {
        return Err("its checksum is wrong");
    }
    let version = (u16_at(page, 52), u16_at(page, 54));
    if version.0 != 1 {
        return Err("its version is not known");
    }
    let since = |minor, value| if version.1 >= minor { value } else { 0 };
    let (start_pad, end_trunc) = (u64::from(since(1, u32_at(page, 76))), u64::from(since(1, u32_at(page, 80))));
    let data_offset = u64_at(page, 56);
    // Before version 1.2 it was whatever the beginning of the data is aligned to.
    let align = match u64::from(since(2, u32_at(page, 84))) {
        0 => 1_u64.checked_shl(data_offset.trailing_zeros()).unwrap_or(0).min(1 << 30),
        align => align,
    };
    let map = match u32_at(page, 72) {
        1 => Map::Mem,
        2 => Map::Dev,
        _ => return Err("its mode is neither 1 nor 2"),
    };
    if version.1 >= 4 && u64::from(u32_at(page, 88)) != PAGE {
        return Err("it is for pages of another size");
    }
    // Where the data are in memory is what is aligned, as in Linux (`nd_pfn_validate`).
    let place = start.map_or(0, |start| start.wrapping_add(start_pad).wrapping_add(data_offset));
    if !align.is_power_of_two() || align < PAGE || !place.is_multiple_of(align) || !data_offset.is_multiple_of(PAGE) {
        return Err("its alignment is impossible");
    }
    if !start_pad.is_multiple_of(PAGE) || !end_trunc.is_multiple_of(PAGE) || data_offset < INFO_AT + INFO_BYTES {
        return Err("its data begin at an impossible place");
    }
    let begin = start_pad.checked_add(data_offset);
    let data_bytes = begin
        .and_then(|begin| namespace.len_bytes().checked_sub(begin)?.checked_sub(end_trunc))
        .filter(|&bytes| bytes != 0)
        .ok_or("its data would lie outside the namespace")?;
    let (uuid, named) = (Uuid(array_at(page, 16)), Uuid(array_at(page, 32)));
    if !parent.is(named) {
        return Err("it belongs to another namespace");
    }
    let data_offset = begin.unwrap_or(data_offset);
    Ok(Pages { is_dax: has(page, 0, DAX), uuid, parent: named, version, map, data_offset, data_bytes, align })
}
