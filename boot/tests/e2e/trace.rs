//! Traces: one gup against one zap on a running kernel, its lanes, and the pictures that are made of the console.

use crate::support::{ask, exit, has, refused, shell, start_shell};
use boot::machine::Machine;
use boot::paths::Profile;
use boot::records;
use std::process::Command;

/// The program behind `run-qemu.sh trace`, which draws beside `file`.
fn draw(file: &std::path::Path) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_trace")).arg("trace").arg(file).output().expect("it starts")
}

// covers: T2
#[test]
fn a_gup_against_a_zap_becomes_lanes_and_pictures() {
    let mut guest = start_shell(&Machine { build: Profile::Trace, ..shell() });
    has(&ask(&mut guest, "test trace.race.*"), &["ok 1 trace.race.gup_against_zap"]);
    let answer = ask(&mut guest, "trace show 80");
    has(&answer, &["us CPU 0", "/shoot ", "ipi ", "/recv #", "\\ack #", "\\sync", "/gup 4000000", "o---"]);
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
