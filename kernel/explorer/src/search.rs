//! The search for a schedule that strikes, and what makes it short.

use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use mm::mutant::Mutant;

use crate::board::Board;
use crate::run::{Replayed, replay, run};
use crate::scenario::Scenario;
use crate::schedule::Schedule;
use crate::strategy::{Pilot, Strategy, Tree};

/// Schedules that a thread takes at a time.
const BATCH: u64 = 64;

/// What to search.
#[derive(Clone, Copy, Debug)]
pub struct Search {
    /// How schedules are made.
    pub strategy: Strategy,
    /// Most of them.
    pub schedules: u64,
    /// Which ones.
    pub seed: u64,
    /// Threads; an exhaustive search has one.
    pub threads: usize,
}

/// A schedule that strikes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Strike {
    /// Its number, from 0 on: with the seed, all that is needed to make it again.
    pub nth: u64,
    /// Its switches.
    pub schedule: Schedule,
    /// What struck.
    pub what: String,
    /// It strikes by itself. Otherwise it needs what schedules before it have left behind, and none strikes that begins with
    /// nothing.
    pub is_alone: bool,
}

/// What a search came to.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The first that strikes.
    pub strike: Option<Strike>,
    /// Schedules that were run.
    pub run: u64,
    /// Marks in them.
    pub marks: u64,
    /// An exhaustive search has seen all.
    pub is_complete: bool,
    /// How long it took.
    pub seconds: f64,
}

/// What the threads of a search share.
struct Shared {
    scenario: &'static Scenario,
    search: Search,
    /// A board for each schedule.
    afresh: bool,
    /// Marks of the usual schedule.
    marks: u32,
    next: AtomicU64,
    /// The number of the first strike so far.
    first: AtomicU64,
    run: AtomicU64,
    marked: AtomicU64,
    strike: Mutex<Option<Strike>>,
}

/// Looks for the first schedule that strikes. The answer does not depend on the number of threads, but for how many were
/// run.
///
/// # Panics
/// A thread cannot be started.
pub fn search(scenario: &'static Scenario, search: Search) -> Outcome {
    // It remembers metadata from one schedule to the next, when its memory is no longer kept.
    if Mutant::RecentNotEmptied.is_on() {
        return attempt(scenario, search, true);
    }
    let mut outcome = attempt(scenario, search, false);
    let Some(strike) = &mut outcome.strike else { return outcome };
    if replay(scenario, strike.schedule.clone()).struck.is_some() {
        return outcome;
    }
    // What a fault has left behind may be what struck: metadata that a CPU still remembers, say.
    let afresh = attempt(scenario, search, true);
    if afresh.strike.is_some() {
        return afresh;
    }
    strike.is_alone = false;
    outcome
}

fn attempt(scenario: &'static Scenario, search: Search, afresh: bool) -> Outcome {
    let start = Instant::now();
    let usual = replay(scenario, Schedule::default());
    let shared = Arc::new(Shared {
        scenario,
        search,
        afresh,
        marks: usual.marks.max(1),
        next: AtomicU64::new(0),
        first: AtomicU64::new(u64::MAX),
        run: AtomicU64::new(0),
        marked: AtomicU64::new(0),
        strike: Mutex::new(None),
    });
    let is_complete = match search.strategy {
        Strategy::Exhaustive { preemptions } => {
            let shared = shared.clone();
            on_threads(1, move || in_order(&shared, Tree::new(preemptions))).into_iter().all(|complete| complete)
        }
        _ => {
            let theirs = shared.clone();
            on_threads(search.threads.max(1), move || at_random(&theirs));
            false
        }
    };
    let strike = shared.strike.lock().expect("nobody panics with it").take();
    Outcome {
        is_complete: is_complete && strike.is_none(),
        strike,
        run: shared.run.load(Ordering::Relaxed),
        marks: shared.marked.load(Ordering::Relaxed),
        seconds: start.elapsed().as_secs_f64(),
    }
}

fn on_threads<R: Send + 'static>(nr: usize, work: impl Fn() -> R + Clone + Send + 'static) -> Vec<R> {
    let threads: Vec<_> = (0..nr).map(|_| std::thread::spawn(work.clone())).collect();
    threads.into_iter().map(|thread| thread.join().expect("a schedule does not unwind")).collect()
}

/// A thread's board, which is made anew for each schedule where that is asked for.
struct Place {
    board: Rc<Board>,
    afresh: bool,
}

impl Place {
    fn new(shared: &Shared) -> Self {
        Self { board: Board::new(shared.scenario.shape), afresh: shared.afresh }
    }

    /// Runs the `nth` schedule; `None` where it struck, and this thread has to end.
    fn run(&mut self, shared: &Shared, nth: u64, pilot: Pilot) -> Option<Pilot> {
        if self.afresh {
            self.board = Board::new(shared.scenario.shape);
        }
        let done = run(&self.board, shared.scenario, pilot, false);
        shared.run.fetch_add(1, Ordering::Relaxed);
        shared.marked.fetch_add(u64::from(done.marks), Ordering::Relaxed);
        let Some(what) = done.struck else { return Some(done.pilot) };
        std::mem::forget(self.board.clone());
        let mut strike = shared.strike.lock().expect("nobody panics with it");
        if strike.as_ref().is_none_or(|strike| nth < strike.nth) {
            *strike = Some(Strike { nth, schedule: done.schedule, what, is_alone: true });
            shared.first.store(nth, Ordering::SeqCst);
        }
        None
    }
}

/// Takes batches of random schedules, in their order, until one strikes.
fn at_random(shared: &Shared) {
    let mut place = Place::new(shared);
    let Search { strategy, schedules, seed, .. } = shared.search;
    loop {
        let from = shared.next.fetch_add(BATCH, Ordering::SeqCst);
        for nth in from..(from + BATCH).min(schedules) {
            if nth > shared.first.load(Ordering::SeqCst) {
                return;
            }
            let pilot = Pilot::nth(strategy, seed, nth, shared.scenario.shape.players(), shared.marks);
            if place.run(shared, nth, pilot).is_none() {
                return;
            }
        }
        if from + BATCH >= schedules {
            return;
        }
    }
}

/// All schedules within a bound, one after the other; answers whether it came to their end.
fn in_order(shared: &Shared, mut tree: Tree) -> bool {
    let mut place = Place::new(shared);
    for nth in 0..shared.search.schedules {
        match place.run(shared, nth, Pilot::Exhaustive(tree)) {
            Some(Pilot::Exhaustive(back)) => tree = back,
            _ => return false,
        }
        if !tree.advance() {
            return true;
        }
    }
    false
}

/// Leaves out switches for as long as it still strikes (delta debugging: Zeller and Hildebrandt, TSE 2002): of what is left
/// none can be left out. Answers it with what it comes to, and how many schedules that took.
///
/// # Panics
/// As [`replay`]; or `schedule` does not strike.
pub fn shorten(scenario: &'static Scenario, schedule: &Schedule) -> (Replayed, u64) {
    let mut runs = 1;
    let mut best = replay(scenario, schedule.clone());
    assert!(best.struck.is_some(), "a schedule that does not strike is not made shorter");
    let mut part = best.schedule.0.len().div_ceil(2);
    while part > 0 {
        let mut from = 0;
        let mut is_shorter = false;
        while from < best.schedule.0.len() {
            let mut less = best.schedule.0.clone();
            less.drain(from..(from + part).min(less.len()));
            let tried = replay(scenario, Schedule(less));
            runs += 1;
            // What was left out can have brought others with it.
            if tried.struck.is_some() && tried.schedule.0.len() < best.schedule.0.len() {
                (best, is_shorter) = (tried, true);
            } else {
                from += part;
            }
        }
        part = if part == 1 && is_shorter { 1 } else { part / 2 };
    }
    (best, runs)
}
