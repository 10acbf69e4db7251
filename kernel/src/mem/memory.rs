//! Physical memory: the firmware's map, and frames for everybody.

use core::sync::atomic::{AtomicU64, Ordering};

use arch::cpu::IrqSave;
use arch::percpu as area;
use arrayvec::ArrayVec;
use bootloader_api::info::{MemoryRegion, MemoryRegionKind};
use mm::addr::{PAGE_SIZE, Pfn, PfnRange, PhysAddr};
use mm::frame::{self, FrameAllocator, FrameError};
use spin::Once;

use crate::mem::{layout, reserve};

/// Most regions that are kept; OVMF gives about 40.
const MAX_REGIONS: usize = 256;
/// Below this the kernel does not try: heap, stacks and tables would not fit.
pub const MIN_RAM_BYTES: u64 = 64 << 20;
/// Frames below 1 MiB are not given out: real mode and firmware tables live there.
const LOW_END: u64 = 1 << 20;

static REGIONS: Once<ArrayVec<MemoryRegion, MAX_REGIONS>> = Once::new();

/// The firmware's memory map, as the loader passed it on.
pub fn regions() -> &'static [MemoryRegion] {
    REGIONS.get().map_or(&[], |regions| regions.as_slice())
}

/// Keeps a copy of the memory map. Answers how many regions did not fit.
pub fn init_map(from_loader: &[MemoryRegion]) -> usize {
    let mut lost = 0;
    REGIONS.call_once(|| {
        let mut kept = ArrayVec::new();
        for region in from_loader.iter().filter(|region| region.start < region.end) {
            if kept.try_push(*region).is_err() {
                lost += 1;
            }
        }
        kept
    });
    lost
}

/// Is this region memory, as opposed to device registers and reserved holes? UEFI types (UEFI
/// 2.10, table 7.6): 0 reserved, 11 and 12 MMIO, 14 persistent memory, which the NVDIMM driver maps.
pub fn is_ram(kind: MemoryRegionKind) -> bool {
    !matches!(kind, MemoryRegionKind::UnknownUefi(0 | 11 | 12 | 14) | MemoryRegionKind::UnknownBios(_))
}

/// Is this region reserved by the firmware, for what it does not say?
pub fn is_reserved(kind: MemoryRegionKind) -> bool {
    matches!(kind, MemoryRegionKind::UnknownUefi(0))
}

/// Bytes of RAM in the map, and bytes that the kernel may use.
pub fn ram_bytes() -> (u64, u64) {
    let sum = |usable: bool| {
        let wanted =
            |region: &&MemoryRegion| is_ram(region.kind) && (!usable || region.kind == MemoryRegionKind::Usable);
        regions().iter().filter(wanted).map(|region| region.end - region.start).sum()
    };
    (sum(false), sum(true))
}

/// The lowest usable run of `nr_pages` page frames below 1 MiB, for the start-up code of the other CPUs.
pub fn low_pages(nr_pages: u64) -> Option<PhysAddr> {
    let fits = |region: &&MemoryRegion| {
        let start = region.start.max(PAGE_SIZE).next_multiple_of(PAGE_SIZE);
        region.kind == MemoryRegionKind::Usable && start + nr_pages * PAGE_SIZE <= region.end.min(0x9_f000)
    };
    regions().iter().find(fits).map(|region| PhysAddr::new(region.start.max(PAGE_SIZE).next_multiple_of(PAGE_SIZE)))
}

/// The allocator. Its locks are taken with interrupts off: the heap allocates inside locks of that kind.
static FRAMES: Once<FrameAllocator<'static>> = Once::new();
static USED: AtomicU64 = AtomicU64::new(0);
/// Frames that can be given out.
static TOTAL: AtomicU64 = AtomicU64::new(0);
/// Frames that are left for what cannot be refused (a node of a tree that changes, a line on the console): 2 MiB.
const PUT_BY: u64 = 512;

/// What [`init_frames`] found.
#[derive(Clone, Copy, Debug)]
pub struct FrameSummary {
    /// Ranges of usable RAM, neighbours joined.
    pub ranges: usize,
    /// Usable frames that are given up because the list of ranges is full: the smallest ranges go first.
    pub given_up: u64,
    /// Frames that the allocator's own bitmaps take.
    pub bitmaps: u64,
}

/// Makes the frame allocator over all usable RAM above 1 MiB; its bitmaps are in the largest range.
///
/// # Errors
/// The memory map makes no sense: usable regions overlap, or there is none with room for the bitmaps.
pub fn init_frames() -> Result<FrameSummary, FrameError> {
    let (ranges, given_up) = usable_ranges();
    let words = frame::words_needed(&ranges)?;
    let bitmaps = (words as u64 * 8).div_ceil(PAGE_SIZE);
    let home = ranges.iter().copied().max_by_key(|range| range.nr_pages()).filter(|home| home.nr_pages() > bitmaps);
    let taken = home.and_then(|home| PfnRange::new(home.start(), bitmaps)).ok_or(FrameError::StorageTooSmall(words))?;
    // SAFETY: usable RAM that nobody was given yet, in the direct map for ever; the allocator clears it first.
    let storage = unsafe { core::slice::from_raw_parts(layout::direct_ptr::<AtomicU64>(taken.start().addr()), words) };
    let frames = FrameAllocator::new(&ranges, storage)?;
    frames.reserve(taken);
    let stats = frames.stats();
    TOTAL.store(stats.total - stats.reserved, Ordering::Relaxed);
    FRAMES.call_once(|| frames);
    Ok(FrameSummary { ranges: ranges.len(), given_up, bitmaps })
}

/// The usable ranges above 1 MiB, in whole pages, rising, neighbours joined; and how many frames did not fit.
fn usable_ranges() -> (ArrayVec<PfnRange, { frame::MAX_RANGES }>, u64) {
    let mut regions: ArrayVec<(u64, u64), MAX_REGIONS> = regions()
        .iter()
        .filter(|region| region.kind == MemoryRegionKind::Usable)
        .map(|region| (region.start.max(LOW_END).div_ceil(PAGE_SIZE), region.end / PAGE_SIZE))
        .filter(|(start, end)| start < end)
        .collect();
    regions.sort_unstable();
    let mut joined: ArrayVec<(u64, u64), MAX_REGIONS> = ArrayVec::new();
    for (start, end) in regions {
        match joined.last_mut() {
            Some(last) if last.1 == start => last.1 = end,
            // Room for all: there are no more than there were regions.
            _ => joined.push((start, end)),
        }
    }
    // The largest ones, where there are too many.
    joined.sort_unstable_by_key(|(start, end)| core::cmp::Reverse(end - start));
    let given_up = joined.iter().skip(frame::MAX_RANGES).map(|(start, end)| end - start).sum();
    let kept = joined.into_iter().take(frame::MAX_RANGES);
    (kept.filter_map(|(start, end)| PfnRange::new(Pfn::new(start), end - start)).collect(), given_up)
}

/// `2^order` contiguous frames, naturally aligned; `None` when memory is exhausted. The contents are undefined.
pub fn alloc(order: u32) -> Option<Pfn> {
    let _irq = IrqSave::new();
    let pfn = FRAMES.get()?.alloc(area::cpu(), order)?;
    USED.fetch_add(1 << order, Ordering::Relaxed);
    Some(pfn)
}

/// Are the frames that are left put by for what cannot be refused? Who would take memory for good, and can be refused,
/// asks before. (Linux: the watermarks of `mm/page_alloc.c`, below which only some may go.)
#[inline]
pub fn is_short() -> bool {
    !leaves_enough(0)
}

/// Would memory still not be short without so many frames?
#[inline]
pub fn leaves_enough(order: u32) -> bool {
    USED.load(Ordering::Relaxed) + PUT_BY + (1 << order) <= TOTAL.load(Ordering::Relaxed)
}

/// Gives back what [`alloc`] gave out.
///
/// # Panics
/// When it was not given out, or in another order.
pub fn free(pfn: Pfn, order: u32) {
    let _irq = IrqSave::new();
    FRAMES.get().expect("frames are freed after some were given out").free(area::cpu(), pfn, order);
    USED.fetch_sub(1 << order, Ordering::Relaxed);
}

/// Takes every free block that is smaller than 2^`order` frames out for good, so that whoever takes memory next begins with
/// whole ones. They count as used.
pub fn reserve_fragments(order: u32) {
    let _irq = IrqSave::new();
    let reserved = FRAMES.get().map_or(0, |frames| frames.reserve_fragments(order));
    USED.fetch_add(reserved, Ordering::Relaxed);
}

/// One frame below 4 GiB, zeroed, for a device that can name no other.
pub fn alloc_zeroed_below_4g() -> Option<Pfn> {
    if reserve::refuses() {
        return None;
    }
    let pfn = {
        let _irq = IrqSave::new();
        FRAMES.get()?.alloc_below(Pfn::new((1 << 32) / PAGE_SIZE))?
    };
    USED.fetch_add(1, Ordering::Relaxed);
    Some(zeroed(pfn))
}

/// One zeroed frame.
pub fn alloc_zeroed() -> Option<Pfn> {
    if reserve::refuses() {
        return None;
    }
    Some(zeroed(alloc(0)?))
}

/// A frame that was taken just now, with zeroes.
#[inline]
fn zeroed(pfn: Pfn) -> Pfn {
    // SAFETY: the frame is RAM, ours, and in the direct map.
    unsafe { layout::direct_ptr::<u8>(pfn.addr()).write_bytes(0, PAGE_SIZE as usize) };
    pfn
}

/// Frames in use at this moment.
pub fn used_frames() -> u64 {
    USED.load(Ordering::Relaxed)
}

/// The allocator's statistics at this moment.
pub fn stats() -> Option<frame::Stats> {
    let _irq = IrqSave::new();
    FRAMES.get().map(FrameAllocator::stats)
}
