//! Mapped files: faults, and taking blocks away from those who map or pin them.

mod rig;

use std::sync::Arc;

use fs::error::FsError;
use fs::freeze::FreezeHolder;
use fs::lock_order::{Context, LockOrder, OrderedLock};
use mm::addr::{PAGE_SIZE, PageSize};
use mm::entry::Prot;
use mm::gup::{GupError, GupFlags};
use mm::machine::Machine;
use mm::space::{AddressSpace, FaultError, SigBusCause};
use rig::*;
use testkit::emu::EmuMachine;

const HUGE: u64 = 512;

fn free_blocks(fs: &Fs) -> u64 {
    fs.statfs().unwrap().free_blocks
}

#[test]
fn faults_install_the_largest_leaf_that_the_extent_allows() {
    let (_emu, mm) = rig(1);
    let device = Device::new(&mm, "pmem0", START, 8192);
    let fs = device.mount().unwrap();
    let file = fs.create(&cx(), "big", true).unwrap();
    fs.truncate(&cx(), &file, 5 * HUGE / 2 * PAGE_SIZE).unwrap();
    fs.write(&cx(), &file, 2 * HUGE * PAGE_SIZE, b"x").unwrap();
    let task = Task::with(&mm, 0, &file, 5 * HUGE / 2);
    let size = |nr: u64| task.space.translate(page(nr)).map(|found| found.size);
    // A hole of 2 MiB is filled by 2 MiB; what is smaller, and the end of the file, by a page.
    task.store(5, 55).unwrap();
    assert_eq!(size(5), Some(PageSize::Size2M));
    task.store(2 * HUGE, 66).unwrap();
    assert_eq!(size(2 * HUGE), Some(PageSize::Size4K));
    task.store(2 * HUGE + 7, 77).unwrap();
    assert_eq!((task.fetch(5), task.fetch(2 * HUGE), task.fetch(2 * HUGE + 7)), (Ok(55), Ok(66), Ok(77)));
    // Another task sees the same frames.
    let other = Task::with(&mm, 0, &file, 5 * HUGE / 2);
    assert_eq!(other.fetch(5), Ok(55));
    assert_eq!(
        other.space.translate(page(5)).map(|found| found.pfn_at(page(5))),
        task.space.translate(page(5)).map(|found| found.pfn_at(page(5)))
    );
}

#[test]
fn a_read_only_mapping_shows_what_others_store_and_takes_no_store() {
    let (_emu, mm) = rig(2);
    let device = Device::new(&mm, "pmem0", START, 2048);
    let fs = device.mount().unwrap();
    let file = fs.create(&cx(), "a", true).unwrap();
    fs.truncate(&cx(), &file, 3 * PAGE_SIZE).unwrap();
    let (reader, writer) = (Task::new(&mm, 0), Task::with(&mm, 1, &file, 3));
    reader.space.map(page(0), 3 * PAGE_SIZE, Prot::USER_READ, &file.ops(), 0).unwrap();
    assert_eq!(reader.fetch(2), Ok(0), "a hole");
    writer.store(2, 22).unwrap();
    writer.store(1, 11).unwrap();
    assert_eq!((reader.fetch(1), reader.fetch(2)), (Ok(11), Ok(22)));
    assert!(reader.store(1, 5).is_err());
    assert!(reader.pin(1, 1, GupFlags::WRITE).is_err());
    let pinned = reader.pin(1, 1, GupFlags::empty()).unwrap();
    unpin(&mm, &pinned);
    assert_eq!(writer.fetch(1), Ok(11));
}

#[test]
fn beyond_the_end_is_a_sigbus_until_the_file_grows() {
    let (_emu, mm) = rig(1);
    let device = Device::new(&mm, "pmem0", START, 512);
    let fs = device.mount().unwrap();
    let file = fs.create(&cx(), "a", true).unwrap();
    fs.write(&cx(), &file, 0, &[1; 5000]).unwrap();
    let task = Task::with(&mm, 0, &file, 4);
    assert!(task.fetch(1).is_ok());
    assert_eq!(task.cause(2), Some(SigBusCause::BeyondEnd));
    fs.truncate(&cx(), &file, 3 * PAGE_SIZE).unwrap();
    assert!(task.fetch(2).is_ok());
}

/// covers: E1 E2
#[test]
fn truncate_and_punch_end_all_access_before_they_return() {
    let (emu, mm) = rig(3);
    emu.clone().on_cpu(0, || {
        let device = Device::new(&mm, "pmem0", START, 4096);
        let fs = device.mount().unwrap();
        let file = fs.create(&cx(), "a", true).unwrap();
        fs.write(&cx(), &file, 0, &vec![1; (64 * PAGE_SIZE) as usize]).unwrap();
        let tasks = [Task::with(&mm, 1, &file, 64), Task::with(&mm, 2, &file, 64)];
        for task in &tasks {
            (0..64).for_each(|nr| task.store(nr, nr).unwrap());
        }
        let frame = |nr: u64| tasks[0].space.translate(page(nr)).map(|found| found.pfn_at(page(nr)));
        let (cut, kept) = (frame(40).unwrap(), frame(3).unwrap());
        let before = free_blocks(&fs);
        fs.truncate(&cx(), &file, 32 * PAGE_SIZE).unwrap();
        assert_eq!(free_blocks(&fs), before + 32);
        // No CPU reaches the frames, not even by a stale translation, and nothing holds them.
        assert!(emu.who_reaches(cut, 1).is_empty());
        assert!(mm.meta.inspect(cut).is_none());
        assert_eq!(tasks[1].cause(40), Some(SigBusCause::BeyondEnd));
        assert_eq!((tasks[1].fetch(3), frame(3)), (Ok(3), Some(kept)));
        // A punched page is a new, empty one for the next fault.
        fs.punch(&cx(), &file, 2 * PAGE_SIZE, 4 * PAGE_SIZE).unwrap();
        assert_eq!(free_blocks(&fs), before + 36);
        assert!(emu.who_reaches(kept, 1).is_empty());
        tasks[1].store(3, 33).unwrap();
        assert_eq!(tasks[0].fetch(3), Ok(33));
        drop((file, tasks));
        fs.reap(&cx());
        fs.unmount(&cx()).unwrap();
        device.assert_clean();
    });
}

/// covers: E2 L3
#[test]
fn truncate_waits_for_a_transient_pin_and_frees_nothing_meanwhile() {
    let (emu, mm) = rig(3);
    emu.clone().on_cpu(0, || {
        let device = Device::new(&mm, "pmem0", START, 4096);
        let fs = device.mount().unwrap();
        let file = fs.create(&cx(), "a", true).unwrap();
        fs.write(&cx(), &file, 0, &vec![1; (16 * PAGE_SIZE) as usize]).unwrap();
        let task = Task::with(&mm, 1, &file, 16);
        let pinned = task.pin(10, 2, GupFlags::WRITE).unwrap();
        let before = free_blocks(&fs);
        let cutter = emu.start(2, {
            let (fs, file) = (fs.clone(), file.clone());
            move || fs.truncate(&cx(), &file, 4 * PAGE_SIZE)
        });
        assert!(!cutter.is_finished(), "it waits for the pin");
        assert_eq!(free_blocks(&fs), before);
        assert_eq!(fs.stat(&cx(), "a").unwrap().size, 16 * PAGE_SIZE);
        // What is being cut off is gone for faults already, so that new pins cannot keep coming; the rest goes on.
        assert_eq!(task.cause(12), Some(SigBusCause::BeyondEnd));
        assert!(task.pin(12, 1, GupFlags::WRITE).is_err());
        assert!(task.store(1, 11).is_ok());
        // The inode's lock is free meanwhile: the holder of the pin may need it.
        fs.write(&cx(), &file, 0, b"hello").unwrap();
        unpin(&mm, &pinned[..1]);
        emu.finish(cutter).unwrap();
        assert_eq!(free_blocks(&fs), before + 12);
        assert_eq!(fs.stat(&cx(), "a").unwrap().size, 4 * PAGE_SIZE);
    });
}

/// covers: E2
#[test]
fn a_cut_through_a_huge_folio_waits_for_pins_anywhere_in_it() {
    let (emu, mm) = rig(3);
    emu.clone().on_cpu(0, || {
        let device = Device::new(&mm, "pmem0", START, 8192);
        let fs = device.mount().unwrap();
        let file = fs.create(&cx(), "a", true).unwrap();
        fs.truncate(&cx(), &file, 2 * HUGE * PAGE_SIZE).unwrap();
        let task = Task::with(&mm, 1, &file, 2 * HUGE);
        task.store(0, 1).unwrap();
        let pinned = task.pin(3, 1, GupFlags::WRITE).unwrap();
        let puncher = emu.start(2, {
            let (fs, file) = (fs.clone(), file.clone());
            move || fs.punch(&cx(), &file, 100 * PAGE_SIZE, 10 * PAGE_SIZE)
        });
        assert!(!puncher.is_finished(), "the folio's count does not say which page is pinned");
        unpin(&mm, &pinned);
        emu.finish(puncher).unwrap();
        assert_eq!(task.fetch(0), Ok(1));
        assert_eq!(fs.stat(&cx(), "a").unwrap().blocks, HUGE - 10);
    });
}

/// covers: E3
#[test]
fn a_file_without_dax_is_neither_mapped_nor_waited_for() {
    let (_emu, mm) = rig(1);
    let device = Device::new(&mm, "pmem0", START, 512);
    let fs = device.mount().unwrap();
    let file = fs.create(&cx(), "plain", false).unwrap();
    fs.write(&cx(), &file, 0, &[1; 9000]).unwrap();
    let task = Task::new(&mm, 0);
    assert!(task.space.map(page(0), PAGE_SIZE, mm::entry::Prot::USER_WRITE, &file.ops(), 0).is_err());
    // Breaking its layout would be a wait, which this task may not do.
    fs.truncate(&Context::reclaim(), &file, 10).unwrap();
    fs.punch(&Context::reclaim(), &file, 0, 5).unwrap();
}

/// covers: E4
#[test]
#[should_panic(expected = "waits for pins while memory is being reclaimed")]
fn breaking_layouts_in_reclaim_stops_a_debug_build() {
    let (_emu, mm) = rig(1);
    let device = Device::new(&mm, "pmem0", START, 512);
    let fs = device.mount().unwrap();
    let file = fs.create(&cx(), "a", true).unwrap();
    fs.write(&cx(), &file, 0, &[1; 9000]).unwrap();
    let _ = fs.truncate(&Context::reclaim(), &file, 10);
}

/// covers: E4
#[test]
#[should_panic(expected = "with locks of ranks")]
fn breaking_layouts_under_an_inode_lock_stops_a_debug_build() {
    let (_emu, mm) = rig(1);
    let device = Device::new(&mm, "pmem0", START, 512);
    let fs = device.mount().unwrap();
    let file = fs.create(&cx(), "a", true).unwrap();
    let another_inode = OrderedLock::new(());
    let context = cx();
    let _inode = context.lock(&mm.machine, LockOrder::Inode, &another_inode);
    drop(file);
    let _ = fs.unlink(&context, "a");
}

/// covers: E4
#[test]
#[should_panic(expected = "takes a lock of rank Inode")]
fn a_lock_out_of_rank_stops_a_debug_build() {
    let (_emu, mm) = rig(1);
    let (a, b) = (OrderedLock::new(()), OrderedLock::new(()));
    let context = cx();
    let _volume = context.lock(&mm.machine, LockOrder::Volume, &a);
    let _inode = context.lock(&mm.machine, LockOrder::Inode, &b);
}

/// A task that takes a lock again and again does not keep another out that has tried for long.
#[test]
fn who_has_tried_for_long_gets_a_lock_before_who_comes_again() {
    let (emu, mm) = rig(2);
    emu.clone().on_cpu(0, || {
        let lock = Arc::new(OrderedLock::new(Vec::new()));
        let context = cx();
        let mut held = context.lock(&mm.machine, LockOrder::Volume, &lock);
        held.push("first");
        let waiter = emu.start(1, {
            let (mm, lock) = (mm.clone(), lock.clone());
            move || cx().lock(&mm.machine, LockOrder::Volume, &lock).push("waiter")
        });
        (0..600).for_each(|_| assert!(!emu.let_run(1, &waiter)));
        drop(held);
        context.lock(&mm.machine, LockOrder::Volume, &lock).push("again");
        emu.finish(waiter);
        assert_eq!(*context.lock(&mm.machine, LockOrder::Volume, &lock), ["first", "waiter", "again"]);
    });
}

/// covers: E5 E6
#[test]
fn the_last_reference_to_an_unlinked_file_frees_it_at_once() {
    let (_emu, mm) = rig(1);
    let device = Device::new(&mm, "pmem0", START, 4096);
    let fs = device.mount().unwrap();
    fs.mkdir(&cx(), "keep").unwrap();
    let free = free_blocks(&fs);
    // Nobody has it open: at once.
    drop(fs.create(&cx(), "a", true).unwrap());
    fs.write(&cx(), &fs.open(&cx(), "a").unwrap(), 0, &[1; 9000]).unwrap();
    fs.reap(&cx());
    assert_eq!(free_blocks(&fs), free - 3);
    fs.unlink(&cx(), "a").unwrap();
    assert_eq!(free_blocks(&fs), free);
    // Somebody has it mapped: with the mapping, which is the last handle.
    let file = fs.create(&cx(), "b", true).unwrap();
    fs.write(&cx(), &file, 0, &[1; 9000]).unwrap();
    let task = Task::with(&mm, 0, &file, 2);
    task.store(0, 1).unwrap();
    drop(file);
    fs.unlink(&cx(), "b").unwrap();
    assert_eq!(fs.open(&cx(), "b").err(), Some(FsError::NotFound));
    assert_eq!(task.fetch(0), Ok(1), "who has it mapped goes on");
    assert_eq!(free_blocks(&fs), free - 3);
    fs.unmap(&cx(), &task.space, page(0), 2 * PAGE_SIZE).unwrap();
    assert_eq!(free_blocks(&fs), free);
    drop(task);
    fs.unmount(&cx()).unwrap();
    device.assert_clean();
}

/// covers: E8 E6
#[test]
fn an_orphan_pin_outlives_its_task_and_the_file_waits_for_it() {
    let (emu, mm) = rig(4);
    emu.clone().on_cpu(0, || {
        let device = Device::new(&mm, "pmem0", START, 4096);
        let fs = device.mount().unwrap();
        let keep = fs.create(&cx(), "keep", true).unwrap();
        let free = free_blocks(&fs);
        let file = fs.create(&cx(), "a", true).unwrap();
        fs.write(&cx(), &file, 0, &vec![1; (8 * PAGE_SIZE) as usize]).unwrap();
        let task = Task::with(&mm, 1, &file, 8);
        task.store(2, 7).unwrap();
        // The copy engine gets the pins, and the task is gone before it has done its work.
        let (go, may_go) = std::sync::mpsc::channel::<()>();
        let pinned = task.pin(2, 3, GupFlags::WRITE).unwrap();
        let source = pinned[0].start();
        let engine = std::thread::spawn({
            let (mm, emu) = (mm.clone(), emu.clone());
            move || {
                may_go.recv().unwrap();
                let copied = emu.stamp(source);
                emu.set_stamp(source.add(1), copied);
                unpin(&mm, &pinned);
                copied
            }
        });
        fs.unlink(&cx(), "a").unwrap();
        drop(file);
        task.exit();
        let reaper = emu.start(2, {
            let fs = fs.clone();
            move || fs.reap(&cx())
        });
        assert!(!reaper.is_finished(), "the final release waits");
        assert_eq!(free_blocks(&fs), free - 8, "nothing is freed early");
        // Nobody else gets the blocks meanwhile.
        fs.write(&cx(), &keep, 0, &vec![9; (64 * PAGE_SIZE) as usize]).unwrap();
        assert_eq!(emu.stamp(source), 7);
        go.send(()).unwrap();
        assert_eq!(engine.join().unwrap(), 7);
        emu.finish(reaper);
        assert_eq!(free_blocks(&fs), free - 64);
        assert!(mm.meta.inspect(source).is_none());
    });
}

/// covers: E9
#[test]
fn a_pin_that_does_not_end_is_named_on_the_console() {
    let (emu, mm) = rig(3);
    emu.clone().on_cpu(0, || {
        let device = Device::new(&mm, "pmem0", START, 512);
        let fs = device.mount().unwrap();
        let file = fs.create(&cx(), "a", true).unwrap();
        fs.write(&cx(), &file, 0, &[1; 9000]).unwrap();
        let ino = file.ino();
        let task = Task::with(&mm, 1, &file, 2);
        let pinned = task.pin(1, 1, GupFlags::WRITE).unwrap();
        device.kernel.pins.lock().unwrap().insert(pinned[0].start(), "task1, copy.rs:42, 17 us ago".into());
        drop((file, task));
        let freer = emu.start(2, {
            let fs = fs.clone();
            move || fs.unlink(&cx(), "a")
        });
        while !device.kernel.said("has waited") {
            emu.advance_clock(1_000);
            emu.let_run(2, &freer);
        }
        unpin(&mm, &pinned);
        emu.finish(freer).unwrap();
        let lines = device.kernel.lines.lock().unwrap();
        let line = lines.iter().find(|line| line.contains("has waited")).unwrap();
        for words in [&format!("inode {ino} "), "file page 0x1", "pins=1", "task1, copy.rs:42, 17 us ago", "1 folios"] {
            assert!(line.contains(words), "{line:?} lacks {words:?}");
        }
    });
}

/// covers: L1 L3
#[test]
fn long_term_pins_are_refused_and_leave_nothing_pinned() {
    let (_emu, mm) = rig(1);
    let device = Device::new(&mm, "pmem0", START, 512);
    let fs = device.mount().unwrap();
    let file = fs.create(&cx(), "a", true).unwrap();
    fs.write(&cx(), &file, 0, &[1; 9000]).unwrap();
    let task = Task::with(&mm, 0, &file, 2);
    task.store(0, 1).unwrap();
    let refused = task.pin(0, 2, GupFlags::LONGTERM | GupFlags::WRITE);
    assert_eq!(refused, Err(GupError::NotSupported(page(0))));
    assert_eq!(mm.meta.totals().pins, 0);
    let pinned = task.pin(0, 2, GupFlags::WRITE).unwrap();
    assert_eq!(mm.meta.totals().pins, 2);
    unpin(&mm, &pinned);
}

#[test]
fn fsync_writes_back_what_tasks_have_stored() {
    let (_emu, mm) = rig(1);
    let device = Device::new(&mm, "pmem0", START, 512);
    let fs = device.mount().unwrap();
    let file = fs.create(&cx(), "a", true).unwrap();
    fs.write(&cx(), &file, 0, &[1; 20_000]).unwrap();
    let task = Task::with(&mm, 0, &file, 5);
    task.store(1, 1).unwrap();
    task.store(2, 1).unwrap();
    task.store(4, 1).unwrap();
    let before = device.sim.stats();
    let synced = fs.fsync(&cx(), &file).unwrap();
    let after = device.sim.stats();
    assert_eq!((synced.ranges, after.lines - before.lines, after.fences - before.fences), (2, 3 * 64, 1));
    fs.unmap(&cx(), &task.space, page(0), 5 * PAGE_SIZE).unwrap();
    assert_eq!(fs.fsync(&cx(), &file).unwrap().ranges, 0, "nothing was stored since");
}

/// A pin whose page has to be faulted in waits for the thaw, as a task's own access does; where the device leaves instead
/// it fails.
#[test]
fn a_pin_waits_for_a_thaw() {
    let (emu, mm) = rig(2);
    emu.clone().on_cpu(0, || {
        let device = Device::new(&mm, "pmem0", START, 128);
        let fs = device.mount().unwrap();
        let file = fs.create(&cx(), "a", true).unwrap();
        fs.write(&cx(), &file, 0, &vec![1; (4 * PAGE_SIZE) as usize]).unwrap();
        let (one, other) = (Task::with(&mm, 1, &file, 4), Task::with(&mm, 1, &file, 4));
        unpin(&mm, &one.pin(0, 1, GupFlags::WRITE).unwrap());
        fs.freeze(FreezeHolder::User).unwrap();
        let present = one.pin(0, 1, GupFlags::WRITE).expect("what is present is pinned at once");
        unpin(&mm, &present);
        assert_eq!(one.pin(1, 1, GupFlags::WRITE | GupFlags::NO_FAULT), Err(GupError::NotPresent(page(1))));
        let pinning = emu.start(1, move || (one.pin(0, 2, GupFlags::WRITE), one));
        assert!(!emu.let_run(1, &pinning), "the file system is frozen");
        fs.thaw(FreezeHolder::User).unwrap();
        let (pinned, one) = emu.finish(pinning);
        unpin(&mm, &pinned.unwrap());
        one.exit();
        fs.freeze(FreezeHolder::User).unwrap();
        let pinning = emu.start(1, move || other.pin(3, 1, GupFlags::WRITE));
        assert!(!emu.let_run(1, &pinning), "the file system is frozen");
        assert_eq!(device.remove(), [""; 0]);
        assert!(matches!(emu.finish(pinning), Err(GupError::SigBus(va, _)) if va == page(3)));
        drop(file);
        fs.reap(&cx());
    });
}

/// Tasks fault, store, pin and unpin while another cuts and grows the file: no task ever sees a frame that the file
/// does not have, and in the end everything is given back.
#[test]
fn faults_and_pins_against_truncate() {
    let (emu, mm) = rig(3);
    let before = mm.ledger_snapshot();
    emu.clone().on_cpu(0, || {
        let device = Device::new(&mm, "pmem0", START, 4096);
        let fs = device.mount().unwrap();
        let file = fs.create(&cx(), "a", true).unwrap();
        fs.write(&cx(), &file, 0, &vec![1; (32 * PAGE_SIZE) as usize]).unwrap();
        let work = |cpu: usize| {
            let (mm, file, emu) = (mm.clone(), file.clone(), emu.clone());
            emu.clone().start(cpu, move || {
                // From here on it runs beside the others: `start` comes back at the first wait.
                mm.machine.relax();
                let space: Arc<AddressSpace<EmuMachine>> = AddressSpace::new(&mm, "worker").unwrap();
                space.map(page(0), 32 * PAGE_SIZE, mm::entry::Prot::USER_WRITE, &file.ops(), 0).unwrap();
                let task = Task { mm: mm.clone(), cpu, space };
                for nr in 0..400 {
                    match task.pin(nr * 7 % 32, 2, GupFlags::WRITE) {
                        Ok(runs) => unpin(&mm, &runs),
                        Err(GupError::SigBus(_, SigBusCause::BeyondEnd)) => {}
                        Err(error) => panic!("{error}"),
                    }
                    match task.space.handle_fault(page(nr * 5 % 32), mm::space::Access::Write) {
                        Ok(()) | Err(FaultError::SigBus { cause: SigBusCause::BeyondEnd, .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            })
        };
        let workers = [work(1), work(2)];
        for nr in 0..60 {
            fs.truncate(&cx(), &file, nr * 13 % 32 * PAGE_SIZE + 5).unwrap();
            fs.truncate(&cx(), &file, 32 * PAGE_SIZE).unwrap();
        }
        workers.into_iter().for_each(|worker| emu.finish(worker));
        drop(file);
        fs.unmount(&cx()).unwrap();
        device.assert_clean();
        assert!(device.remove().is_empty());
    });
    emu.assert_no_stale();
    assert_no_leak(&mm, before);
}
