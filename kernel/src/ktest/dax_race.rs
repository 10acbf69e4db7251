//! Tests of removal against everybody else, over and over: opening, mapping, faulting, pinning, reading by sector,
//! attaching and removing on every CPU while the device goes.
//!
//! Each round is held open by pins until every worker has met the removal, so what is tested does happen, whatever the
//! CPUs' speed; what happens between the removal's steps is left to chance, which is why there are many rounds.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dax::devdax::OpenOptions;
use dax::device::DaxError;
use dax::removal::{Method, RemovalReport, Step};
use dax::slot::SlotError;
use mm::addr::PageSize;
use mm::entry::Prot;
use mm::gup::{GupError, GupFlags};
use mm::machine::CpuId;
use mm::pins::PinnedPages;
use mm::space::{Access, FaultError, MapError, SigBusCause, VmOps};
use nvdimm::pmem::AttachError;
use nvdimm::pmem::block::{BlockError, SECTOR_BYTES};
use spin::Mutex;

use crate::cpu::percpu;
use crate::ktest::fixtures::{BASE, Books, at, here, new_space, no_problems, page, spawn_in, wait_until};
use crate::ktest::random::Random;
use crate::ktest::test::{Ctx, Test, check, check_eq};
use crate::mem::machine::{KernelMachine, Space};
use crate::pmem::devices::{self, DeviceError};
use crate::task::tcb::{Signal, Task};
use crate::task::{sched, user};

/// Pages of the device that are used.
const PAGES: u64 = 16;
/// Removals in each test.
const ROUNDS: u64 = 40;
/// What the workers do with a device, all together, before it goes.
const WARM: u64 = 32;
/// How often each worker meets a removal before it may end.
const MEETINGS: u64 = 3;

/// The tests of this file.
pub const TESTS: &[Test] = &[
    Test { name: "dax.race.open_against_removal", covers: "R12 G4", run: |ctx| race(ctx, opens, false) },
    Test { name: "dax.race.attach_against_removal", covers: "R12 A6", run: |ctx| race(ctx, attaches, true) },
    Test { name: "dax.race.everything_against_removal", covers: "R12", run: |ctx| race(ctx, everything, false) },
];

/// What a worker's attempt came to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Met {
    /// It was done.
    Done,
    /// A removal was under way.
    Removing,
    /// There was no device, or there was one already.
    Idle,
}

/// One attempt of a worker, with its own space loaded. Any answer but those that a race allows is an error.
type Attempt = fn(&Arc<Space>, &mut Random) -> Result<Met, String>;

/// What one worker has done.
#[derive(Default)]
struct Counts {
    done: AtomicU64,
    /// Attempts that met a removal.
    met: AtomicU64,
}

/// What the workers, the holder of pins and the remover share.
#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    workers: Vec<Counts>,
    /// Attaching is left to the workers.
    they_attach: bool,
    trouble: Mutex<Option<String>>,
}

impl Shared {
    fn done(&self) -> u64 {
        self.workers.iter().map(|worker| worker.done.load(Ordering::Acquire)).sum()
    }

    fn met(&self) -> Vec<u64> {
        self.workers.iter().map(|worker| worker.met.load(Ordering::Acquire)).collect()
    }

    /// Has every worker met removals [`MEETINGS`] times more than in `before`, or is one in trouble?
    fn all_met(&self, before: &[u64]) -> bool {
        let enough = |(now, before): (&u64, &u64)| now - before >= MEETINGS;
        self.met().iter().zip(before).all(enough) || self.trouble.lock().is_some()
    }
}

/// Two workers on each CPU against [`ROUNDS`] removals; the books afterwards are those before.
fn race(ctx: &mut Ctx, attempt: Attempt, they_attach: bool) -> Result<(), String> {
    match devices::slots().first() {
        None => ctx.skip("there is no NVDIMM"),
        Some(slot) if slot.frames.nr_pages() < PAGES => ctx.skip("NVDIMM 0 is too small"),
        Some(_) if devices::block(0).is_ok() => ctx.skip("NVDIMM 0 is in use"),
        Some(_) => {
            if let Err(reason) = devices::check_writable(0) {
                ctx.skip(reason);
                return Ok(());
            }
            let before = Books::now();
            let raced = rounds(ctx, attempt, they_attach);
            // A worker may have attached it once more.
            let left = remove().map(drop);
            raced.and(left).and(before.compare())?;
        }
    }
    Ok(())
}

fn rounds(ctx: &mut Ctx, attempt: Attempt, they_attach: bool) -> Result<(), String> {
    let cpus: Vec<_> = percpu::online().iter().chain(percpu::online().iter()).collect();
    let spaces = cpus.iter().map(|cpu| new_space(&format!("worker {cpu}"))).collect::<Result<Vec<_>, String>>()?;
    let workers = cpus.iter().map(|_| Counts::default()).collect();
    let shared = Arc::new(Shared { workers, they_attach, ..Shared::default() });
    let start = |(number, (cpu, space))| worker(&shared, number, (cpu, space), attempt);
    let tasks: Vec<_> = cpus.into_iter().zip(&spaces).enumerate().map(start).collect();
    let raced = (0..ROUNDS).try_for_each(|_| round(&shared));
    shared.stop.store(true, Ordering::Release);
    for task in &tasks {
        check_eq!(sched::join(task), Ok(()), "end of {task:?}");
    }
    shared.trouble.lock().take().map_or(raced, Err)?;
    let sum = |of: fn(&Counts) -> &AtomicU64| shared.workers.iter().map(|one| of(one).load(Ordering::Relaxed)).sum();
    let (done, met): (u64, u64) = (sum(|one| &one.done), sum(|one| &one.met));
    check!(done > 0, "nothing was ever done");
    ctx.note(format_args!("{ROUNDS} removals; of the workers' attempts {done} were done, {met} met a removal"));
    Ok(())
}

/// Tries until it is told to stop.
fn worker(shared: &Arc<Shared>, number: usize, (cpu, space): (CpuId, &Arc<Space>), attempt: Attempt) -> Arc<Task> {
    let (shared, inner) = (Arc::clone(shared), Arc::clone(space));
    spawn_in(cpu, space, move || {
        let mut random = Random(number as u64 + 1);
        let counts = &shared.workers[number];
        while !shared.stop.load(Ordering::Acquire) {
            match attempt(&inner, &mut random) {
                Ok(Met::Done) => drop(counts.done.fetch_add(1, Ordering::AcqRel)),
                Ok(Met::Removing) => drop(counts.met.fetch_add(1, Ordering::AcqRel)),
                Ok(Met::Idle) => {}
                Err(error) => *shared.trouble.lock() = Some(error),
            }
            sched::yield_now();
        }
        Ok(())
    })
}

/// One removal, which pins hold open until every worker has met it [`MEETINGS`] times.
fn round(shared: &Arc<Shared>) -> Result<(), String> {
    // This task attaches it, or a worker has been faster; nobody but this task removes it.
    let done = shared.done();
    if !shared.they_attach {
        wait_until(|| devices::attach_supervised(0, &mut |_| Ok(())).is_ok() || devices::block(0).is_ok());
    }
    // It goes while the workers use it, or as soon as one of them has attached it.
    let enough = if shared.they_attach { 0 } else { WARM };
    wait_until(|| shared.trouble.lock().is_some() || (shared.done() - done >= enough && devices::block(0).is_ok()));
    let space = new_space("holder")?;
    map(&space, 0)?.ok_or("the device has gone before its removal")?;
    let pins = PinnedPages::pin(&space, BASE, 2, GupFlags::WRITE).map_err(|error| format!("pin: {error}"))?;
    let (before, all) = (shared.met(), Arc::clone(shared));
    let holder = spawn_in(here(), &space, move || {
        wait_until(|| all.all_met(&before));
        drop(pins);
        Ok(())
    });
    let removed = remove();
    check_eq!(sched::join(&holder), Ok(()), "end of the task that held the pins");
    let report = removed?.ok_or("somebody else has removed the device")?;
    no_problems(&report)?;
    check_eq!(report.steps.len(), Step::ALL.len(), "steps done");
    Ok(())
}

/// Removes the device, if it is there.
fn remove() -> Result<Option<Arc<RemovalReport>>, String> {
    match devices::remove_quietly(0, Method::Ranged) {
        Ok(report) => Ok(Some(report)),
        Err(DeviceError::DeviceSlot(SlotError::Empty)) => Ok(None),
        Err(error) => Err(format!("removal: {error}")),
    }
}

/// What a device that is not attached answers.
fn absent(error: DeviceError) -> Result<Met, String> {
    match error {
        DeviceError::DeviceSlot(SlotError::Removing) => Ok(Met::Removing),
        DeviceError::DeviceSlot(SlotError::Empty) => Ok(Met::Idle),
        error => Err(format!("the device answers: {error}")),
    }
}

/// Opens the device and maps two of its pages, from `page` on, at [`BASE`]; `None` where it goes meanwhile.
fn map(space: &Arc<Space>, first: u64) -> Result<Option<()>, String> {
    let Ok(file) = devices::file(0) else { return Ok(None) };
    let ops: Arc<dyn VmOps<KernelMachine>> = match file.open(OpenOptions::exactly(PageSize::Size4K)) {
        Ok(opened) => opened,
        Err(DaxError::NoSuchDevice) => return Ok(None),
        Err(error) => return Err(format!("open: {error}")),
    };
    match space.map(BASE, page(2), Prot::USER_WRITE, &ops, first) {
        Ok(()) => Ok(Some(())),
        Err(MapError::Refused(SigBusCause::DeviceGone)) => Ok(None),
        Err(error) => Err(format!("map: {error}")),
    }
}

/// Opens, maps, faults, stores, pins, unmaps.
fn opens(space: &Arc<Space>, random: &mut Random) -> Result<Met, String> {
    if let Err(error) = devices::file(0) {
        return absent(error);
    }
    if map(space, random.below(PAGES - 1))?.is_none() {
        return Ok(Met::Removing);
    }
    let used = use_mapping(space);
    space.unmap(BASE, page(2)).map_err(|error| format!("unmap: {error:?}"))?;
    used
}

fn use_mapping(space: &Arc<Space>) -> Result<Met, String> {
    let gone = SigBusCause::DeviceGone;
    match space.handle_fault(BASE, Access::Write) {
        Ok(()) => {}
        Err(FaultError::SigBus { cause, .. }) if cause == gone => return Ok(Met::Removing),
        Err(error) => return Err(format!("fault: {error}")),
    }
    match PinnedPages::pin(space, BASE, 2, GupFlags::WRITE) {
        Ok(pins) => drop(pins),
        Err(GupError::SigBus(_, cause)) if cause == gone => return Ok(Met::Removing),
        Err(error) => return Err(format!("pin: {error}")),
    }
    match user::write_u64(at(page(1)), 1) {
        Ok(()) => Ok(Met::Done),
        Err(Signal::SigBus { cause, .. }) if cause == gone => Ok(Met::Removing),
        Err(signal) => Err(format!("store: {signal}")),
    }
}

/// Attaches, whatever the state of the device.
fn attaches(_: &Arc<Space>, _: &mut Random) -> Result<Met, String> {
    let state = devices::block(0).map(drop);
    match devices::attach_supervised(0, &mut |_| Ok(())) {
        Ok(_) => Ok(Met::Done),
        // Its name or its frames are in use, or it was there, or still there, when everything had been made.
        Err(
            DeviceError::Attach(_, AttachError::NameTaken | AttachError::Taken(_))
            | DeviceError::DeviceSlot(SlotError::Occupied | SlotError::Removing),
        ) => state.map_or_else(absent, |()| Ok(Met::Idle)),
        Err(error) => Err(format!("attach: {error}")),
    }
}

/// Any of it, and the block path.
fn everything(space: &Arc<Space>, random: &mut Random) -> Result<Met, String> {
    match random.below(3) {
        0 => attaches(space, random),
        1 => opens(space, random),
        _ => reads(random),
    }
}

fn reads(random: &mut Random) -> Result<Met, String> {
    let block = match devices::block(0) {
        Ok(block) => block,
        Err(error) => return absent(error),
    };
    let mut sector = [0; SECTOR_BYTES as usize];
    match block.read(random.below(PAGES), &mut sector) {
        Ok(()) => Ok(Met::Done),
        Err(BlockError::NoSuchDevice) => Ok(Met::Removing),
        Err(error) => Err(format!("read: {error}")),
    }
}
