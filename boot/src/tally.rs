//! Counts tests: runs a command, shows what it prints as it comes, and adds up the results that it reports.

mod failures;

use crate::out::outln;
use anyhow::{Context, Result};
use failures::{Failure, Failures};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How many tests passed, failed and were passed over.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    /// Passed.
    pub passed: u64,
    /// Failed, or could not be run.
    pub failed: u64,
    /// Passed over, with a reason that was printed.
    pub skipped: u64,
}

impl Counts {
    /// One test.
    #[must_use]
    pub fn one(passed: bool) -> Self {
        Self { passed: u64::from(passed), failed: u64::from(!passed), skipped: 0 }
    }

    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

/// What the stages of a test run have come to.
#[derive(Debug, Default)]
pub struct Tally {
    total: Counts,
    stages: Vec<(String, Counts, Duration)>,
    failures: Vec<Failure>,
    /// How many of them are of the stages before.
    failures_told: usize,
    quiet: bool,
}

/// What a command's results look like.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// The command is one test: its exit status says how it went.
    Check,
    /// The command reports tests in the manner of `cargo test`, and there has to be at least one.
    Tests,
}

impl Tally {
    /// An empty tally; a quiet one shows only what failed.
    #[must_use]
    pub fn new(quiet: bool) -> Self {
        Self { quiet, ..Self::default() }
    }

    /// All that was counted so far.
    #[must_use]
    pub fn total(&self) -> Counts {
        self.total
    }

    /// Runs one stage and says whether nothing in it failed. A command that cannot be started is a failure, not an
    /// error: the other stages still run.
    pub fn stage(&mut self, name: &str, kind: Kind, command: &mut Command) -> bool {
        let start = Instant::now();
        eprintln!("\n== {name}");
        let (counts, mut failures) = match self.watch(command) {
            Ok((succeeded, reported, failures)) => (settle(kind, succeeded, reported), failures),
            Err(error) => {
                eprintln!("{name}: {error:#}");
                (Counts::one(false), vec![Failure { name: name.into(), reason: vec![format!("{error:#}")] }])
            }
        };
        if kind == Kind::Tests && counts == Counts::one(false) && failures.is_empty() {
            eprintln!("{name}: no test ran");
        }
        self.failures.append(&mut failures);
        self.record(name, counts, start.elapsed())
    }

    /// Adds a stage that this program did itself, and says whether nothing in it failed.
    pub fn record(&mut self, name: &str, counts: Counts, took: Duration) -> bool {
        // A lint, a crash, a build: the stage itself.
        if counts.failed > 0 && self.failures.len() == self.failures_told {
            self.failures.push(Failure { name: name.into(), reason: Vec::new() });
        }
        self.failures_told = self.failures.len();
        self.total.add(counts);
        self.stages.push((name.to_string(), counts, took));
        let Counts { passed, failed, .. } = counts;
        eprintln!("== {name}: {passed} passed, {failed} failed, {:.1} s", took.as_secs_f64());
        failed == 0
    }

    /// Runs a command; its standard error goes straight through, its standard output is shown and read.
    fn watch(&self, command: &mut Command) -> Result<(bool, Counts, Vec<Failure>)> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("{} cannot be started", command.get_program().to_string_lossy()))?;
        let (mut reported, mut failures) = (Counts::default(), Failures::default());
        for line in child.stdout.take().into_iter().flat_map(|out| BufReader::new(out).split(b'\n')) {
            let line = line?;
            let line = String::from_utf8_lossy(&line);
            reported.add(summary(&line).unwrap_or_default());
            failures.line(&line);
            if !(self.quiet && is_chatter(&line)) {
                outln!("{line}");
            }
        }
        Ok((child.wait()?.success(), reported, failures.into_found()))
    }

    /// Prints what each stage came to, what failed with its first words, and, as the last line, the sum. Says whether all is
    /// well: something passed and nothing failed.
    #[must_use]
    pub fn finish(&self) -> bool {
        outln!();
        for (name, counts, took) in &self.stages {
            let skipped = if counts.skipped == 0 { String::new() } else { format!(", {} skipped", counts.skipped) };
            let Counts { passed, failed, .. } = counts;
            outln!("{name:<36} {passed:>5} passed, {failed} failed{skipped} ({:.1} s)", took.as_secs_f64());
        }
        for Failure { name, reason } in &self.failures {
            outln!("failed: {name}");
            reason.iter().for_each(|line| outln!("    {line}"));
        }
        outln!("{} passed, {} failed", self.total.passed, self.total.failed);
        self.total.failed == 0 && self.total.passed > 0
    }
}

/// Makes the counts of a stage agree with how its command ended: what failed without a test's saying so (it did not
/// compile, it crashed) is a failed test, and so is a stage without tests.
fn settle(kind: Kind, succeeded: bool, mut reported: Counts) -> Counts {
    if kind == Kind::Check {
        return Counts::one(succeeded);
    }
    if reported.failed == 0 && (!succeeded || reported.passed == 0) {
        reported.failed = 1;
    }
    reported
}

/// Reads the line `test result: ok. 3 passed; 0 failed; 1 ignored; …`.
fn summary(line: &str) -> Option<Counts> {
    let (_, rest) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let count = |word: &str| rest.split("; ").find_map(|part| part.strip_suffix(word)?.trim().parse().ok());
    Some(Counts { passed: count("passed")?, failed: count("failed")?, skipped: count("ignored")? })
}

/// A line that says no more than that a test passed, or that a set of tests begins or ends.
fn is_chatter(line: &str) -> bool {
    let passed = line.starts_with("test ") && line.ends_with(" ok");
    passed || line.is_empty() || line.starts_with("running ") || line.starts_with("test result: ok")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(kind: Kind, script: &str) -> (bool, Counts) {
        let mut tally = Tally::new(true);
        let ok = tally.stage("stage", kind, Command::new("sh").args(["-c", script]));
        (ok, tally.total)
    }

    #[test]
    fn the_results_of_several_sets_are_added_up() {
        let script = "echo 'test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out'; \
                      echo 'test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured'; exit 1";
        assert_eq!(run(Kind::Tests, script), (false, Counts { passed: 5, failed: 1, skipped: 1 }));
    }

    #[test]
    fn no_tests_is_a_failure() {
        assert_eq!(run(Kind::Tests, "true").1, Counts::one(false));
        assert_eq!(run(Kind::Tests, "echo 'test result: ok. 0 passed; 0 failed; 0 ignored; 0 m'").1.failed, 1);
    }

    #[test]
    fn a_crash_after_good_results_is_a_failure() {
        let script = "echo 'test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured'; kill -9 $$";
        assert_eq!(run(Kind::Tests, script), (false, Counts { passed: 3, failed: 1, skipped: 0 }));
    }

    /// What fails is named at the end: the test with its reason, or the stage that is none or has none.
    #[test]
    fn what_failed_is_kept_for_the_end() {
        let mut tally = Tally::new(true);
        let script = "echo 'test a ... FAILED'; echo '---- a stdout ----'; echo why; exit 1";
        tally.stage("tests", Kind::Tests, Command::new("sh").args(["-c", script]));
        tally.stage("lints", Kind::Check, Command::new("sh").args(["-c", "exit 1"]));
        tally.stage("good ones", Kind::Check, Command::new("sh").args(["-c", "exit 0"]));
        let kept: Vec<_> = tally.failures.iter().map(|failure| (failure.name.as_str(), failure.reason.len())).collect();
        assert_eq!(kept, [("a", 1), ("lints", 0)]);
    }

    #[test]
    fn a_check_is_one_test_whatever_it_prints() {
        assert_eq!(
            run(Kind::Check, "echo 'test result: ok. 3 passed; 0 failed; 0 ignored; 0 m'"),
            (true, Counts::one(true))
        );
        assert_eq!(run(Kind::Check, "exit 3"), (false, Counts::one(false)));
    }

    #[test]
    fn a_command_that_is_not_there_is_a_failure() {
        let mut tally = Tally::new(true);
        assert!(!tally.stage("stage", Kind::Check, &mut Command::new("/nonexistent/program")));
        assert!(!tally.finish());
    }

    #[test]
    fn nothing_at_all_is_not_success() {
        assert!(!Tally::new(true).finish());
    }
}
