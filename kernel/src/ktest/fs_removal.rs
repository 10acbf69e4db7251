//! Tests of removal under mounted file systems that tasks use.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dax::inject::{Fault, Place};
use dax::removal::Method;
use fs::error::{FsError, ShutdownReason};
use fs::freeze::FreezeHolder;
use mm::addr::PAGE_SIZE;
use mm::entry::Prot;
use mm::gup::GupFlags;
use mm::pagemap::MemoryKind;
use mm::pins::PinnedPages;
use spin::Once;

use crate::bringup::options::{self, Stress};
use crate::ktest::fixtures::{BASE, Random, at, here, new_space, no_problems, spawn_in, wait_until};
use crate::ktest::fs::{cx, numbered, said, with_fs};
use crate::ktest::test::{Ctx, Test, check, check_eq};
use crate::mem::machine::Space;
use crate::mem::reserve::FAULTS;
use crate::pmem::devices;
use crate::pmem::mounts::{self, Fs};
use crate::task::tcb::{Signal, Task};
use crate::task::{sched, user};

/// The tests of this file.
pub const TESTS: &[Test] = &[
    Test {
        name: "fs.removal.under_load_the_other_is_untouched",
        covers: "R7 R9 R10 N5 N10 N11 N12 N15",
        run: |ctx| with_fs(ctx, &[0, 1], removal_under_load),
    },
    Test { name: "fs.removal.under_load", covers: "R7 R9 R10 N11", run: |ctx| with_fs(ctx, &[0], removal_under_load) },
    Test {
        name: "fs.removal.without_any_memory",
        covers: "A6 R5 N11 N12",
        run: |ctx| with_fs(ctx, &[0], without_memory),
    },
    Test { name: "fs.removal.lifts_a_users_freeze", covers: "N6", run: |ctx| with_fs(ctx, &[0], lifts_a_freeze) },
];

/// What a task of the load does to a file system until the device is gone: maps a file of its own, stores and loads
/// through the mapping, pins, cuts and grows it, makes and unlinks others.
fn use_it(fs: &Arc<Fs>, space: &Arc<Space>, (nr, rounds): (u64, &AtomicU64), stop: &AtomicBool) -> Result<(), Signal> {
    let gone = |_: FsError| Signal::Killed;
    let path = format!("/file-{nr}");
    let file = fs.create(&cx(), &path, true).map_err(gone)?;
    fs.truncate(&cx(), &file, 16 * PAGE_SIZE).map_err(gone)?;
    if space.map(BASE, 16 * PAGE_SIZE, Prot::USER_WRITE, &file.ops(), 0).is_err() {
        return Err(Signal::Killed);
    }
    let mut random = Random(nr + 1);
    while !stop.load(Ordering::Acquire) {
        let page = random.below(16);
        user::write_u64(at(page * PAGE_SIZE), nr << 32 | page)?;
        if user::read_u64(at(page * PAGE_SIZE))? != nr << 32 | page {
            return Err(Signal::SigSegv { addr: at(page * PAGE_SIZE) });
        }
        drop(PinnedPages::pin(space, at(page * PAGE_SIZE), 1, GupFlags::WRITE));
        if random.one_in(8) {
            fs.truncate(&cx(), &file, 8 * PAGE_SIZE).map_err(gone)?;
            fs.truncate(&cx(), &file, 16 * PAGE_SIZE).map_err(gone)?;
            let other = format!("/other-{nr}");
            drop(fs.create(&cx(), &other, true).map_err(gone)?);
            fs.reap(&cx());
            fs.unlink(&cx(), &other).map_err(gone)?;
        }
        rounds.fetch_add(1, Ordering::Release);
    }
    let _ = fs.unmap(&cx(), space, BASE, 16 * PAGE_SIZE);
    drop(file);
    fs.reap(&cx());
    Ok(())
}

fn removal_under_load(ctx: &mut Ctx, mounted: &[Arc<Fs>]) -> Result<(), String> {
    let goal = if options::get().stress == Stress::Full { 2000 } else { 100 };
    let kept = numbered(&mounted[0], "/kept", 8)?;
    drop(kept);
    mounted[0].reap(&cx());
    let stop = Arc::new(AtomicBool::new(false));
    let mut tasks: Vec<(usize, Arc<AtomicU64>, Arc<Task>)> = Vec::new();
    for (slot, fs) in mounted.iter().enumerate() {
        for nr in 0..2 {
            let (fs, stop, rounds) = (Arc::clone(fs), Arc::clone(&stop), Arc::new(AtomicU64::new(0)));
            let space = new_space("fs-load")?;
            let cpus: Vec<_> = crate::cpu::percpu::online().iter().collect();
            let (inner, counted) = (Arc::clone(&space), Arc::clone(&rounds));
            let task =
                spawn_in(cpus[tasks.len() % cpus.len()], &space, move || use_it(&fs, &inner, (nr, &counted), &stop));
            tasks.push((slot, rounds, task));
        }
    }
    let done = |rounds: &AtomicU64| rounds.load(Ordering::Acquire);
    wait_until(|| tasks.iter().all(|(_, rounds, task)| done(rounds) >= goal || task.exit().is_some()));
    let report = devices::remove(0, Method::Ranged).map_err(said("removal"))?;
    no_problems(&report)?;
    // The others go on: some more rounds after the removal.
    let more: Vec<u64> = tasks.iter().map(|(_, rounds, _)| done(rounds) + 10).collect();
    wait_until(|| {
        tasks
            .iter()
            .zip(&more)
            .all(|((slot, rounds, task), &more)| *slot == 0 || done(rounds) >= more || task.exit().is_some())
    });
    for (slot, _, task) in &tasks {
        if *slot == 0 {
            let end = sched::join(task);
            check!(end.is_err(), "a task of the removed file system ended by {end:?}");
            check!(!matches!(end, Err(Signal::SigSegv { .. })), "a task of the removed file system: {end:?}");
        }
    }
    check!(tasks.iter().all(|(slot, _, task)| *slot == 0 || task.exit().is_none()), "a task of the other one ended");
    stop.store(true, Ordering::Release);
    for (_, _, task) in tasks.iter().filter(|(slot, ..)| *slot != 0) {
        check_eq!(sched::join(task), Ok(()), "a task of the file system that stays");
    }
    let fs = &mounted[0];
    let notified = fs.last_notification().ok_or("the file system was not told")?;
    check_eq!((notified.pre_remove, notified.poisoned, notified.errors.len()), (true, 0, 0), "the notification");
    check!(notified.frozen, "the file system was not frozen for the walk");
    // One for each run of blocks of each of the two files.
    check!(notified.told >= 2, "only {} mappings were told", notified.told);
    check_eq!(notified.told, notified.mappings, "mappings that were told");
    check_eq!(fs.shutdown_reason(), Some(ShutdownReason::ForcedUnmount), "why it is shut down");
    drop(tasks);
    // It comes back clean, with what was durable.
    devices::attach_as(0, MemoryKind::FsDax).map_err(said("attach"))?;
    let damage = mounts::fsck(0)?;
    check!(damage.is_clean(), "damage after the removal: {:?}", damage.problems);
    let again = mounts::mount(0)?;
    let file = again.open(&cx(), "/kept").map_err(said("open"))?;
    let mut word = [0; 8];
    check_eq!(again.read(&cx(), &file, 7 * PAGE_SIZE, &mut word), Ok(8), "bytes of the file that was kept");
    check_eq!(u64::from_le_bytes(word), 7, "its contents");
    drop(file);
    again.reap(&cx());
    ctx.note(format_args!(
        "{} mappings told, {} leaves taken, {} rounds",
        notified.told, notified.leaves, notified.rounds
    ));
    Ok(())
}

/// A write that waits for a thaw gets its answer from the removal: nobody could thaw afterwards.
fn lifts_a_freeze(_: &mut Ctx, mounted: &[Arc<Fs>]) -> Result<(), String> {
    let fs = &mounted[0];
    let file = numbered(fs, "/file", 1)?;
    fs.freeze(FreezeHolder::User).map_err(|error| format!("freeze: {error:?}"))?;
    let (writing, target) = (Arc::clone(fs), Arc::clone(&file));
    let answer = Arc::new(Once::new());
    let answered = Arc::clone(&answer);
    let writer = sched::spawn("writer", here(), None, move || {
        answered.call_once(|| writing.write(&cx(), &target, 0, b"later"));
        Ok(())
    });
    (0..64).for_each(|_| sched::yield_now());
    check_eq!(answer.get(), None, "the answer of a write to a frozen file system");
    let report = devices::remove(0, Method::Ranged).map_err(said("removal"))?;
    let holders = fs.freeze_holders();
    // Where it is frozen still, so that the writer ends.
    for _ in 0..holders.1 {
        fs.thaw(FreezeHolder::User).map_err(said("thaw"))?;
    }
    check_eq!(sched::join(&writer), Ok(()), "end of the writer");
    no_problems(&report)?;
    check_eq!(holders, (0, 0), "holders of a freeze after the removal (kernel, user)");
    let gone = Err(FsError::ShutDown(ShutdownReason::ForcedUnmount));
    check_eq!(answer.get(), Some(&gone), "the answer of the write that waited");
    drop((file, writer));
    fs.reap(&cx());
    devices::attach_as(0, MemoryKind::FsDax).map_err(said("attach"))
}

/// Runs of a file: more than are taken at a time where memory is short.
const RUNS: u64 = 100;

/// No allocation of the removal finds memory. What tasks have stored to a file of many runs is taken away from them and is
/// durable all the same.
fn without_memory(ctx: &mut Ctx, mounted: &[Arc<Fs>]) -> Result<(), String> {
    let fs = &mounted[0];
    let file = fs.create(&cx(), "/runs", true).map_err(said("create"))?;
    // A hole behind each page, so that each is a run of its own.
    for run in 0..RUNS {
        let written = fs.write_all(&cx(), &file, 2 * run * PAGE_SIZE, &[1; 8]);
        written.map_err(said("write"))?;
    }
    let space = new_space("runs")?;
    let bytes = 2 * RUNS * PAGE_SIZE;
    space.map(BASE, bytes, Prot::USER_WRITE, &file.ops(), 0).map_err(said("map"))?;
    let task = spawn_in(here(), &space, || {
        (0..RUNS).try_for_each(|run| user::write_u64(at(2 * run * PAGE_SIZE), !run))?;
        Ok(())
    });
    check_eq!(sched::join(&task), Ok(()), "the task that stores");
    FAULTS.arm(Fault::from_on(Place::Alloc, 1));
    let removed = devices::remove_quietly(0, Method::Ranged);
    check!(FAULTS.disarm(Place::Alloc), "the fault was not armed any more");
    let report = removed.map_err(|error| format!("removal: {error}"))?;
    no_problems(&report)?;
    let notified = fs.last_notification().ok_or("the file system was not told")?;
    check_eq!((notified.leaves, notified.errors.len(), notified.frozen), (RUNS, 0, true), "leaves, errors, frozen");
    drop((file, task, space));
    fs.reap(&cx());
    devices::attach_as(0, MemoryKind::FsDax).map_err(said("attach"))?;
    let again = mounts::mount(0)?;
    let file = again.open(&cx(), "/runs").map_err(said("open"))?;
    for run in 0..RUNS {
        let mut word = [0; 8];
        check_eq!(again.read(&cx(), &file, 2 * run * PAGE_SIZE, &mut word), Ok(8), "bytes of run {run}");
        check_eq!(u64::from_le_bytes(word), !run, "what was stored to run {run}");
    }
    drop(file);
    again.reap(&cx());
    ctx.note(format_args!("{} runs, {} shootdowns, {} told", notified.extents, notified.rounds, notified.told));
    Ok(())
}
