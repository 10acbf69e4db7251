//! The tour: what `docs/tour.md` says to type is typed, and what it shows is what comes.

use crate::support::{command, exit, shell, start_shell};
use boot::console::PROMPT;
use boot::machine::Machine;
use boot::outcome::Status;
use boot::paths;
use std::fs;

/// A command of the page, and the answer that stands under it.
struct Step<'t> {
    typed: &'t str,
    shown: Vec<&'t str>,
}

/// The steps of the sections that begin in the shell of one CPU, up to the next kernel that is booted.
fn steps(page: &str) -> Vec<Step<'_>> {
    let (_, from) = page.split_once("## 2. ").expect("the section that boots the shell");
    let (part, _) = from.split_once("## 5. ").expect("the section after it");
    let mut steps: Vec<Step<'_>> = Vec::new();
    let mut is_code = false;
    for line in part.lines() {
        if line.starts_with("```") {
            is_code = !is_code;
        } else if let Some(typed) = line.strip_prefix(PROMPT) {
            steps.push(Step { typed, shown: Vec::new() });
        } else if let (true, Some(step)) = (is_code, steps.last_mut()) {
            step.shown.push(line);
        }
    }
    steps
}

/// Is `line` what `shown` says, in which `…` stands for anything?
fn is_shown(shown: &str, line: &str) -> bool {
    let mut parts = shown.split('…');
    let Some(mut rest) = parts.next().and_then(|first| line.strip_prefix(first)) else { return false };
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.is_empty() || shown.ends_with('…')
}

/// Are `lines` what `shown` says, in which `…` alone stands for any number of lines?
fn fits(shown: &[&str], lines: &[&String]) -> bool {
    match (shown.split_first(), lines.split_first()) {
        (None, None) => true,
        (Some((&"…", rest)), _) => (0..=lines.len()).any(|nr| fits(rest, &lines[nr..])),
        (Some((shown, others)), Some((line, lines))) => is_shown(shown, line) && fits(others, lines),
        _ => false,
    }
}

// covers: T1
#[test]
fn what_the_tour_shows_is_what_comes() {
    let page = fs::read_to_string(paths::root().join("docs/tour.md")).expect("the page");
    let steps = steps(&page);
    assert!(steps.len() > 10, "{} steps", steps.len());
    let mut guest = start_shell(&Machine { smp: 1, deterministic: true, ..shell() });
    for Step { typed, shown } in steps {
        let answer = command(&mut guest, typed);
        let lines: Vec<_> = answer.iter().filter(|line| !line.starts_with(['@', '[']) && !line.is_empty()).collect();
        assert!(
            fits(&shown, &lines),
            "docs/tour.md, `{typed}`, shows\n{}\nand this comes:\n{lines:#?}",
            shown.join("\n")
        );
    }
    assert_eq!(exit(guest).status, Status::Good);
}

#[test]
fn an_ellipsis_stands_for_anything_and_nothing_else_does() {
    assert!(is_shown("a … c", "a b c") && is_shown("… ms", "17 ms") && is_shown("x; …", "x; 3 us"));
    assert!(!is_shown("a … c", "a b d") && !is_shown("abc", "abcd") && !is_shown("… ms", "17 us"));
}
