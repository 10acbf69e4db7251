//! Removal: its order, what it finds, what it costs, and what is left afterwards.
#![cfg(not(loom))]

mod common;

use std::cell::RefCell;
use std::sync::{Arc, Mutex, Weak};

use common::*;
use dax::devdax::OpenOptions;
use dax::device::{DaxDevice, State};
use dax::holder::{Holder, NotifyError, NotifyFlags, Role};
use dax::kill::Phase;
use dax::removal::{Cause, Method, RemovalReport, Step, StepRecord, Target, remove};
use mm::addr::{PAGE_SIZE, PageSize, Pfn, PfnRange};
use mm::entry::Prot;
use mm::gup::GupFlags;
use mm::ledger::Kind;
use mm::machine::Point;
use mm::pagemap::{DevPagemap, MemoryKind};
use mm::pins::PinnedPages;
use mm::space::{Access, FaultError, MapError, SigBusCause};
use testkit::emu::{EmuMachine, Event};

/// The kinds that a device leaves at zero; address spaces and what they map live on.
const DEVICE_KINDS: [Kind; 7] =
    [Kind::MetadataBytes, Kind::Folios, Kind::References, Kind::Pins, Kind::PageMaps, Kind::DaxDevices, Kind::Holders];

fn assert_no_device_left(mm: &EmuContext) {
    let ledger = mm.ledger_snapshot();
    for kind in DEVICE_KINDS {
        assert_eq!(ledger.count(kind), 0, "{kind} left behind");
    }
}

fn fact(report: &RemovalReport, step: Step, name: &str) -> u64 {
    report.step(step).unwrap().facts.get(name).unwrap_or_else(|| panic!("{step} does not say {name}"))
}

/// covers: R1 R2 R5 R7 R10
#[test]
fn the_steps_come_in_order_and_the_report_says_what_they_found() {
    let (emu, mm) = machine(3);
    let before = mm.ledger_snapshot();
    let attached = attach_one(&mm, 2 * GIB);
    let device = attached.live.device().clone();
    let file = attached.file(OpenOptions::exactly(PageSize::Size2M));
    let tasks = [1, 2].map(|cpu| Loaded::new(&mm, cpu, &file, 1024));
    for task in &tasks {
        task.store(page(3), 7).unwrap();
        task.store(page(600), 8).unwrap();
    }
    drop(file);
    let mut env = Env::default();
    emu.on_cpu(0, || {
        let report = remove(&mm, attached.target(), Method::Ranged, &mut env);
        let expected: Vec<_> = Step::ALL.iter().map(|step| step.name()).collect();
        let steps: Vec<_> = report.steps.iter().map(|record| record.step.name()).collect();
        assert_eq!(steps, expected);
        assert_eq!(report.problems().count(), 0);
        assert!(!report.idle);
        assert_eq!((report.users.len(), report.nr_spaces()), (2, 2));
        assert_eq!(fact(&report, Step::StopIo, "requests_waited_for"), 3);
        assert_eq!(fact(&report, Step::Invalidate, "extents"), 2);
        assert_eq!((report.cost.zap.leaves, report.cost.zap.nr_pages), (4, 4 * 512));
        // One round for both address spaces, and one interrupt for each CPU that had one loaded.
        assert_eq!((fact(&report, Step::Shootdown, "rounds"), fact(&report, Step::Shootdown, "ipis")), (1, 2));
        assert_eq!((emu.stats().ipi_broadcasts, emu.stats().ipis_sent), (1, 2));
        assert_eq!(report.drained.rounds, 0);
        let text = report.to_string();
        let of = Step::ALL.len();
        assert!(text.contains(&format!("2/{of} kill_dax: holders told")), "{text}");
        assert!(text.contains("mapped by task1 (space "), "{text}");
        let fields = report.steps[1].fields().to_string();
        assert!(fields.starts_with(&format!("step=kill_dax n=2 of={of} ns=")), "{fields}");
    });
    // What is called in which step.
    let called = |step| match step {
        Step::StopIo => vec!["stop_io"],
        Step::Drain => vec!["lost"; 2],
        Step::UnmapDirectMap => vec!["unmap_direct_map"],
        Step::Release => vec!["release"],
        _ => vec![],
    };
    let expected = Step::ALL.into_iter().flat_map(|step| {
        let called = called(step).into_iter().map(String::from);
        called.chain([format!("{step}: done")])
    });
    assert_eq!(env.log, expected.collect::<Vec<_>>());
    assert_no_device_left(&mm);
    emu.assert_no_stale();
    // The tasks learn of it when they touch the range, and only then.
    let lost = FaultError::SigBus { addr: page(3), len_bytes: PAGE_SIZE, cause: SigBusCause::DeviceGone };
    assert_eq!(tasks[0].fetch(page(3)), Err(lost));
    assert_eq!(tasks[1].store(page(3), 1), Err(lost));
    assert_eq!(device.state(), State::Dead);
    // When they are gone nothing at all is left.
    drop((tasks, device));
    let after = mm.ledger_snapshot();
    assert_eq!(after.diff(&before).collect::<Vec<_>>(), []);
    // The same device can be attached again, and works.
    let again = attach_one(&mm, 2 * GIB);
    let task = Loaded::new(&mm, 0, &again.file(OpenOptions::default()), 1);
    assert_eq!(task.fetch(page(0)), Ok(emu.stamp(Pfn::new(START))));
}

/// covers: R6
#[test]
fn an_idle_device_is_removed_without_failure_work() {
    let (emu, mm) = machine(2);
    let attached = attach_one(&mm, GIB);
    let mut env = Env::default();
    let report = emu.on_cpu(0, || remove(&mm, attached.target(), Method::Ranged, &mut env));
    assert!(report.idle);
    assert_eq!(report.steps.len(), Step::ALL.len());
    assert_eq!(report.cost.zap, Default::default());
    assert_eq!(emu.stats().ipis_sent, 0);
    assert!(report.to_string().starts_with("removal of dax0.0 (idle)"));
    assert_no_device_left(&mm);
}

/// covers: R11
#[test]
fn without_a_dax_device_the_path_is_the_same() {
    let (emu, mm) = machine(1);
    let map = DevPagemap::new(MemoryKind::FsDax, [frames(START, 512)]).unwrap();
    mm.meta.register(&map).unwrap();
    let target = Target::<EmuMachine> { name: "pmem0".into(), map, dax: None, mappings: vec![] };
    let report = emu.on_cpu(0, || remove(&mm, target, Method::Ranged, &mut Env::default()));
    assert!(report.idle && report.kill.is_none());
    assert_eq!(report.steps.len(), Step::ALL.len());
    assert_eq!(report.problems().count(), 0);
    assert_no_device_left(&mm);
}

/// covers: R5
#[test]
fn what_a_step_cannot_do_is_recorded_and_the_rest_is_done() {
    for (name, step) in
        [("stop_io", Step::StopIo), ("unmap_direct_map", Step::UnmapDirectMap), ("release", Step::Release)]
    {
        let (emu, mm) = machine(2);
        let attached = attach_one(&mm, 1024);
        let task = Loaded::new(&mm, 1, &attached.file(OpenOptions::default()), 1024);
        task.store(page(0), 1).unwrap();
        let mut env = Env { fail: vec![name], ..Env::default() };
        let report = emu.on_cpu(0, || remove(&mm, attached.target(), Method::Ranged, &mut env));
        let problems: Vec<_> = report.problems().map(|(step, problem)| (step, problem.to_string())).collect();
        assert_eq!(problems, [(step, format!("injected into {name}"))]);
        assert!(report.step(step).unwrap().fields().to_string().ends_with(&format!("problem=injected-into-{name}")));
        assert_eq!(report.steps.len(), Step::ALL.len());
        assert_no_device_left(&mm);
    }
}

/// Pages 4 to 6, pinned by a task on CPU 0. The owner goes; its pins stay.
fn pins_of_a_task_that_is_gone(mm: &Arc<EmuContext>, attached: &Attached) -> Vec<PfnRange> {
    let task = Loaded::new(mm, 0, &attached.file(OpenOptions::exactly(PageSize::Size4K)), 512);
    task.pin(page(4), 3, GupFlags::WRITE).unwrap()
}

/// covers: R1 R5
#[test]
fn waits_for_pins_before_the_metadata_goes() {
    let (emu, mm) = machine(2);
    let attached = attach_one(&mm, 1024);
    let runs = pins_of_a_task_that_is_gone(&mm, &attached);
    let notices = RefCell::new(Vec::new());
    let held = RefCell::new(Some(runs));
    let mut env = Env {
        on_wait: Some(Box::new(|waiting| {
            assert_eq!((waiting.folios, waiting.refs, waiting.pins), (3, 3, 3));
            assert_eq!(waiting.some[0].head, Pfn::new(START + 4));
            assert!(mm.meta.inspect(Pfn::new(START + 4)).is_some());
            notices.borrow_mut().push(waiting.ns);
            if notices.borrow().len() == 1 {
                emu.advance_clock(15_000_000);
            } else {
                unpin(&mm, &held.borrow_mut().take().unwrap());
            }
        })),
        ..Env::default()
    };
    let report = emu.on_cpu(0, || remove(&mm, attached.target(), Method::Ranged, &mut env));
    assert_eq!(report.problems().count(), 0, "{report}");
    assert_eq!((report.drained.found.folios, report.drained.found.pins), (3, 3));
    assert!(report.drained.rounds > 0 && report.drained.ns >= 15_000_000);
    assert_eq!(env.log.iter().filter(|line| *line == "waiting").count(), 2);
    drop(env);
    assert_eq!(notices.borrow()[0], 0);
    assert_no_device_left(&mm);
}

/// Whoever hears that his pins are waited for gives them back there and then: no round of waiting is needed, and the report
/// speaks of them all the same.
/// covers: R5
#[test]
fn pins_that_are_given_back_at_the_first_word_are_in_the_report() {
    let (emu, mm) = machine(1);
    let attached = attach_one(&mm, 512);
    let runs = pins_of_a_task_that_is_gone(&mm, &attached);
    let held = RefCell::new(Some(runs));
    let mut env = Env { on_wait: Some(Box::new(|_| unpin(&mm, &held.borrow_mut().take().unwrap()))), ..Env::default() };
    let report = emu.on_cpu(0, || remove(&mm, attached.target(), Method::Ranged, &mut env));
    assert_eq!((report.problems().count(), report.drained.rounds), (0, 0), "{report}");
    assert!(format!("{report}").contains("3 of them pins"), "{report}");
    drop(env);
    assert_no_device_left(&mm);
}

/// covers: N1 R9 R10
#[test]
fn holders_are_told_before_the_device_dies_and_their_answers_are_kept() {
    struct Cache(Weak<DaxDevice>);
    impl Holder for Cache {
        fn name(&self) -> &str {
            "writecache"
        }
        fn notify_failure(&self, _: u64, _: u64, flags: NotifyFlags) -> Result<(), NotifyError> {
            let device = self.0.upgrade().unwrap();
            assert!(device.read_lock().unwrap().direct_access(0, 4096).is_ok());
            assert_eq!(flags, NotifyFlags::PRE_REMOVE);
            Err(NotifyError::Io)
        }
    }
    let (emu, mm) = machine(1);
    let attached = attach_one(&mm, 512);
    let device = attached.live.device().clone();
    let holder = Arc::new(Cache(Arc::downgrade(&device)));
    let registration = device.register_holder(Role::Observer, holder).unwrap();
    let report = emu.on_cpu(0, || remove(&mm, attached.target(), Method::Ranged, &mut Env::default()));
    assert_eq!(fact(&report, Step::KillDax, "holders_told"), 1);
    assert_eq!(fact(&report, Step::KillDax, "holders_failed"), 1);
    assert!(report.to_string().contains("holder writecache: I/O error"), "{report}");
    assert_no_device_left(&mm);
    drop(registration);
    assert_no_device_left(&mm);
}

/// covers: S1 N1
#[test]
fn the_holders_of_a_device_that_has_gone_hear_that_it_has() {
    struct Cache(Mutex<Vec<NotifyFlags>>);
    impl Holder for Cache {
        fn name(&self) -> &str {
            "writecache"
        }
        fn notify_failure(&self, _: u64, _: u64, flags: NotifyFlags) -> Result<(), NotifyError> {
            self.0.lock().unwrap().push(flags);
            Ok(())
        }
    }
    for (cause, flags) in [
        (Cause::Asked, NotifyFlags::PRE_REMOVE),
        (Cause::Announced, NotifyFlags::PRE_REMOVE),
        (Cause::Gone, NotifyFlags::GONE),
    ] {
        let (emu, mm) = machine(1);
        let attached = attach_one(&mm, 512);
        let holder = Arc::new(Cache(Mutex::default()));
        let registration = attached.live.device().register_holder(Role::Observer, holder.clone()).unwrap();
        let mut env = Env { cause, ..Env::default() };
        let report = emu.on_cpu(0, || remove(&mm, attached.target(), Method::Ranged, &mut env));
        assert_eq!((report.cause, &holder.0.lock().unwrap()[..]), (cause, &[flags][..]));
        drop(registration);
        assert_no_device_left(&mm);
    }
}

/// Starts a removal on CPU 0 when CPU 1 comes to `event`, and holds that it gets no further than to wait for CPU 1.
/// `work` is what CPU 1 does.
fn removed_meanwhile(
    (emu, mm): (&EmuMachine, &Arc<EmuContext>),
    attached: Attached,
    event: Event,
    work: impl FnOnce(),
) -> RemovalReport {
    let device = attached.live.device().clone();
    let steps = Arc::new(Mutex::new(Vec::new()));
    let removal = Arc::new(Mutex::new(None));
    emu.at(1, event, 1, {
        let (emu, mm, removal) = (emu.clone(), mm.clone(), removal.clone());
        move || {
            let done = steps.clone();
            let background = emu.start(0, move || {
                let on_step = Box::new(|record: &StepRecord| done.lock().unwrap().push(record.step));
                let mut env = Env { on_step: Some(on_step), ..Env::default() };
                remove(&mm, attached.target(), Method::Ranged, &mut env)
            });
            assert_eq!(device.state(), State::Dead);
            assert_eq!(*steps.lock().unwrap(), [Step::StopIo], "went on although the device was in use");
            *removal.lock().unwrap() = Some(background);
        }
    });
    emu.on_cpu(1, work);
    emu.assert_hooks_ran();
    let background = removal.lock().unwrap().take().unwrap();
    let report = emu.on_cpu(1, || emu.finish(background));
    assert_eq!(fact(&report, Step::KillDax, "readers_waited_for"), 1);
    report
}

/// covers: N1 R12 G4
#[test]
fn a_fault_in_flight_is_waited_for_and_what_it_installs_is_found() {
    let (emu, mm) = machine(3);
    let attached = attach_one(&mm, 1024);
    let task = Loaded::new(&mm, 1, &attached.file(OpenOptions::exactly(PageSize::Size4K)), 1024);
    // In the middle of the fault, as it makes a page table, another CPU removes the device. The fault was there first:
    // it is served. The removal then finds its leaf.
    let report = removed_meanwhile((&emu, &mm), attached, Event::AllocTable, || {
        task.space().handle_fault(page(5), Access::Write).unwrap();
    });
    assert_eq!(report.cost.zap.leaves, 1);
    assert!(task.store(page(5), 1).is_err());
    emu.assert_no_stale();
    assert_no_device_left(&mm);
}

/// covers: R1 R7 R12
#[test]
fn a_mapping_that_is_being_made_is_waited_for_and_found() {
    let (emu, mm) = machine(3);
    let attached = attach_one(&mm, 1024);
    let file = attached.file(OpenOptions::exactly(PageSize::Size4K));
    let space = space(&mm, "task1");
    let report = removed_meanwhile((&emu, &mm), attached, Event::At(Point::MapAdmitted), || {
        map(&space, &file, 16).unwrap();
    });
    let users: Vec<_> = report.users.iter().map(|user| (&*user.name, user.range.nr_pages())).collect();
    assert_eq!(users, [("task1", 16)], "who was let in before the device died hears of its death");
    let gone = FaultError::SigBus { addr: page(3), len_bytes: PAGE_SIZE, cause: SigBusCause::DeviceGone };
    assert_eq!(space.handle_fault(page(3), Access::Read), Err(gone));
    let late = space.map(page(64), PAGE_SIZE, Prot::USER_WRITE, &file, 0);
    assert_eq!(late, Err(MapError::Refused(SigBusCause::DeviceGone)));
    drop((file, space));
    assert_no_device_left(&mm);
}

/// covers: R2 R3
#[test]
fn by_range_the_work_follows_the_extents_and_by_frame_the_frames() {
    const MAPPED: u64 = 1024;
    let run = |method| {
        let (emu, mm) = machine(4);
        let attached = attach_one(&mm, GIB);
        let file = attached.file(OpenOptions::exactly(PageSize::Size4K));
        let tasks = [1, 2, 3].map(|cpu| Loaded::new(&mm, cpu, &file, MAPPED));
        for task in &tasks {
            (0..MAPPED).for_each(|nr| task.store(page(nr), nr).unwrap());
        }
        drop(file);
        emu.reset_stats();
        let report = emu.on_cpu(0, || remove(&mm, attached.target(), method, &mut Env::default()));
        assert_eq!(report.problems().count(), 0);
        assert_no_device_left(&mm);
        emu.assert_no_stale();
        (report, emu.stats())
    };
    let (ranged, stats) = run(Method::Ranged);
    assert_eq!((ranged.cost.zap.rounds, ranged.cost.zap.ipis), (1, 3));
    assert_eq!(stats.ipis_sent, 3);
    assert_eq!(ranged.cost.zap.leaves, 3 * MAPPED);
    // Half of the frames that are mapped, and as many that nobody maps.
    let (frame, stats) = run(Method::PerFrame(frames(START + MAPPED / 2, MAPPED)));
    assert_eq!((frame.cost.zap.rounds, frame.cost.zap.ipis), (MAPPED / 2, 3 * MAPPED / 2));
    assert_eq!(frame.cost.zap.leaves + frame.rest.zap.leaves, 3 * MAPPED);
    assert_eq!((frame.rest.zap.rounds, frame.rest.zap.ipis), (1, 3));
    assert_eq!(stats.ipis_sent, 3 * MAPPED / 2 + 3);
    assert_eq!(fact(&frame, Step::Invalidate, "frames_failed"), MAPPED);
    let names: Vec<_> = frame.cost.rows().iter().map(|(name, _)| *name).collect();
    assert_eq!(names[4..6], ["rounds", "ipis"]);
}

/// covers: R4
#[test]
fn six_tebibytes_cost_no_more_than_one_gibibyte() {
    let run = |nr_pages| {
        let (emu, mm) = machine(2);
        let attached = attach(&mm, &[frames(1 << 28, nr_pages)], PageSize::Size4K).unwrap();
        let task = Loaded::new(&mm, 1, &attached.file(OpenOptions::default()), nr_pages);
        task.store(page(nr_pages - 1), 1).unwrap();
        let runs = task.pin(page(0), 8, GupFlags::WRITE).unwrap();
        let held = RefCell::new(Some(runs));
        let mut env =
            Env { on_wait: Some(Box::new(|_| unpin(&mm, &held.borrow_mut().take().unwrap()))), ..Env::default() };
        let report = emu.on_cpu(0, || remove(&mm, attached.target(), Method::Ranged, &mut env));
        assert_eq!(report.problems().count(), 0);
        assert_eq!(report.drained.found.pins, 8);
        drop(env);
        assert_no_device_left(&mm);
        report.cost.zap
    };
    let small = run(2 * GIB);
    let large = run(6 << 28);
    assert_eq!((large.leaves, large.rounds, large.ipis), (small.leaves, small.rounds, small.ipis));
    // The same two leaves, a few more tables between them.
    assert!(large.entries_visited <= small.entries_visited + 16 * 512, "{large:?} against {small:?}");
}

struct Deaf(&'static str);

impl Holder for Deaf {
    fn name(&self) -> &str {
        self.0
    }
}

/// covers: R1 R5 R9 N1
#[test]
fn the_kill_is_heard_of_phase_by_phase_and_what_holders_answer_while_the_device_lives() {
    let (_, mm) = machine(1);
    let attached = attach_one(&mm, 16);
    let device = attached.live.device().clone();
    let _deaf = device.register_holder(Role::Owner, Arc::new(Deaf("deaf"))).unwrap();
    let mut env = Env::default();
    let report = remove(&mm, attached.target(), Method::Ranged, &mut env);
    let answers = vec!["deaf: not supported".to_string()];
    let expected = [
        (Phase::Dying, Vec::new()),
        (Phase::Told, answers.clone()),
        (Phase::Dead, answers.clone()),
        (Phase::ReadersGone, answers.clone()),
        (Phase::HoldersCleared, answers),
    ];
    assert_eq!(env.phases, expected);
    assert!(report.to_string().contains("  holder deaf: not supported"), "{report}");
}

/// covers: R5
#[test]
fn the_report_names_tasks_and_pins_with_owner_place_and_age() {
    let (_, mm) = machine(2);
    mm.pins.switch(true);
    let attached = attach_one(&mm, 1024);
    let file = attached.file(OpenOptions::exactly(PageSize::Size4K));
    let tasks = [0, 1].map(|cpu| Loaded::new(&mm, cpu, &file, 16));
    drop(file);
    let ids = [tasks[0].space().id(), tasks[1].space().id()];
    let pins = RefCell::new(Some(PinnedPages::pin(tasks[1].space(), page(4), 3, GupFlags::WRITE).unwrap()));
    let place = line!() - 1;
    let mut env = Env {
        tasks: vec![(ids[1], 7, "reader"), (ids[0], 8, "writer"), (ids[1] + 100, 9, "stranger")],
        on_wait: Some(Box::new(|_| drop(pins.borrow_mut().take()))),
        ..Env::default()
    };
    let report = remove(&mm, attached.target(), Method::Ranged, &mut env);
    let named: Vec<_> = report.tasks.iter().map(|task| (task.space_id, task.id, task.name.as_str())).collect();
    assert_eq!((report.nr_tasks, named), (2, vec![(ids[1], 7, "reader"), (ids[0], 8, "writer")]));
    assert_eq!(fact(&report, Step::Invalidate, "tasks"), 2);
    let [pin] = report.drained.pins.as_slice() else { panic!("{report}") };
    assert_eq!((pin.owner.as_str(), pin.nr_pages, pin.place.line()), (tasks[1].space().name(), 3, place));
    assert!(pin.place.file().ends_with("removal.rs"));
    let text = report.to_string();
    for words in ["used by reader (task 7, space ", "waited for 3 pages of ", "1 shootdowns, ", " IPIs"] {
        assert!(text.contains(words), "{words:?} in {text}");
    }
}

/// A copy is the whole report or nothing, wherever memory runs out.
#[test]
fn a_report_is_copied_whole_or_not_at_all() {
    let (emu, mm) = machine(2);
    let attached = attach_one(&mm, 1024);
    let task = Loaded::new(&mm, 1, &attached.file(OpenOptions::default()), 1024);
    task.store(page(0), 1).unwrap();
    let mut env = Env { fail: vec!["stop_io"], ..Env::default() };
    let report = emu.on_cpu(0, || remove(&mm, attached.target(), Method::Ranged, &mut env));
    assert_eq!((report.users.len(), report.problems().count()), (1, 1));
    let enough = (0..100).find(|room| {
        emu.limit_growth(*room);
        let copy = report.try_clone(&emu);
        assert!(copy.is_none() || copy.as_ref() == Some(&report), "with room for {room}");
        copy.is_some()
    });
    // One for each list and each name; less than that is not enough.
    assert!(enough.is_some_and(|room| room > 10), "{enough:?}");
    emu.limit_growth(u64::MAX);
    assert_eq!(report.try_clone(&emu), Some(report));
}
