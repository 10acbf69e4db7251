//! Kernel stacks: each in a slot of its own, with nothing mapped below it.
//!
//! An overflow runs into the unmapped part and faults; the CPU cannot push that fault's frame either, and the double
//! fault, which has a stack of its own, finds the address here. A stack that is given back stays mapped and is used
//! again: no kernel translation needs to be shot down.

use alloc::vec::Vec;
use core::alloc::Layout;

use arrayvec::ArrayVec;
use mm::addr::{PAGE_SIZE, Pfn, VirtAddr};

use crate::cpu::lock::IrqLock;
use crate::mem::{heap, layout, memory, paging};

/// Bytes that can be used in a stack.
pub const STACK_BYTES: u64 = 32 << 10;
const STACK_PAGES: usize = (STACK_BYTES / PAGE_SIZE) as usize;
/// Bytes from one stack to the next: what is not stack is guard.
const SLOT_BYTES: u64 = 64 << 10;
/// More stacks than anybody needs; a leak shows here.
const MAX_STACKS: u64 = 16384;

struct Pool {
    next: u64,
    free: Vec<u64>,
}

impl Pool {
    /// The next slot that was never used, and room to give every stack back, so that `drop` never allocates.
    fn new_slot(&mut self) -> Option<u64> {
        if self.next == MAX_STACKS {
            return None;
        }
        let wanted = (self.next + 1).next_power_of_two() as usize;
        self.free.try_reserve(wanted.saturating_sub(self.free.len())).ok()?;
        self.next += 1;
        Some(self.next - 1)
    }
}

static POOL: IrqLock<Pool> = IrqLock::new(Pool { next: 0, free: Vec::new() });

/// How many stacks were ever made.
pub fn nr_made() -> u64 {
    POOL.lock().next
}

/// Frames in all stacks that were ever made, in the page tables that map them, and in the list of those that are free: a
/// stack that is given back keeps its frames for the next task.
pub fn frames() -> u64 {
    const TABLE_SPAN: u64 = 2 << 20;
    let (stacks, room) = {
        let pool = POOL.lock();
        (pool.next, pool.free.capacity())
    };
    let list = Layout::array::<u64>(room).map_or(0, |layout| heap::frames_of(&layout));
    stacks * STACK_PAGES as u64 + (stacks * SLOT_BYTES).div_ceil(TABLE_SPAN) + list
}

fn give_back(frames: ArrayVec<Pfn, STACK_PAGES>) {
    frames.into_iter().for_each(|frame| memory::free(frame, 0));
}

/// A kernel stack. Dropping it gives it back: not while anything runs on it.
#[derive(Debug)]
pub struct Stack {
    slot: u64,
}

impl Stack {
    /// A stack, or `None` when memory is exhausted, or the room for stacks. The contents are undefined.
    pub fn new() -> Option<Self> {
        if let Some(slot) = POOL.lock().free.pop() {
            return Some(Self { slot });
        }
        let mut frames = ArrayVec::<_, STACK_PAGES>::new();
        while !frames.is_full() {
            let Some(frame) = (!memory::is_short()).then(|| memory::alloc(0)).flatten() else {
                give_back(frames);
                return None;
            };
            frames.push(frame);
        }
        let Some(slot) = POOL.lock().new_slot() else {
            give_back(frames);
            return None;
        };
        let stack = Self { slot };
        for (page, frame) in frames.into_iter().enumerate() {
            let va = VirtAddr::new(stack.bottom() + page as u64 * PAGE_SIZE);
            if let Err(error) = paging::map_data_page(va, frame) {
                panic!("a stack at {va} cannot be mapped: {error}");
            }
        }
        Some(stack)
    }

    /// Lowest address that is mapped.
    pub fn bottom(&self) -> u64 {
        self.top() - STACK_BYTES
    }

    /// One past the highest address; 16-byte aligned.
    pub fn top(&self) -> u64 {
        layout::STACKS + (self.slot + 1) * SLOT_BYTES
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        POOL.lock().free.push(self.slot);
    }
}

/// Is `va` in the unmapped part of a stack's slot? Then a stack has overflowed.
pub fn is_guard(va: u64) -> bool {
    let offset = va.wrapping_sub(layout::STACKS);
    offset < MAX_STACKS * SLOT_BYTES && offset % SLOT_BYTES < SLOT_BYTES - STACK_BYTES
}
