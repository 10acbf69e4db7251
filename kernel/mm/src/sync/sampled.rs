//! Models under shuttle: many schedules at random, sequentially consistent.
//!
//! | variable | |
//! |---|---|
//! | `UNPLUG_SCHEDULES` | schedules of each model; without it [`FEW`], or [`MANY`] where `UNPLUG_FULL` is 1 |
//! | `UNPLUG_SEED` | a number from which the schedules are made; without it the same ones each time |
//! | `UNPLUG_REPLAY` | a failing schedule: only this one is run |
//!
//! Half of the schedules switch at random at each step, half are PCT's (Burckhardt et al., ASPLOS 2010): threads with
//! priorities, of which some change at random. Whoever yields falls behind all others, so that one who waits cannot
//! starve the one that it waits for.

use std::string::{String, ToString};
use std::time::Instant;

use shuttle::scheduler::{PctScheduler, RandomScheduler, ReplayScheduler, Scheduler};
use shuttle::{Config, Runner};

use super::model::{Bound, drop_kept};

/// Schedules of a model where nothing else is asked for.
pub const FEW: usize = 2_000;
/// Schedules of a model for `test --full`.
pub const MANY: usize = 1_000_000;
/// Changes of priority of PCT, with the first choice: it finds what takes so many orders of two steps.
const DEPTHS: [usize; 2] = [2, 4];

/// As [`explore`](super::model::explore), under a name of its own: for a function that makes models of several sizes.
pub fn explore_as(name: &str, _bound: Bound, model: impl Fn() + Sync + Send + 'static) {
    let model = std::sync::Arc::new(model);
    let run = |scheduler: Box<dyn Scheduler + Send>| {
        let mut config = Config::new();
        config.silence_warnings = true;
        // Whoever is still running when a model fails stays as it is: it may wait for what never comes.
        config.ungraceful_shutdown_config.immediately_return_on_panic = true;
        let model = model.clone();
        Runner::new(scheduler, config).run(move || {
            drop_kept();
            model();
        })
    };
    let replay = |schedule: &str| {
        let mut scheduler = ReplayScheduler::new_from_encoded(schedule);
        // Where the fault is mended the schedule ends before the model does.
        scheduler.set_allow_incomplete();
        run(Box::new(scheduler));
    };
    if let Ok(schedule) = std::env::var("UNPLUG_REPLAY") {
        return replay(schedule.trim());
    }
    for schedule in known(name) {
        replay(&schedule);
    }
    let start = Instant::now();
    let (nr, seed) = (schedules(), seed());
    let half = nr.div_ceil(2);
    let mut done = run(Box::new(RandomScheduler::new_from_seed(seed, half)));
    for depth in DEPTHS {
        done += run(Box::new(PctScheduler::new_from_seed(seed, depth, (nr - half).div_ceil(DEPTHS.len()))));
    }
    let seconds = start.elapsed().as_secs_f64();
    println!("model {name}: {done} schedules in {seconds:.1} s, {:.0} a second", done as f64 / seconds);
}

/// Schedules that once failed: `tests/shuttle.regressions` of the package, a model and a schedule on a line.
fn known(name: &str) -> Vec<String> {
    let text = std::fs::read_to_string("tests/shuttle.regressions").unwrap_or_default();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let words = lines.filter_map(|line| line.split_once(' '));
    words.filter(|&(model, _)| model == name).map(|(_, schedule)| schedule.trim().to_string()).collect()
}

fn schedules() -> usize {
    let full = std::env::var("UNPLUG_FULL").is_ok_and(|value| value == "1");
    number("UNPLUG_SCHEDULES").map_or(if full { MANY } else { FEW }, |nr| nr as usize)
}

fn seed() -> u64 {
    number("UNPLUG_SEED").unwrap_or(0x756e_706c_7567)
}

fn number(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{variable}={value} is not a number")))
}
