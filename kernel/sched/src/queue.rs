//! The tasks of one CPU: which of them runs, which are ready, which sleep; and how one parks and is woken.
//!
//! A task's CPU alone chooses and switches; others touch its queue, under its lock, to add a task. A queue is plain data:
//! the lock is the kernel's.
//!
//! # Parking
//! ```text
//!  the task, on its CPU                           a waker, on any CPU
//!  P1 under the lock: takes a token, and          U1 leaves a token
//!     returns; or else is parked                  U2 under the lock: is the task parked? Then it is
//!  P2 under the lock: the CPU chooses the next       ready, at the end of the queue
//!  P3 … until it is chosen again                  U3 interrupts the task's CPU, if it added something
//!  P4 takes the token of this waking
//! ```
//! U1 comes before U2, so that a task that parks between the two finds the token in P1, or is found by U2. A task that is
//! woken between P1 and P2 is in the queue and has not gone: P2 may choose it at once, and then it is *running*, as if it had
//! been away. Left "ready", it would be in no queue when it next yields, and would be lost.
//!
//! Models: `tests/loom_park.rs`. Linux: `kernel/sched/core.c`, `try_to_wake_up` and the comment above it.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;

use mm::sync::{AtomicU32, Ordering};

use crate::mutant::Mutant;

/// Where a task is in its life. Changed under its CPU's queue lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum State {
    /// In its CPU's queue.
    Ready = 0,
    /// On its CPU.
    Running = 1,
    /// Waits to be unparked.
    Parked = 2,
    /// Waits for a time.
    Sleeping = 3,
    /// Has ended.
    Dead = 4,
}

/// The part of a task that queues and wakers touch.
#[derive(Debug)]
pub struct Life {
    state: AtomicU32,
    /// 1: an unpark has come.
    token: AtomicU32,
}

impl Life {
    /// Of a task that is about to be added to its queue.
    pub fn new() -> Self {
        Self { state: AtomicU32::new(State::Ready as u32), token: AtomicU32::new(0) }
    }

    /// Where the task is in its life, at this moment.
    pub fn state(&self) -> State {
        match self.state.load(Ordering::Acquire) {
            0 => State::Ready,
            1 => State::Running,
            2 => State::Parked,
            3 => State::Sleeping,
            _ => State::Dead,
        }
    }

    fn set(&self, state: State) {
        self.state.store(state as u32, Ordering::Release);
    }

    /// P1 and P4: was there a token?
    fn take_token(&self) -> bool {
        // Acquire; pairs with the Release in `leave_token`: what its waker did before is seen.
        self.token.swap(0, token_ordering(Ordering::AcqRel)) != 0
    }

    /// U1.
    fn leave_token(&self) {
        // Release; pairs with the Acquire in `take_token`.
        self.token.store(1, token_ordering(Ordering::Release));
    }
}

impl Default for Life {
    fn default() -> Self {
        Self::new()
    }
}

fn token_ordering(order: Ordering) -> Ordering {
    if Mutant::TokenRelaxed.is_on() { Ordering::Relaxed } else { order }
}

/// A task, as queues see it.
pub trait Task {
    /// Its life.
    fn life(&self) -> &Life;
}

/// Lets a task that is parked, or is about to park, go on. `add` locks the queue of the task's CPU and calls
/// [`RunQueue::wake`] for [`State::Parked`].
pub fn unpark<T: Task>(task: &T, add: impl FnOnce()) {
    if Mutant::TokenLeftLate.is_on() {
        add();
        task.life().leave_token();
        return;
    }
    task.life().leave_token();
    add();
}

/// The tasks of one CPU.
#[derive(Debug)]
pub struct RunQueue<T> {
    ready: VecDeque<Arc<T>>,
    /// Tasks that sleep, with the time at which they want to wake.
    sleepers: Vec<(u64, Arc<T>)>,
    current: Option<Arc<T>>,
    idle: Option<Arc<T>>,
    /// The task that has just ended, whose stack was still in use when it switched away.
    dead: Option<Arc<T>>,
}

/// What [`RunQueue::choose`] says.
#[derive(Debug)]
pub enum Chosen<T> {
    /// This CPU has no tasks yet.
    Nothing,
    /// Whoever runs goes on.
    Same,
    /// The CPU has to switch from the first to the second. Both live: the second is current; the first is in the queue, or
    /// has just ended, or is the idle task, or is parked or asleep, and then whoever will wake it holds a reference.
    Switch(Arc<T>, Arc<T>),
}

impl<T: Task> RunQueue<T> {
    /// No tasks.
    pub const fn new() -> Self {
        Self { ready: VecDeque::new(), sleepers: Vec::new(), current: None, idle: None, dead: None }
    }

    /// Makes the code that runs the idle task: current, and chosen where there is no other.
    pub fn become_idle(&mut self, task: Arc<T>) {
        task.life().set(State::Running);
        self.current = Some(Arc::clone(&task));
        self.idle = Some(task);
    }

    /// The running task; `None` before there are tasks.
    pub fn current(&self) -> Option<&Arc<T>> {
        self.current.as_ref()
    }

    /// Is it the idle task that runs?
    pub fn is_idle(&self) -> bool {
        match (&self.current, &self.idle) {
            (Some(current), Some(idle)) => Arc::ptr_eq(current, idle),
            _ => false,
        }
    }

    /// Does a task wait for its turn?
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// When the first sleeper wants to wake.
    pub fn next_wake(&self) -> Option<u64> {
        self.sleepers.iter().map(|&(when, _)| when).min()
    }

    /// P1: the running task is parked from now on, and must have the CPU choose the next one; `false` where it goes on,
    /// since there was a token, or there are no tasks.
    pub fn begin_park(&mut self) -> bool {
        let Some(me) = &self.current else { return false };
        if !Mutant::TokenIgnored.is_on() && me.life().take_token() {
            return false;
        }
        me.life().set(State::Parked);
        true
    }

    /// P4: the running task has come back from [`begin_park`](Self::begin_park).
    pub fn end_park(&mut self) {
        if let Some(me) = &self.current {
            me.life().take_token();
        }
    }

    /// The running task sleeps until `when`, and must have the CPU choose the next one; `false` where there are no tasks.
    pub fn begin_sleep(&mut self, when: u64) -> bool {
        let Some(me) = &self.current else { return false };
        me.life().set(State::Sleeping);
        self.sleepers.push((when, Arc::clone(me)));
        true
    }

    /// The running task has ended: it is never chosen again.
    pub fn end_current(&mut self) {
        if let Some(me) = &self.current {
            me.life().set(State::Dead);
        }
    }

    /// U2: the task is ready, if its state is `from`. A new task's is [`State::Ready`]. Says whether it was added.
    pub fn wake(&mut self, task: &Arc<T>, from: State) -> bool {
        if task.life().state() != from && !Mutant::WokenTwice.is_on() {
            return false;
        }
        task.life().set(State::Ready);
        self.ready.push_back(Arc::clone(task));
        true
    }

    /// Wakes the sleepers whose time has come. Says whether there was one.
    pub fn wake_due(&mut self, now: u64) -> bool {
        let Self { ready, sleepers, .. } = self;
        let before = ready.len();
        sleepers.retain(|(when, task)| {
            let due = *when <= now;
            if due {
                task.life().set(State::Ready);
                ready.push_back(Arc::clone(task));
            }
            !due
        });
        ready.len() != before
    }

    /// P2: whose turn is it? The one that has waited longest; where none waits, whoever runs and can go on, or the idle task.
    ///
    /// # Panics
    /// When there is a task and no idle task.
    pub fn choose(&mut self) -> Chosen<T> {
        let Some(previous) = self.current.take() else { return Chosen::Nothing };
        let idle = self.idle.clone().expect("every CPU that runs tasks has an idle task");
        let goes_on = |task: &T| match task.life().state() {
            State::Running => true,
            State::Parked => Mutant::ParkedGoesOn.is_on(),
            _ => false,
        };
        let next = match self.ready.pop_front() {
            Some(next) => next,
            None if goes_on(&previous) => Arc::clone(&previous),
            None => Arc::clone(&idle),
        };
        if Arc::ptr_eq(&next, &previous) {
            if !Mutant::WokenStaysReady.is_on() {
                previous.life().set(State::Running);
            }
            self.current = Some(previous);
            return Chosen::Same;
        }
        if goes_on(&previous) {
            previous.life().set(State::Ready);
            if !Arc::ptr_eq(&previous, &idle) {
                self.ready.push_back(Arc::clone(&previous));
            }
        }
        next.life().set(State::Running);
        self.current = Some(Arc::clone(&next));
        if previous.life().state() == State::Dead {
            self.dead = Some(Arc::clone(&previous));
        }
        Chosen::Switch(previous, next)
    }

    /// The task that ended and switched away: its stack is no longer in use once another runs.
    pub fn take_dead(&mut self) -> Option<Arc<T>> {
        self.dead.take()
    }
}

impl<T: Task> Default for RunQueue<T> {
    fn default() -> Self {
        Self::new()
    }
}
