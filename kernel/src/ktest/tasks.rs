//! Tests of tasks: preemption, waiting, address spaces and user access.

use alloc::string::String;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use mm::access::SigBusCause;
use mm::addr::{PAGE_SIZE, VirtAddr};
use mm::lock_check;
use mm::sync::Mutex;

use crate::cpu::lock::IrqLock;
use crate::cpu::percpu;
use crate::ktest::test::{Ctx, Test, check, check_eq};
use crate::mem::machine::{self, Space};
use crate::task::preempt::NoPreempt;
use crate::task::tcb::{self, Signal, State, Task};
use crate::task::wait::WaitQueue;
use crate::task::{sched, user};

/// The tests of this file.
pub const TESTS: &[Test] = &[
    Test { name: "tasks.sched.a_spinning_task_is_preempted", covers: "", run: spinning_is_preempted },
    Test { name: "tasks.sched.every_cpu_runs_tasks", covers: "", run: every_cpu_runs },
    Test { name: "tasks.sched.no_preempt_keeps_the_cpu", covers: "", run: no_preempt },
    Test { name: "tasks.wait.waking_is_never_lost", covers: "", run: waking },
    Test { name: "tasks.wait.woken_before_it_has_gone", covers: "", run: woken_early },
    Test { name: "tasks.wait.locks_are_counted_for_each_task", covers: "", run: locks_are_counted },
    Test { name: "tasks.user.unmapped_address_is_an_error", covers: "G7", run: unmapped_is_an_error },
    Test { name: "tasks.user.kernel_address_is_an_error", covers: "G7", run: kernel_address_is_an_error },
    Test { name: "tasks.user.signal_ends_the_task_alone", covers: "", run: signal_ends_the_task },
    Test { name: "tasks.space.goes_with_its_last_task", covers: "", run: space_goes },
    Test { name: "tasks.space.whom_a_removal_has_ended_is_known", covers: "R5", run: ended_is_known },
];

fn spinning_is_preempted(_: &mut Ctx) -> Result<(), String> {
    let stop = Arc::new(AtomicBool::new(false));
    let rounds = Arc::new(AtomicU64::new(0));
    let (seen, counted) = (Arc::clone(&stop), Arc::clone(&rounds));
    // Never yields: only the timer can take its CPU away.
    let spinner = sched::spawn("spinner", 0, None, move || {
        while !seen.load(Ordering::Relaxed) {
            counted.fetch_add(1, Ordering::Relaxed);
            arch::cpu::pause();
        }
        Ok(())
    });
    while rounds.load(Ordering::Relaxed) == 0 {
        sched::yield_now();
    }
    // We are here again although it spins on our CPU; and it goes on. Not with its very next turn, perhaps: a timer
    // interrupt that waits by then takes the CPU away before it has done anything. A task that never goes on is a hang.
    let before = rounds.load(Ordering::Relaxed);
    while rounds.load(Ordering::Relaxed) == before {
        sched::yield_now();
    }
    check_eq!(spinner.exit(), None, "end of the spinning task");
    stop.store(true, Ordering::Relaxed);
    check_eq!(sched::join(&spinner), Ok(()), "end of the spinning task");
    Ok(())
}

fn every_cpu_runs(_: &mut Ctx) -> Result<(), String> {
    let ran = Arc::new(AtomicU64::new(0));
    let online = percpu::online();
    let tasks: alloc::vec::Vec<_> = online
        .iter()
        .map(|cpu| {
            let ran = Arc::clone(&ran);
            sched::spawn("where", cpu, None, move || {
                ran.fetch_or(1 << arch::percpu::cpu(), Ordering::Relaxed);
                Ok(())
            })
        })
        .collect();
    for task in &tasks {
        check_eq!(sched::join(task), Ok(()), "end of {task:?}");
    }
    check_eq!(ran.load(Ordering::Relaxed), online.bits(), "CPUs on which a task ran");
    Ok(())
}

fn no_preempt(_: &mut Ctx) -> Result<(), String> {
    let ran = Arc::new(AtomicBool::new(false));
    let there = Arc::clone(&ran);
    let me = arch::percpu::cpu();
    let guard = NoPreempt::new();
    let other = sched::spawn("other", me, None, move || {
        there.store(true, Ordering::Relaxed);
        Ok(())
    });
    let until = crate::cpu::time::since_first_line_ns() + 3 * sched::SLICE_NS;
    while crate::cpu::time::since_first_line_ns() < until {
        arch::cpu::pause();
    }
    let ran_early = ran.load(Ordering::Relaxed);
    drop(guard);
    check!(!ran_early, "another task ran while preemption was off");
    check_eq!(sched::join(&other), Ok(()), "end of the other task");
    check!(ran.load(Ordering::Relaxed), "the other task never ran");
    Ok(())
}

fn waking(_: &mut Ctx) -> Result<(), String> {
    const ROUNDS: u64 = 200;
    struct Shared {
        turn: AtomicU64,
        queue: WaitQueue,
    }
    let shared = Arc::new(Shared { turn: AtomicU64::new(0), queue: WaitQueue::new() });
    let there = Arc::clone(&shared);
    let other_cpu = percpu::online().without(arch::percpu::cpu()).iter().next().unwrap_or(0);
    // Two tasks take turns; a lost wake-up would leave both waiting for ever.
    let partner = sched::spawn("partner", other_cpu, None, move || {
        for round in 0..ROUNDS {
            there.queue.wait_until(|| there.turn.load(Ordering::Acquire) == 2 * round + 1);
            there.turn.store(2 * round + 2, Ordering::Release);
            there.queue.wake_all();
        }
        Ok(())
    });
    for round in 0..ROUNDS {
        shared.turn.store(2 * round + 1, Ordering::Release);
        shared.queue.wake_all();
        shared.queue.wait_until(|| shared.turn.load(Ordering::Acquire) == 2 * round + 2);
    }
    check_eq!(sched::join(&partner), Ok(()), "end of the partner");
    check_eq!(shared.turn.load(Ordering::Relaxed), 2 * ROUNDS, "turns taken");
    Ok(())
}

/// A task that is woken when it has said that it parks, and has not yet left its CPU, never leaves it. It must be a
/// running task afterwards: one that is only ready, and in no queue, is lost when it next yields.
fn woken_early(_: &mut Ctx) -> Result<(), String> {
    let states = Arc::new(IrqLock::new(alloc::vec::Vec::new()));
    let there = Arc::clone(&states);
    let parker = sched::spawn("parker", arch::percpu::cpu(), None, move || {
        for _ in 0..3 {
            let Some(me) = sched::current() else { return Err(Signal::Killed) };
            sched::park_with(|| {
                there.lock().push(me.state());
                sched::unpark(&me);
            });
            let state = me.state();
            there.lock().push(state);
            if state != State::Running {
                return Ok(());
            }
            sched::yield_now();
        }
        Ok(())
    });
    check_eq!(sched::join(&parker), Ok(()), "end of the task that was woken early");
    let expected = [State::Parked, State::Running].repeat(3);
    check_eq!(*states.lock(), expected, "the task's states before it was woken, and after");
    Ok(())
}

/// A task that waits with a lock held stops a debug build; so what is held is known for each task, and goes with it.
fn locks_are_counted(ctx: &mut Ctx) -> Result<(), String> {
    if !cfg!(debug_assertions) {
        ctx.skip("a release build counts no locks");
        return Ok(());
    }
    check_eq!(lock_check::locks_held(), 0, "locks held at first");
    let elsewhere = Arc::new(AtomicU64::new(u64::MAX));
    let there = Arc::clone(&elsewhere);
    let (one, two) = (Mutex::new(()), Mutex::new(()));
    let guards = (one.lock(), two.lock());
    // Of this CPU: it runs while this task, which holds two, does not.
    let other = sched::spawn("other", arch::percpu::cpu(), None, move || {
        there.store(lock_check::locks_held() as u64, Ordering::Release);
        Ok(())
    });
    while elsewhere.load(Ordering::Acquire) == u64::MAX {
        sched::yield_now();
    }
    let here = lock_check::locks_held();
    drop(guards);
    check_eq!(sched::join(&other), Ok(()), "end of the other task");
    check_eq!(
        (here, elsewhere.load(Ordering::Relaxed), lock_check::locks_held()),
        (2, 0, 0),
        "locks here, of the other, at last"
    );
    Ok(())
}

fn new_space(name: &str) -> Result<Arc<Space>, String> {
    Space::new(machine::mm(), name).map_err(|error| alloc::format!("no address space: {error}"))
}

fn unmapped_is_an_error(_: &mut Ctx) -> Result<(), String> {
    const HOLE: VirtAddr = VirtAddr::new(0x1234_5000);
    let task = sched::spawn("hole", 0, Some(new_space("hole")?), || {
        let mut bytes = [0; 24];
        let expected = Err(Signal::SigSegv { addr: HOLE });
        let results = [
            user::read_u64(HOLE).map(|_| ()),
            user::write_u64(HOLE, 1),
            user::copy_from(&mut bytes, HOLE),
            user::copy_to(HOLE, &bytes),
        ];
        match results.iter().find(|&&result| result != expected) {
            Some(&other) => other.and(Err(Signal::Killed)),
            None => Ok(()),
        }
    });
    check_eq!(sched::join(&task), Ok(()), "every access to a hole is an error at the hole");
    // Without an address space at all, the same.
    check_eq!(user::read_u64(HOLE), Err(Signal::SigSegv { addr: HOLE }), "read without an address space");
    Ok(())
}

fn kernel_address_is_an_error(_: &mut Ctx) -> Result<(), String> {
    let secret = 42u64;
    let kernel = VirtAddr::new(&raw const secret as u64);
    check_eq!(user::read_u64(kernel), Err(Signal::SigSegv { addr: kernel }), "read of the kernel's stack");
    check_eq!(user::write_u64(kernel, 0), Err(Signal::SigSegv { addr: kernel }), "write to the kernel's stack");
    check_eq!(core::hint::black_box(secret), 42, "the kernel's own value");
    let last = VirtAddr::new(arch::user::USER_END - 4);
    check_eq!(user::read_u64(last), Err(Signal::SigSegv { addr: last }), "read across the end of the user half");
    Ok(())
}

fn signal_ends_the_task(_: &mut Ctx) -> Result<(), String> {
    const HOLE: VirtAddr = VirtAddr::new(0x7000_0000);
    let victim = sched::spawn("victim", 0, Some(new_space("victim")?), || user::write_u64(HOLE, 7));
    let bystander = sched::spawn("bystander", 0, Some(new_space("bystander")?), || Ok(()));
    check_eq!(sched::join(&victim), Err(Signal::SigSegv { addr: HOLE }), "end of the victim");
    check_eq!(sched::join(&bystander), Ok(()), "end of the bystander");
    let told = sched::spawn("told", 0, Some(new_space("told")?), || {
        loop {
            user::check_signal()?;
            sched::yield_now();
        }
    });
    told.send_signal(Signal::Killed);
    check_eq!(sched::join(&told), Err(Signal::Killed), "end of the task that was sent a signal");
    Ok(())
}

fn space_goes(_: &mut Ctx) -> Result<(), String> {
    use mm::ledger::Kind;
    let mm = machine::mm();
    let before = mm.ledger_snapshot();
    let space = new_space("short")?;
    check_eq!(mm.ledger.count(Kind::AddressSpaces), before.count(Kind::AddressSpaces) + 1, "address spaces");
    let tasks: alloc::vec::Vec<_> =
        percpu::online().iter().map(|cpu| sched::spawn("user", cpu, Some(Arc::clone(&space)), || Ok(()))).collect();
    drop(space);
    for task in &tasks {
        check_eq!(sched::join(task), Ok(()), "end of {task:?}");
    }
    let after = mm.ledger_snapshot();
    check_eq!(after.diff(&before).next(), None, "what the ledger still holds");
    Ok(())
}

/// Calls somebody with each task of a list.
type List = fn(&mut dyn FnMut(u64, &Task));

/// A removal asks for its users after it has taken their pages away; one of them may have ended by then.
fn ended_is_known(_: &mut Ctx) -> Result<(), String> {
    let lost = |cause| Err(Signal::SigBus { addr: VirtAddr::new(PAGE_SIZE), len_bytes: PAGE_SIZE, cause });
    for (end, known) in [(lost(SigBusCause::DeviceGone), true), (lost(SigBusCause::BeyondEnd), false), (Ok(()), false)]
    {
        let space = new_space("ended")?;
        let id = space.id();
        let go = Arc::new(AtomicBool::new(false));
        let gone = Arc::clone(&go);
        let task = sched::spawn("ended", 0, Some(space), move || {
            while !gone.load(Ordering::Acquire) {
                sched::yield_now();
            }
            end
        });
        // Looked for by the task, too: the number alone would do for a space that two have.
        let listed = |list: List| {
            let mut found = false;
            list(&mut |space, other| found |= (space, other.id) == (id, task.id));
            found
        };
        check!(listed(tcb::for_each_user) && listed(tcb::for_each_with_space), "a task that lives is not listed");
        go.store(true, Ordering::Release);
        check_eq!(sched::join(&task), end, "how it ended");
        check_eq!(listed(tcb::for_each_user), known, "listed as one that a removal has ended");
        check!(!listed(tcb::for_each_with_space), "a task without a space is listed");
    }
    Ok(())
}
