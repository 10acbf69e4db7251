//! All schedules with a few switches, the ones with few first, each once.
//!
//! Each comes from one that is a switch shorter: where that one was run, what it says of its steps is kept, and each place
//! behind its last switch at which another player can go on is one more schedule.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use crate::schedule::{Schedule, Switch};

/// A schedule that was run, and how far those that follow from it were given out.
struct Parent {
    schedule: Schedule,
    steps: u32,
    /// Who took each step, from the first one on, as far as that is known.
    who: Vec<u8>,
    /// The next switch.
    next: Switch,
}

/// What is still to be tried.
pub struct Exhaustive {
    most_switches: usize,
    parents: VecDeque<Parent>,
    /// How many switches the schedule has that was given out last; `None`: none was yet.
    asked: Option<usize>,
}

impl Exhaustive {
    /// All schedules of at most so many switches.
    #[must_use]
    pub const fn new(most_switches: usize) -> Self {
        Self { most_switches, parents: VecDeque::new(), asked: None }
    }

    /// The next schedule, of so many players; [`learn`](Self::learn) is called with what came of it. `None`: that was all.
    pub fn next(&mut self, players: usize) -> Option<Schedule> {
        if self.asked.is_none() {
            self.asked = Some(0);
            return Some(Schedule::default());
        }
        loop {
            let parent = self.parents.front_mut()?;
            while parent.next.step < parent.steps {
                let at = parent.next;
                parent.next = match at.to + 1 {
                    to if to < players => Switch { to, ..at },
                    _ => Switch { step: at.step + 1, to: 0 },
                };
                // A switch to who goes on anyway is none.
                let me = parent.who.get(at.step as usize);
                if me.is_none_or(|&me| usize::from(me) != at.to) {
                    let mut longer = parent.schedule.clone();
                    longer.0.push(at);
                    self.asked = Some(longer.0.len());
                    return Some(longer);
                }
            }
            self.parents.pop_front();
        }
    }

    /// The schedule that was given out last was run: `ran` are the switches that were made of it, of its `steps` the
    /// first ones were taken by `who`. Answers whether it was one of its own: a switch to who goes on anyway, or who is
    /// done, is none, and what was run then was run before.
    pub fn learn(&mut self, ran: &Schedule, steps: u32, who: Vec<u8>) -> bool {
        let is_new = Some(ran.0.len()) == self.asked;
        if is_new && ran.0.len() < self.most_switches {
            let step = ran.0.last().map_or(0, |last| last.step + 1);
            self.parents.push_back(Parent { schedule: ran.clone(), steps, who, next: Switch { step, to: 0 } });
        }
        is_new
    }
}
