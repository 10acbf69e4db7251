//! What strikes in a search, and not by itself, is told.
#![cfg(not(any(loom, shuttle)))]

use std::cell::Cell;
use std::env;
use std::process::{Command, exit};
use std::ptr;
use std::rc::Rc;

use explorer::board::{Board, Shape};
use explorer::conductor::{Program, step};
use explorer::run::replay;
use explorer::scenario::{Scenario, Stage};
use explorer::search::{Search, search};
use explorer::strategy::Strategy;

thread_local! {
    /// The board of the last run, and how often it was used in a row.
    static USED: Cell<(*const Board, u32)> = const { Cell::new((ptr::null(), 0)) };
}

/// The third run on a board comes upon what the others have left behind.
fn stage(board: &Rc<Board>) -> Stage {
    let (last, nr) = USED.get();
    let nr = if ptr::eq(last, Rc::as_ptr(board)) { nr + 1 } else { 1 };
    USED.set((Rc::as_ptr(board), nr));
    let program = move || -> Program {
        Box::new(move || {
            step("a look");
            assert!(nr < 3, "something was left behind");
        })
    };
    Stage { programs: vec![program(), program()], spaces: Vec::new(), fetched: Vec::new(), finale: Box::new(|_| ()) }
}

static LEFT_BEHIND: Scenario =
    Scenario { name: "left-behind", what: "a board that is used again", faults: &[], shape: Shape::small(2), stage };

/// Says which of the two this process is.
const CHILD: &str = "EXPLORER_STRIKES_HERE";

/// In a process of its own: a thread in which something struck stays in the hook of panics, for which the end of a test program
/// would wait.
// covers: T4
#[test]
fn a_strike_that_needs_the_schedules_before_it_is_told() {
    if env::var_os(CHILD).is_none() {
        let mut again = Command::new(env::current_exe().expect("it is there"));
        again.args(["--exact", "a_strike_that_needs_the_schedules_before_it_is_told", "--nocapture"]).env(CHILD, "1");
        assert!(again.status().expect("it starts").success(), "see above");
        return;
    }
    let outcome = search(&LEFT_BEHIND, Search { strategy: Strategy::Random, schedules: 8, seed: 1, threads: 1 });
    eprintln!("{outcome:?}");
    let is_told = outcome.strike.is_some_and(|strike| {
        let by_itself = replay(&LEFT_BEHIND, strike.schedule).struck.is_some();
        (strike.nth, strike.is_alone, by_itself) == (2, false, false)
            && strike.what.contains("something was left behind")
    });
    exit(i32::from(!is_told));
}
