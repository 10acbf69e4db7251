//! Tests of who is switched away while he holds a spin lock. With one CPU nobody else lets go of it.

use alloc::string::String;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use mm::sync::Mutex;

use crate::cpu::{ipi, percpu, time};
use crate::ktest::test::{Ctx, Test, check, check_eq};
use crate::task::{runner, sched};

/// The tests of this file.
pub const TESTS: &[Test] = &[
    Test { name: "tasks.locks.a_holder_is_not_switched_away", covers: "", run: a_holder_stays },
    Test { name: "tasks.locks.a_lock_that_nobody_counts_comes_all_the_same", covers: "", run: an_uncounted_one_comes },
    Test {
        name: "tasks.locks.interrupts_do_not_keep_it_away",
        covers: "",
        run: an_uncounted_one_comes_between_interrupts,
    },
];

/// Turns of the other task that are looked for.
const TURNS: u64 = 300;
/// How long the other task goes on without the lock, in turns of a loop: longer than with it, so that the timer finds it without
/// one soon, and it is not switched away by force.
const WITHOUT: u64 = 40;
/// Timer interrupts after which a lock that has not come will not come.
const MOST_TICKS: u64 = 10_000;
/// Other interrupts after which it will not, either.
const MOST_IPIS: u64 = 20_000;

/// Another task of this CPU takes a lock and lets go of it, over and over, and is switched away wherever the timer finds it.
/// Whenever it is our turn the lock is free.
fn a_holder_stays(ctx: &mut Ctx) -> Result<(), String> {
    if !cfg!(debug_assertions) {
        ctx.skip("a release build counts no locks");
        return Ok(());
    }
    let (lock, stop, rounds) =
        (Arc::new(Mutex::new(())), Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (theirs, seen, counted) = (Arc::clone(&lock), Arc::clone(&stop), Arc::clone(&rounds));
    let other = sched::spawn("locker", arch::percpu::cpu(), None, move || {
        while !seen.load(Ordering::Relaxed) {
            drop(theirs.lock());
            counted.fetch_add(1, Ordering::Relaxed);
            (0..WITHOUT).for_each(|turn| {
                core::hint::black_box(turn);
            });
        }
        Ok(())
    });
    let (mut turns, mut taken, mut before) = (0, 0, 0);
    while turns < TURNS {
        sched::yield_now();
        let now = rounds.load(Ordering::Relaxed);
        turns += u64::from(now != before);
        taken += u64::from(lock.try_lock().is_none());
        before = now;
    }
    stop.store(true, Ordering::Relaxed);
    check_eq!(sched::join(&other), Ok(()), "end of the other task");
    check_eq!(taken, 0, "turns in which the task that was switched away held the lock");
    Ok(())
}

/// A holder of a lock that is not counted is switched away, and a task that holds one that is counted spins for it. That one is
/// not switched away at once, and yet not left to spin for ever.
fn an_uncounted_one_comes(_: &mut Ctx) -> Result<(), String> {
    let ticks = || runner::this().ticks.load(Ordering::Relaxed);
    comes_within(&ticks, MOST_TICKS, "timer interrupts")
}

/// So it is where interrupts come one after the other, sooner than the timer runs out. This CPU sends them to itself: another
/// one's come no sooner than the emulator has time for both.
fn an_uncounted_one_comes_between_interrupts(ctx: &mut Ctx) -> Result<(), String> {
    if time::is_deterministic() {
        ctx.skip("the timer goes on by itself in deterministic mode");
        return Ok(());
    }
    let me = arch::percpu::cpu();
    let taken = || {
        ipi::send(me, ipi::VECTOR_TEST);
        percpu::this().test_ipis.load(Ordering::Relaxed)
    };
    comes_within(&taken, MOST_IPIS, "interrupts")
}

/// The lock comes before `count` has grown by `most`.
fn comes_within(count: &dyn Fn() -> u64, most: u64, what: &str) -> Result<(), String> {
    let (lock, is_held, is_wanted) =
        (Arc::new(spin::Mutex::new(())), Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (theirs, held, wanted) = (Arc::clone(&lock), Arc::clone(&is_held), Arc::clone(&is_wanted));
    let other = sched::spawn("holder", arch::percpu::cpu(), None, move || {
        let _guard = theirs.lock();
        held.store(true, Ordering::Relaxed);
        while !wanted.load(Ordering::Relaxed) {
            arch::cpu::pause();
        }
        Ok(())
    });
    while !is_held.load(Ordering::Relaxed) {
        sched::yield_now();
    }
    let counted = Mutex::new(());
    let since = count();
    let comes = {
        let _guard = counted.lock();
        is_wanted.store(true, Ordering::Relaxed);
        loop {
            if lock.try_lock().is_some() {
                break true;
            }
            if count() - since > most {
                break false;
            }
            arch::cpu::pause();
        }
    };
    check_eq!(sched::join(&other), Ok(()), "end of the other task");
    check!(comes, "the lock has not come in {most} {what}");
    Ok(())
}
