//! Without a fault nothing strikes.
#![cfg(not(any(loom, shuttle)))]

use explorer::scenario;
use explorer::search::{Search, search};
use explorer::strategy::Strategy;

/// Schedules of each scenario and strategy.
const FEW: u64 = 1_000;
/// Those of `test --full`, of both strategies together.
const MANY: u64 = 1_000_000;
/// Marks after which a scenario of long schedules has had enough.
const ENOUGH_MARKS: u64 = 50_000_000;

// covers: T4
#[test]
fn without_a_fault_nothing_strikes() {
    let full = std::env::var("UNPLUG_FULL").is_ok_and(|value| value == "1");
    for scenario in scenario::all() {
        let one = Search { strategy: Strategy::Random, schedules: 1, seed: 1, threads: 1 };
        let marks = search(scenario, one).marks.max(1);
        let schedules = if full { (MANY / 2).min(ENOUGH_MARKS / marks) } else { FEW };
        for strategy in [Strategy::Random, Strategy::Pct { depth: 3 }] {
            let outcome = search(scenario, Search { strategy, schedules, seed: 1, threads: 2 });
            assert_eq!(outcome.strike, None, "{} {strategy:?}", scenario.name);
            assert_eq!(outcome.run, schedules, "{}", scenario.name);
        }
    }
}

// covers: T4
#[test]
fn no_schedule_with_one_preemption_strikes() {
    for scenario in scenario::all() {
        let strategy = Strategy::Exhaustive { preemptions: 1 };
        let outcome = search(scenario, Search { strategy, schedules: 20_000, seed: 1, threads: 1 });
        assert_eq!(outcome.strike, None, "{}", scenario.name);
        assert!(outcome.is_complete, "{}: more than {} schedules", scenario.name, outcome.run);
    }
}
