//! Memory errors: from the machine check to `memory_failure`.
//!
//! A machine check comes anywhere, so its handler only notes the address and interrupts its own CPU. That interrupt
//! comes when interrupts are on, and wakes a task; the task takes the page away from everybody who maps it.
//! Tasks that touch it afterwards get SIGBUS.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, Ordering};

use arch::mce::BankError;
use mm::addr::{PAGE_SHIFT, Pfn};
use mm::failure::{FailureKind, memory_failure};
use spin::Once;

use crate::task::{Exit, Task};
use crate::{devices, machine, memory, mounts, report, sched};

/// How many errors can wait to be looked at.
const SLOTS: usize = 16;
/// Larger losses than this (log2 of bytes) are no single page's: the bank's word for "I do not know".
const MAX_LOST_SHIFT: u32 = 21;

/// Noted errors: frame number of the first lost frame, plus 1 so that 0 is free, with log2 of the number of frames in
/// the top byte.
static NOTED: [AtomicU64; SLOTS] = [const { AtomicU64::new(0) }; SLOTS];
static WORKER: Once<Arc<Task>> = Once::new();

/// What an error means for the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The hardware has corrected it: nothing is lost.
    Corrected,
    /// These frames are lost: the first, and log2 of how many. The kernel goes on, and a task takes them away.
    Lost(Pfn, u32),
    /// The kernel cannot go on, for this reason.
    Fatal(&'static str),
}

/// What an error means (SDM vol. 3B §16.6). Asks nothing that needs a lock.
pub fn judge(error: &BankError) -> Verdict {
    if !error.is_uncorrected() {
        return Verdict::Corrected;
    }
    if error.is_context_corrupt() {
        return Verdict::Fatal("the processor's context is corrupt");
    }
    if !error.is_restartable {
        return Verdict::Fatal("what was interrupted cannot be continued");
    }
    let Some(addr) = error.addr else { return Verdict::Fatal("it says no address") };
    let shift = error.lost_shift().clamp(PAGE_SHIFT, MAX_LOST_SHIFT);
    let (first, end) = (addr >> shift << shift, ((addr >> shift) + 1) << shift);
    let is_ours = |region: &bootloader_api::info::MemoryRegion| {
        memory::is_ram(region.kind) && region.start < end && first < region.end
    };
    if memory::regions().iter().any(is_ours) {
        return Verdict::Fatal("it is in RAM, which the kernel uses");
    }
    Verdict::Lost(Pfn::new(first >> PAGE_SHIFT), shift - PAGE_SHIFT)
}

/// Notes an error, from the machine-check handler.
///
/// # Errors
/// Why the kernel cannot go on.
pub fn note(error: &BankError) -> Result<(), &'static str> {
    let (first, shift) = match judge(error) {
        Verdict::Corrected => return Ok(()),
        Verdict::Fatal(reason) => return Err(reason),
        Verdict::Lost(first, shift) => (first, shift),
    };
    if !WORKER.is_completed() {
        return Err("it came before the kernel could deal with it");
    }
    let word = u64::from(shift) << 56 | (first.as_u64() + 1);
    // A task that goes on touching what is lost may report it again and again until it is taken away: one note will do.
    // AcqRel; pairs with the swap in `work`.
    let noted = |slot: &AtomicU64| match slot.compare_exchange(0, word, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => true,
        Err(other) => other == word,
    };
    if !NOTED.iter().any(noted) {
        return Err("too many came at once");
    }
    arch::apic::send_to_self(crate::smp::VECTOR_MEMORY_ERROR);
    Ok(())
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

/// Takes one frame away and says so. First whoever holds the device hears of it: a file system knows whose the block is.
pub fn fail(pfn: Pfn) {
    let known = machine::mm().meta.find_map(pfn).is_some_and(|map| map.any_poisoned(pfn, 1));
    mounts::media_failure(pfn);
    match memory_failure(machine::mm(), pfn, FailureKind::Media) {
        Ok(failure) => {
            devices::keep_bad_blocks(pfn);
            report!(
                "memory_failure pfn={pfn} known={} users={} leaves={}",
                u8::from(known),
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
