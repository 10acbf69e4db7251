//! Traces: one gup against one zap on a running kernel, its lanes, and the pictures that are made of the console.

use crate::support::{ask, exit, has, refused, shell, start_shell};
use boot::fences::{self, Mark};
use boot::machine::Machine;
use boot::paths::Profile;
use boot::records;
use std::process::Command;

/// The program behind `run-qemu.sh trace`, which draws beside `file`.
fn draw(file: &std::path::Path) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_trace")).arg("trace").arg(file).output().expect("it starts")
}

/// The lanes in `docs/traces.md` are of this test, at another time: with other numbers, and in another order where CPUs race.
/// What happens in them happens here, too, and the last shootdown of both is made of the same, for however many CPUs.
fn is_what_the_page_shows(answer: &str) {
    let is_ours = |mark: &Mark| matches!(mark, Mark::By(file) if file.ends_with("e2e/trace.rs"));
    let fences = fences::all();
    let page = fences.iter().find(|fence| is_ours(&fence.mark)).expect("docs/traces.md shows lanes");
    let shown: Vec<_> = page.lines.iter().flat_map(|line| events(line)).collect();
    let came: Vec<_> = answer.lines().flat_map(events).collect();
    assert!(shown.len() > 20, "{shown:?}");
    let missing: Vec<_> = shown.iter().filter(|event| !came.contains(event)).collect();
    assert!(missing.is_empty(), "{missing:?} did not come:\n{answer}");
    let last_shootdown = |events: &[String]| {
        let from = events.iter().rposition(|event| event == "/shoot").expect("a shootdown");
        let is_of_it =
            |event: &&String| ["/shoot", "ipi", "/recv", "flush", "\\ack", "\\sync"].contains(&event.as_str());
        let mut all: Vec<_> = events[from..].iter().filter(is_of_it).cloned().collect();
        all.sort();
        all.dedup();
        all
    };
    assert_eq!(last_shootdown(&shown), last_shootdown(&came), "{answer}");
}

/// What the CPUs do in a line of lanes: the words, without numbers and bars.
fn events(line: &str) -> Vec<String> {
    let mut words = line.split_whitespace();
    if words.next().is_none_or(|stamp| stamp.parse::<f64>().is_err()) {
        return Vec::new();
    }
    let words = words.map(|word| word.trim_start_matches('|'));
    let is_event = |word: &&str| {
        let name = word.trim_start_matches(['/', '\\']);
        name.len() > 1 && name.chars().all(|c| c.is_ascii_lowercase())
    };
    words.filter(is_event).map(String::from).collect()
}

// covers: T2
#[test]
fn a_gup_against_a_zap_becomes_lanes_and_pictures() {
    let mut guest = start_shell(&Machine { build: Profile::Trace, ..shell() });
    has(&ask(&mut guest, "test trace.race.*"), &["ok 1 trace.race.gup_against_zap"]);
    let answer = ask(&mut guest, "trace show 80");
    has(&answer, &["us CPU 0", "/shoot ", "ipi ", "/recv #", "\\ack #", "\\sync", "/gup 4000000", "o---"]);
    is_what_the_page_shows(&answer);
    let lines: Vec<_> = answer.lines().map(String::from).collect();
    assert!(lines.iter().all(|line| line.starts_with('@') || line.len() <= 80), "{answer}");
    assert_eq!(records::of_topic(&lines, "trace").filter(|record| record.get("kind").is_some()).count(), 80);
    has(&refused(&mut guest, "trace on gups"), &["\"gups\" is no kind of event; expected some of gup zap ipi"]);
    has(&refused(&mut guest, "trace show 0"), &["from 1 to 2048, not \"0\""]);
    has(&refused(&mut guest, "trace"), &["expected: trace on"]);
    has(&ask(&mut guest, "trace on ipi kept"), &["recording 8 of "]);
    ask(&mut guest, "trace off");
    ask(&mut guest, "trace clear");
    has(&ask(&mut guest, "trace show"), &["@trace ended=0", "nothing was recorded (trace on begins it)"]);
    exit(guest);

    let scratch = tempfile::tempdir().expect("a directory");
    let file = scratch.path().join("race.log");
    std::fs::write(&file, &answer).expect("it is written");
    let drawn = draw(&file);
    assert!(drawn.status.success(), "{}", String::from_utf8_lossy(&drawn.stderr));
    for name in ["race.svg", "race.html", "race.json"] {
        let text = std::fs::read_to_string(scratch.path().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        has(&text, &["CPU 0", "shootdown"]);
    }
    std::fs::write(&file, &answer[..answer.len() / 3]).expect("it is written");
    std::fs::remove_file(scratch.path().join("race.svg")).expect("it was there");
    let cut = draw(&file);
    assert_eq!(cut.status.code(), Some(2));
    assert_eq!(String::from_utf8_lossy(&cut.stderr).lines().count(), 1);
    assert!(!scratch.path().join("race.svg").exists(), "nothing is drawn of half a capture");
}

#[test]
fn a_kernel_without_trace_points_says_so() {
    let mut guest = start_shell(&Machine { smp: 1, ..shell() });
    for line in ["trace on", "trace show", "trace nonsense"] {
        has(&refused(&mut guest, line), &["built without trace points", "--trace"]);
    }
    has(&refused(&mut guest, "test --list trace.*"), &["no test's name matches"]);
    exit(guest);
}
