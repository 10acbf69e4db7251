//! Our results, read by parsers that are not ours: Linux's `kunit.py parse` reads the console as it is, `tap.py` and Perl's
//! `TAP::Parser` what `--tap` prints. Each has to count as our own parser does, without a complaint.

use super::{Done, find, full, output, passed_over, place, trial};
use boot::ktap::{self, Counts, Report};
use boot::peer::packages;
use boot::size::MIB;
use boot::tap::Tap;
use boot::{Guest, paths};
use libtest_mimic::{Completion, Failed, Trial};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::time::Duration;

/// The version that was tried.
const TAP_PY: &str = "3.2.1";
const LINUX_SOURCE: &str = "linux-source-6.1";

/// Results of every kind, as a kernel may print them.
const EVERY_KIND: &str = "[    0.1] before\n@unplug version=0\nKTAP version 1\n1..5\n[    1.0] mm: working\nok 1 a.b # covers: G1\n\
    @topic a=1\nnot ok 2 a.c\n# expected 1, found 2\nok 3 a.d # SKIP there is none\n[    1.0] words: ok 7 x\nok 4 a.e\n\
    not ok 5 a.f # SKIP it says so\n# why\n# passed: 2 failed: 1 skipped: 2\n@verdict result=bad\n";

pub fn trials() -> Vec<Trial> {
    let readers = [("kunit_py", kunit_py as fn() -> Reader), ("tap_py", tap_py), ("perl", perl)];
    let mut trials = vec![trial("readers::the_program_prints_tap_and_xml_and_nothing_else", program)];
    for (name, reader) in readers {
        trials.push(trial(&format!("readers::{name}"), move || held_to(&reader())));
    }
    trials
}

/// A parser of others: whether it wants the console or TAP, and how it counts; or why it is not here.
type Reader = Result<(bool, Count), String>;

/// What it counts in a file.
type Count = Box<dyn Fn(&Path) -> Result<Counts, Failed>>;

/// Tests of which some pass, and some are skipped where every NVDIMM takes writes.
const TESTS: &str = "dax.r*";

/// The console of a guest that ran them.
static CONSOLE: LazyLock<Result<Vec<String>, String>> = LazyLock::new(|| {
    let guest = Guest::builder().cpus(2).nvdimm(64 * MIB).tests(TESTS).time_limit(Duration::from_secs(300));
    guest.run().map(|outcome| outcome.console).map_err(|error| format!("{error:#}"))
});

/// Reads a real console and one with results of every kind.
fn held_to(reader: &Reader) -> Done {
    let (wants_console, count) = match reader {
        Ok(reader) => reader,
        Err(why) => return passed_over(why.clone()),
    };
    let real = CONSOLE.clone()?;
    let made_up: Vec<_> = EVERY_KIND.lines().map(String::from).collect();
    let dir = tempfile::tempdir()?;
    for (name, console) in [("real", real), ("made-up", made_up)] {
        let report = ktap::parse(&console);
        has_enough(name, &report)?;
        let file = dir.path().join(name);
        let lines = if *wants_console { console } else { tap(&console) };
        fs::write(&file, lines.join("\n") + "\n")?;
        let counted = count(&file)?;
        if counted != report.counts() {
            return Err(format!("{name}: it counts {counted:?}, and we {:?}", report.counts()).into());
        }
    }
    Ok(Completion::Completed)
}

/// A comparison of nothing with nothing would always hold.
fn has_enough(name: &str, report: &Report) -> Result<(), Failed> {
    let counts = report.counts();
    let some = counts.passed > 1 && counts.skipped > 0 && report.problems.is_empty();
    if some { Ok(()) } else { Err(format!("{name}: {counts:?}, {:?}", report.problems).into()) }
}

fn tap(console: &[String]) -> Vec<String> {
    let mut tap = Tap::default();
    console.iter().filter_map(|line| tap.line(line)).collect()
}

/// Its three numbers, by the words in front of them.
fn numbers(text: &str) -> Result<Counts, Failed> {
    let number = |word: &str| {
        let (_, rest) = text.split_once(&format!("{word}="))?;
        rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    };
    let counts = || Some(Counts { passed: number("passed")?, failed: number("failed")?, skipped: number("skipped")? });
    counts().ok_or_else(|| format!("no counts in {text:?}").into())
}

/// Linux's, of Debian's package with its source: installed, kept from before, or with the slow cases fetched (139 MB).
fn kunit_py() -> Reader {
    let python = find("python3").ok_or("python3 is not installed")?;
    let tool = kunit_tool().map_err(|why| format!("{why:#}"))?;
    Ok((
        true,
        Box::new(move |file| {
            // It goes to the tree that it is in: a file is named by its whole path. Its status says whether a test failed.
            let done = Command::new(&python).arg(&tool).arg("parse").arg(file).stdin(Stdio::null()).output()?;
            let said = [&done.stdout[..], &done.stderr[..]].concat();
            let said = String::from_utf8_lossy(&said).into_owned();
            let (_, last) = said.rsplit_once("Testing complete. ").ok_or_else(|| format!("{:?}", tail(&said)))?;
            // `Ran 37 tests: passed: 30, failed: 2, skipped: 5`; what there is none of is left out.
            let number = |word: &str| {
                let (_, rest) = last.split_once(&format!("{word}: "))?;
                rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
            };
            let complains =
                ["errors: ", "crashed: "].iter().any(|word| last.contains(word)) || said.contains("[ERROR]");
            if complains {
                return Err(format!("it complains: {}", tail(&said)).into());
            }
            let [passed, failed, skipped] = ["passed", "failed", "skipped"].map(|word| number(word).unwrap_or(0));
            Ok(Counts { passed, failed, skipped })
        }),
    ))
}

fn tail(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

fn kunit_tool() -> anyhow::Result<PathBuf> {
    let kept = place().join("kunit");
    let tool = kept.join(LINUX_SOURCE).join("tools/testing/kunit/kunit.py");
    if tool.exists() {
        return Ok(tool);
    }
    let installed = PathBuf::from(format!("/usr/src/{LINUX_SOURCE}.tar.xz"));
    let unpacked = tempfile::tempdir()?;
    let archive = if installed.exists() {
        installed
    } else if full() {
        super::with_apt(|apt| packages::unpack(&apt.fetch(&apt.find(LINUX_SOURCE)?)?, unpacked.path()))?;
        unpacked.path().join("usr/src").join(format!("{LINUX_SOURCE}.tar.xz"))
    } else {
        anyhow::bail!("{LINUX_SOURCE} is not installed, and its 139 MB are fetched with --full alone");
    };
    fs::create_dir_all(place())?;
    let part = tempfile::Builder::new().prefix("unfinished-").tempdir_in(place())?;
    let mut tar = Command::new("tar");
    tar.arg("-xJf").arg(archive).arg("-C").arg(part.path()).arg(format!("{LINUX_SOURCE}/tools/testing/kunit"));
    output(&mut tar).map_err(|why| anyhow::anyhow!("{}", why.message().unwrap_or("tar")))?;
    fs::rename(part.path(), &kept)?;
    Ok(tool)
}

/// PyPI's, in a Python environment of its own.
fn tap_py() -> Reader {
    let python = find("python3").ok_or("python3 is not installed")?;
    let kept = place().join(format!("tap.py-{TAP_PY}"));
    let program = kept.join("bin/python3");
    if !kept.join("whole").exists() {
        let _ = fs::remove_dir_all(&kept);
        let mut pip = Command::new(&program);
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", &format!("tap.py=={TAP_PY}")]);
        let made = output(Command::new(python).args(["-m", "venv"]).arg(&kept)).and_then(|_| output(&mut pip));
        made.and_then(|_| Ok(fs::write(kept.join("whole"), "")?))
            .map_err(|_| format!("tap.py {TAP_PY} cannot be had (python3 -m venv, pip install)"))?;
    }
    const SCRIPT: &str = "
import sys, tap.parser
counts = dict(passed=0, failed=0, skipped=0)
for line in tap.parser.Parser().parse_file(sys.argv[1]):
    assert line.category in ('version', 'plan', 'test', 'diagnostic'), (line.category, str(line))
    if line.category == 'test':
        counts['skipped' if line.skip else 'passed' if line.ok else 'failed'] += 1
print(*(f'{name}={number}' for name, number in counts.items()))
";
    Ok((
        false,
        Box::new(move |file| numbers(&output(Command::new(&program).args(["-W", "ignore", "-c", SCRIPT]).arg(file))?)),
    ))
}

/// The one that TAP comes from.
fn perl() -> Reader {
    const SCRIPT: &str = "
my $parser = TAP::Parser->new({ source => $ARGV[0] }); $parser->run;
my @skipped = $parser->skipped; my $skipped = @skipped;
die join '; ', $parser->parse_errors, 'bad plan' if $parser->parse_errors or not $parser->is_good_plan;
my @unknown = $parser->todo; die 'todo' if @unknown;
print 'passed=', scalar($parser->passed) - $skipped, ' failed=', scalar($parser->failed), ' skipped=', $skipped;
";
    let perl = find("perl").ok_or("perl is not installed")?;
    output(Command::new(&perl).args(["-MTAP::Parser", "-e", "1"])).map_err(|_| "perl has no TAP::Parser")?;
    // A file whose name ends in `.tap` is read and not run.
    Ok((
        false,
        Box::new(move |file| {
            let named = file.with_extension("tap");
            fs::copy(file, &named)?;
            numbers(&output(Command::new(&perl).args(["-MTAP::Parser", "-e", SCRIPT]).arg(named))?)
        }),
    ))
}

/// covers: T5
fn program() -> Done {
    let dir = tempfile::tempdir()?;
    let xml = dir.path().join("results.xml");
    let image = paths::image();
    let mut command = Command::new(env!("CARGO_BIN_EXE_boot"));
    command.args([
        "run",
        "--mode",
        "test",
        "--tap",
        "--smp",
        "2",
        "--pmem",
        "64M",
        "--append",
        &format!("tests={TESTS}"),
    ]);
    command.arg("--junit").arg(&xml).env_remove("ACCEL");
    // Where the program that makes images has been built, so that it is not built again.
    command.env("CARGO_TARGET_DIR", image.parent().ok_or("a file has a directory")?);
    command.env("UNPLUG_KERNEL", paths::kernel()).env("UNPLUG_IMAGE", image);
    let printed = output(&mut command)?;
    let is_tap =
        |line: &&str| ["TAP version 13", "1..", "ok ", "not ok ", "#"].iter().any(|begin| line.starts_with(begin));
    if let Some(other) = printed.lines().find(|line| !is_tap(line)) {
        return Err(format!("{other:?} is not TAP").into());
    }
    let ours = ktap::parse(&printed.lines().map(String::from).collect::<Vec<_>>());
    has_enough("printed", &ours)?;
    let console = CONSOLE.clone()?;
    if ours.counts() != ktap::parse(&console).counts() {
        return Err(format!("it prints {:?}, and another such guest had other results", ours.counts()).into());
    }
    let report = fs::read_to_string(xml)?;
    // Its tests, and how the guest ended.
    let wanted = format!("tests=\"{}\" skipped=\"{}\" failures=\"0\"", ours.tests.len() + 1, ours.counts().skipped);
    if report.contains(&wanted) {
        Ok(Completion::Completed)
    } else {
        Err(format!("{wanted} is not in it:\n{report}").into())
    }
}
