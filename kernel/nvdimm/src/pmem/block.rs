//! The block path: sectors in and out through the kernel's own mapping. It works without DAX.
//!
//! # Protocol
//! A request enters a read-side critical section ([`dax::srcu`]) and then looks whether the device still takes
//! requests. [`BlockDevice::stop`] says that it does not, and waits for the requests that entered before. So once
//! `stop` has returned nobody touches the mapping, and it can be taken away, however many handles still exist.
//!
//! # What lasts
//! When a write returns, its bytes have been written back and fenced: they survive a power cut on a platform whose
//! power-fail domain begins at the memory controller. A sector that was being written when the power failed may
//! hold old and new cache lines; nothing here makes it atomic.
//!
//! # Bad blocks
//! Two things make a sector unreadable: it is on the bad-block list, or its page is poisoned in the page map, where
//! `memory_failure` marks it. A write that covers a sector takes it off the list. A poisoned page is healed only by
//! a write that covers all of it, since the rest of it would stay lost; a write of a part is an I/O error.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;

use dax::srcu::{GracePeriod, Srcu};
use mm::addr::{PAGE_SHIFT, PAGE_SIZE, Pfn, PfnRange};
use mm::context::MmContext;
use mm::machine::Machine;
use mm::pagemap::DevPagemap;
use mm::sync::{Arc, AtomicU32, Mutex, Ordering};

use super::AttachError;
use super::area::{Area, AreaStatus};
use super::badblocks::{BadBlocks, SectorRun};
use super::memory::{FlushError, MediaError, PmemMemory};

/// Bytes in a sector.
pub const SECTOR_BYTES: u64 = 512;
const SECTORS_PER_PAGE: u64 = PAGE_SIZE / SECTOR_BYTES;

/// Why a request was not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockError {
    /// The device has been removed, or is about to be.
    NoSuchDevice,
    /// The buffer is not a whole number of sectors.
    Misaligned {
        /// Its length in bytes.
        len_bytes: usize,
    },
    /// Some sector is not on the device.
    OutOfRange {
        /// How many sectors the device has.
        nr_sectors: u64,
    },
    /// A sector is lost: it cannot be read, or its page is poisoned and the write does not cover all of it.
    Io {
        /// The first such sector.
        sector: u64,
    },
    /// What was written can be read back, but nobody has confirmed that it lasts.
    NotDurable(FlushError),
}

impl fmt::Display for BlockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchDevice => f.write_str("no such device: it has been removed or is about to be"),
            Self::Misaligned { len_bytes } => {
                write!(f, "a buffer of {len_bytes} bytes is not a whole number of {SECTOR_BYTES}-byte sectors")
            }
            Self::OutOfRange { nr_sectors } => write!(f, "out of range: the device has {nr_sectors} sectors"),
            Self::Io { sector } => write!(f, "I/O error at sector {sector}: its contents are lost"),
            Self::NotDurable(error) => write!(f, "I/O error: what was written may not last: {error}"),
        }
    }
}

impl core::error::Error for BlockError {}

impl From<FlushError> for BlockError {
    fn from(error: FlushError) -> Self {
        Self::NotDurable(error)
    }
}

/// Some of the device's sectors that lie in a row in physical memory.
struct Segment {
    /// The first of them.
    first_sector: u64,
    frames: PfnRange,
    memory: Arc<dyn PmemMemory>,
}

impl Segment {
    fn nr_sectors(&self) -> u64 {
        self.frames.nr_pages() * SECTORS_PER_PAGE
    }
}

const OPEN: u32 = 0;
const STOPPED: u32 = 1;

/// A pmem device as a row of sectors.
pub struct BlockDevice<M: Machine> {
    mm: Arc<MmContext<M>>,
    map: Arc<DevPagemap>,
    segments: Box<[Segment]>,
    nr_sectors: u64,
    bad: Mutex<BadBlocks>,
    /// Where the list is kept, if anywhere.
    area: Option<Area>,
    requests: Srcu,
    state: AtomicU32,
}

impl<M: Machine> BlockDevice<M> {
    /// A device over mapped memory, in the order of its sectors. It takes requests at once.
    pub(super) fn new(
        mm: &Arc<MmContext<M>>,
        map: &Arc<DevPagemap>,
        memory: impl IntoIterator<Item = (PfnRange, Arc<dyn PmemMemory>)>,
        area: Option<Area>,
    ) -> Self {
        let mut nr_sectors = 0;
        let segments = memory.into_iter().map(|(frames, memory)| {
            let segment = Segment { first_sector: nr_sectors, frames, memory };
            nr_sectors += segment.nr_sectors();
            segment
        });
        let segments = segments.collect();
        Self {
            mm: Arc::clone(mm),
            map: Arc::clone(map),
            segments,
            nr_sectors,
            bad: Mutex::new(BadBlocks::default()),
            area,
            requests: Srcu::new(),
            state: AtomicU32::new(OPEN),
        }
    }

    /// How many sectors the device has.
    pub fn nr_sectors(&self) -> u64 {
        self.nr_sectors
    }

    /// Reads `into.len()` bytes from `sector` on.
    ///
    /// # Errors
    /// See [`BlockError`]. After an error `into` is worth nothing.
    pub fn read(&self, sector: u64, into: &mut [u8]) -> Result<(), BlockError> {
        let nr_sectors = self.check(sector, into.len())?;
        let _request = self.enter()?;
        if let Some(bad) = self.first_lost(sector, nr_sectors) {
            return Err(BlockError::Io { sector: bad });
        }
        let mut rest = into;
        for part in self.parts(sector, nr_sectors) {
            let (now, later) = rest.split_at_mut(part.len_bytes());
            part.segment.memory.read(part.offset_bytes(), now).map_err(|error| self.lost(&part, error))?;
            rest = later;
        }
        Ok(())
    }

    /// Writes `from` to the sectors from `sector` on. When it returns, the bytes are durable.
    ///
    /// # Errors
    /// See [`BlockError`]. After an error of the medium some of the sectors may have been written; after
    /// [`BlockError::NotDurable`] all of them have, and none may last.
    pub fn write(&self, sector: u64, from: &[u8]) -> Result<(), BlockError> {
        let nr_sectors = self.check(sector, from.len())?;
        let _request = self.enter()?;
        if let Some(bad) = self.first_unhealable(sector, nr_sectors) {
            return Err(BlockError::Io { sector: bad });
        }
        let mut rest = from;
        for part in self.parts(sector, nr_sectors) {
            let (now, later) = rest.split_at(part.len_bytes());
            part.segment.memory.write(part.offset_bytes(), now).map_err(|error| self.lost(&part, error))?;
            rest = later;
        }
        self.fence()?;
        // Only now: who reads a sector that is no longer on the list finds what was written.
        self.heal(sector, nr_sectors);
        Ok(())
    }

    /// A barrier: what was written before it, by whomever, is durable when it returns.
    ///
    /// # Errors
    /// [`BlockError::NoSuchDevice`], [`BlockError::NotDurable`].
    pub fn flush(&self) -> Result<(), BlockError> {
        let _request = self.enter()?;
        self.fence()
    }

    /// The same for the device's holder, which also comes while new requests are refused already: it brings its data to
    /// rest when it is told that the device leaves. The caller holds the device alive, and with it its mapping.
    ///
    /// # Errors
    /// [`BlockError::NotDurable`].
    pub fn flush_for_holder(&self) -> Result<(), BlockError> {
        self.fence()
    }

    /// Puts sectors on the bad-block list.
    ///
    /// # Errors
    /// [`BlockError::OutOfRange`], and nothing is changed then.
    pub fn add_bad(&self, run: SectorRun) -> Result<(), BlockError> {
        match run.first.checked_add(run.nr_sectors) {
            Some(end) if end <= self.nr_sectors => {
                self.bad.lock().add(run.first, run.nr_sectors);
                self.keep_bad_blocks();
                Ok(())
            }
            _ => Err(BlockError::OutOfRange { nr_sectors: self.nr_sectors }),
        }
    }

    /// All sectors that are lost, rising: those on the list and those of poisoned pages.
    pub fn bad_blocks(&self) -> Vec<SectorRun> {
        let mut all = self.bad.lock().clone();
        for pfn in self.map.poisoned() {
            if let Some(first) = self.sector_of(pfn) {
                all.add(first, SECTORS_PER_PAGE);
            }
        }
        all.iter().collect()
    }

    /// Takes in the list of the area. A page of which every sector is on it is poisoned, as it was when it failed.
    pub(super) fn load_bad_blocks(&self) -> Result<(), AttachError> {
        let mut room = true;
        let mut load = |run: SectorRun| {
            room = room && self.mm.machine.may_grow();
            if room {
                self.load_run(run);
            }
        };
        self.area.iter().for_each(|area| area.load(&mut load));
        if room { Ok(()) } else { Err(AttachError::OutOfMemory) }
    }

    fn load_run(&self, run: SectorRun) {
        let (first, end) =
            (run.first.next_multiple_of(SECTORS_PER_PAGE), run.end() / SECTORS_PER_PAGE * SECTORS_PER_PAGE);
        let mut bad = self.bad.lock();
        bad.add(run.first, run.nr_sectors);
        for page in (first..end).step_by(SECTORS_PER_PAGE as usize) {
            if self.frame_of(page).is_some_and(|pfn| self.map.poison(pfn)) {
                bad.clear(page, SECTORS_PER_PAGE);
            }
        }
    }

    /// Writes the list of lost sectors into the device's area, if it has one. To be called after a page was poisoned;
    /// whatever else changes the list does it by itself. What came of it is in [`area`](Self::area).
    pub fn keep_bad_blocks(&self) {
        // A device that is being taken away keeps what it has written last.
        if let (Some(area), Ok(_request)) = (&self.area, self.enter()) {
            // A list that the medium does not take is marked stale, and written with the next change.
            let _ = area.write(|| self.bad_blocks());
        }
    }

    /// How the list in the device's area stands; `None` for a device without one.
    pub fn area(&self) -> Option<AreaStatus> {
        self.area.as_ref().map(Area::status)
    }

    /// Does the device have this frame?
    pub fn contains(&self, pfn: Pfn) -> bool {
        self.sector_of(pfn).is_some()
    }

    /// Whether the device takes requests.
    pub fn is_open(&self) -> bool {
        self.state.load(Ordering::Acquire) == OPEN
    }

    /// Takes no further request, and returns when those under way have ended. `relax` is called in every round of
    /// waiting. A second call does no harm.
    pub fn stop(&self, relax: impl FnMut()) -> GracePeriod {
        // Ordered against the load in `enter` by the domain's counters (see `dax::srcu`).
        self.state.store(STOPPED, Ordering::Release);
        self.requests.synchronize(relax)
    }

    /// Is nothing on the list, and no page poisoned?
    pub(super) fn is_sound(&self) -> bool {
        let poisoned = |segment: &Segment| self.map.any_poisoned(segment.frames.start(), segment.frames.nr_pages());
        self.bad.lock().is_empty() && !self.segments.iter().any(poisoned)
    }

    /// Copies bytes out, wherever they begin and end, without asking whether they are lost. The caller has entered.
    pub(super) fn peek(&self, offset: u64, into: &mut [u8]) -> Result<(), MediaError> {
        let lost = MediaError { offset_bytes: offset };
        let (mut at, mut rest) = (offset, into);
        while !rest.is_empty() {
            let begin = |segment: &Segment| segment.first_sector * SECTOR_BYTES;
            let segment = self.segments.iter().rev().find(|segment| begin(segment) <= at).ok_or(lost)?;
            let inside = at - begin(segment);
            let room =
                (segment.nr_sectors() * SECTOR_BYTES).checked_sub(inside).filter(|&room| room != 0).ok_or(lost)?;
            let (now, later) = rest.split_at_mut(rest.len().min(usize::try_from(room).unwrap_or(usize::MAX)));
            segment.memory.read(inside, now)?;
            at = at.checked_add(now.len() as u64).ok_or(lost)?;
            rest = later;
        }
        Ok(())
    }

    pub(super) fn enter(&self) -> Result<impl Drop + '_, BlockError> {
        let request = self.requests.read_lock();
        match self.state.load(Ordering::Acquire) {
            OPEN => Ok(request),
            _ => Err(BlockError::NoSuchDevice),
        }
    }

    /// How many sectors a buffer of `len_bytes` has, if all of them are on the device.
    fn check(&self, sector: u64, len_bytes: usize) -> Result<u64, BlockError> {
        let len = len_bytes as u64;
        if !len.is_multiple_of(SECTOR_BYTES) {
            return Err(BlockError::Misaligned { len_bytes });
        }
        let nr_sectors = len / SECTOR_BYTES;
        match sector.checked_add(nr_sectors) {
            Some(end) if end <= self.nr_sectors => Ok(nr_sectors),
            _ => Err(BlockError::OutOfRange { nr_sectors: self.nr_sectors }),
        }
    }

    /// The parts of a request, each inside one segment. The request has been checked.
    fn parts(&self, sector: u64, nr_sectors: u64) -> impl Iterator<Item = Part<'_>> {
        let end = sector + nr_sectors;
        self.segments.iter().filter_map(move |segment| {
            let first = sector.max(segment.first_sector);
            let end = end.min(segment.first_sector + segment.nr_sectors());
            (first < end).then(|| Part { segment, first_sector: first, nr_sectors: end - first })
        })
    }

    /// The first sector that cannot be read.
    pub(super) fn first_lost(&self, sector: u64, nr_sectors: u64) -> Option<u64> {
        let listed = self.bad.lock().first_bad(sector, nr_sectors);
        let poisoned = self.poisoned_pages(sector, nr_sectors).next();
        [listed, poisoned.map(|page| page.max(sector))].into_iter().flatten().min()
    }

    /// The first sector of a poisoned page that the request covers in part only.
    fn first_unhealable(&self, sector: u64, nr_sectors: u64) -> Option<u64> {
        let end = sector + nr_sectors;
        let whole = |page: &u64| sector <= *page && page + SECTORS_PER_PAGE <= end;
        self.poisoned_pages(sector, nr_sectors).find(|page| !whole(page)).map(|page| page.max(sector))
    }

    /// The first sector of each poisoned page that the request touches.
    fn poisoned_pages(&self, sector: u64, nr_sectors: u64) -> impl Iterator<Item = u64> + '_ {
        self.parts(sector, nr_sectors)
            // One look for each part, so that a sound device costs nothing for each page.
            .filter(|part| self.map.any_poisoned(part.first_frame(), part.nr_frames()))
            .flat_map(|part| (0..part.nr_frames()).map(move |page| part.first_frame().add(page)))
            .filter(|pfn| self.map.any_poisoned(*pfn, 1))
            .filter_map(|pfn| self.sector_of(pfn))
    }

    /// Takes what a write has covered off the lists.
    fn heal(&self, sector: u64, nr_sectors: u64) {
        let mut healed = self.bad.lock().clear(sector, nr_sectors) != 0;
        let end = sector + nr_sectors;
        for page in self.poisoned_pages(sector, nr_sectors).collect::<Vec<_>>() {
            // A page that was poisoned after the write began may be covered in part: it stays as it is.
            let whole = sector <= page && page + SECTORS_PER_PAGE <= end;
            let Some(pfn) = self.frame_of(page).filter(|pfn| whole && self.map.clear_poison(*pfn)) else {
                continue;
            };
            healed = true;
            self.mm.meta.with_page(pfn, |folio| {
                if !self.map.any_poisoned(folio.head(), folio.size().nr_pages()) {
                    folio.set_poisoned(false);
                }
            });
        }
        if healed {
            self.keep_bad_blocks();
        }
    }

    /// Remembers that the medium has lost a sector.
    fn lost(&self, part: &Part<'_>, error: MediaError) -> BlockError {
        let sector = part.segment.first_sector + error.offset_bytes / SECTOR_BYTES;
        self.bad.lock().add(sector, 1);
        self.keep_bad_blocks();
        BlockError::Io { sector }
    }

    /// The first sector of a frame.
    fn sector_of(&self, pfn: Pfn) -> Option<u64> {
        let segment = self.segments.iter().find(|segment| segment.frames.contains(pfn))?;
        let page = pfn.as_u64() - segment.frames.start().as_u64();
        Some(segment.first_sector + page * SECTORS_PER_PAGE)
    }

    /// The frame of a page's first sector.
    fn frame_of(&self, sector: u64) -> Option<Pfn> {
        self.parts(sector, 1).next().map(|part| part.first_frame())
    }

    fn fence(&self) -> Result<(), BlockError> {
        // One fence orders all that this CPU has written back, to whichever segment.
        self.segments.first().map_or(Ok(()), |segment| Ok(segment.memory.fence()?))
    }
}

/// The part of a request that lies in one segment.
struct Part<'a> {
    segment: &'a Segment,
    first_sector: u64,
    nr_sectors: u64,
}

impl Part<'_> {
    fn offset_bytes(&self) -> u64 {
        (self.first_sector - self.segment.first_sector) * SECTOR_BYTES
    }
    fn len_bytes(&self) -> usize {
        // No more than the request's buffer has.
        (self.nr_sectors * SECTOR_BYTES) as usize
    }
    fn first_frame(&self) -> Pfn {
        self.segment.frames.start().add(self.offset_bytes() >> PAGE_SHIFT)
    }
    /// How many frames the part touches.
    fn nr_frames(&self) -> u64 {
        let end = self.offset_bytes() + self.nr_sectors * SECTOR_BYTES;
        end.div_ceil(PAGE_SIZE) - (self.offset_bytes() >> PAGE_SHIFT)
    }
}
