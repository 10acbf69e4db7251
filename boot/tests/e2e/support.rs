//! What the end-to-end tests share.

use boot::cli::Mode;
use boot::console::Echo;
use boot::guest::Guest;
use boot::machine::Machine;
use boot::outcome::{Outcome, Status};
use boot::records::{self, Record};
use std::time::Duration;

/// The default machine with an upper limit on a test's patience, in seconds; no test waits for it to pass.
pub fn machine() -> Machine {
    Machine { timeout: Some(Duration::from_secs(300)), ..Machine::default() }
}

/// The default machine with a shell.
pub fn shell() -> Machine {
    Machine { mode: Mode::Shell, ..machine() }
}

/// Starts a guest. A test that cannot has failed.
pub fn start(machine: &Machine) -> Guest {
    Guest::start(machine, Echo::Off).unwrap_or_else(|error| panic!("{error:#}"))
}

/// Runs a guest to its end.
pub fn run(machine: &Machine) -> Outcome {
    start(machine).finish().unwrap_or_else(|error| panic!("{error:#}"))
}

/// Sends the shell a command and returns the lines that it answers.
pub fn command(guest: &mut Guest, command: &str) -> Vec<String> {
    guest.command(command).unwrap_or_else(|error| panic!("{error:#}"))
}

/// Starts a guest with a shell, and waits for its first prompt.
pub fn start_shell(machine: &Machine) -> Guest {
    let mut guest = start(machine);
    guest.prompt().unwrap_or_else(|error| panic!("{error:#}"));
    guest
}

/// Sends a command that must not be answered with an error; returns the answer as one text.
pub fn ask(guest: &mut Guest, line: &str) -> String {
    guest.shell(line).unwrap_or_else(|error| panic!("{error:#}")).lines.join("\n")
}

/// Sends a command that must be answered with one line of error, among whatever else.
pub fn refused(guest: &mut Guest, line: &str) -> String {
    let answer = command(guest, line);
    let errors: Vec<_> = answer.iter().filter(|line| line.starts_with("error: ")).collect();
    assert!(errors.len() == 1, "{line:?}: {answer:?}");
    errors[0].clone()
}

/// Fails unless all the words are in the text.
pub fn has(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "{word:?} is not in:\n{text}");
    }
}

/// Ends a guest by its shell's `exit`.
pub fn exit(mut guest: Guest) -> Outcome {
    guest.send("exit").unwrap_or_else(|error| panic!("{error:#}"));
    guest.finish().unwrap_or_else(|error| panic!("{error:#}"))
}

/// Fails with the end of the console unless the verdict is good.
pub fn assert_good(outcome: &Outcome) {
    assert_eq!(outcome.status, Status::Good, "{}", tail(outcome));
}

/// The end of the console, for a failure's message.
pub fn tail(outcome: &Outcome) -> String {
    let from = outcome.console.len().saturating_sub(40);
    format!("{}\nthe last lines:\n{}\n{}", outcome.status, outcome.console[from..].join("\n"), outcome.hang.join("\n"))
}

/// Every record of a topic.
pub fn records(outcome: &Outcome, topic: &str) -> Vec<Record> {
    records::of_topic(&outcome.console, topic).collect()
}

/// The lines that are for people: those of the kernel's log.
pub fn has_line(outcome: &Outcome, words: &[&str]) -> bool {
    outcome.console.iter().any(|line| words.iter().all(|word| line.to_lowercase().contains(&word.to_lowercase())))
}
