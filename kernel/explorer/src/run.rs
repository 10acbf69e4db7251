//! One schedule of a scenario, from the empty board to the empty board.

use std::cell::RefCell;
use std::rc::Rc;

use mm::sync::hosted;

use crate::board::Board;
use crate::conductor::{self, Act, Done, Line};
use crate::coroutine;
use crate::scenario::{Scenario, Stage};
use crate::schedule::Schedule;
use crate::strategy::Pilot;

/// Runs one schedule. Where something struck this thread has to end, and the board is never touched again.
pub fn run(board: &Rc<Board>, scenario: &Scenario, pilot: Pilot, traced: bool) -> Done {
    hosted::drop_kept();
    let staged: Rc<RefCell<Option<Stage>>> = Rc::default();
    let (place, on, stage) = (staged.clone(), board.clone(), scenario.stage);
    let ready = coroutine::guarded(move || *place.borrow_mut() = Some(stage(&on)));
    let stage = match (ready, staged.take()) {
        (Ok(()), Some(stage)) => stage,
        (ready, _) => return struck(ready.err().unwrap_or_default(), pilot),
    };
    let Stage { programs, spaces, fetched, finale } = stage;
    let act = Act { programs, machine: Some(board.emu.clone()), fetched };
    let mut done = conductor::conduct(act, pilot, traced);
    if done.struck.is_some() {
        std::mem::forget((spaces, finale));
        return done;
    }
    let on = board.clone();
    let ended = coroutine::guarded(move || {
        finale(&on);
        on.clear(spaces);
        on.emu.assert_no_stale();
    });
    if let Err(said) = ended {
        done.struck = Some(format!("after all have ended: {said}"));
    }
    done
}

fn struck(said: String, pilot: Pilot) -> Done {
    let struck = Some(format!("before any CPU has begun: {said}"));
    Done { struck, schedule: Schedule::default(), marks: 0, trace: Vec::new(), pilot }
}

/// What a schedule came to, on a board and a thread of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replayed {
    /// What struck.
    pub struck: Option<String>,
    /// Its switches.
    pub schedule: Schedule,
    /// Marks of all CPUs.
    pub marks: u32,
    /// What has happened.
    pub trace: Vec<Line>,
}

/// Runs a schedule where nothing has happened before.
///
/// # Panics
/// A thread cannot be started.
pub fn replay(scenario: &'static Scenario, schedule: Schedule) -> Replayed {
    let thread = std::thread::spawn(move || {
        let board = Board::new(scenario.shape);
        let Done { struck, schedule, marks, trace, .. } = run(&board, scenario, Pilot::Replay(schedule), true);
        if struck.is_some() {
            std::mem::forget(board);
        } else {
            board.assert_empty();
        }
        Replayed { struck, schedule, marks, trace }
    });
    thread.join().expect("a schedule does not unwind")
}
