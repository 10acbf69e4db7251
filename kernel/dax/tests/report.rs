//! The figures of a removal's report: whose time is whose, what is counted, and what a report without memory leaves out.
#![cfg(not(loom))]

mod common;

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use common::*;
use dax::devdax::OpenOptions;
use dax::kill::{KillReport, Phase};
use dax::removal::{Method, Problem, RemovalEnv, RemovalReport, RemovalWatch, Step, remove};
use mm::addr::{PAGE_SIZE, PageSize, Pfn, VirtRange};
use mm::gup::GupFlags;
use mm::pins::PinnedPages;
use mm::region::{MemoryRegion, Notice, RegionInfo, RegionOwner, TakeBack, Terms};
use mm::shootdown::{FULL_FLUSH_ABOVE, ShootdownStats};
use mm::space::Access;
use testkit::emu::{self, EmuMachine, Event};

/// What one call of the environment takes: in nanoseconds, and a thousandth of it in instructions. The emulated clock moves
/// by a nanosecond each time that it is read, which is far less.
const MS: u64 = 1_000_000;

/// An environment each of whose calls takes a time of its own.
struct Timed {
    emu: EmuMachine,
    executed: Arc<AtomicU64>,
}

impl Timed {
    fn new(emu: &EmuMachine) -> Self {
        // Neither begins at zero.
        emu.advance_clock(1000 * MS);
        Self { emu: emu.clone(), executed: Arc::new(AtomicU64::new(77_000_000)) }
    }
    /// Lets `ms` milliseconds pass.
    fn work(&self, ms: u64) -> impl FnOnce() + Send + use<> {
        let (emu, executed) = (self.emu.clone(), self.executed.clone());
        move || {
            emu.advance_clock(ms * MS);
            executed.fetch_add(ms * 1000, Ordering::SeqCst);
        }
    }
}

impl RemovalEnv<EmuMachine> for Timed {
    type Watch = Self;
    fn watch(&mut self) -> &mut Self {
        self
    }
    fn stop_io(&mut self) -> Result<u64, Problem> {
        self.work(2)();
        Ok(0)
    }
    fn unmap_direct_map(&mut self) -> Result<u64, Problem> {
        self.work(17)();
        Ok(1)
    }
    fn release(&mut self) -> Result<(), Problem> {
        self.work(19)();
        Ok(())
    }
}

impl RemovalWatch<EmuMachine> for Timed {
    fn phase(&mut self, _: Phase, _: &KillReport) {
        self.work(300)();
    }
    fn for_each_task(&mut self, _: &mut dyn FnMut(u64, u64, &str)) {
        self.work(5)();
    }
    fn lost(&mut self, _: &Arc<Space>, _: VirtRange) {
        self.work(7)();
    }
    fn asked(&mut self, _: &RegionInfo<'_>) {
        self.work(11)();
    }
    fn taking_back(&mut self, _: &TakeBack<'_>) {
        self.work(13)();
    }
    fn instructions(&mut self) -> u64 {
        self.executed.load(Ordering::SeqCst)
    }
}

fn fact(report: &RemovalReport, step: Step, name: &str) -> u64 {
    report.step(step).unwrap().facts.get(name).unwrap_or_else(|| panic!("{step} does not say {name}"))
}

/// Two tasks, on CPUs 1 and 2, each with `nr_pages` in small leaves.
fn tasks(mm: &Arc<EmuContext>, attached: &Attached, nr_pages: u64) -> [Loaded; 2] {
    let file = attached.file(OpenOptions::exactly(PageSize::Size4K));
    [1, 2].map(|cpu| {
        let task = Loaded::new(mm, cpu, &file, nr_pages);
        (0..nr_pages).for_each(|nr| task.store(page(nr), nr).unwrap());
        task
    })
}

/// covers: R1 R2
#[test]
fn each_step_has_the_time_of_its_own_work() {
    let (emu, mm) = machine(3);
    let attached = attach_one(&mm, 1024);
    let tasks = tasks(&mm, &attached, 3);
    let mut env = Timed::new(&emu);
    let account = mm.pins.open_account("task", 16);
    let owner: Arc<dyn RegionOwner> = Arc::new(|_: &Notice| ());
    let terms = Terms { flags: GupFlags::WRITE, grace_ns: 0, account: &account };
    let register = || MemoryRegion::register(tasks[0].space(), page(1), 2, &terms, Arc::downgrade(&owner));
    let region = emu.on_cpu(1, register).unwrap();
    // The shootdown, and the freeing of the tables, take their time too.
    emu.at(0, Event::IpiSent, 1, env.work(23));
    emu.at(0, Event::FreeTable, 1, env.work(29));
    let report = emu.on_cpu(0, || remove(&mm, attached.target(), Method::Ranged, &mut env));
    emu.assert_hooks_ran();
    assert_eq!(report.problems().count(), 0, "{report}");
    // What saying so takes, 300 each time, is nobody's.
    let wanted = [
        (Step::StopIo, 2),
        (Step::KillDax, 11),
        (Step::Invalidate, 5),
        (Step::Shootdown, 23),
        (Step::Drain, 29 + 2 * 7 + 13),
        (Step::FreeMetadata, 0),
        (Step::UnmapDirectMap, 17),
        (Step::Release, 19),
    ];
    for (step, ms) in wanted {
        let record = report.step(step).unwrap();
        assert_eq!((record.ns / MS, record.instructions), (ms, ms * 1000), "{step}");
    }
    let all = wanted.iter().map(|(_, ms)| ms).sum::<u64>();
    assert_eq!((report.ns() / MS, report.instructions()), (all, all * 1000));
    // To invalidate mappings cost the clearing, the shootdown and the freeing.
    assert_eq!((report.cost.ns / MS, report.cost.instructions), (23 + 29, (23 + 29) * 1000));
    assert_eq!(fact(&report, Step::Drain, "grace_ns") / MS, 13);
    assert_eq!(report.rest, Default::default());
    drop((region, tasks));
}

/// covers: R2
#[test]
fn the_report_counts_each_flush_and_each_look_once() {
    let (emu, mm) = machine(3);
    for nr_pages in [3, FULL_FLUSH_ABOVE + 1] {
        let attached = attach_one(&mm, 1024);
        let tasks = tasks(&mm, &attached, nr_pages);
        emu.reset_stats();
        let report = emu.on_cpu(0, || remove(&mm, attached.target(), Method::Ranged, &mut Env::default()));
        let seen = emu.stats();
        assert_eq!(seen.page_flushes + seen.full_flushes, 2 * if nr_pages == 3 { 3 } else { 1 });
        let flushes = ShootdownStats {
            rounds: 1,
            ipis: seen.ipis_sent,
            page_flushes: seen.page_flushes,
            full_flushes: seen.full_flushes,
        };
        assert_eq!((report.cost.flushes, seen.ipis_sent), (flushes, 2));
        for (name, value) in [("page_flushes", seen.page_flushes), ("full_flushes", seen.full_flushes)] {
            assert_eq!(fact(&report, Step::Shootdown, name), value, "{name}");
        }
        // One entry of the root for each space, and nothing is looked at again to see what holders have left.
        assert_eq!(fact(&report, Step::Invalidate, "entries_visited"), 2);
        assert_eq!(report.cost.zap.entries_visited, 2 * (1 + 1 + 1 + nr_pages), "of each table what is mapped");
        assert_eq!((fact(&report, Step::Invalidate, "left_by_holders"), report.users.len()), (0, 2));
        assert_eq!((report.users_not_named, fact(&report, Step::Invalidate, "extents_not_named")), (0, 0));
        drop(tasks);
    }
}

/// Frame by frame what the method costs, and what it leaves to be done by range, are two sums.
/// covers: R2
#[test]
fn what_is_done_by_frame_and_what_is_done_by_range_are_two_sums() {
    let (emu, mm) = machine(3);
    let attached = attach_one(&mm, 1024);
    let tasks = tasks(&mm, &attached, 3);
    let range = frames(START, 2);
    let mut env = Timed::new(&emu);
    emu.at(0, Event::IpiSent, 1, env.work(23));
    emu.at(0, Event::FreeTable, 1, env.work(29));
    let report = emu.on_cpu(0, || remove(&mm, attached.target(), Method::PerFrame(range), &mut env));
    emu.assert_hooks_ran();
    assert_eq!((report.cost.zap.leaves, report.rest.zap.leaves), (4, 2), "two spaces");
    assert_eq!((report.cost.zap.rounds, report.rest.zap.rounds), (2, 1));
    assert_eq!((report.cost.flushes.rounds, report.rest.flushes.rounds), (2, 1));
    assert_eq!((report.cost.ns / MS, report.rest.ns / MS), (23, 29));
    assert_eq!(
        fact(&report, Step::Invalidate, "entries_visited"),
        report.cost.zap.entries_visited + 2,
        "of both methods; the rest is counted as it is freed"
    );
    drop(tasks);
}

/// A use that is under way when its registration is revoked is waited for, and counted.
/// covers: L6
#[test]
fn uses_that_were_waited_for_are_counted() {
    let (emu, mm) = machine(4);
    let attached = attach_one(&mm, 1024);
    let tasks = tasks(&mm, &attached, 8);
    let account = mm.pins.open_account("task", 16);
    let owner: Arc<dyn RegionOwner> = Arc::new(|_: &Notice| ());
    let terms = Terms { flags: GupFlags::WRITE, grace_ns: 0, account: &account };
    let register = |nr| {
        emu.on_cpu(1, || MemoryRegion::register(tasks[0].space(), page(nr), 2, &terms, Arc::downgrade(&owner))).unwrap()
    };
    let regions = [register(0), register(2), register(4)];
    let engines = regions.each_ref().map(|region| region.reference());
    // Two uses of the first, one of the second, none of the third.
    let [first, again, second] = [0, 0, 1].map(|nr: usize| engines[nr].access(Access::Write).unwrap());
    let (target, context) = (attached.target(), mm.clone());
    // On a CPU that has no part in the shootdown.
    let report = emu.on_cpu(3, || {
        let removal = emu.start(0, move || remove(&context, target, Method::Ranged, &mut Env::default()));
        // Whoever is asked has had its time: the first is closed, and its uses are waited for.
        assert!(!emu.let_run(0, &removal));
        assert!(engines[0].access(Access::Read).is_err() && engines[1].access(Access::Read).is_ok());
        drop(first);
        assert!(!emu.let_run(0, &removal));
        drop(again);
        assert!(!emu.let_run(0, &removal));
        assert!(engines[1].access(Access::Read).is_err());
        drop(second);
        emu.finish(removal)
    });
    assert_eq!(fact(&report, Step::Drain, "registrations_revoked"), 3);
    assert_eq!(fact(&report, Step::Drain, "uses_waited_for"), 3);
    drop((regions, tasks));
}

/// Pins of the first `nr_pages` pages of a task that has gone.
fn orphan(mm: &Arc<EmuContext>, attached: &Attached, nr_pages: u64) -> Vec<mm::addr::PfnRange> {
    let task = Loaded::new(mm, 0, &attached.file(OpenOptions::exactly(PageSize::Size4K)), 512);
    task.pin(page(0), nr_pages, GupFlags::WRITE).unwrap()
}

/// The first word at once, the second after 10 ms, and each further one after twice as long; some of the folios by name.
/// covers: R5
#[test]
fn a_wait_is_spoken_of_ever_more_seldom() {
    let (emu, mm) = machine(2);
    let attached = attach_one(&mm, 1024);
    let runs = RefCell::new(Some(orphan(&mm, &attached, 7)));
    emu.advance_clock(5000 * MS);
    // A millisecond passes with each round of waiting.
    for nth in 1..=100 {
        let clock = emu.clone();
        emu.at(0, Event::Relax, nth, move || clock.advance_clock(MS));
    }
    let heard = RefCell::new(Vec::new());
    let mut env = Env {
        on_wait: Some(Box::new(|waiting| {
            assert_eq!((waiting.folios, waiting.refs, waiting.pins), (7, 7, 7));
            let named: Vec<_> = waiting.some.iter().map(|folio| folio.head).collect();
            assert_eq!(named, [0, 1, 2, 3].map(|nr| Pfn::new(START + nr)));
            heard.borrow_mut().push(waiting.ns / MS);
            if waiting.ns >= 80 * MS {
                unpin(&mm, &runs.borrow_mut().take().unwrap());
            }
        })),
        ..Env::default()
    };
    let report = emu.on_cpu(0, || remove(&mm, attached.target(), Method::Ranged, &mut env));
    drop(env);
    assert_eq!(*heard.borrow(), [0, 10, 20, 40, 80]);
    assert_eq!((report.drained.ns / MS, report.drained.rounds), (80, 80));
    assert_eq!(fact(&report, Step::Drain, "wait_ns"), report.drained.ns);
}

/// Pins of another device are not waited for, and not named.
/// covers: R5
#[test]
fn the_pins_of_another_device_are_not_in_the_report() {
    let (emu, mm) = machine(2);
    let attached = attach_one(&mm, 1024);
    let task = Loaded::new(&mm, 1, &attached.file(OpenOptions::exactly(PageSize::Size4K)), 512);
    let other = emu::Frames::new(&mm, Pfn::new(3 * START), 512);
    let elsewhere = space(&mm, "elsewhere");
    elsewhere.map(page(0), 8 * PAGE_SIZE, mm::entry::Prot::USER_WRITE, &other.ops(), 0).unwrap();
    mm.pins.switch(true);
    let theirs = PinnedPages::pin(&elsewhere, page(1), 4, GupFlags::WRITE).unwrap();
    let ours = RefCell::new(Some(PinnedPages::pin(task.space(), page(2), 2, GupFlags::WRITE).unwrap()));
    let mut env = Env { on_wait: Some(Box::new(|_| drop(ours.borrow_mut().take()))), ..Env::default() };
    let report = emu.on_cpu(0, || remove(&mm, attached.target(), Method::Ranged, &mut env));
    drop(env);
    let named: Vec<_> = report.drained.pins.iter().map(|pin| (pin.owner.as_str(), pin.nr_pages)).collect();
    assert_eq!(named, [("task1", 2)]);
    drop((theirs, task, elsewhere));
}

/// A copy takes memory for each list and each name, and is not made in part.
/// covers: R5
#[test]
fn a_report_is_copied_as_a_whole_or_not_at_all() {
    let (emu, mm) = machine(3);
    let attached = attach_one(&mm, 1024);
    let tasks = tasks(&mm, &attached, 3);
    let mut env = Env { fail: vec!["release"], ..Env::default() };
    env.tasks = tasks.iter().map(|task| (task.space().id(), 7, "somebody")).collect();
    let account = mm.pins.open_account("task", 16);
    let owner: Arc<dyn RegionOwner> = Arc::new(|_: &Notice| ());
    let terms = Terms { flags: GupFlags::WRITE, grace_ns: 0, account: &account };
    let register = || MemoryRegion::register(tasks[0].space(), page(1), 2, &terms, Arc::downgrade(&owner));
    let region = emu.on_cpu(1, register).unwrap();
    let report = emu.on_cpu(0, || remove(&mm, attached.target(), Method::Ranged, &mut env));
    assert_eq!((report.users.len(), report.tasks.len(), report.problems().count()), (2, 2, 1));
    assert_eq!(report.registrations.len(), 1);
    // The lists of holders, folios, pins, steps, users, tasks and registrations; the facts of each step; the names of the
    // device and of two tasks, and a problem; last, the owner of a registration. (Users share their spaces' names.)
    let needed = 7 + Step::ALL.len() as u64 + 3 + 1 + 1;
    for growths in 0..needed + 2 {
        emu.limit_growth(growths);
        let copy = report.try_clone(&emu);
        emu.limit_growth(u64::MAX);
        assert_eq!(copy.is_some(), growths >= needed, "{growths} growths");
        assert!(copy.is_none_or(|copy| copy == report));
    }
    drop((region, tasks));
}
