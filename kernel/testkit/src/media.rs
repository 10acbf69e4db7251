//! Label areas and info blocks as Linux makes them, media to put them on, and what must hold whatever the bytes say.

use core::ops::Range;
use std::collections::BTreeMap;

use media::btt::Table;
use media::info::{Info, Parent, Sectors};
use media::namespace::{Listing, list};
use media::probe::{Findings, probe};
use media::{Medium, Part, Unreadable, Uuid, end_of, fletcher};

const PAGE: u64 = 4096;

/// A medium of which only the pages that were written exist; the others are zero.
#[derive(Clone, Debug, Default)]
pub struct Sparse {
    len_bytes: u64,
    pages: BTreeMap<u64, Box<[u8; PAGE as usize]>>,
    lost: Vec<u64>,
}

impl Sparse {
    /// All zero.
    #[must_use]
    pub fn new(len_bytes: u64) -> Self {
        Self { len_bytes, ..Self::default() }
    }

    /// Writes bytes.
    ///
    /// # Panics
    /// Where they are not all on the medium.
    pub fn put(&mut self, offset: u64, bytes: &[u8]) {
        assert!(offset + bytes.len() as u64 <= self.len_bytes, "{offset:#x}");
        for (page, inside, part) in pieces(offset, bytes.len()) {
            let page = self.pages.entry(page).or_insert_with(|| Box::new([0; PAGE as usize]));
            page[inside..][..part.len()].copy_from_slice(&bytes[part]);
        }
    }

    /// The number of 32 bits here.
    ///
    /// # Panics
    /// Where it cannot be read.
    #[must_use]
    pub fn number(&self, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        self.read(offset, &mut bytes).expect("on the medium");
        u32::from_le_bytes(bytes)
    }

    /// The page with this byte cannot be read any more.
    pub fn lose(&mut self, offset: u64) {
        self.lost.push(offset / PAGE);
    }
}

/// Cuts bytes at page ends: page, offset inside it, which of the bytes.
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, Range<usize>)> {
    let mut done = 0;
    core::iter::from_fn(move || {
        let at = offset + done as u64;
        let inside = (at % PAGE) as usize;
        let part = done..len.min(done + PAGE as usize - inside);
        done = part.end;
        (!part.is_empty()).then_some((at / PAGE, inside, part))
    })
}

impl Medium for Sparse {
    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Unreadable> {
        end_of(offset, into.len() as u64, self.len_bytes)?;
        for (page, inside, part) in pieces(offset, into.len()) {
            if self.lost.contains(&page) {
                return Err(Unreadable);
            }
            let into = &mut into[part];
            match self.pages.get(&page) {
                Some(page) => into.copy_from_slice(&page[inside..][..into.len()]),
                None => into.fill(0),
            }
        }
        Ok(())
    }
}

/// A label.
#[derive(Clone, Debug)]
pub struct LabelOf {
    /// The namespace's UUID.
    pub uuid: Uuid,
    /// Its name.
    pub name: &'static str,
    /// Flags.
    pub flags: u32,
    /// Labels of the namespace.
    pub nr_labels: u16,
    /// Which of them this is.
    pub position: u16,
    /// The cookie of the interleave set.
    pub set_cookie: u64,
    /// Bytes of a sector.
    pub sector_bytes: u64,
    /// Where it begins.
    pub dpa: u64,
    /// Its size.
    pub len_bytes: u64,
    /// Which slot it says that it is in; `None`: the right one.
    pub says_slot: Option<u32>,
    /// Since version 1.2: what it is to be.
    pub abstraction: Uuid,
}

impl Default for LabelOf {
    fn default() -> Self {
        Self {
            uuid: Uuid([1; 16]),
            name: "",
            flags: 0,
            nr_labels: 1,
            position: 0,
            set_cookie: 0,
            sector_bytes: 512,
            dpa: 0,
            len_bytes: 16 << 20,
            says_slot: None,
            abstraction: Uuid::NIL,
        }
    }
}

/// A label area under construction.
#[derive(Clone, Debug)]
pub struct LabelArea {
    /// Its bytes.
    pub bytes: Vec<u8>,
    minor: u16,
    label_bytes: usize,
    index_bytes: usize,
}

impl LabelArea {
    /// An area of version 1.`minor`, as Linux makes one: nothing in it yet.
    #[must_use]
    pub fn new(len: usize, minor: u16) -> Self {
        let label_bytes = if minor >= 2 { 256 } else { 128 };
        let index_bytes = (72 + (len / (label_bytes + 1)).div_ceil(8)).next_multiple_of(256);
        Self { bytes: vec![0; len], minor, label_bytes, index_bytes }
    }

    /// How many slots there are.
    #[must_use]
    pub fn nr_slots(&self) -> u32 {
        ((self.bytes.len() - 2 * self.index_bytes) / self.label_bytes) as u32
    }

    /// Where index block `number` is.
    #[must_use]
    pub fn index_at(&self, number: usize) -> usize {
        number * self.index_bytes
    }

    /// Where a slot is.
    #[must_use]
    pub fn slot_at(&self, slot: u32) -> usize {
        2 * self.index_bytes + slot as usize * self.label_bytes
    }

    /// Writes index block `number`, in which these slots are in use.
    #[must_use]
    pub fn index(mut self, number: usize, sequence: u32, used: &[u32]) -> Self {
        let (size, nr_slots) = (self.index_bytes, self.nr_slots());
        let mut block = vec![0; size];
        block[..16].copy_from_slice(b"NAMESPACE_INDEX\0");
        block[19] = (self.label_bytes / 256) as u8;
        block[20..24].copy_from_slice(&sequence.to_le_bytes());
        let places = [number * size, size, (1 - number) * size, 2 * size];
        for (at, place) in [24, 32, 40, 48].into_iter().zip(places) {
            block[at..at + 8].copy_from_slice(&(place as u64).to_le_bytes());
        }
        block[56..60].copy_from_slice(&nr_slots.to_le_bytes());
        block[60..62].copy_from_slice(&1_u16.to_le_bytes());
        block[62..64].copy_from_slice(&self.minor.to_le_bytes());
        block[72..72 + (nr_slots as usize).div_ceil(8)].fill(0xff);
        for slot in used {
            block[72 + *slot as usize / 8] &= !(1 << (slot % 8));
        }
        fletcher::seal(&mut block, 64);
        let at = self.index_at(number);
        self.bytes[at..at + size].copy_from_slice(&block);
        self
    }

    /// Writes a label into a slot, whether or not an index block says that the slot is in use.
    #[must_use]
    pub fn label(mut self, slot: u32, label: &LabelOf) -> Self {
        let mut bytes = vec![0; self.label_bytes];
        bytes[..16].copy_from_slice(&label.uuid.0);
        bytes[16..16 + label.name.len()].copy_from_slice(label.name.as_bytes());
        bytes[80..84].copy_from_slice(&label.flags.to_le_bytes());
        bytes[84..86].copy_from_slice(&label.nr_labels.to_le_bytes());
        bytes[86..88].copy_from_slice(&label.position.to_le_bytes());
        let numbers = [(88, label.set_cookie), (96, label.sector_bytes), (104, label.dpa), (112, label.len_bytes)];
        for (at, number) in numbers {
            bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
        }
        bytes[120..124].copy_from_slice(&label.says_slot.unwrap_or(slot).to_le_bytes());
        if self.minor >= 2 {
            bytes[144..160].copy_from_slice(&label.abstraction.0);
            fletcher::seal(&mut bytes, 248);
        }
        let at = self.slot_at(slot);
        self.bytes[at..at + bytes.len()].copy_from_slice(&bytes);
        self
    }
}

/// A PFN or DAX info block.
#[derive(Clone, Copy, Debug)]
pub struct PagesOf {
    /// The first bytes: [`media::info::PFN`] or [`media::info::DAX`].
    pub magic: &'static [u8; 16],
    /// UUID of the namespace's label.
    pub parent: Uuid,
    /// Version 1.`minor`.
    pub minor: u16,
    /// Where the data begin.
    pub data_offset: u64,
    /// 1: `mem`; 2: `dev`.
    pub mode: u32,
    /// Bytes left out at the beginning.
    pub start_pad: u32,
    /// Bytes left out at the end.
    pub end_trunc: u32,
    /// Alignment.
    pub align: u32,
}

impl Default for PagesOf {
    fn default() -> Self {
        let (parent, align) = (Uuid::NIL, 2 << 20);
        Self {
            magic: media::info::PFN,
            parent,
            minor: 4,
            data_offset: 2 << 20,
            mode: 1,
            start_pad: 0,
            end_trunc: 0,
            align,
        }
    }
}

impl PagesOf {
    /// The block, sealed. Its own UUID is all twos.
    #[must_use]
    pub fn block(&self) -> Vec<u8> {
        let mut bytes = vec![0; PAGE as usize];
        bytes[..16].copy_from_slice(self.magic);
        bytes[16..32].fill(2);
        bytes[32..48].copy_from_slice(&self.parent.0);
        bytes[52..54].copy_from_slice(&1_u16.to_le_bytes());
        bytes[54..56].copy_from_slice(&self.minor.to_le_bytes());
        bytes[56..64].copy_from_slice(&self.data_offset.to_le_bytes());
        let numbers = [(72, self.mode), (76, self.start_pad), (80, self.end_trunc), (84, self.align), (88, 4096)];
        for (at, number) in numbers {
            bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
        }
        fletcher::seal(&mut bytes, 4088);
        bytes
    }
}

/// The info block of a BTT arena of `len` bytes, of which `next` says where the next one is; its own UUID is all threes.
#[must_use]
pub fn arena(parent: Uuid, version: (u16, u16), nr_sectors: u32, len: u64, next: u64) -> Vec<u8> {
    arena_of(parent, version, (4096, nr_sectors), len, next, 64)
}

/// The same of sectors of so many bytes, and so many of them, with `nr_lanes` free blocks and lanes of the log.
#[must_use]
pub fn arena_of(
    parent: Uuid,
    version: (u16, u16),
    (sector_bytes, nr_sectors): (u32, u32),
    len: u64,
    next: u64,
    nr_lanes: u32,
) -> Vec<u8> {
    let mut bytes = vec![0; PAGE as usize];
    bytes[..16].copy_from_slice(media::info::BTT);
    bytes[16..32].fill(3);
    bytes[32..48].copy_from_slice(&parent.0);
    bytes[52..54].copy_from_slice(&version.0.to_le_bytes());
    bytes[54..56].copy_from_slice(&version.1.to_le_bytes());
    let block_bytes = sector_bytes.next_multiple_of(64);
    let nr_blocks = nr_sectors + nr_lanes;
    for (at, number) in
        [(56, sector_bytes), (60, nr_sectors), (64, block_bytes), (68, nr_blocks), (72, nr_lanes), (76, 4096)]
    {
        bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
    }
    let copy = len - PAGE;
    let log = copy - (u64::from(nr_lanes) * 64).next_multiple_of(PAGE);
    let map = log - (u64::from(nr_sectors) * 4).next_multiple_of(PAGE);
    for (at, number) in [(80, next), (88, PAGE), (96, map), (104, log), (112, copy)] {
        bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
    }
    fletcher::seal(&mut bytes, 4088);
    bytes
}

/// Lists and probes a medium, and checks what came out.
///
/// # Panics
/// If a namespace lies outside the range or over another one, if its data do, if a line is no line, or if the code itself
/// panics.
pub fn check(range: &dyn Medium, labels: Option<&dyn Medium>, dpa: u64) -> (Listing, Findings) {
    let listing = list(range, labels, dpa);
    let mut end = 0;
    for (number, namespace) in listing.namespaces.iter().enumerate() {
        assert_eq!(namespace.id, number);
        assert!(namespace.start >= end, "{namespace:x?} overlaps the one before it");
        end = namespace.start.checked_add(namespace.len_bytes).expect("inside the range");
        assert!(end <= range.len_bytes(), "{namespace:x?} ends beyond the range");
        if let (None, Some(Info::Sectors(sectors))) = (namespace.fault, namespace.info) {
            let part = Part::new(range, namespace.start, namespace.len_bytes).expect("inside the range");
            assert!(namespace.data().is_none() && namespace.size() == sectors.len_bytes(), "{namespace:x?}");
            sectors_of(&part, &sectors);
        }
        if let Some((start, len)) = namespace.data() {
            assert!(namespace.fault.is_none() && start >= namespace.start, "{namespace:x?}");
            assert!(start.checked_add(len).is_some_and(|data_end| data_end <= end), "{namespace:x?}");
            assert_eq!(len, namespace.size());
            let data = Part::new(range, start, len).expect("inside the range");
            lines(probe(&data));
        }
    }
    for notice in &listing.notices {
        line(&notice.to_string());
    }
    let findings = probe(range);
    lines(findings);
    (listing, findings)
}

/// Reads the first, the last and some other sectors: whatever the map says, they are bytes or one line.
fn sectors_of(namespace: &dyn Medium, sectors: &Sectors) {
    let table = match Table::open(namespace, Parent::Any) {
        Ok(table) => table,
        Err(fault) => return line(&fault.to_string()),
    };
    let (len, size) = (table.len_bytes(), sectors.payload_bytes());
    assert_eq!(len, sectors.len_bytes());
    let mut bytes = vec![0; size as usize + 1];
    for offset in (0..4)
        .flat_map(|nth| [nth * size, (len / 4).saturating_mul(nth)])
        .chain([len.saturating_sub(size + 1), len - 1])
    {
        if let Err(error) = table.read(namespace, offset, &mut bytes) {
            line(&error.to_string());
        }
    }
}

fn lines(findings: Findings) {
    line(&findings.to_string());
    assert_eq!(findings.is_empty(), findings.iter().next().is_none());
}

fn line(line: &str) {
    assert!(!line.is_empty() && line.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "line {line:?}");
    assert!(line.len() <= 300, "line of {} bytes: {line}", line.len());
}
