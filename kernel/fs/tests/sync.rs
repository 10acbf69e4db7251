//! What `fsync` writes back: what tasks have stored since the last one, all of that, and nothing else.

mod rig;

use std::sync::{Arc, Mutex};

use fs::error::FsError;
use fs::format::BLOCK_SIZE;
use fs::handle::Synced;
use fs::mounted::{Mounted, Source};
use fs::pmem::Pmem;
use mm::addr::{PAGE_SIZE, Pfn};
use mm::entry::Prot;
use mm::gup::GupFlags;
use rig::*;
use testkit::emu::{EmuMachine, Event};
use testkit::sim::{Limits, Recorder, SimPmem};

const NOTHING: Synced = Synced { ranges: 0, fenced: false };

fn ranges(nr: usize) -> Synced {
    Synced { ranges: nr, fenced: true }
}

/// A file of `pages` pages on a new file system, with everything durable.
fn file_of(device: &Device, pages: u64) -> (Arc<Fs>, Open) {
    let fs = device.mount().unwrap();
    let file = fs.create(&cx(), "a", true).unwrap();
    fs.write(&cx(), &file, 0, &vec![1; (pages * PAGE_SIZE) as usize]).unwrap();
    (fs, file)
}

/// Where the bytes of a page that is mapped are on the medium.
fn place(task: &Task, nr: u64) -> u64 {
    (task.space.translate(page(nr)).unwrap().pfn_at(page(nr)).as_u64() - START) * BLOCK_SIZE
}

/// Is the byte at `at` what it is in the cache, whatever a power cut may leave now?
fn is_durable(sim: &Arc<SimPmem>, recorder: &mut Recorder, at: u64) -> bool {
    let now = sim.bytes()[at as usize];
    sim.mark(1);
    let (mut images, mut durable) = (0, true);
    recorder.crash_images(sim, Limits { per_point: 64, torn: 8, seed: 1 }, &mut |image, mark| {
        images += mark;
        durable &= mark == 0 || image[at as usize] == now;
        true
    });
    assert!(images > 0);
    durable
}

#[test]
fn a_sync_costs_what_was_stored_since_the_last_one() {
    let (emu, mm) = rig(2);
    let device = Device::new(&mm, "pmem0", START, 2048);
    let (fs, file) = file_of(&device, 64);
    let (one, two) = (Task::with(&mm, 0, &file, 64), Task::with(&mm, 1, &file, 64));
    let sync = || {
        let (before, cleaned) = (device.sim.stats(), emu.stats());
        let synced = fs.fsync(&cx(), &file).unwrap();
        let (after, ended) = (device.sim.stats(), emu.stats());
        (synced, after.lines - before.lines, after.fences - before.fences, ended.ipis_sent - cleaned.ipis_sent)
    };
    // Loads make nothing dirty.
    (0..64).for_each(|nr| assert_eq!(one.fetch(nr), Ok(0)));
    assert_eq!(sync(), (NOTHING, 0, 0, 0));
    // Two tasks, three pages in two runs: one round, which interrupts whoever has one of the spaces loaded once.
    [7, 8, 30].into_iter().for_each(|nr| one.store(nr, 1).unwrap());
    two.store(8, 2).unwrap();
    let (synced, lines, fences, ipis) = emu.on_cpu(0, sync);
    assert_eq!((synced, lines, fences), (ranges(2), 3 * 64, 1));
    assert_eq!(ipis, 1, "the other CPU, once");
    assert_eq!(sync(), (NOTHING, 0, 0, 0));
    // The pages are still there, for loads; a store is noted again.
    assert_eq!((one.fetch(8), two.fetch(8)), (Ok(2), Ok(2)));
    assert_eq!(sync(), (NOTHING, 0, 0, 0));
    two.store(8, 3).unwrap();
    assert_eq!(sync().0, ranges(1));
    // What was stored before an unmap is not forgotten.
    one.store(9, 4).unwrap();
    drop((one, two));
    let (synced, lines, ..) = sync();
    assert_eq!((synced, lines), (ranges(1), 64));
    assert_eq!(sync(), (NOTHING, 0, 0, 0));
    emu.assert_no_stale();
}

#[test]
fn a_change_of_rights_hides_no_store() {
    let (_emu, mm) = rig(1);
    let device = Device::new(&mm, "pmem0", START, 2048);
    let (fs, file) = file_of(&device, 4);
    let task = Task::with(&mm, 0, &file, 4);
    task.store(1, 1).unwrap();
    assert_eq!(fs.fsync(&cx(), &file), Ok(ranges(1)));
    task.space.protect(page(0), 4 * PAGE_SIZE, Prot::USER_READ).unwrap();
    task.space.protect(page(0), 4 * PAGE_SIZE, Prot::USER_WRITE).unwrap();
    assert_eq!(fs.fsync(&cx(), &file), Ok(NOTHING));
    task.store(1, 2).unwrap();
    assert_eq!(fs.fsync(&cx(), &file), Ok(ranges(1)));
}

/// Stores from CPU 1 while CPU 0 syncs: `event` of `cpu` says when. The store is durable after the sync, or the next sync
/// writes it back.
fn race(cpu: usize, event: Event) {
    let (emu, mm) = rig(2);
    let device = Device::new(&mm, "pmem0", START, 2048);
    let (fs, file) = file_of(&device, 4);
    let task = Task::with(&mm, 1, &file, 4);
    let mut recorder = device.sim.record();
    task.store(2, 1).unwrap();
    let at = place(&task, 2);
    let (racer, sim) = (emu.clone(), device.sim.clone());
    // Through what is in the TLB: no fault.
    let store = move |emu: &EmuMachine| {
        emu.write(page(2), 2, true).expect("the right is in the TLB");
        sim.store(at, &[9; 8]).unwrap();
    };
    emu.at(cpu, event, 1, move || if cpu == 1 { store(&racer) } else { racer.on_cpu(1, || store(&racer)) });
    assert_eq!(emu.on_cpu(0, || fs.fsync(&cx(), &file)), Ok(ranges(1)));
    emu.assert_hooks_ran();
    emu.assert_no_stale();
    assert_eq!(device.sim.bytes()[at as usize], 9);
    if !is_durable(&device.sim, &mut recorder, at) {
        assert_eq!(fs.fsync(&cx(), &file), Ok(ranges(1)), "the store was not noted");
        assert!(is_durable(&device.sim, &mut recorder, at));
    }
    // A store afterwards faults, and is noted.
    task.store(2, 3).unwrap();
    device.sim.store(at, &[8; 8]).unwrap();
    assert_eq!(fs.fsync(&cx(), &file), Ok(ranges(1)));
    assert!(is_durable(&device.sim, &mut recorder, at));
}

#[test]
fn a_store_that_races_with_a_sync_is_written_back_or_noted() {
    // Before the entry changes, and with the old entry in the TLB after it has changed.
    race(0, Event::Entry);
    race(1, Event::IpiTaken);
}

#[test]
fn a_page_that_is_pinned_stays_dirty() {
    let (_emu, mm) = rig(2);
    let device = Device::new(&mm, "pmem0", START, 2048);
    let (fs, file) = file_of(&device, 8);
    let task = Task::with(&mm, 0, &file, 8);
    let mut recorder = device.sim.record();
    // Write-protected: pinning for stores goes through a fault.
    assert_eq!(task.fetch(3), Ok(0));
    assert_eq!(fs.fsync(&cx(), &file), Ok(NOTHING));
    let pins = task.pin(3, 1, GupFlags::WRITE).unwrap();
    task.store(5, 1).unwrap();
    assert_eq!(fs.fsync(&cx(), &file), Ok(ranges(2)));
    // The transfer stores without any mapping, and ends; its task has gone meanwhile.
    let at = place(&task, 3);
    task.exit();
    device.sim.store(at, &[7; 8]).unwrap();
    assert_eq!(fs.fsync(&cx(), &file), Ok(ranges(1)));
    assert!(is_durable(&device.sim, &mut recorder, at), "stored by a transfer under way");
    device.sim.store(at, &[6; 8]).unwrap();
    assert_eq!(pins[0].start(), Pfn::new(START + at / BLOCK_SIZE));
    unpin(&mm, &pins);
    assert_eq!(fs.fsync(&cx(), &file), Ok(ranges(1)));
    assert!(is_durable(&device.sim, &mut recorder, at), "stored by a transfer that has ended");
    assert_eq!(fs.fsync(&cx(), &file), Ok(NOTHING));
}

/// As [`file_of`], with the memory that may fail.
fn failing(device: &Device, pages: u64) -> (Arc<Hooked>, Arc<Fs>, Open) {
    let pmem = Hooked::new(&device.sim);
    let fs = Mounted::mount(&device.mm, Source { pmem: pmem.clone(), ..device.source() }).unwrap();
    let file = fs.create(&cx(), "a", true).unwrap();
    fs.write(&cx(), &file, 0, &vec![1; (pages * PAGE_SIZE) as usize]).unwrap();
    (pmem, fs, file)
}

#[test]
fn what_a_sync_could_not_make_durable_is_for_the_next_one() {
    let (_emu, mm) = rig(1);
    let device = Device::new(&mm, "pmem0", START, 2048);
    let (pmem, fs, file) = failing(&device, 8);
    let task = Task::with(&mm, 0, &file, 8);
    let mut recorder = device.sim.record();
    for nr in [2, 5] {
        task.store(nr, 1).unwrap();
        device.sim.store(place(&task, nr), &[9; 8]).unwrap();
    }
    // Between the failure and the next sync another page is stored to.
    pmem.fail_next_fence(|| ());
    assert_eq!(fs.fsync(&cx(), &file), Err(FsError::NotDurable));
    assert_eq!(fs.shutdown_reason(), None);
    assert!(!is_durable(&device.sim, &mut recorder, place(&task, 2)));
    task.store(7, 1).unwrap();
    device.sim.store(place(&task, 7), &[9; 8]).unwrap();
    assert_eq!(fs.fsync(&cx(), &file), Ok(ranges(3)));
    [2, 5, 7].into_iter().for_each(|nr| assert!(is_durable(&device.sim, &mut recorder, place(&task, nr))));
    assert_eq!(fs.fsync(&cx(), &file), Ok(NOTHING));
}

/// The last handle is dropped, what was stored is to be saved, and that fails; somebody opens the file at that moment. A
/// sync that found nothing to do would tell him that it is durable.
#[test]
fn what_a_last_close_could_not_save_is_for_who_has_opened_the_file_meanwhile() {
    let (_emu, mm) = rig(1);
    let device = Device::new(&mm, "pmem0", START, 2048);
    let (pmem, fs, file) = failing(&device, 4);
    let task = Task::with(&mm, 0, &file, 4);
    let mut recorder = device.sim.record();
    task.store(3, 1).unwrap();
    let at = place(&task, 3);
    device.sim.store(at, &[9; 8]).unwrap();
    task.exit();
    drop(file);
    let (opener, opened) = (fs.clone(), Arc::new(Mutex::new(None)));
    let place_for = opened.clone();
    pmem.fail_next_fence(move || *place_for.lock().unwrap() = Some(opener.open(&cx(), "a").unwrap()));
    fs.reap(&cx());
    assert!(device.kernel.said("cannot let go of inode"));
    assert!(!is_durable(&device.sim, &mut recorder, at));
    let file = opened.lock().unwrap().take().expect("the last close has saved something");
    assert_eq!(fs.fsync(&cx(), &file), Ok(ranges(1)));
    assert!(is_durable(&device.sim, &mut recorder, at));
    drop(file);
    fs.unmount(&cx()).unwrap();
}

/// covers: E6
#[test]
fn the_last_close_makes_durable_what_tasks_have_stored() {
    let (_emu, mm) = rig(1);
    let device = Device::new(&mm, "pmem0", START, 2048);
    let (fs, file) = file_of(&device, 4);
    let task = Task::with(&mm, 0, &file, 4);
    let mut recorder = device.sim.record();
    task.store(2, 1).unwrap();
    let at = place(&task, 2);
    device.sim.store(at, &[9; 8]).unwrap();
    drop((task, file));
    assert!(!is_durable(&device.sim, &mut recorder, at));
    fs.reap(&cx());
    assert!(is_durable(&device.sim, &mut recorder, at));
    fs.unmount(&cx()).unwrap();
}
