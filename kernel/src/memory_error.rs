//! Memory errors: from the machine check to `memory_failure`.
//!
//! A machine check comes anywhere, so its handler only notes the address and interrupts its own CPU. That interrupt
//! comes when interrupts are on, and wakes a task; the task takes the page away from everybody who maps it.
//! Tasks that touch it afterwards get SIGBUS.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, Ordering};

use arch::mce::BankError;
use mm::addr::{PAGE_SHIFT, Pfn, PhysAddr};
use mm::failure::{FailureKind, memory_failure};
use spin::Once;

use crate::task::{Exit, Task};
use crate::{machine, report, sched};

/// How many errors can wait to be looked at.
const SLOTS: usize = 16;
/// Larger losses than this (log2 of bytes) are no single page's: the bank's word for "I do not know".
const MAX_LOST_SHIFT: u32 = 21;

/// Noted errors: frame number of the first lost frame, plus 1 so that 0 is free, with log2 of the number of frames in
/// the top byte.
static NOTED: [AtomicU64; SLOTS] = [const { AtomicU64::new(0) }; SLOTS];
static WORKER: Once<Arc<Task>> = Once::new();

/// Notes an error, from the machine-check handler. Answers whether the kernel can go on.
pub fn note(error: &BankError) -> bool {
    if !error.is_uncorrected() {
        return true;
    }
    let Some(addr) = error.addr.filter(|_| !error.is_context_corrupt()) else { return false };
    let shift = error.lost_shift().clamp(PAGE_SHIFT, MAX_LOST_SHIFT) - PAGE_SHIFT;
    let first = PhysAddr::new(addr).pfn().as_u64() >> shift << shift;
    let word = u64::from(shift) << 56 | (first + 1);
    // AcqRel; pairs with the swap in `work`.
    let free = |slot: &AtomicU64| slot.compare_exchange(0, word, Ordering::AcqRel, Ordering::Relaxed).is_ok();
    let noted = WORKER.is_completed() && NOTED.iter().any(free);
    if noted {
        arch::apic::send_to_self(crate::smp::VECTOR_MEMORY_ERROR);
    }
    noted
}

/// The interrupt that follows a note.
pub fn on_interrupt() {
    if let Some(worker) = WORKER.get() {
        sched::unpark(worker);
    }
}

/// Starts the task that takes failed pages away.
pub fn start() {
    WORKER.call_once(|| sched::spawn("memory-failure", 0, None, work));
}

fn work() -> Exit {
    loop {
        for slot in &NOTED {
            let word = slot.swap(0, Ordering::AcqRel);
            if word != 0 {
                let first = (word & ((1 << 56) - 1)) - 1;
                (first..first + (1 << (word >> 56))).for_each(|pfn| fail(Pfn::new(pfn)));
            }
        }
        sched::park();
    }
}

/// Takes one frame away and says so.
fn fail(pfn: Pfn) {
    match memory_failure(machine::mm(), pfn, FailureKind::Media) {
        Ok(failure) => {
            report!(
                "memory_failure pfn={pfn} known={} users={} leaves={}",
                u8::from(failure.was_poisoned),
                failure.users.len(),
                failure.stats.leaves
            );
            for user in &failure.users {
                log::warn!(
                    "frame {pfn} has lost its contents; \"{}\" maps it at {}",
                    user.space.name(),
                    user.range.start()
                );
            }
        }
        Err(error) => log::error!("a memory error is not in a device: {error}"),
    }
}
