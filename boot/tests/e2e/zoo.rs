//! The bug zoo on the real kernel: each of its faults strikes and is named, its schedule strikes again and is short, and without
//! a fault no schedule strikes.

use crate::support::{assert_good, has, run, tail};
use boot::backing::Nvdimm;
use boot::cli::Mode;
use boot::machine::Machine;
use boot::outcome::{Outcome, Status};
use boot::paths::{self, Profile};
use boot::records;
use boot::size::MIB;
use std::fs;
use std::time::Duration;
use zoo::{BUGS, Bug, ShownBy};

/// A guest that searches, with these boot options.
fn search(words: &[&str]) -> Outcome {
    run(&Machine {
        pmem: vec![Nvdimm::temporary(64 * MIB)],
        iommu: false,
        edu: false,
        nvme: Some(0),
        deterministic: true,
        mode: Mode::Test,
        append: [&["mode=zoo"], words].concat().iter().map(ToString::to_string).collect(),
        build: Profile::Zoo,
        timeout: Some(Duration::from_secs(300)),
        ..Machine::default()
    })
}

/// The lines for people, as `explore --guest` shows them.
fn words(outcome: &Outcome) -> Vec<&str> {
    outcome.console.iter().filter_map(|line| line.strip_prefix("zoo: ")).collect()
}

/// Page tables are wherever there was a free frame: their numbers are left out.
fn without_tables(line: &str) -> String {
    let mut left = String::new();
    let mut rest = line;
    while let Some((before, after)) = rest.split_once("page table 0x") {
        left.push_str(before);
        left.push_str("page table …");
        rest = after.trim_start_matches(|digit: char| digit.is_ascii_hexdigit());
    }
    left + rest
}

/// The excerpt of a bug's page: what stands between the first two fences behind "What you see".
fn excerpt(bug: &Bug) -> Vec<String> {
    let page = paths::root().join("docs/zoo").join(bug.name).with_extension("md");
    let page = fs::read_to_string(&page).unwrap_or_else(|error| panic!("{}: {error}", page.display()));
    let (_, seen) = page.split_once("## What you see").expect("the page says what one sees");
    let lines = seen.lines().skip_while(|line| !line.starts_with("```")).skip(1);
    lines.take_while(|line| !line.starts_with("```")).map(without_tables).collect()
}

/// The in-kernel test that shows a fault fails with it.
fn fails(bug: &Bug, test: &str) {
    let append = vec![format!("bug={}", bug.name), format!("tests={test}")];
    let outcome = run(&Machine { mode: Mode::Test, append, build: Profile::Zoo, ..crate::support::machine() });
    assert!(matches!(outcome.status, Status::Bad(_)), "{}", tail(&outcome));
    has(&outcome.console.join("\n"), &[&format!("not ok 1 {test}"), &excerpt(bug)[0]]);
}

/// The fault strikes, and what is shown then is what its page shows.
fn strikes(bug: &Bug) {
    if let ShownBy::Test(test) = bug.shown_by {
        return fails(bug, test);
    }
    let outcome = search(&[&format!("bug={}", bug.name)]);
    assert_good(&outcome);
    let shown: Vec<_> = words(&outcome).into_iter().map(without_tables).collect();
    let expected = excerpt(bug);
    // From the strike on: which schedule was the first one to strike depends on the seed alone, and is not what the page is
    // about; it is followed by the shortest one and its lanes.
    let from = shown.iter().position(|line| line.starts_with("it strikes with ")).expect("it struck");
    assert_eq!(shown[from..], expected, "docs/zoo/{}.md shows something else", bug.name);
    let shortest = records::of_topic(&outcome.console, "zoo_shortest").next().expect("it was shortened");
    let schedule = shortest.get("schedule").expect("the schedule").to_string();
    // A machine that has just booted does the same from the schedule alone.
    let again = search(&[&format!("bug={}", bug.name), &format!("schedule={schedule}")]);
    assert_good(&again);
    let of = |outcome: &Outcome| words(outcome).last().map(|line| without_tables(line));
    assert_eq!(of(&again), of(&outcome), "{}", tail(&again));
}

// covers: T3 T4
#[test]
fn a_fault_is_found_named_shortened_and_found_again() {
    for bug in BUGS.iter().take(if is_full() { BUGS.len() } else { 3 }) {
        strikes(bug);
    }
}

fn is_full() -> bool {
    std::env::var_os("UNPLUG_FULL").is_some()
}

// covers: T3 T4
#[test]
fn without_a_fault_no_schedule_strikes() {
    let schedules = if is_full() { "schedules=10000" } else { "schedules=300" };
    let scenario = |bug: &Bug| match bug.shown_by {
        ShownBy::Schedule(name) => Some(name),
        ShownBy::Test(_) => None,
    };
    let mut names: Vec<_> = BUGS.iter().filter_map(scenario).collect();
    names.sort_unstable();
    names.dedup();
    for name in if is_full() { &names[..] } else { &["gup-against-table", "switch-against-unmap"] } {
        let outcome = search(&[&format!("scenario={name}"), schedules, "strategy=pct"]);
        assert_good(&outcome);
        let found = records::of_topic(&outcome.console, "zoo").next().expect("it was searched");
        assert_eq!(found.get("found"), Some("0"), "{name}");
    }
}

/// All schedules with few switches, and then it is over, and says so.
// covers: T3 T4
#[test]
fn an_exhaustive_search_comes_to_its_end() {
    let outcome = search(&["scenario=put-against-put", "strategy=exhaustive", "schedules=100000"]);
    assert_good(&outcome);
    let found = records::of_topic(&outcome.console, "zoo").next().expect("it was searched");
    assert_eq!(["found", "complete"].map(|key| found.get(key)), [Some("0"), Some("1")], "{found}");
    has(&words(&outcome).join("\n"), &[" schedules, all with at most 2 switches, no strike"]);
}

/// The seed that is told makes the schedule again, in a machine that has run nothing else.
// covers: T3
#[test]
fn a_seed_of_priorities_makes_its_schedule_again() {
    let strike = |words: &[&str]| {
        let outcome = search(&[&["bug=freed-before-flush", "strategy=pct"], words].concat());
        assert_good(&outcome);
        let strike = records::of_topic(&outcome.console, "zoo_strike").next().expect("it strikes");
        ["seed", "schedule"].map(|key| strike.get(key).expect("it is told").to_string())
    };
    let [seed, schedule] = strike(&[]);
    assert_eq!(strike(&[&format!("seed={seed}"), "schedules=1"]), [seed, schedule]);
}

// covers: T3
#[test]
fn what_makes_no_sense_is_refused_in_a_line() {
    for (words, line) in [
        (
            &["bug=nonsense"][..],
            "option \"bug\" cannot be \"nonsense\" (allowed: a name of the zoo: docs/zoo lists them)",
        ),
        (&["scenario=nonsense"], "zoo: there is no scenario \"nonsense\" (expected one of gup-against-unmap, "),
        (&["bug=no-look-again", "schedule=7:2"], "zoo: there is no player 2 (expected less than 2)"),
        (&["bug=no-look-again", "schedule=7"], "zoo: \"7\" is no switch: expected STEP:PLAYER, as in 7:1"),
    ] {
        has(&search(words).console.join("\n"), &[line]);
    }
}
