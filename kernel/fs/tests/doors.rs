//! Freezes, thaws, cuts and unmounts that meet; and what becomes of a file system whose journal's device leaves.

mod rig;

use std::sync::Arc;
use std::sync::Barrier;

use dax::holder::NotifyFlags;
use dax::range::WHOLE;
use fs::check::check;
use fs::error::{FsError, ShutdownReason};
use fs::freeze::FreezeHolder;
use fs::layout::Layout;
use fs::mount::{MakeOptions, make};
use fs::pmem::Pmem;
use mm::addr::PAGE_SIZE;
use mm::machine::Point;
use mm::space::{FaultError, SigBusCause};
use rig::*;
use testkit::emu::Event;
use testkit::sim::SimPmem;

/// The bytes as a power cut would leave them now, if the cache had just been written back.
fn copy_of(sim: &SimPmem) -> Arc<dyn Pmem> {
    Arc::new(SimPmem::from_bytes(sim.bytes()))
}

/// Somebody asks how full it is, and some inodes cannot be read: he is answered, and nothing is shut down.
#[test]
fn sizes_are_told_where_inodes_are_damaged() {
    let (emu, mm) = rig(1);
    emu.clone().on_cpu(0, || {
        let device = Device::new(&mm, "pmem0", START, 128);
        let fs = device.mount().unwrap();
        let table = Layout::plan(128, None, 0).unwrap().table_start * PAGE_SIZE;
        device.sim.break_range(table + PAGE_SIZE, table + 2 * PAGE_SIZE);
        let sizes = fs.statfs().unwrap();
        assert_eq!((sizes.nr_inodes - sizes.free_inodes, fs.shutdown_reason()), (2 + 16, None));
        fs.create(&cx(), "a", true).unwrap();
        device.sim.break_range(0, 0);
        fs.reap(&cx());
    });
}

/// Two holders thaw at the same moment: one of them is the last, and brings the medium into the state of a mounted file
/// system before the first change. (Were it not, a power cut would leave a file system that calls itself clean.)
#[test]
fn of_two_thaws_at_once_one_is_the_last() {
    let (emu, mm) = rig(2);
    emu.clone().on_cpu(0, || {
        let device = Device::new(&mm, "pmem0", START, 128);
        let fs = device.mount().unwrap();
        fs.freeze(FreezeHolder::User).unwrap();
        fs.freeze(FreezeHolder::Kernel).unwrap();
        // The second comes where the first waits in the middle, if it ever does.
        let other = fs.clone();
        emu.at(1, Event::Relax, 1, move || other.thaw(FreezeHolder::Kernel).unwrap());
        let ours = fs.clone();
        emu.finish(emu.start(1, move || ours.thaw(FreezeHolder::User).unwrap()));
        if fs.freeze_holders() != (0, 0) {
            fs.thaw(FreezeHolder::Kernel).unwrap();
        }
        fs.write(&cx(), &fs.create(&cx(), "a", true).unwrap(), 0, b"x").unwrap();
        let report = check(&copy_of(&device.sim), None);
        assert!(report.is_clean(), "{report:?}");
        fs.reap(&cx());
    });
}

/// The same with threads that really meet, as far as they do.
#[test]
fn thaws_from_two_threads() {
    let (emu, mm) = rig(2);
    let device = Device::new(&mm, "pmem0", START, 128);
    let fs = device.mount().unwrap();
    for nr in 0..100 {
        fs.freeze(FreezeHolder::User).unwrap();
        fs.freeze(FreezeHolder::Kernel).unwrap();
        let barrier = Arc::new(Barrier::new(2));
        let thaws = [(0, FreezeHolder::User), (1, FreezeHolder::Kernel)].map(|(cpu, holder)| {
            let (emu, fs, barrier) = (emu.clone(), fs.clone(), barrier.clone());
            std::thread::spawn(move || {
                emu.on_cpu(cpu, || {
                    barrier.wait();
                    fs.thaw(holder).unwrap();
                });
            })
        });
        thaws.into_iter().for_each(|thaw| thaw.join().unwrap());
        assert_eq!(fs.freeze_holders(), (0, 0));
        let name = format!("{nr}");
        fs.write(&cx(), &fs.create(&cx(), &name, true).unwrap(), 0, b"x").unwrap();
        let report = check(&copy_of(&device.sim), None);
        assert!(report.is_clean(), "{report:?}");
        fs.reap(&cx());
        fs.unlink(&cx(), &name).unwrap();
    }
}

/// covers: E1 E2
#[test]
fn a_truncate_that_meets_a_growing_file_ends_all_access_to_what_it_cuts_off() {
    let (emu, mm) = rig(3);
    emu.clone().on_cpu(0, || {
        let device = Device::new(&mm, "pmem0", START, 512);
        let fs = device.mount().unwrap();
        let file = fs.create(&cx(), "a", true).unwrap();
        fs.write(&cx(), &file, 0, b"short").unwrap();
        // The truncate, which would make the file longer, waits; meanwhile it grows beyond that and is mapped.
        fs.freeze(FreezeHolder::User).unwrap();
        let task = Task::with(&mm, 2, &file, 16);
        let (ours, grown) = (fs.clone(), file.clone());
        let space = task.space.clone();
        emu.at(1, Event::Relax, 3, move || {
            ours.thaw(FreezeHolder::User).unwrap();
            ours.write(&cx(), &grown, 0, &vec![1; (16 * PAGE_SIZE) as usize]).unwrap();
            space.handle_fault(page(9), mm::space::Access::Write).unwrap();
        });
        let cutter = emu.start(1, {
            let (fs, file) = (fs.clone(), file.clone());
            move || fs.truncate(&cx(), &file, PAGE_SIZE)
        });
        emu.finish(cutter).unwrap();
        emu.assert_hooks_ran();
        assert_eq!(fs.stat(&cx(), "a").unwrap().size, PAGE_SIZE);
        assert!(task.space.translate(page(9)).is_none(), "a page that is free is still mapped");
        assert_eq!(task.cause(9), Some(SigBusCause::BeyondEnd));
    });
}

/// covers: M5
#[test]
fn a_store_for_which_there_is_no_block_is_a_sigbus_that_says_so() {
    let (_emu, mm) = rig(1);
    let device = Device::new(&mm, "pmem0", START, 256);
    let fs = device.mount().unwrap();
    let (sparse, filler) = (fs.create(&cx(), "sparse", true).unwrap(), fs.create(&cx(), "filler", true).unwrap());
    fs.truncate(&cx(), &sparse, 64 * PAGE_SIZE).unwrap();
    let task = Task::with(&mm, 0, &sparse, 64);
    task.store(1, 7).unwrap();
    let fill = |nr: u64| fs.write(&cx(), &filler, nr * PAGE_SIZE, &[1; PAGE_SIZE as usize]).err();
    assert_eq!((0..256).find_map(fill), Some(FsError::NoSpace));
    // The holes have no block to be had; what is there goes on.
    let lost = (0..64).filter(|nr| *nr != 1).find_map(|nr| Some((nr, task.store(nr, 1).err()?))).expect("a hole");
    let sigbus = FaultError::SigBus { addr: page(lost.0), len_bytes: PAGE_SIZE, cause: SigBusCause::NoSpace };
    assert_eq!(lost.1, sigbus);
    assert_eq!((task.store(1, 8), task.fetch(1)), (Ok(()), Ok(8)));
    // With space it goes on.
    fs.truncate(&cx(), &filler, 0).unwrap();
    assert_eq!(task.store(lost.0, 1), Ok(()));
}

/// A console that has frozen it must not wait for itself.
#[test]
fn an_unmount_of_a_frozen_file_system_is_busy() {
    let (_emu, mm) = rig(1);
    let device = Device::new(&mm, "pmem0", START, 512);
    let fs = device.mount().unwrap();
    fs.freeze(FreezeHolder::User).unwrap();
    assert_eq!(fs.unmount(&cx()), Err(FsError::Busy));
    fs.thaw(FreezeHolder::User).unwrap();
    fs.unmount(&cx()).unwrap();
}

/// Nor where a file is let go of: whoever frees it changes the file system.
#[test]
fn an_unmount_of_a_frozen_file_system_with_an_unlinked_file_is_busy() {
    let (emu, mm) = rig(2);
    emu.clone().on_cpu(0, || {
        let device = Device::new(&mm, "pmem0", START, 512);
        let fs = device.mount().unwrap();
        let free = fs.statfs().unwrap().free_blocks;
        let file = fs.create(&cx(), "a", true).unwrap();
        fs.write(&cx(), &file, 0, b"x").unwrap();
        fs.unlink(&cx(), "a").unwrap();
        fs.freeze(FreezeHolder::User).unwrap();
        drop(file);
        let theirs = fs.clone();
        let unmount = emu.start(1, move || theirs.unmount(&cx()));
        let answers = emu.let_run(1, &unmount);
        fs.thaw(FreezeHolder::User).unwrap();
        assert_eq!((answers, emu.finish(unmount)), (true, Err(FsError::Busy)), "it waits for the thaw");
        fs.reap(&cx());
        assert!(fs.statfs().unwrap().free_blocks + 1 >= free, "the file is gone");
        fs.unmount(&cx()).unwrap();
    });
}

/// covers: N6
#[test]
fn a_thaw_that_fails_is_an_emergency_line_and_the_users_freeze_is_lifted_all_the_same() {
    let (emu, mm) = rig(1);
    emu.clone().on_cpu(0, || {
        let device = Device::new(&mm, "pmem0", START, 512);
        let fs = device.mount().unwrap();
        let file = fs.create(&cx(), "a", true).unwrap();
        fs.write(&cx(), &file, 0, b"x").unwrap();
        let _task = Task::with(&mm, 0, &file, 1);
        fs.freeze(FreezeHolder::User).unwrap();
        // Somebody thaws in the kernel's name in the middle of the walk: the kernel's own thaw finds nothing.
        let other = fs.clone();
        emu.at(0, Event::At(Point::UsersListed), 1, move || other.thaw(FreezeHolder::Kernel).unwrap());
        let kernel = device.kernel.clone();
        assert!(device.remove().is_empty());
        emu.assert_hooks_ran();
        assert!(kernel.said("EMERGENCY: still frozen after notification"));
        assert_eq!(fs.freeze_holders(), (0, 0));
        drop(file);
    });
}

/// covers: N13 N15
#[test]
fn without_the_journals_device_nothing_is_changed_any_more() {
    let (_emu, mm) = rig(1);
    let (device, log, fs) = with_log(&mm);
    fs.mkdir(&cx(), "d").unwrap();
    let dax = log.device().clone();
    assert_eq!(dax.notify_failure(0, WHOLE, NotifyFlags::PRE_REMOVE).unwrap()[0].result, Ok(()));
    let (_dead, _report) = dax::kill::kill_dax(log, &mut || {}, &mut |_, _| {});
    assert_eq!(fs.shutdown_reason(), None);
    assert_eq!(fs.stat(&cx(), "d").unwrap().nlink, 2, "reading goes on");
    let before = device.sim.stats();
    let down = FsError::ShutDown(ShutdownReason::MetadataIo);
    assert_eq!(fs.mkdir(&cx(), "e"), Err(down));
    assert_eq!(device.sim.stats(), before);
    assert_eq!(fs.shutdown_reason(), Some(ShutdownReason::MetadataIo));
    fs.unmount(&cx()).unwrap();
}

/// covers: N14 N15
#[test]
fn without_a_reverse_map_the_device_goes_and_is_let_go_of() {
    let (_emu, mm) = rig(1);
    let options = MakeOptions { no_reverse_map: true, ..MakeOptions::default() };
    let device = Device::make(&mm, "pmem0", START, 512, &options);
    let fs = device.mount().unwrap();
    fs.mkdir(&cx(), "d").unwrap();
    assert_eq!(device.remove().len(), 1, "the holder's answer is in the report");
    assert_eq!(fs.shutdown_reason(), None);
    assert_eq!(fs.mkdir(&cx(), "e"), Err(FsError::DeviceGone));
    fs.unmount(&cx()).unwrap();
}

#[test]
fn a_fault_in_a_large_hole_makes_do_with_a_page_where_no_two_megabytes_are_free() {
    let (_emu, mm) = rig(1);
    let device = Device::new(&mm, "pmem0", START, 1024);
    let fs = device.mount().unwrap();
    let file = fs.create(&cx(), "a", true).unwrap();
    fs.truncate(&cx(), &file, 1024 * PAGE_SIZE).unwrap();
    let task = Task::with(&mm, 0, &file, 1024);
    task.store(600, 1).unwrap();
    // The only whole area is in use now, or there never was one: the next fault takes a page.
    let before = fs.statfs().unwrap().free_blocks;
    task.store(3, 1).unwrap();
    assert_eq!(fs.statfs().unwrap().free_blocks, before - 1);
}

#[test]
fn a_new_file_system_over_an_old_one_with_the_same_name_takes_none_of_its_records() {
    let sim = Arc::new(SimPmem::new(128 * PAGE_SIZE as usize));
    let pmem: Arc<dyn Pmem> = sim.clone();
    make(&pmem, &MakeOptions::default()).unwrap();
    let mount = || fs::mount::mount(&pmem, &fs::mount::MountOptions::default()).unwrap();
    // Killed, with records in the journal.
    let mut volume = mount();
    for name in [b"a", b"b", b"c"] {
        volume.mkdir(fs::format::ROOT_INO, name).unwrap();
    }
    drop(volume);
    make(&pmem, &MakeOptions::default()).unwrap();
    assert!(mount().readdir(fs::format::ROOT_INO).unwrap().is_empty());
    assert!(mount().readdir(fs::format::ROOT_INO).unwrap().is_empty());
    assert_clean(&sim);
}

/// Where nobody confirms that what was written lasts, no call says so: a change fails and ends the file system, as what
/// it left on the medium is unknown; so does a sync of what a task has stored fail.
#[test]
fn what_is_not_confirmed_is_not_acknowledged() {
    let (emu, mm) = rig(2);
    emu.clone().on_cpu(0, || {
        let device = Device::new(&mm, "pmem0", START, 128);
        let fs = device.mount().unwrap();
        let file = fs.create(&cx(), "a", true).unwrap();
        fs.write(&cx(), &file, 0, b"kept").unwrap();
        let task = Task::with(&mm, 0, &file, 1);
        task.store(0, 7).unwrap();
        device.sim.fail_fences();
        assert_eq!(fs.fsync(&cx(), &file), Err(FsError::NotDurable));
        assert_eq!(fs.shutdown_reason(), None);
        assert_eq!(fs.write(&cx(), &file, 0, b"lost"), Err(FsError::NotDurable));
        assert_eq!(fs.shutdown_reason(), Some(ShutdownReason::MetadataIo));
        assert_eq!(fs.mkdir(&cx(), "d"), Err(FsError::ShutDown(ShutdownReason::MetadataIo)));
        task.exit();
        drop(file);
        fs.reap(&cx());
    });
}

/// The medium takes nothing any more when the device is to leave: the freeze comes without rest, no page is saved, and all
/// the same everybody is told, and the file system ends.
/// covers: N5 N8 N11 N12
#[test]
fn a_medium_that_fails_does_not_end_the_walk_before_a_removal() {
    let (emu, mm) = rig(3);
    emu.clone().on_cpu(0, || {
        let device = Device::new(&mm, "pmem0", START, 512);
        let fs = device.mount().unwrap();
        let files = ["a", "b"].map(|name| {
            let file = fs.create(&cx(), name, true).unwrap();
            fs.write(&cx(), &file, 0, b"x").unwrap();
            file
        });
        let tasks = [Task::with(&mm, 1, &files[0], 1), Task::with(&mm, 2, &files[1], 1)];
        tasks.iter().for_each(|task| task.store(0, 1).unwrap());
        device.sim.fail_fences();
        let kernel = device.kernel.clone();
        assert_eq!(device.remove(), [""; 0]);
        let report = fs.last_notification().unwrap();
        let steps: Vec<_> = report.errors.iter().map(|&(step, _)| step).collect();
        assert_eq!((report.frozen, &steps[..]), (true, &["freeze", "write back", "write back"][..]), "{report}");
        assert_eq!((report.leaves, report.mappings, report.told), (2, 2, 2), "{report}");
        assert!(kernel.said("notified: write back: "));
        assert_eq!(fs.shutdown_reason(), Some(ShutdownReason::ForcedUnmount));
        assert_eq!(fs.freeze_holders(), (0, 0));
        assert!(tasks.iter().all(|task| task.cause(0).is_some()));
        drop((tasks, files));
        fs.reap(&cx());
        fs.unmount(&cx()).unwrap();
    });
}
