//! The last act of the demonstration: a file system on the device, used from every CPU, and the device pulled out from
//! under it.
//!
//! On each CPU one task of every kind: a database that catches SIGBUS and goes on with other work, a program that maps a
//! shared file and ends by SIGBUS, one that only makes calls and ends when a call is refused, and one that has nothing to
//! do with the device. Afterwards the device comes back: nothing is damaged, and what was synced is there.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt::Display;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dax::removal::Method;
use fs::error::FsError;
use fs::layout::Label;
use fs::lock_order::Context;
use fs::notify::NotifyReport;
use mm::addr::{PAGE_SIZE, VirtAddr};
use mm::entry::Prot;
use mm::gup::GupFlags;
use mm::machine::CpuId;
use mm::pagemap::MemoryKind;
use mm::pins::PinnedPages;

use super::books::{self, Removed};
use super::gate::{self, Gate, wait_for_count};
use super::load::{give_way, read_pinned, signal_of};
use crate::cpu::percpu;
use crate::ktest::random::Random;
use crate::mem::machine::{Space, mm};
use crate::pmem::devices;
use crate::pmem::mounts::{self, File, Fs};
use crate::task::tcb::{Choice, Exit, Signal, Task};
use crate::task::{sched, user};

/// Where every task maps its file.
const BASE: VirtAddr = VirtAddr::new(0x40_0000_0000);
/// Pages of the file that all CPUs share: one leaf of 2 MiB where the device is large enough to align it.
const SHARED_PAGES: u64 = 512;
/// Pages of a database's file; a record in each.
const RECORDS: u64 = 16;
/// Pages of a file that is made, read back and unlinked.
const SCRATCH_PAGES: u64 = 3;
/// Rounds until a task counts as being under way.
const WARM_TURNS: u64 = 8;

/// What the tasks count.
#[derive(Default)]
struct Counters {
    /// Where tasks that are under way wait for the others.
    gate: Gate,
    /// Syncs of the databases.
    syncs: AtomicU64,
    /// Databases that were told of their loss and went on with other work to its end.
    caught: AtomicU64,
    /// Calls made.
    calls: AtomicU64,
    /// Pages of files pinned.
    pins: AtomicU64,
    /// Rounds of the bystanders.
    bystanders: AtomicU64,
    /// Words that were not what had been stored, nor 0. Must stay 0.
    wrong: AtomicU64,
    /// Words that were 0: what a load gives of memory that is not there. Must stay 0 where nothing leaves without a word.
    nothing: AtomicU64,
    stop: AtomicBool,
}

impl Counters {
    /// A task has gone around `turns` times.
    fn turn(&self, turns: u64) -> Result<(), Signal> {
        if turns == WARM_TURNS { self.gate.pass() } else { Ok(()) }
    }

    fn expect(&self, found: u64, stored: u64) {
        let count = if found == 0 { &self.nothing } else { &self.wrong };
        count.fetch_add(u64::from(found != stored), Ordering::Relaxed);
    }
}

/// How the tasks of one kind ended.
#[derive(Clone, Copy, Default)]
pub struct Ended {
    /// Tasks.
    pub tasks: usize,
    /// Those that ended as their kind has to.
    pub rightly: usize,
}

impl Ended {
    /// Has each ended as its kind has to?
    pub fn all_did(self) -> bool {
        self.rightly == self.tasks
    }
}

/// What came of the act.
pub struct FilesAct {
    /// The removal.
    pub removed: Removed,
    /// What the file system met when it was told.
    pub notified: NotifyReport,
    /// Programs that map the shared file: by SIGBUS.
    pub programs: Ended,
    /// Databases: by catching SIGBUS, going on, and coming to their end.
    pub databases: Ended,
    /// Tasks that make calls: by a call that was refused.
    pub callers: Ended,
    /// Tasks that do not use the device: when they were told.
    pub bystanders: Ended,
    /// Syncs that had come back.
    pub syncs: u64,
    /// Calls that had come back.
    pub calls: u64,
    /// Pages pinned.
    pub pins: u64,
    /// Words that were neither what had been stored nor 0, while the file system was mounted.
    pub wrong: u64,
    /// Words that were 0 instead of what had been stored.
    pub nothing: u64,
    /// Faults that the checker finds once the device is back, and records that were synced and are not there; `None` where
    /// it has not come back.
    pub found: Option<(usize, u64)>,
}

fn said<E: Display>(what: &'static str) -> impl Fn(E) -> String {
    move |error| format!("files: {what}: {error}")
}

/// What page `page` of the shared file carries.
fn stamp(page: u64) -> u64 {
    0xf11e_0000_0000_0000 ^ page.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn address(page: u64) -> VirtAddr {
    VirtAddr::new(BASE.as_u64() + page * PAGE_SIZE)
}

fn database_path(cpu: CpuId) -> String {
    format!("/database-{cpu}")
}

/// One task's view of a file.
struct Worker {
    cpu: CpuId,
    fs: Arc<Fs>,
    file: Arc<File>,
    space: Arc<Space>,
    counters: Arc<Counters>,
    /// The last record that a sync has made durable.
    synced: Arc<AtomicU64>,
}

impl Worker {
    /// Of a task on `cpu` that maps the first `pages` pages of `path`.
    fn new(fs: &Arc<Fs>, cpu: CpuId, path: &str, pages: u64, counters: &Arc<Counters>) -> Result<Self, String> {
        let file = fs.open(&Context::new(), path).map_err(said("open"))?;
        let space = Space::new(mm(), &path[1..]).map_err(said("address space"))?;
        space.map(BASE, pages * PAGE_SIZE, Prot::USER_WRITE, &file.ops(), 0).map_err(said("map"))?;
        let (fs, counters) = (Arc::clone(fs), Arc::clone(counters));
        Ok(Self { cpu, fs, file, space, counters, synced: Arc::default() })
    }

    fn start(self, kind: &str, work: fn(&Self) -> Exit) -> Arc<Task> {
        let (name, cpu, space) = (format!("{kind}-{}", self.cpu), self.cpu, Arc::clone(&self.space));
        sched::spawn(&name, cpu, Some(space), move || work(&self))
    }
}

/// Stores records through its mapping and syncs each. When the mapping is lost it says so, and goes on with what it has
/// in memory of its own, as a database would that has other tables.
fn database_work(worker: &Worker) -> Exit {
    let told = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&told);
    user::catch_sigbus(move |_| {
        count.fetch_add(1, Ordering::Relaxed);
        Choice::GoOn
    });
    let mut record = 0;
    loop {
        record += 1;
        match user::write_u64(address(record % RECORDS), record) {
            Ok(()) => {}
            Err(Signal::SigBus { .. }) => break,
            Err(signal) => return Err(signal),
        }
        if worker.fs.fsync(&Context::new(), &worker.file).is_err() {
            // It says less than a signal, which comes at the latest when the mapping is lost.
            give_way();
            continue;
        }
        // Release; pairs with the Acquire in `records_lost`.
        worker.synced.store(record, Ordering::Release);
        worker.counters.syncs.fetch_add(1, Ordering::Relaxed);
        worker.counters.turn(record)?;
    }
    user::check_signal()?;
    let sum = (1..=1000_u64).try_fold(0, |sum, n| user::check_signal().map(|()| sum + n))?;
    worker.counters.expect(sum, 500_500);
    let was_told = u64::from(told.load(Ordering::Relaxed) > 0);
    worker.counters.caught.fetch_add(was_told, Ordering::Relaxed);
    Ok(())
}

/// Loads and stores through its mapping of the shared file, and pins pages of it by gup-fast, as for a transfer.
fn program_work(worker: &Worker) -> Exit {
    let mut random = Random(worker.cpu as u64 + 1);
    for turns in 1_u64.. {
        let page = random.below(SHARED_PAGES);
        worker.counters.expect(user::read_u64(address(page))?, stamp(page));
        // A word of its own in each page, so that CPUs do not overwrite each other's.
        let word = VirtAddr::new(address(page).as_u64() + 8 + 8 * worker.cpu as u64);
        user::write_u64(word, turns)?;
        let pinned = PinnedPages::pin(&worker.space, address(page), 1, GupFlags::WRITE).map_err(signal_of)?;
        for run in pinned.frames() {
            worker.counters.expect(read_pinned(run.start()), stamp(page));
        }
        worker.counters.pins.fetch_add(1, Ordering::Relaxed);
        worker.counters.turn(turns)?;
    }
    Ok(())
}

/// Makes a file, writes, reads it back, renames, cuts and unlinks it, over and over, until a call is refused.
fn caller_work(fs: &Arc<Fs>, cpu: CpuId, counters: &Counters) -> Exit {
    let mut turns = 0;
    loop {
        match call_around(fs, cpu, counters, turns) {
            Ok(()) => turns += 1,
            Err(FsError::DeviceGone | FsError::ShutDown(_)) => return Ok(()),
            Err(error) => {
                log::error!("files: a call on CPU {cpu}: {error}");
                return Err(Signal::Killed);
            }
        }
        counters.turn(turns)?;
    }
}

fn call_around(fs: &Arc<Fs>, cpu: CpuId, counters: &Counters, turn: u64) -> Result<(), FsError> {
    let context = Context::new();
    let (path, renamed) = (format!("/scratch-{cpu}"), format!("/renamed-{cpu}"));
    let file = fs.create(&context, &path, true)?;
    let pattern = vec![turn as u8; (SCRATCH_PAGES * PAGE_SIZE) as usize];
    fs.write_all(&context, &file, 0, &pattern)?;
    let mut found = vec![0; pattern.len()];
    fs.read(&context, &file, 0, &mut found)?;
    counters.expect(1 + u64::from(found == pattern), 2);
    fs.rename(&context, &path, &renamed)?;
    fs.truncate(&context, &file, PAGE_SIZE)?;
    drop(file);
    fs.unlink(&context, &renamed)?;
    fs.reap(&context);
    counters.calls.fetch_add(6, Ordering::Relaxed);
    Ok(())
}

fn bystander_work(counters: &Counters) -> Exit {
    let mut turns = 0;
    // Acquire; pairs with the Release in `Load::stop`.
    while !counters.stop.load(Ordering::Acquire) {
        turns += 1;
        counters.bystanders.fetch_add(1, Ordering::Relaxed);
        counters.turn(turns)?;
        give_way();
    }
    Ok(())
}

/// The tasks, by kind, and what they count.
#[derive(Default)]
pub struct Load {
    counters: Arc<Counters>,
    programs: Vec<Arc<Task>>,
    databases: Vec<Arc<Task>>,
    callers: Vec<Arc<Task>>,
    bystanders: Vec<Arc<Task>>,
    /// What each CPU's database has synced.
    synced: Vec<(CpuId, Arc<AtomicU64>)>,
}

impl Load {
    fn start_on(&mut self, fs: &Arc<Fs>, cpu: CpuId) -> Result<(), String> {
        let worker = |path: &str, pages| Worker::new(fs, cpu, path, pages, &self.counters);
        let database = worker(&database_path(cpu), RECORDS)?;
        let program = worker("/shared", SHARED_PAGES)?;
        self.synced.push((cpu, Arc::clone(&database.synced)));
        self.databases.push(database.start("database", database_work));
        self.programs.push(program.start("program", program_work));
        let (fs, counters) = (Arc::clone(fs), Arc::clone(&self.counters));
        let work = move || caller_work(&fs, cpu, &counters);
        self.callers.push(sched::spawn(&format!("caller-{cpu}"), cpu, None, work));
        let counters = Arc::clone(&self.counters);
        self.bystanders.push(sched::spawn(&format!("bystander-{cpu}"), cpu, None, move || bystander_work(&counters)));
        Ok(())
    }

    /// Waits until every task is under way, and lets all go on together.
    fn warm_up(&self) {
        let kinds = [&self.programs, &self.databases, &self.callers, &self.bystanders];
        self.counters.gate.open(kinds.into_iter().flatten());
    }

    /// Lets the bystanders go around some more, and ends them.
    fn stop(&self) -> Ended {
        let goal = self.counters.bystanders.load(Ordering::Relaxed) + 100 * self.bystanders.len() as u64;
        wait_for_count(&self.counters.bystanders, goal, &self.bystanders);
        self.counters.stop.store(true, Ordering::Release);
        join(&self.bystanders, |end| end == Ok(()))
    }
}

fn join(tasks: &[Arc<Task>], rightly: fn(Exit) -> bool) -> Ended {
    Ended { tasks: tasks.len(), rightly: tasks.iter().filter(|task| rightly(sched::join(task))).count() }
}

/// A file of these bytes, in one write: they lie in one row, and the large one in 2 MiB that one leaf can map.
fn make(fs: &Arc<Fs>, path: &str, bytes: &[u8]) -> Result<(), String> {
    let context = Context::new();
    let file = fs.create(&context, path, true).map_err(said("create"))?;
    fs.write_all(&context, &file, 0, bytes).map_err(said("write"))
}

/// Makes a file system with the files that the tasks use on device `at`, and mounts it.
fn prepare(at: usize) -> Result<Arc<Fs>, String> {
    devices::attach_as(at, MemoryKind::FsDax).map_err(said("attach"))?;
    let layout = mounts::mkfs(at, Label::default())?;
    let fs = mounts::mount(at)?;
    let mut pages = vec![0; (SHARED_PAGES * PAGE_SIZE) as usize];
    for (page, bytes) in (0..).zip(pages.chunks_mut(PAGE_SIZE as usize)) {
        bytes[..8].copy_from_slice(&stamp(page).to_le_bytes());
    }
    make(&fs, "/shared", &pages)?;
    for cpu in percpu::online().iter() {
        make(&fs, &database_path(cpu), &vec![0; (RECORDS * PAGE_SIZE) as usize])?;
    }
    fs.reap(&Context::new());
    log::info!("{}: a file system of {} blocks is made and mounted", fs.name(), layout.nr_blocks);
    Ok(fs)
}

/// Device `at` has come back: looks for damage, mounts, and looks for what was synced. Answers the faults that the
/// checker finds, and the records that are lost. The device is removed afterwards.
pub fn come_back(at: usize, load: &Load) -> Result<(usize, u64), String> {
    devices::attach_as(at, MemoryKind::FsDax).map_err(said("attach"))?;
    let problems = mounts::fsck(at)?.problems.len();
    let fs = mounts::mount(at)?;
    let lost = load.synced.iter().try_fold(0, |lost, (cpu, synced)| {
        records_lost(&fs, *cpu, synced.load(Ordering::Acquire)).map(|more| lost + more)
    });
    fs.reap(&Context::new());
    drop(fs);
    mounts::unmount(at)?;
    books::remove_well(at).map_err(said("it is back"))?;
    Ok((problems, lost.map_err(said("what was synced"))?))
}

/// Records of the database of `cpu` that are older than the last ones it had synced.
fn records_lost(fs: &Arc<Fs>, cpu: CpuId, synced: u64) -> Result<u64, FsError> {
    let context = Context::new();
    let file = fs.open(&context, &database_path(cpu))?;
    let first = (synced + 1).saturating_sub(RECORDS).max(1);
    (first..=synced).try_fold(0, |lost, record| {
        let mut word = [0; 8];
        fs.read(&context, &file, record % RECORDS * PAGE_SIZE, &mut word)?;
        Ok(lost + u64::from(u64::from_le_bytes(word) < record))
    })
}

/// The act: attach, make, mount, load, remove under load, see who ended how, attach again, and look.
pub fn run() -> Result<FilesAct, String> {
    let remove =
        &mut || devices::remove(0, Method::Ranged).map_err(said("removal")).map(|report| Removed::from(&*report));
    let (load, mut act) = use_and_lose(0, remove)?;
    act.found = Some(come_back(0, &load)?);
    Ok(act)
}

/// Makes a file system on device `at`, has it used, and loses the device by `leave`; sees who ended how. What is damaged or
/// lost is not known yet.
pub fn use_and_lose(at: usize, leave: &mut dyn FnMut() -> Result<Removed, String>) -> Result<(Load, FilesAct), String> {
    let fs = prepare(at)?;
    let mut load = Load::default();
    for cpu in percpu::online().iter() {
        load.start_on(&fs, cpu)?;
    }
    load.warm_up();
    let counted = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    log::info!(
        "{} databases, {} programs, {} callers use it, {} tasks do not; {} syncs, {} calls, {} pins so far",
        load.databases.len(),
        load.programs.len(),
        load.callers.len(),
        load.bystanders.len(),
        counted(&load.counters.syncs),
        counted(&load.counters.calls),
        counted(&load.counters.pins),
    );
    let all_use_it = gate::none_has_ended([&load.programs, &load.databases, &load.callers].into_iter().flatten());
    let removed = leave()?;
    let programs = join(&load.programs, |end| matches!(end, Err(Signal::SigBus { .. })));
    let mut databases = join(&load.databases, |end| end == Ok(()));
    databases.rightly = databases.rightly.min(counted(&load.counters.caught) as usize);
    let callers = join(&load.callers, |end| end == Ok(()));
    let bystanders = load.stop();
    all_use_it.map_err(said("under load"))?;
    let notified = fs.last_notification().ok_or("files: the file system was not told")?;
    drop(fs);
    let counters = &load.counters;
    let act = FilesAct {
        removed,
        notified,
        programs,
        databases,
        callers,
        bystanders,
        syncs: counted(&counters.syncs),
        calls: counted(&counters.calls),
        pins: counted(&counters.pins),
        wrong: counted(&counters.wrong),
        nothing: counted(&counters.nothing),
        found: None,
    };
    Ok((load, act))
}
