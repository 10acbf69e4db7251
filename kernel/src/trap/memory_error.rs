//! Memory errors: from the machine check to `memory_failure`.
//!
//! A machine check comes anywhere, so its handler only notes the address and interrupts its own CPU. That interrupt
//! comes when interrupts are on, and wakes a task; the task takes the page away from everybody who maps it.
//! Tasks that touch it afterwards get SIGBUS.

use alloc::sync::Arc;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use arch::mce::BankError;
use mm::addr::{PAGE_SHIFT, PAGE_SIZE, Pfn};
use mm::failure::{FailureKind, memory_failure};
use mm::machine::{CpuId, MAX_CPUS};
use spin::Once;

use crate::console::report;
use crate::mem::{machine, memory};
use crate::task::sched;
use crate::task::tcb::{Exit, Task};

/// How many errors can wait to be looked at.
const SLOTS: usize = 16;
/// Larger losses than this (log2 of bytes) are no single page's: the bank's word for "I do not know".
const MAX_LOST_SHIFT: u32 = 21;

/// Noted losses, as [`Loss::word`] has them; 0 is a free slot.
static NOTED: [AtomicU64; SLOTS] = [const { AtomicU64::new(0) }; SLOTS];
/// The last one that was dealt with, until somebody takes it.
static DEALT_WITH: AtomicU64 = AtomicU64::new(0);
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

/// Who has raised a machine check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RaisedBy {
    /// Whoever runs this machine: the hardware, or QEMU's monitor.
    Host,
    /// The kernel itself: see [`arch::mce::raise`].
    Kernel,
}

impl fmt::Display for RaisedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "host",
            Self::Kernel => "kernel",
        })
    }
}

/// What the machine-check handler has noted: frames that are lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loss {
    /// The first lost frame.
    pub first: Pfn,
    /// log2 of how many.
    pub order: u32,
    /// Whose handler it was.
    pub cpu: CpuId,
    /// Who has raised the machine check.
    pub by: RaisedBy,
}

impl Loss {
    /// A frame number has 52 bits.
    const ORDER_AT: u32 = 52;
    const CPU_AT: u32 = 56;
    const BY_KERNEL: u64 = 1 << 62;
    const IS_NOTED: u64 = 1 << 63;
    /// What is lost, without who says so.
    const WHAT: u64 = (1 << Self::CPU_AT) - 1;

    /// In one word, which is never 0:
    ///
    /// | bits | value |
    /// |---|---|
    /// | 0 to 51 | first frame |
    /// | 52 to 55 | log2 of the number of frames |
    /// | 56 to 61 | CPU |
    /// | 62 | by the kernel |
    /// | 63 | 1: something is noted |
    fn word(self) -> u64 {
        let by = if self.by == RaisedBy::Kernel { Self::BY_KERNEL } else { 0 };
        let (order, cpu) = (u64::from(self.order) << Self::ORDER_AT, (self.cpu as u64) << Self::CPU_AT);
        self.first.as_u64() | order | cpu | by | Self::IS_NOTED
    }

    fn from_word(word: u64) -> Option<Self> {
        (word & Self::IS_NOTED != 0).then(|| Self {
            first: Pfn::new(word & ((1 << Self::ORDER_AT) - 1)),
            order: ((word & Self::WHAT) >> Self::ORDER_AT) as u32,
            cpu: (word >> Self::CPU_AT) as usize % MAX_CPUS,
            by: if word & Self::BY_KERNEL != 0 { RaisedBy::Kernel } else { RaisedBy::Host },
        })
    }
}

const _: () = assert!(MAX_CPUS == 1 << 6, "bits 56 to 61 are a CPU's number");
const _: () = assert!(MAX_LOST_SHIFT - PAGE_SHIFT < 1 << 4, "bits 52 to 55 are log2 of a number of frames");

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
pub fn note(error: &BankError, by: RaisedBy) -> Result<(), &'static str> {
    let (first, order) = match judge(error) {
        Verdict::Corrected => return Ok(()),
        Verdict::Fatal(reason) => return Err(reason),
        Verdict::Lost(first, order) => (first, order),
    };
    if !WORKER.is_completed() {
        return Err("it came before the kernel could deal with it");
    }
    let word = Loss { first, order, cpu: arch::percpu::cpu(), by }.word();
    // A task that goes on touching what is lost may report it again and again until it is taken away: one note will do.
    // AcqRel; pairs with the swap in `work`.
    let noted = |slot: &AtomicU64| match slot.compare_exchange(0, word, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => true,
        Err(other) => (other ^ word) & Loss::WHAT == 0,
    };
    if !NOTED.iter().any(noted) {
        return Err("too many came at once");
    }
    arch::apic::send_to_self(crate::cpu::ipi::VECTOR_MEMORY_ERROR);
    Ok(())
}

/// The interrupt that follows a note.
pub fn on_interrupt() {
    if let Some(worker) = WORKER.get() {
        sched::unpark(worker);
    }
}

/// Who hears of a page that has lost its contents: the devices and what is mounted from them.
pub struct Listener {
    /// Before the page is taken away: whoever holds its device. A file system knows whose the block is.
    pub holders: fn(Pfn),
    /// When it has been: its device, which may keep a list.
    pub device: fn(Pfn),
}

static LISTENER: Once<Listener> = Once::new();

/// Starts the task that takes failed pages away. `listener` hears of each.
pub fn start(listener: Listener) {
    LISTENER.call_once(|| listener);
    WORKER.call_once(|| sched::spawn("memory-failure", 0, None, work));
}

fn work() -> Exit {
    loop {
        for slot in &NOTED {
            // AcqRel; pairs with the exchange in `note`.
            let Some(loss) = Loss::from_word(slot.swap(0, Ordering::AcqRel)) else { continue };
            say(&loss);
            (0..1 << loss.order).for_each(|frame| fail(loss.first.add(frame)));
            // Release; pairs with the Acquire in `take_dealt_with`.
            DEALT_WITH.store(loss.word(), Ordering::Release);
        }
        sched::park();
    }
}

fn say(loss: &Loss) {
    let Loss { first, order, cpu, by } = loss;
    let (addr, len_bytes) = (first.as_u64() << PAGE_SHIFT, PAGE_SIZE << order);
    log::info!("a machine check on CPU {cpu}, raised by the {by}: {len_bytes} bytes from {addr:#x} are lost");
    report!("machine_check by={by} cpu={cpu} addr={addr:#x} len={len_bytes}");
}

/// The last loss that a machine-check handler has noted and that was dealt with since this was last asked.
pub fn take_dealt_with() -> Option<Loss> {
    // Acquire; pairs with the Release in `work`.
    Loss::from_word(DEALT_WITH.swap(0, Ordering::Acquire))
}

/// Takes one frame away and says so. The [`Listener`] hears of it, before and after.
pub fn fail(pfn: Pfn) {
    let known = machine::mm().meta.find_map(pfn).is_some_and(|map| map.any_poisoned(pfn, 1));
    let listener = LISTENER.get();
    if let Some(listener) = listener {
        (listener.holders)(pfn);
    }
    match memory_failure(machine::mm(), pfn, FailureKind::Media) {
        Ok(failure) => {
            if let Some(listener) = listener {
                (listener.device)(pfn);
            }
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
