//! The run queue: examples, and random sequences against a plain model of who is where.
#![cfg(not(loom))]

use std::collections::VecDeque;
use std::sync::Arc;

use proptest::prelude::*;
use sched::queue::{Chosen, Life, RunQueue, State, Task, unpark};

struct Job {
    nr: usize,
    life: Life,
}

impl Task for Job {
    fn life(&self) -> &Life {
        &self.life
    }
}

fn job(nr: usize) -> Arc<Job> {
    Arc::new(Job { nr, life: Life::new() })
}

const IDLE: usize = usize::MAX;

/// A queue with its idle task.
fn idle() -> RunQueue<Job> {
    let mut queue = RunQueue::new();
    queue.become_idle(job(IDLE));
    queue
}

fn current(queue: &RunQueue<Job>) -> usize {
    queue.current().expect("somebody runs").nr
}

#[test]
fn before_there_are_tasks_nobody_is_chosen() {
    let mut queue: RunQueue<Job> = RunQueue::default();
    assert!(matches!(queue.choose(), Chosen::Nothing));
    assert!(!queue.begin_park() && !queue.begin_sleep(1) && !queue.is_idle());
}

#[test]
fn who_is_woken_before_it_has_gone_goes_on_as_a_running_task() {
    let mut queue = idle();
    let task = job(1);
    assert!(queue.wake(&task, State::Ready));
    assert!(matches!(queue.choose(), Chosen::Switch(from, to) if (from.nr, to.nr) == (IDLE, 1)));
    assert!(queue.begin_park());
    assert_eq!(task.life.state(), State::Parked);
    unpark(&*task, || assert!(queue.wake(&task, State::Parked)));
    assert!(matches!(queue.choose(), Chosen::Same));
    assert_eq!(task.life.state(), State::Running);
    queue.end_park();
    assert!(matches!(queue.choose(), Chosen::Same), "it gives its turn away, and nobody else wants it");
    assert_eq!(current(&queue), 1);
}

#[test]
fn a_token_that_came_first_is_taken_in_place_of_parking() {
    let mut queue = idle();
    let task = job(1);
    queue.wake(&task, State::Ready);
    queue.choose();
    unpark(&*task, || assert!(!queue.wake(&task, State::Parked)));
    assert!(!queue.begin_park(), "the token is there");
    assert_eq!(task.life.state(), State::Running);
    assert!(queue.begin_park(), "and is good for once");
}

#[test]
fn who_has_ended_is_kept_until_another_runs() {
    let mut queue = idle();
    let task = job(1);
    queue.wake(&task, State::Ready);
    queue.choose();
    queue.end_current();
    assert!(matches!(queue.choose(), Chosen::Switch(..)));
    assert!(queue.is_idle());
    assert_eq!(Arc::strong_count(&task), 2);
    assert!(queue.take_dead().is_some_and(|dead| dead.nr == 1));
    assert_eq!(Arc::strong_count(&task), 1);
    unpark(&*task, || assert!(!queue.wake(&task, State::Parked), "the dead are not woken"));
}

/// What can happen to a CPU.
#[derive(Clone, Copy, Debug)]
enum Op {
    /// A new task.
    Spawn,
    /// Whoever runs gives its turn away.
    Yield,
    /// Whoever runs parks; these tasks are woken before it has gone.
    Park([Option<usize>; 2]),
    /// Whoever runs sleeps for so long.
    Sleep(u64),
    /// Whoever runs ends.
    End,
    /// A task is unparked.
    Unpark(usize),
    /// Time passes.
    Tick(u64),
}

/// The same, as a list of who is where.
#[derive(Default)]
struct Model {
    ready: VecDeque<usize>,
    sleepers: Vec<(u64, usize)>,
    parked: Vec<usize>,
    tokens: Vec<bool>,
    /// `None`: the idle task.
    running: Option<usize>,
    now: u64,
}

impl Model {
    fn next(&mut self) {
        self.running = self.ready.pop_front();
    }
    fn unpark(&mut self, nr: usize) {
        self.tokens[nr] = true;
        if let Some(at) = self.parked.iter().position(|&parked| parked == nr) {
            self.parked.remove(at);
            self.ready.push_back(nr);
        }
    }
    fn state(&self, nr: usize) -> State {
        match () {
            () if self.running == Some(nr) => State::Running,
            () if self.parked.contains(&nr) => State::Parked,
            () if self.ready.contains(&nr) => State::Ready,
            () if self.sleepers.iter().any(|&(_, sleeper)| sleeper == nr) => State::Sleeping,
            () => State::Dead,
        }
    }
}

struct Rig {
    queue: RunQueue<Job>,
    tasks: Vec<Arc<Job>>,
    /// Tasks that have parked, and have not come back from that.
    parking: Vec<bool>,
    model: Model,
}

impl Rig {
    /// The CPU chooses; a task that comes back from parking says so.
    fn choose(&mut self) {
        self.queue.choose();
        drop(self.queue.take_dead());
        if let Some(nr) = self.model.running.filter(|&nr| self.parking[nr]) {
            self.queue.end_park();
            (self.parking[nr], self.model.tokens[nr]) = (false, false);
        }
    }

    fn unpark(&mut self, nr: usize) {
        let nr = nr % self.tasks.len().max(1);
        let Some(task) = self.tasks.get(nr) else { return };
        unpark(&**task, || {
            self.queue.wake(task, State::Parked);
        });
        self.model.unpark(nr);
    }

    fn park(&mut self, me: usize, wakes: [Option<usize>; 2]) {
        if core::mem::take(&mut self.model.tokens[me]) {
            assert!(!self.queue.begin_park(), "there is a token");
            return;
        }
        assert!(self.queue.begin_park(), "there is no token");
        self.model.parked.push(me);
        self.parking[me] = true;
        wakes.into_iter().flatten().for_each(|nr| self.unpark(nr));
        self.model.next();
        self.choose();
    }

    fn apply(&mut self, op: Op) {
        match (op, self.model.running) {
            (Op::Spawn, _) if self.tasks.len() < 5 => {
                let task = job(self.tasks.len());
                assert!(self.queue.wake(&task, State::Ready));
                self.model.ready.push_back(task.nr);
                self.model.tokens.push(false);
                self.tasks.push(task);
                self.parking.push(false);
            }
            (Op::Yield, running) => {
                self.model.ready.extend(running);
                self.model.next();
                self.choose();
            }
            (Op::Park(wakes), Some(me)) => self.park(me, wakes),
            (Op::Sleep(ns), Some(me)) => {
                assert!(self.queue.begin_sleep(self.model.now + ns));
                self.model.sleepers.push((self.model.now + ns, me));
                self.model.next();
                self.choose();
            }
            (Op::End, Some(_)) => {
                self.queue.end_current();
                self.model.next();
                self.choose();
            }
            (Op::Unpark(nr), _) => self.unpark(nr),
            (Op::Tick(ns), _) => {
                self.model.now += ns;
                let Model { sleepers, ready, now, .. } = &mut self.model;
                let due: Vec<usize> = sleepers.iter().filter(|sleeper| sleeper.0 <= *now).map(|&(_, nr)| nr).collect();
                sleepers.retain(|&(when, _)| when > *now);
                assert_eq!(self.queue.wake_due(*now), !due.is_empty());
                ready.extend(due);
            }
            _ => {}
        }
    }

    fn check(&self) {
        assert_eq!(current(&self.queue), self.model.running.unwrap_or(IDLE));
        assert_eq!(self.queue.is_idle(), self.model.running.is_none());
        assert_eq!(self.queue.has_ready(), !self.model.ready.is_empty());
        assert_eq!(self.queue.next_wake(), self.model.sleepers.iter().map(|&(when, _)| when).min());
        for task in &self.tasks {
            assert_eq!(task.life.state(), self.model.state(task.nr), "task {}", task.nr);
        }
    }
}

fn op() -> impl Strategy<Value = Op> {
    let wakes = prop::array::uniform2(prop::option::weighted(0.3, 0..5usize));
    prop_oneof![
        2 => Just(Op::Spawn),
        4 => Just(Op::Yield),
        4 => wakes.prop_map(Op::Park),
        2 => (1..50u64).prop_map(Op::Sleep),
        1 => Just(Op::End),
        5 => (0..5usize).prop_map(Op::Unpark),
        3 => (1..30u64).prop_map(Op::Tick),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn every_task_is_in_one_place(ops in prop::collection::vec(op(), 1..80)) {
        let mut rig = Rig { queue: idle(), tasks: Vec::new(), parking: Vec::new(), model: Model::default() };
        for op in ops {
            rig.apply(op);
            rig.check();
        }
    }
}
