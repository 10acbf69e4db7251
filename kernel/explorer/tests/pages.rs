//! What the pages say of the explorer is so: the tables of scenarios, the lanes, the zoo's faults.
#![cfg(not(any(loom, shuttle)))]

mod common;

use std::collections::BTreeSet;

use common::{explorer, without_tables_behind};
use explorer::fault::Fault;
use explorer::scenario::{self, Scenario};

/// The only fault of the zoo that no scenario shows: no mark stands between its two looks.
const NO_MARK_BETWEEN: &str = "put-judged-by-second-look";

/// A page of `docs`.
fn page(name: &str) -> String {
    let path = format!("{}/../../docs/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn row(scenario: &Scenario) -> String {
    let faults: Vec<String> = scenario.faults.iter().map(|fault| format!("`{}`", fault.name())).collect();
    format!("| `{}` | {} | {} |", scenario.name, scenario.what, faults.join(", "))
}

// covers: T4
#[test]
fn the_page_has_a_row_for_each_scenario_and_no_other() {
    let page = page("explorer.md");
    let plain = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let (_, tables) = page.split_once("## The scenarios\n").expect("the tables");
    let (tables, _) = tables.split_once("\n## ").expect("their end");
    let shown: BTreeSet<String> = tables.lines().filter(|line| line.starts_with("| `")).map(plain).collect();
    let expected: BTreeSet<String> = scenario::all().map(|scenario| plain(&row(scenario))).collect();
    assert!(tables.starts_with(&format!("There are {}.", expected.len())), "there are {}", expected.len());
    let (more, less): (Vec<_>, Vec<_>) = (shown.difference(&expected).collect(), expected.difference(&shown).collect());
    assert!(more.is_empty() && less.is_empty(), "the page has {more:#?}, and should have {less:#?}");
}

// covers: T4
#[test]
fn each_fault_of_the_zoo_that_its_page_promises_here_has_a_scenario() {
    for bug in zoo::BUGS {
        let fault = Fault::find(bug.fault).unwrap_or_else(|| panic!("{} is no fault that is known here", bug.fault));
        let has_scenario = scenario::of(fault).next().is_some();
        assert_eq!(has_scenario, bug.name != NO_MARK_BETWEEN, "{}", bug.name);
        let promised =
            page(&format!("zoo/{}.md", bug.name)).contains(&format!("./run-qemu.sh explore --bug {}", bug.name));
        assert_eq!(promised, has_scenario, "docs/zoo/{}.md", bug.name);
    }
}

// covers: T4
#[test]
fn a_device_has_a_lane_that_says_so() {
    let (text, status) = explorer(&["--replay", "none:two-revocations:0@0>2"]);
    assert_eq!(status, 0, "{text}");
    let head = text.lines().find(|line| line.starts_with("CPU 0")).expect("the lanes");
    assert_eq!(head.split_whitespace().collect::<Vec<_>>(), ["CPU", "0", "CPU", "1", "device", "2"]);
    let at = head.find("device").expect("its lane");
    let first = text.lines().find(|line| line.contains("begins a transfer")).expect("it began");
    assert!(first.find("begins").is_some_and(|begins| begins > at), "in its own lane: {text}");
}

/// The lanes in docs/explorer.md are those of the schedule above them.
// covers: T4 T5
#[test]
fn the_page_shows_what_its_schedule_does() {
    let page = page("explorer.md");
    let (_, block) = page.split_once("```console by kernel/explorer/tests/pages.rs\n").expect("the block");
    let (block, _) = block.split_once("```").expect("its end");
    let schedule = block.lines().next().expect("the schedule");
    let (replayed, status) = explorer(&["--replay", schedule]);
    assert_eq!(status, 1, "{replayed}");
    let (_, shown) = replayed.split_once("replayed (").expect("the lanes");
    let (_, shown) = shown.split_once("\n  ").expect("the schedule");
    assert_eq!(
        without_tables_behind("table page", shown.trim_end()),
        without_tables_behind("table page", block.trim_end()),
        "docs/explorer.md shows something else"
    );
}
