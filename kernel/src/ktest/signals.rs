//! Tests of SIGBUS that a task catches: it goes on with its other work, and is asked once for each loss.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dax::removal::Method;
use mm::addr::{PAGE_SIZE, PageSize, VirtAddr};
use mm::space::SigBusCause;
use spin::Mutex;

use crate::ktest::fixtures::{BASE, Device, at, here, new_space, no_problems, page, spawn_in, wait_until};
use crate::ktest::test::{Ctx, Test, check_eq};
use crate::mem::machine::Space;
use crate::pmem::devices;
use crate::task::tcb::{Choice, SigBus, Signal};
use crate::task::{sched, user};

const MIB2: u64 = PageSize::Size2M.bytes();

/// The tests of this file.
pub const TESTS: &[Test] = &[
    Test {
        name: "tasks.sigbus.caught_at_removal_the_task_goes_on",
        covers: "R7",
        run: |ctx| Device::with(ctx, MIB2, removal),
    },
    Test { name: "tasks.sigbus.sent_is_consumed_once", covers: "R7", run: |ctx| Device::with(ctx, MIB2, sent) },
    Test {
        name: "tasks.sigbus.handler_may_choose_the_end",
        covers: "R7",
        run: |ctx| Device::with(ctx, MIB2, chooses_the_end),
    },
    Test {
        name: "tasks.sigbus.a_kill_is_not_caught",
        covers: "",
        run: |ctx| Device::with(ctx, MIB2, kill_is_not_caught),
    },
];

/// What a handler was told, in order.
type Told = Arc<Mutex<Vec<SigBus>>>;

/// Makes the running task note every SIGBUS in `told`, and choose so.
fn note_in(told: &Told, choice: Choice) {
    let told = Arc::clone(told);
    user::catch_sigbus(move |lost| {
        told.lock().push(*lost);
        choice
    });
}

fn lost_at(va: VirtAddr) -> SigBus {
    SigBus { addr: va, len_bytes: PAGE_SIZE, cause: SigBusCause::DeviceGone }
}

/// A space with two mappings of the device, one page apart: at [`BASE`] and at [`second`].
fn two_mappings(device: &Device) -> Result<Arc<Space>, String> {
    let space = new_space("database")?;
    device.map(&space, BASE, 0, page(4), PageSize::Size4K)?;
    device.map(&space, second(), page(8), page(4), PageSize::Size4K)?;
    Ok(space)
}

const fn second() -> VirtAddr {
    at(page(5))
}

/// Writes to both mappings in turns until they are lost, leaving out what is; then works on memory of its own.
/// Answers its result, which is the same whatever was lost.
fn database(ready: &AtomicU64) -> Result<u64, Signal> {
    let mut mapped = Vec::from([at(page(1)), at(page(6))]);
    let mut own = 0;
    user::write_u64(mapped[0], 1)?;
    user::write_u64(mapped[1], 1)?;
    ready.fetch_add(1, Ordering::Release);
    while !mapped.is_empty() {
        mapped.retain(|&va| user::write_u64(va, 2).is_ok());
        arch::cpu::pause();
    }
    for n in 1..=1000 {
        user::check_signal()?;
        own += n;
    }
    Ok(own)
}

fn removal(_: &mut Ctx, device: &Device) -> Result<(), String> {
    let (told, ready, sum) = (Told::default(), Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (noted, reached, answer) = (Arc::clone(&told), Arc::clone(&ready), Arc::clone(&sum));
    let catcher = spawn_in(here(), &two_mappings(device)?, move || {
        note_in(&noted, Choice::GoOn);
        answer.store(database(&reached)?, Ordering::Release);
        Ok(())
    });
    let reached = Arc::clone(&ready);
    let plain = spawn_in(here(), &two_mappings(device)?, move || {
        let va = at(page(1));
        user::write_u64(va, 1)?;
        reached.fetch_add(1, Ordering::Release);
        loop {
            user::read_u64(va)?;
            sched::yield_now();
        }
    });
    wait_until(|| ready.load(Ordering::Acquire) == 2);
    let report = devices::remove(0, Method::Ranged).map_err(|error| format!("removal: {error}"))?;
    no_problems(&report)?;
    check_eq!(sched::join(&catcher), Ok(()), "end of the task that catches");
    check_eq!(sched::join(&plain), Err(lost_at(at(page(1))).into()), "end of the task that does not");
    check_eq!(sum.load(Ordering::Acquire), 500_500, "what the task computed after its loss");
    let mut told = told.lock().clone();
    told.sort_by_key(|lost| lost.addr.as_u64());
    check_eq!(told, [lost_at(at(page(1))), lost_at(at(page(6)))], "losses that the handler was told");
    Ok(())
}

fn sent(_: &mut Ctx, device: &Device) -> Result<(), String> {
    let told = Told::default();
    let (noted, go) = (Arc::clone(&told), Arc::new(AtomicBool::new(false)));
    let results = Arc::new(Mutex::new(Vec::new()));
    let (until, answers) = (Arc::clone(&go), Arc::clone(&results));
    let task = spawn_in(here(), &two_mappings(device)?, move || {
        note_in(&noted, Choice::GoOn);
        wait_until(|| until.load(Ordering::Acquire));
        // Elsewhere than what is said to be lost: goes on as if nothing was, and the signal is consumed.
        answers.lock().push(user::write_u64(second(), 7));
        answers.lock().push(user::read_u64(second()).map(|_| ()));
        // A second one, and an access to what it names: that fails, and the handler is asked once.
        if let Some(me) = sched::current() {
            me.send_signal(lost_at(BASE).into());
        }
        answers.lock().push(user::write_u64(at(8), 7));
        answers.lock().push(user::check_signal());
        Ok(())
    });
    task.send_signal(lost_at(BASE).into());
    go.store(true, Ordering::Release);
    check_eq!(sched::join(&task), Ok(()), "end of the task");
    let failed = Err(lost_at(BASE).into());
    check_eq!(results.lock().clone(), [Ok(()), Ok(()), failed, Ok(())], "answers of its accesses");
    check_eq!(told.lock().clone(), [lost_at(BASE), lost_at(BASE)], "losses that the handler was told");
    Ok(())
}

fn chooses_the_end(_: &mut Ctx, device: &Device) -> Result<(), String> {
    let (told, ready) = (Told::default(), Arc::new(AtomicU64::new(0)));
    let (noted, reached) = (Arc::clone(&told), Arc::clone(&ready));
    let task = spawn_in(here(), &two_mappings(device)?, move || {
        note_in(&noted, Choice::End);
        database(&reached).map(drop)
    });
    wait_until(|| ready.load(Ordering::Acquire) == 1);
    let report = devices::remove(0, Method::Ranged).map_err(|error| format!("removal: {error}"))?;
    no_problems(&report)?;
    let end = sched::join(&task);
    let told = told.lock().clone();
    check_eq!(told.len(), 1, "times that the handler was asked");
    // It passes over what an access answers, but its next check does not.
    check_eq!(end, Err(told[0].into()), "end of the task");
    Ok(())
}

fn kill_is_not_caught(_: &mut Ctx, device: &Device) -> Result<(), String> {
    let told = Told::default();
    let (noted, go) = (Arc::clone(&told), Arc::new(AtomicBool::new(false)));
    let until = Arc::clone(&go);
    let task = spawn_in(here(), &two_mappings(device)?, move || {
        note_in(&noted, Choice::GoOn);
        wait_until(|| until.load(Ordering::Acquire));
        user::write_u64(BASE, 1)
    });
    task.send_signal(lost_at(BASE).into());
    task.send_signal(Signal::Killed);
    task.send_signal(lost_at(BASE).into());
    go.store(true, Ordering::Release);
    check_eq!(sched::join(&task), Err(Signal::Killed), "end of the task");
    check_eq!(told.lock().len(), 0, "times that the handler was asked");
    Ok(())
}
