//! The frame allocator: a buddy system over the ranges of RAM, with a cache of single frames for each CPU.
//!
//! It hands out numbers and never touches the frames, so it is safe code and runs on the host. Its bitmaps lie in
//! storage that the caller finds for it, about half a byte for each frame ([`words_needed`]); it allocates nothing.
//!
//! - A block is 2^order frames, naturally aligned, order 0 to [`MAX_ORDER`] (1 GiB).
//! - Of the free blocks of the smallest order that serves, the lowest goes first: the same calls give the same
//!   answers, and what lives long gathers at the bottom.
//! - A freed block merges with its buddy at once, so a free run is always as large as it can be.
//! - Single frames go through a cache for each CPU, [`CACHE_FRAMES`] deep, filled and emptied by halves. When
//!   memory seems exhausted the caches are emptied before anybody is told so.
//! - Every block that is handed out is on record with its order. A free that does not match the record (twice,
//!   never handed out, another order, the middle of a block, no RAM at all) stops the kernel and names the frame.
//!
//! # Locks
//! A CPU's cache before the buddy lock; never two caches at once. Interrupts stay as they are: an interrupt handler
//! must not allocate. Where a CPU's cache is taken (by a task that was preempted there) the buddy serves instead.
//!
//! # What is simplified
//! No zones for devices with narrow addresses, no NUMA, no moving of blocks against fragmentation.

mod bitmap;
mod zone;

use arrayvec::ArrayVec;
use core::fmt;

use self::zone::{State, Zone};
use crate::addr::{Pfn, PfnRange};
use crate::machine::{CpuId, MAX_CPUS};
use crate::sync::{AtomicU64, Mutex, Ordering};

/// Largest order: 2^18 frames are 1 GiB.
pub const MAX_ORDER: u32 = 18;
const NR_ORDERS: usize = MAX_ORDER as usize + 1;
/// Most ranges of RAM, after neighbours are joined.
pub const MAX_RANGES: usize = 32;
/// Most frames in one CPU's cache.
pub const CACHE_FRAMES: usize = 32;
/// Frames that move between a cache and the buddy at a time.
const BATCH: usize = CACHE_FRAMES / 2;

/// Why an allocator could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// More than [`MAX_RANGES`] ranges of RAM.
    TooManyRanges,
    /// Two ranges share this frame.
    Overlap(Pfn),
    /// The storage is too small: this many words are needed.
    StorageTooSmall(usize),
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooManyRanges => write!(f, "more than {MAX_RANGES} ranges of RAM"),
            Self::Overlap(pfn) => write!(f, "two ranges of RAM share frame {pfn}"),
            Self::StorageTooSmall(words) => write!(f, "the frame allocator needs {words} words of storage"),
        }
    }
}

impl core::error::Error for FrameError {}

/// Numbers at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Frames of RAM that the allocator was given.
    pub total: u64,
    /// Frames in free blocks; those in caches not included.
    pub free: u64,
    /// Free frames in the CPUs' caches.
    pub cached: u64,
    /// Frames in use since boot, which were never handed out.
    pub reserved: u64,
    /// Free blocks of each order.
    pub free_blocks: [u64; NR_ORDERS],
    /// Blocks handed out by the buddy so far; what a cache served is not counted, only its filling.
    pub taken: u64,
    /// Requests that could not be served.
    pub failures: u64,
}

impl Stats {
    /// Frames handed out.
    pub fn allocated(&self) -> u64 {
        self.total - self.free - self.cached - self.reserved
    }
    /// Order of the largest free block.
    pub fn largest_free_order(&self) -> Option<u32> {
        self.free_blocks.iter().rposition(|&nr| nr != 0).map(|order| order as u32)
    }
    fn count_free(mut self) -> Self {
        self.free = self.free_blocks.iter().enumerate().map(|(order, nr)| nr << order).sum();
        self
    }
}

/// The ranges, rising, neighbours joined.
fn joined(ranges: &[PfnRange]) -> Result<ArrayVec<PfnRange, MAX_RANGES>, FrameError> {
    let mut joined = ArrayVec::<PfnRange, MAX_RANGES>::new();
    let mut floor = None;
    // A selection by rising start, without memory to sort in: the lists are short.
    while let Some(&next) = ranges.iter().filter(|r| floor.is_none_or(|f| r.start() > f)).min_by_key(|r| r.start()) {
        floor = Some(next.start());
        if let Some(last) = joined.last_mut()
            && next.start() <= last.end()
        {
            if next.start() < last.end() {
                return Err(FrameError::Overlap(next.start()));
            }
            *last = PfnRange::new(last.start(), last.nr_pages() + next.nr_pages()).expect("both are ranges");
        } else {
            joined.try_push(next).map_err(|_| FrameError::TooManyRanges)?;
        }
    }
    let total = |ranges: &[PfnRange]| ranges.iter().map(|range| range.nr_pages()).sum::<u64>();
    match ranges.iter().find(|range| ranges.iter().filter(|other| other.start() == range.start()).count() > 1) {
        Some(twice) => Err(FrameError::Overlap(twice.start())),
        None => {
            debug_assert_eq!(total(&joined), total(ranges));
            Ok(joined)
        }
    }
}

/// 64-bit words of storage for an allocator over `ranges`: about half a byte for each frame.
///
/// # Errors
/// Too many ranges, or two that share a frame.
pub fn words_needed(ranges: &[PfnRange]) -> Result<usize, FrameError> {
    Ok(joined(ranges)?.into_iter().map(Zone::words).sum())
}

/// What the lock protects.
struct Buddy {
    stats: Stats,
}

type Cache = ArrayVec<Pfn, CACHE_FRAMES>;

/// The frame allocator.
pub struct FrameAllocator<'s> {
    zones: ArrayVec<Zone, MAX_RANGES>,
    /// Which of them is the largest: nearly every frame is in there.
    largest: usize,
    storage: &'s [AtomicU64],
    buddy: Mutex<Buddy>,
    caches: [Mutex<Cache>; MAX_CPUS],
}

impl<'s> FrameAllocator<'s> {
    /// An allocator over `ranges` (in any order), all free, with its bitmaps in `storage`, whatever that held.
    ///
    /// # Errors
    /// Too many ranges, two that share a frame, or less storage than [`words_needed`].
    pub fn new(ranges: &[PfnRange], storage: &'s [AtomicU64]) -> Result<Self, FrameError> {
        let needed = words_needed(ranges)?;
        let storage = storage.get(..needed).ok_or(FrameError::StorageTooSmall(needed))?;
        storage.iter().for_each(|word| word.store(0, Ordering::Relaxed));
        let mut zones = ArrayVec::new();
        let mut stats = Stats::default();
        let mut first = 0;
        for range in joined(ranges)? {
            let zone = Zone::new(range, first);
            first += Zone::words(range);
            zone.put_range(storage, range.start(), range.end(), &mut stats);
            stats.total += range.nr_pages();
            zones.push(zone);
        }
        let caches = core::array::from_fn(|_| Mutex::new(Cache::new_const()));
        let largest = (0..zones.len()).max_by_key(|&at| zones[at].range().nr_pages()).unwrap_or(0);
        Ok(Self { zones, largest, storage, buddy: Mutex::new(Buddy { stats }), caches })
    }

    /// Takes `range`, which is in use since boot, out for good. Frames that are no RAM or are reserved already are
    /// passed over. Answers how many frames were taken out.
    ///
    /// # Panics
    /// A frame of it was handed out before.
    pub fn reserve(&self, range: PfnRange) -> u64 {
        self.drain_caches();
        let stats = &mut self.buddy.lock().stats;
        let mut reserved = 0;
        for zone in &self.zones {
            let (start, end) = (range.start().max(zone.range().start()), range.end().min(zone.range().end()));
            let part = end.as_u64().checked_sub(start.as_u64()).and_then(|nr_pages| PfnRange::new(start, nr_pages));
            if let Some(part) = part {
                reserved += zone.reserve(self.storage, part, stats);
            }
        }
        stats.reserved += reserved;
        reserved
    }

    /// Takes every free block that is smaller than 2^`order` frames out for good, with what the caches have that belongs to
    /// none that is as large. Answers how many frames that was.
    pub fn reserve_fragments(&self, order: u32) -> u64 {
        self.drain_caches();
        let stats = &mut self.buddy.lock().stats;
        let mut reserved = 0;
        for small in 0..NR_ORDERS.min(order as usize) {
            while self.zones.iter().any(|zone| zone.take_first(self.storage, small, stats).is_some()) {
                reserved += 1 << small;
            }
        }
        stats.reserved += reserved;
        reserved
    }

    /// A block of 2^`order` frames for `cpu` (the one that asks, so that its cache serves; any other is right too,
    /// only slower). `None` when no such block is free.
    pub fn alloc(&self, cpu: CpuId, order: u32) -> Option<Pfn> {
        let index = order as usize;
        if index >= NR_ORDERS {
            return None;
        }
        let taken = match self.take_quickly(cpu, index) {
            Some(head) => Some(head),
            None => {
                // What lies in the caches may be what is missing, alone or merged.
                self.drain_caches();
                self.take_from_buddy(index)
            }
        };
        match taken {
            Some(head) => self.zone_of(head).mark(self.storage, head, index),
            None => self.buddy.lock().stats.failures += 1,
        }
        taken
    }

    /// One frame of a range of RAM that ends at `end` or below it, for a device that can name no other; `None` where all of
    /// these are in use. Given back as any other.
    pub fn alloc_below(&self, end: Pfn) -> Option<Pfn> {
        let low = || self.zones.iter().filter(|zone| zone.range().end() <= end);
        let take = || {
            let stats = &mut self.buddy.lock().stats;
            let found =
                |order| low().find_map(|zone| Some((zone, zone.take_first(self.storage, order, stats)?, order)));
            let (zone, head, order) = (0..NR_ORDERS).find_map(found)?;
            self.cut_down(zone, head, (order, 0), stats);
            Some((zone, head))
        };
        let (zone, head) = take().or_else(|| {
            self.drain_caches();
            take()
        })?;
        zone.mark(self.storage, head, 0);
        Some(head)
    }

    /// Gives back a block that [`alloc`](Self::alloc) handed out with the same `order`.
    ///
    /// # Panics
    /// It was not handed out so (G8's rule, for frames): the message names the frame and says what is known of it.
    pub fn free(&self, cpu: CpuId, head: Pfn, order: u32) {
        let index = order as usize;
        let zone = self.find_zone(head);
        let known = zone.is_some_and(|zone| {
            index < NR_ORDERS && head.as_u64() & ((1 << index) - 1) == 0 && zone.unmark(self.storage, head, index)
        });
        let (Some(zone), true) = (zone, known) else { self.refuse(head, order) };
        if index == 0
            && let Some(mut cache) = self.caches[cpu % MAX_CPUS].try_lock()
        {
            if cache.is_full() {
                self.spill(&mut cache);
            }
            cache.push(head);
            return;
        }
        zone.put_merged(self.storage, head, index, &mut self.buddy.lock().stats);
    }

    /// Empties every CPU's cache, so that its frames can merge.
    pub fn drain_caches(&self) {
        for cache in &self.caches {
            let mut cache = cache.lock();
            if !cache.is_empty() {
                self.give_back(cache.drain(..));
            }
        }
    }

    /// Numbers at this moment. Exact while nobody allocates or frees.
    pub fn stats(&self) -> Stats {
        let cached = self.caches.iter().map(|cache| cache.lock().len() as u64).sum();
        Stats { cached, ..self.buddy.lock().stats }.count_free()
    }

    /// The ranges of RAM, rising, neighbours joined.
    pub fn ranges(&self) -> impl Iterator<Item = PfnRange> + '_ {
        self.zones.iter().map(Zone::range)
    }

    // ---- taking and giving ----

    #[inline]
    fn find_zone(&self, head: Pfn) -> Option<&Zone> {
        let largest = self.zones.get(self.largest).filter(|zone| zone.range().contains(head));
        largest.or_else(|| self.zones.iter().find(|zone| zone.range().contains(head)))
    }

    fn zone_of(&self, head: Pfn) -> &Zone {
        match self.find_zone(head) {
            Some(zone) => zone,
            None => panic!("frame {head}: handed out, but in no range of RAM"),
        }
    }

    fn take_quickly(&self, cpu: CpuId, order: usize) -> Option<Pfn> {
        if order == 0
            && let Some(mut cache) = self.caches[cpu % MAX_CPUS].try_lock()
        {
            if cache.is_empty() {
                self.fill(&mut cache);
            }
            return cache.pop();
        }
        self.take_from_buddy(order)
    }

    fn take_from_buddy(&self, order: usize) -> Option<Pfn> {
        self.take(order, &mut self.buddy.lock().stats)
    }

    /// The lowest block of the smallest order that serves, cut down to `order`.
    fn take(&self, order: usize, stats: &mut Stats) -> Option<Pfn> {
        for larger in order..NR_ORDERS {
            if stats.free_blocks[larger] == 0 {
                continue;
            }
            let found = self.zones.iter().find_map(|zone| Some((zone, zone.take_first(self.storage, larger, stats)?)));
            let Some((zone, head)) = found else { unreachable!("a free block is counted but not found") };
            self.cut_down(zone, head, (larger, order), stats);
            return Some(head);
        }
        None
    }

    /// Gives back what of a block that was taken is more than is wanted.
    #[inline]
    fn cut_down(&self, zone: &Zone, head: Pfn, (larger, order): (usize, usize), stats: &mut Stats) {
        for half in (order..larger).rev() {
            zone.put(self.storage, head.add(1 << half), half, stats);
        }
        stats.taken += 1;
    }

    /// Half a cache of single frames, so that the lowest is handed out first.
    fn fill(&self, cache: &mut Cache) {
        let stats = &mut self.buddy.lock().stats;
        for _ in 0..BATCH {
            let Some(frame) = self.take(0, stats) else { break };
            cache.push(frame);
        }
        cache.reverse();
    }

    /// The older half of a full cache goes back.
    fn spill(&self, cache: &mut Cache) {
        self.give_back(cache.drain(..BATCH));
    }

    /// Frames of a cache, in runs: what was handed out together often comes back together, and a run merges at once.
    fn give_back(&self, frames: impl Iterator<Item = Pfn>) {
        let mut frames: Cache = frames.collect();
        frames.sort_unstable();
        let stats = &mut self.buddy.lock().stats;
        let mut rest = frames.as_slice();
        while let Some(&first) = rest.first() {
            let nr = rest.iter().zip(first.as_u64()..).take_while(|(frame, next)| frame.as_u64() == *next).count();
            self.zone_of(first).put_range(self.storage, first, first.add(nr as u64), stats);
            rest = &rest[nr..];
        }
    }

    /// A free that does not match what was handed out.
    #[cold]
    fn refuse(&self, head: Pfn, order: u32) -> ! {
        let Some(zone) = self.find_zone(head) else {
            panic!("frame {head}: freed (order {order}), but it is not RAM");
        };
        let _lock = self.buddy.lock();
        match zone.state(self.storage, head) {
            State::Free(_) => {
                panic!("frame {head}: freed (order {order}), but it is free: freed twice, or never handed out")
            }
            State::Allocated(first, was) if first == head => {
                panic!("frame {head}: freed with order {order}, handed out with order {was}")
            }
            State::Allocated(first, was) => {
                panic!("frame {head}: freed (order {order}) from the middle of block {first} of order {was}")
            }
            State::Withheld => {
                panic!("frame {head}: freed (order {order}), but never handed out, or freed before and in a cache")
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
