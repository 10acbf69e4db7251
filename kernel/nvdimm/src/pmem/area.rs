//! The area at the end of a device where its bad blocks are kept, so that the next boot knows them.
//!
//! A device has one only where somebody has made it (`badblocks init`): its last 64 KiB, which then belong to no sector and
//! to no mapping. A device without one is used to its last byte, and forgets.
//!
//! # Format
//! Two copies of 32 KiB. A new list goes over the older copy, so that a power cut in the middle leaves the other one:
//! the one with the higher sequence number among those whose checksum is right is the list. All numbers are
//! little-endian.
//!
//! The area itself can lose pages. They are on the list, too, as sectors behind the last one of the device (the area
//! has 128 of them); a copy that has lost a page is not read, and the next list that goes there writes its lost pages in
//! full, which makes them usable again. A list that was lost with the newer copy is written anew at once, to the other.
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 8 | `UNPLGBAD` |
//! | 8 | 4 | version: 1 |
//! | 12 | 4 | CRC-32C of the other 60 bytes of the header and of the runs |
//! | 16 | 8 | sequence number: even in the first copy, odd in the second, and not the highest number that there is |
//! | 24 | 8 | sectors of the device, without the area |
//! | 32 | 4 | number of runs, at most 2044 |
//! | 36 | 4 | 1 where runs were left out because they did not fit |
//! | 40 | 24 | zero |
//! | 64 | 16 each | runs: first sector, number of sectors; rising; what is neither in the device nor in the area is passed over |

use alloc::vec::Vec;
use core::fmt;

use crc::{CRC_32_ISCSI, Crc, Digest};
use mm::addr::{PAGE_SIZE, Pfn, PfnRange};
use mm::run_set::NoRoom;
use mm::sync::{Arc, Mutex, SleepLock};

use super::badblocks::SectorRun;
use super::block::SECTOR_BYTES;
use super::guards::DirectMapping;
use super::memory::{FlushError, MediaError, PmemMemory};

/// Bytes of the area.
pub const AREA_BYTES: u64 = 64 << 10;
/// Frames of the area.
pub const AREA_PAGES: u64 = AREA_BYTES / PAGE_SIZE;
const COPY_BYTES: u64 = AREA_BYTES / 2;
const COPY_PAGES: u64 = COPY_BYTES / PAGE_SIZE;
const SECTORS_PER_PAGE: u64 = PAGE_SIZE / SECTOR_BYTES;
static ZEROES: [u8; PAGE_SIZE as usize] = [0; PAGE_SIZE as usize];
const HEADER: usize = 64;
const RUN_BYTES: usize = 16;
const MAX_RUNS: usize = (COPY_BYTES as usize - HEADER) / RUN_BYTES;
const MAGIC: [u8; 8] = *b"UNPLGBAD";
const VERSION: u32 = 1;

static CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

/// Why an area cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AreaError {
    /// The last range of the device is no larger than the area.
    TooSmall {
        /// Its size in bytes.
        size_bytes: u64,
    },
    /// There is one.
    Exists,
    /// There is none.
    Missing,
    /// The medium does not take it.
    Media(MediaError),
    /// It was written, and nobody confirms that it lasts.
    NotDurable(FlushError),
    /// There is no memory for the list.
    OutOfMemory,
}

impl From<NoRoom> for AreaError {
    fn from(NoRoom: NoRoom) -> Self {
        Self::OutOfMemory
    }
}

impl From<MediaError> for AreaError {
    fn from(error: MediaError) -> Self {
        Self::Media(error)
    }
}

impl From<FlushError> for AreaError {
    fn from(error: FlushError) -> Self {
        Self::NotDurable(error)
    }
}

impl fmt::Display for AreaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooSmall { size_bytes } => write!(
                f,
                "the device is smaller than its own metadata: {size_bytes} bytes, and the area alone takes {AREA_BYTES}"
            ),
            Self::Exists => f.write_str("the device has its area already"),
            Self::Missing => f.write_str("the device has no area of its own"),
            Self::Media(MediaError::Lost { offset_bytes }) => {
                write!(f, "the medium fails at byte {offset_bytes:#x} of the range")
            }
            Self::Media(MediaError::Gone) => f.write_str("the memory is not there any more"),
            Self::NotDurable(error) => write!(f, "what was written may not last: {error}"),
            Self::OutOfMemory => f.write_str("no memory for the list"),
        }
    }
}

impl core::error::Error for AreaError {}

/// How the list on the medium stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AreaStatus {
    /// Number of the last list that was written or read.
    pub sequence: u64,
    /// Runs were left out because they did not fit.
    pub cut: bool,
    /// The last list could not be written: the medium has an older one.
    pub stale: bool,
    /// Pages of the area that have lost their contents, one bit for each. The copy with such a page is not read.
    pub lost_pages: u16,
}

const _: () = assert!(AREA_PAGES == u16::BITS as u64, "a bit for each page of the area");

impl AreaStatus {
    /// The number of the next list.
    fn next(self) -> u64 {
        self.sequence.saturating_add(1)
    }
    /// Has this copy lost a page?
    fn has_lost(self, copy: u64) -> bool {
        self.lost_pages & pages_of(copy) != 0
    }
    /// The sectors that are lost with those pages, as the list has them, behind the device's `nr_sectors`.
    pub fn lost_sectors(self, nr_sectors: u64) -> impl Iterator<Item = SectorRun> {
        let lost = move |page: &u64| self.lost_pages & 1 << page != 0;
        (0..AREA_PAGES)
            .filter(lost)
            .map(move |page| SectorRun { first: nr_sectors + page * SECTORS_PER_PAGE, nr_sectors: SECTORS_PER_PAGE })
    }
}

/// The bits of a copy's pages.
fn pages_of(copy: u64) -> u16 {
    ((1 << COPY_PAGES) - 1) << (copy * COPY_PAGES)
}

/// The area of one attached device.
pub struct Area {
    memory: Arc<dyn PmemMemory>,
    /// Its frames, and the offset of the first in the mapped range.
    frames: PfnRange,
    base_bytes: u64,
    nr_sectors: u64,
    /// Who writes a list. Held while whoever keeps the memory is waited for.
    writer: SleepLock<()>,
    status: Mutex<AreaStatus>,
}

/// How often a list is written whose own pages are lost meanwhile, before it is left for the next change.
const TRIES: usize = 3;

/// What a header says.
struct Header {
    sequence: u64,
    nr_runs: usize,
    cut: bool,
    crc: u32,
}

impl Area {
    /// The place of the area in a device with these mappings, rising; whether there is one is not said.
    fn at_end_of(mappings: &[DirectMapping]) -> Result<Self, AreaError> {
        let bytes = |range: PfnRange| range.nr_pages() * PAGE_SIZE;
        let last = mappings.last().ok_or(AreaError::TooSmall { size_bytes: 0 })?;
        let size_bytes = bytes(last.range());
        if size_bytes <= AREA_BYTES {
            return Err(AreaError::TooSmall { size_bytes });
        }
        let before = last.range().nr_pages() - AREA_PAGES;
        let frames = PfnRange::new(last.range().start().add(before), AREA_PAGES);
        let frames = frames.ok_or(AreaError::TooSmall { size_bytes })?;
        let all: u64 = mappings.iter().map(|mapping| bytes(mapping.range())).sum();
        Ok(Self {
            memory: Arc::clone(last.memory()),
            frames,
            base_bytes: size_bytes - AREA_BYTES,
            nr_sectors: (all - AREA_BYTES) / SECTOR_BYTES,
            writer: SleepLock::new(()),
            status: Mutex::default(),
        })
    }

    /// The area of a device that has one.
    pub(super) fn find(mappings: &[DirectMapping]) -> Option<Self> {
        let area = Self::at_end_of(mappings).ok()?;
        let (_, header) = area.newest()?;
        *area.status.lock() = AreaStatus { sequence: header.sequence, cut: header.cut, ..AreaStatus::default() };
        Some(area)
    }

    /// Makes the area of a device that has none.
    pub(super) fn create(mappings: &[DirectMapping]) -> Result<(), AreaError> {
        let area = Self::at_end_of(mappings)?;
        if area.newest().is_some() {
            return Err(AreaError::Exists);
        }
        // Nobody else has it.
        area.write(&mut core::hint::spin_loop, || Ok(Vec::new()))
    }

    /// Makes an end of the area of a device that has one.
    pub(super) fn destroy(mappings: &[DirectMapping]) -> Result<(), AreaError> {
        let area = Self::at_end_of(mappings)?;
        area.newest().ok_or(AreaError::Missing)?;
        for at in (0..AREA_BYTES).step_by(ZEROES.len()) {
            area.memory.write(area.base_bytes + at, &ZEROES)?;
        }
        Ok(area.memory.fence()?)
    }

    /// How the list on the medium stands.
    pub fn status(&self) -> AreaStatus {
        *self.status.lock()
    }

    /// Does this frame hold a part of it?
    pub(super) fn contains(&self, pfn: Pfn) -> bool {
        self.frames.contains(pfn)
    }

    /// A frame of it has lost its contents. Says whether the newest list went with it: it is to be written again. One that is
    /// being written its writer sees to.
    pub(super) fn lose(&self, pfn: Pfn) -> bool {
        let mut status = self.status.lock();
        let page = pfn.as_u64() - self.frames.start().as_u64();
        status.lost_pages |= 1 << page;
        status.has_lost(status.sequence % 2)
    }

    /// The copy with the newest list that is whole, and its header.
    fn newest(&self) -> Option<(u64, Header)> {
        let whole = |copy| self.check(copy).map(|header| (copy, header));
        [0, 1].into_iter().filter_map(whole).max_by_key(|(_, header)| header.sequence)
    }

    /// The header of a copy that is whole.
    fn check(&self, copy: u64) -> Option<Header> {
        if self.status().has_lost(copy) {
            return None;
        }
        let (header, mut digest) = self.header(copy)?;
        self.each_run(copy, header.nr_runs, &mut |bytes| digest.update(bytes)).ok()?;
        (digest.finalize() == header.crc).then_some(header)
    }

    /// The header of a copy that looks like one, and the checksum so far.
    fn header(&self, copy: u64) -> Option<(Header, Digest<'static, u32>)> {
        let mut bytes = [0; HEADER];
        self.memory.read(self.base_bytes + copy * COPY_BYTES, &mut bytes).ok()?;
        let number = |at| u64_at(&bytes, at);
        let half = |at| number(at) as u32;
        let nr_runs = half(32) as usize;
        let sequence = number(16);
        // Lists take turns, and there is always a next one.
        let in_turn = sequence % 2 == copy && sequence < u64::MAX;
        let ours = bytes[..8] == MAGIC && half(8) == VERSION && number(24) == self.nr_sectors && nr_runs <= MAX_RUNS;
        let ours = ours && in_turn;
        let header = Header { sequence, nr_runs, cut: half(36) & 1 != 0, crc: half(12) };
        bytes[12..16].fill(0);
        let mut digest = CRC.digest();
        digest.update(&bytes);
        ours.then_some((header, digest))
    }

    fn each_run(&self, copy: u64, nr_runs: usize, each: &mut dyn FnMut(&[u8])) -> Result<(), MediaError> {
        let mut bytes = [0; RUN_BYTES];
        for run in 0..nr_runs {
            let at = self.base_bytes + copy * COPY_BYTES + (HEADER + run * RUN_BYTES) as u64;
            self.memory.read(at, &mut bytes)?;
            each(&bytes);
        }
        Ok(())
    }

    /// Calls `each` with every run of the list that is on the device, and marks the pages of the area that are on it. A
    /// run that is on neither is passed over.
    pub(super) fn load(&self, each: &mut dyn FnMut(SectorRun)) {
        let Some((copy, header)) = self.newest() else { return };
        let mut lost_pages = 0;
        // What cannot be read any more is not known: each run stands for itself.
        let _ = self.each_run(copy, header.nr_runs, &mut |bytes| {
            let run = SectorRun { first: u64_at(bytes, 0), nr_sectors: u64_at(bytes, 8) };
            match run.first.checked_add(run.nr_sectors) {
                Some(end) if end <= self.nr_sectors => each(run),
                Some(end) if run.first >= self.nr_sectors && end - self.nr_sectors <= AREA_BYTES / SECTOR_BYTES => {
                    let (first, end) = (run.first - self.nr_sectors, end - self.nr_sectors);
                    for page in first / SECTORS_PER_PAGE..end.div_ceil(SECTORS_PER_PAGE) {
                        lost_pages |= 1 << page;
                    }
                }
                _ => {}
            }
        });
        self.status.lock().lost_pages |= lost_pages;
    }

    /// Writes the list that `runs` gives: asked by one writer at a time, so that an older one never replaces a newer one; `relax`
    /// is called while another one writes. Durable when it returns; until then the one before it counts.
    ///
    /// # Errors
    /// [`AreaError::Media`], with the offset in the mapped range, or that of the area where it loses each list while it is
    /// written; [`AreaError::NotDurable`], or [`AreaError::OutOfMemory`]. The list before it still counts.
    pub(super) fn write(
        &self,
        relax: &mut dyn FnMut(),
        mut runs: impl FnMut() -> Result<Vec<SectorRun>, NoRoom>,
    ) -> Result<(), AreaError> {
        let _one_writer = self.writer.try_take().unwrap_or_else(|| self.writer.take(relax));
        for _ in 0..TRIES {
            let (before, copy) = {
                let mut status = self.status.lock();
                let (before, copy) = (*status, status.next() % 2);
                // They are written in full; what is lost from here on is lost again.
                status.lost_pages &= !pages_of(copy);
                (before, copy)
            };
            let written = runs().map_err(AreaError::from).and_then(|runs| self.write_runs(before, runs));
            let mut status = self.status.lock();
            let lost_pages = status.lost_pages;
            *status = match written {
                Ok(now) => AreaStatus { lost_pages, stale: lost_pages & pages_of(copy) != 0, ..now },
                Err(_) => AreaStatus { stale: true, lost_pages: before.lost_pages | lost_pages, ..before },
            };
            written?;
            if !status.stale {
                return Ok(());
            }
        }
        Err(AreaError::Media(MediaError::Lost { offset_bytes: self.base_bytes }))
    }

    /// Writes the list, with what the area itself has lost at its end; answers how things stand then.
    fn write_runs(&self, before: AreaStatus, mut runs: Vec<SectorRun>) -> Result<AreaStatus, AreaError> {
        let sequence = before.next();
        let copy = sequence % 2;
        let now = AreaStatus { lost_pages: before.lost_pages & !pages_of(copy), sequence, ..AreaStatus::default() };
        runs.try_reserve_exact(AREA_PAGES as usize).map_err(|_| NoRoom)?;
        runs.extend(now.lost_sectors(self.nr_sectors));
        let kept = &runs[..runs.len().min(MAX_RUNS)];
        let cut = kept.len() < runs.len();
        for page in (copy * COPY_PAGES..(copy + 1) * COPY_PAGES).filter(|page| before.lost_pages & 1 << page != 0) {
            self.memory.write(self.base_bytes + page * PAGE_SIZE, &ZEROES)?;
        }
        self.write_copy(sequence, kept, cut)?;
        Ok(AreaStatus { cut, ..now })
    }

    fn write_copy(&self, sequence: u64, runs: &[SectorRun], cut: bool) -> Result<(), AreaError> {
        let base = self.base_bytes + sequence % 2 * COPY_BYTES;
        let mut header = [0; HEADER];
        header[..8].copy_from_slice(&MAGIC);
        header[8..12].copy_from_slice(&VERSION.to_le_bytes());
        header[16..24].copy_from_slice(&sequence.to_le_bytes());
        header[24..32].copy_from_slice(&self.nr_sectors.to_le_bytes());
        header[32..36].copy_from_slice(&(runs.len() as u32).to_le_bytes());
        header[36..40].copy_from_slice(&u32::from(cut).to_le_bytes());
        let mut digest = CRC.digest();
        digest.update(&header);
        for (at, run) in runs.iter().enumerate() {
            let mut bytes = [0; RUN_BYTES];
            bytes[..8].copy_from_slice(&run.first.to_le_bytes());
            bytes[8..].copy_from_slice(&run.nr_sectors.to_le_bytes());
            digest.update(&bytes);
            self.memory.write(base + (HEADER + at * RUN_BYTES) as u64, &bytes)?;
        }
        header[12..16].copy_from_slice(&digest.finalize().to_le_bytes());
        self.memory.write(base, &header)?;
        Ok(self.memory.fence()?)
    }
}

/// The ranges of a device without its area, which is at the end of the last of them. They are rising, and the last
/// one is larger than the area.
pub(super) fn without(ranges: &[PfnRange]) -> Vec<PfnRange> {
    let mut kept = ranges.to_vec();
    if let Some(last) = kept.last_mut()
        && let Some(shorter) = last.nr_pages().checked_sub(AREA_PAGES).and_then(|nr| PfnRange::new(last.start(), nr))
    {
        *last = shorter;
    }
    kept
}

/// The eight bytes from `at` on; those beyond the end count as zero.
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    for (to, from) in number.iter_mut().zip(&bytes[at.min(bytes.len())..]) {
        *to = *from;
    }
    u64::from_le_bytes(number)
}
