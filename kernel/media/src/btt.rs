//! The block translation table of a namespace in sector mode: its arenas, and where the bytes of a sector are.
//!
//! A sector's bytes are in a block that the map names, and a write goes to a free block: so a sector is the old one or the new
//! one, whole. Of a write the log has the sector, the block that it had, and the one that it gets. Where the log was written
//! and the map was not, the write counts: Linux completes it when the namespace is enabled, and here it is completed in
//! memory. Nothing is written: whoever writes has to own the log.
//!
//! All numbers on the medium are little-endian.
//!
//! Linux: `drivers/nvdimm/btt.c` (`discover_arenas`, `log_set_indices`, `btt_freelist_init`, `btt_map_read`,
//! `btt_read_pg`), `btt.h`; UEFI 2.10 §6.2 (the layout) and §6.3.

use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

use crate::info::{BTT, CHECKSUM_AT, Fault, INFO_AT, INFO_BYTES, Parent, Sectors};
use crate::{Medium, Part, Unreadable, Uuid, end_of, fletcher, has, u16_at, u32_at, u64_at};

const PAGE: u64 = 4096;
/// Arenas that are followed: 64 TiB of them, 512 GiB each.
const MAX_ARENAS: u32 = 128;
/// Lanes of a log that are followed, each of which may have a write to be remembered; Linux makes 256.
const MAX_LANES: u32 = 1 << 12;
/// A lane of the log: four places for entries, of which two are used.
const LANE_BYTES: usize = 64;
const ENTRY_BYTES: usize = 16;
/// The part of a map entry that is a block; the two bits above say what it is.
const BLOCK_MASK: u32 = (1 << 30) - 1;
const NORMAL: u32 = 3 << 30;
const MAP_ENTRY_BYTES: u64 = 4;

pub(crate) const LOST: &str = "it cannot be read";

/// The info block of an arena, as it stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    /// Where the arena begins, from the beginning of the namespace.
    begin: u64,
    uuid: Uuid,
    parent: Uuid,
    version: (u16, u16),
    sector_bytes: u32,
    nr_sectors: u32,
    block_bytes: u32,
    nr_blocks: u32,
    nr_lanes: u32,
    next: u64,
    data: u64,
    map: u64,
    log: u64,
    /// Where its copy is, from its beginning.
    copy: u64,
}

/// The BTT whose first arena is at `at`, if there is one.
pub(crate) fn find(namespace: &dyn Medium, at: u64, parent: Parent) -> Result<Option<(Sectors, Vec<Header>)>, Fault> {
    let fault = |why| Fault { kind: "BTT", why };
    let Some(room) = namespace.len_bytes().checked_sub(at) else { return Ok(None) };
    let Some(all) = Part::new(namespace, at, room) else { return Ok(None) };
    let (first, from_copy) = match header(&all, 0, 0) {
        Ok(Some(first)) => (first, false),
        // Its copy, where there is one arena alone, is in the namespace's last page. That of the last one of several is
        // there as well: it says another place, for it counts from the beginning of its own arena. One that names another
        // parent was left by whatever was there before: `ndctl` zeroes the beginning alone, and Linux never reads a copy.
        other => {
            match room.checked_sub(INFO_BYTES).map(|copy| (copy & !(PAGE - 1), header(&all, copy & !(PAGE - 1), 0))) {
                Some((at, Ok(Some(copy)))) if copy.next == 0 && copy.copy == at && parent.is(copy.parent) => {
                    (copy, true)
                }
                // A page that is lost is nothing for certain: the caller says so.
                _ if other.as_ref().is_err_and(|why| *why == LOST) => return Ok(None),
                _ => return other.map(|_| None).map_err(fault),
            }
        }
    };
    // The block of version 1.1 is 4 KiB behind the beginning, that of version 2.0 at it.
    if first.version != if at == 0 { (2, 0) } else { (1, 1) } {
        return if from_copy { Ok(None) } else { Err(fault("its version is not known")) };
    }
    if !parent.is(first.parent) {
        return Err(fault("it belongs to another namespace"));
    }
    let (mut nr_sectors, mut begin, mut next) = (u64::from(first.nr_sectors), 0_u64, first.next);
    let mut headers = vec![first];
    for _ in 0..MAX_ARENAS {
        if next == 0 {
            let Header { uuid, parent, version, sector_bytes, .. } = first;
            let sector_bytes = u64::from(sector_bytes);
            // They count from the first one; whoever reads, from the beginning of the namespace.
            headers.iter_mut().for_each(|header| header.begin = header.begin.saturating_add(at));
            return Ok(Some((Sectors { uuid, parent, version, sector_bytes, nr_sectors, from_copy }, headers)));
        }
        begin = begin.checked_add(next).ok_or(fault("an arena lies outside the namespace"))?;
        let arena = header(&all, begin, begin).map_err(fault)?.ok_or(fault("an arena has no info block"))?;
        if (arena.parent, arena.sector_bytes) != (first.parent, first.sector_bytes) {
            return Err(fault("its arenas do not belong together"));
        }
        (nr_sectors, next) = (nr_sectors.saturating_add(u64::from(arena.nr_sectors)), arena.next);
        headers.push(arena);
    }
    Err(fault("it has more arenas than there can be"))
}

/// The arena that begins at `begin`, by its info block or the copy of it at `at`; `None` where there is none.
fn header(medium: &dyn Medium, at: u64, begin: u64) -> Result<Option<Header>, &'static str> {
    let mut page = vec![0; INFO_BYTES as usize];
    match medium.read(at, &mut page) {
        Err(Unreadable) => return Err(LOST),
        Ok(()) if !has(&page, 0, BTT) => return Ok(None),
        Ok(()) => {}
    }
    if !fletcher::is_right(&page, CHECKSUM_AT) {
        return Err("its checksum is wrong");
    }
    let (sector_bytes, nr_sectors) = (u32_at(&page, 56), u32_at(&page, 60));
    let within = |offset| begin.checked_add(u64_at(&page, offset)).is_some_and(|place| place < medium.len_bytes());
    if sector_bytes < 512 || nr_sectors == 0 || ![88, 96, 104, 112].into_iter().all(within) {
        return Err("its places are impossible");
    }
    Ok(Some(Header {
        begin,
        uuid: Uuid(crate::array_at(&page, 16)),
        parent: Uuid(crate::array_at(&page, 32)),
        version: (u16_at(&page, 52), u16_at(&page, 54)),
        sector_bytes,
        nr_sectors,
        block_bytes: u32_at(&page, 64),
        nr_blocks: u32_at(&page, 68),
        nr_lanes: u32_at(&page, 72),
        next: u64_at(&page, 80),
        data: u64_at(&page, 88),
        map: u64_at(&page, 96),
        log: u64_at(&page, 104),
        copy: u64_at(&page, 112),
    }))
}

/// Why a table is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableFault {
    /// There is none.
    None,
    /// Its info blocks.
    Info(Fault),
    /// The places or the log of its arenas.
    Arena(&'static str),
}

impl fmt::Display for TableFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("there is no BTT"),
            Self::Info(fault) => fault.fmt(f),
            Self::Arena(why) => write!(f, "BTT: {why}"),
        }
    }
}

/// Why bytes are not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadError {
    /// They are not all there: there are so many.
    Beyond(u64),
    /// The map says that this sector is lost.
    Marked(u64),
    /// The map names a block for this sector that there is not.
    Map(u64),
    /// The memory that this sector, or its place in the map, is in cannot be read.
    Lost(u64),
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Beyond(len) => write!(f, "out of range: its sectors have {len} bytes"),
            Self::Marked(sector) => write!(f, "I/O error: the map says that sector {sector} is lost"),
            Self::Map(sector) => write!(f, "I/O error: the map names an impossible block for sector {sector}"),
            Self::Lost(sector) => write!(f, "I/O error: the contents of sector {sector} are lost"),
        }
    }
}

/// An arena that can be read.
#[derive(Clone, Debug)]
struct Arena {
    nr_sectors: u32,
    nr_blocks: u32,
    block_bytes: u32,
    /// Where its blocks and its map begin, from the beginning of the namespace.
    data: u64,
    map: u64,
    /// Entries of the map that were to be written when the last writer ended, by sector.
    pending: BTreeMap<u32, u32>,
}

/// A table through which sectors are read.
#[derive(Clone, Debug)]
pub struct Table {
    sectors: Sectors,
    arenas: Vec<Arena>,
}

impl Table {
    /// Reads the table of a namespace, without its map.
    ///
    /// # Errors
    /// There is none, or it is one of which Linux makes no device either.
    pub fn open(namespace: &dyn Medium, parent: Parent) -> Result<Self, TableFault> {
        for at in [INFO_AT, 0] {
            if let Some((sectors, headers)) = find(namespace, at, parent).map_err(TableFault::Info)? {
                let arenas = headers.iter().map(|header| Arena::open(namespace, header)).collect::<Result<_, _>>();
                return Ok(Self { sectors, arenas: arenas.map_err(TableFault::Arena)? });
            }
        }
        Err(TableFault::None)
    }

    /// How many bytes the sectors have.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        self.sectors.len_bytes()
    }

    /// Reads `into.len()` bytes of the sectors, from byte `offset` of them on. `namespace` is that which the table is of.
    ///
    /// # Errors
    /// One of the bytes cannot be had; `into` is then worth nothing.
    pub fn read(&self, namespace: &dyn Medium, offset: u64, into: &mut [u8]) -> Result<(), ReadError> {
        let len_bytes = self.len_bytes();
        end_of(offset, into.len() as u64, len_bytes).map_err(|_| ReadError::Beyond(len_bytes))?;
        let sector_bytes = self.sectors.payload_bytes();
        let (mut at, mut rest) = (offset, into);
        while !rest.is_empty() {
            let (sector, skip) = (at / sector_bytes, at % sector_bytes);
            let len = rest.len().min((sector_bytes - skip) as usize);
            let (now, later) = rest.split_at_mut(len);
            match self.place(namespace, sector)? {
                Some(place) => {
                    let place = place.checked_add(skip).ok_or(ReadError::Map(sector))?;
                    namespace.read(place, now).map_err(|_| ReadError::Lost(sector))?;
                }
                None => now.fill(0),
            }
            // Cannot wrap: it ends at the end that was looked at above.
            at = at.saturating_add(len as u64);
            rest = later;
        }
        Ok(())
    }

    /// Where a sector's bytes are in the namespace; `None`: nowhere, they are zero.
    fn place(&self, namespace: &dyn Medium, sector: u64) -> Result<Option<u64>, ReadError> {
        let mut left = sector;
        for arena in &self.arenas {
            match left.checked_sub(u64::from(arena.nr_sectors)) {
                Some(more) => left = more,
                // Less than a number of 32 bits.
                None => return arena.place(namespace, left as u32, sector),
            }
        }
        Err(ReadError::Beyond(self.len_bytes()))
    }
}

/// One entry of the log.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Entry {
    sector: u32,
    old: u32,
    new: u32,
    sequence: u32,
}

impl Entry {
    const PADDING: Self = Self { sector: 0, old: 0, new: 0, sequence: 0 };

    fn is_used(&self) -> bool {
        *self != Self::PADDING
    }

    /// The four of a lane.
    fn all(lane: &[u8]) -> [Self; 4] {
        [0, 1, 2, 3].map(|nth| {
            let at = |word: usize| u32_at(lane, nth * ENTRY_BYTES + word * 4);
            Self { sector: at(0), old: at(1), new: at(2), sequence: at(3) }
        })
    }
}

/// Which of two entries of a lane is the newer one, by their sequence numbers: 1, 2, 3, 1, …
fn newer(first: u32, second: u32) -> Result<usize, &'static str> {
    match (first, second) {
        // What Linux makes of a lane that nobody has written to.
        (0, _) => Ok(1),
        _ if first == second || first.saturating_add(second) > 5 => Err("the sequence of its log is impossible"),
        _ if first < second => Ok(usize::from(second - first == 1)),
        _ => Ok(usize::from(first - second != 1)),
    }
}

/// Calls `each` with the lanes of a log at `at`, in their order, a page of them in memory at a time.
fn lanes(
    namespace: &dyn Medium,
    at: u64,
    nr_lanes: u32,
    mut each: impl FnMut([Entry; 4]) -> Result<(), &'static str>,
) -> Result<(), &'static str> {
    let mut page = vec![0; PAGE as usize];
    let (mut at, mut left) = (at, nr_lanes as usize * LANE_BYTES);
    while left > 0 {
        let now = &mut page[..left.min(PAGE as usize)];
        namespace.read(at, now).map_err(|_| "its log cannot be read")?;
        now.chunks_exact(LANE_BYTES).map(Entry::all).try_for_each(&mut each)?;
        // Cannot wrap: the log is inside the namespace.
        (at, left) = (at.saturating_add(now.len() as u64), left - now.len());
    }
    Ok(())
}

const PLACES: &str = "the places of its log's entries are not known";

/// Which of the four places of a lane the other entry is in, beside the first: the second, or, by Linux before 4.15, the third.
/// One lane that has it tells for all; `None`: this one does not.
fn second_place(lane: &[Entry; 4]) -> Result<Option<usize>, &'static str> {
    match lane[1..].iter().position(Entry::is_used) {
        None => Ok(None),
        Some(nth @ (0 | 1)) => Ok(Some(nth + 1)),
        Some(_) => Err(PLACES),
    }
}

/// The entries in the places that are used. There must be none in the others.
fn used(lane: &[Entry; 4], second: usize) -> Result<[Entry; 2], &'static str> {
    let others_are_free = (1..4).filter(|place| *place != second).all(|place| !lane[place].is_used());
    if lane[0].is_used() && others_are_free { Ok([lane[0], lane[second]]) } else { Err(PLACES) }
}

impl Arena {
    fn open(namespace: &dyn Medium, header: &Header) -> Result<Self, &'static str> {
        let Header { nr_sectors, nr_blocks, block_bytes, nr_lanes, .. } = *header;
        if nr_lanes > MAX_LANES {
            return Err("its log has more lanes than there can be");
        }
        let lane_bytes = LANE_BYTES as u64;
        let place = |offset: u64, nr: u32, each: u64| {
            let begin = header.begin.checked_add(offset)?;
            end_of(begin, u64::from(nr).checked_mul(each)?, namespace.len_bytes()).ok().map(|_| begin)
        };
        let places = (|| {
            let data = place(header.data, nr_blocks, u64::from(block_bytes))?;
            Some((data, place(header.map, nr_sectors, MAP_ENTRY_BYTES)?, place(header.log, nr_lanes, lane_bytes)?))
        })();
        let (data, map, log) = places.ok_or("an arena's blocks, map or log end outside the namespace")?;
        if block_bytes < header.sector_bytes || nr_blocks < nr_sectors {
            return Err("an arena has too few blocks, or too small ones");
        }
        let mut arena = Self { nr_sectors, nr_blocks, block_bytes, data, map, pending: BTreeMap::new() };
        let mut second = None;
        lanes(namespace, log, nr_lanes, |lane| {
            if second.is_none() {
                second = second_place(&lane)?;
            }
            Ok(())
        })?;
        lanes(namespace, log, nr_lanes, |lane| {
            let [first, second] = used(&lane, second.unwrap_or(1))?;
            arena.complete(namespace, [first, second][newer(first.sequence, second.sequence)?])
        })?;
        Ok(arena)
    }

    /// Completes the last write of a lane, if it has come to its entry in the log and no further.
    fn complete(&mut self, namespace: &dyn Medium, last: Entry) -> Result<(), &'static str> {
        let (old, new) = (last.old & BLOCK_MASK, last.new & BLOCK_MASK);
        if old == new {
            return Ok(());
        }
        if last.sector >= self.nr_sectors {
            return Err("its log names a sector that there is not");
        }
        let entry = self.entry(namespace, last.sector).map_err(|_| "its map cannot be read")?;
        let block = if entry >> 30 == 0 { last.sector } else { entry & BLOCK_MASK };
        if block == old {
            self.pending.insert(last.sector, new | NORMAL);
        }
        Ok(())
    }

    fn entry(&self, namespace: &dyn Medium, sector: u32) -> Result<u32, Unreadable> {
        if let Some(&entry) = self.pending.get(&sector) {
            return Ok(entry);
        }
        let mut bytes = [0; MAP_ENTRY_BYTES as usize];
        let place = self.map.checked_add(u64::from(sector) * MAP_ENTRY_BYTES).ok_or(Unreadable)?;
        namespace.read(place, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// Where this sector of the arena is; `named` is its number in errors.
    fn place(&self, namespace: &dyn Medium, sector: u32, named: u64) -> Result<Option<u64>, ReadError> {
        let entry = self.entry(namespace, sector).map_err(|_| ReadError::Lost(named))?;
        let block = match entry >> 30 {
            // Never written to: it is where it was at the beginning.
            0 => sector,
            1 => return Err(ReadError::Marked(named)),
            2 => return Ok(None),
            _ => entry & BLOCK_MASK,
        };
        let offset = u64::from(block).checked_mul(u64::from(self.block_bytes));
        let place = offset.filter(|_| block < self.nr_blocks).and_then(|offset| self.data.checked_add(offset));
        place.map(Some).ok_or(ReadError::Map(named))
    }
}
