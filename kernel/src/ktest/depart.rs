//! Tests of memory that leaves without a word. The kernel itself does what the host does otherwise: two stores to the slots'
//! registers. Only the host can put a module back, so each test takes one that is there still.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dax::devdax::OpenOptions;
use dax::removal::{Cause, Method, RemovalReport, Step};
use fs::error::{FsError, ShutdownReason};
use fs::layout::Label;
use mm::account::PinAccount;
use mm::addr::{PAGE_SIZE, PageSize, Pfn, PfnRange};
use mm::entry::Prot;
use mm::gup::GupFlags;
use mm::pagemap::MemoryKind;
use mm::pins::PinnedPages;
use mm::region::{MemoryRegion, Notice, RegionOwner, Terms};
use mm::space::VmOps;
use nvdimm::pmem::block::{BlockError, SECTOR_BYTES};

use crate::cpu::time;
use crate::io::dma::DmaTarget;
use crate::io::edu::{self, Direction};
use crate::io::vtd;
use crate::ktest::fixtures::{
    BASE, Books, at, here, new_space, no_problems, others, page, run_in, spawn_in, wait_until,
};
use crate::ktest::test::{Ctx, Test, check, check_eq};
use crate::mem::machine::{KernelMachine, Space, mm};
use crate::pmem::dimms::{self, Dimm};
use crate::pmem::slots::Slot;
use crate::pmem::{bytes, contents, devices, mounts};
use crate::task::tcb::Signal;
use crate::task::{sched, user};

/// The tests of this file.
pub const TESTS: &[Test] = &[
    Test { name: "depart.slots.answer_as_what_was_found", covers: "", run: slots_answer },
    Test { name: "depart.slots.a_transfer_reaches_over_two", covers: "S2", run: over_two },
    Test { name: "depart.dimm.attaches_leaves_and_attaches_again", covers: "A6 A7", run: attaches_and_leaves },
    Test { name: "depart.gone.is_noticed_in_time_and_taken_apart", covers: "S1", run: noticed_and_taken_apart },
    Test { name: "depart.gone.nothing_is_a_success_afterwards", covers: "S2", run: no_success },
    Test { name: "depart.gone.costs_no_more_than_an_announced_one", covers: "S1", run: costs_no_more },
    Test { name: "depart.gone.waits_for_a_removal_under_way", covers: "S1", run: waits },
];

/// Pages that are mapped.
const PAGES: u64 = 16;
/// A departure is noticed within this, in nanoseconds of virtual time.
const NOTICED_WITHIN_NS: u64 = 1_000_000;

fn said(what: &'static str) -> impl Fn(devices::DeviceError) -> String {
    move |error| format!("{what}: {error}")
}

/// Modules that are there and not in use.
fn modules() -> impl Iterator<Item = (usize, &'static Dimm)> {
    // The slot of one that has left may have another one by now.
    let there = devices::slots().iter().enumerate().filter(|(_, slot)| slot.is_in());
    let known = there.filter_map(|(at, slot)| Some((at, slot.dimm()?)));
    known.filter(|(at, dimm)| dimm.place.status().enabled && devices::not_attached(*at).is_ok())
}

/// The first of them, and its device; skips the test where there is none.
fn module(ctx: &mut Ctx) -> Option<(usize, &'static Dimm)> {
    let free = modules().next();
    if free.is_none() {
        ctx.skip("there is no memory module (start with --dimm 64M)");
    }
    free
}

fn slots_answer(ctx: &mut Ctx) -> Result<(), String> {
    if dimms::all().is_empty() {
        ctx.skip("the machine has no slots for memory modules");
        return Ok(());
    }
    for dimm in dimms::all() {
        let (status, slot) = (dimm.place.status(), dimm.place.slot());
        let is_it = |slot: &&Slot| slot.dimm().is_some_and(|other| core::ptr::eq(other, dimm)) && slot.is_in();
        let known = devices::slots().iter().find(is_it);
        let module = dimm.place.hotplug().module(slot);
        check_eq!(module.is_some(), status.enabled, "slot {slot}");
        if let (Some(known), Some((module, _))) = (known, module) {
            check_eq!(module.range.base, known.frames.start().addr().as_u64(), "the base of {}", known.name);
            check!(!status.inserted, "slot {slot}: nobody has taken notice of {}", known.name);
        }
    }
    Ok(())
}

/// Two modules that touch, of which the last page of one and the first of the other are registered as one range: a transfer
/// across both ends well.
fn over_two(ctx: &mut Ctx) -> Result<(), String> {
    const HALF: u64 = 512;
    let Some(edu) = edu::device() else {
        ctx.skip(vtd::why_none().unwrap_or("there is no edu device that does DMA"));
        return Ok(());
    };
    let frames = |at: usize| devices::slots()[at].frames;
    let touching = |(low, _): (usize, _)| {
        modules().find(|(high, _)| frames(low).end() == frames(*high).start()).map(|(high, _)| [low, high])
    };
    let Some(both) = modules().find_map(touching) else {
        ctx.skip("there are no two memory modules that touch (start with --dimm 64M --dimm 64M)");
        return Ok(());
    };
    let before = Books::now();
    let space = new_space("both")?;
    for (nth, slot) in (0..).zip(both) {
        devices::attach(slot).map_err(said("attach"))?;
        let file = devices::file(slot).map_err(said("the file"))?;
        let options = OpenOptions { max_leaf: PageSize::Size4K, ..OpenOptions::default() };
        let file: Arc<dyn VmOps<KernelMachine>> = file.open(options).map_err(|error| format!("open: {error}"))?;
        let offset = if nth == 0 { frames(slot).nr_pages() - 1 } else { 0 };
        let map = space.map(at(page(nth)), PAGE_SIZE, Prot::USER_WRITE, &file, offset);
        map.map_err(|error| format!("map: {error}"))?;
    }
    let account = mm().pins.open_account("both", 2);
    let owner: Arc<dyn RegionOwner> = Arc::new(|_: &Notice| ());
    let terms = Terms { flags: GupFlags::WRITE, grace_ns: 0, account: &account };
    let region = edu.dma().register(&space, BASE, 2, &terms, Arc::downgrade(&owner));
    let region = region.map_err(|error| format!("register: {error}"))?;
    check_eq!(region.frames().len(), 1, "runs of frames");
    let end = edu.transfer(Direction::ToDevice, (&region, PAGE_SIZE - HALF), 0, 2 * HALF);
    drop((region, space));
    for at in both {
        no_problems(&*devices::remove(at, Method::Ranged).map_err(said("remove"))?)?;
    }
    check!(end.is_ok(), "a transfer across two modules that are there: {end:?}");
    before.compare()
}

/// An orderly removal is that of every other device; what was written is there when it is attached again.
fn attaches_and_leaves(ctx: &mut Ctx) -> Result<(), String> {
    let Some((at, _)) = module(ctx) else { return Ok(()) };
    // Once, so that the tables that stay below the kernel's root exist.
    devices::attach(at).map_err(said("attach"))?;
    bytes::write(at, 4090, b"across two pages")?;
    devices::remove(at, Method::Ranged).map_err(said("remove"))?;
    let before = Books::now();
    for kind in [MemoryKind::FsDax, MemoryKind::DevDax] {
        devices::attach_as(at, kind).map_err(said("attach"))?;
        check_eq!(bytes::read(at, 4090, 16)?, b"across two pages", "what was written");
        let report = devices::remove(at, Method::Ranged).map_err(said("remove"))?;
        check_eq!(report.cause, Cause::Asked, "the cause");
        no_problems(&report)?;
    }
    before.compare()
}

/// Pulls the module out; answers when that was.
fn pull(dimm: &Dimm) -> Result<u64, String> {
    let slot = dimm.place.slot();
    let gone = dimm.place.hotplug().eject(slot);
    let now = time::since_first_line_ns();
    check!(gone, "slot {slot} does not let its module go");
    Ok(now)
}

/// Waits until the departure of device `at` is over: the report of its removal.
fn departed(at: usize, dimm: &Dimm) -> Result<Arc<RemovalReport>, String> {
    wait_until(|| dimm.place.current().is_none());
    let report = devices::last_removal(at).map_err(said("the report"))?.ok_or("no report is kept")?;
    check_eq!(report.cause, Cause::Gone, "the cause");
    no_problems(&report)?;
    Ok(report)
}

fn noticed_and_taken_apart(ctx: &mut Ctx) -> Result<(), String> {
    let Some((at, dimm)) = module(ctx) else { return Ok(()) };
    let before = Books::now();
    presence(at, true)?;
    devices::attach(at).map_err(said("attach"))?;
    let users = Users::start(at)?;
    let pulled_ns = pull(dimm)?;
    // At once, and not only when it was noticed.
    presence(at, false)?;
    let report = departed(at, dimm)?;
    presence(at, false)?;
    let noticed_ns = dimm.last_notice_ns().saturating_sub(pulled_ns);
    ctx.note(format_args!("noticed after {noticed_ns} ns"));
    // Elsewhere the host may not run CPU 0 for longer than that.
    if time::is_deterministic() {
        check!(noticed_ns <= NOTICED_WITHIN_NS, "noticed after {noticed_ns} ns, not within {NOTICED_WITHIN_NS}");
    }
    let fact = |step, name| report.step(step).and_then(|record| record.facts.get(name));
    check_eq!(fact(Step::Drain, "registrations_revoked"), Some(1), "registrations that were revoked");
    users.end()?;
    check_eq!(devices::attach(at).is_err(), true, "what is not there is attached");
    before.compare()
}

fn is_there(frames: PfnRange) -> bool {
    dimms::are_there(&[frames])
}

/// Is the memory of module `at` there, as everybody is told who asks? What is no module's always is.
fn presence(at: usize, expected: bool) -> Result<(), String> {
    let all = devices::slots()[at].frames;
    let part = |first: u64, nr| PfnRange::new(Pfn::new(all.start().as_u64() + first), nr).ok_or("no frames");
    let last = all.nr_pages() - 1;
    for frames in [all, part(0, 1)?, part(last, 1)?, part(1, last - 1)?] {
        check_eq!(is_there(frames), expected, "{frames:?}");
    }
    // With what lies behind it: another module, or what is no module's.
    let behind = devices::slots().iter().filter(|slot| slot.dimm().is_some() && slot.frames.contains(all.end()));
    let goes_on = behind.clone().next().is_none() || behind.clone().any(Slot::is_in);
    check_eq!(is_there(part(last, 2)?), expected && goes_on, "a range that goes beyond the module");
    let fixed = devices::slots().iter().filter(|slot| slot.dimm().is_none());
    for slot in fixed {
        check_eq!(is_there(slot.frames), true, "{}", slot.name);
    }
    check_eq!(is_there(PfnRange::new(Pfn::new(1), 1).ok_or("no frames")?), true, "RAM");
    Ok(())
}

/// Tasks that map a device on every other CPU, and an owner of a registration that gives nothing back.
struct Users {
    tasks: vec::Vec<Arc<crate::task::tcb::Task>>,
    region: MemoryRegion<KernelMachine>,
    owner: Arc<dyn RegionOwner>,
    asked: Arc<AtomicU64>,
    account: Arc<PinAccount>,
}

impl Users {
    fn start(slot: usize) -> Result<Self, String> {
        let file = devices::file(slot).map_err(said("the file"))?;
        let options = OpenOptions { max_leaf: PageSize::Size4K, ..OpenOptions::default() };
        let file: Arc<dyn VmOps<KernelMachine>> = file.open(options).map_err(|error| format!("open: {error}"))?;
        let space = new_space("user")?;
        let map = space.map(BASE, PAGES * PAGE_SIZE, Prot::USER_WRITE, &file, 0);
        map.map_err(|error| format!("map: {error}"))?;
        let account = mm().pins.open_account("owner", PAGES);
        let asked = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&asked);
        let owner: Arc<dyn RegionOwner> = Arc::new(move |_: &Notice| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        let terms = Terms { flags: GupFlags::WRITE, grace_ns: mm::region::MAX_GRACE_NS, account: &account };
        let region = MemoryRegion::register(&space, BASE, PAGES, &terms, Arc::downgrade(&owner));
        let region = region.map_err(|error| format!("register: {error}"))?;
        // CPU 0 may be the only one there is; then its timer comes in between.
        let cpus = if others().iter().next().is_some() { others() } else { crate::cpu::percpu::online() };
        let started = Arc::new(AtomicU64::new(0));
        let user = |cpu| {
            let started = Arc::clone(&started);
            spawn_in(cpu, &space, move || {
                for nr in 0.. {
                    user::write_u64(at(nr % PAGES * PAGE_SIZE), nr)?;
                    if nr == PAGES {
                        started.fetch_add(1, Ordering::Release);
                    }
                    arch::cpu::pause();
                }
                Ok(())
            })
        };
        let tasks: vec::Vec<_> = cpus.iter().map(user).collect();
        wait_until(|| started.load(Ordering::Acquire) == tasks.len() as u64);
        Ok(Self { tasks, region, owner, asked, account })
    }

    /// All of them were ended by SIGBUS, and nobody was asked for anything.
    fn end(self) -> Result<(), String> {
        for task in &self.tasks {
            let exit = sched::join(task);
            check!(matches!(exit, Err(Signal::SigBus { .. })), "a task that stored there ended by {exit:?}");
        }
        check_eq!(self.asked.load(Ordering::Relaxed), 0, "owners that were asked");
        drop((self.region, self.owner));
        check_eq!(self.account.used_pages(), 0, "pages on the owner's account");
        Ok(())
    }
}

fn no_success(ctx: &mut Ctx) -> Result<(), String> {
    let Some((at, dimm)) = module(ctx) else { return Ok(()) };
    devices::attach_as(at, MemoryKind::FsDax).map_err(said("attach"))?;
    mounts::mkfs(at, Label::default())?;
    let fs = mounts::mount(at)?;
    let context = fs::lock_order::Context::new();
    let file = fs.create(&context, "a", true).map_err(|error| format!("create: {error}"))?;
    fs.write_all(&context, &file, 0, &[7; 8192]).map_err(|error| format!("write: {error}"))?;
    let block = devices::block(at).map_err(said("block"))?;
    let mut sector = [0; SECTOR_BYTES as usize];
    let space = stored_to(&file, 2)?;
    // The moments before it is noticed are those in which a success could slip through.
    pull(dimm)?;
    let unnoticed = dimm.noticed_ns() == 0;
    let synced = fs.fsync(&context, &file);
    ctx.note(format_args!("an fsync {}", if unnoticed { "before it was noticed" } else { "after it was noticed" }));
    // Elsewhere the timer may come in between as it likes.
    check!(unnoticed || !time::is_deterministic(), "it was noticed at once: the fsync says nothing");
    let gone = |error: FsError| matches!(error, FsError::DeviceGone | FsError::ShutDown(ShutdownReason::DeviceGone));
    check!(synced.is_err_and(gone), "an fsync before the notice: {synced:?}");
    let mut read = vec![0; 8192];
    let reads = fs.read(&context, &file, 0, &mut read);
    check!(reads.is_err_and(gone), "a file is read: {reads:?}");
    let wrote = fs.write(&context, &file, 0, b"x");
    check!(wrote.is_err_and(gone), "a file is written: {wrote:?}");
    let raw = block.read(0, &mut sector);
    check!(matches!(raw, Err(BlockError::Gone | BlockError::NoSuchDevice)), "a sector is read: {raw:?}");
    let raw = block.write(0, &sector);
    check!(matches!(raw, Err(BlockError::Gone | BlockError::NoSuchDevice)), "a sector is written: {raw:?}");
    check!(block.flush().is_err(), "a flush is a success");
    departed(at, dimm)?;
    let synced = fs.fsync(&context, &file);
    check!(synced.is_err_and(gone), "an fsync after the notice: {synced:?}");
    check_eq!(fs.shutdown_reason(), Some(ShutdownReason::DeviceGone), "why the file system is shut down");
    drop((space, file));
    check!(mounts::mount(at).is_err() && mounts::fsck(at).is_err(), "it is mounted, or found sound");
    check!(contents::found(at).is_err(), "it is looked at");
    Ok(())
}

/// An address space that maps the first pages of a file, with a store to each that was not synced.
fn stored_to(file: &Arc<mounts::File>, nr_pages: u64) -> Result<Arc<Space>, String> {
    let space = new_space("stored")?;
    let map = space.map(BASE, nr_pages * PAGE_SIZE, Prot::USER_WRITE, &file.ops(), 0);
    map.map_err(|error| format!("map: {error}"))?;
    run_in(here(), &space, move || {
        let store = |nr| user::write_u64(at(nr * PAGE_SIZE), nr);
        (0..nr_pages).try_for_each(store).map_err(|signal| format!("{signal}"))
    })?;
    Ok(space)
}

/// Pages of a file that are mapped and not written back when the device is taken away.
const DIRTY: u64 = 128;
/// How long the test sleeps between two looks, so that nothing but the departure costs anything.
const NAP_NS: u64 = 2_000_000;

/// What a removal cost until nobody could reach the device any more.
#[derive(Debug)]
struct Until {
    /// Instructions of its steps, without what was said in them.
    steps: u64,
    /// Instructions from the notice, or the call, to the first step, and between them.
    beside: u64,
}

impl Until {
    fn all(&self) -> u64 {
        self.steps + self.beside
    }
}

/// A module leaves while its device is being removed, by somebody who waits for a page: its stay goes on until that is over,
/// so that nothing that comes into the slot is taken for it, or is used while it is still being taken apart.
fn waits(ctx: &mut Ctx) -> Result<(), String> {
    let Some((at, dimm)) = module(ctx) else { return Ok(()) };
    let before = Books::now();
    devices::attach(at).map_err(said("attach"))?;
    let file = devices::file(at).map_err(said("the file"))?;
    let options = OpenOptions { max_leaf: PageSize::Size4K, ..OpenOptions::default() };
    let file: Arc<dyn VmOps<KernelMachine>> = file.open(options).map_err(|error| format!("open: {error}"))?;
    let space = new_space("holder")?;
    space.map(BASE, PAGE_SIZE, Prot::USER_WRITE, &file, 0).map_err(|error| format!("map: {error}"))?;
    drop(file);
    let pins = PinnedPages::pin(&space, BASE, 1, GupFlags::WRITE).map_err(|error| format!("pin: {error}"))?;
    let waiting = Arc::new(AtomicBool::new(false));
    let waits = Arc::clone(&waiting);
    let remover = sched::spawn("remover", here(), None, move || {
        let removed = devices::remove_watched(at, Method::Ranged, &mut |_| waits.store(true, Ordering::Release));
        removed.map(drop).map_err(|_| Signal::Killed)
    });
    wait_until(|| waiting.load(Ordering::Acquire));
    pull(dimm)?;
    // It is looked at until the removal is over.
    wait_until(|| dimm.noticed_ns() != 0);
    for _ in 0..4 {
        sched::sleep_ns(NAP_NS);
        check!(dimm.place.current().is_some(), "its stay has ended, and its device is still being removed");
        check!(remover.exit().is_none(), "the removal did not wait");
    }
    drop(pins);
    check_eq!(sched::join(&remover), Ok(()), "the removal");
    wait_until(|| dimm.place.current().is_none());
    let report = devices::last_removal(at).map_err(said("the report"))?.ok_or("no report is kept")?;
    check_eq!(report.cause, Cause::Asked, "the cause");
    no_problems(&report)?;
    drop((report, space));
    before.compare()
}

/// Of memory that has gone nothing is read or written back, and nobody is asked: from the notice to the end of the last
/// translation it costs no more than an orderly removal of the same. What the file system says is counted in neither.
fn costs_no_more(ctx: &mut Ctx) -> Result<(), String> {
    let Some((at, dimm)) = module(ctx) else { return Ok(()) };
    if !time::is_deterministic() {
        ctx.skip("instructions are not counted (start with --deterministic)");
        return Ok(());
    }
    let slot = &devices::slots()[at];
    let mut announced = Until { steps: 0, beside: 0 };
    // Once for what is made once, such as tables that stay.
    for _ in 0..2 {
        let used = Used::new(at)?;
        let began_ns = time::since_first_line_ns();
        let report = devices::remove_quietly_because(at, Cause::Announced).map_err(said("remove"))?;
        announced = used.end(&report, slot.shot_down_ns().saturating_sub(began_ns))?;
    }
    let used = Used::new(at)?;
    pull(dimm)?;
    while dimm.place.current().is_some() {
        sched::sleep_ns(NAP_NS);
    }
    let report = departed(at, dimm)?;
    let gone = used.end(&report, slot.shot_down_ns().saturating_sub(dimm.last_notice_ns()))?;
    ctx.note(format_args!("gone: {gone:?}; announced: {announced:?}"));
    check!(gone.steps <= announced.steps, "the steps: {gone:?}, {announced:?}");
    check!(gone.all() <= announced.all(), "from the notice on: {gone:?}, {announced:?}");
    Ok(())
}

/// A device with a mounted file system, of which a file is mapped and has pages that were not written back.
struct Used {
    file: Arc<mounts::File>,
    space: Arc<Space>,
}

impl Used {
    fn new(at: usize) -> Result<Self, String> {
        devices::attach_as(at, MemoryKind::FsDax).map_err(said("attach"))?;
        mounts::mkfs(at, Label::default())?;
        let (fs, context) = (mounts::mount(at)?, fs::lock_order::Context::new());
        let file = fs.create(&context, "a", true).map_err(|error| format!("create: {error}"))?;
        let bytes = vec![7; (DIRTY * PAGE_SIZE) as usize];
        fs.write_all(&context, &file, 0, &bytes).map_err(|error| format!("write: {error}"))?;
        let space = stored_to(&file, DIRTY)?;
        Ok(Self { file, space })
    }

    /// The device has been removed, with all that was mapped, and nobody could reach it any more after `ns` of virtual time,
    /// which goes on with the instructions: what that cost.
    fn end(self, report: &RemovalReport, ns: u64) -> Result<Until, String> {
        no_problems(report)?;
        check_eq!(report.cost.zap.leaves, 0, "leaves that the file system has left");
        check!(self.space.translate(at(0)).is_none(), "it is mapped still");
        drop((self.space, self.file));
        let steps = report.steps.iter().filter(|record| record.step <= Step::Shootdown);
        let beside_ns = ns.saturating_sub(steps.map(|record| record.ns).sum());
        // A tick is a nanosecond there.
        let beside = beside_ns / time::TSC_PER_INSTRUCTION;
        Ok(Until { steps: report.instructions_until_unreachable(), beside })
    }
}
