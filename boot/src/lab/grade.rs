//! A grade: every point is looked at, and printed as one line of KTAP, with a hint where it is lost.

use super::answers;
use super::build::{Built, Product, Workshop};
use super::catalog::{Check, Lab, Place, Point};
use super::stage::{End, Ended, Limits, Running};
use super::tree;
use crate::ktap::{self, Report, Verdict};
use crate::out::outln;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

/// Seconds that a grade takes at most, where nobody says otherwise.
pub const MOST_SECONDS: u64 = 90;
/// Seconds of CPU time that one test of a student's code has; the model's take a small part of one.
const TEST_CPU_S: u64 = 8;
/// The same of a model, which runs thousands of schedules.
const MODEL_CPU_S: u64 = 30;
/// The same of a guest, which needs some five: one whose CPUs spin is not waited for until all time is up.
const GUEST_CPU_S: u64 = 60;
/// Address space of one test, in bytes.
const TEST_BYTES: u64 = 4 << 30;
/// When so many tests have not ended, the others of their kind are not begun: a student's time is limited.
const MOST_HANGS: u32 = 2;
/// What the reason of a lost point begins with where its test has not run, and where it could not be built.
const NOT_RUN: &str = "not run: ";
const NOT_BUILT: &str = "it does not build: ";
/// How a test has ended that has not ended.
const HANGS: &str = "it does not end";
/// Schedules of a model.
const SCHEDULES: &str = "1000";
/// What is left of the time for a guest after its own patience, to end it and say so.
const AROUND_A_GUEST: Duration = Duration::from_secs(3);
/// Most characters of what a test said that are shown.
const SAID: usize = 400;

/// What has become of a point.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Mark {
    /// It is had.
    Had,
    /// It is lost, and what was said there.
    Lost(String),
}

/// What is graded.
#[derive(Debug)]
pub struct Work<'a> {
    /// The lab.
    pub lab: &'static Lab,
    /// Whose directory.
    pub directory: &'a Path,
    /// The seed of a lab with questions.
    pub seed: u64,
    /// The parts' texts by their names.
    pub parts: BTreeMap<&'static str, String>,
    /// The most that it may take once all is prepared.
    pub most: Duration,
}

/// Grades, and prints; says how many points are had.
///
/// # Errors
/// The tools fail. Whatever a student's code does is a grade.
pub fn grade(work: &Work<'_>, quiet: bool) -> Result<u32> {
    let lab = work.lab;
    outln!("KTAP version 1\n1..{}", lab.points.len());
    let mut sum = Sum { lab, next: 0, had: 0 };
    if lab.parts.is_empty() {
        let marks = answers::check(work.directory, work.seed, lab)?;
        marks.into_iter().for_each(|mark| sum.take(mark));
    } else {
        code(work, quiet, &mut sum)?;
    }
    outln!("# points: {} of {}", sum.had, lab.most());
    Ok(sum.had)
}

/// The points so far. They are printed in their order, as they come.
struct Sum {
    lab: &'static Lab,
    next: usize,
    had: u32,
}

impl Sum {
    fn take(&mut self, mark: Mark) {
        let point = &self.lab.points[self.next];
        self.next += 1;
        self.had += if mark == Mark::Had { point.points } else { 0 };
        lines(self.next, point, &mark).iter().for_each(|line| outln!("{line}"));
    }

    /// The points of a kind that are next.
    fn due(&self, product: Product) -> &'static [Point] {
        let rest = &self.lab.points[self.next..];
        &rest[..rest.iter().take_while(|point| product_of(point) == Some(product)).count()]
    }

    fn lose(&mut self, points: &[Point], why: &str) {
        points.iter().for_each(|_| self.take(Mark::Lost(why.into())));
    }
}

/// A point as lines of KTAP.
fn lines(number: usize, point: &Point, mark: &Mark) -> Vec<String> {
    let s = if point.points == 1 { "" } else { "s" };
    let name = format!("{number} - {} ({} point{s})", point.what, point.points);
    match mark {
        Mark::Had => vec![format!("ok {name}")],
        Mark::Lost(said) if said.is_empty() => vec![format!("not ok {name}"), format!("# hint: {}", point.hint)],
        // Nobody knows of a mistake there.
        Mark::Lost(said) if said.starts_with(NOT_RUN) || said.starts_with(NOT_BUILT) => {
            vec![format!("not ok {name}"), format!("# said: {}", one_line(said))]
        }
        Mark::Lost(said) => {
            vec![format!("not ok {name}"), format!("# hint: {}", point.hint), format!("# said: {}", one_line(said))]
        }
    }
}

/// What a student's program has printed may be anything.
fn one_line(said: &str) -> String {
    let mut shown: String = said.chars().map(|c| if c.is_control() { ' ' } else { c }).take(SAID).collect();
    if said.chars().nth(SAID).is_some() {
        shown.push('…');
    }
    shown
}

fn product_of(point: &Point) -> Option<Product> {
    match point.check {
        Check::Host(_) => Some(Product::Host),
        Check::Model(_) => Some(Product::Models),
        Check::Loom(_) => Some(Product::Loom),
        Check::Guest(_) => Some(Product::Kernel),
        Check::Answers(_) => None,
    }
}

fn has(lab: &Lab, product: Product) -> bool {
    lab.points.iter().any(|point| product_of(point) == Some(product))
}

/// The files of tests that a lab's points of one kind are in.
fn files_of(lab: &Lab, product: Product) -> Vec<&'static str> {
    let mut files: Vec<_> = lab
        .points
        .iter()
        .filter(|point| product_of(point) == Some(product))
        .flat_map(|point| names(point).iter().filter_map(|name| name.split_once("::")).map(|(file, _)| file))
        .collect();
    files.sort_unstable();
    files.dedup();
    files
}

fn names(point: &Point) -> &'static [&'static str] {
    match point.check {
        Check::Host(names) | Check::Model(names) | Check::Loom(names) | Check::Guest(names) => names,
        Check::Answers(_) => &[],
    }
}

fn code(work: &Work<'_>, quiet: bool, sum: &mut Sum) -> Result<()> {
    let lab = work.lab;
    let shop = Workshop::open(Running::install()?, quiet)?;
    let model = tree::for_grading()?;
    let mut files = model.clone();
    tree::with_parts(&mut files, lab, &|place: &Place| {
        work.parts.get(place.name).cloned().with_context(|| format!("there is no part \"{}\"", place.name))
    })?;
    let of_lab = Product::ALL.map(|product| (product, files_of(lab, product)));
    let used: Vec<_> = of_lab.into_iter().filter(|(product, _)| has(lab, *product)).collect();
    shop.prepare(&used, &model)?;
    shop.put(&files)?;
    // What is not the student's takes none of the student's time.
    let deadline = Instant::now() + work.most;
    let build = |product| {
        let left = deadline.saturating_duration_since(Instant::now());
        shop.build(product, &files_of(lab, product), left)
    };
    on_the_host(&shop, build(Product::Host)?, Product::Host, deadline, sum)?;
    if sum.had == 0 {
        sum.lose(&lab.points[sum.next..], &format!("{NOT_RUN}nothing on the host has passed"));
        return Ok(());
    }
    // The kernel is built while models run.
    thread::scope(|scope| {
        let kernel = has(lab, Product::Kernel).then(|| scope.spawn(|| build(Product::Kernel)));
        for product in [Product::Models, Product::Loom].into_iter().filter(|product| has(lab, *product)) {
            on_the_host(&shop, build(product)?, product, deadline, sum)?;
        }
        match kernel.map(|build| build.join().expect("a build does not panic")).transpose()? {
            Some(Built::Programs(built)) => guest(&shop, sum.due(Product::Kernel), &built, deadline, sum),
            Some(Built::Not(error)) => {
                sum.lose(sum.due(Product::Kernel), &format!("{NOT_BUILT}{error}"));
                Ok(())
            }
            None => Ok(()),
        }
    })
}

/// The points of tests or models that are next.
fn on_the_host(shop: &Workshop, built: Built, product: Product, deadline: Instant, sum: &mut Sum) -> Result<()> {
    let points = sum.due(product);
    let built = match built {
        Built::Programs(built) => built,
        Built::Not(error) => {
            sum.lose(points, &format!("{NOT_BUILT}{error}"));
            return Ok(());
        }
    };
    let mut hangs = 0;
    for point in points {
        let mark = if hangs < MOST_HANGS {
            tests(shop, point, &built, deadline)?
        } else {
            Mark::Lost(format!("{NOT_RUN}{hangs} tests before it did not end"))
        };
        hangs += u32::from(matches!(&mark, Mark::Lost(said) if said.contains(HANGS)));
        sum.take(mark);
    }
    Ok(())
}

/// Runs the tests of a point at once, each as a program of its own; the first that failed is the one that is told of.
fn tests(shop: &Workshop, point: &Point, built: &BTreeMap<String, PathBuf>, deadline: Instant) -> Result<Mark> {
    let cpu_s = if product_of(point) == Some(Product::Host) { TEST_CPU_S } else { MODEL_CPU_S };
    let one = |name: &str| {
        let (file, test) = name.split_once("::").context("a test is named by its file, too")?;
        let program = built.get(file).with_context(|| format!("{file} was not built"))?;
        let wall = deadline.saturating_duration_since(Instant::now());
        let limits = Limits { wall, cpu_s: Some(cpu_s), memory_bytes: Some(TEST_BYTES) };
        let mut command = Command::new(program);
        command.args([test, "--exact", "--test-threads=1"]).current_dir(shop.package()).env("RUST_BACKTRACE", "0");
        command.env("UNPLUG_SCHEDULES", SCHEDULES).env_remove("MM_MUTANT").env_remove("UNPLUG_FULL");
        let ended = shop.running().run(command, limits)?;
        let passed = ended.end == End::Exited(0) && ended.stdout.contains("test result: ok. 1 passed");
        Ok(if passed { Mark::Had } else { Mark::Lost(format!("{test}: {}", why(&ended))) })
    };
    thread::scope(|scope| {
        let runs: Vec<_> = names(point).iter().map(|name| scope.spawn(|| one(name))).collect();
        let marks = runs.into_iter().map(|run| run.join().expect("a run does not panic"));
        let marks = marks.collect::<Result<Vec<_>>>()?;
        Ok(marks.into_iter().find(|mark| *mark != Mark::Had).unwrap_or(Mark::Had))
    })
}

/// What a test that failed has said, or how it ended.
fn why(ended: &Ended) -> String {
    match ended.end {
        // Its CPU time was up, and it did not listen.
        End::OverTime | End::Signal(24) => return HANGS.into(),
        End::Signal(9) => return format!("{HANGS}, or takes more than there is"),
        _ => {}
    }
    let said = [ended.stdout.as_str(), ended.stderr.as_str()].into_iter().find_map(panic_in);
    match (said, ended.end) {
        (Some(said), _) => said,
        (None, End::Signal(11 | 7)) => "it has touched memory that is not its own".into(),
        (None, End::Signal(6)) => format!("it gave up: {}", ended.stderr.lines().last().unwrap_or("no word")),
        (None, End::Signal(signal)) => format!("signal {signal} ended it"),
        (None, _) => "it failed without a word".into(),
    }
}

/// The first panic's message: its line follows the place. An assertion's values are on the lines behind it.
fn panic_in(text: &str) -> Option<String> {
    let mut lines = text.lines().skip_while(|line| !line.contains("panicked at ")).skip(1);
    let first = lines.next()?.trim().to_string();
    let values = lines.map(str::trim).take_while(|line| line.starts_with("left:") || line.starts_with("right:"));
    Some(values.fold(first, |said, value| format!("{said}; {value}")))
}

/// Boots the student's kernel, once for all points.
fn guest(
    shop: &Workshop,
    points: &'static [Point],
    built: &BTreeMap<String, PathBuf>,
    deadline: Instant,
    sum: &mut Sum,
) -> Result<()> {
    let kernel = built.get("kernel").context("there is no kernel")?;
    let image = shop.image(kernel)?;
    // Short, for a socket; and removed by an interrupt, too.
    let scratch = tempfile::Builder::new().prefix("unplug-lab").tempdir().context("a temporary directory")?;
    shop.running().removes(scratch.path().to_path_buf());
    let wall = deadline.saturating_duration_since(Instant::now());
    let seconds = wall.saturating_sub(AROUND_A_GUEST).as_secs();
    let mut command = Command::new(std::env::current_exe().context("this program")?);
    command.args(["lab", "guest", &sum.lab.number.to_string(), &seconds.max(1).to_string()]);
    command.env("UNPLUG_IMAGE", &image).env("UNPLUG_KERNEL", kernel).env("TMPDIR", scratch.path());
    let ended = shop.running().run(command, Limits { wall, cpu_s: Some(GUEST_CPU_S), memory_bytes: None })?;
    let lines: Vec<String> = ended.stdout.lines().map(String::from).collect();
    let report = ktap::parse(&lines);
    let ending = ending_of(&ended);
    for point in points {
        sum.take(mark_of(names(point), &report, &ending));
    }
    Ok(())
}

/// How a guest ended, for whose results are not there.
fn ending_of(ended: &Ended) -> String {
    let said = ended.stderr.lines().last().unwrap_or("the guest ended without a word");
    // What ends QEMU when its CPU time is up.
    let is_out_of_time = ["SIGKILL", "SIGXCPU"].iter().any(|signal| said.contains(signal));
    if ended.end == End::OverTime || is_out_of_time {
        return "the guest did not end".into();
    }
    said.replace("run-qemu: ", "the guest: ")
}

/// The mark of a point by a guest's report.
fn mark_of(names: &[&str], report: &Report, ending: &str) -> Mark {
    for name in names {
        match report.tests.iter().find(|test| test.name == *name) {
            Some(test) if test.verdict == Verdict::Passed => {}
            Some(test) => {
                let said = test.output.iter().find_map(|line| line.strip_prefix("# "));
                return Mark::Lost(format!("{name}: {}", said.unwrap_or("it failed")));
            }
            None => return Mark::Lost(format!("{name} did not run, or did not end: {ending}")),
        }
    }
    // What came later and ended the kernel may have been of these tests' making.
    if report.problems.is_empty() { Mark::Had } else { Mark::Lost(format!("{}: {ending}", report.problems[0])) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POINT: Point =
        Point { what: "the leaf is looked at again", points: 2, check: Check::Host(&["a::b"]), hint: "look again" };

    /// covers: T5
    #[test]
    fn a_point_is_a_line_of_ktap_and_one_that_is_lost_has_a_hint() {
        assert_eq!(lines(3, &POINT, &Mark::Had), ["ok 3 - the leaf is looked at again (2 points)"]);
        let lost = lines(1, &Point { points: 1, ..POINT }, &Mark::Lost("b: no\n\u{1b}[2Jend".into()));
        assert_eq!(lost[0], "not ok 1 - the leaf is looked at again (1 point)");
        assert_eq!(lost[1..], ["# hint: look again", "# said: b: no  [2Jend"]);
        assert_eq!(lines(1, &POINT, &Mark::Lost(String::new())).len(), 2);
        assert_eq!(one_line(&"x".repeat(1000)).chars().count(), SAID + 1);
        for why in [format!("{NOT_RUN}x"), format!("{NOT_BUILT}x")] {
            let lost = lines(1, &POINT, &Mark::Lost(why));
            assert!(lost.len() == 2 && !lost[1].contains("hint"), "{lost:?}");
        }
    }

    fn ended(end: End, stdout: &str) -> Ended {
        Ended { end, stdout: stdout.into(), stderr: String::new() }
    }

    /// covers: T5
    #[test]
    fn what_a_test_said_is_its_first_panic_or_how_it_ended() {
        let said = "thread 't' (1) panicked at a.rs:3:1:\nassertion `left == right` failed: page 1\n  left: 1\n right: 2\nnote: x\n";
        assert_eq!(why(&ended(End::Exited(101), said)), "assertion `left == right` failed: page 1; left: 1; right: 2");
        assert_eq!(why(&ended(End::OverTime, said)), "it does not end");
        assert_eq!(why(&ended(End::Signal(11), "")), "it has touched memory that is not its own");
        assert_eq!(why(&ended(End::Exited(0), "")), "it failed without a word");
    }

    /// covers: T5
    #[test]
    fn how_a_guest_ended_is_said_in_a_line() {
        let of = |end, stderr: &str| ending_of(&Ended { end, stdout: String::new(), stderr: stderr.into() });
        assert_eq!(of(End::Exited(5), "x\nrun-qemu: kernel panic: y\n"), "the guest: kernel panic: y");
        let killed = "run-qemu: QEMU ended with signal: 24 (SIGXCPU): \n";
        assert_eq!(
            (of(End::Exited(5), killed), of(End::OverTime, "x")),
            (of(End::OverTime, ""), of(End::OverTime, ""))
        );
        assert_eq!(of(End::Exited(0), ""), "the guest ended without a word");
    }

    /// covers: T5
    #[test]
    fn a_guest_that_did_not_say_that_a_test_passed_has_no_point_for_it() {
        let read = |text: &str| ktap::parse(&text.lines().map(String::from).collect::<Vec<_>>());
        let mark = |text: &str| mark_of(&["mm.a", "mm.b"], &read(text), "the guest: panic");
        assert_eq!(mark("KTAP version 1\n1..2\nok 1 mm.a\nok 2 mm.b"), Mark::Had);
        let lost = |text: &str| match mark(text) {
            Mark::Lost(said) => said,
            Mark::Had => panic!("{text}"),
        };
        assert_eq!(lost("KTAP version 1\n1..2\nok 1 mm.a\nnot ok 2 mm.b\n# two pins"), "mm.b: two pins");
        assert!(lost("KTAP version 1\n1..2\nok 1 mm.a\n@panic").contains("the guest: panic"));
        assert!(lost("KTAP version 1\n1..3\nok 1 mm.a\nok 2 mm.b\n@panic").contains("did not run"));
        assert!(lost("KTAP version 1\n1..2\nok 1 mm.a\nok 2 mm.b # SKIP no device").contains("it failed"));
    }
}
