//! What a person sees of the demonstration, from the program behind the front door.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Without the sentences of what comes next, a screenful of that size.
const MOST_ROWS: usize = 40;
const COLUMNS: usize = 80;

/// The log that the program says it has kept.
fn kept(screen: &str) -> PathBuf {
    let place = screen
        .lines()
        .find_map(|row| row.strip_prefix("The whole log is in ")?.split_once(" ("))
        .map(|(place, _)| place);
    // It runs in the directory of this test.
    Path::new(place.unwrap_or_else(|| panic!("no log is named\n{screen}"))).to_path_buf()
}

/// It stops at each act until a line comes, goes on without stopping when no more can come, and is a screenful, which
/// names the log of the whole.
#[test]
fn a_screenful_that_stops_at_each_act() {
    let image = boot::paths::image();
    let mut command = Command::new(env!("CARGO_BIN_EXE_boot"));
    command.args(["--step", "--smp", "2"]).env_remove("ACCEL").env("TERM", "xterm");
    // Where the program that makes images has been built, so that it is not built again.
    command.env("CARGO_TARGET_DIR", image.parent().expect("a file has a directory"));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut program = command.spawn().expect("it starts");
    let mut stderr = program.stderr.take().expect("a pipe");
    let messages = std::thread::spawn(move || {
        let mut text = String::new();
        stderr.read_to_string(&mut text).map(|_| text)
    });
    let mut input = program.stdin.take().expect("a pipe");
    let mut rows = BufReader::new(program.stdout.take().expect("a pipe")).lines().map_while(Result::ok);
    let mut screen = String::new();
    let mut until = |beginning: &str| {
        for row in rows.by_ref() {
            screen.push_str(&row);
            screen.push('\n');
            if !beginning.is_empty() && row.starts_with(beginning) {
                return screen.clone();
            }
        }
        assert!(beginning.is_empty(), "{beginning:?} did not come\n{screen}");
        screen.clone()
    };
    let said = until("Next, 1 of 6, by range: ");
    assert!(!said.contains("1/6"), "{said}");
    input.write_all(b"\n").expect("it listens");
    let said = until("Next, 2 of 6, per frame: ");
    assert!(said.contains("\n1/6 by range") && !said.contains("2/6"), "{said}");
    input.write_all(b"go on\n").expect("it listens");
    let said = until("Next, 3 of 6, page: ");
    assert!(said.contains("\n2/6 per frame"), "{said}");
    drop(input);
    let screen = until("");
    let messages = messages.join().expect("no panic").expect("text");
    assert!(program.wait().expect("its end").success(), "{screen}\n{messages}");
    assert!(messages.contains("standard input has ended") && !messages.contains("verdict"), "{messages}");

    assert!(!screen.contains('\u{1b}') && !screen.contains("BAD"), "{screen}");
    assert!(screen.lines().all(|row| row.chars().count() <= COLUMNS || row.starts_with("The whole log")), "{screen}");
    let mut is_next = false;
    let without_next = screen.lines().filter(|row| {
        is_next = row.starts_with("Next, ") || is_next && row.starts_with("    ");
        !is_next
    });
    assert!(without_next.count() <= MOST_ROWS, "{screen}");
    for beginning in ["Unplug: 2 CPUs, ", "6/6 desk", "shootdowns", "One by one, ", "Verdict: good"] {
        assert_eq!(screen.lines().filter(|row| row.starts_with(beginning)).count(), 1, "{beginning:?}\n{screen}");
    }
    let log = std::fs::read_to_string(kept(&screen)).expect("the log");
    assert!(log.starts_with("@unplug ") && log.trim_end().ends_with("@verdict result=good"), "{log}");
    assert_eq!(log.lines().filter(|line| line.starts_with("@next ")).count(), 6, "{log}");
}
