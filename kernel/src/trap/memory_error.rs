//! Memory errors: from the machine check to `memory_failure`.
//!
//! A machine check comes anywhere, so its handler only [notes](mm::losses) the address and interrupts its own CPU. That
//! interrupt comes when interrupts are on, and wakes a task; the task takes the page away from everybody who maps it.
//! Tasks that touch it afterwards get SIGBUS.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use arch::mce::BankError;
use mm::addr::{PAGE_SHIFT, PAGE_SIZE, Pfn, PfnRange, VirtAddr};
use mm::failure::{FailureKind, NoSuchFrame, memory_failure};
pub use mm::losses::Loss;
use mm::losses::{Losses, MAX_STRAYS, Taken};
use mm::pagemap::{DevPagemap, sectors_of};
use mm::space::SigBusCause;
use spin::Once;

use crate::console::report;
use crate::cpu::lock::IrqLock;
use crate::mem::{machine, memory};
use crate::task::sched;
use crate::task::tcb::{self, Exit, SigBus, Task};

/// Larger losses than this (log2 of bytes) are no single page's: the bank's word for "I do not know".
const MAX_LOST_SHIFT: u32 = 21;

/// What was noted, and the task that deals with it.
struct Worker {
    losses: Losses,
    task: Arc<Task>,
}

static WORKER: Once<Worker> = Once::new();
static NR_DEALT_WITH: AtomicU64 = AtomicU64::new(0);
/// The last loss that was dealt with, until somebody takes it.
static DEALT_WITH: IrqLock<Option<Loss>> = IrqLock::new(None);

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

impl RaisedBy {
    /// Of a loss.
    pub fn of(loss: &Loss) -> Self {
        if loss.by_kernel { Self::Kernel } else { Self::Host }
    }
}

impl fmt::Display for RaisedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "host",
            Self::Kernel => "kernel",
        })
    }
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
pub fn note(error: &BankError, by: RaisedBy) -> Result<(), &'static str> {
    let (first, order) = match judge(error) {
        Verdict::Corrected => return Ok(()),
        Verdict::Fatal(reason) => return Err(reason),
        Verdict::Lost(first, order) => (first, order),
    };
    let worker = WORKER.get().ok_or("it came before the kernel could deal with it")?;
    let (cpu, by_kernel) = (arch::percpu::cpu(), by == RaisedBy::Kernel);
    worker.losses.note(Loss { first, nr_pages: 1 << order, cpu, by_kernel, joined: false });
    arch::apic::send_to_self(crate::cpu::ipi::VECTOR_MEMORY_ERROR);
    Ok(())
}

/// The interrupt that follows a note.
pub fn on_interrupt() {
    if let Some(worker) = WORKER.get() {
        sched::unpark(&worker.task);
    }
}

/// Who hears of pages that have lost their contents: the devices and what is mounted from them.
pub struct Listener {
    /// Before a page is taken away: whoever holds its device. A file system knows whose the block is.
    pub holders: fn(Pfn),
    /// After it was taken away: who maps it, by the number of an address space and the address there, whether or not the page
    /// was ever touched.
    pub mapped: fn(Pfn, &mut dyn FnMut(u64, VirtAddr)),
    /// A page of no page map: is it one in which an attached device keeps its own records? That one deals with it then.
    pub own: fn(Pfn) -> bool,
    /// When a row of them has been: the devices that have some of it, which may keep a list.
    pub devices: fn(PfnRange),
}

static LISTENER: Once<Listener> = Once::new();

/// Starts the task that takes failed pages away. `devices` are the frames of each that there is; `listener` hears of each
/// loss.
pub fn start(devices: impl Iterator<Item = PfnRange>, listener: Listener) {
    LISTENER.call_once(|| listener);
    WORKER.call_once(|| Worker { losses: Losses::new(devices), task: sched::spawn("memory-failure", 0, None, work) });
}

fn work() -> Exit {
    loop {
        // Before that nothing is noted.
        if let Some(worker) = WORKER.get() {
            worker.losses.take(&mut deal_with);
        }
        sched::park();
    }
}

fn deal_with(taken: Taken) {
    match taken {
        Taken::Frames(loss) => {
            say(&loss);
            fail_row(loss.first, loss.nr_pages);
            *DEALT_WITH.lock() = Some(loss);
        }
        Taken::Block(frames) => {
            let (addr, len_bytes) = (frames.start().addr().as_u64(), frames.nr_pages() * PAGE_SIZE);
            log::warn!(
                "more machine checks came at once than can be noted one by one: \
                 all {len_bytes} bytes from {addr:#x} count as lost"
            );
            report!("machine_check_block addr={addr:#x} len={len_bytes}");
            fail_row(frames.start(), frames.nr_pages());
        }
        Taken::Strays { last, count } => {
            if count > 1 {
                let more = if count == MAX_STRAYS { " or more" } else { "" };
                log::error!("{count}{more} machine checks came for memory in no device; of the last:");
            }
            fail(last);
        }
    }
    // Release; pairs with the Acquire in `rows_dealt_with`.
    NR_DEALT_WITH.fetch_add(1, Ordering::Release);
}

fn say(loss: &Loss) {
    let &Loss { first, nr_pages, cpu, joined, .. } = loss;
    let by = RaisedBy::of(loss);
    let (addr, len_bytes) = (first.as_u64() << PAGE_SHIFT, nr_pages * PAGE_SIZE);
    let others = if joined { " (and further ones)" } else { "" };
    log::info!("a machine check on CPU {cpu}, raised by the {by}{others}: {len_bytes} bytes from {addr:#x} are lost");
    report!("machine_check by={by} cpu={cpu} addr={addr:#x} len={len_bytes}");
}

/// The last row of frames that a machine-check handler has noted and that was dealt with since this was last asked.
pub fn take_dealt_with() -> Option<Loss> {
    DEALT_WITH.lock().take()
}

/// How many rows and blocks have been taken away because of machine checks.
pub fn rows_dealt_with() -> u64 {
    // Acquire; pairs with the Release in `deal_with`.
    NR_DEALT_WITH.load(Ordering::Acquire)
}

/// Takes one frame away and says so.
pub fn fail(pfn: Pfn) {
    fail_row(pfn, 1);
}

/// What taking frames away has met.
#[derive(Default)]
struct Met {
    /// Frames that were lost already, frames of no registered device.
    known: u64,
    strangers: u64,
    /// Frames of the devices' own records.
    own: u64,
    users: usize,
    leaves: u64,
    /// Tasks that were sent a signal, for whatever frame.
    told: u64,
}

/// Takes frames away, one by one, and says so in one line.
fn fail_row(first: Pfn, nr_pages: u64) {
    let mut met = Met::default();
    (0..nr_pages).for_each(|nr| take_away(first.add(nr), nr_pages == 1, &mut met));
    let Met { known, strangers, own, users, leaves, told } = met;
    if strangers != 0 {
        let error = NoSuchFrame(first);
        let others = if strangers > 1 { ", like others of the same row" } else { "" };
        log::error!("a memory error is not in a device: {error}{others}");
    }
    if own != 0 {
        let (addr, len_bytes) = (first.addr(), nr_pages * PAGE_SIZE);
        log::warn!(
            "{own} pages among the {len_bytes} bytes from {addr} held a device's own records; its list of lost sectors is \
             read from a copy that is whole, if one is left"
        );
    }
    if strangers == nr_pages {
        return;
    }
    // What a device has lost of its own records it has dealt with.
    if strangers + own != nr_pages
        && let (Some(listener), Some(row)) = (LISTENER.get(), PfnRange::new(first, nr_pages))
    {
        (listener.devices)(row);
    }
    report!(
        "memory_failure pfn={first} known={known} users={users} leaves={leaves} frames={nr_pages} own={own} told={told}"
    );
}

/// First whoever holds the device hears of it: a file system knows whose the block is.
fn take_away(pfn: Pfn, names_users: bool, met: &mut Met) {
    let map = machine::mm().meta.find_map(pfn);
    // A page that was lost in part is not known to be lost: the rest of it is news.
    let known = map.as_ref().zip(sectors_of(pfn, 1)).is_some_and(|(map, sectors)| map.all_lost(sectors));
    met.known += u64::from(known);
    if let Some(listener) = LISTENER.get() {
        (listener.holders)(pfn);
    }
    let Ok(failure) = memory_failure(machine::mm(), pfn, FailureKind::Media) else {
        match LISTENER.get() {
            Some(listener) if (listener.own)(pfn) => met.own += 1,
            _ => met.strangers += 1,
        }
        return;
    };
    met.users += failure.users.len();
    met.leaves += failure.stats.leaves;
    for user in failure.users.iter().filter(|_| names_users) {
        log::warn!("frame {pfn} has lost its contents; \"{}\" maps it at {}", user.space.name(), user.range.start());
    }
    drop(failure);
    if let Some(map) = map.filter(|_| !known) {
        tell(&map, pfn, met);
    }
}

/// Sends SIGBUS to the tasks that map the frame or have registered it. Who touches it would hear of it anyway; a task that
/// does not, or whose device reads and writes it in its place, would not.
fn tell(map: &DevPagemap, pfn: Pfn, met: &mut Met) {
    let mut told: Vec<(u64, VirtAddr)> = Vec::new();
    let mut send = |space: u64, addr: VirtAddr| {
        if told.contains(&(space, addr)) {
            return;
        }
        told.push((space, addr));
        let lost = SigBus { addr, len_bytes: PAGE_SIZE, cause: SigBusCause::Poisoned };
        tcb::for_each_with_space(&mut |of, task| {
            if of == space {
                task.send_signal(lost.into());
                met.told += 1;
            }
        });
    };
    if let Some(listener) = LISTENER.get() {
        (listener.mapped)(pfn, &mut send);
    }
    machine::mm().regions.for_each_over(map, pfn, &mut |region, addr| {
        log::warn!("frame {pfn} has lost its contents; {region} holds it, for {addr}");
        send(region.space, addr);
    });
}
