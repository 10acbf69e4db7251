//! Page maps: which ranges of frames a device has, what kind of memory they are, and how many of their folios
//! are in use (Linux: `struct dev_pagemap`, `include/linux/memremap.h`).
//!
//! A page map allocates nothing that grows with the device: it is a list of ranges and one counter. The counter
//! is what a removal waits for. It counts the folios whose metadata exists; a reference or a pin keeps a folio's
//! metadata in existence, so *zero live folios* says *no reference and no pin anywhere in the device*.
//!
//! Life: `Unregistered` → ([`MetaStore::register`]) → `Live` → ([`MetaStore::kill`]) → `Dying` →
//! ([`MetaStore::unregister`], once drained) → `Unregistered`. A dying map makes no folio and lends no reference
//! through [`MetaStore::get_or_create`], so that its counter can only fall.
//!
//! [`MetaStore::register`]: crate::meta::MetaStore::register
//! [`MetaStore::kill`]: crate::meta::MetaStore::kill
//! [`MetaStore::unregister`]: crate::meta::MetaStore::unregister
//! [`MetaStore::get_or_create`]: crate::meta::MetaStore::get_or_create

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;

use crate::addr::{PAGE_SIZE, Pfn, PfnRange};
use crate::run_set::{NoRoom, Run, RunSet};
use crate::sync::{Arc, AtomicU32, AtomicU64, Mutex, Ordering};

/// May a page be pinned for an unbounded time? All of this kernel's device memory can be removed, so nobody may hold it
/// without being asked to give it back: there is no "yes" without "but".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LongTermPin {
    /// By a registration that the kernel can take back ([`region`](crate::region)), and not otherwise.
    Revocable,
    /// Not at all.
    Refused,
}

/// What the memory is used for, and so which pins it tolerates (L7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryKind {
    /// Device-dax: the whole device is one file without blocks to move.
    DevDax,
    /// A file system on DAX: a page is the storage of some file.
    FsDax,
}

impl MemoryKind {
    /// All kinds.
    pub const ALL: [Self; 2] = [Self::DevDax, Self::FsDax];
    /// The word printed on the console.
    pub const fn name(self) -> &'static str {
        match self {
            Self::DevDax => "devdax",
            Self::FsDax => "fsdax",
        }
    }
    /// May its pages be pinned for an unbounded time (L1, L2)?
    ///
    /// - Device-dax: yes, by who can give them back. Nobody but a removal of the device needs a frame, and a removal
    ///   happens once: it can afford to ask.
    /// - A file system: no. A page is a block of a file, and every truncate, hole punch and unlink has to end all
    ///   access to its blocks before it returns. There is no lease on a layout by which a registration could be asked.
    pub const fn long_term(self) -> LongTermPin {
        match self {
            Self::DevDax => LongTermPin::Revocable,
            Self::FsDax => LongTermPin::Refused,
        }
    }
    /// Was it reserved as a whole? Then it takes nothing from other users, and the policy can leave its pins out of
    /// their owner's limit (L5).
    pub const fn is_reserved(self) -> bool {
        matches!(self, Self::DevDax)
    }
    /// The policy in words, for the console's list of who may hold what (L7). `exempt`: its pins are left out of the
    /// limits.
    pub const fn policy(self, exempt: bool) -> &'static str {
        match (self, exempt) {
            (Self::DevDax, true) => {
                "transient pins; long-term by registration, which a removal takes back; exempt from the pin limits"
            }
            (Self::DevDax, false) => {
                "transient pins; long-term by registration, which a removal takes back; counted against the pin limits"
            }
            (Self::FsDax, _) => {
                "transient pins; none long-term, for blocks have to be given back at any time; counted against the pin limits"
            }
        }
    }
}

impl fmt::Display for MemoryKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Where a page map is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapState {
    /// No store knows it: its frames have no metadata.
    Unregistered,
    /// In use.
    Live,
    /// Being removed: no new folio, no new reference through the store.
    Dying,
}

/// Why a page map could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PagemapError {
    /// There must be at least one range.
    NoRange,
    /// Two of its own ranges share this frame.
    Overlap(Pfn),
}

impl fmt::Display for PagemapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRange => f.write_str("a page map needs at least one range"),
            Self::Overlap(pfn) => write!(f, "two ranges of the page map share frame {pfn}"),
        }
    }
}

impl core::error::Error for PagemapError {}

/// Bytes in the smallest piece of a device that can be lost: one sector of the block path.
pub const SECTOR_BYTES: u64 = 512;
const SECTORS_PER_PAGE: u64 = PAGE_SIZE / SECTOR_BYTES;

/// The sectors of so many frames, counted from physical address 0; `None` where there are none, or where they would wrap.
#[inline]
pub const fn sectors_of(first: Pfn, nr_pages: u64) -> Option<Run> {
    match (first.as_u64().checked_mul(SECTORS_PER_PAGE), nr_pages.checked_mul(SECTORS_PER_PAGE)) {
        (Some(first), Some(nr)) => Run::with_len(first, nr),
        _ => None,
    }
}

/// The whole frames around these sectors: the first, and how many.
#[inline]
pub const fn frames_around(sectors: Run) -> (Pfn, u64) {
    let first = sectors.first() / SECTORS_PER_PAGE;
    (Pfn::new(first), sectors.end().div_ceil(SECTORS_PER_PAGE) - first)
}

const UNREGISTERED: u32 = 0;
const LIVE: u32 = 1;
const DYING: u32 = 2;

/// The frames of one device.
///
/// ```
/// use mm::addr::{Pfn, PfnRange};
/// use mm::pagemap::{DevPagemap, MapState, MemoryKind};
///
/// let frames = |start, nr| PfnRange::new(Pfn::new(start), nr).unwrap();
/// let map = DevPagemap::new(MemoryKind::FsDax, [frames(0x20_0000, 16), frames(0x10_0000, 16)]).unwrap();
/// assert_eq!(map.ranges(), [frames(0x10_0000, 16), frames(0x20_0000, 16)]);
///
/// let mm = testkit::emu::context(1);
/// mm.meta.register(&map).unwrap();
/// assert!(mm.meta.kill(&map) && map.state() == MapState::Dying);
/// assert!(map.is_drained(), "nobody had a page of it");
/// mm.meta.unregister(&map).unwrap();
/// ```
#[derive(Debug)]
pub struct DevPagemap {
    kind: MemoryKind,
    read_only: bool,
    /// Sorted, disjoint, at least one.
    ranges: Box<[PfnRange]>,
    /// Number within the store; meaningless while unregistered.
    id: AtomicU32,
    state: AtomicU32,
    live_folios: AtomicU64,
    /// What is lost of it, in sectors counted from physical address 0; in proportion to the number of pieces. There is no
    /// other list: the block path, faults, pins and file systems ask this one.
    lost: Mutex<RunSet>,
}

impl DevPagemap {
    /// A page map over `ranges`, in any order. It is inert until a store registers it.
    ///
    /// # Errors
    /// No range, or two ranges that share a frame.
    pub fn new(kind: MemoryKind, ranges: impl IntoIterator<Item = PfnRange>) -> Result<Arc<Self>, PagemapError> {
        Self::make(kind, ranges, false)
    }
    /// The same, of memory that takes no writes.
    ///
    /// # Errors
    /// As for [`new`](Self::new).
    pub fn read_only(kind: MemoryKind, ranges: impl IntoIterator<Item = PfnRange>) -> Result<Arc<Self>, PagemapError> {
        Self::make(kind, ranges, true)
    }
    fn make(
        kind: MemoryKind,
        ranges: impl IntoIterator<Item = PfnRange>,
        read_only: bool,
    ) -> Result<Arc<Self>, PagemapError> {
        let mut ranges: Vec<PfnRange> = ranges.into_iter().collect();
        ranges.sort_unstable_by_key(|range| range.start());
        if ranges.is_empty() {
            return Err(PagemapError::NoRange);
        }
        if let Some(pair) = ranges.windows(2).find(|pair| pair[0].overlaps(pair[1])) {
            return Err(PagemapError::Overlap(pair[1].start()));
        }
        Ok(Arc::new(Self {
            kind,
            read_only,
            ranges: ranges.into_boxed_slice(),
            id: AtomicU32::new(0),
            state: AtomicU32::new(UNREGISTERED),
            live_folios: AtomicU64::new(0),
            lost: Mutex::new(RunSet::default()),
        }))
    }
    /// What the memory is used for.
    pub fn kind(&self) -> MemoryKind {
        self.kind
    }
    /// Does its memory take writes?
    pub fn takes_writes(&self) -> bool {
        !self.read_only
    }
    /// Its ranges, rising and disjoint.
    pub fn ranges(&self) -> &[PfnRange] {
        &self.ranges
    }
    /// Frames in all ranges together.
    pub fn nr_pages(&self) -> u64 {
        self.ranges.iter().map(|range| range.nr_pages()).sum()
    }
    /// The range that holds `pfn`.
    pub fn range_of(&self, pfn: Pfn) -> Option<PfnRange> {
        let after = self.ranges.partition_point(|range| range.start() <= pfn);
        let range = *self.ranges.get(after.checked_sub(1)?)?;
        range.contains(pfn).then_some(range)
    }
    /// Is `pfn` one of its frames?
    pub fn contains(&self, pfn: Pfn) -> bool {
        self.range_of(pfn).is_some()
    }
    /// Its number within the store that registered it; `None` while unregistered.
    pub fn id(&self) -> Option<MapId> {
        // Acquire: pairs with the Release in `set_live`; whoever sees `Live` sees the number.
        match self.state.load(Ordering::Acquire) {
            UNREGISTERED => None,
            _ => Some(MapId(self.id.load(Ordering::Relaxed) as u16)),
        }
    }
    /// Where it is in its life.
    pub fn state(&self) -> MapState {
        match self.state.load(Ordering::Acquire) {
            UNREGISTERED => MapState::Unregistered,
            LIVE => MapState::Live,
            _ => MapState::Dying,
        }
    }
    /// Which page of the device a frame is, counted over its ranges; `None` where it is none of its.
    pub fn page_of(&self, pfn: Pfn) -> Option<u64> {
        let mut before = 0;
        for range in self.ranges() {
            if range.contains(pfn) {
                return Some(before + (pfn.as_u64() - range.start().as_u64()));
            }
            before += range.nr_pages();
        }
        None
    }

    /// Folios whose metadata exists.
    pub fn live_folios(&self) -> u64 {
        // Acquire: pairs with the Release in `folios_gone`: who reads zero has seen the last holder's last store.
        self.live_folios.load(Ordering::Acquire)
    }
    /// No folio is live: nobody holds a reference or a pin. Final once the map is dying.
    pub fn is_drained(&self) -> bool {
        self.live_folios() == 0
    }

    /// Remembers that all of `pfn` is lost, whether anybody uses it or not (P4). Says whether some of that is new; `false`
    /// too for a frame of another page map. It needs no memory: see [`RunSet::insert_or_stretch`].
    pub fn poison(&self, pfn: Pfn) -> bool {
        sectors_of(pfn, 1).is_some_and(|sectors| self.lose(sectors) != 0)
    }
    /// The same for sectors. Those that are not of this page map are passed over. Answers how many are new.
    pub fn lose(&self, sectors: Run) -> u64 {
        self.of_ranges(sectors).map(|part| self.lost.lock().insert_or_stretch(part)).sum()
    }
    /// The same for a list that somebody else has made, which may be longer than memory allows.
    ///
    /// # Errors
    /// [`NoRoom`]; a part may be in.
    pub fn lose_listed(&self, sectors: Run) -> Result<(), NoRoom> {
        self.of_ranges(sectors).try_for_each(|part| self.lost.lock().insert(part).map(drop))
    }
    /// Forgets that these sectors were lost, after they were written anew. Answers how many were. A frame of which all is lost
    /// is made whole by a write of all of it and not by one of a part: its sectors stay lost then.
    ///
    /// # Errors
    /// [`NoRoom`]: a run would have to be cut in two, and memory is short. All of them stay lost.
    pub fn clear_lost(&self, sectors: Run) -> Result<u64, NoRoom> {
        let mut lost = self.lost.lock();
        if lost.is_empty() {
            return Ok(0);
        }
        let (first, end) = (sectors.first(), sectors.end());
        let frame = |sector| sectors_of(Pfn::new(sector / SECTORS_PER_PAGE), 1);
        let all_lost = |sector| frame(sector).filter(|&frame| lost.contains_all(frame));
        let below = all_lost(first).filter(|frame| frame.first() < first);
        let above = all_lost(end - 1).filter(|frame| frame.end() > end);
        let (first, end) = (below.map_or(first, Run::end), above.map_or(end, Run::first));
        Run::new(first, end).map_or(Ok(0), |sectors| lost.remove(sectors))
    }
    /// Has one of `nr_pages` frames from `first` on lost data, be it one sector?
    pub fn any_poisoned(&self, first: Pfn, nr_pages: u64) -> bool {
        let lost = self.lost.lock();
        !lost.is_empty() && sectors_of(first, nr_pages).is_some_and(|sectors| lost.first_in(sectors).is_some())
    }
    /// The first of these sectors that is lost.
    pub fn first_lost(&self, sectors: Run) -> Option<u64> {
        let lost = self.lost.lock();
        if lost.is_empty() { None } else { lost.first_in(sectors) }
    }
    /// Are all of these sectors lost?
    pub fn all_lost(&self, sectors: Run) -> bool {
        let lost = self.lost.lock();
        !lost.is_empty() && lost.contains_all(sectors)
    }
    /// What is lost, rising.
    ///
    /// # Errors
    /// [`NoRoom`]: there is no memory for the copy.
    pub fn lost(&self) -> Result<Vec<Run>, NoRoom> {
        let mut copy = Vec::new();
        loop {
            let lost = self.lost.lock();
            let wanted = lost.runs().len();
            if wanted <= copy.capacity() {
                copy.extend_from_slice(lost.runs());
                return Ok(copy);
            }
            drop(lost);
            copy.try_reserve_exact(wanted).map_err(|_| NoRoom)?;
        }
    }
    /// The parts of these sectors that are of this page map.
    fn of_ranges(&self, sectors: Run) -> impl Iterator<Item = Run> + '_ {
        let all = |range: &PfnRange| sectors_of(range.start(), range.nr_pages());
        self.ranges.iter().filter_map(move |range| all(range)?.intersection(sectors))
    }

    /// The store has given it a number (under the store's lock).
    pub(crate) fn set_live(&self, id: MapId) {
        self.id.store(u32::from(id.0), Ordering::Relaxed);
        self.state.store(LIVE, Ordering::Release);
    }
    /// No new folio from now on (under the store's lock).
    pub(crate) fn set_dying(&self) {
        self.state.store(DYING, Ordering::Release);
    }
    /// The store has forgotten it (under the store's lock).
    pub(crate) fn set_unregistered(&self) {
        self.state.store(UNREGISTERED, Ordering::Release);
    }
    /// `nr` folios came into being (under the store's lock).
    pub(crate) fn folios_came(&self, nr: u64) {
        self.live_folios.fetch_add(nr, Ordering::Relaxed);
    }
    /// `nr` folios went (under the store's lock).
    pub(crate) fn folios_gone(&self, nr: u64) {
        // Release: pairs with the Acquire in `live_folios`.
        let before = self.live_folios.fetch_sub(nr, Ordering::Release);
        assert!(before >= nr, "page map at {}: {nr} folios went but {before} were live", self.ranges[0].start());
    }
}

/// Number of a page map within its store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MapId(pub(crate) u16);

impl MapId {
    /// The number.
    pub const fn as_u16(self) -> u16 {
        self.0
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn range(start: u64, nr_pages: u64) -> PfnRange {
        PfnRange::new(Pfn::new(start), nr_pages).expect("a range of the test")
    }

    /// covers: R8
    #[test]
    fn ranges_are_sorted_and_all_are_found() {
        let map = DevPagemap::new(MemoryKind::FsDax, [range(50, 10), range(10, 5), range(15, 1)]).expect("disjoint");
        assert_eq!(map.ranges(), [range(10, 5), range(15, 1), range(50, 10)]);
        assert_eq!(map.nr_pages(), 16);
        for (pfn, expected) in [
            (9, None),
            (10, Some(range(10, 5))),
            (14, Some(range(10, 5))),
            (15, Some(range(15, 1))),
            (16, None),
            (49, None),
            (59, Some(range(50, 10))),
            (60, None),
        ] {
            assert_eq!(map.range_of(Pfn::new(pfn)), expected, "frame {pfn}");
        }
    }

    #[test]
    fn nothing_and_overlaps_are_refused() {
        let refused = |ranges: &[PfnRange]| DevPagemap::new(MemoryKind::DevDax, ranges.iter().copied()).err();
        assert_eq!(refused(&[]), Some(PagemapError::NoRange));
        assert_eq!(refused(&[range(5, 5), range(0, 6)]), Some(PagemapError::Overlap(Pfn::new(5))));
    }

    /// covers: L5, L7
    #[test]
    fn each_kind_states_its_policy() {
        assert_eq!(MemoryKind::DevDax.long_term(), LongTermPin::Revocable);
        assert_eq!(MemoryKind::FsDax.long_term(), LongTermPin::Refused);
        for kind in [MemoryKind::DevDax, MemoryKind::FsDax] {
            let words = kind.policy(kind.is_reserved());
            assert_eq!(words.contains("exempt"), kind.is_reserved(), "the words say what the code does");
            assert_eq!(words.contains("none long-term"), kind.long_term() == LongTermPin::Refused);
            assert!(kind.policy(false).contains("counted"));
        }
    }

    fn sectors(first: u64, nr: u64) -> Run {
        Run::with_len(first, nr).expect("sectors of the test")
    }

    /// covers: M5
    #[test]
    fn poison_is_remembered_by_frame_and_one_sector_is_enough() {
        let map = DevPagemap::new(MemoryKind::DevDax, [range(10, 10)]).expect("a range");
        assert!(!map.any_poisoned(Pfn::new(10), 10));
        assert!(map.poison(Pfn::new(12)) && map.poison(Pfn::new(11)));
        assert_eq!(map.lost(), Ok(alloc::vec![sectors(88, 16)]));
        assert!(map.any_poisoned(Pfn::new(12), 1) && !map.any_poisoned(Pfn::new(13), 7));
        assert_eq!((map.clear_lost(sectors(96, 8)), map.clear_lost(sectors(96, 8))), (Ok(8), Ok(0)));
        assert_eq!(map.lost(), Ok(alloc::vec![sectors(88, 8)]));
        assert_eq!(map.lose(sectors(159, 1)), 1);
        assert!(map.any_poisoned(Pfn::new(19), 1) && !map.any_poisoned(Pfn::new(18), 1));
        assert_eq!((map.first_lost(sectors(89, 100)), map.first_lost(sectors(96, 63))), (Some(89), None));
        assert!(map.all_lost(sectors(88, 8)) && !map.all_lost(sectors(88, 9)));
        assert!(map.poison(Pfn::new(19)) && !map.poison(Pfn::new(19)), "seven of its sectors are new");
        assert!(!map.poison(Pfn::new(20)) && !map.poison(Pfn::new(u64::MAX)), "of another page map, or of none");
    }

    /// covers: P3
    #[test]
    fn a_frame_that_is_lost_as_a_whole_is_made_whole_by_a_write_of_all_of_it() {
        let map = DevPagemap::new(MemoryKind::DevDax, [range(10, 10)]).expect("a range");
        assert!(map.poison(Pfn::new(12)) && map.lose(sectors(104, 3)) == 3);
        for (first, nr, cleared) in [(96, 7, 0), (97, 7, 0), (98, 2, 0), (80, 20, 0), (100, 6, 2), (106, 1, 1)] {
            assert_eq!(map.clear_lost(sectors(first, nr)), Ok(cleared), "{nr} sectors from {first} on");
            assert!(map.all_lost(sectors(96, 8)));
        }
        assert_eq!(map.clear_lost(sectors(95, 9)), Ok(8));
        assert_eq!(map.lost(), Ok(alloc::vec![]));
    }

    /// covers: X3
    #[test]
    fn a_lost_device_of_any_size_is_one_run_for_each_of_its_ranges() {
        let map = DevPagemap::new(MemoryKind::DevDax, [range(10, 1 << 30), range(1 << 35, 5)]).expect("ranges");
        map.lose_listed(sectors(0, u64::MAX)).expect("room for two runs");
        assert_eq!(map.lost(), Ok(alloc::vec![sectors(80, 8 << 30), sectors(8 << 35, 40)]));
        assert!(map.any_poisoned(Pfn::new(1 << 29), 1) && map.any_poisoned(Pfn::new((1 << 35) + 4), 1));
        assert!(!map.any_poisoned(Pfn::new(9), 1) && !map.any_poisoned(Pfn::new((1 << 30) + 10), 1));
    }

    #[test]
    #[should_panic(expected = "page map at 0xa: 1 folios went but 0 were live")]
    fn a_counter_below_zero_stops_the_kernel() {
        DevPagemap::new(MemoryKind::DevDax, [range(10, 10)]).expect("a range").folios_gone(1);
    }
}
