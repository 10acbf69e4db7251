//! The act without a load: every step of attaching and of removing the device is made to fail once; it is written and
//! read by sector; and one page of it is lost, which costs the task that maps that page and nobody else. The removal that
//! ends it shows its report as it is kept. Lent memory (virtio-pmem), where there is some, goes through the same driver.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use core::fmt::Display;
use core::sync::atomic::{AtomicU64, Ordering};

use dax::devdax::OpenOptions;
use dax::inject::{Fault, Place};
use dax::removal::{Method, Step};
use mm::addr::{PAGE_SIZE, PageSize, VirtAddr};
use mm::entry::Prot;
use mm::space::{SigBusCause, VmOps};
use nvdimm::pmem::block::{BlockError, SECTOR_BYTES};

use super::books::{self, Books, Removed};
use super::gate::wait_until;
use super::host_request;
use super::load::give_way;
use crate::console::{self, report};
use crate::cpu::percpu;
use crate::mem::machine::{KernelMachine, Space, mm};
use crate::mem::reserve::FAULTS;
use crate::pmem::{bytes, devices};
use crate::task::tcb::{Signal, Task};
use crate::task::{sched, user};
use crate::trap::memory_error::Loss;

/// Where each of the two tasks maps its page.
const BASE: VirtAddr = VirtAddr::new(0x40_0000_0000);
/// The page that is lost; its neighbour is not.
const LOST_PAGE: u64 = 5;
const SECTORS: u64 = PAGE_SIZE / SECTOR_BYTES;
/// Where the words lie that are written by sector: over the end of one.
const WORDS_AT: u64 = 16 * PAGE_SIZE + SECTOR_BYTES - 3;
const WORDS: &[u8] = b"written by sector";
/// Reads until a task counts as being under way.
const WARM_READS: u64 = 4;

/// What came of the act.
pub struct PageAct {
    /// Steps that were made to fail, and kinds of things that were left over after them.
    pub faults: u64,
    /// See `faults`.
    pub leaks: u64,
    /// What was written by sector was read again.
    pub same: bool,
    /// Tasks that mapped one of the two pages.
    pub users: usize,
    /// Those of them that SIGBUS ended.
    pub ended_by_sigbus: usize,
    /// What the machine-check handler has noted of the lost page; `None` where nobody could raise a machine check.
    pub lost: Option<Loss>,
    /// The one with the lost page heard of it, with its address and 4096 bytes.
    pub told: bool,
    /// The other one read on until the device went.
    pub read_on: bool,
    /// A read of the lost page by sector was an I/O error.
    pub io_error: bool,
    /// Sectors on the list of bad blocks.
    pub bad_sectors: u64,
    /// After a write of the whole page nothing was lost any more.
    pub healed: bool,
    /// The removal, with the other task's mapping.
    pub removed: Removed,
}

fn said<E: Display>(what: &'static str) -> impl Fn(E) -> String {
    move |error| format!("one page: {what}: {error}")
}

/// The act, on device 0. `host_requests_s`: see [`host_request`].
pub fn run(host_requests_s: u64) -> Result<PageAct, String> {
    let (faults, leaks) = faults()?;
    log::info!("{faults} steps of attach and removal were made to fail, one by one; {leaks} leaks");
    devices::attach(0).map_err(said("attach"))?;
    let same = by_sector(0)?;
    let block = devices::block(0).map_err(said("block device"))?;
    let first = LOST_PAGE * SECTORS;
    block.write(first, &[0; PAGE_SIZE as usize]).map_err(said("write"))?;
    let (victim, _) = reader("victim", LOST_PAGE)?;
    let (neighbour, reads) = reader("neighbour", LOST_PAGE + 1)?;
    let lost = host_request::lose(devices::slots()[0].frames.start().add(LOST_PAGE), host_requests_s);
    let poisoned = Signal::SigBus { addr: BASE, len_bytes: PAGE_SIZE, cause: SigBusCause::Poisoned };
    let told = sched::join(&victim) == Err(poisoned);
    let goal = reads.load(Ordering::Relaxed) + WARM_READS;
    wait_until(|| reads.load(Ordering::Relaxed) >= goal || neighbour.exit().is_some());
    let mut sector = [0; SECTOR_BYTES as usize];
    let io_error = block.read(first, &mut sector) == Err(BlockError::Io { sector: first });
    let bad_sectors = block.bad_blocks().iter().map(|run| run.nr_sectors).sum();
    block.write(first, &[0; PAGE_SIZE as usize]).map_err(said("write"))?;
    let healed = block.bad_blocks().is_empty() && block.read(first, &mut sector).is_ok();
    drop(block);
    let read_on = neighbour.exit().is_none();
    let report = devices::remove(0, Method::Ranged).map_err(said("removal"))?;
    let removed = Removed::from(&*report);
    let ends = [sched::join(&victim), sched::join(&neighbour)];
    let kept = devices::last_removal(0).map_err(said("report"))?.ok_or("one page: no report is kept")?;
    format!("{kept}").lines().for_each(|line| console::words(format_args!("{line}")));
    let ended_by_sigbus = ends.iter().filter(|end| matches!(end, Err(Signal::SigBus { .. }))).count();
    let users = ends.len();
    Ok(PageAct {
        faults,
        leaks,
        same,
        users,
        ended_by_sigbus,
        lost,
        told,
        read_on,
        io_error,
        bad_sectors,
        healed,
        removed,
    })
}

/// Lets every step of attach and of removal fail once. Answers how many those were, and how many kinds of things were
/// left over, each time together.
fn faults() -> Result<(u64, u64), String> {
    let (mut faults, mut leaks) = (0, 0);
    let attach = || devices::attach_supervised(0, &mut |_| Ok(()));
    // The report of the last removal is kept, and takes what it lists: that of an idle device comes in its place.
    attach().map_err(said("attach"))?;
    books::remove_well(0).map_err(said("nobody uses it"))?;
    let before = Books::now();
    for step in 1..=devices::ATTACH_STEPS as u64 {
        FAULTS.arm(Fault::once(Place::Attach, step));
        if attach().is_ok() {
            return Err(format!("one page: step {step} of attach did not fail"));
        }
        (faults, leaks) = (faults + 1, leaks + before.left());
    }
    for step in Step::ALL {
        attach().map_err(said("attach"))?;
        FAULTS.arm(Fault::once(Place::Remove, step.number() as u64));
        let report = devices::remove_quietly(0, Method::Ranged).map_err(said("removal"))?;
        if report.problems().map(|(step, _)| step).ne([step]) {
            return Err(format!("one page: step {step} of a removal did not fail"));
        }
        (faults, leaks) = (faults + 1, leaks + before.left());
    }
    Ok((faults, leaks))
}

/// Writes words by sector, makes them last, and reads them again. Says whether they are the same.
fn by_sector(at: usize) -> Result<bool, String> {
    bytes::write(at, WORDS_AT, WORDS)?;
    devices::block(at).map_err(said("block device"))?.flush().map_err(said("flush"))?;
    Ok(bytes::read(at, WORDS_AT, WORDS.len())? == WORDS)
}

/// A task that maps one page of device 0 and reads it until a signal, and how often it has. It is under way.
fn reader(name: &str, page: u64) -> Result<(Arc<Task>, Arc<AtomicU64>), String> {
    let file = devices::file(0).map_err(said("no device"))?;
    let ops: Arc<dyn VmOps<KernelMachine>> = file.open(OpenOptions::exactly(PageSize::Size4K)).map_err(said("open"))?;
    let space = Space::new(mm(), name).map_err(said("address space"))?;
    space.map(BASE, PAGE_SIZE, Prot::USER_WRITE, &ops, page).map_err(said("map"))?;
    let reads = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&reads);
    let cpu = percpu::online().iter().last().unwrap_or(0);
    let task = sched::spawn(name, cpu, Some(space), move || {
        loop {
            user::read_u64(BASE)?;
            count.fetch_add(1, Ordering::Relaxed);
            give_way();
        }
    });
    wait_until(|| reads.load(Ordering::Relaxed) >= WARM_READS || task.exit().is_some());
    Ok((task, reads))
}

/// Every device of lent memory: attached for file systems by the driver that the NVDIMMs have, written and read by
/// sector, flushed by the host, removed. Says whether each held what was written.
pub fn lent() -> Result<bool, String> {
    let mut all_same = true;
    for (at, slot) in devices::slots().iter().enumerate().filter(|(_, slot)| slot.provider() == "virtio-pmem") {
        devices::attach_as(at, slot.kind()).map_err(said("attach"))?;
        let (has_dax, same) = (devices::has_dax(at).map_err(said("DAX"))?, by_sector(at)?);
        books::remove_well(at).map_err(said("lent memory"))?;
        report!("lent device={} dax={} same={}", slot.name, u8::from(has_dax), u8::from(same));
        all_same &= same;
    }
    Ok(all_same)
}
