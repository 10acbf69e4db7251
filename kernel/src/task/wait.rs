//! Waiting for a condition without spinning.

use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::cpu::lock::IrqLock;
use crate::task::sched;
use crate::task::tcb::Task;

/// Tasks that wait until somebody says that something has changed.
pub struct WaitQueue {
    tasks: IrqLock<Vec<Arc<Task>>>,
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
    pub fn wait_until(&self, mut done: impl FnMut() -> bool) {
        while !done() {
            let me = sched::current().expect("only a task can wait");
            // First in the queue, then ask again: whoever changes something after the question finds us.
            self.tasks.lock().push(Arc::clone(&me));
            if done() {
                self.tasks.lock().retain(|task| task.id != me.id);
                return;
            }
            sched::park();
            self.tasks.lock().retain(|task| task.id != me.id);
        }
    }

    /// Wakes every task that waits: something has changed. Not from an interrupt handler (it allocates nothing, but
    /// drops references).
    pub fn wake_all(&self) {
        let tasks = core::mem::take(&mut *self.tasks.lock());
        for task in tasks {
            sched::unpark(&task);
        }
    }
}

impl Default for WaitQueue {
    fn default() -> Self {
        Self::new()
    }
}
