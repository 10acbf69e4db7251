//! The invalidation queue of a unit: its memory, and waiting for it (Intel VT-d specification 4.0, §6.5.2).
//!
//! Whoever has commands puts them in, and behind them one that waits: the unit does all before it first, and stores the
//! number of this turn ([`iommu::queue`]). Nobody waits with the lock held.

use core::sync::atomic::{AtomicU32, Ordering};

use iommu::command::Command;
use iommu::queue::{QueueError, Ring, Ticket};
use mm::addr::Pfn;
use mm::machine::Machine;

use super::registers::{QUEUE_ERRORS, UnitRegisters};
use crate::cpu::lock::IrqLock;
use crate::mem::machine::mm;
use crate::mem::{layout, memory};

/// An invalidation takes microseconds; one that takes this long will not end, in nanoseconds.
const ANSWER_WITHIN_NS: u64 = 1_000_000_000;

/// Of 16 bytes, in one page.
const DESCRIPTORS: u32 = 256;

/// The queue's memory, and its state.
pub struct Queue {
    page: Pfn,
    /// Where the unit stores the number of the last turn that has ended.
    status: Pfn,
    ring: IrqLock<Ring>,
}

impl Queue {
    /// Empty. `None` where there is no memory.
    pub fn new() -> Option<Self> {
        let page = memory::alloc_zeroed()?;
        let Some(status) = memory::alloc_zeroed() else {
            memory::free(page, 0);
            return None;
        };
        Some(Self { page, status, ring: IrqLock::new(Ring::new(0)) })
    }

    /// The page of descriptors.
    pub fn page(&self) -> Pfn {
        self.page
    }

    fn status(&self) -> &AtomicU32 {
        let word: *mut AtomicU32 = layout::direct_ptr(self.status.addr());
        // SAFETY: a frame of RAM in the direct map, ours for ever, which the unit alone stores to.
        unsafe { &*word }
    }

    fn put(&self, index: u32, [low, high]: [u64; 2]) {
        let base: *mut [u64; 2] = layout::direct_ptr(self.page.addr());
        assert!(index < DESCRIPTORS, "descriptor {index} is beyond the queue");
        // SAFETY: inside the page, which is ours for ever; the lock is held, and the unit reads a descriptor only once the
        // tail has been moved behind it.
        unsafe { base.add(index as usize).write_volatile([low, high]) };
    }

    /// Has the unit do all of `commands`, and returns when it has.
    ///
    /// # Errors
    /// [`QueueError`]: it has stopped at one of them, or does not answer.
    pub fn run(&self, registers: &UnitRegisters, commands: &[Command]) -> Result<(), QueueError> {
        // An empty queue has room for one.
        for turn in commands.chunks(DESCRIPTORS as usize / 2) {
            let ticket = self.begin(registers, turn)?;
            self.wait(registers, |status| Ok(ticket.is_done(status).then_some(())))?;
        }
        Ok(())
    }

    /// Puts a turn in.
    fn begin(&self, registers: &UnitRegisters, turn: &[Command]) -> Result<Ticket, QueueError> {
        self.wait(registers, |_| {
            let mut ring = self.ring.lock();
            if ring.room() < turn.len() as u32 {
                ring.retire(Ring::index_of_register(registers.queue_head()))?;
            }
            let Some(places) = ring.claim(turn.len() as u32) else { return Ok(None) };
            let wait = Command::Wait { address: self.status.addr(), value: places.ticket.value(), fence: true };
            let descriptors = turn.iter().chain([&wait]).map(Command::descriptor);
            places.indices().zip(descriptors).for_each(|(index, descriptor)| self.put(index, descriptor));
            arch::cache::fence();
            registers.set_queue_tail(ring.tail_register());
            Ok(Some(places.ticket))
        })
    }

    /// Waits until `done` answers something; it is shown the number of the last turn that has ended.
    fn wait<R>(
        &self,
        registers: &UnitRegisters,
        mut done: impl FnMut(u32) -> Result<Option<R>, QueueError>,
    ) -> Result<R, QueueError> {
        let deadline = mm().machine.now_ns().saturating_add(ANSWER_WITHIN_NS);
        loop {
            // Acquire: what is freed next is freed after the unit has answered.
            if let Some(answer) = done(self.status().load(Ordering::Acquire))? {
                return Ok(answer);
            }
            let status = registers.fault_status();
            if status & QUEUE_ERRORS != 0 {
                return Err(QueueError::Stuck { status, head: Ring::index_of_register(registers.queue_head()) });
            }
            if mm().machine.now_ns() > deadline {
                return Err(QueueError::NoAnswer);
            }
            mm().machine.relax();
        }
    }
}
