//! Each fault strikes in each scenario that names it, by either strategy; and what is printed of it holds. The fault is the
//! process's, so each is a run of the program. What the pages promise of scenarios is in `pages.rs`.
#![cfg(not(any(loom, shuttle)))]

mod common;

use common::{explorer, without_tables_behind};
use explorer::scenario;

/// The line that follows one which begins so.
fn after<'t>(text: &'t str, head: &str) -> &'t str {
    let mut lines = text.lines().skip_while(|line| !line.starts_with(head)).skip(1);
    lines.next().unwrap_or_else(|| panic!("no line after `{head}` in\n{text}")).trim()
}

fn last<'t>(text: &'t str, head: &str) -> &'t str {
    text.lines().rev().find(|line| line.starts_with(head)).unwrap_or_else(|| panic!("no `{head}` in\n{text}"))
}

fn switches(schedule: &str) -> usize {
    schedule.rsplit(':').next().map_or(0, |switches| switches.split(',').filter(|one| !one.is_empty()).count())
}

fn without_tables(text: &str) -> String {
    without_tables_behind("a walk reached", text)
}

fn strikes(scenario: &str, bug: &str, strategy: &str) {
    let args = ["--bug", bug, "--scenario", scenario, "--strategy", strategy];
    let (text, status) = explorer(&[&args[..], &["--threads", "1"]].concat());
    assert_eq!(status, 1, "{bug} in {scenario} by {strategy}:\n{text}");
    assert!(text.contains("replayed: the same to the byte\n"), "{text}");
    let (found, short) = (after(&text, "found"), after(&text, "shortened"));
    assert!(switches(short) <= switches(found), "{text}");
    // The same seed, the same schedules, whoever runs them.
    let (again, _) = explorer(&[&args[..], &["--threads", "2"]].concat());
    assert_eq!(without_tables(&again), without_tables(&text));
    // What was printed strikes in the same way when it is given back.
    let (replayed, status) = explorer(&["--replay", short]);
    let strike = |text: &str| without_tables(last(text, "strikes:"));
    assert_eq!((status, strike(&replayed)), (1, strike(&text)), "{replayed}");
    assert_eq!(after(&replayed, "replayed"), short);
    // And not where the fault is not there.
    let (_, switches) = short.split_once(':').expect("a fault's name");
    let (sound, status) = explorer(&["--replay", &format!("none:{switches}")]);
    assert_eq!(status, 0, "{sound}");
}

// covers: T4
#[test]
fn each_fault_strikes_in_a_random_walk() {
    let mut nr = 0;
    for scenario in scenario::all() {
        for fault in scenario.faults {
            strikes(scenario.name, fault.name(), "random");
            nr += 1;
        }
    }
    assert!(nr > 20, "{nr} faults and scenarios");
}

// covers: T4
#[test]
fn each_fault_strikes_by_priorities() {
    for scenario in scenario::all() {
        scenario.faults.iter().for_each(|fault| strikes(scenario.name, fault.name(), "pct"));
    }
}

#[test]
fn what_is_wrong_on_the_command_line_is_one_line() {
    for (args, line) in [
        (&["--bug", "no_such"][..], "explore: expected a deliberate fault or `none`, found `no_such` (see --list)\n"),
        (&["--bug", "relaxed_ack"], "explore: relaxed_ack strikes in no scenario: see --list\n"),
        (&["--scenario", "x"], "explore: expected a scenario, found `x` (see --list)\n"),
        (&["--replay", "none:x:"], "explore: expected a scenario, found `x` (see --list)\n"),
        (&["--replay", "none:two-zaps:1"], "explore: expected CPU@MARK>CPU, found `1`\n"),
        (&["--depth", "2"], "explore: --depth is for pct and exhaustive\n"),
        (&["--strategy", "pct", "--depth", "0"], "explore: expected a --depth of 1 to 16, found 0\n"),
        (&["--threads", "0"], "explore: expected 1 to 64 --threads, found 0\n"),
    ] {
        assert_eq!(explorer(args), (line.to_string(), 2), "{args:?}");
    }
}

/// Who has read enough closes the pipe: nothing is wrong then.
#[test]
fn a_reader_that_goes_away_ends_it_without_a_word() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_explorer"));
    let output = command.arg("--list").stdout(writer).output().expect("the program starts");
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr)), (Some(141), "".into()));
}
