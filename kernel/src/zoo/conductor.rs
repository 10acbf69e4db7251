//! The conductor: of a few CPUs, each of which plays its part, one goes on at a time, and at every step that the machine tells
//! of ([`steps`]) the chooser says which.
//!
//! # Protocol
//! - [`TURN`] is the player that goes on. It alone looks at the run's state; all others spin, with interrupts off, until it
//!   is their turn. So what happens follows from the choices alone, and happens again when they are made again.
//! - Whoever gets its turn back and had interrupts on takes what has come for it meanwhile: an interrupt of a shootdown is
//!   handled at a step that was chosen, like everything else.
//! - A step under a spin lock is no place to switch: the other might spin for that very lock.
//! - Who waits for another CPU passes its turn on in rising order, also to players that are done, which answer interrupts. No
//!   choice is made there.
//! - A run in which nobody does anything but wait is over: that is a strike too, and its CPUs are not used again.

use ::zoo::schedule::{Schedule, Switch};
use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use arch::{cpu, percpu};
use mm::lock_check;
use mm::machine::MAX_CPUS;

use crate::cpu::lock::IrqLock;
use crate::mem::machine::steps::Step;
use crate::task::preempt::NoPreempt;

/// Most players.
pub const MAX_PLAYERS: usize = 3;
/// Nobody's turn.
const NOBODY: usize = usize::MAX;
/// Everybody is done.
const OVER: usize = usize::MAX - 1;
/// As often may players wait for each other in a row, without a step.
const MOST_WAITS: u32 = 20_000;
/// As many steps are kept for the lanes.
const KEPT: usize = 2048;

/// Whose turn it is. Release where it is passed on, Acquire where it is waited for: a turn begins with all that was done in
/// the one before.
static TURN: AtomicUsize = AtomicUsize::new(NOBODY);
/// How many players are on their places.
static ARRIVED: AtomicUsize = AtomicUsize::new(0);
/// Who plays on each CPU.
static PLAYER: [AtomicUsize; MAX_CPUS] = [const { AtomicUsize::new(NOBODY) }; MAX_CPUS];
/// The run; only touched by whoever has the turn, and before and after it.
static RUN: IrqLock<Option<Run>> = IrqLock::new(None);
/// Nobody goes on any more.
static STUCK: AtomicBool = AtomicBool::new(false);
/// What watches the run.
static OBSERVER: IrqLock<Option<Observer>> = IrqLock::new(None);

/// Is told of each step by the player that takes it, twice: when it has come to it, and when it goes on, after the others may
/// have had their turns. Answers what is wrong, if anything is.
pub type Observer = alloc::sync::Arc<dyn Fn(usize, When, Event) -> Result<(), String> + Send + Sync>;

/// When an observer is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Nobody else has gone on since.
    Comes,
    /// The player goes on.
    GoesOn,
}

/// What a player does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The machine takes a step.
    Machine(Step),
    /// A place in the player's own part.
    Part(&'static str),
    /// The fault that is switched on has its way next.
    Fault,
}

/// Who goes on?
pub trait Chooser: Send {
    /// Player `me` has taken step `step`; the players of `able` can go on, `me` among them.
    fn choose(&mut self, step: u32, me: usize, able: &[usize]) -> usize;
}

/// A step that was taken, for the lanes.
#[derive(Clone, Copy, Debug)]
pub struct Taken {
    /// By whom.
    pub player: usize,
    /// Its number; `None` where no choice was made.
    pub step: Option<u32>,
    /// What.
    pub event: Event,
}

struct Run {
    players: usize,
    chooser: alloc::boxed::Box<dyn Chooser>,
    step: u32,
    waits: u32,
    done: [bool; MAX_PLAYERS],
    switches: Vec<Switch>,
    log: Vec<Taken>,
    strike: Option<String>,
}

/// What came of a run.
pub struct Ended {
    /// The switches that were made.
    pub schedule: Schedule,
    /// How many steps there were.
    pub steps: u32,
    /// What went wrong.
    pub strike: Option<String>,
    /// It never comes to its end, and that is what went wrong: its CPUs cannot be had back.
    pub is_stuck: bool,
    /// The first steps, one by one.
    pub log: Vec<Taken>,
}

/// Begins a run; the players are on their way to [`play`].
pub fn begin(players: usize, chooser: alloc::boxed::Box<dyn Chooser>, observer: Observer) {
    assert!((1..=MAX_PLAYERS).contains(&players), "1 to {MAX_PLAYERS} players");
    ARRIVED.store(0, Ordering::Relaxed);
    *OBSERVER.lock() = Some(observer);
    *RUN.lock() = Some(Run {
        players,
        chooser,
        step: 0,
        waits: 0,
        done: [false; MAX_PLAYERS],
        switches: Vec::with_capacity(KEPT),
        log: Vec::with_capacity(KEPT),
        strike: None,
    });
    TURN.store(NOBODY, Ordering::Release);
}

/// Has the run come to its end, or is it known that it never will?
pub fn is_over() -> bool {
    STUCK.load(Ordering::Acquire) || TURN.load(Ordering::Acquire) == OVER
}

/// What came of it, once it is over or stuck.
pub fn end() -> Option<Ended> {
    *OBSERVER.lock() = None;
    let run = RUN.lock().take()?;
    let is_stuck = STUCK.load(Ordering::Acquire);
    Some(Ended { schedule: Schedule(run.switches), steps: run.step, strike: run.strike, is_stuck, log: run.log })
}

/// What came of a run that never ends; `None`: this one does.
pub fn end_of_stuck() -> Option<Ended> {
    STUCK.load(Ordering::Acquire).then(end).flatten()
}

/// Plays the part of player `me`, from this task: waits until all are there, and returns when all are done.
pub fn play(me: usize, part: impl FnOnce() -> Result<(), String>) {
    let _stays = NoPreempt::new();
    let players = RUN.lock().as_ref().map_or(0, |run| run.players);
    if ARRIVED.fetch_add(1, Ordering::AcqRel) + 1 == players {
        TURN.store(0, Ordering::Release);
    }
    PLAYER[percpu::cpu()].store(me, Ordering::Relaxed);
    wait_for_turn(me);
    if let Err(wrong) = part() {
        strike(wrong);
    }
    leave(me);
}

/// The machine has taken a step on this CPU.
pub fn took(step: Step) {
    match step {
        Step::Waits => waits(),
        step => takes(Event::Machine(step)),
    }
}

/// This player comes to a place in its part.
pub fn comes_to(place: &'static str) {
    takes(Event::Part(place));
}

/// The fault that is on was asked for.
pub fn faulted() {
    takes(Event::Fault);
}

/// Who plays on this CPU and has the turn.
fn me() -> Option<usize> {
    let turn = TURN.load(Ordering::Acquire);
    (turn < MAX_PLAYERS && PLAYER[percpu::cpu()].load(Ordering::Relaxed) == turn).then_some(turn)
}

fn takes(event: Event) {
    let Some(me) = me() else { return };
    observed(me, When::Comes, event);
    if lock_check::locks_held() == 0 {
        let next = {
            let mut run = RUN.lock();
            run.as_mut().map_or(me, |run| run.step_by(me, event))
        };
        pass(me, next);
    }
    observed(me, When::GoesOn, event);
}

fn observed(me: usize, when: When, event: Event) {
    let observer = OBSERVER.lock().clone();
    if let Some(Err(wrong)) = observer.map(|observer| observer(me, when, event)) {
        strike(wrong);
    }
}

fn waits() {
    let Some(me) = me() else { return };
    let next = RUN.lock().as_mut().map_or(me, |run| run.wait_by(me));
    if STUCK.load(Ordering::Relaxed) {
        TURN.store(NOBODY, Ordering::Release);
    } else {
        pass(me, next);
    }
}

/// Something is wrong. What is said first counts.
pub fn strike(wrong: String) {
    if let Some(run) = RUN.lock().as_mut() {
        run.strike.get_or_insert(wrong);
    }
}

impl Run {
    fn note(&mut self, player: usize, step: Option<u32>, event: Event) {
        // Never beyond what there is room for: memory is not asked for in the middle of a step.
        if self.log.len() < KEPT {
            self.log.push(Taken { player, step, event });
        }
    }

    fn step_by(&mut self, me: usize, event: Event) -> usize {
        let step = self.step;
        self.step += 1;
        self.waits = 0;
        self.note(me, Some(step), event);
        let able = (0..self.players).filter(|&player| !self.done[player]);
        let able: arrayvec::ArrayVec<usize, MAX_PLAYERS> = able.collect();
        let next = self.chooser.choose(step, me, &able);
        if next == me || !able.contains(&next) || self.switches.len() == KEPT {
            return me;
        }
        self.switches.push(Switch { step, to: next });
        next
    }

    fn wait_by(&mut self, me: usize) -> usize {
        self.waits += 1;
        if self.waits == 1 {
            self.note(me, None, Event::Machine(Step::Waits));
        }
        if self.waits > MOST_WAITS {
            self.strike.get_or_insert_with(|| "the CPUs wait for each other for ever".into());
            STUCK.store(true, Ordering::Release);
        }
        (me + 1) % self.players
    }

    /// Who goes on when `me` is done, or has answered its interrupts; `None`: all are done.
    fn after(&self, me: usize) -> Option<usize> {
        (1..=self.players).map(|nth| (me + nth) % self.players).find(|&player| !self.done[player])
    }
}

/// Gives the turn to `next`, and waits until it comes back.
fn pass(me: usize, next: usize) {
    if next != me {
        let were_on = cpu::irq_disable();
        TURN.store(next, Ordering::Release);
        spin(me);
        if were_on {
            cpu::irq_enable();
            // The instruction behind the one that turns them on is still not interrupted (SDM vol. 2B, STI).
            cpu::pause();
        }
    }
}

/// Waits for the first turn.
fn wait_for_turn(me: usize) {
    let were_on = cpu::irq_disable();
    spin(me);
    if were_on {
        cpu::irq_enable();
        cpu::pause();
    }
}

/// Until it is the turn of `me`, or everybody is done.
fn spin(me: usize) -> bool {
    loop {
        match TURN.load(Ordering::Acquire) {
            OVER => return false,
            turn if turn == me => return true,
            _ => cpu::pause(),
        }
    }
}

/// Player `me` is done: from now on it answers interrupts when it gets the turn, and passes it on.
fn leave(me: usize) {
    let mut next = {
        let mut run = RUN.lock();
        let Some(run) = run.as_mut() else { return };
        run.done[me] = true;
        run.after(me)
    };
    loop {
        let were_on = cpu::irq_disable();
        TURN.store(next.unwrap_or(OVER), Ordering::Release);
        let again = spin(me);
        if !again {
            PLAYER[percpu::cpu()].store(NOBODY, Ordering::Relaxed);
        }
        if were_on {
            cpu::irq_enable();
            cpu::pause();
        }
        if !again {
            return;
        }
        next = RUN.lock().as_ref().and_then(|run| run.after(me));
    }
}
