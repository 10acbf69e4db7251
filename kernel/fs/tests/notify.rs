//! The file system as its device's holder.

mod rig;

use std::sync::{Arc, OnceLock};

use dax::device::{DataCache, DaxDevice, alloc_dax};
use dax::holder::{NotifyError, NotifyFlags};
use dax::range::{ByteSpan, WHOLE};
use fs::error::{FsError, ShutdownReason};
use fs::freeze::FreezeHolder;
use fs::mount::{MakeOptions, MountOptions, make, mount};
use fs::mounted::{FreezeError, Mounted, Source};
use fs::owner::Owner;
use fs::pmem::Pmem;
use mm::addr::{PAGE_SIZE, Pfn, PfnRange};
use mm::gup::GupFlags;
use mm::machine::Point;
use mm::pagemap::{DevPagemap, MemoryKind};
use mm::space::{Access, SigBusCause};
use rig::*;
use testkit::emu::Event;
use testkit::sim::SimPmem;

const MEDIA: NotifyFlags = NotifyFlags::ACTION_REQUIRED.union(NotifyFlags::MUST_KILL);

/// What the only holder answers.
fn tell(device: &Arc<DaxDevice>, offset: u64, len: u64, flags: NotifyFlags) -> Result<(), NotifyError> {
    let answers = device.notify_failure(offset, len, flags).unwrap();
    assert_eq!(answers.len(), 1);
    answers[0].result
}

/// The sectors of so many frames.
fn sectors(first: u64, nr_pages: u64) -> mm::run_set::Run {
    mm::pagemap::sectors_of(Pfn::new(first), nr_pages).unwrap()
}

/// The device's byte offset of a page of a file that `task` maps.
fn offset_of(device: &Device, task: &Task, nr: u64) -> u64 {
    let pfn = task.space.translate(page(nr)).unwrap().pfn_at(page(nr));
    (pfn.as_u64() - device.map.ranges()[0].start().as_u64()) * PAGE_SIZE
}

/// covers: N5 N6 N11 N12 R7 E7
#[test]
fn before_a_removal_all_tasks_are_told_the_file_system_is_shut_down_and_every_freeze_is_lifted() {
    let (emu, mm) = rig(3);
    let before = mm.ledger_snapshot();
    emu.clone().on_cpu(0, || {
        let device = Device::new(&mm, "pmem0", START, 4096);
        let fs = device.mount().unwrap();
        let (a, b) = (fs.create(&cx(), "a", true).unwrap(), fs.create(&cx(), "b", true).unwrap());
        for file in [&a, &b] {
            fs.write(&cx(), file, 0, &vec![1; (16 * PAGE_SIZE) as usize]).unwrap();
        }
        let tasks = [Task::with(&mm, 1, &a, 16), Task::with(&mm, 2, &b, 16)];
        tasks.iter().for_each(|task| (0..16).for_each(|nr| task.store(nr, nr).unwrap()));
        fs.freeze(FreezeHolder::User).unwrap();
        // In the middle of the walk a task tries to come back: it gets nothing, and no error either.
        let space = tasks[0].space.clone();
        emu.at(0, Event::At(Point::UsersListed), 2, move || {
            assert_eq!(space.handle_fault(page(3), Access::Write), Ok(()));
            assert!(space.translate(page(3)).is_none(), "a mapping was made during the walk");
        });
        let (kernel, sim) = (device.kernel.clone(), device.sim.clone());
        assert_eq!(device.remove(), [""; 0]);
        emu.assert_hooks_ran();
        assert_eq!(fs.freeze_holders(), (0, 0));
        assert_eq!(fs.shutdown_reason(), Some(ShutdownReason::ForcedUnmount));
        let report = fs.last_notification().unwrap();
        assert_eq!((report.frozen, report.mappings, report.told, report.rounds), (true, 2, 2, 1));
        assert_eq!((report.leaves, report.poisoned, report.errors.len()), (32, 0, 0));
        let lost: Vec<_> = kernel.lost.lock().unwrap().iter().map(|lost| (lost.0, lost.2, lost.3)).collect();
        for task in &tasks {
            assert!(lost.contains(&(task.space.id(), 16 * PAGE_SIZE, SigBusCause::DeviceGone)));
            assert_eq!(task.cause(3), Some(SigBusCause::ShutDown));
        }
        // Every later call says why.
        let down = FsError::ShutDown(ShutdownReason::ForcedUnmount);
        assert_eq!(fs.write(&cx(), &a, 0, b"x"), Err(down));
        assert_eq!(fs.stat(&cx(), "a").err(), Some(down));
        assert_eq!(fs.open(&cx(), "a").err(), Some(down));
        assert_eq!(fs.truncate(&cx(), &a, 0), Err(down));
        // The medium was left as by an unmount: what is there needs no recovery.
        let pmem: Arc<dyn Pmem> = sim.clone();
        assert_clean(&sim);
        let volume = mount(&pmem, &MountOptions::default()).unwrap();
        assert_eq!(volume.nr_mounts(), Ok(2));
        drop((tasks, a, b));
        fs.reap(&cx());
        fs.unmount(&cx()).unwrap();
    });
    emu.assert_no_stale();
    assert_no_leak(&mm, before);
}

/// covers: R7 R9 R10
#[test]
fn removing_one_device_under_load_leaves_the_other_alone_and_it_can_come_back() {
    let (emu, mm) = rig(3);
    let before = mm.ledger_snapshot();
    emu.clone().on_cpu(0, || {
        let leaving = Device::new(&mm, "pmem0", START, 4096);
        let staying = Device::new(&mm, "pmem1", 2 * START, 4096);
        let (gone, other) = (leaving.mount().unwrap(), staying.mount().unwrap());
        let (a, b) = (gone.create(&cx(), "a", true).unwrap(), other.create(&cx(), "b", true).unwrap());
        gone.write(&cx(), &a, 0, &vec![1; (600 * PAGE_SIZE) as usize]).unwrap();
        other.write(&cx(), &b, 0, &vec![2; (16 * PAGE_SIZE) as usize]).unwrap();
        let task = Task::with(&mm, 1, &a, 600);
        task.map(1024, &b, 0, 16);
        (0..600).step_by(7).for_each(|nr| task.store(nr, nr).unwrap());
        task.store(1024, 5).unwrap();
        // A pin that ends a little later, and a file that is unlinked while it is pinned.
        let pinned = task.pin(5, 1, GupFlags::WRITE).unwrap();
        gone.unlink(&cx(), "a").unwrap();
        drop(a);
        let engine = std::thread::spawn({
            let (mm, gone) = (mm.clone(), gone.clone());
            move || {
                while gone.shutdown_reason().is_none() {
                    std::thread::yield_now();
                }
                unpin(&mm, &pinned);
            }
        });
        let sim = leaving.sim.clone();
        assert_eq!(leaving.remove(), [""; 0]);
        engine.join().unwrap();
        assert!(task.cause(0).is_some());
        assert_eq!(task.fetch(1024), Ok(5), "the other file system goes on");
        other.write(&cx(), &b, 0, b"still here").unwrap();
        fs_unmap(&gone, &task);
        gone.unmount(&cx()).unwrap();
        // The same device again: it mounts clean, and the unlinked file is freed.
        let again = Device::attach(&mm, "pmem0", START, sim);
        let fs = again.mount().unwrap();
        assert_eq!(fs.stat(&cx(), "a").err(), Some(FsError::NotFound));
        assert_eq!(fs.statfs().unwrap().free_blocks, fs.statfs().unwrap().data_blocks - 1);
        fs.unmount(&cx()).unwrap();
        again.assert_clean();
        assert!(again.remove().is_empty());
        drop((task, b));
        other.unmount(&cx()).unwrap();
        staying.assert_clean();
        assert!(staying.remove().is_empty());
    });
    emu.assert_no_stale();
    assert_no_leak(&mm, before);
}

fn fs_unmap(fs: &Fs, task: &Task) {
    fs.unmap(&cx(), &task.space, page(0), 600 * PAGE_SIZE).unwrap();
}

/// covers: N5
#[test]
fn a_freeze_that_fails_is_recorded_and_the_removal_goes_on() {
    let (_emu, mm) = rig(1);
    let device = Device::new(&mm, "pmem0", START, 512);
    let fs = device.mount().unwrap();
    let context = cx();
    // A change that does not end.
    let stuck = fs.begin_write(&context).unwrap();
    assert_eq!(fs.freeze(FreezeHolder::User), Err(FreezeError::NotFrozen(FsError::Busy)));
    assert_eq!(fs.freeze_holders(), (0, 0));
    assert!(device.remove().is_empty());
    let report = fs.last_notification().unwrap();
    assert_eq!((report.frozen, &report.errors[..]), (false, &[("freeze", FsError::Busy)][..]));
    assert_eq!(fs.shutdown_reason(), Some(ShutdownReason::ForcedUnmount));
    drop(stuck);
}

#[test]
fn a_frozen_file_system_holds_changes_back_until_the_last_thaw() {
    let (emu, mm) = rig(2);
    emu.clone().on_cpu(0, || {
        let device = Device::new(&mm, "pmem0", START, 512);
        let fs = device.mount().unwrap();
        fs.freeze(FreezeHolder::User).unwrap();
        fs.freeze(FreezeHolder::Kernel).unwrap();
        fs.freeze(FreezeHolder::Kernel).unwrap();
        assert_eq!(fs.freeze_holders(), (2, 1));
        // At rest: the medium is as after an unmount.
        device.assert_clean();
        let maker = emu.start(1, {
            let fs = fs.clone();
            move || fs.mkdir(&cx(), "d")
        });
        assert!(fs.readdir(&cx(), "/").unwrap().is_empty(), "reading goes on");
        for holder in [FreezeHolder::Kernel, FreezeHolder::User] {
            fs.thaw(holder).unwrap();
            assert!(!emu.let_run(1, &maker));
        }
        assert_eq!(fs.thaw(FreezeHolder::User), Err(FsError::Invalid));
        fs.thaw(FreezeHolder::Kernel).unwrap();
        emu.finish(maker).unwrap();
        assert_eq!(fs.stat(&cx(), "d").unwrap().nlink, 2);
    });
}

/// covers: N7 N12
#[test]
fn metadata_is_passed_over_before_a_removal_and_shuts_down_after_a_failure() {
    // A block of each kind, found by the reverse map.
    let kinds = ["metadata", "directory", "mapping", "attribute"];
    for (nr, kind) in kinds.iter().enumerate() {
        let (_emu, mm) = rig(1);
        let device = Device::new(&mm, "pmem0", START, 2048);
        let pmem: Arc<dyn Pmem> = device.sim.clone();
        let mut volume = mount(&pmem, &MountOptions::default()).unwrap();
        let ino = volume.create(fs::format::ROOT_INO, b"a", true).unwrap();
        for nr in 0..20 {
            volume.write(ino, nr * 2 * PAGE_SIZE, b"x").unwrap();
        }
        volume.set_attributes(ino, b"colour=red").unwrap();
        let mut block = None;
        volume.owners(0, 2048, |(first, _, owner)| {
            let found = match owner {
                Owner::Metadata => 0,
                Owner::Directory { .. } => 1,
                Owner::Mapping { .. } => 2,
                Owner::Attribute { .. } => 3,
                Owner::Data { .. } => 4,
            };
            if found == nr {
                block = block.or(Some(first));
            }
        });
        let offset = block.unwrap_or_else(|| panic!("no {kind} block")) * PAGE_SIZE;
        volume.unmount().unwrap();
        let fs = device.mount().unwrap();
        // Nobody has the inode in memory: the owner is found all the same.
        assert_eq!(tell(device.live.device(), offset, PAGE_SIZE, MEDIA), Err(NotifyError::Corrupted), "{kind}");
        assert_eq!(fs.shutdown_reason(), Some(ShutdownReason::Corrupt));
        assert!(fs.last_notification().unwrap().metadata >= 1);

        let (_emu, mm) = rig(1);
        let again = Device::attach(&mm, "pmem0", START, device.sim.clone());
        let fs = again.mount().unwrap();
        assert_eq!(tell(again.live.device(), offset, PAGE_SIZE, NotifyFlags::PRE_REMOVE), Ok(()));
        assert_eq!(fs.shutdown_reason(), Some(ShutdownReason::ForcedUnmount));
    }
}

/// covers: N8 N9
#[test]
fn files_that_are_not_in_memory_or_not_dax_do_not_end_the_walk() {
    let (_emu, mm) = rig(1);
    let device = Device::new(&mm, "pmem0", START, 2048);
    let fs = device.mount().unwrap();
    for (name, dax) in [("absent", true), ("plain", false), ("mapped", true)] {
        let file = fs.create(&cx(), name, dax).unwrap();
        fs.write(&cx(), &file, 0, &[1; 9000]).unwrap();
        fs.write(&cx(), &file, 10 * PAGE_SIZE, &[1; 9000]).unwrap();
    }
    fs.reap(&cx());
    let (plain, mapped) = (fs.open(&cx(), "plain").unwrap(), fs.open(&cx(), "mapped").unwrap());
    let task = Task::with(&mm, 0, &mapped, 13);
    task.store(0, 1).unwrap();
    task.store(11, 1).unwrap();
    // The reverse map knows it from this call, and yet nobody has it open.
    assert_eq!(fs.stat(&cx(), "absent").unwrap().blocks, 6);
    assert_eq!(tell(device.live.device(), 0, WHOLE, NotifyFlags::PRE_REMOVE), Ok(()));
    let report = fs.last_notification().unwrap();
    assert_eq!((report.not_in_memory, report.not_dax), (2, 2), "{report}");
    assert_eq!((report.mappings, report.told, report.leaves), (2, 2, 2), "{report}");
    assert!(report.invalidated >= 4, "{report}");
    assert!(task.space.translate(page(11)).is_none());
    drop((plain, mapped));
}

/// covers: N8
#[test]
fn an_inode_that_cannot_be_loaded_does_not_end_the_walk() {
    let (_emu, mm) = rig(1);
    let mut device = Device::new(&mm, "pmem0", START, 2048);
    device.checked.damaged = true;
    let fs = device.mount().unwrap();
    let first = fs.create(&cx(), "damaged", true).unwrap();
    let file = fs.create(&cx(), "sound", true).unwrap();
    fs.write(&cx(), &file, 0, &[1; 9000]).unwrap();
    let ino = first.ino();
    drop(first);
    fs.reap(&cx());
    let task = Task::with(&mm, 0, &file, 3);
    task.store(1, 1).unwrap();
    // The inode's bytes go bad behind the file system's back.
    let table = mount(&(Arc::new(SimPmem::from_bytes(device.sim.bytes())) as Arc<dyn Pmem>), &MountOptions::default());
    let place = table.unwrap().layout().table_start * PAGE_SIZE + ino * fs::format::INODE_SIZE;
    device.sim.store(place + 40, &[0xee]).unwrap();
    let offset = offset_of(&device, &task, 1);
    assert_eq!(tell(device.live.device(), offset, PAGE_SIZE, MEDIA), Ok(()));
    let report = fs.last_notification().unwrap();
    assert_eq!((report.errors.len(), report.mappings, report.poisoned), (1, 1, 1), "{report}");
}

/// covers: N10 N11 P1
#[test]
fn a_real_failure_marks_the_pages_and_tells_the_task_that_met_it() {
    let (_emu, mm) = rig(2);
    let device = Device::new(&mm, "pmem0", START, 2048);
    let fs = device.mount().unwrap();
    let file = fs.create(&cx(), "a", true).unwrap();
    fs.write(&cx(), &file, 0, &vec![1; (4 * PAGE_SIZE) as usize]).unwrap();
    let tasks = [Task::with(&mm, 0, &file, 4), Task::with(&mm, 1, &file, 4)];
    tasks.iter().for_each(|task| task.store(2, 2).unwrap());
    *device.kernel.current.lock().unwrap() = Some(tasks[1].space.id());
    let offset = offset_of(&device, &tasks[0], 2);
    // Its last byte counts as well as its first.
    assert_eq!(tell(device.live.device(), offset + PAGE_SIZE - 1, 1, MEDIA), Ok(()));
    let pfn = Pfn::new(START + offset / PAGE_SIZE);
    assert_eq!(device.map.lost(), Ok(vec![sectors(pfn.as_u64(), 1)]));
    let report = fs.last_notification().unwrap();
    assert_eq!((report.mappings, report.told, report.poisoned, report.shutdown), (2, 1, 1, None));
    assert_eq!(report.errors, [], "every inode can be loaded");
    let lost: Vec<_> = device.kernel.lost.lock().unwrap().clone();
    assert_eq!(lost, [(tasks[1].space.id(), page(2).as_u64(), PAGE_SIZE, SigBusCause::Poisoned)]);
    // Both find it out when they touch it; the pages beside it go on.
    for task in &tasks {
        assert_eq!(task.cause(2), Some(SigBusCause::Poisoned));
        assert!(task.store(1, 1).is_ok());
    }
    fs.write(&cx(), &file, 0, b"the file system goes on").unwrap();
}

/// Of a range that reaches into a file's run and out of it, the pages inside.
/// covers: N10 P1
#[test]
fn each_page_of_a_range_that_failed_is_marked() {
    let (_emu, mm) = rig(1);
    let device = Device::new(&mm, "pmem0", START, 2048);
    let fs = device.mount().unwrap();
    let file = fs.create(&cx(), "a", true).unwrap();
    fs.write(&cx(), &file, 0, &vec![1; (8 * PAGE_SIZE) as usize]).unwrap();
    let task = Task::with(&mm, 0, &file, 8);
    task.store(5, 2).unwrap();
    let offset = offset_of(&device, &task, 5);
    assert_eq!(tell(device.live.device(), offset, 3 * PAGE_SIZE, MEDIA), Ok(()));
    let first = START + offset / PAGE_SIZE;
    assert_eq!(device.map.lost(), Ok(vec![sectors(first, 3)]));
    let report = fs.last_notification().unwrap();
    assert_eq!((report.poisoned, &report.errors[..]), (3, &[][..]));
}

/// covers: N13
#[test]
fn the_journals_device_may_leave_but_not_fail() {
    let (_emu, mm) = rig(1);
    let (_device, log, fs) = with_log(&mm);
    fs.mkdir(&cx(), "d").unwrap();
    assert_eq!(tell(log.device(), 0, WHOLE, NotifyFlags::PRE_REMOVE), Ok(()));
    assert_eq!(fs.shutdown_reason(), None);
    assert_eq!(tell(log.device(), 0, 64, MEDIA), Err(NotifyError::Corrupted));
    assert_eq!(fs.shutdown_reason(), Some(ShutdownReason::Corrupt));
}

/// covers: N14
#[test]
fn not_fully_mounted_is_an_io_error_and_no_reverse_map_is_not_supported() {
    let (_emu, mm) = rig(1);
    let device = Device::new(&mm, "pmem0", START, 512);
    // The holder is told as soon as the mount begins to read.
    let early = Hooked::new(&device.sim);
    let (dax, answer) = (device.live.device().clone(), Arc::new(OnceLock::new()));
    let answer_to = answer.clone();
    early.at_next_read(move || answer_to.set(tell(&dax, 0, WHOLE, NotifyFlags::PRE_REMOVE)).unwrap());
    let fs = Mounted::mount(&mm, Source { pmem: early, ..device.source() }).unwrap();
    assert_eq!(answer.get(), Some(&Err(NotifyError::Io)));
    assert_eq!(fs.shutdown_reason(), None);

    let (_emu, mm) = rig(1);
    let options = MakeOptions { no_reverse_map: true, ..MakeOptions::default() };
    let device = Device::make(&mm, "pmem0", START, 512, &options);
    let fs = device.mount().unwrap();
    for flags in [NotifyFlags::PRE_REMOVE, MEDIA] {
        assert_eq!(tell(device.live.device(), 0, WHOLE, flags), Err(NotifyError::NotSupported));
    }
    assert_eq!(fs.shutdown_reason(), None);
    fs.mkdir(&cx(), "d").unwrap();
}

/// covers: N4 N3
#[test]
fn a_range_outside_the_file_systems_part_is_no_such_address() {
    let (_emu, mm) = rig(1);
    let sim = Arc::new(SimPmem::new(512 * PAGE_SIZE as usize));
    let pmem: Arc<dyn Pmem> = sim.clone();
    make(&pmem, &MakeOptions::default()).unwrap();
    // The file system lies in the middle of a larger device.
    let map = DevPagemap::new(MemoryKind::FsDax, [PfnRange::new(Pfn::new(START), 2048).unwrap()]).unwrap();
    let live = alloc_dax("pmem0", &map, DataCache::Coherent, &mm.ledger).unwrap();
    mm.meta.register(&map).unwrap();
    let part = ByteSpan::from_len(512 * PAGE_SIZE, 512 * PAGE_SIZE).unwrap();
    let checked = Checked::new(&sim);
    let device = Device { name: "pmem0".into(), mm: mm.clone(), live, map, sim, kernel: Arc::default(), checked };
    let source = Source { part: Some(part), ..device.source() };
    let fs = Mounted::mount(&mm, source).unwrap();
    let file = fs.create(&cx(), "a", true).unwrap();
    fs.write(&cx(), &file, 0, b"x").unwrap();
    let task = Task::with(&mm, 0, &file, 1);
    task.store(0, 1).unwrap();
    let offset = offset_of(&device, &task, 0);
    assert!(part.first() <= offset && offset <= part.last());
    let dev = device.live.device();
    for (offset, len) in [(0, part.first()), (part.last() + 1, 4096), (u64::MAX, 1), (part.first(), 0)] {
        assert_eq!(tell(dev, offset, len, MEDIA), Err(NotifyError::NoSuchAddress), "{offset:#x} {len:#x}");
    }
    assert!(fs.last_notification().is_none());
    assert_eq!(tell(dev, offset, 1, MEDIA), Ok(()));
    assert_eq!(device.map.lost(), Ok(vec![sectors(START + offset / PAGE_SIZE, 1)]));
    // The last byte before the part and its first byte: the superblock.
    assert_eq!(tell(dev, part.first() - 1, 2, MEDIA), Err(NotifyError::Corrupted));
}

/// covers: N15
#[test]
fn told_twice_and_let_go_of_after_the_device_was_killed() {
    let (_emu, mm) = rig(1);
    let before = mm.ledger_snapshot();
    let device = Device::new(&mm, "pmem0", START, 512);
    let fs = device.mount().unwrap();
    let dax = device.live.device().clone();
    assert_eq!(tell(&dax, 0, WHOLE, NotifyFlags::PRE_REMOVE), Ok(()));
    assert_eq!(tell(&dax, 0, WHOLE, NotifyFlags::PRE_REMOVE), Ok(()));
    assert!(device.remove().is_empty());
    assert_eq!(dax.notify_failure(0, WHOLE, MEDIA), Err(NotifyError::NoSuchDevice));
    fs.unmount(&cx()).unwrap();
    drop(fs);
    assert_no_leak(&mm, before);
}

#[test]
fn one_device_has_one_file_system_and_unmount_needs_it_idle() {
    let (_emu, mm) = rig(1);
    let device = Device::new(&mm, "pmem0", START, 512);
    let fs = device.mount().unwrap();
    assert_eq!(device.mount().err(), Some(FsError::Busy));
    let file = fs.create(&cx(), "a", true).unwrap();
    fs.write(&cx(), &file, 0, b"x").unwrap();
    let task = Task::with(&mm, 0, &file, 1);
    let pinned = task.pin(0, 1, GupFlags::WRITE).unwrap();
    assert_eq!(fs.unmount(&cx()), Err(FsError::Busy), "a file is open");
    drop((file, task));
    assert_eq!(fs.unmount(&cx()), Err(FsError::Busy), "a page is pinned");
    unpin(&mm, &pinned);
    fs.unmount(&cx()).unwrap();
    assert_eq!(fs.stat(&cx(), "a").err(), Some(FsError::ShutDown(ShutdownReason::ForcedUnmount)));
    device.mount().unwrap().unmount(&cx()).unwrap();
}
