//! The results of tests as JUnit's XML, which CI systems read.
//!
//! A suite is a guest; a test in a test has the outer ones in its class name. How the guest ended is a test of its own, `ending`:
//! one that hangs, panics or leaves tests out is a failure even where none of its tests says `not ok`.

use crate::error::Error;
use crate::ktap::{Test, Verdict};
use crate::outcome::{Outcome, Status};
use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};

/// The XML of guests that have ended, each with the name of its suite; `name` is that of the whole.
///
/// # Errors
/// One line; what comes from a guest is no reason for one.
pub fn xml(name: &str, guests: &[(&str, &Outcome)]) -> Result<String, Error> {
    let mut report = Report::new(name);
    for (suite, outcome) in guests {
        report.add_test_suite(suite_of(suite, outcome));
    }
    report.to_string().map_err(|error| Error::Answer(format!("JUnit's XML: {error}")))
}

fn suite_of(name: &str, outcome: &Outcome) -> TestSuite {
    let results = outcome.ktap();
    let mut suite = TestSuite::new(name);
    add(&mut suite, name, &results.tests);
    let agrees = match outcome.status {
        Status::Good | Status::Ended(0) => results.is_success(),
        // The failed tests are failures of their own.
        Status::Bad(_) => results.problems.is_empty() && !results.is_success(),
        _ => false,
    };
    let status = if agrees {
        TestCaseStatus::success()
    } else {
        let why: Vec<_> = std::iter::once(outcome.status.to_string()).chain(results.problems).collect();
        failure(&why.join("; "), &[results.rest, outcome.hang.clone()].concat())
    };
    let mut ending = TestCase::new("ending", status);
    ending.set_classname(name);
    suite.add_test_case(ending);
    suite
}

/// Adds those tests in which no other is, as [`Report::counts`](crate::ktap::Report::counts) counts them.
fn add(suite: &mut TestSuite, class: &str, tests: &[Test]) {
    for test in tests {
        if !test.subtests.is_empty() {
            add(suite, &format!("{class}.{}", test.name), &test.subtests);
            continue;
        }
        let status = match &test.verdict {
            Verdict::Passed => TestCaseStatus::success(),
            Verdict::Failed => failure("not ok", &test.output),
            Verdict::Skipped(reason) => {
                let mut status = TestCaseStatus::skipped();
                status.set_message(reason.as_str());
                status
            }
        };
        let name = if test.name.is_empty() { test.number.to_string() } else { test.name.clone() };
        let mut case = TestCase::new(name, status);
        case.set_classname(class);
        suite.add_test_case(case);
    }
}

fn failure(message: &str, output: &[String]) -> TestCaseStatus {
    let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
    status.set_message(message).set_description(output.join("\n"));
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(status: Status, console: &str) -> Report {
        let console = console.lines().map(String::from).collect();
        let outcome = Outcome { status, console, hang: vec!["CPU 0 & 1: <running>".into()] };
        let xml = xml("all", &[("4cpu", &outcome)]).expect("xml");
        Report::deserialize_from_str(&xml).expect("what it can read itself")
    }

    /// covers: T5
    #[test]
    fn what_was_written_can_be_read_again() {
        let console = "KTAP version 1\n1..3\nok 1 a\nnot ok 2 b\n# <why> \u{1b}[1m & \u{0}\n  KTAP version 1\n  1..1\n  \
                       ok 1 inner # SKIP \"none\"\nok 3 c";
        let report = read(Status::Bad("one".into()), console);
        assert_eq!((report.tests, report.failures, report.errors), (4, 1, 0));
        let cases = &report.test_suites[0].test_cases;
        let names = cases.iter().map(|case| (case.classname.as_ref().unwrap().as_str(), case.name.as_str()));
        let names: Vec<_> = names.collect();
        assert_eq!(names, [("4cpu", "a"), ("4cpu", "b"), ("4cpu.c", "inner"), ("4cpu", "ending")]);
        let TestCaseStatus::NonSuccess { description, .. } = &cases[1].status else { panic!("{:?}", cases[1]) };
        assert!(description.as_ref().is_some_and(|text| text.as_str().contains("# <why> ")), "{description:?}");
        assert!(
            matches!(&cases[2].status, TestCaseStatus::Skipped { message: Some(why), .. } if why.as_str() == "\"none\"")
        );
    }

    /// covers: T5
    #[test]
    fn a_guest_that_ends_otherwise_is_a_failure_whatever_its_tests_say() {
        let good = "KTAP version 1\n1..1\nok 1 a";
        assert_eq!(read(Status::Good, good).failures, 0);
        assert_eq!(read(Status::Ended(0), good).failures, 0, "a kernel that is not ours");
        for (status, console) in [
            (Status::Hung("x".into()), good),
            (Status::Panic("x".into()), good),
            (Status::Bad("leak".into()), good),
            (Status::Good, "KTAP version 1\n1..2\nok 1 a"),
            (Status::Good, ""),
        ] {
            assert_eq!(read(status.clone(), console).failures, 1, "{status:?} {console:?}");
        }
    }
}
