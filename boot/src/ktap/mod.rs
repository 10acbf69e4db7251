//! Reads the results of tests: KTAP version 1 or TAP 13 and 14, among whatever else a kernel prints.
//!
//! ```text
//! KTAP version 1
//! 1..3
//! ok 1 mm.table.install # covers: G1
//! not ok 2 mm.gup.race
//! # the page was freed early
//! ok 3 nvdimm.two # SKIP there is one
//! ```
//! What is tested in a test stands, indented, in front of its result: as a report of its own, with the line `KTAP version 1`
//! or `# Subtest: NAME` first; the latter may also stand in the column of the result, as TAP 14 has it. Where the first line
//! has a time in front, as Linux's log has (`[    1.234567] `), it is taken off all lines.
//!
//! A report that is cut off, that skips a number or that has more results than its plan is never a success: what is
//! wrong with it is in [`Report::problems`]. A result without a number is the next one, which TAP allows and KTAP does not. As
//! KTAP has it, a test is skipped whose line says `# SKIP`, in whatever case, be it `ok` or `not ok`; with any other word
//! (`TODO`, `XFAIL`) `not ok` is a failure. A plan of no tests is one that says so: `1..0 # SKIP no device`.

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
    /// Its name; empty where it has none.
    pub name: String,
    /// How it ended.
    pub verdict: Verdict,
    /// What was printed between the result before it and its own, and the `#` lines that follow its own; those behind another
    /// result that name this test (`# NAME: …`) are this one's.
    pub output: Vec<String>,
    /// What was tested in it.
    pub subtests: Vec<Test>,
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

/// How many tests passed, failed and were skipped.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    /// Passed.
    pub passed: usize,
    /// Failed.
    pub failed: usize,
    /// Skipped, each with a reason.
    pub skipped: usize,
}

/// One line of a report.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Line<'a> {
    Version {
        is_ktap: bool,
    },
    /// So many tests; none on purpose.
    Plan {
        tests: usize,
        is_skip: bool,
    },
    Result {
        number: Option<usize>,
        name: &'a str,
        verdict: Verdict,
    },
    /// It begins as a result, and its number is none.
    Garbled,
    Subtest,
    Diagnostic,
    BailOut,
    Noise,
}

/// Reads the first report among console lines. Lines before it are not looked at.
#[must_use]
pub fn parse(console: &[String]) -> Report {
    let begin = console.iter().position(|line| begins(line));
    let mut reader = Reader::default();
    let first = begin.map_or("", |at| console[at].as_str());
    let is_stamped = unstamped(first).is_some();
    reader.outer.is_ktap = classify(unstamped(first).unwrap_or(first)) == Line::Version { is_ktap: true };
    for line in console.iter().skip(begin.map_or(usize::MAX, |at| at + 1)) {
        reader.take(line, is_stamped);
    }
    reader.finish()
}

/// Reads all reports among console lines, where one follows the other; none, where there is none.
#[must_use]
pub fn parse_all(console: &[String]) -> Vec<Report> {
    let mut begins: Vec<_> = (0..console.len()).filter(|&at| begins(&console[at])).collect();
    begins.push(console.len());
    begins.windows(2).map(|pair| parse(&console[pair[0]..pair[1]])).collect()
}

/// Does a report begin here, that is in no other?
fn begins(line: &str) -> bool {
    matches!(classify(unstamped(line).unwrap_or(line)), Line::Version { .. })
}

/// The line without the time in front; `None` where there is none.
fn unstamped(line: &str) -> Option<&str> {
    let (stamp, mut rest) = line.strip_prefix('[')?.split_once(']')?;
    if !stamp.contains('.') || !stamp.trim_start().bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return None;
    }
    // Some kernels also say who speaks: `[   T1]`, `[   C0]`.
    if let Some((_, after)) = rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        rest = after;
    }
    Some(rest.strip_prefix(' ').unwrap_or(rest))
}

impl Report {
    /// Did every planned test run, and none fail?
    #[must_use]
    pub fn is_success(&self) -> bool {
        self.problems.is_empty() && !any_failed(&self.tests)
    }

    /// How many passed, failed and were skipped: of a test in which others are, those others count.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        count(&self.tests, &mut counts);
        counts
    }
}

impl Report {
    /// The lines behind the last result that name the test whose result comes next, as KUnit's do: `# NAME: …`.
    fn claimed_by(&mut self, name: &str) -> Vec<String> {
        let named = format!("# {name}: ");
        let Some(last) = self.tests.last_mut() else { return Vec::new() };
        let first = last.output.iter().rposition(|line| !line.trim_start().starts_with('#')).map_or(0, |at| at + 1);
        let claimed = last.output[first..].iter().position(|line| line.trim_start().starts_with(&named));
        claimed.map_or_else(Vec::new, |at| last.output.split_off(first + at))
    }
}

fn any_failed(tests: &[Test]) -> bool {
    tests.iter().any(|test| test.verdict == Verdict::Failed || any_failed(&test.subtests))
}

fn count(tests: &[Test], counts: &mut Counts) {
    for test in tests {
        match &test.verdict {
            _ if !test.subtests.is_empty() => count(&test.subtests, counts),
            Verdict::Passed => counts.passed += 1,
            Verdict::Failed => counts.failed += 1,
            Verdict::Skipped(_) => counts.skipped += 1,
        }
    }
}

/// A report that is being read: the outermost one, or one in a test.
#[derive(Default)]
struct Level {
    indent: usize,
    /// Its results have to have numbers.
    is_ktap: bool,
    /// The plan says that there is nothing to run.
    is_skip: bool,
    /// What is tested in the next test was named in this column, and is not open yet.
    is_named: bool,
    report: Report,
    /// What was tested in the test whose result comes next.
    below: Option<Report>,
}

#[derive(Default)]
struct Reader {
    outer: Level,
    /// Those that are open in it, each in the one before.
    inner: Vec<Level>,
}

impl Reader {
    fn top(&mut self) -> &mut Level {
        self.inner.last_mut().unwrap_or(&mut self.outer)
    }

    /// Is a report open whose lines begin in this column?
    fn is_open(&self, indent: usize) -> bool {
        indent == 0 || self.inner.iter().any(|level| level.indent == indent)
    }

    /// Closes the reports that begin further to the right.
    fn close_to(&mut self, indent: usize) {
        while let Some(level) = self.inner.pop_if(|level| level.indent > indent) {
            let report = level.finish();
            self.top().below = Some(report);
        }
    }

    /// Does a report in the innermost one begin here? Its first line may be of it already, where it was named before.
    fn opens(&mut self, kind: &Line<'_>, indent: usize) -> bool {
        let top = self.top();
        if indent <= top.indent {
            return false;
        }
        let (is_head, is_ktap) = match kind {
            Line::Version { is_ktap } => (true, *is_ktap),
            Line::Subtest => (true, top.is_ktap),
            Line::Plan { .. } | Line::Result { .. } | Line::Garbled if top.is_named => (false, top.is_ktap),
            _ => return false,
        };
        top.is_named = false;
        self.inner.push(Level { indent, is_ktap, ..Level::default() });
        is_head
    }

    fn take(&mut self, line: &str, stamped: bool) {
        let line = if stamped { unstamped(line).unwrap_or(line) } else { line };
        let text = line.trim_start_matches(' ');
        let indent = line.len() - text.len();
        let kind = classify(text);
        if self.opens(&kind, indent) {
            return;
        }
        match kind {
            Line::Plan { .. } | Line::Result { .. } | Line::Garbled | Line::Version { .. } | Line::Subtest
                if !self.is_open(indent) =>
            {
                self.top().report.rest.push(line.to_string());
            }
            Line::Plan { .. } | Line::Result { .. } | Line::Garbled | Line::Version { .. } | Line::BailOut => {
                self.close_to(indent);
                self.top().take(kind, line);
            }
            Line::Subtest if indent == self.top().indent => {
                let top = self.top();
                top.is_named = true;
                top.report.rest.push(line.to_string());
            }
            Line::Diagnostic | Line::Subtest => {
                let is_top = self.top().indent <= indent;
                let level = self.inner.iter_mut().rev().find(|level| level.indent <= indent);
                level.unwrap_or(&mut self.outer).remark(line, is_top);
            }
            Line::Noise => self.top().report.rest.push(line.to_string()),
        }
    }

    fn finish(mut self) -> Report {
        self.close_to(0);
        if self.outer.report == Report::default() && self.outer.below.is_none() {
            self.outer.report.problems.push("the kernel printed no test report".into());
        }
        self.outer.finish()
    }
}

impl Level {
    fn take(&mut self, kind: Line<'_>, line: &str) {
        let report = &mut self.report;
        self.is_named = false;
        match kind {
            Line::Version { .. } => report.problems.push("a second report begins inside the first".into()),
            Line::Plan { tests, is_skip } if report.plan.is_none() => {
                (report.plan, self.is_skip) = (Some(tests), is_skip);
            }
            Line::Plan { .. } => report.problems.push(format!("a second plan: {line:?}")),
            Line::Result { number, name, verdict } => self.result(number, name, verdict),
            Line::Garbled => report.problems.push(format!("{line:?} cannot be read")),
            _ => report.problems.push(line.to_string()),
        }
    }

    fn result(&mut self, number: Option<usize>, name: &str, verdict: Verdict) {
        let report = &mut self.report;
        let expected = report.tests.len() + 1;
        if number.is_none() && self.is_ktap {
            report.problems.push(format!("result {expected} ({name}) has no number"));
        }
        let number = number.unwrap_or(expected);
        if number != expected {
            report.problems.push(format!("result {number} ({name}) came where {expected} was due"));
        }
        let mut output = report.claimed_by(name);
        output.append(&mut report.rest);
        let below = self.below.take().unwrap_or_default();
        report.problems.extend(below.problems.iter().map(|problem| format!("{name}: {problem}")));
        if verdict == Verdict::Passed && any_failed(&below.tests) {
            report.problems.push(format!("{name} is said to have passed, and a test in it failed"));
        }
        output.extend(below.rest);
        report.tests.push(Test { number, name: name.to_string(), verdict, output, subtests: below.tests });
    }

    /// A line with a `#`. Behind a result it belongs to that, unless another report is open in this one, or something was
    /// printed in between; but where the last test has failed and has not said why, that may be another task that spoke.
    fn remark(&mut self, line: &str, is_top: bool) {
        let says_why = |test: &Test| test.output.iter().any(|line| line.starts_with('#'));
        let is_behind = |test: &Test| self.report.rest.is_empty() || test.verdict == Verdict::Failed && !says_why(test);
        let is_its = is_top && self.below.is_none() && self.report.tests.last().is_some_and(is_behind);
        match self.report.tests.last_mut() {
            Some(test) if is_its => test.output.push(line.to_string()),
            _ => self.report.rest.push(line.to_string()),
        }
    }

    /// Compares the results with the plan, once every line has been taken.
    fn finish(mut self) -> Report {
        let report = &mut self.report;
        match report.plan {
            _ if !report.problems.is_empty() && report.tests.is_empty() => {}
            None => report.problems.push("the report has no plan".into()),
            Some(0) if self.is_skip && report.tests.is_empty() => {}
            Some(0) => report.problems.push("the plan has no tests".into()),
            Some(plan) if plan > report.tests.len() => {
                let ran = report.tests.len();
                report.problems.push(format!("{} of {plan} tests did not run, or did not end", plan - ran));
            }
            Some(plan) if plan < report.tests.len() => {
                report.problems.push(format!("{} results, but a plan of {plan}", report.tests.len()));
            }
            Some(_) => {}
        }
        if let Some(below) = self.below {
            report.problems.push("what was tested last had no result".into());
            report.rest.extend(below.rest);
        }
        self.report
    }
}

/// What a line is, without what it is indented by.
pub(crate) fn classify(line: &str) -> Line<'_> {
    let is_ktap = line.starts_with("KTAP version ");
    if is_ktap || line.starts_with("TAP version ") {
        return Line::Version { is_ktap };
    }
    if line.starts_with("Bail out!") {
        return Line::BailOut;
    }
    if line.starts_with("# Subtest: ") || line.trim_end() == "# Subtest" {
        return Line::Subtest;
    }
    if line.starts_with('#') {
        return Line::Diagnostic;
    }
    if let Some(plan) = plan(line) {
        return plan;
    }
    let (passed, rest) = match (line.strip_prefix("ok"), line.strip_prefix("not ok")) {
        (Some(rest), _) => (true, rest),
        (_, Some(rest)) => (false, rest),
        _ => return Line::Noise,
    };
    if !rest.is_empty() && !rest.starts_with(char::is_whitespace) {
        return Line::Noise;
    }
    result(passed, rest).unwrap_or(Line::Garbled)
}

/// Reads `1..N`, maybe with a remark.
fn plan(line: &str) -> Option<Line<'_>> {
    let rest = line.strip_prefix("1..")?;
    let (tests, remark) = rest.split_once('#').unwrap_or((rest, ""));
    // Some say `# skipped: …`.
    let word = remark.trim_start().get(..SKIP.len());
    Some(Line::Plan {
        tests: tests.trim_end().parse().ok()?,
        is_skip: word.is_some_and(|word| word.eq_ignore_ascii_case(SKIP)),
    })
}

/// The word of a test that cannot run here.
const SKIP: &str = "skip";

/// Reads what follows `ok` or `not ok`: a number, a name, and after a `#` a directive or a description. All may be missing;
/// `None`: the number is too large to be one.
fn result(passed: bool, rest: &str) -> Option<Line<'_>> {
    let rest = rest.trim_start();
    let (digits, behind) = rest.split_at(rest.bytes().take_while(u8::is_ascii_digit).count());
    // `3rd` is a name.
    let is_number = behind.is_empty() || behind.starts_with('#') || behind.starts_with(char::is_whitespace);
    let (number, rest) = match digits {
        "" => (None, rest),
        digits if is_number => (Some(digits.parse().ok()?), behind),
        _ => (None, rest),
    };
    let (name, note) = rest.split_once('#').unwrap_or((rest, ""));
    let name = name.trim();
    let name = if name == "-" { "" } else { name.trim_start_matches("- ") };
    let verdict = match (passed, skip(note.trim())) {
        (_, Some(reason)) => Verdict::Skipped(reason.trim().to_string()),
        (false, None) => Verdict::Failed,
        (true, None) => Verdict::Passed,
    };
    Some(Line::Result { number, name, verdict })
}

/// Why a test cannot run, where its note says so: the word alone, in any case, and not the beginning of another.
fn skip(note: &str) -> Option<&str> {
    let (word, reason) = note.split_at_checked(SKIP.len())?;
    let is_whole = !reason.starts_with(|next: char| next.is_alphanumeric() || next == '_');
    (is_whole && word.eq_ignore_ascii_case(SKIP)).then_some(reason)
}

#[cfg(test)]
mod tests;
