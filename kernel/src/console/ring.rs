//! Notes from interrupt handlers: each CPU has a ring, and a task or the idle loop prints it later.

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use arch::percpu as area;
use mm::machine::MAX_CPUS;

use crate::cpu::lock::IrqLock;
use crate::cpu::percpu;

/// What a handler can note.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Note {
    /// An interrupt at a vector that nobody uses; the value is the vector.
    UnexpectedInterrupt = 1,
    /// The local APIC reported an error; the value is its error status register.
    ApicError = 2,
    /// A spurious interrupt.
    Spurious = 3,
    /// An NMI that nobody here sent.
    UnknownNmi = 4,
}

const SLOTS: usize = 16;

/// One CPU's notes. Written by its interrupt handlers alone, which do not nest (an NMI between two of another handler's
/// stores costs one of the two notes); read under a lock.
#[derive(Debug)]
pub struct Ring {
    slots: [[AtomicU64; 2]; SLOTS],
    written: AtomicUsize,
    read: AtomicUsize,
    lost: AtomicUsize,
}

impl Ring {
    /// An empty ring.
    pub const fn new() -> Self {
        Self {
            slots: [const { [const { AtomicU64::new(0) }; 2] }; SLOTS],
            written: AtomicUsize::new(0),
            read: AtomicUsize::new(0),
            lost: AtomicUsize::new(0),
        }
    }

    /// Adds a note; counts it as lost where the ring is full.
    pub fn push(&self, note: Note, value: u64) {
        let at = self.written.load(Ordering::Relaxed);
        // Acquire; pairs with the Release store in `pop`: the slot has been read before it is used again.
        if at - self.read.load(Ordering::Acquire) == SLOTS {
            self.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.slots[at % SLOTS][0].store(note as u64, Ordering::Relaxed);
        self.slots[at % SLOTS][1].store(value, Ordering::Relaxed);
        // Release; pairs with the Acquire load in `pop`.
        self.written.store(at + 1, Ordering::Release);
    }

    /// How many notes there have been, but for those that were lost.
    pub fn nr_notes(&self) -> usize {
        self.written.load(Ordering::Relaxed)
    }

    fn pop(&self) -> Option<[u64; 2]> {
        let at = self.read.load(Ordering::Relaxed);
        // Acquire; pairs with the Release store in `push`.
        if self.written.load(Ordering::Acquire) == at {
            return None;
        }
        let slot = self.slots[at % SLOTS].each_ref().map(|word| word.load(Ordering::Relaxed));
        // Release; pairs with the Acquire load in `push`.
        self.read.store(at + 1, Ordering::Release);
        Some(slot)
    }
}

/// One for each CPU, by its number.
static RINGS: [Ring; MAX_CPUS] = [const { Ring::new() }; MAX_CPUS];

/// Adds a note to this CPU's, from an interrupt handler.
pub fn note(note: Note, value: u64) {
    RINGS[area::cpu()].push(note, value);
}

/// How many notes this CPU's handlers have made, but for those that were lost.
pub fn nr_notes() -> usize {
    RINGS[area::cpu()].nr_notes()
}

/// One reader at a time.
static READER: IrqLock<()> = IrqLock::new(());

/// Prints what the interrupt handlers of all CPUs have noted. Call from a task.
pub fn drain() {
    for cpu in percpu::all() {
        let ring = &RINGS[cpu.id()];
        loop {
            let note = {
                let _one_reader = READER.lock();
                ring.pop()
            };
            let Some([note, value]) = note else { break };
            let what = match note {
                1 => "an interrupt at an unused vector",
                2 => "the local APIC reports an error, status",
                3 => "a spurious interrupt",
                4 => "an NMI that nobody sent, value",
                _ => "an unknown note",
            };
            log::warn!(target: "irq", "CPU {}: {what} {value:#x}", cpu.id());
        }
        let lost = ring.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            log::warn!(target: "irq", "CPU {}: {lost} more notes were lost", cpu.id());
        }
    }
}
