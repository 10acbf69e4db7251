//! The exhaustive strategy: all schedules within its bound, each once.

use std::collections::BTreeSet;

use zoo::exhaustive::Exhaustive;
use zoo::schedule::{Schedule, Switch};

/// A run in which each player takes its steps; who is done gives its turn to the next one. Answers the switches that were
/// made, and who took each step.
fn run(schedule: &Schedule, steps_of: &[u32]) -> (Schedule, Vec<u8>) {
    let (mut left, mut me, mut made, mut who) = (steps_of.to_vec(), 0, Schedule::default(), Vec::new());
    for step in 0..steps_of.iter().sum() {
        while left[me] == 0 {
            me = (me + 1) % left.len();
        }
        who.push(me as u8);
        left[me] -= 1;
        let to = schedule.0.iter().find(|switch| switch.step == step).map_or(me, |switch| switch.to);
        // As the conductor has it: a player has its last step behind it, and is there still.
        if to != me && left[to] > 0 {
            made.0.push(Switch { step, to });
            me = to;
        }
    }
    (made, who)
}

/// How many were run, and the schedules that came of it.
fn search(steps_of: &[u32], most: usize, knows: bool) -> (usize, usize, BTreeSet<String>) {
    let (mut all, mut runs, mut new, mut seen) = (Exhaustive::new(most), 0, 0, BTreeSet::new());
    while let Some(schedule) = all.next(steps_of.len()) {
        let (made, who) = run(&schedule, steps_of);
        runs += 1;
        assert!(runs < 100_000, "it does not end");
        if all.learn(&made, who.len() as u32, if knows { who } else { Vec::new() }) {
            new += 1;
            assert!(seen.insert(made.to_string()), "{made} was tried before");
        } else {
            assert!(seen.contains(&made.to_string()), "{made} passes for one that was tried");
        }
    }
    (runs, new, seen)
}

/// All that there are, by trying every one.
fn all(steps_of: &[u32], most: usize) -> BTreeSet<String> {
    let steps: u32 = steps_of.iter().sum();
    let mut seen = BTreeSet::new();
    let mut level = vec![Schedule::default()];
    for _ in 0..=most {
        let mut longer = Vec::new();
        for schedule in level {
            seen.insert(run(&schedule, steps_of).0.to_string());
            let from = schedule.0.last().map_or(0, |last| last.step + 1);
            for step in from..steps {
                longer.extend((0..steps_of.len()).map(|to| {
                    let mut one = schedule.clone();
                    one.0.push(Switch { step, to });
                    one
                }));
            }
        }
        level = longer;
    }
    seen
}

// covers: T3
#[test]
fn every_schedule_is_tried_once() {
    for steps_of in [&[3, 4][..], &[1, 1], &[6, 2], &[2, 3, 2], &[0, 5]] {
        let (runs, new, seen) = search(steps_of, 2, true);
        assert_eq!(seen, all(steps_of, 2), "{steps_of:?}");
        assert!(new == seen.len() && new <= runs);
        // Nor does it matter how much is known of who took the steps, but for how often that is for nothing.
        let (_, unknowing, same) = search(steps_of, 2, false);
        assert_eq!((unknowing, same), (new, seen));
    }
}

/// Of two players that never end, with `n` steps: one without a switch, `n` with one, and each pair.
#[test]
fn nothing_is_run_twice_where_it_is_known_who_goes_on() {
    let n = 100;
    let (mut all, mut seen) = (Exhaustive::new(2), BTreeSet::new());
    while let Some(schedule) = all.next(2) {
        let mut me = 0;
        let who = (0..n).map(|step| {
            let was = me;
            me = schedule.0.iter().find(|switch| switch.step == step).map_or(me, |switch| switch.to as u8);
            was
        });
        let who: Vec<_> = who.collect();
        assert!(all.learn(&schedule, n, who) && seen.insert(schedule.to_string()), "{schedule}");
    }
    assert_eq!(seen.len() as u32, 1 + n + n * (n - 1) / 2);
}
