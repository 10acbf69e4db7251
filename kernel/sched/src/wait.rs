//! Waiting for a condition without spinning.
//!
//! # Protocol
//! ```text
//!  who waits                                  who changes something
//!  A1 asks                                    B1 changes it
//!  A2 enters itself among those who wait      B2 takes the list of those who wait
//!  A3 asks again                              B3 leaves a token for each, and wakes those that are parked
//!  A4 parks, unless there is a token
//! ```
//! Either B2 finds the task, or A2 comes after B2, and then A3 sees the change.
//!
//! Model: `tests/loom_park.rs`. Linux: `kernel/sched/wait.c`.

use alloc::sync::Arc;
use alloc::vec::Vec;

use mm::sync::Mutex;

use crate::mutant::Mutant;

/// Access to what a lock guards: the kernel's own keeps interrupts off meanwhile.
pub trait Guarded<V> {
    /// Does something to the value while nobody else reaches it.
    fn with<R>(&self, change: impl FnOnce(&mut V) -> R) -> R;
}

impl<V> Guarded<V> for Mutex<V> {
    fn with<R>(&self, change: impl FnOnce(&mut V) -> R) -> R {
        change(&mut self.lock())
    }
}

/// Waits until `done` answers true: asks at once, and again after each [`wake_all`] of the same list; it may ask more often.
/// `park` returns when the task has been woken, and may return earlier.
pub fn wait_until<T>(
    list: &impl Guarded<Vec<Arc<T>>>,
    me: impl Fn() -> Arc<T>,
    mut done: impl FnMut() -> bool,
    mut park: impl FnMut(),
) {
    while !done() {
        let me = me();
        let leave = || list.with(|tasks| tasks.retain(|task| !Arc::ptr_eq(task, &me)));
        let early = Mutant::EnteredLate.is_on() && done();
        // A2.
        list.with(|tasks| tasks.push(Arc::clone(&me)));
        // A3: whoever changes something after this question finds us.
        let late = !Mutant::EnteredLate.is_on() && !Mutant::WaitsWithoutAsking.is_on() && done();
        if early || late {
            leave();
            return;
        }
        park();
        leave();
    }
}

/// Wakes every task of the list: something has changed. `unpark` is [`queue::unpark`](crate::queue::unpark).
pub fn wake_all<T>(list: &impl Guarded<Vec<Arc<T>>>, unpark: impl FnMut(Arc<T>)) {
    // Taken out first: the list is not locked while a queue is.
    let tasks = list.with(core::mem::take);
    tasks.into_iter().for_each(unpark);
}
