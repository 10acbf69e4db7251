//! What the docs show of a console: blocks that begin with ```` ```console ````, and what makes them.
//!
//! | a block begins with `console` and | is checked by |
//! |---|---|
//! | `./run-qemu.sh shell …` (or `--mode shell`) | a session: what stands behind the prompt is typed, what stands below is its answer. All blocks of a page with the same command are one session |
//! | `./run-qemu.sh …` | a run: the lines come, in this order up to a line `…`; others may stand between them |
//! | `numbers ./run-qemu.sh …` | the lines come, whatever their order, their numbers, the units of times and the plurals |
//! | `by FILE` | the test in that file |
//!
//! `…` stands for what differs from one build or run to the next, and alone in a line for any number of lines.

use crate::console::PROMPT;
use crate::paths;
use std::fs;
use std::path::{Path, PathBuf};

/// Who compares a block with what comes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Mark {
    /// The command whose console it shows, without the name of the program.
    Run {
        /// Its words.
        args: Vec<String>,
        /// Are numbers left out of account?
        numbers: bool,
    },
    /// A test of its own, in this file.
    By(String),
    /// Nobody.
    None,
}

/// A block of a page.
#[derive(Clone, Debug)]
pub struct Fence {
    /// The page, from the root on.
    pub page: PathBuf,
    /// The line at which it begins, from 1.
    pub line: usize,
    /// Who checks it.
    pub mark: Mark,
    /// What stands in it.
    pub lines: Vec<String>,
}

impl Fence {
    /// For messages.
    #[must_use]
    pub fn place(&self) -> String {
        format!("{}:{}", self.page.display(), self.line)
    }
    /// Does it look like what a console shows?
    #[must_use]
    pub fn is_console(&self) -> bool {
        self.lines.iter().any(|line| {
            let is_record =
                line.strip_prefix('@').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_lowercase()));
            let is_log = line.strip_prefix('[').is_some_and(|rest| {
                let stamp = rest.split(']').next().unwrap_or("").trim();
                stamp.contains('.') && stamp.chars().all(|c| c.is_ascii_digit() || c == '.')
            });
            let is_result =
                line.starts_with("ok ") || line.starts_with("not ok ") || line.starts_with("it strikes with ");
            is_record || is_log || is_result || line.starts_with(PROMPT)
        })
    }
}

/// The pages of the project: the front page, and all below `docs/`.
#[must_use]
pub fn pages() -> Vec<PathBuf> {
    let mut pages = vec![PathBuf::from("README.md")];
    let mut open = vec![PathBuf::from("docs")];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(paths::root().join(&directory)).into_iter().flatten().flatten() {
            let path = directory.join(entry.file_name());
            if entry.path().is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                pages.push(path);
            }
        }
    }
    pages.sort();
    pages
}

/// The blocks of all pages, in their order.
#[must_use]
pub fn all() -> Vec<Fence> {
    let read = |page: PathBuf| of(&page, &fs::read_to_string(paths::root().join(&page)).unwrap_or_default());
    pages().into_iter().flat_map(read).collect()
}

/// The blocks of a page.
#[must_use]
pub fn of(page: &Path, text: &str) -> Vec<Fence> {
    let mut fences = Vec::new();
    let mut lines = text.lines().enumerate();
    while let Some((at, line)) = lines.next() {
        let Some(info) = line.strip_prefix("```") else { continue };
        let inside = lines.by_ref().map(|(_, line)| line).take_while(|line| !line.starts_with("```"));
        let lines = inside.map(String::from).collect();
        fences.push(Fence { page: page.into(), line: at + 1, mark: mark(info), lines });
    }
    fences
}

fn mark(info: &str) -> Mark {
    let mut words: Vec<_> = info.split_whitespace().collect();
    if words.first() != Some(&"console") {
        return Mark::None;
    }
    words.remove(0);
    if let ["by", file] = words[..] {
        return Mark::By(file.into());
    }
    let numbers = words.first() == Some(&"numbers");
    if numbers {
        words.remove(0);
    }
    match words.split_first() {
        Some((&"./run-qemu.sh", args)) => Mark::Run { args: args.iter().map(ToString::to_string).collect(), numbers },
        _ => Mark::None,
    }
}

/// A command of a session, and the answer that stands under it.
#[derive(Debug)]
pub struct Step<'t> {
    /// What is typed.
    pub typed: &'t str,
    /// What is shown.
    pub shown: Vec<&'t str>,
}

/// The steps of a block. What stands before the first prompt is what starts the session.
#[must_use]
pub fn steps(lines: &[String]) -> Vec<Step<'_>> {
    let mut steps: Vec<Step<'_>> = Vec::new();
    for line in lines {
        if let Some(typed) = line.strip_prefix(PROMPT) {
            steps.push(Step { typed, shown: Vec::new() });
        } else if let Some(step) = steps.last_mut() {
            step.shown.push(line);
        }
    }
    steps
}

/// Is `line` what `shown` says, in which `…` stands for anything?
#[must_use]
pub fn is_shown(shown: &str, line: &str) -> bool {
    let parts: Vec<_> = shown.split('…').collect();
    let [first, middle @ .., last] = &parts[..] else { return shown == line };
    let Some(mut rest) = line.strip_prefix(first) else { return false };
    for part in middle {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

/// Is an answer what a session shows? Lines for programs and of the log are left out, unless they are shown.
#[must_use]
pub fn answers(shown: &[&str], answer: &[String]) -> bool {
    let is_kept = |line: &&String| {
        let is_aside = line.starts_with(['@', '[']) || line.is_empty();
        !is_aside || shown.iter().any(|shown| *shown != "…" && is_shown(shown, line))
    };
    let lines: Vec<_> = answer.iter().filter(is_kept).map(String::as_str).collect();
    fits(shown, &lines)
}

/// Are `lines` what `shown` says, in which `…` alone stands for any number of lines?
fn fits(shown: &[&str], lines: &[&str]) -> bool {
    match (shown.split_first(), lines.split_first()) {
        (None, None) => true,
        (Some((&"…", rest)), _) => (0..=lines.len()).any(|nr| fits(rest, &lines[nr..])),
        (Some((shown, others)), Some((line, lines))) => is_shown(shown, line) && fits(others, lines),
        _ => false,
    }
}

/// The first line that does not come in a run, if any. Each is looked for behind the one before, and behind `…` from the
/// beginning again; without `numbers` only: where those may differ the order may, too, for CPUs race there.
#[must_use]
pub fn missing<'s>(shown: &'s [String], run: &[String], numbers: bool) -> Option<&'s str> {
    let said = |line: &str| if numbers { without_numbers(line) } else { line.to_string() };
    let run: Vec<_> = run.iter().map(|line| said(line)).collect();
    let of_piece = |piece: &'s [String]| {
        let mut lines = run.iter();
        piece.iter().filter(|line| !line.is_empty()).map(String::as_str).find(|line| {
            let wanted = said(line);
            if numbers {
                lines = run.iter();
            }
            !lines.any(|line| is_shown(&wanted, line))
        })
    };
    shown.split(|line| line == "…").find_map(of_piece)
}

/// A line with `#` for each number, without the unit of a time or the plural of what is counted, and with single spaces.
fn without_numbers(line: &str) -> String {
    let mut words: Vec<String> = Vec::new();
    for word in line.split_whitespace() {
        let is_unit = matches!(word, "ns" | "us" | "µs" | "ms" | "s" | "min" | "h" | "d");
        let is_counted = words.last().is_some_and(|last| last.ends_with('#'));
        if !(is_unit && is_counted) {
            let word = word_without_numbers(word);
            words.push(if is_counted { word.trim_end_matches('s').into() } else { word });
        }
    }
    words.join(" ")
}

fn word_without_numbers(word: &str) -> String {
    let mut left = String::new();
    let mut rest = word;
    while let Some(at) = rest.find(|c: char| c.is_ascii_digit()) {
        left.push_str(&rest[..at]);
        left.push('#');
        rest = match rest[at..].strip_prefix("0x") {
            Some(hex) => hex.trim_start_matches(|c: char| c.is_ascii_hexdigit()),
            None => rest[at..].trim_start_matches(|c: char| c.is_ascii_digit() || matches!(c, '.' | ',')),
        };
    }
    left + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Blocks that look like a console and are not compared: the page, a line of it, and why not.
    const EXCEPTIONS: [(&str, &str, &str); 1] =
        [("docs/tour.md", "unplug> trace show", "what is typed there; what comes is lanes, and each time others")];

    // covers: T5
    #[test]
    fn what_looks_like_a_console_is_compared_with_one() {
        let mut unused: Vec<_> = EXCEPTIONS.iter().map(|(page, line, _)| (*page, *line)).collect();
        let mut faults = Vec::new();
        let mut nr = 0;
        for fence in all() {
            match &fence.mark {
                Mark::Run { .. } => nr += 1,
                Mark::By(file) => {
                    nr += 1;
                    let test = fs::read_to_string(paths::root().join(file)).unwrap_or_default();
                    let folder = fence.page.parent().unwrap().display().to_string();
                    let has_tests = ["#[test]", "Trial::test("].iter().any(|word| test.contains(word));
                    if !has_tests || !test.contains(&folder) {
                        faults.push(format!("{}: no test of {folder} in {file}", fence.place()));
                    }
                }
                Mark::None if fence.is_console() => {
                    let is_excepted = |(page, line): &(&str, &str)| {
                        fence.page == Path::new(page) && fence.lines.iter().any(|shown| shown == line)
                    };
                    match unused.iter().position(is_excepted) {
                        Some(at) => drop(unused.remove(at)),
                        None => faults.push(format!("{}: it is compared with nothing", fence.place())),
                    }
                }
                Mark::None => {}
            }
        }
        assert!(faults.is_empty(), "see docs/contributing.md:\n{}", faults.join("\n"));
        assert!(nr > 25, "{nr} blocks are compared");
        assert_eq!(unused, [], "exceptions for nothing");
    }

    #[test]
    fn a_console_is_known_by_its_lines() {
        let looks = |text: &str| of(Path::new("x"), &format!("```\n{text}\n```\n"))[0].is_console();
        for text in ["a\n@removal n=1", "[    0.123456] boot: x", "ok 1 mm.x", "not ok 2 y", "unplug> help"] {
            assert!(looks(text), "{text}");
        }
        for text in ["[a](b)", "cargo test", "@ 1", "ok", "[1] a footnote. x", "let x = [0.1];"] {
            assert!(!looks(text), "{text}");
        }
    }

    #[test]
    fn a_mark_says_what_to_run() {
        let run = |args: &[&str], numbers| Mark::Run { args: args.iter().map(ToString::to_string).collect(), numbers };
        assert_eq!(mark("console ./run-qemu.sh shell --smp 1"), run(&["shell", "--smp", "1"], false));
        assert_eq!(mark("console numbers ./run-qemu.sh"), run(&[], true));
        assert_eq!(mark("console by boot/tests/e2e/zoo.rs"), Mark::By("boot/tests/e2e/zoo.rs".into()));
        for none in ["", "console", "console ls", "text", "rust ignore"] {
            assert_eq!(mark(none), Mark::None, "{none}");
        }
    }

    #[test]
    fn an_ellipsis_stands_for_anything_and_nothing_else_does() {
        assert!(is_shown("a … c", "a b c") && is_shown("… ms", "17 ms, 18 ms") && is_shown("x; …", "x; 3 us"));
        assert!(!is_shown("a … c", "a b d") && !is_shown("abc", "abcd") && !is_shown("… ms", "17 us"));
        assert!(!is_shown("ab…ba", "aba"), "the same letters do not count twice");
        let lines = |lines: &[&str]| lines.iter().map(ToString::to_string).collect::<Vec<_>>();
        let answer = lines(&["[ 0.1] log: x", "one", "@two n=2", "three", "four"]);
        assert!(answers(&["one", "…", "four"], &answer) && answers(&["one", "@two n=…", "three", "four"], &answer));
        assert!(!answers(&["one", "three"], &answer) && !answers(&["one", "@two n=3", "three", "four"], &answer));
    }

    #[test]
    fn a_run_shows_its_lines_in_order_and_numbers_may_be_left_out() {
        let lines = |text: &str| text.lines().map(String::from).collect::<Vec<_>>();
        let run = lines("[   1.5] a: 17 pages at 0x10\nb\ntime   929 ms  1.2 s\nc");
        assert_eq!(missing(&lines("b\nc"), &run, false), None);
        assert_eq!(missing(&lines("c\n…\nb"), &run, false), None);
        assert_eq!(missing(&lines("c\nb"), &run, false), Some("b"));
        assert_eq!(missing(&lines("time 3 s 60 min\n[    0.123] a: 1 page at 0xabc"), &run, true), None);
        assert!(missing(&lines("[    0.123] a: 2,048 pages at 0xabc"), &run, false).is_some());
        assert_eq!(missing(&lines("a: 17 sheets"), &run, true), Some("a: 17 sheets"));
    }
}
