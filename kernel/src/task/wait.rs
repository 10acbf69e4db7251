//! Waiting for a condition without spinning; the protocol is [`::sched::wait`]'s.

use alloc::sync::Arc;
use alloc::vec::Vec;

use ::sched::wait::{self, Guarded};

use crate::cpu::lock::IrqLock;
use crate::task::sched;
use crate::task::tcb::Task;

/// Tasks that wait until somebody says that something has changed.
pub struct WaitQueue {
    tasks: IrqLock<Vec<Arc<Task>>>,
}

impl<V> Guarded<V> for IrqLock<V> {
    fn with<R>(&self, change: impl FnOnce(&mut V) -> R) -> R {
        change(&mut self.lock())
    }
}

impl WaitQueue {
    /// Nobody waits.
    pub const fn new() -> Self {
        Self { tasks: IrqLock::new(Vec::new()) }
    }

    /// Waits until `done` answers true. `done` is asked once more after each [`wake_all`](Self::wake_all), and may be
    /// asked more often.
    ///
    /// # Panics
    /// With interrupts off, or outside a task.
    pub fn wait_until(&self, done: impl FnMut() -> bool) {
        wait::wait_until(&self.tasks, || sched::current().expect("only a task can wait"), done, sched::park);
    }

    /// Wakes every task that waits: something has changed. Not from an interrupt handler (it allocates nothing, but
    /// drops references).
    pub fn wake_all(&self) {
        wait::wake_all(&self.tasks, |task| sched::unpark(&task));
    }
}

impl Default for WaitQueue {
    fn default() -> Self {
        Self::new()
    }
}
