//! How far a guest has come, read off its console: for the report about one that took too long.

use crate::console::PROMPT;
use crate::records;
use std::time::Duration;

/// A guest that has said nothing in the last one of so many parts of its time hangs; one that has is slow.
const PARTS: u32 = 4;

/// Is a guest still at work that has been quiet for so long, of the time that it was allowed?
#[must_use]
pub fn is_at_work(quiet: Duration, allowed: Duration) -> bool {
    quiet < allowed / PARTS
}

/// What the guest was in when it said its last line, and how far. `lines` are the kernel's complete lines.
#[must_use]
pub fn stage(lines: &[String]) -> String {
    if lines.is_empty() {
        return "the firmware and the loader, before the kernel's first line".into();
    }
    let Some(boot) = lines.iter().rposition(|line| line.starts_with("@boot ")) else {
        return format!("the kernel's bring-up, {} lines into it", lines.len());
    };
    // Whatever began last: the shell starts tests, and they demonstrations.
    let begun = lines[boot..].iter().rposition(|line| began(line)).map(|at| boot + at);
    let Some(at) = begun else {
        return format!("what follows the bring-up, {} lines after it", lines.len() - boot - 1);
    };
    let (line, after) = (&lines[at], &lines[at + 1..]);
    if let Some(command) = line.strip_prefix(PROMPT) {
        return format!("the shell, {} lines after the command {command:?}", after.len());
    }
    if let Some(plan) = line.strip_prefix("1..") {
        let ended = after.iter().filter(|line| line.starts_with("ok ") || line.starts_with("not ok ")).count();
        return format!("the in-kernel tests, {ended} of {plan} ended");
    }
    let record = records::of_topic(std::slice::from_ref(line), "act").next();
    let field = |key| record.as_ref().and_then(|record| record.get(key)).unwrap_or("?").to_string();
    let (n, of, name) = (field("n"), field("of"), field("name"));
    format!("act {n} of {of} of the demonstration ({name}), {} lines into it", after.len())
}

/// Does the line begin one of the things that a guest can be in?
fn began(line: &str) -> bool {
    line.starts_with("@act ")
        || line.starts_with("1..")
        || line.strip_prefix(PROMPT).is_some_and(|typed| !typed.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_thing_that_began_is_told_with_how_far_it_came() {
        let said = |text: &str| stage(&text.lines().map(String::from).collect::<Vec<_>>());
        let up = "@unplug version=0\n@boot cpus=1\n";
        assert!(said("").contains("before the kernel's first line"));
        assert_eq!(said("@unplug version=0\nmemory: 1\n"), "the kernel's bring-up, 2 lines into it");
        assert_eq!(said(&format!("{up}a\nb\n")), "what follows the bring-up, 2 lines after it");
        let act = "@act n=2 of=5 name=per_frame\n";
        assert_eq!(
            said(&format!("{up}@act n=1 of=5 name=by_range\nx\n{act}a\nb\nc\n")),
            "act 2 of 5 of the demonstration (per_frame), 3 lines into it"
        );
        assert_eq!(
            said(&format!("{up}KTAP version 1\n1..30\nok 1 a\n# ok 7\nnot ok 2 b\nnoise\n")),
            "the in-kernel tests, 2 of 30 ended"
        );
        assert_eq!(
            said(&format!("{up}{act}unplug> \nunplug> hang\nhanging\n")),
            "the shell, 1 lines after the command \"hang\""
        );
    }

    #[test]
    fn a_guest_that_spoke_lately_is_slow_and_one_that_did_not_hangs() {
        let second = Duration::from_secs(1);
        for (quiet, allowed, at_work) in
            [(0, 300, true), (74, 300, true), (75, 300, false), (300, 300, false), (1, 1, false)]
        {
            assert_eq!(is_at_work(quiet * second, allowed * second), at_work, "{quiet} of {allowed} s");
        }
        assert!(!is_at_work(Duration::MAX, 300 * second), "a guest that has never said anything");
    }
}
