//! The kernel heap: slabs for small objects, `linked_list_allocator` for odd sizes, whole frames for big ones.
//!
//! | request | from |
//! |---|---|
//! | at most 2,016 bytes, aligned to 64 at most | the slabs ([`slabs`]), which grow by a frame and give it back |
//! | up to [`BIG`], and no whole number of pages | the heap of odd sizes, of [`ODD_ORDER`]; frames where it is full |
//! | the rest | frames: a big table neither fragments a heap nor needs room in one |
//!
//! So the heap is as large as RAM. Where that is exhausted, `alloc` answers null; who goes on without bound asks before
//! ([`memory::is_short`]), so that the last frames are left for what cannot be refused.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};

use arch::cpu::IrqSave;
use arch::percpu as area;
use linked_list_allocator::Heap;
use mm::addr::{PAGE_SIZE, PhysAddr};
use mm::machine::MAX_CPUS;
use slabs::class::Class;
use slabs::{Pages, Slabs};

use crate::cpu::lock::IrqLock;
use crate::mem::{layout, memory, reserve};

/// log2 of the size of the heap of odd sizes in pages: 1 MiB.
const ODD_ORDER: u32 = 8;
/// Above this size frames are used even where the size is no whole number of pages.
const BIG: usize = 32 << 10;

/// Frames for slabs.
struct Frames;

// SAFETY: a frame is a page of RAM in the direct map, and nobody else's until it is freed.
unsafe impl Pages for Frames {
    fn page(&self) -> Option<NonNull<u8>> {
        memory::alloc(0).and_then(|pfn| NonNull::new(layout::direct_ptr(pfn.addr())))
    }

    unsafe fn give_back(&self, page: NonNull<u8>) {
        free_frames(page.as_ptr(), 0);
    }
}

struct KernelHeap {
    slabs: Slabs<Frames, MAX_CPUS>,
    odd: IrqLock<Heap>,
    /// Where the heap of odd sizes begins; 0 before [`init`].
    odd_start: AtomicU64,
}

#[global_allocator]
static HEAP: KernelHeap =
    KernelHeap { slabs: Slabs::new(Frames), odd: IrqLock::new(Heap::empty()), odd_start: AtomicU64::new(0) };

/// Gives the heap of odd sizes its memory; answers its size in bytes, or `None` where there is not enough.
pub fn init() -> Option<usize> {
    let start: *mut u8 = layout::direct_ptr(memory::alloc(ODD_ORDER)?.addr());
    // SAFETY: the frames are ours for ever and in the direct map.
    unsafe { HEAP.odd.lock().init(start, ODD_BYTES) };
    HEAP.odd_start.store(start as u64, Ordering::Release);
    reserve::init()?;
    Some(ODD_BYTES)
}

const ODD_BYTES: usize = (PAGE_SIZE as usize) << ODD_ORDER;

/// Bytes of small objects and odd sizes that are in use, and bytes that are put by for more of them. Frames that serve big
/// requests are in neither.
pub fn usage() -> (usize, usize) {
    let slabs = HEAP.slabs.usage();
    let odd = HEAP.odd.lock();
    let slab_bytes = (slabs.nr_pages * PAGE_SIZE).saturating_sub(slabs.used_bytes);
    (slabs.used_bytes as usize + odd.used(), slab_bytes as usize + odd.free())
}

/// Frames that are slabs at this moment: they come and go with small objects, whoever has them.
pub fn slab_frames() -> u64 {
    HEAP.slabs.usage().nr_pages
}

/// The order of the frames that serve `layout`, or `None` where the heap of odd sizes does. A pure function of the layout,
/// so that freeing takes the same way.
fn frame_order(layout: &Layout) -> Option<u32> {
    let page = PAGE_SIZE as usize;
    let whole_pages = layout.size() >= page && layout.size().is_multiple_of(page);
    if !whole_pages && layout.size() <= BIG && layout.align() < page {
        return None;
    }
    Some(order_of(layout))
}

fn order_of(layout: &Layout) -> u32 {
    layout.size().max(layout.align()).div_ceil(PAGE_SIZE as usize).next_power_of_two().trailing_zeros()
}

/// Frames that serve `layout`; 0 where a heap does.
pub fn frames_of(layout: &Layout) -> u64 {
    frame_order(layout).map_or(0, |order| 1 << order)
}

fn frames(order: u32) -> *mut u8 {
    memory::alloc(order).map_or(core::ptr::null_mut(), |pfn| layout::direct_ptr(pfn.addr()))
}

fn free_frames(ptr: *mut u8, order: u32) {
    memory::free(PhysAddr::new(ptr as u64 - layout::DIRECT_MAP).pfn(), order);
}

fn small(class: Class) -> *mut u8 {
    let _irq = IrqSave::new();
    // SAFETY: this is the CPU, and no handler allocates; with interrupts off nothing else runs here.
    unsafe { HEAP.slabs.alloc(area::cpu(), class) }.map_or(core::ptr::null_mut(), NonNull::as_ptr)
}

// SAFETY: each allocator gives out memory that nobody else has, large and aligned enough (frames are naturally aligned to
// their order).
unsafe impl GlobalAlloc for KernelHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let found = match Class::of(&layout) {
            _ if reserve::refuses() => core::ptr::null_mut(),
            Some(class) => small(class),
            None => match frame_order(&layout) {
                Some(order) => frames(order),
                None => match self.odd.lock().allocate_first_fit(layout) {
                    Ok(found) => found.as_ptr(),
                    Err(()) => frames(order_of(&layout)),
                },
            },
        };
        if found.is_null() { reserve::serve(layout) } else { found }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        if reserve::owns(ptr) {
            // SAFETY: `alloc` got it from there.
            return unsafe { reserve::give_back(ptr, layout) };
        }
        let Some(object) = NonNull::new(ptr) else { return };
        if let Some(class) = Class::of(&layout) {
            let _irq = IrqSave::new();
            // SAFETY: as in `small`; `alloc` got it from there, for the same layout and so the same class.
            return unsafe { self.slabs.free(area::cpu(), class, object) };
        }
        // Relaxed: who has a piece of that heap got it after `init`.
        let inside = (ptr as u64).wrapping_sub(self.odd_start.load(Ordering::Relaxed)) < ODD_BYTES as u64;
        match frame_order(&layout) {
            Some(order) => free_frames(ptr, order),
            // SAFETY: the caller gives back what `alloc` gave out, which lies there.
            None if inside => unsafe { self.odd.lock().deallocate(object, layout) },
            None => free_frames(ptr, order_of(&layout)),
        }
    }
}
