//! The gate before the load: each task goes around some times, so that everything it uses is made, and then waits here for the
//! others. Those that are done early would otherwise take the host's CPUs from those that are not: with 16 CPUs of the guest on
//! two of the host, shared with other work, it took the first act 12 s to get under way, and 2 s since.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::task::sched;
use crate::task::tcb::{Signal, Task};
use crate::task::user;
use crate::task::wait::WaitQueue;

/// Opens once, for all.
#[derive(Default)]
pub struct Gate {
    /// Tasks that have come to it.
    came: AtomicU64,
    /// Tasks that have gone through it.
    through: AtomicU64,
    open: AtomicBool,
    queue: WaitQueue,
}

impl Gate {
    /// Waits for all the others.
    ///
    /// # Errors
    /// The signal of the task, if it got one meanwhile.
    pub fn pass(&self) -> Result<(), Signal> {
        self.came.fetch_add(1, Ordering::Relaxed);
        // Acquire; pairs with the Release in `open`.
        self.queue.wait_until(|| self.open.load(Ordering::Acquire));
        self.through.fetch_add(1, Ordering::Relaxed);
        user::check_signal()
    }

    /// Waits until all of these tasks have come, opens, and waits until all have gone through; or until one has ended before its
    /// time, which the verdict will see.
    pub fn open<'a>(&self, tasks: impl Iterator<Item = &'a Arc<Task>> + Clone) {
        let nr = tasks.clone().count() as u64;
        let wait_for = |count: &AtomicU64| {
            wait_until(|| count.load(Ordering::Relaxed) >= nr || tasks.clone().any(|task| task.exit().is_some()));
        };
        wait_for(&self.came);
        self.open.store(true, Ordering::Release);
        self.queue.wake_all();
        wait_for(&self.through);
    }
}

/// Has none of these tasks ended yet, each of which uses a device that is still there?
///
/// # Errors
/// The first that has, and how.
pub fn none_has_ended<'a>(mut tasks: impl Iterator<Item = &'a Arc<Task>>) -> Result<(), String> {
    let ended = tasks.find_map(|task| Some((&task.name, task.exit()?)));
    match ended {
        None => Ok(()),
        Some((name, Ok(()))) => Err(format!("{name} ended before the device went")),
        Some((name, Err(signal))) => Err(format!("{name} ended before the device went, by {signal}")),
    }
}

/// Waits until `count` has come to `goal`, to which these tasks count together: or until all of them have ended, which the
/// verdict will see.
pub fn wait_for_count(count: &AtomicU64, goal: u64, tasks: &[Arc<Task>]) {
    let all_ended = || tasks.iter().all(|task| task.exit().is_some());
    wait_until(|| count.load(Ordering::Relaxed) >= goal || all_ended());
}

/// Sleeps until `done` says yes.
pub fn wait_until(mut done: impl FnMut() -> bool) {
    const POLL_NS: u64 = 500_000;
    while !done() {
        sched::sleep_ns(POLL_NS);
    }
}
