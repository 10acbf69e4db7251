//! Notes from interrupt handlers: a ring for each CPU, which a task or the idle loop reads later.
//!
//! A CPU's handlers do not nest, but for an NMI, which comes between any two instructions of another handler. So two may
//! write at once, and neither can wait for the other: the interrupted one goes on only when the NMI's has returned.
//!
//! # Protocol
//! Each slot says whose turn it is: 2 × lap while it is free for that lap of the ring, 1 more once it is full.
//! ```text
//!  writer                                         reader (one at a time)
//!  W1 finds the next slot free                    R1 finds the oldest slot full
//!  W2 takes it: moves `written` by an exchange    R2 reads it
//!  W3 fills it                                    R3 says that it is free for the next lap
//!  W4 says that it is full
//! ```
//! A writer between W2 and W4 keeps the reader from what was written after it, not the other writers. Where there is no room
//! it counts its note as lost. After D. Vyukov's bounded queue; Linux: `kernel/printk/printk_ringbuffer.c`.
//!
//! Model: `tests/loom_ring.rs`.

use mm::sync::{AtomicU64, AtomicUsize, Ordering};

use crate::mutant::Mutant;

/// How many notes wait to be read.
pub const SLOTS: usize = 16;

#[derive(Debug)]
struct Slot {
    turn: AtomicUsize,
    note: [AtomicU64; 2],
}

/// One CPU's notes, two words each.
#[derive(Debug)]
pub struct Ring<const N: usize = SLOTS> {
    slots: [Slot; N],
    written: AtomicUsize,
    read: AtomicUsize,
    lost: AtomicUsize,
}

impl<const N: usize> Ring<N> {
    /// An empty ring.
    #[cfg(not(any(loom, shuttle)))]
    pub const fn new() -> Self {
        let slots = [const { Slot { turn: AtomicUsize::new(0), note: [const { AtomicU64::new(0) }; 2] } }; N];
        Self { slots, written: AtomicUsize::new(0), read: AtomicUsize::new(0), lost: AtomicUsize::new(0) }
    }
    /// An empty ring.
    #[cfg(any(loom, shuttle))]
    pub fn new() -> Self {
        let slot = |_| Slot { turn: AtomicUsize::new(0), note: [AtomicU64::new(0), AtomicU64::new(0)] };
        let slots = core::array::from_fn(slot);
        Self { slots, written: AtomicUsize::new(0), read: AtomicUsize::new(0), lost: AtomicUsize::new(0) }
    }

    /// What a slot says when it is free for what is written at `at`.
    fn free(at: usize) -> usize {
        at / N * 2
    }

    /// Adds a note. Says whether there was room; else it is counted as lost.
    pub fn push(&self, note: [u64; 2]) -> bool {
        let Some((at, slot)) = self.claim() else {
            if !Mutant::RingLossNotCounted.is_on() {
                self.lost.fetch_add(1, Ordering::Relaxed);
            }
            return false;
        };
        // W4. Release; pairs with R1.
        let order = if Mutant::RingRelaxed.is_on() { Ordering::Relaxed } else { Ordering::Release };
        let full = || slot.turn.store(Self::free(at) + 1, order);
        if Mutant::RingFullEarly.is_on() {
            full();
        }
        // W3.
        slot.note.iter().zip(note).for_each(|(word, value)| word.store(value, Ordering::Relaxed));
        if !Mutant::RingFullEarly.is_on() {
            full();
        }
        true
    }

    /// W1 and W2: a slot that is this writer's alone; `None` where the ring is full.
    fn claim(&self) -> Option<(usize, &Slot)> {
        let mut at = self.written.load(Ordering::Relaxed);
        loop {
            let slot = &self.slots[at % N];
            // W1. Acquire; pairs with R3: the slot has been read before it is filled again.
            let turn = slot.turn.load(Ordering::Acquire);
            if turn < Self::free(at) {
                return None;
            }
            if turn == Self::free(at) && Mutant::RingNotClaimed.is_on() {
                self.written.store(at + 1, Ordering::Relaxed);
                return Some((at, slot));
            }
            if turn == Self::free(at) {
                match self.written.compare_exchange(at, at + 1, Ordering::Relaxed, Ordering::Relaxed) {
                    Ok(_) => return Some((at, slot)),
                    Err(now) => at = now,
                }
            } else {
                // Another has taken it since: `written` has moved on.
                at = self.written.load(Ordering::Relaxed);
            }
        }
    }

    /// How many notes there have been, but for those that were lost.
    pub fn nr_notes(&self) -> usize {
        self.written.load(Ordering::Relaxed)
    }

    /// Takes the oldest note; `None` where there is none, or its writer is still at it. One reader at a time: whoever reads
    /// after another is ordered after it.
    pub fn pop(&self) -> Option<[u64; 2]> {
        let at = self.read.load(Ordering::Relaxed);
        let slot = &self.slots[at % N];
        // R1. Acquire; pairs with W4.
        if slot.turn.load(Ordering::Acquire) != Self::free(at) + 1 {
            return None;
        }
        // R3. Release; pairs with W1.
        let free = || slot.turn.store(Self::free(at + N), Ordering::Release);
        if Mutant::RingFreedEarly.is_on() {
            free();
        }
        // R2.
        let note = slot.note.each_ref().map(|word| word.load(Ordering::Relaxed));
        if !Mutant::RingFreedEarly.is_on() {
            free();
        }
        self.read.store(at + 1, Ordering::Relaxed);
        Some(note)
    }

    /// How many notes found no room since this was last asked.
    pub fn take_lost(&self) -> usize {
        self.lost.swap(0, Ordering::Relaxed)
    }
}

impl<const N: usize> Default for Ring<N> {
    fn default() -> Self {
        Self::new()
    }
}
