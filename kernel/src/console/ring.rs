//! Notes from interrupt handlers: each CPU has a ring, and a task or the idle loop prints it later.

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

/// One CPU's notes; the protocol is [`::sched::ring`]'s.
#[derive(Debug)]
pub struct Ring(::sched::ring::Ring);

impl Ring {
    /// An empty ring.
    pub const fn new() -> Self {
        Self(::sched::ring::Ring::new())
    }

    /// Adds a note; counts it as lost where the ring is full. From an interrupt handler of this CPU, or an NMI's.
    pub fn push(&self, note: Note, value: u64) {
        self.0.push([note as u64, value]);
    }

    /// How many notes there have been, but for those that were lost.
    pub fn nr_notes(&self) -> usize {
        self.0.nr_notes()
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
                ring.0.pop()
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
        let lost = ring.0.take_lost();
        if lost > 0 {
            log::warn!(target: "irq", "CPU {}: {lost} more notes were lost", cpu.id());
        }
    }
}
