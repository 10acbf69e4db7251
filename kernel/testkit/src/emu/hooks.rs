//! Actions that a test hangs on what a CPU does, so that a race happens exactly where it should.

use core::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::EmuMachine;
use mm::machine::{CpuId, Machine, Point};

/// What a CPU does, as seen by a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Is about to read or write an entry of a page table (not: its hardware walker).
    Entry,
    /// Is about to load or store, through its TLB.
    Access,
    /// Waits, with interrupts on.
    Relax,
    /// Has turned interrupts off.
    IrqDisable,
    /// Is about to turn interrupts on.
    IrqEnable,
    /// Has sent a shootdown interrupt, which is pending now.
    IpiSent,
    /// Has taken a shootdown interrupt; the handler runs next.
    IpiTaken,
    /// Is back from a shootdown interrupt.
    IpiDone,
    /// Is about to flush a page or everything.
    Flush,
    /// Has flushed a page or everything.
    Flushed,
    /// Has loaded a root.
    LoadRoot,
    /// Is about to take a table page.
    AllocTable,
    /// Is about to free a table page.
    FreeTable,
    /// Has reached a named place in a protocol.
    At(Point),
}

type Action = Box<dyn FnOnce() + Send>;

struct Hook {
    cpu: CpuId,
    event: Event,
    /// Fires when this falls to zero.
    countdown: u32,
    action: Action,
}

impl fmt::Debug for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CPU {} {:?} (after {} more)", self.cpu, self.event, self.countdown)
    }
}

#[derive(Debug, Default)]
pub(super) struct Hooks {
    armed: AtomicUsize,
    list: Mutex<Vec<Hook>>,
}

impl Hooks {
    fn list(&self) -> MutexGuard<'_, Vec<Hook>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The actions that this event sets off, in the order in which they were hung up.
    fn due(&self, cpu: CpuId, event: Event) -> Vec<Action> {
        let mut list = self.list();
        for hook in list.iter_mut().filter(|hook| hook.cpu == cpu && hook.event == event) {
            hook.countdown -= 1;
        }
        let due: Vec<_> = list.extract_if(.., |hook| hook.countdown == 0).map(|hook| hook.action).collect();
        self.armed.store(list.len(), Ordering::SeqCst);
        due
    }
}

impl EmuMachine {
    /// Runs `action`, once, when `cpu` comes to the `nth` (from 1) `event` from now on. The action runs on that CPU
    /// in the middle of what it does; let it play another by [`on_cpu`](EmuMachine::on_cpu) or
    /// [`start`](EmuMachine::start).
    ///
    /// # Panics
    /// Where `nth` is 0.
    pub fn at(&self, cpu: CpuId, event: Event, nth: u32, action: impl FnOnce() + Send + 'static) {
        assert!(nth > 0, "events are counted from 1");
        let mut list = self.inner.hooks.list();
        list.push(Hook { cpu, event, countdown: nth, action: Box::new(action) });
        self.inner.hooks.armed.store(list.len(), Ordering::SeqCst);
    }

    /// Fails when an action has not run: the race that the test is about never took place.
    ///
    /// # Panics
    /// Naming the first such hook.
    #[track_caller]
    pub fn assert_hooks_ran(&self) {
        let list = self.inner.hooks.list();
        assert!(list.is_empty(), "never happened: {:?}", list[0]);
    }

    /// Has `conductor` decide, at each event while it [conducts](Self::conduct), whether another CPU goes on first: it is
    /// told who has come to what, and comes back when that CPU goes on. It answers whether it has the CPUs in hand at this
    /// moment, so that one that waits takes its own interrupts and leaves the others' to them.
    ///
    /// # Panics
    /// When there is a conductor already.
    pub fn set_conductor(&self, conductor: impl Fn(CpuId, Event) -> bool + Send + Sync + 'static) {
        assert!(self.inner.conductor.set(Box::new(conductor)).is_ok(), "the machine has a conductor already");
    }

    /// The conductor is asked from now on, or is not. Setting a machine up and clearing it comes to many more events than a
    /// race on it.
    pub fn conduct(&self, on: bool) {
        self.inner.conducting.store(on, Ordering::SeqCst);
    }

    /// As [`event`](Self::event); answers whether a conductor has the CPUs in hand.
    #[inline]
    pub(super) fn conducted(&self, event: Event) -> bool {
        let conducting = self.inner.conducting.load(Ordering::SeqCst);
        // Mostly nobody wants to know.
        (conducting || self.inner.hooks.armed.load(Ordering::SeqCst) != 0) && self.told(event, conducting)
    }

    #[inline(never)]
    fn told(&self, event: Event, conducting: bool) -> bool {
        self.event_hooks(event);
        conducting && self.inner.conductor.get().is_some_and(|conductor| conductor(self.cpu(), event))
    }

    #[inline]
    pub(super) fn event(&self, event: Event) {
        self.conducted(event);
    }

    fn event_hooks(&self, event: Event) {
        if self.inner.hooks.armed.load(Ordering::SeqCst) == 0 {
            return;
        }
        for action in self.inner.hooks.due(self.cpu(), event) {
            action();
        }
    }
}
