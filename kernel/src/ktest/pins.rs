//! Tests of long-term pins: a device is removed while an engine uses what somebody has registered of it.
//!
//! The engine is a task that reaches the frames through the direct map, as a device would by DMA: it knows nothing of the
//! owner's mappings, and ends when its next use is refused.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dax::removal::{Method, RemovalReport, Step};
use mm::account::{OverLimit, PinAccount};
use mm::addr::PageSize;
use mm::gup::{GupError, GupFlags};
use mm::machine::{CpuId, Machine};
use mm::region::{MemoryRegion, Notice, RegionError, RegionOwner, RegionRef, Terms, UseError};
use mm::space::{Access, SigBusCause};
use spin::Mutex;

use crate::cpu::percpu;
use crate::ktest::fixtures::{
    BASE, Device, here, new_space, no_problems, others, page, read_frame, run_in, spawn_in, wait_until, write_frame,
};
use crate::ktest::test::{Ctx, Test, check, check_eq};
use crate::mem::machine::{KernelMachine, Space, mm};
use crate::pmem::devices;
use crate::task::sched;
use crate::task::tcb::Task;

const MIB2: u64 = PageSize::Size2M.bytes();
/// Pages that are registered.
const PAGES: u64 = 16;
/// What an owner has that does not give back, in nanoseconds.
const GRACE_NS: u64 = 20_000_000;

/// The tests of this file.
pub const TESTS: &[Test] = &[
    Test {
        name: "pins.registration.ignored_is_revoked",
        covers: "L6 R10",
        run: |ctx| Device::with(ctx, MIB2, ignored),
    },
    Test {
        name: "pins.registration.given_back_in_time",
        covers: "L6",
        run: |ctx| Device::with(ctx, MIB2, given_back_in_time),
    },
    Test {
        name: "pins.registration.a_use_in_flight_is_waited_for",
        covers: "L6",
        run: |ctx| Device::with(ctx, MIB2, use_in_flight),
    },
    Test { name: "pins.registration.owner_dies_first", covers: "L6", run: |ctx| Device::with(ctx, MIB2, dies_first) },
    Test {
        name: "pins.registration.many_against_a_removal",
        covers: "L6 R12",
        run: |ctx| Device::with(ctx, MIB2, many),
    },
    Test { name: "pins.limit_and_exemption", covers: "L2 L5 L7", run: |ctx| Device::with(ctx, MIB2, limit) },
];

type Region = MemoryRegion<KernelMachine>;

/// Somebody who registers, and what he is told.
struct Owner {
    space: Arc<Space>,
    account: Arc<PinAccount>,
    /// Dropped: it is dead, and its registrations are not waited for.
    listener: Arc<dyn RegionOwner>,
    notices: Arc<AtomicU64>,
    /// By when the last notice wants its registration back, in nanoseconds since boot.
    deadline_ns: Arc<AtomicU64>,
}

impl Owner {
    /// With the first pages of the device mapped. It only counts what it is told.
    fn new(device: &Device) -> Result<Self, String> {
        let space = new_space("owner")?;
        device.map(&space, BASE, 0, page(PAGES), PageSize::Size4K)?;
        let account = mm().pins.open_account("owner", PAGES);
        let (notices, deadline_ns) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (counter, deadline) = (Arc::clone(&notices), Arc::clone(&deadline_ns));
        let listener: Arc<dyn RegionOwner> = Arc::new(move |notice: &Notice| {
            deadline.store(notice.deadline_ns, Ordering::Relaxed);
            counter.fetch_add(1, Ordering::Release);
        });
        Ok(Self { space, account, listener, notices, deadline_ns })
    }

    fn register(&self, grace_ns: u64) -> Result<Region, RegionError> {
        let terms = Terms { flags: GupFlags::WRITE, grace_ns, account: &self.account };
        MemoryRegion::register(&self.space, BASE, PAGES, &terms, Arc::downgrade(&self.listener))
    }

    fn registered(&self, grace_ns: u64) -> Result<Region, String> {
        self.register(grace_ns).map_err(|error| format!("register: {error}"))
    }
}

/// A copy engine that works on a registration until it is refused.
struct Engine {
    task: Arc<Task>,
    copies: Arc<AtomicU64>,
    refused: Arc<Mutex<Option<UseError>>>,
}

/// Where tasks run that are not this one.
fn elsewhere() -> CpuId {
    others().iter().next().unwrap_or(here())
}

impl Engine {
    /// Copies page by page into the next one, each a transfer of its own.
    fn start(region: RegionRef<KernelMachine>, space: &Arc<Space>) -> Self {
        let (copies, refused) = (Arc::new(AtomicU64::new(0)), Arc::new(Mutex::new(None)));
        let (count, answer) = (Arc::clone(&copies), Arc::clone(&refused));
        let task = spawn_in(elsewhere(), space, move || {
            let mut nr = 0;
            loop {
                match region.access(Access::Write) {
                    Ok(transfer) => {
                        let frames = transfer.frame(nr % PAGES).zip(transfer.frame((nr + 1) % PAGES));
                        let (from, to) = frames.expect("a page of the registration");
                        write_frame(to, read_frame(from) + 1);
                    }
                    Err(error) => {
                        *answer.lock() = Some(error);
                        return Ok(());
                    }
                }
                nr += 1;
                count.store(nr, Ordering::Release);
                sched::yield_now();
            }
        });
        Self { task, copies, refused }
    }

    fn wait_for_copies(&self, more: u64) {
        let goal = self.copies.load(Ordering::Acquire) + more;
        wait_until(|| self.copies.load(Ordering::Acquire) >= goal);
    }

    /// Waits for its end, and answers by what it was refused.
    fn join(&self) -> Result<Option<UseError>, String> {
        check_eq!(sched::join(&self.task), Ok(()), "end of the engine");
        Ok(*self.refused.lock())
    }
}

fn remove() -> Result<alloc::sync::Arc<RemovalReport>, String> {
    let report = devices::remove(0, Method::Ranged).map_err(|error| format!("removal: {error}"))?;
    no_problems(&report)?;
    Ok(report)
}

fn fact(report: &RemovalReport, step: Step, name: &str) -> Option<u64> {
    report.step(step).and_then(|record| record.facts.get(name))
}

/// The device has gone, and nothing of it is left anywhere.
fn check_gone() -> Result<(), String> {
    let ledger = mm().ledger_snapshot();
    for kind in [mm::ledger::Kind::Pins, mm::ledger::Kind::References, mm::ledger::Kind::MetadataBytes] {
        check_eq!(ledger.count(kind), 0, "{kind} after the removal");
    }
    let mut left = 0;
    mm().regions.for_each(&mut |_| left += 1);
    check_eq!(left, 0, "registrations on the list");
    Ok(())
}

fn ignored(_: &mut Ctx, device: &Device) -> Result<(), String> {
    write_frame(device.pfn(0), 0);
    let owner = Owner::new(device)?;
    let region = owner.registered(GRACE_NS)?;
    let engine = Engine::start(region.reference(), &owner.space);
    engine.wait_for_copies(2 * PAGES);
    let began = mm().machine.now_ns();
    let report = remove()?;
    let ns = mm().machine.now_ns() - began;
    check_eq!(owner.notices.load(Ordering::Acquire), 1, "times that the owner was told");
    check!(ns >= GRACE_NS, "the removal took {ns} ns; the owner had {GRACE_NS}");
    check_eq!(fact(&report, Step::KillDax, "registrations_asked"), Some(1), "registrations asked for");
    check_eq!(fact(&report, Step::Drain, "registrations_revoked"), Some(1), "registrations revoked");
    check!(format!("{report}").contains("revoked after"), "the report does not say so: {report}");
    let revoked = Some(UseError::Revoked { key: region.key() });
    check_eq!(engine.join()?, revoked, "what the engine was refused by");
    check_eq!(region.reference().access(Access::Read).err(), revoked, "a use afterwards");
    check_gone()?;
    // What the engine has written is there when the device comes back; the registration is not.
    devices::attach(0).map_err(|error| format!("attach: {error}"))?;
    check!(read_frame(device.pfn(1)) > 0, "the engine's copies are lost");
    check_eq!(region.reference().access(Access::Read).err(), revoked, "a use once the device is back");
    drop(region);
    check_eq!(owner.account.exempt_pages(), 0, "pages that are still charged");
    Ok(())
}

/// An owner gives back in a task of its own. Where the host has kept that task from running for all of its grace, the
/// kernel is right to revoke, and the round says nothing: there is another.
fn given_back_in_time(_: &mut Ctx, device: &Device) -> Result<(), String> {
    while !give_back_once(device)? {
        devices::attach(0).map_err(|error| format!("attach: {error}"))?;
    }
    Ok(())
}

/// One round; says whether the owner was in time.
fn give_back_once(device: &Device) -> Result<bool, String> {
    let owner = Owner::new(device)?;
    let region = owner.registered(mm::region::MAX_GRACE_NS)?;
    let key = region.key();
    let engine = Engine::start(region.reference(), &owner.space);
    engine.wait_for_copies(PAGES);
    // In a task of its own, once it has heard of it.
    let notices = Arc::clone(&owner.notices);
    let given_ns = Arc::new(AtomicU64::new(0));
    let given = Arc::clone(&given_ns);
    let task = spawn_in(elsewhere(), &owner.space, move || {
        wait_until(|| notices.load(Ordering::Acquire) == 1);
        region.deregister();
        given.store(mm().machine.now_ns(), Ordering::Relaxed);
        Ok(())
    });
    let began_ns = mm().machine.now_ns();
    let report = remove()?;
    check_eq!(sched::join(&task), Ok(()), "end of the owner");
    check_eq!(fact(&report, Step::KillDax, "registrations_asked"), Some(1), "registrations asked for");
    let (given_ns, deadline_ns) = (given_ns.load(Ordering::Relaxed), owner.deadline_ns.load(Ordering::Relaxed));
    check!(
        deadline_ns >= began_ns + mm::region::MAX_GRACE_NS,
        "asked at {began_ns}, the owner had until {deadline_ns}"
    );
    if given_ns >= deadline_ns {
        engine.join()?;
        return check_gone().map(|()| false);
    }
    check_eq!(fact(&report, Step::Drain, "registrations_revoked"), Some(0), "registrations revoked");
    check_eq!(engine.join()?, Some(UseError::GivenBack { key }), "what the engine was refused by");
    check_gone().map(|()| true)
}

fn use_in_flight(_: &mut Ctx, device: &Device) -> Result<(), String> {
    let owner = Owner::new(device)?;
    let region = owner.registered(0)?;
    let (reference, frame) = (region.reference(), device.pfn(3));
    let (ready, ended) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (is_ready, has_ended) = (Arc::clone(&ready), Arc::clone(&ended));
    let task = spawn_in(elsewhere(), &owner.space, move || {
        let transfer = reference.access(Access::Write).map_err(|_| crate::task::tcb::Signal::Killed)?;
        is_ready.store(true, Ordering::Release);
        // Until it is closed to others: the removal is about to wait for this use, the only one.
        wait_until(|| reference.check(Access::Write).is_err());
        for _ in 0..64 {
            sched::yield_now();
        }
        // The frame is there still, in the direct map too.
        write_frame(frame, 7);
        has_ended.store(true, Ordering::Release);
        drop(transfer);
        Ok(())
    });
    wait_until(|| ready.load(Ordering::Acquire));
    let report = remove()?;
    check!(ended.load(Ordering::Acquire), "the removal did not wait for the use in flight");
    check_eq!(sched::join(&task), Ok(()), "end of the engine");
    check_eq!(fact(&report, Step::Drain, "uses_waited_for"), Some(1), "uses waited for");
    drop(region);
    check_gone()
}

fn dies_first(_: &mut Ctx, device: &Device) -> Result<(), String> {
    let owner = Owner::new(device)?;
    // One dies in order: its task ends by a signal, and what it holds is dropped.
    let owner = run_in(elsewhere(), &Arc::clone(&owner.space), move || {
        let region = owner.registered(mm::region::MAX_GRACE_NS)?;
        drop(region);
        Ok(owner)
    })?;
    check_eq!(mm().meta.totals().pins, 0, "pins once it is dead");
    // The other leaves its registration behind, and an engine that works on it.
    let region = owner.registered(mm::region::MAX_GRACE_NS)?;
    let engine = Engine::start(region.reference(), &owner.space);
    engine.wait_for_copies(PAGES);
    drop(owner);
    // Its time is over the moment it is asked for. How long the removal takes says nothing: a host can stop us for longer.
    let mut deadline_ns = None;
    let map = mm().meta.find_map(device.frames.start()).ok_or("no page map")?;
    let found = mm().regions.ask(&map, map.ranges(), &mut |info| deadline_ns = info.deadline_ns);
    check_eq!(found.asked, 1, "asked for");
    let now_ns = mm().machine.now_ns();
    check!(deadline_ns.is_some_and(|at| at <= now_ns), "the dead have until {deadline_ns:?}; it is {now_ns}");
    let report = remove()?;
    check_eq!(fact(&report, Step::Drain, "registrations_revoked"), Some(1), "registrations revoked");
    check_eq!(engine.join()?, Some(UseError::Revoked { key: region.key() }), "what the engine was refused by");
    drop(region);
    check_gone()
}

/// Registers, uses, gives back or lets itself be asked, until the device has gone.
fn register_work(space: &Arc<Space>, done: &AtomicU64) -> Result<(), String> {
    let account = mm().pins.open_account("many", 0);
    let listener: Arc<dyn RegionOwner> = Arc::new(|_: &Notice| ());
    let terms = Terms { flags: GupFlags::WRITE, grace_ns: 100_000, account: &account };
    let mut kept: Vec<Region> = Vec::new();
    loop {
        let nr = done.fetch_add(1, Ordering::Relaxed);
        let region = MemoryRegion::register(space, BASE, 1 + nr % PAGES, &terms, Arc::downgrade(&listener));
        match region {
            Ok(region) => {
                if let Ok(transfer) = region.reference().access(Access::Write) {
                    write_frame(transfer.frame(0).ok_or("no first page")?, nr);
                }
                kept.push(region);
                if kept.len() == 4 {
                    kept.clear();
                }
            }
            Err(RegionError::Pin(GupError::SigBus(_, SigBusCause::DeviceGone))) => break,
            Err(error) => return Err(format!("register: {error}")),
        }
        sched::yield_now();
    }
    // None of them outlives the device, whether it was asked for or not.
    for region in &kept {
        wait_until(|| region.reference().check(Access::Read).is_err());
        check!(region.reference().access(Access::Read).is_err(), "a registration can still be used");
    }
    Ok(())
}

fn many(ctx: &mut Ctx, device: &Device) -> Result<(), String> {
    const CYCLES: u64 = 3;
    let done = Arc::new(AtomicU64::new(0));
    let (mut asked, mut revoked) = (0, 0);
    for cycle in 0..CYCLES {
        if cycle > 0 {
            devices::attach(0).map_err(|error| format!("attach: {error}"))?;
        }
        let faults: Arc<Mutex<Vec<String>>> = Arc::default();
        let start = |cpu| {
            let space = new_space(&format!("many {cpu}"))?;
            device.map(&space, BASE, 0, page(PAGES), PageSize::Size4K)?;
            let (inner, done, faults) = (Arc::clone(&space), Arc::clone(&done), Arc::clone(&faults));
            Ok(spawn_in(cpu, &space, move || {
                let fault = register_work(&inner, &done).err();
                faults.lock().extend(fault);
                Ok(())
            }))
        };
        let tasks = percpu::online().iter().map(start).collect::<Result<Vec<_>, String>>()?;
        let goal = done.load(Ordering::Relaxed) + 200;
        wait_until(|| done.load(Ordering::Relaxed) >= goal || !faults.lock().is_empty());
        let report = remove()?;
        for task in &tasks {
            check_eq!(sched::join(task), Ok(()), "end of {task:?}");
        }
        check_eq!(faults.lock().first().cloned(), None, "what went wrong");
        asked += fact(&report, Step::KillDax, "registrations_asked").unwrap_or(0);
        revoked += fact(&report, Step::Drain, "registrations_revoked").unwrap_or(0);
        drop((tasks, report));
        check_gone()?;
    }
    let all = done.load(Ordering::Relaxed);
    ctx.note(format_args!("{CYCLES} cycles: {all} registrations, {asked} asked for, {revoked} revoked"));
    check!(revoked <= asked, "{revoked} registrations revoked, {asked} asked for");
    Ok(())
}

fn limit(_: &mut Ctx, device: &Device) -> Result<(), String> {
    let owner = Owner::new(device)?;
    // Reserved memory is exempt at first, and the account says so.
    owner.account.set_limit_pages(PAGES - 1);
    let region = owner.registered(0)?;
    check_eq!((owner.account.used_pages(), owner.account.exempt_pages()), (0, PAGES), "(used, exempt) pages");
    let mut lines = Vec::new();
    let now = mm().machine.now_ns();
    mm().pins.for_each(&mut |record| lines.push(format!("{} {}", record.describe(now), record.fields(now))));
    let line = lines.iter().find(|line| line.contains("by owner at")).ok_or("the registration is not listed")?;
    for words in ["16 pages from frame", "long-term (registration", "ktest/pins.rs:", "16 are exempt", "exempt=16"] {
        check!(line.contains(words), "{line:?} lacks {words:?}");
    }
    drop(region);
    mm().pins.exempt_reserved(false);
    let refused = owner.register(0).err();
    owner.account.set_limit_pages(PAGES);
    let allowed = owner.registered(0).map(|region| (region, owner.account.used_pages()));
    mm().pins.exempt_reserved(true);
    let over = OverLimit { limit_pages: PAGES - 1, used_pages: 0, wanted_pages: PAGES };
    check_eq!(refused, Some(RegionError::Pin(GupError::OverLimit(over))), "one page too many");
    let (region, used) = allowed?;
    check_eq!(used, PAGES, "pages that count");
    drop(region);
    check_eq!((owner.account.used_pages(), owner.account.exempt_pages()), (0, 0), "(used, exempt) pages at the end");
    Ok(())
}
