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
//! What is lost is marked in the page map, in sectors: by `memory_failure`, by a list that comes with the device, by a
//! request that the medium refuses. So what cannot be read here cannot be mapped anew, pinned, or read as a file either;
//! `memory_failure` also takes it from who has it mapped. A write that covers a sector makes it usable again. A page of
//! which all is lost is healed only by a write that covers all of it, since the rest of it would stay lost; a write of a
//! part is an I/O error.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;

use dax::srcu::{GracePeriod, Srcu};
use mm::addr::{PAGE_SIZE, Pfn, PfnRange};
use mm::context::MmContext;
use mm::machine::Machine;
pub use mm::pagemap::SECTOR_BYTES;
use mm::pagemap::{DevPagemap, frames_around, sectors_of};
use mm::run_set::{NoRoom, Run};
use mm::sync::{Arc, AtomicU32, Ordering};

use super::AttachError;
use super::area::{Area, AreaStatus};
use super::badblocks::SectorRun;
use super::memory::{FlushError, MediaError, PmemMemory};
use crate::nfit::DeviceFlags;

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
    /// A sector is lost: it cannot be read, or its page is poisoned and the write does not cover all of it, or memory is
    /// short for a list of what is lost without it: it stays lost then, written as it is.
    Io {
        /// The first such sector.
        sector: u64,
    },
    /// A write, and the memory takes none: this is the state of the devices behind it.
    ReadOnly(DeviceFlags),
    /// The memory has left without a word: what was read is worth nothing, and what was written may be lost.
    Gone,
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
            Self::ReadOnly(why) => write!(f, "the device takes no writes: a memory device behind it {why}"),
            Self::Gone => f.write_str("I/O error: the memory is not there any more"),
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
    /// Its sectors, as the device counts them.
    fn all(&self) -> Option<Run> {
        Run::with_len(self.first_sector, self.nr_sectors())
    }
    /// Its sectors, counted from physical address 0.
    fn physical(&self) -> Option<Run> {
        sectors_of(self.frames.start(), self.frames.nr_pages())
    }
    /// What it has of these sectors, which are counted from physical address 0, as the device counts them.
    fn sectors_in(&self, physical: Run) -> Option<SectorRun> {
        let all = self.physical()?;
        let here = all.intersection(physical)?;
        Some(SectorRun { first: self.first_sector + (here.first() - all.first()), nr_sectors: here.len() })
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
    /// Where the list is kept, if anywhere.
    area: Option<Area>,
    /// Why it takes no writes.
    read_only: Option<DeviceFlags>,
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
            area,
            read_only: None,
            requests: Srcu::new(),
            state: AtomicU32::new(OPEN),
        }
    }

    /// The same device, which takes no writes if there is a reason.
    pub(super) fn read_only(self, why: Option<DeviceFlags>) -> Self {
        Self { read_only: why, ..self }
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
        if let Some(why) = self.read_only {
            return Err(BlockError::ReadOnly(why));
        }
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
        self.heal(sector, nr_sectors)
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

    fn check_run(&self, run: SectorRun) -> Result<(), BlockError> {
        match run.first.checked_add(run.nr_sectors) {
            Some(end) if end <= self.nr_sectors => Ok(()),
            _ => Err(BlockError::OutOfRange { nr_sectors: self.nr_sectors }),
        }
    }

    /// All sectors that are lost, rising.
    ///
    /// # Panics
    /// Where there is no memory for the list: see [`lost_sectors`](Self::lost_sectors).
    pub fn bad_blocks(&self) -> Vec<SectorRun> {
        self.lost_sectors().expect("memory for the list of bad blocks")
    }

    /// All sectors that are lost, rising.
    ///
    /// # Errors
    /// [`NoRoom`]: there is no memory for the list.
    pub fn lost_sectors(&self) -> Result<Vec<SectorRun>, NoRoom> {
        let (lost, mut all) = (self.map.lost()?, Vec::<SectorRun>::new());
        for run in lost {
            for here in self.segments.iter().filter_map(|segment| segment.sectors_in(run)) {
                match all.last_mut() {
                    Some(last) if last.end() == here.first => last.nr_sectors += here.nr_sectors,
                    _ => {
                        all.try_reserve(1).map_err(|_| NoRoom)?;
                        all.push(here);
                    }
                }
            }
        }
        Ok(all)
    }

    /// Takes in the list of the area and that of whoever has found the device, before anybody uses it.
    pub(super) fn load_bad_blocks(&self, known: &[SectorRun]) -> Result<(), AttachError> {
        known.iter().try_for_each(|&run| self.check_run(run))?;
        let mut result = Ok(());
        let mut load = |run: SectorRun| {
            if result.is_ok() {
                result = self.list(run);
            }
        };
        self.area.iter().for_each(|area| area.load(&mut load));
        known.iter().for_each(|&run| load(run));
        if !known.is_empty() {
            self.keep_bad_blocks();
        }
        result.map_err(|NoRoom| AttachError::OutOfMemory)
    }

    fn list(&self, run: SectorRun) -> Result<(), NoRoom> {
        self.parts(run.first, run.nr_sectors).try_for_each(|part| {
            if self.mm.machine.may_grow() { self.map.lose_listed(part.sectors) } else { Err(NoRoom) }
        })
    }

    /// A frame has lost its contents. Is it one in which the device keeps its own records? Then they belong to the device and
    /// to no page map, and the copy of the list that was there is not trusted any more: see [`AreaStatus::lost_pages`].
    pub fn lose_own(&self, pfn: Pfn) -> bool {
        let Some(area) = self.area.as_ref().filter(|area| area.contains(pfn)) else { return false };
        if area.lose(pfn) {
            self.keep_bad_blocks();
        }
        true
    }

    /// Writes the list of lost sectors into the device's area, if it has one. To be called after a page was poisoned;
    /// whatever else changes the list does it by itself. What came of it is in [`area`](Self::area).
    pub fn keep_bad_blocks(&self) {
        // A device that is being taken away keeps what it has written last; one that takes no writes, what it had.
        if let (None, Some(area), Ok(_request)) = (self.read_only, &self.area, self.enter()) {
            // A list that the medium does not take is marked stale, and written with the next change.
            let _ = area.write(&mut || self.mm.machine.relax(), || self.lost_sectors());
        }
    }

    /// How the list in the device's area stands; `None` for a device without one.
    pub fn area(&self) -> Option<AreaStatus> {
        self.area.as_ref().map(Area::status)
    }

    /// Does the device have this frame?
    pub fn contains(&self, pfn: Pfn) -> bool {
        self.segments.iter().any(|segment| segment.frames.contains(pfn))
    }

    /// Was the memory there all the time until now? What was copied before the answer yes came from it.
    pub fn is_there(&self) -> bool {
        self.segments.iter().all(|segment| segment.memory.is_there())
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

    /// Is nothing lost?
    pub(super) fn is_sound(&self) -> bool {
        self.first_lost(0, self.nr_sectors()).is_none()
    }

    /// Copies bytes out, wherever they begin and end, without asking whether they are lost. The caller has entered.
    pub(super) fn peek(&self, offset: u64, into: &mut [u8]) -> Result<(), MediaError> {
        let lost = MediaError::Lost { offset_bytes: offset };
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
        let all = Run::with_len(sector, nr_sectors);
        self.segments.iter().filter_map(move |segment| {
            let here = segment.all()?.intersection(all?)?;
            let inside = here.first() - segment.first_sector;
            let sectors = Run::with_len(segment.physical()?.first() + inside, here.len())?;
            Some(Part { segment, inside, sectors })
        })
    }

    /// The first sector that cannot be read.
    pub(super) fn first_lost(&self, sector: u64, nr_sectors: u64) -> Option<u64> {
        self.parts(sector, nr_sectors).find_map(|part| Some(part.sector_at(self.map.first_lost(part.sectors)?)))
    }

    /// The first sector of a page that is lost as a whole and that the request covers in part only: its first page or its
    /// last.
    fn first_unhealable(&self, sector: u64, nr_sectors: u64) -> Option<u64> {
        self.parts(sector, nr_sectors).find_map(|part| {
            let (first, last) = (part.sectors.first(), part.sectors.end() - 1);
            let in_part = |&sector: &u64| {
                let page = sectors_of(Pfn::new(sector / SECTORS_PER_PAGE), 1)?;
                let whole = page.intersection(part.sectors) == Some(page);
                (!whole && self.map.all_lost(page)).then(|| part.sector_at(page.first().max(first)))
            };
            [first, last].iter().find_map(in_part)
        })
    }

    /// Takes what a write has covered off the list. Where memory is short for the list without it, it stays there, and the
    /// write has failed.
    fn heal(&self, sector: u64, nr_sectors: u64) -> Result<(), BlockError> {
        let (mut healed, mut result) = (0, Ok(()));
        for part in self.parts(sector, nr_sectors) {
            // A page that was lost after the write began may be covered in part: it stays as it is.
            match self.map.clear_lost(part.sectors) {
                Ok(0) => {}
                Ok(here) => {
                    self.folios_healed(part.sectors);
                    healed += here;
                }
                Err(NoRoom) => {
                    let lost = self.map.first_lost(part.sectors).unwrap_or(part.sectors.first());
                    result = result.and(Err(BlockError::Io { sector: part.sector_at(lost) }));
                }
            }
        }
        if healed != 0 {
            self.keep_bad_blocks();
        }
        result
    }

    /// Folios with nothing lost any more say so.
    fn folios_healed(&self, sectors: Run) {
        let (first, nr_pages) = frames_around(sectors);
        for pfn in (0..nr_pages).map(|nr| first.add(nr)) {
            self.mm.meta.with_page(pfn, |folio| {
                if !self.map.any_poisoned(folio.head(), folio.size().nr_pages()) {
                    folio.set_poisoned(false);
                }
            });
        }
    }

    /// Remembers that the medium has lost a sector. Whoever has its page mapped keeps it until it fails by a machine check:
    /// a request may come from under locks, and waits for no shootdown.
    fn lost(&self, part: &Part<'_>, error: MediaError) -> BlockError {
        let MediaError::Lost { offset_bytes } = error else { return BlockError::Gone };
        let inside = offset_bytes / SECTOR_BYTES;
        let physical = part.segment.physical().map(|all| all.first().saturating_add(inside));
        if let Some(sector) = physical.and_then(|sector| Run::with_len(sector, 1)) {
            self.map.lose(sector);
            self.mm.meta.with_page(frames_around(sector).0, |folio| folio.set_poisoned(true));
        }
        self.keep_bad_blocks();
        BlockError::Io { sector: part.segment.first_sector.saturating_add(inside) }
    }

    fn fence(&self) -> Result<(), BlockError> {
        // One fence orders all that this CPU has written back, to whichever segment.
        self.segments.first().map_or(Ok(()), |segment| Ok(segment.memory.fence()?))
    }
}

/// The part of a request that lies in one segment.
struct Part<'a> {
    segment: &'a Segment,
    /// Sectors of the segment before it.
    inside: u64,
    /// Its sectors, counted from physical address 0.
    sectors: Run,
}

impl Part<'_> {
    fn offset_bytes(&self) -> u64 {
        self.inside * SECTOR_BYTES
    }
    fn len_bytes(&self) -> usize {
        // No more than the request's buffer has.
        (self.sectors.len() * SECTOR_BYTES) as usize
    }
    /// The device's number of one of its sectors.
    fn sector_at(&self, physical: u64) -> u64 {
        self.segment.first_sector + self.inside + (physical - self.sectors.first())
    }
}
