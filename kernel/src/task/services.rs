//! What tasks do for rooms further left, which do not know them.

use core::sync::atomic::Ordering;

use mm::lock_check;

use crate::mem::machine;
use crate::mem::reserve::Section;
use crate::task::sched;

/// From now on a waiter lets other tasks run, and each task's locks are counted. Called once, when the context is made.
pub fn start() {
    machine::yield_by(sched::yield_if_allowed);
    lock_check::count_by(count_locks);
}

/// Adds to the number of locks that the running task holds. An interrupt handler counts on the task that it
/// interrupted, and has none left when it ends.
fn count_locks(change: i64) -> i64 {
    sched::with_current(|task| {
        let held = task.locks_held.load(Ordering::Relaxed) + change;
        task.locks_held.store(held, Ordering::Relaxed);
        held
    })
    .unwrap_or(0)
}

/// Begins an attach or a removal of the running task: see [`Section`].
pub fn enter_section() -> Section {
    Section::enter(sched::with_current(|task| (task.stack().bottom(), task.stack().top())))
}
