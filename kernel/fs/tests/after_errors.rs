//! What an operation that failed leaves behind: nothing that the next one, or a removal, trips over.

mod rig;

use std::sync::Arc;

use fs::error::{FsError, ShutdownReason};
use fs::format::INODE_SIZE;
use fs::freeze::FreezeHolder;
use fs::handle::Synced;
use fs::mount::{MountOptions, mount};
use fs::mounted::{Mounted, Source};
use fs::pmem::Pmem;
use mm::addr::PAGE_SIZE;
use mm::space::SigBusCause;
use rig::*;
use testkit::sim::SimPmem;

const PAGE: [u8; PAGE_SIZE as usize] = [1; PAGE_SIZE as usize];

/// A file system over a memory in which reads and fences can fail.
fn hooked(device: &Device) -> (Arc<Hooked>, Arc<Fs>) {
    let pmem = Hooked::new(&device.sim);
    let fs = Mounted::mount(&device.mm, Source { pmem: pmem.clone(), ..device.source() }).unwrap();
    (pmem, fs)
}

/// A task stores to a hole, and there is no block: its file is found by a removal all the same, and what it has stored before
/// is written back.
/// covers: N8 N11 N12
#[test]
fn a_file_whose_last_change_failed_is_found_by_a_removal() {
    for lost_again in [false, true] {
        let (emu, mm) = rig(1);
        emu.clone().on_cpu(0, || {
            let device = Device::new(&mm, "pmem0", START, 256);
            let (pmem, fs) = hooked(&device);
            let [sparse, filler] = ["sparse", "filler"].map(|name| fs.create(&cx(), name, true).unwrap());
            fs.truncate(&cx(), &sparse, 64 * PAGE_SIZE).unwrap();
            let task = Task::with(&mm, 0, &sparse, 64);
            task.store(1, 7).unwrap();
            let fill = |nr: u64| fs.write(&cx(), &filler, nr * PAGE_SIZE, &PAGE).err();
            assert_eq!((0..256).find_map(fill), Some(FsError::NoSpace));
            let hole = (2..64).find_map(|nr| task.store(nr, 1).err());
            assert!(hole.is_some(), "there is a block for each hole");
            if lost_again {
                // And its inode cannot be read again after another such change, which itself has met the full medium.
                let is_not_read_again = |reads| {
                    pmem.fail_read_after(Some(reads));
                    let cause = task.cause(2);
                    !pmem.fail_read_after(None) && cause == Some(SigBusCause::NoSpace)
                };
                assert!((0..100).any(is_not_read_again), "no read comes after the change");
            }
            let stored = device.sim.stats();
            let sim = device.sim.clone();
            assert_eq!(device.remove(), [""; 0]);
            let report = fs.last_notification().unwrap();
            assert_eq!((report.mappings > 0, report.told > 0, report.leaves > 0), (true, true, true), "{report}");
            assert_ne!(sim.stats(), stored, "nothing was written back");
            assert_eq!(task.cause(1), Some(SigBusCause::ShutDown));
            drop((task, sparse, filler));
            fs.reap(&cx());
            fs.unmount(&cx()).unwrap();
        });
        emu.assert_no_stale();
    }
}

/// A removal without memory for lists: everything is taken away and written back, some runs at a time.
/// covers: A6 N11 N12
#[test]
fn a_walk_needs_no_memory_that_grows_with_the_file() {
    const RUNS: u64 = 100;
    let (emu, mm) = rig(2);
    emu.clone().on_cpu(0, || {
        let device = Device::new(&mm, "pmem0", START, 1024);
        let fs = device.mount().unwrap();
        let file = fs.create(&cx(), "runs", true).unwrap();
        (0..RUNS).for_each(|run| fs.write_all(&cx(), &file, 2 * run * PAGE_SIZE, &PAGE).unwrap());
        let tasks = [0, 1].map(|cpu| Task::with(&mm, cpu, &file, 2 * RUNS));
        tasks.iter().for_each(|task| (0..RUNS).for_each(|run| task.store(2 * run, run).unwrap()));
        emu.limit_growth(0);
        assert_eq!(device.remove(), [""; 0]);
        emu.limit_growth(u64::MAX);
        let report = fs.last_notification().unwrap();
        assert_eq!((report.leaves, report.mappings, report.invalidated), (2 * RUNS, 2 * RUNS, RUNS), "{report}");
        assert!(report.errors.is_empty() && report.rounds > 1 && report.told > 0, "{report}");
        for task in &tasks {
            assert!((0..RUNS).all(|run| task.cause(2 * run) == Some(SigBusCause::ShutDown)));
        }
        drop((tasks, file));
        fs.reap(&cx());
        fs.unmount(&cx()).unwrap();
    });
    emu.assert_no_stale();
}

/// A file system was shut down while a task maps a file of it. Whatever comes after it on the device waits for the task: it
/// would store to other files.
/// covers: E1
#[test]
fn nothing_is_mounted_over_pages_that_tasks_still_map() {
    let (emu, mm) = rig(1);
    emu.clone().on_cpu(0, || {
        let device = Device::new(&mm, "pmem0", START, 1024);
        let (pmem, fs) = hooked(&device);
        let file = fs.create(&cx(), "a", true).unwrap();
        fs.write(&cx(), &file, 0, &PAGE).unwrap();
        let task = Task::with(&mm, 0, &file, 1);
        task.store(0, 7).unwrap();
        fs.unlink(&cx(), "a").unwrap();
        pmem.fail_next_fence(|| ());
        assert_eq!(fs.create(&cx(), "b", true).err(), Some(FsError::NotDurable));
        assert_eq!(fs.shutdown_reason(), Some(ShutdownReason::MetadataIo));
        fs.unmount(&cx()).unwrap();
        assert_eq!(device.mount().err(), Some(FsError::Busy));
        assert_eq!(device.mount().err(), Some(FsError::Busy), "the first has left something behind");
        drop((task, file));
        let again = device.mount().unwrap();
        again.create(&cx(), "c", true).map(drop).unwrap();
        again.reap(&cx());
        again.unmount(&cx()).unwrap();
    });
}

/// A truncation that failed after its first step has left blocks behind the end: nobody may map them, for the next change
/// gives them away.
/// covers: E1 E2
#[test]
fn nothing_behind_the_end_is_mapped_after_a_truncation_that_failed() {
    const SHORT: u64 = 100;
    let mut seen = 0;
    for reads in (0..).step_by(8) {
        let (emu, mm) = rig(1);
        let is_over = emu.clone().on_cpu(0, || {
            let device = Device::new(&mm, "pmem0", START, 3072);
            let (pmem, fs) = hooked(&device);
            let file = fs.create(&cx(), "a", true).unwrap();
            fs.truncate(&cx(), &file, 2048 * PAGE_SIZE).unwrap();
            let task = Task::with(&mm, 0, &file, 512);
            // A whole area for a leaf of 2 MiB, and many small runs behind it.
            task.store(3, 1).unwrap();
            (0..300).for_each(|nr| fs.write_all(&cx(), &file, (512 + 2 * nr) * PAGE_SIZE, &PAGE).unwrap());
            pmem.fail_read_after(Some(reads));
            let cut = fs.truncate(&cx(), &file, SHORT * PAGE_SIZE);
            pmem.fail_read_after(None);
            let stat = fs.stat(&cx(), "a").unwrap();
            if cut.is_err() && stat.size == SHORT * PAGE_SIZE && stat.blocks > SHORT {
                seen += 1;
                task.store(3, 2).unwrap();
                assert_eq!(task.cause(200), Some(SigBusCause::BeyondEnd), "after {reads} reads");
            }
            drop((task, file));
            fs.reap(&cx());
            fs.unmount(&cx()).unwrap();
            cut.is_ok()
        });
        emu.assert_no_stale();
        if is_over {
            break;
        }
    }
    assert!(seen > 0, "no truncation failed in the middle");
}

/// A file that a task has stored to, and closed; what it has stored could not be written back then.
fn unsaved(device: &Device, name: &str) -> (Arc<Hooked>, Arc<Fs>) {
    let (pmem, fs) = hooked(device);
    let file = fs.create(&cx(), name, true).unwrap();
    fs.write(&cx(), &file, 0, &PAGE).unwrap();
    let task = Task::with(&device.mm, 0, &file, 1);
    task.store(0, 1).unwrap();
    drop((task, file));
    pmem.fail_next_fence(|| ());
    fs.reap(&cx());
    assert!(device.kernel.said("cannot let go of inode"));
    (pmem, fs)
}

/// covers: E6
#[test]
fn what_a_last_close_could_not_save_is_for_who_opens_the_file_next() {
    let (emu, mm) = rig(1);
    emu.clone().on_cpu(0, || {
        let device = Device::new(&mm, "pmem0", START, 512);
        let (pmem, fs) = unsaved(&device, "a");
        let file = fs.open(&cx(), "a").unwrap();
        pmem.fail_next_fence(|| ());
        assert_eq!(fs.fsync(&cx(), &file), Err(FsError::NotDurable));
        assert_eq!(fs.fsync(&cx(), &file), Ok(Synced { ranges: 1, fenced: true }));
        drop(file);
        fs.unmount(&cx()).unwrap();
    });
}

/// covers: E6
#[test]
fn what_a_last_close_could_not_save_the_unmount_saves_or_names() {
    let (emu, mm) = rig(1);
    emu.clone().on_cpu(0, || {
        let device = Device::new(&mm, "pmem0", START, 512);
        let (pmem, fs) = unsaved(&device, "a");
        pmem.fail_next_fence(|| ());
        assert_eq!(fs.unmount(&cx()), Err(FsError::NotDurable));
        let lines = device.kernel.lines.lock().unwrap().clone();
        assert_eq!(lines.iter().filter(|line| line.contains("cannot let go of inode")).count(), 2, "{lines:?}");
        // It is unmounted all the same.
        let (_pmem, fs) = unsaved(&device, "b");
        fs.unmount(&cx()).unwrap();
        device.mount().unwrap().unmount(&cx()).unwrap();
    });
}

/// A file that is closed while an unmount looks after others is not written back yet: it is busy, and not given up. Nor is one
/// that could not be saved before, and that somebody has opened since.
/// covers: E6
#[test]
fn an_unmount_does_not_give_up_what_was_closed_just_now() {
    for was_unsaved in [false, true] {
        let (emu, mm) = rig(1);
        emu.clone().on_cpu(0, || {
            let device = Device::new(&mm, "pmem0", START, 512);
            let (pmem, fs) = unsaved(&device, "a");
            let file = fs.create(&cx(), "b", true).unwrap();
            fs.write(&cx(), &file, 0, &PAGE).unwrap();
            let stored = |file: Open| {
                let task = Task::with(&mm, 0, &file, 1);
                task.store(0, 1).unwrap();
                (task, file)
            };
            let file = if was_unsaved {
                drop(stored(file));
                // Both of them.
                let again = pmem.clone();
                pmem.fail_next_fence(move || again.fail_next_fence(|| ()));
                fs.reap(&cx());
                let file = fs.open(&cx(), "b").unwrap();
                // It is in use, and so not on the list of the next reap any more.
                pmem.fail_next_fence(|| ());
                fs.reap(&cx());
                file
            } else {
                file
            };
            let open = stored(file);
            pmem.fail_next_fence(move || drop(open));
            assert_eq!(fs.unmount(&cx()), Err(FsError::Busy));
            assert_eq!(fs.shutdown_reason(), None);
            fs.unmount(&cx()).unwrap();
            assert_eq!(fs.shutdown_reason(), Some(ShutdownReason::ForcedUnmount));
        });
    }
}

/// The medium would go on calling itself clean: changes after that could be lost in the count of free blocks.
#[test]
fn after_a_thaw_that_could_not_be_written_nothing_is_changed() {
    let (emu, mm) = rig(1);
    emu.clone().on_cpu(0, || {
        let device = Device::new(&mm, "pmem0", START, 512);
        let (pmem, fs) = hooked(&device);
        let file = fs.create(&cx(), "a", true).unwrap();
        fs.freeze(FreezeHolder::User).unwrap();
        pmem.fail_read_after(Some(0));
        assert!(matches!(fs.thaw(FreezeHolder::User), Err(FsError::Media(_))));
        assert_eq!(fs.freeze_holders(), (0, 0));
        let write = fs.write(&cx(), &file, 0, &PAGE);
        assert_eq!(write, Err(FsError::ShutDown(ShutdownReason::MetadataIo)));
        drop(file);
        fs.reap(&cx());
        fs.unmount(&cx()).unwrap();
        let again = device.mount().unwrap();
        assert_eq!(again.stat(&cx(), "a").unwrap().blocks, 0);
        again.unmount(&cx()).unwrap();
    });
}

/// Whatever call it is that meets damage.
#[test]
fn damage_that_is_met_shuts_down() {
    type Call = fn(&Arc<Fs>) -> Option<FsError>;
    let calls: [Call; 3] = [
        |fs| fs.open(&cx(), "damaged").err(),
        |fs| fs.stat(&cx(), "damaged").err(),
        |fs| fs.unlink(&cx(), "damaged").err(),
    ];
    for call in calls {
        let (emu, mm) = rig(1);
        emu.clone().on_cpu(0, || {
            let mut device = Device::new(&mm, "pmem0", START, 512);
            device.checked.damaged = true;
            let fs = device.mount().unwrap();
            let file = fs.create(&cx(), "damaged", true).unwrap();
            let ino = file.ino();
            drop(file);
            fs.reap(&cx());
            let pmem: Arc<dyn Pmem> = Arc::new(SimPmem::from_bytes(device.sim.bytes()));
            let start = mount(&pmem, &MountOptions::default()).unwrap().layout().table_start;
            device.sim.store(start * PAGE_SIZE + ino * INODE_SIZE + 40, &[0xee]).unwrap();
            assert!(matches!(call(&fs), Some(FsError::Damaged(_))));
            assert_eq!(fs.shutdown_reason(), Some(ShutdownReason::Corrupt));
            fs.unmount(&cx()).unwrap();
        });
    }
}
