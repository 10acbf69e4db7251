//! Reads the results of the in-kernel tests: KTAP version 1, one level deep, among whatever else the kernel prints.
//!
//! ```text
//! KTAP version 1
//! 1..3
//! ok 1 mm.table.install # covers: G1
//! not ok 2 mm.gup.race
//! # the page was freed early
//! ok 3 nvdimm.two # SKIP there is one
//! ```
//! A report that is cut off, that skips a number or that has more results than its plan is never a success: what is
//! wrong with it is in [`Report::problems`].

/// How one test ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// It passed.
    Passed,
    /// It failed.
    Failed,
    /// It says that it cannot run here, and why.
    Skipped(String),
}

/// One test.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Test {
    /// Its place in the plan, from 1.
    pub number: usize,
    /// Its name.
    pub name: String,
    /// How it ended.
    pub verdict: Verdict,
    /// What was printed between the result before it and its own, and the `#` lines that follow its own.
    pub output: Vec<String>,
}

/// A whole report.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Report {
    /// The results, in the order in which they came.
    pub tests: Vec<Test>,
    /// How many tests there should be; `None` when the report ended before it said.
    pub plan: Option<usize>,
    /// What is wrong with the report itself.
    pub problems: Vec<String>,
    /// What was printed after the last result: for a kernel that crashed, why.
    pub rest: Vec<String>,
}

/// One line of a report.
enum Line<'a> {
    Version,
    Plan(usize),
    Result { number: usize, name: &'a str, verdict: Verdict },
    Diagnostic,
    BailOut,
    Noise,
}

/// Reads the first report among console lines. Lines before it are not looked at.
#[must_use]
pub fn parse(console: &[String]) -> Report {
    let mut report = Report::default();
    let mut lines = console.iter().skip_while(|line| !matches!(classify(line), Line::Version)).skip(1).peekable();
    if lines.peek().is_none() {
        report.problems.push("the kernel printed no test report".into());
    }
    for line in lines {
        report.take(line);
    }
    report.check();
    report
}

impl Report {
    /// Did every planned test run, and none fail?
    #[must_use]
    pub fn is_success(&self) -> bool {
        self.problems.is_empty() && self.tests.iter().all(|test| test.verdict != Verdict::Failed)
    }

    fn take(&mut self, line: &str) {
        match classify(line) {
            Line::Version => self.problems.push("a second report begins inside the first".into()),
            Line::Plan(plan) if self.plan.is_none() => self.plan = Some(plan),
            Line::Plan(_) => self.problems.push(format!("a second plan: {line:?}")),
            Line::Result { number, name, verdict } => {
                let expected = self.tests.len() + 1;
                if number != expected {
                    self.problems.push(format!("result {number} ({name}) came where {expected} was due"));
                }
                let output = std::mem::take(&mut self.rest);
                self.tests.push(Test { number, name: name.to_string(), verdict, output });
            }
            Line::Diagnostic if self.is_of_last() => {
                self.tests.last_mut().into_iter().for_each(|test| test.output.push(line.to_string()));
            }
            Line::BailOut => self.problems.push(line.to_string()),
            Line::Diagnostic | Line::Noise => self.rest.push(line.to_string()),
        }
    }

    /// Does a diagnostic that comes now belong to the last result? It does until the next test has said something; where the
    /// last one has failed, and has not said why, that may be another task that spoke in between.
    fn is_of_last(&self) -> bool {
        let said_why = |line: &String| matches!(classify(line), Line::Diagnostic);
        self.tests.last().is_some_and(|last| {
            self.rest.is_empty() || last.verdict == Verdict::Failed && !last.output.iter().any(said_why)
        })
    }

    /// Compares the results with the plan, once every line has been taken.
    fn check(&mut self) {
        match self.plan {
            _ if !self.problems.is_empty() && self.tests.is_empty() => {}
            None => self.problems.push("the report has no plan".into()),
            Some(0) => self.problems.push("the plan has no tests".into()),
            Some(plan) if plan > self.tests.len() => {
                let ran = self.tests.len();
                self.problems.push(format!("{} of {plan} tests did not run, or did not end", plan - ran));
            }
            Some(plan) if plan < self.tests.len() => {
                self.problems.push(format!("{} results, but a plan of {plan}", self.tests.len()));
            }
            Some(_) => {}
        }
    }
}

fn classify(line: &str) -> Line<'_> {
    if line.starts_with("KTAP version ") {
        return Line::Version;
    }
    if line.starts_with("Bail out!") {
        return Line::BailOut;
    }
    if let Some(plan) = line.strip_prefix("1..").and_then(|count| count.trim_end().parse().ok()) {
        return Line::Plan(plan);
    }
    let (passed, rest) = match (line.strip_prefix("ok "), line.strip_prefix("not ok ")) {
        (Some(rest), _) => (true, rest),
        (_, Some(rest)) => (false, rest),
        _ if line.trim_start().starts_with('#') => return Line::Diagnostic,
        _ => return Line::Noise,
    };
    result(passed, rest).unwrap_or(Line::Noise)
}

/// Reads what follows `ok ` or `not ok `: a number, a name, and after a `#` a directive or a description.
fn result(passed: bool, rest: &str) -> Option<Line<'_>> {
    let (number, rest) = rest.trim_start().split_once(' ')?;
    let (name, note) = rest.split_once('#').unwrap_or((rest, ""));
    let name = name.trim().trim_start_matches("- ");
    let skip = note.trim().strip_prefix("SKIP").map(|reason| reason.trim().to_string());
    let verdict = match (passed, skip) {
        (false, _) => Verdict::Failed,
        (true, Some(reason)) => Verdict::Skipped(reason),
        (true, None) => Verdict::Passed,
    };
    let number = number.parse().ok()?;
    (!name.is_empty()).then_some(Line::Result { number, name, verdict })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Report {
        parse(&text.lines().map(String::from).collect::<Vec<_>>())
    }

    #[test]
    fn a_whole_report_among_noise() {
        let report = read(
            "@unplug version=0.1.0\nok 9 not.part.of.it\nKTAP version 1\n1..3\n[    0.1] mm: working\n\
             ok 1 mm.table # covers: G1\n@cpu id=1\nnot ok 2 mm.gup\n# freed early\n# at 7\nok 3 two # SKIP there is one\n\
             @verdict result=bad",
        );
        let names: Vec<_> = report.tests.iter().map(|test| test.name.as_str()).collect();
        assert_eq!(names, ["mm.table", "mm.gup", "two"]);
        assert_eq!(report.tests[0].output, ["[    0.1] mm: working"]);
        assert_eq!(report.tests[1].output, ["@cpu id=1", "# freed early", "# at 7"]);
        assert_eq!(report.tests[2].verdict, Verdict::Skipped("there is one".into()));
        assert!(report.problems.is_empty() && !report.is_success());
        assert_eq!(report.rest, ["@verdict result=bad"]);
    }

    #[test]
    fn why_a_test_failed_is_its_own_although_another_task_spoke_before_it() {
        let report = read("KTAP version 1\n1..2\nnot ok 1 a\n[    0.1] dma: late\n# freed early\nok 2 b\n# passed: 1");
        assert_eq!(report.tests[0].output, ["# freed early"]);
        assert_eq!(report.tests[1].output, ["[    0.1] dma: late", "# passed: 1"]);
    }

    #[test]
    fn all_passed_or_skipped_is_success() {
        assert!(read("KTAP version 1\n1..2\nok 1 a\nok 2 - b # SKIP no").is_success());
    }

    #[test]
    fn what_is_not_a_whole_report_is_never_success() {
        for text in [
            "",
            "no report at all",
            "KTAP version 1",
            "KTAP version 1\n1..0",
            "KTAP version 1\nok 1 a",
            "KTAP version 1\n1..2\nok 1 a",
            "KTAP version 1\n1..1\nok 1 a\nok 2 b",
            "KTAP version 1\n1..2\nok 2 b\nok 1 a",
            "KTAP version 1\n1..2\nok 1 a\nok 1 a",
            "KTAP version 1\n1..2\n1..1\nok 1 a\nok 2 b",
            "KTAP version 1\n1..1\nok 1 a\nKTAP version 1",
            "KTAP version 1\n1..1\nok 1 a\nBail out! no memory",
            "KTAP version 1\n1..1\nok",
            "KTAP version 1\n1..1\nok 1",
            "KTAP version 1\n1..1\nok one a",
            "KTAP version 1\n1..1\n[ 0.1] ok 1 a",
            "KTAP version 1\n1..99999999999999999999\nok 1 a",
        ] {
            assert!(!read(text).is_success(), "{text:?}");
        }
    }

    #[test]
    fn a_crash_leaves_its_words_in_the_rest() {
        let report = read("KTAP version 1\n1..3\nok 1 a\n@panic cpu=0\npage 7 put twice\n@epitaph end");
        assert_eq!(report.rest, ["@panic cpu=0", "page 7 put twice", "@epitaph end"]);
        assert_eq!(report.problems, ["2 of 3 tests did not run, or did not end"]);
    }

    #[test]
    fn a_failed_test_that_says_skip_is_still_a_failure() {
        assert_eq!(read("KTAP version 1\n1..1\nnot ok 1 a # SKIP no").tests[0].verdict, Verdict::Failed);
    }
}
