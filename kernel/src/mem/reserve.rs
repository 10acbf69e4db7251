//! Memory that is put by for attach and removal, and faults on demand in them.
//!
//! # Protocol
//! An attach or a removal runs inside a [`Section`]. While it does, each allocation of its task is counted, and where
//! memory is exhausted (or a fault says so) the task goes on with the reserve: 128 KiB in requests of at most 4 KiB,
//! which is a block of a file system. So what cannot do without an answer (a node of a tree, a counted pointer) gets
//! one, and nothing stops half-way. What can do without asks first: once the section is short, [`may_grow`] refuses
//! every list that grows with what is mapped. An attach looks after each step whether the section is short, and then undoes everything; a removal goes on
//! in smaller batches, and says in its report what it could not name.
//!
//! The allocator knows the task by its stack: no lock, and nothing to look up while there is no section at all.

use core::alloc::Layout;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};

use dax::inject::{Faults, Place};
use linked_list_allocator::Heap;
use mm::addr::PAGE_SIZE;

use crate::cpu::lock::IrqLock;
use crate::mem::{layout, memory};

/// log2 of the reserve's size in pages: 128 KiB.
const ORDER: u32 = 5;
const BYTES: u64 = PAGE_SIZE << ORDER;
/// The largest request that the reserve serves, in bytes.
const MOST: usize = 4 << 10;
/// Sections at the same time. One more goes without the reserve.
const SLOTS: usize = 16;

/// The faults that are armed.
pub static FAULTS: Faults = Faults::new();

static POOL: IrqLock<Heap> = IrqLock::new(Heap::empty());
/// Where the reserve begins; 0 before [`init`].
static START: AtomicU64 = AtomicU64::new(0);
/// The slots of the sections that are under way, a bit each.
static ACTIVE: AtomicU64 = AtomicU64::new(0);
static SECTIONS: [Slot; SLOTS] = [const { Slot::free() }; SLOTS];

/// The task of a section, by its stack, and what it has met.
struct Slot {
    /// Lowest address of its stack, with the number of pages in the bits that are zero there; 0 while the slot is free. One
    /// word: who looks while a slot changes hands must not see the one stack's bottom and the other's top.
    stack: AtomicU64,
    allocations: AtomicU64,
    shortages: AtomicU64,
}

impl Slot {
    const fn free() -> Self {
        Self { stack: AtomicU64::new(0), allocations: AtomicU64::new(0), shortages: AtomicU64::new(0) }
    }
}

/// Puts the reserve by; `None` where there is not enough memory.
pub fn init() -> Option<()> {
    let start: *mut u8 = layout::direct_ptr(memory::alloc(ORDER)?.addr());
    // SAFETY: the frames are ours for ever and in the direct map.
    unsafe { POOL.lock().init(start, BYTES as usize) };
    START.store(start as u64, Ordering::Release);
    Some(())
}

/// The slot of the section that this code runs in. The slot is the task's own, so it cannot change meanwhile.
fn own() -> Option<&'static Slot> {
    // Acquire; pairs with the Release in `enter`.
    let mut active = ACTIVE.load(Ordering::Acquire);
    let marker = 0u8;
    let here = &raw const marker as u64;
    while active != 0 {
        let slot = SECTIONS.get(active.trailing_zeros() as usize)?;
        let stack = slot.stack.load(Ordering::Acquire);
        let (bottom, nr_pages) = (stack & !(PAGE_SIZE - 1), stack % PAGE_SIZE);
        if here.wrapping_sub(bottom) < nr_pages * PAGE_SIZE {
            return Some(slot);
        }
        active &= active - 1;
    }
    None
}

/// Counts an allocation of a section. Is it to fail?
pub fn refuses() -> bool {
    let Some(slot) = own() else { return false };
    let number = slot.allocations.fetch_add(1, Ordering::Relaxed) + 1;
    let refused = FAULTS.goes_off(Place::Alloc, number);
    if refused {
        slot.shortages.fetch_add(1, Ordering::Relaxed);
    }
    refused
}

/// May a list grow that can do without? Counts as an allocation.
#[inline]
pub fn may_grow() -> bool {
    // Where nobody is in a section, this task is not: each fault asks.
    ACTIVE.load(Ordering::Acquire) == 0 || may_grow_in_section()
}

fn may_grow_in_section() -> bool {
    !refuses() && own().is_none_or(|slot| slot.shortages.load(Ordering::Relaxed) == 0)
}

/// Memory from the reserve, for a section that gets none elsewhere; null where there is no section, or no more reserve.
pub fn serve(layout: Layout) -> *mut u8 {
    let Some(slot) = own().filter(|_| layout.size() <= MOST) else { return core::ptr::null_mut() };
    slot.shortages.fetch_add(1, Ordering::Relaxed);
    POOL.lock().allocate_first_fit(layout).map_or(core::ptr::null_mut(), NonNull::as_ptr)
}

/// Is this a piece of the reserve?
pub fn owns(ptr: *mut u8) -> bool {
    // Relaxed: who has such a pointer got it after `init`.
    (ptr as u64).wrapping_sub(START.load(Ordering::Relaxed)) < BYTES && START.load(Ordering::Relaxed) != 0
}

/// Takes a piece back.
///
/// # Safety
/// [`serve`] gave it out for this layout, and nobody uses it any more.
pub unsafe fn give_back(ptr: *mut u8, layout: Layout) {
    if let Some(ptr) = NonNull::new(ptr) {
        // SAFETY: as the caller promises.
        unsafe { POOL.lock().deallocate(ptr, layout) };
    }
}

/// Bytes of the reserve that are in use.
pub fn used() -> usize {
    POOL.lock().used()
}

/// An attach or a removal of the running task, for as long as it lives.
#[must_use = "the section ends when this is dropped"]
pub struct Section {
    slot: Option<&'static Slot>,
    /// Which of them.
    place: usize,
}

impl Section {
    /// Begins one in the task whose stack that is (lowest address, one past the highest), which is the one that calls.
    /// There is no section where there is no task.
    pub fn enter(stack: Option<(u64, u64)>) -> Self {
        let Some((bottom, top)) = stack.filter(|_| own().is_none()) else { return Self { slot: None, place: 0 } };
        let nr_pages = (top - bottom) / PAGE_SIZE;
        if !bottom.is_multiple_of(PAGE_SIZE) || !(1..PAGE_SIZE).contains(&nr_pages) {
            return Self { slot: None, place: 0 };
        }
        let stack = bottom | nr_pages;
        let free = |slot: &&Slot| slot.stack.compare_exchange(0, stack, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        let place = SECTIONS.iter().position(|slot| free(&slot));
        let slot = place.map(|place| &SECTIONS[place]);
        if let Some((place, slot)) = place.zip(slot) {
            slot.allocations.store(0, Ordering::Relaxed);
            slot.shortages.store(0, Ordering::Relaxed);
            ACTIVE.fetch_or(1 << place, Ordering::AcqRel);
        }
        Self { slot, place: place.unwrap_or(0) }
    }

    /// Allocations so far that found no memory.
    pub fn shortages(&self) -> u64 {
        self.slot.map_or(0, |slot| slot.shortages.load(Ordering::Relaxed))
    }
}

impl Drop for Section {
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            // First: from then on somebody else may have the slot.
            ACTIVE.fetch_and(!(1 << self.place), Ordering::AcqRel);
            slot.stack.store(0, Ordering::Release);
        }
    }
}
