//! Memory that leaves without a word, at every access in turn: from then on nothing answers success, and when it is put back,
//! everything that was acknowledged is there.

mod common;
mod rig;

use std::sync::Arc;

use common::{Model, Op, Thing, apply, difference, new_fs, random_op, read_all};
use fs::check::check;
use fs::error::{FsError, ShutdownReason};
use fs::format::BLOCK_SIZE;
use fs::freeze::FreezeHolder;
use fs::mount::{MakeOptions, MountOptions, make, mount};
use fs::mounted::Mounted;
use fs::pmem::Pmem;
use fs::presence::Leaving;
use fs::superblock::repair;
use mm::addr::PAGE_SIZE;
use mm::machine::Point;
use mm::space::{Access, SigBusCause};
use rig::{Device, START, Task, assert_no_leak, cx, page};
use testkit::emu::Event;
use testkit::removal::NoDriver;
use testkit::sim::{Leaves, Limits, Random, Recorder, SimPmem};

const NEVER: u64 = u64::MAX;

/// The memory, and as the file system sees it.
fn leaving(sim: &Arc<SimPmem>, access: u64) -> (Arc<Leaves>, Arc<dyn Pmem>) {
    let leaves = Leaves::before(sim, access);
    (leaves.clone(), Leaving::new(leaves.clone(), leaves))
}

/// A medium with some files, not unmounted: a mount replays its journal.
fn used(seed: u64) -> (Vec<u8>, Model) {
    let sim = new_fs(288);
    let (mut volume, mut model, mut random) = (common::mounted(&sim), Model::default(), Random::new(seed));
    for _ in 0..25 {
        let op = random_op(&mut random, 12 * BLOCK_SIZE);
        if apply(&mut volume, &op).is_ok() {
            model.apply(&op).unwrap();
        }
    }
    drop(volume);
    (sim.bytes(), model)
}

/// What a medium holds, by a mount of a copy.
fn holds(bytes: Vec<u8>) -> Result<Model, FsError> {
    let sim: Arc<dyn Pmem> = Arc::new(SimPmem::from_bytes(bytes));
    read_all(&mut mount(&sim, &MountOptions::default())?)
}

/// What the file of this path is on a medium.
fn file_of(medium: Vec<u8>, path: &[u8]) -> Vec<u8> {
    let model = holds(medium).expect("it can be mounted");
    match model.paths.get(path) {
        Some(Thing::File(nr)) => model.files[nr].clone(),
        other => panic!("{}: {other:?}", path.escape_ascii()),
    }
}

/// Bytes that an operation overwrites in place are old or new; `None`: all as it should be.
fn either(got: &Model, old: &Model, new: &Model, op: &Op) -> Option<String> {
    let in_place =
        |path: &[u8], _: usize, _: u8| matches!(op, Op::Write(..) | Op::Punch(..)) && old.paths.contains_key(path);
    difference(got, old, &in_place).and_then(|_| difference(got, new, &in_place))
}

/// How many of these were seen.
#[derive(Default)]
struct Seen {
    mounts: u64,
    ops: u64,
    reads: u64,
    ends: u64,
}

/// One life of a mount on memory that leaves at `access`: answers whether it left.
fn live(bytes: &[u8], before: &Model, seed: u64, access: u64, seen: &mut Seen) -> bool {
    let sim = Arc::new(SimPmem::from_bytes(bytes.to_vec()));
    let (leaves, pmem) = leaving(&sim, access);
    let here = |what: &str, result: Result<(), FsError>| {
        match (result, leaves.was_here()) {
            (Ok(()), false) => panic!("access {access}: {what} is a success, and nothing is there"),
            // Whatever it reads is no reason to believe that anything is damaged.
            (Err(error), false) => assert!(
                matches!(error, FsError::DeviceGone | FsError::ShutDown(ShutdownReason::DeviceGone)),
                "access {access}: {what}: {error}"
            ),
            (Err(error), true) => assert_eq!(error, FsError::NoSpace, "access {access}: {what}"),
            (Ok(()), true) => {}
        }
    };
    let (mut model, mut next, mut last) = (before.clone(), before.clone(), Op::Create(Vec::new()));
    let mounted = mount(&pmem, &MountOptions::default());
    here("the mount", mounted.as_ref().map(drop).map_err(|error| *error));
    if let Ok(mut volume) = mounted {
        seen.mounts += 1;
        let mut random = Random::new(seed);
        for _ in 0..8 {
            loop {
                last = random_op(&mut random, 4 * BLOCK_SIZE);
                next = model.clone();
                if next.apply(&last).is_ok() {
                    break;
                }
            }
            let done = apply(&mut volume, &last);
            // A write tells how much of it is durable: not all of it is no success.
            let done =
                if done == Err(FsError::NoSpace) && !leaves.was_here() { Err(FsError::DeviceGone) } else { done };
            here("an operation", done);
            if done.is_err() {
                break;
            }
            model = next.clone();
            seen.ops += 1;
            // What is read is what was written, or an error.
            match read_all(&mut volume) {
                Ok(got) => assert_eq!(difference(&got, &model, &|_, _, _| false), None, "access {access}"),
                Err(error) => {
                    here("a read", Err(error));
                    break;
                }
            }
            seen.reads += 1;
        }
        if leaves.was_here() {
            let ended = volume.unmount();
            here("the unmount", ended);
            seen.ends += 1;
        }
    }
    let got = holds(sim.bytes()).unwrap_or_else(|error| panic!("access {access}: put back: {error}"));
    assert_eq!(either(&got, &model, &next, &last), None, "access {access}");
    let image: Arc<dyn Pmem> = Arc::new(SimPmem::from_bytes(sim.bytes()));
    assert!(check(&image, None).is_clean(), "access {access}");
    !leaves.was_here()
}

// covers: S2 S3
#[test]
fn wherever_the_memory_leaves_nothing_answers_success_and_what_was_acknowledged_is_there() {
    let full = std::env::var_os("UNPLUG_FULL").is_some();
    let mut seen = Seen::default();
    for seed in 1..=if full { 40 } else { 4 } {
        let (bytes, model) = used(seed);
        let (mut access, mut random) = (0, Random::new(seed));
        // Every access of the mount, and then one of some.
        while live(&bytes, &model, seed, access, &mut seen) {
            access += if access < 150 || full { 1 } else { 1 + random.below(4) };
        }
        assert!(access > 100, "seed {seed}: it was over after {access} accesses");
    }
    let Seen { mounts, ops, reads, ends } = seen;
    println!("{mounts} mounts, {ops} operations, {reads} reads and {ends} unmounts on memory that left");
    assert!(mounts > 100 && ops > 200 && reads > 100, "{mounts} {ops} {reads}");
}

// covers: S2
#[test]
fn a_check_a_repair_and_a_making_of_nothing_are_no_success() {
    let (bytes, _) = used(9);
    let ended = |name: &str, what: &dyn Fn(&Arc<dyn Pmem>) -> bool| {
        for access in 0.. {
            let (leaves, pmem) = leaving(&Arc::new(SimPmem::from_bytes(bytes.clone())), access);
            let success = what(&pmem);
            if leaves.was_here() {
                assert!(success);
                return access;
            }
            assert!(!success, "{name}, access {access}");
        }
        0
    };
    assert!(ended("check", &|pmem| check(pmem, None).is_clean()) > 50);
    assert!(ended("repair", &|pmem| repair(&**pmem) == Ok(None)) > 2);
    assert!(ended("make", &|pmem| make(pmem, &MakeOptions::default()).is_ok()) > 50);
}

/// A mounted file system over memory that leaves when it is told to.
fn mounted(device: &Device) -> (Arc<Leaves>, Arc<rig::Fs>) {
    let (leaves, pmem) = leaving(&device.sim, NEVER);
    let source = fs::mounted::Source { pmem, ..device.source() };
    (leaves, Mounted::mount(&device.mm, source).unwrap())
}

/// Of a file of ones with one store in its third page: whatever of the cache a departure leaves behind, the medium has every
/// byte that was acknowledged, and of that store all or nothing, unless it was `synced`.
fn durable(sim: &Arc<SimPmem>, mut recorder: Recorder, synced: bool) {
    if synced {
        sim.mark(1);
    }
    let (mut seen, at) = (0, 2 * PAGE_SIZE as usize);
    let limits = Limits { per_point: 16, torn: 0, seed: 1 };
    recorder.crash_images(sim, limits, &mut |image, mark| {
        let got = file_of(image.to_vec(), b"a");
        let stored = got[at..at + 8] == 7_u64.to_le_bytes();
        assert!(stored || mark == 0 && got[at..at + 8] == [1; 8], "{:?}", &got[at..at + 8]);
        assert_eq!(got.len() as u64, 4 * PAGE_SIZE);
        assert!(got[..at].iter().chain(&got[at + 8..]).all(|byte| *byte == 1), "beside what was stored");
        seen += mark;
        true
    });
    assert_eq!(seen != 0, synced, "images after what was acknowledged");
}

// covers: S2 S3
#[test]
fn wherever_the_memory_leaves_an_fsync_answers_success_for_what_is_there() {
    let (emu, mm) = rig::rig(2);
    emu.clone().on_cpu(0, || {
        let mut left = 0;
        for access in 0..40 {
            let device = Device::new(&mm, "dimm0", START, 1024);
            let (leaves, fs) = mounted(&device);
            let file = fs.create(&cx(), "a", true).unwrap();
            fs.write(&cx(), &file, 0, &vec![1; (4 * PAGE_SIZE) as usize]).unwrap();
            let task = Task::with(&mm, 1, &file, 4);
            let recorder = device.sim.record();
            task.store(2, 7).unwrap();
            // The emulated machine has its own bytes: the medium gets the store as it leaves the CPU, in its cache.
            let pfn = task.space.translate(page(2)).expect("it is mapped").entry.pfn().as_u64();
            device.sim.store((pfn - START) * PAGE_SIZE, &7_u64.to_le_bytes()).unwrap();
            leaves.leave_before(access);
            let synced = fs.fsync(&cx(), &file);
            assert_eq!(synced.is_ok(), leaves.was_here(), "access {access}: {synced:?}");
            durable(&device.sim, recorder, synced.is_ok());
            assert!(synced.is_ok() || synced == Err(FsError::DeviceGone), "access {access}: {synced:?}");
            // The one after it does not find that there is nothing to do.
            if synced.is_err() {
                left += 1;
                assert_eq!(fs.fsync(&cx(), &file), Err(FsError::DeviceGone));
            }
            drop((task, file));
            fs.shut_down(ShutdownReason::DeviceGone);
            fs.unmount(&cx()).unwrap();
            device.remove();
        }
        assert!((3..40).contains(&left), "it left {left} times");
    });
}

// covers: S1 S2
#[test]
fn a_device_that_has_gone_is_neither_read_nor_written_and_all_tasks_are_told() {
    let (emu, mm) = rig::rig(3);
    let before = mm.ledger_snapshot();
    emu.clone().on_cpu(0, || {
        let device = Device::new(&mm, "dimm0", START, 4096);
        let (leaves, fs) = mounted(&device);
        let (a, b) = (fs.create(&cx(), "a", true).unwrap(), fs.create(&cx(), "b", true).unwrap());
        for file in [&a, &b] {
            fs.write(&cx(), file, 0, &vec![1; (16 * PAGE_SIZE) as usize]).unwrap();
        }
        let tasks = [Task::with(&mm, 1, &a, 16), Task::with(&mm, 2, &b, 16)];
        tasks.iter().for_each(|task| (0..16).for_each(|nr| task.store(nr, nr).unwrap()));
        fs.freeze(FreezeHolder::User).unwrap();
        // A task that tries to come back in the middle of the walk hears why there is nothing.
        // And nothing is said before its mappings have gone.
        let (space, kernel) = (tasks[0].space.clone(), device.kernel.clone());
        let nr_lines = kernel.lines.lock().unwrap().len();
        emu.at(0, Event::At(Point::UsersListed), 2, move || {
            assert_eq!(kernel.lines.lock().unwrap()[nr_lines..], [""; 0], "lines while the device is mapped");
            assert!(space.handle_fault(page(3), Access::Write).is_err());
            assert!(space.translate(page(3)).is_none(), "a mapping was made during the walk");
        });
        leaves.leave_before(0);
        let (kernel, sim) = (device.kernel.clone(), device.sim.clone());
        let (bytes, stats) = (sim.bytes(), sim.stats());
        let Device { name, map, live, .. } = device;
        let target = dax::removal::Target { name, map, dax: Some(live), mappings: vec![] };
        let report = dax::removal::remove(&mm, target, dax::removal::Method::Ranged, &mut NoDriver(Gone));
        emu.assert_hooks_ran();
        assert_eq!((report.cause, report.problems().count()), (dax::removal::Cause::Gone, 0));
        assert!(report.kill.unwrap().answers.iter().all(|answer| answer.result == Ok(())));
        assert_eq!((sim.bytes() == bytes, sim.stats()), (true, stats), "it was written to");
        assert_eq!((fs.shutdown_reason(), fs.freeze_holders()), (Some(ShutdownReason::DeviceGone), (0, 0)));
        let said = kernel.lines.lock().unwrap()[nr_lines..].to_vec();
        assert_eq!(
            said[..2],
            ["fs dimm0: the device has gone", "fs dimm0: shut down: the device has gone"],
            "{said:?}"
        );
        let told = fs.last_notification().unwrap();
        assert_eq!((told.gone, told.pre_remove, told.frozen, told.poisoned), (true, false, false, 0));
        assert_eq!((told.mappings, told.told, told.leaves, told.errors.len()), (2, 2, 32, 0), "{:?}", told.errors);
        let lost: Vec<_> = kernel.lost.lock().unwrap().iter().map(|lost| (lost.0, lost.3)).collect();
        for task in &tasks {
            assert!(lost.contains(&(task.space.id(), SigBusCause::DeviceGone)));
            assert_eq!(task.cause(3), Some(SigBusCause::DeviceGone));
        }
        let down = FsError::ShutDown(ShutdownReason::DeviceGone);
        assert_eq!((fs.write(&cx(), &a, 0, b"x"), fs.fsync(&cx(), &a)), (Err(down), Err(down)));
        assert_eq!(fs.stat(&cx(), "a").err(), Some(down));
        drop((tasks, a, b));
        fs.reap(&cx());
        fs.unmount(&cx()).unwrap();
        // Put back it is mounted, and all that was acknowledged is there, byte for byte; what tasks have stored since
        // may be, each store for itself.
        for path in [&b"a"[..], b"b"] {
            let got = file_of(sim.bytes(), path);
            assert_eq!(got.len() as u64, 16 * PAGE_SIZE);
            for (nr, page) in (0_u64..).zip(got.chunks(PAGE_SIZE as usize)) {
                assert!(page[..8] == [1; 8] || page[..8] == nr.to_le_bytes(), "page {nr}: {:?}", &page[..8]);
                assert!(page[8..].iter().all(|byte| *byte == 1), "page {nr} behind what was stored");
            }
        }
        let again = Device::attach(&mm, "dimm0", START, sim);
        let fs = again.mount().unwrap();
        let file = fs.open(&cx(), "b").unwrap();
        assert_eq!(fs.stat(&cx(), "b").unwrap().size, 16 * PAGE_SIZE);
        drop(file);
        fs.reap(&cx());
        fs.unmount(&cx()).unwrap();
        again.remove();
    });
    emu.assert_no_stale();
    assert_no_leak(&mm, before);
}

/// Hears nothing, and says that the device has gone.
struct Gone;

impl dax::removal::RemovalWatch<testkit::emu::EmuMachine> for Gone {
    fn cause(&mut self) -> dax::removal::Cause {
        dax::removal::Cause::Gone
    }
}

/// A reason that stays says why, also where a change was under way.
#[test]
fn a_change_that_is_under_way_when_the_memory_leaves_shuts_down_with_that_reason() {
    let (emu, mm) = rig::rig(1);
    emu.clone().on_cpu(0, || {
        for access in 0..20 {
            let device = Device::new(&mm, "dimm0", START, 512);
            let (leaves, fs) = mounted(&device);
            let file = fs.create(&cx(), "a", true).unwrap();
            leaves.leave_before(access);
            let written = fs.write(&cx(), &file, 0, &[7; 5000]);
            assert!(leaves.was_here() || written.is_err(), "access {access}: {written:?}");
            assert!(
                matches!(fs.shutdown_reason(), None | Some(ShutdownReason::DeviceGone)),
                "{:?}",
                fs.shutdown_reason()
            );
            drop(file);
            fs.shut_down(ShutdownReason::DeviceGone);
            fs.unmount(&cx()).unwrap();
            device.remove();
        }
    });
}
