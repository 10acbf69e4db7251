//! Models of parking, waking and waiting: the very code of `sched::queue` and `sched::wait`.
//!
//! Run with `RUSTFLAGS="--cfg loom" cargo test -p sched --release --test loom_park`.
//!
//! The model's main thread is a CPU: it runs a task's code while the queue says so, and idles else, until the interrupt of a
//! waker comes. Property: a task that is woken, or is about to park when its waker comes, runs again, and sees what its waker
//! did before; it is in one place of its queue at a time, also when it next gives its turn away.
#![cfg(any(loom, shuttle))]

use std::sync::Arc as Counted;

use mm::sync::model::thread::{self, JoinHandle};
use mm::sync::model::{Bound, UnsafeCell, explore};
use mm::sync::{Arc, AtomicUsize, Mutex, Ordering};
use sched::queue::{Chosen, Life, RunQueue, State, Task, unpark};
use sched::wait::{wait_until, wake_all};

#[derive(Default)]
struct Job {
    life: Life,
}

impl Task for Job {
    fn life(&self) -> &Life {
        &self.life
    }
}

/// A CPU with an idle task and one other, which runs.
struct Cpu {
    queue: Mutex<RunQueue<Job>>,
    task: Counted<Job>,
    waiting: Mutex<Vec<Counted<Job>>>,
    condition: AtomicUsize,
    /// Written by a waker before it wakes the task, which reads it afterwards.
    before: UnsafeCell<u64>,
}

// SAFETY: `before` is what the models check: the checker ends a model where two threads reach it without order.
unsafe impl Sync for Cpu {}
// SAFETY: as above.
unsafe impl Send for Cpu {}

impl Cpu {
    fn new() -> Arc<Self> {
        let task = Counted::new(Job::default());
        let mut queue = RunQueue::new();
        queue.become_idle(Counted::new(Job::default()));
        assert!(queue.wake(&task, State::Ready));
        assert!(matches!(queue.choose(), Chosen::Switch(..)));
        let (waiting, condition) = (Mutex::new(Vec::new()), AtomicUsize::new(0));
        Arc::new(Self { queue: Mutex::new(queue), task, waiting, condition, before: UnsafeCell::new(0) })
    }

    /// As a waker on another CPU does.
    fn unpark(&self, task: &Counted<Job>) {
        unpark(&**task, || {
            self.queue.lock().wake(task, State::Parked);
        });
    }

    /// Chooses; says whether it is the task that runs then.
    fn schedule(&self) -> bool {
        let mut queue = self.queue.lock();
        let _ = queue.choose();
        queue.current().is_some_and(|current| Counted::ptr_eq(current, &self.task))
    }

    /// The task parks. Where the CPU idles then, it does so until the wakers have sent their interrupts.
    fn park(&self, wakers: &mut Vec<JoinHandle<()>>) {
        if !self.queue.lock().begin_park() {
            return;
        }
        if !self.schedule() {
            wakers.drain(..).for_each(|waker| waker.join().unwrap());
            assert!(self.schedule(), "the task is not woken");
        }
        self.queue.lock().end_park();
    }

    /// Everything has come that comes: the task runs, is nowhere else, and stays when it gives its turn away.
    fn check(&self, wakers: Vec<JoinHandle<()>>) {
        wakers.into_iter().for_each(|waker| waker.join().unwrap());
        assert!(!self.queue.lock().has_ready(), "the task runs, and is ready too");
        assert_eq!(self.task.life.state(), State::Running);
        assert!(self.schedule(), "the task is lost");
    }
}

/// Stores to the task's state: initial value, ready, running; parked, ready, running; running. To its token: initial value, 1
/// left, 2 taken.
#[test]
fn a_waker_against_a_task_that_parks() {
    explore(Bound::Preemptions(4), || {
        let cpu = Cpu::new();
        let waker = {
            let cpu = cpu.clone();
            thread::spawn(move || {
                // SAFETY: the task reads it when it has been woken; the checker checks exactly that.
                cpu.before.with_mut(|before| unsafe { *before = 1 });
                cpu.unpark(&cpu.task);
            })
        };
        let mut wakers = Vec::from([waker]);
        cpu.park(&mut wakers);
        // SAFETY: as above.
        cpu.before.with(|before| assert_eq!(unsafe { *before }, 1, "it was not woken by its waker"));
        cpu.check(wakers);
    });
}

/// Stores to the task's state: initial value, ready, running; parked, ready, running; running. To its token: initial value, 2
/// left, 2 taken.
#[test]
fn two_wakers_of_one_task() {
    explore(Bound::Preemptions(4), || {
        let cpu = Cpu::new();
        let waker = |_| {
            let cpu = cpu.clone();
            thread::spawn(move || cpu.unpark(&cpu.task))
        };
        let mut wakers = (0..2).map(waker).collect();
        cpu.park(&mut wakers);
        cpu.check(wakers);
    });
}

/// Stores to the task's state: as above. To the condition: initial value, 1.
#[test]
fn a_change_against_a_task_that_waits_for_it() {
    explore(Bound::Preemptions(4), || {
        let cpu = Cpu::new();
        let changer = {
            let cpu = cpu.clone();
            thread::spawn(move || {
                // Relaxed: the locks alone must order it.
                cpu.condition.store(1, Ordering::Relaxed);
                wake_all(&cpu.waiting, |task| cpu.unpark(&task));
            })
        };
        let mut wakers = Vec::from([changer]);
        let done = || cpu.condition.load(Ordering::Relaxed) == 1;
        wait_until(&cpu.waiting, || Counted::clone(&cpu.task), done, || cpu.park(&mut wakers));
        cpu.check(wakers);
        assert!(cpu.waiting.lock().is_empty(), "who has gone on still waits");
    });
}
