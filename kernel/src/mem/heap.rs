//! The kernel heap: `linked_list_allocator` for small things, whole frames for big ones.
//!
//! What is page-sized or larger and a whole number of pages, or larger than [`BIG`], is served by the frame
//! allocator, so that a big table neither fragments the small heap nor needs room in it.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::NonNull;

use linked_list_allocator::Heap;
use mm::addr::{PAGE_SIZE, PhysAddr};

use crate::cpu::lock::IrqLock;
use crate::mem::{layout, memory, reserve};

/// log2 of the small heap's size in pages: 4 MiB.
const HEAP_ORDER: u32 = 10;
/// Above this size frames are used even where the size is no whole number of pages.
const BIG: usize = 32 << 10;

struct KernelHeap {
    small: IrqLock<Heap>,
}

#[global_allocator]
static HEAP: KernelHeap = KernelHeap { small: IrqLock::new(Heap::empty()) };

/// Gives the small heap its memory; answers its size in bytes, or `None` where there is not enough.
pub fn init() -> Option<usize> {
    let pfn = memory::alloc(HEAP_ORDER)?;
    let bytes = (PAGE_SIZE as usize) << HEAP_ORDER;
    // SAFETY: the frames are ours for ever and in the direct map.
    unsafe { HEAP.small.lock().init(layout::direct_ptr(pfn.addr()), bytes) };
    reserve::init()?;
    Some(bytes)
}

/// Bytes of the small heap: (used, free).
pub fn usage() -> (usize, usize) {
    let heap = HEAP.small.lock();
    (heap.used(), heap.free())
}

/// The order of the frames that serve `layout`, or `None` where the small heap does. A pure function of the layout,
/// so that freeing takes the same way.
fn frame_order(layout: &Layout) -> Option<u32> {
    let page = PAGE_SIZE as usize;
    let whole_pages = layout.size() >= page && layout.size().is_multiple_of(page);
    if !whole_pages && layout.size() <= BIG && layout.align() < page {
        return None;
    }
    let pages = layout.size().max(layout.align()).div_ceil(page);
    Some(pages.next_power_of_two().trailing_zeros())
}

/// Frames that serve `layout`; 0 where the small heap does.
pub fn frames_of(layout: &Layout) -> u64 {
    frame_order(layout).map_or(0, |order| 1 << order)
}

// SAFETY: both allocators give out memory that nobody else has, large and aligned enough (frames are naturally
// aligned to their order).
unsafe impl GlobalAlloc for KernelHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let found = match frame_order(&layout) {
            _ if reserve::refuses() => core::ptr::null_mut(),
            Some(order) => memory::alloc(order).map_or(core::ptr::null_mut(), |pfn| layout::direct_ptr(pfn.addr())),
            None => self.small.lock().allocate_first_fit(layout).map_or(core::ptr::null_mut(), NonNull::as_ptr),
        };
        if found.is_null() { reserve::serve(layout) } else { found }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        if reserve::owns(ptr) {
            // SAFETY: `alloc` got it from there.
            return unsafe { reserve::give_back(ptr, layout) };
        }
        match frame_order(&layout) {
            Some(order) => memory::free(PhysAddr::new(ptr as u64 - layout::DIRECT_MAP).pfn(), order),
            // SAFETY: the caller gives back what `alloc` gave out, which is never null.
            None => unsafe { self.small.lock().deallocate(NonNull::new_unchecked(ptr), layout) },
        }
    }
}
