//! The allocator against a naive model, at its limits, and against misuse.

use alloc::vec::Vec;
use std::collections::BTreeSet;
use std::sync::atomic::AtomicU8;

use proptest::prelude::*;

use super::*;

fn range(start: u64, nr_pages: u64) -> PfnRange {
    PfnRange::new(Pfn::new(start), nr_pages).expect("a range of the test")
}

/// An allocator whose storage is leaked; tests are short.
fn allocator(ranges: &[PfnRange]) -> FrameAllocator<'static> {
    let words = words_needed(ranges).expect("ranges of the test");
    // Not zero: the allocator must not count on it.
    let storage: Vec<_> = (0..words).map(|_| AtomicU64::new(u64::MAX)).collect();
    FrameAllocator::new(ranges, Vec::leak(storage)).expect("ranges of the test")
}

/// Free frames as a set. A free block of the buddy system is, by definition, an aligned free run that is not part
/// of a larger one inside one range.
struct Model {
    ranges: Vec<PfnRange>,
    free: BTreeSet<u64>,
}

impl Model {
    fn new(ranges: &[PfnRange]) -> Self {
        let frames = |range: &PfnRange| range.start().as_u64()..range.end().as_u64();
        Self { ranges: ranges.to_vec(), free: ranges.iter().flat_map(frames).collect() }
    }
    fn is_free(&self, head: u64, order: u32) -> bool {
        let inside = |range: &&PfnRange| range.contains(Pfn::new(head)) && head + (1 << order) <= range.end().as_u64();
        self.ranges.iter().find(inside).is_some() && (head..head + (1 << order)).all(|frame| self.free.contains(&frame))
    }
    fn is_maximal(&self, head: u64, order: u32) -> bool {
        self.is_free(head, order)
            && (order == MAX_ORDER || !self.is_free(head >> (order + 1) << (order + 1), order + 1))
    }
    /// The block that must be handed out.
    fn alloc(&mut self, order: u32) -> Option<Pfn> {
        let head = (order..=12).find_map(|larger| {
            let heads = self.free.iter().copied().filter(|head| head % (1 << larger) == 0);
            heads.into_iter().find(|&head| self.is_maximal(head, larger))
        })?;
        (head..head + (1 << order)).for_each(|frame| assert!(self.free.remove(&frame)));
        Some(Pfn::new(head))
    }
    fn give(&mut self, head: Pfn, order: u32) {
        let head = head.as_u64();
        (head..head + (1 << order)).for_each(|frame| assert!(self.free.insert(frame)));
    }
}

/// Odd ends, a gap, a range that begins in the middle of a block.
fn odd_ranges() -> [PfnRange; 3] {
    [range(3, 130), range(0x200, 0x155), range(0x7ff, 2)]
}

#[derive(Clone, Debug)]
enum Step {
    Alloc(u32),
    /// The n-th of those handed out (modulo their number).
    Free(usize),
}

fn steps(orders: core::ops::RangeInclusive<u32>) -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![3 => orders.prop_map(Step::Alloc), 2 => any::<usize>().prop_map(Step::Free)];
    proptest::collection::vec(step, 1..150)
}

proptest! {
    /// Without the caches (orders from 1 on) every answer is the model's, address included.
    #[test]
    fn blocks_agree_with_the_model(steps in steps(1..=8)) {
        let frames = allocator(&odd_ranges());
        let mut model = Model::new(&odd_ranges());
        let mut held = Vec::new();
        for step in steps {
            match step {
                Step::Alloc(order) => {
                    let got = frames.alloc(0, order);
                    prop_assert_eq!(got, model.alloc(order));
                    held.extend(got.map(|head| (head, order)));
                }
                Step::Free(n) if !held.is_empty() => {
                    let (head, order) = held.swap_remove(n % held.len());
                    frames.free(0, head, order);
                    model.give(head, order);
                }
                Step::Free(_) => {}
            }
            prop_assert_eq!(frames.stats().free, model.free.len() as u64);
        }
    }

    /// With the caches of three CPUs: no frame is handed out twice, nothing is refused while it is there, and
    /// in the end all is as it was.
    #[test]
    fn caches_lose_nothing(steps in steps(0..=3), cpus in proptest::collection::vec(0..3_usize, 150)) {
        let frames = allocator(&odd_ranges());
        let fresh = frames.stats();
        let mut model = Model::new(&odd_ranges());
        let mut held = Vec::new();
        for (step, cpu) in steps.into_iter().zip(cpus) {
            match step {
                Step::Alloc(order) => match frames.alloc(cpu, order) {
                    Some(head) => {
                        prop_assert!(model.is_free(head.as_u64(), order), "{head} order {order}");
                        let block = head.as_u64()..head.as_u64() + (1 << order);
                        block.for_each(|frame| assert!(model.free.remove(&frame)));
                        held.push((head, order));
                    }
                    None => prop_assert!(model.alloc(order).is_none(), "order {order} was there"),
                },
                Step::Free(n) if !held.is_empty() => {
                    let (head, order) = held.swap_remove(n % held.len());
                    frames.free(cpu, head, order);
                    model.give(head, order);
                }
                Step::Free(_) => {}
            }
            let stats = frames.stats();
            prop_assert_eq!(stats.free + stats.cached, model.free.len() as u64);
        }
        for (head, order) in held {
            frames.free(1, head, order);
        }
        frames.drain_caches();
        let stats = frames.stats();
        prop_assert_eq!((stats.free_blocks, stats.free, stats.allocated()), (fresh.free_blocks, fresh.free, 0));
    }

    /// Reserved frames are never handed out, whatever they cut through.
    #[test]
    fn reserved_frames_stay_away(holes in proptest::collection::vec((0..0x400_u64, 1..70_u64), 0..6)) {
        let frames = allocator(&odd_ranges());
        let mut model = Model::new(&odd_ranges());
        for (start, nr_pages) in holes {
            let before = model.free.len();
            model.free.retain(|frame| !(start..start + nr_pages).contains(frame));
            prop_assert_eq!(frames.reserve(range(start, nr_pages)), (before - model.free.len()) as u64);
        }
        let stats = frames.stats();
        prop_assert_eq!((stats.free, stats.allocated()), (model.free.len() as u64, 0));
        let mut got = BTreeSet::new();
        while let Some(frame) = frames.alloc(0, 0) {
            prop_assert!(got.insert(frame.as_u64()));
        }
        prop_assert_eq!(got, model.free);
    }
}

#[test]
fn the_same_calls_give_the_same_answers() {
    let run = || {
        let frames = allocator(&[range(0x100, 0x4000)]);
        let mut got = Vec::new();
        for i in 0..500_u64 {
            let order = (i * 7 % 5) as u32;
            let head = frames.alloc((i % 4) as usize, order).expect("enough RAM");
            got.push(head);
            if i % 3 == 0 {
                frames.free((i % 4) as usize, head, order);
            }
        }
        got
    };
    assert_eq!(run(), run());
}

#[test]
fn a_gib_in_one_piece() {
    const GIB: u64 = 1 << 18;
    // 3 GiB from the middle of the first: two whole ones inside.
    let frames = allocator(&[range(GIB / 2, 3 * GIB)]);
    assert_eq!(frames.stats().free_blocks[18], 2);
    assert_eq!(frames.alloc(0, 18), Some(Pfn::new(GIB)));
    assert_eq!(frames.alloc(0, 18), Some(Pfn::new(2 * GIB)));
    assert_eq!(frames.alloc(0, 18), None);
    assert_eq!(frames.stats().failures, 1);
    // One frame out of the middle is enough to lose the 1 GiB block, and giving it back brings it again.
    frames.free(0, Pfn::new(GIB), 18);
    let one = frames.alloc(0, 0).expect("there is RAM");
    frames.drain_caches();
    assert_eq!(frames.stats().largest_free_order(), Some(18), "the small ones come from the smallest block");
    frames.free(0, one, 0);
}

#[test]
fn fragmentation_and_exhaustion() {
    let frames = allocator(&[range(0, 1024)]);
    let all: Vec<_> = core::iter::from_fn(|| frames.alloc(0, 0)).collect();
    assert_eq!(all.len(), 1024);
    assert_eq!(frames.alloc(0, 0), None);
    assert_eq!(frames.stats().allocated(), 1024);
    // Every second frame is free: half the memory, and not two in a row.
    all.iter().filter(|frame| frame.as_u64() % 2 == 1).for_each(|&frame| frames.free(0, frame, 0));
    assert_eq!(frames.alloc(0, 1), None);
    let stats = frames.stats();
    assert_eq!((stats.free, stats.cached, stats.largest_free_order()), (512, 0, Some(0)));
    all.iter().filter(|frame| frame.as_u64() % 2 == 0).for_each(|&frame| frames.free(0, frame, 0));
    assert_eq!(frames.alloc(0, 10), Some(Pfn::new(0)), "the caches are emptied before a refusal");
}

/// What is smaller goes, from a cache too where it does not merge with more; whole blocks stay, and so do those handed out.
#[test]
fn fragments_go_and_whole_blocks_stay() {
    let frames = allocator(&[range(8, 8 + 64 + 3), range(0x200, 128)]);
    let kept = frames.alloc(0, 0).expect("a frame");
    assert_eq!(kept, Pfn::new(82), "of the smallest block");
    assert_ne!(frames.stats().cached, 0);
    // From 8, 16, 32, 64 and 80 on.
    assert_eq!(frames.reserve_fragments(6), 8 + 16 + 32 + 16 + 2);
    let stats = frames.stats();
    assert_eq!((stats.cached, stats.free, stats.allocated()), (0, 128, 1));
    assert!(stats.free_blocks[..6].iter().all(|&nr| nr == 0), "{:?}", stats.free_blocks);
    assert_eq!(frames.reserve_fragments(6), 0);
    frames.free(0, kept, 0);
    assert_eq!(frames.alloc(0, 7), Some(Pfn::new(0x200)));
    assert_eq!(frames.alloc(1, 0), Some(kept));
    assert_eq!(frames.alloc(1, 0), None);
}

#[test]
fn another_cpu_s_cache_is_no_loss() {
    let frames = allocator(&[range(0, 8)]);
    let one = frames.alloc(5, 0).expect("there is RAM");
    assert_eq!(frames.stats().cached, 7, "CPU 5 has taken all into its cache");
    assert!(frames.alloc(6, 0).is_some());
    frames.free(6, one, 0);
}

#[test]
fn neighbours_are_joined_and_overlaps_refused() {
    let frames = allocator(&[range(8, 8), range(0, 8), range(32, 1)]);
    assert_eq!(frames.ranges().collect::<Vec<_>>(), [range(0, 16), range(32, 1)]);
    assert_eq!(frames.alloc(0, 4), Some(Pfn::new(0)));
    assert_eq!(words_needed(&[range(0, 8), range(7, 1)]), Err(FrameError::Overlap(Pfn::new(7))));
    assert_eq!(words_needed(&[range(5, 1), range(5, 1)]), Err(FrameError::Overlap(Pfn::new(5))));
    let many: Vec<_> = (0..=MAX_RANGES as u64).map(|i| range(2 * i, 1)).collect();
    assert_eq!(words_needed(&many), Err(FrameError::TooManyRanges));
    assert_eq!(words_needed(&[]), Ok(0));
    assert_eq!(allocator(&[]).alloc(0, 0), None);
}

#[test]
fn storage_is_half_a_byte_a_frame_and_is_checked() {
    let ranges = [range(0, 1 << 20)];
    let words = words_needed(&ranges).expect("one range");
    assert!(words * 8 <= (1 << 20) * 17 / 32, "{words} words for 2^20 frames");
    let storage: Vec<_> = (1..words).map(|_| AtomicU64::new(0)).collect();
    let refused = FrameAllocator::new(&ranges, &storage).err();
    assert_eq!(refused, Some(FrameError::StorageTooSmall(words)));
}

/// Four threads take and give; each marks what it holds. A frame that two hold at once shows.
#[test]
fn threads_share_it() {
    const FRAMES: u64 = 256;
    let frames = allocator(&[range(0, FRAMES)]);
    let holders: Vec<_> = (0..FRAMES).map(|_| AtomicU8::new(0)).collect();
    let mark = |head: Pfn, order: u32, from: u8, to: u8| {
        for frame in head.as_u64()..head.as_u64() + (1 << order) {
            let was = holders[frame as usize].swap(to, Ordering::Relaxed);
            assert_eq!(was, from, "frame {frame:#x} has two holders");
        }
    };
    std::thread::scope(|scope| {
        for cpu in 0..4_usize {
            let (frames, mark) = (&frames, &mark);
            scope.spawn(move || {
                let me = cpu as u8 + 1;
                let mut held = Vec::new();
                for i in 0..20_000_usize {
                    let order = (i * (cpu + 3) % 7 / 2) as u32;
                    if let Some(head) = frames.alloc(cpu, order) {
                        mark(head, order, 0, me);
                        held.push((head, order));
                    }
                    if held.len() > 6 {
                        let (head, order) = held.swap_remove(i % held.len());
                        mark(head, order, me, 0);
                        frames.free(cpu, head, order);
                    }
                }
                for (head, order) in held {
                    mark(head, order, me, 0);
                    frames.free(cpu, head, order);
                }
            });
        }
    });
    frames.drain_caches();
    assert_eq!((frames.stats().free, frames.stats().free_blocks[8]), (FRAMES, 1));
}

// ---- misuse: each stops the kernel and names the frame ----

#[test]
#[should_panic(expected = "frame 0x8: freed (order 3), but it is free: freed twice")]
fn a_block_freed_twice() {
    let frames = allocator(&[range(8, 8)]);
    let head = frames.alloc(0, 3).expect("there is RAM");
    frames.free(0, head, 3);
    frames.free(0, head, 3);
}

#[test]
#[should_panic(expected = "frame 0x0: freed (order 0), but never handed out, or freed before and in a cache")]
fn a_frame_freed_twice_from_two_cpus() {
    let frames = allocator(&[range(0, 64)]);
    let head = frames.alloc(0, 0).expect("there is RAM");
    frames.free(0, head, 0);
    frames.free(1, head, 0);
}

#[test]
#[should_panic(expected = "frame 0x0: freed with order 0, handed out with order 2")]
fn a_block_freed_with_another_order() {
    let frames = allocator(&[range(0, 64)]);
    let head = frames.alloc(0, 2).expect("there is RAM");
    frames.free(0, head, 0);
}

#[test]
#[should_panic(expected = "frame 0x2: freed (order 1) from the middle of block 0x0 of order 2")]
fn the_middle_of_a_block_freed() {
    let frames = allocator(&[range(0, 64)]);
    frames.alloc(0, 2).expect("there is RAM");
    frames.free(0, Pfn::new(2), 1);
}

#[test]
#[should_panic(expected = "frame 0x4: freed (order 0), but never handed out")]
fn a_reserved_frame_freed() {
    let frames = allocator(&[range(0, 64)]);
    assert_eq!(frames.reserve(range(4, 1)), 1);
    frames.free(0, Pfn::new(4), 0);
}

#[test]
#[should_panic(expected = "frame 0x30: freed (order 0), but it is free: freed twice, or never handed out")]
fn a_frame_freed_that_was_never_handed_out() {
    allocator(&[range(0, 64)]).free(0, Pfn::new(0x30), 0);
}

#[test]
#[should_panic(expected = "frame 0x100: freed (order 0), but it is not RAM")]
fn a_frame_freed_that_is_no_ram() {
    allocator(&[range(0, 64)]).free(0, Pfn::new(0x100), 0);
}

#[test]
#[should_panic(expected = "frame 0x3: reserved, but in use since boot (block 0x0 of order 2)")]
fn a_frame_in_use_reserved() {
    let frames = allocator(&[range(0, 64)]);
    frames.alloc(0, 2).expect("there is RAM");
    frames.reserve(range(3, 1));
}

/// A low frame is found whatever is free above, also where all that is free of them lies in a CPU's cache.
#[test]
fn a_frame_of_a_low_range_while_there_is_one() {
    const END: Pfn = Pfn::new(0x400);
    let low = range(0x100, 64);
    let frames = allocator(&[low, range(0x3ff, 3), range(0x1003, 0x5005)]);
    let all: Vec<_> = core::iter::from_fn(|| frames.alloc_below(END)).collect();
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), 64);
    assert!(all.iter().all(|frame| low.contains(*frame)), "a range that reaches across the limit is left alone");
    assert_eq!((frames.stats().allocated(), frames.stats().failures), (64, 0));
    frames.free(3, all[7], 0);
    assert_eq!((frames.alloc_below(END), frames.alloc_below(END)), (Some(all[7]), None));
    all.iter().for_each(|frame| frames.free(0, *frame, 0));
    frames.drain_caches();
    assert_eq!(frames.stats().allocated(), 0);
    let whole = frames.alloc(0, 6).expect("they have merged");
    assert!(low.contains(whole));
}
