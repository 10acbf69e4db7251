//! Code that an interrupt must not switch away from.

use core::sync::atomic::Ordering;

use arch::{cpu, percpu as area};

use crate::cpu::percpu;
use crate::task::{runner, sched};

/// Preemption is off for as long as the value lives: the task may be interrupted but not switched away.
#[must_use = "preemption comes back on when this is dropped"]
pub struct NoPreempt(core::marker::PhantomData<*const ()>);

impl NoPreempt {
    /// Turns preemption off on this CPU.
    pub fn new() -> Self {
        area::preempt_disable();
        Self(core::marker::PhantomData)
    }
}

impl Default for NoPreempt {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for NoPreempt {
    fn drop(&mut self) {
        area::preempt_enable();
        if area::preempt_count() == 0
            && runner::this().need_resched.load(Ordering::Relaxed)
            && cpu::irqs_on()
            && !percpu::in_interrupt()
        {
            sched::yield_now();
        }
    }
}
