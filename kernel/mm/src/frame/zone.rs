//! One range of RAM: which blocks are free, and which are handed out, by order.
//!
//! A *block* of order k is a naturally aligned run of 2^k frames. Blocks are numbered from that which holds the
//! zone's first frame. A block that sticks out of the zone is never free as a whole, so the zone's ends need no
//! further thought.

use super::bitmap::{Flat, Indexed};
use super::{NR_ORDERS, Stats};
use crate::addr::{Pfn, PfnRange};
use crate::sync::AtomicU64;

/// What is known of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// In a free block of this order.
    Free(u32),
    /// In a block handed out with this order, which begins here.
    Allocated(Pfn, u32),
    /// Neither: reserved, or waiting in a CPU's cache.
    Withheld,
}

/// The free blocks of one range.
#[derive(Clone, Copy, Debug)]
pub(super) struct Zone {
    range: PfnRange,
    free: [Indexed; NR_ORDERS],
    /// Blocks handed out, by the order they were asked for with: what a `free` must match.
    allocated: [Flat; NR_ORDERS],
}

/// Blocks of `order` that touch `range`.
fn nr_blocks(range: PfnRange, order: usize) -> usize {
    let (first, last) = (range.start().as_u64(), range.end().as_u64() - 1);
    ((last >> order) - (first >> order)) as usize + 1
}

impl Zone {
    /// Words of storage for `range`.
    pub(super) fn words(range: PfnRange) -> usize {
        let of_order = |order| {
            let len = nr_blocks(range, order);
            Indexed::words(len) + Flat::words(len)
        };
        (0..NR_ORDERS).map(of_order).sum()
    }
    /// A zone with its bitmaps from word `first` of the storage on, which is zero. Nothing is free yet.
    pub(super) fn new(range: PfnRange, mut first: usize) -> Self {
        let mut zone = Self { range, free: Default::default(), allocated: Default::default() };
        for order in 0..NR_ORDERS {
            let len = nr_blocks(range, order);
            zone.free[order] = Indexed::new(first, len);
            first += Indexed::words(len);
            zone.allocated[order] = Flat::new(first, len);
            first += Flat::words(len);
        }
        zone
    }
    /// Its frames.
    pub(super) fn range(&self) -> PfnRange {
        self.range
    }
    /// Number of the block of `order` around `pfn`.
    fn block(&self, pfn: Pfn, order: usize) -> usize {
        ((pfn.as_u64() >> order) - (self.range.start().as_u64() >> order)) as usize
    }
    /// First frame of a block.
    fn head(&self, block: usize, order: usize) -> Pfn {
        Pfn::new((block as u64 + (self.range.start().as_u64() >> order)) << order)
    }

    /// Takes the lowest free block of exactly `order`.
    pub(super) fn take_first(&self, storage: &[AtomicU64], order: usize, stats: &mut Stats) -> Option<Pfn> {
        let block = self.free[order].first(storage)?;
        self.free[order].clear(storage, block);
        stats.free_blocks[order] -= 1;
        Some(self.head(block, order))
    }
    /// Makes the free block of `order` at `head` no longer free.
    fn take(&self, storage: &[AtomicU64], head: Pfn, order: usize, stats: &mut Stats) {
        self.free[order].clear(storage, self.block(head, order));
        stats.free_blocks[order] -= 1;
    }
    /// Makes the block of `order` at `head` free, as it is.
    pub(super) fn put(&self, storage: &[AtomicU64], head: Pfn, order: usize, stats: &mut Stats) {
        self.free[order].set(storage, self.block(head, order));
        stats.free_blocks[order] += 1;
    }
    /// Makes the block of `order` at `head` free, and merges it with its buddy as long as that is free too.
    pub(super) fn put_merged(&self, storage: &[AtomicU64], mut head: Pfn, mut order: usize, stats: &mut Stats) {
        while order + 1 < NR_ORDERS {
            let buddy = Pfn::new(head.as_u64() ^ 1 << order);
            if !self.range.contains(buddy) || !self.free[order].get(storage, self.block(buddy, order)) {
                break;
            }
            self.take(storage, buddy, order, stats);
            head = head.min(buddy);
            order += 1;
        }
        self.put(storage, head, order, stats);
    }
    /// Makes `start .. end` free, in the largest blocks.
    pub(super) fn put_range(&self, storage: &[AtomicU64], start: Pfn, end: Pfn, stats: &mut Stats) {
        let mut next = start;
        while next < end {
            let left = end.as_u64() - next.as_u64();
            let order = (next.as_u64().trailing_zeros().min(left.ilog2()) as usize).min(NR_ORDERS - 1);
            self.put_merged(storage, next, order, stats);
            next = next.add(1 << order);
        }
    }
    /// Takes what is free of `wanted` (which lies in the zone) out for good; answers how many frames that was.
    ///
    /// # Panics
    /// A frame of it is handed out.
    pub(super) fn reserve(&self, storage: &[AtomicU64], wanted: PfnRange, stats: &mut Stats) -> u64 {
        let mut reserved = 0;
        let mut next = wanted.start();
        while next < wanted.end() {
            match self.state(storage, next) {
                State::Free(order) => {
                    let head = Pfn::new(next.as_u64() >> order << order);
                    let (end, past) = (head.add(1 << order), wanted.end());
                    self.take(storage, head, order as usize, stats);
                    self.put_range(storage, head, next, stats);
                    self.put_range(storage, past.min(end), end, stats);
                    reserved += end.min(past).as_u64() - next.as_u64();
                    next = end;
                }
                State::Allocated(head, order) => {
                    panic!("frame {next}: reserved, but in use since boot (block {head} of order {order})")
                }
                State::Withheld => next = next.add(1),
            }
        }
        reserved
    }

    /// Notes that the block of `order` at `head` is handed out.
    pub(super) fn mark(&self, storage: &[AtomicU64], head: Pfn, order: usize) {
        let was = self.allocated[order].replace(storage, self.block(head, order), true);
        assert!(!was, "frame {head}: handed out twice (order {order})");
    }
    /// Notes that it is handed out no more; answers whether it was.
    pub(super) fn unmark(&self, storage: &[AtomicU64], head: Pfn, order: usize) -> bool {
        self.allocated[order].replace(storage, self.block(head, order), false)
    }
    /// What is known of `pfn`, which lies in the zone.
    pub(super) fn state(&self, storage: &[AtomicU64], pfn: Pfn) -> State {
        for order in 0..NR_ORDERS {
            let block = self.block(pfn, order);
            if self.free[order].get(storage, block) {
                return State::Free(order as u32);
            }
            if self.allocated[order].get(storage, block) {
                return State::Allocated(self.head(block, order), order as u32);
            }
        }
        State::Withheld
    }
}
