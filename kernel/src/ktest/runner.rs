//! The in-kernel tests are run in a task and reported as KTAP (version 1) on the console.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::console::{self, ring};
use crate::ktest::AREAS;
use crate::ktest::test::{Ctx, Test};

/// What came of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Tests that did what they should.
    pub passed: usize,
    /// Tests that did not.
    pub failed: usize,
    /// Tests that could not run here.
    pub skipped: usize,
}

/// The tests whose names match `glob`, in the order in which they are run.
fn chosen(glob: &str) -> impl Iterator<Item = &'static Test> {
    AREAS.iter().copied().flatten().filter(move |test| matches(glob, test.name))
}

/// The names of the tests that match `glob`.
pub fn names(glob: &str) -> Vec<&'static str> {
    chosen(glob).map(|test| test.name).collect()
}

/// Runs the tests whose names match `glob`.
pub fn run(glob: &str) -> Summary {
    console::line(format_args!("KTAP version 1"));
    console::line(format_args!("1..{}", chosen(glob).count()));
    let mut summary = Summary::default();
    for (number, test) in chosen(glob).enumerate().map(|(index, test)| (index + 1, test)) {
        let mut ctx = Ctx::default();
        let name = test.name;
        let covers = if test.covers.is_empty() { String::new() } else { format!(" # covers: {}", test.covers) };
        match ((test.run)(&mut ctx), ctx.skipped()) {
            (Ok(()), None) => {
                summary.passed += 1;
                console::line(format_args!("ok {number} {name}{covers}"));
            }
            (Ok(()), Some(reason)) => {
                summary.skipped += 1;
                console::line(format_args!("ok {number} {name} # SKIP {reason}"));
            }
            (Err(message), _) => {
                summary.failed += 1;
                console::line(format_args!("not ok {number} {name}{covers}"));
                for line in message.lines() {
                    console::line(format_args!("# {line}"));
                }
            }
        }
        ring::drain();
    }
    console::line(format_args!("# passed: {} failed: {} skipped: {}", summary.passed, summary.failed, summary.skipped));
    summary
}

/// Does `name` match `glob`, in which `*` stands for any text and `?` for any one character?
fn matches(glob: &str, name: &str) -> bool {
    let (glob, name) = (glob.as_bytes(), name.as_bytes());
    let (mut g, mut n) = (0, 0);
    // Where the last star was, and up to where it has eaten: the only place to go back to.
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match glob.get(g) {
            Some(b'*') => {
                star = Some((g, n));
                g += 1;
            }
            Some(&byte) if byte == b'?' || byte == name[n] => {
                g += 1;
                n += 1;
            }
            _ => match &mut star {
                Some((at, eaten)) => {
                    *eaten += 1;
                    g = *at + 1;
                    n = *eaten;
                }
                None => return false,
            },
        }
    }
    glob[g..].iter().all(|&byte| byte == b'*')
}
