//! Tests the tests: builds them once and runs each with a deliberate fault that it must not survive.
//!
//! The faults are listed in `kernel/<package>/src/mutant.rs`, one variant each:
//!
//! ```text
//! /// What is wrong. Caught by `binary::test` and `binary::test`.
//! NoShootdown = "no_shootdown",
//! ```
//!
//! A fault is switched on by `<PACKAGE>_MUTANT=name` in the environment of a test. For each fault every named test
//! must fail with it and pass without it. A test whose binary's name begins with `loom` is a model, which loom runs, or
//! shuttle where `shuttle:` stands before it.

use crate::out::outln;
use crate::paths;
use crate::tally::Counts;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// The packages that have such a list.
const PACKAGES: [&str; 7] = ["mm", "dax", "nvdimm", "fs", "sched", "nvme", "iommu"];
/// The packages that have models. The others' tests need what is not built for models: under loom and shuttle none of them may
/// be named.
pub const MODELLED: [&str; 5] = ["mm", "dax", "fs", "sched", "iommu"];
/// A test that takes longer hangs. One that finds that it waits for ever has given the CPU away some million times before:
/// seconds where nobody wants it, and minutes where others do.
const PATIENCE: Duration = Duration::from_secs(900);

/// Schedules that shuttle has to find a fault in.
const SCHEDULES: &str = "20000";

/// A deliberate fault.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Fault {
    package: String,
    name: String,
    what: String,
    /// `binary::test`, or `binary` for all its tests.
    tests: Vec<String>,
}

/// What runs the tests.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Runner {
    /// Plain threads.
    Host,
    /// The tests in files that begin with `loom`.
    Loom,
    /// The same.
    Shuttle,
}

impl Runner {
    /// Where it builds, under the directory for what is built; the word for the compiler as well.
    fn word(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Loom => "loom",
            Self::Shuttle => "shuttle",
        }
    }
    /// What stands before the name of a test.
    fn prefix(self) -> &'static str {
        if self == Self::Shuttle { "shuttle:" } else { "" }
    }
}

/// Test programs by package and name, with the directory that they run in.
type Binaries = BTreeMap<(String, String), (PathBuf, PathBuf)>;

/// How a test ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Ended {
    Passed,
    Failed,
    /// Neither: it hung, or there is no such test.
    Neither,
}

/// The job `mutants`: says with which status this program ends.
///
/// # Errors
/// As [`run`].
pub fn job() -> Result<u8> {
    let Counts { passed, failed, .. } = run()?;
    outln!("{passed} faults caught, {failed} not caught");
    Ok(u8::from(failed != 0))
}

/// Runs every fault against its tests, prints the table, and counts one test for each fault.
///
/// # Errors
/// The lists cannot be read, or the tests do not build.
pub fn run() -> Result<Counts> {
    let faults = faults()?;
    let mut binaries = Binaries::new();
    for runner in [Runner::Host, Runner::Loom, Runner::Shuttle] {
        binaries.extend(build(runner)?);
    }
    let mut counts = Counts::default();
    let mut clean = BTreeMap::new();
    outln!("{:<6} {:<26} {:<72} caught by", "where", "fault", "what is wrong");
    for fault in &faults {
        let mut missed = Vec::new();
        for test in &fault.tests {
            let key = (fault.package.clone(), test.clone());
            let without = match clean.get(&key) {
                Some(&ended) => ended,
                None => *clean.entry(key).or_insert(attempt(&binaries, fault, test, false)?),
            };
            let with = attempt(&binaries, fault, test, true)?;
            if (without, with) != (Ended::Passed, Ended::Failed) {
                missed.push(format!("{test} ({without:?} without the fault, {with:?} with it)"));
            }
        }
        let verdict = if missed.is_empty() { fault.tests.join(", ") } else { format!("NOT {}", missed.join(", ")) };
        outln!("{:<6} {:<26} {:<72} {verdict}", fault.package, fault.name, fault.what);
        counts.passed += u64::from(missed.is_empty());
        counts.failed += u64::from(!missed.is_empty());
    }
    Ok(counts)
}

/// All faults of all packages.
fn faults() -> Result<Vec<Fault>> {
    let mut all = Vec::new();
    for package in PACKAGES {
        let file = paths::root().join("kernel").join(package).join("src/mutant.rs");
        let text = std::fs::read_to_string(&file).with_context(|| format!("{} cannot be read", file.display()))?;
        let found = parse(package, &text)?;
        ensure!(!found.is_empty(), "{} lists no fault", file.display());
        all.extend(found);
    }
    Ok(all)
}

/// Reads the variants of one `mutant.rs`.
fn parse(package: &str, text: &str) -> Result<Vec<Fault>> {
    let mut faults = Vec::new();
    let mut comment = String::new();
    for line in text.lines().map(str::trim) {
        if let Some(more) = line.strip_prefix("///") {
            comment.push_str(more);
            continue;
        }
        let variant = line.strip_suffix("\",").and_then(|line| line.split_once(" = \""));
        if let Some((_, name)) = variant.filter(|(name, _)| name.chars().all(char::is_alphanumeric)) {
            let Some((what, by)) = comment.split_once("Caught by") else {
                bail!("{package}: the fault {name} does not say what it is caught by");
            };
            let tests: Vec<String> = by.split('`').skip(1).step_by(2).map(String::from).collect();
            ensure!(!tests.is_empty(), "{package}: the fault {name} names no test that catches it");
            faults.push(Fault { package: package.into(), name: name.into(), what: what.trim().into(), tests });
        }
        comment.clear();
    }
    Ok(faults)
}

/// The command that builds the tests, or the models.
fn builder(runner: Runner) -> Command {
    let mut cargo = Command::new("cargo");
    cargo.args(["test", "--no-run", "--message-format=json-render-diagnostics"]);
    cargo.current_dir(paths::root()).env_remove("RUSTC_BOOTSTRAP").env_remove("RUSTFLAGS");
    if runner == Runner::Host {
        cargo.args(PACKAGES.map(|package| format!("-p{package}")));
    } else {
        cargo.args(MODELLED.map(|package| format!("-p{package}")));
        cargo.args(["--release", "--test", "loom*"]).env("RUSTFLAGS", format!("--cfg {}", runner.word()));
    }
    cargo.env("CARGO_TARGET_DIR", paths::target().join(runner.word()));
    cargo
}

/// Builds the tests, or the models, and finds their programs.
fn build(runner: Runner) -> Result<Binaries> {
    let output = builder(runner).stderr(Stdio::inherit()).output().context("cargo cannot be started")?;
    ensure!(output.status.success(), "the tests do not build");
    let models = runner != Runner::Host;
    let lines = String::from_utf8_lossy(&output.stdout);
    let programs = lines.lines().filter_map(|line| program(&serde_json::from_str(line).ok()?));
    let ours = programs.filter(|((_, name), _)| name.starts_with("loom") == models);
    Ok(ours.map(|((package, name), program)| ((package, format!("{}{name}", runner.prefix())), program)).collect())
}

/// The test program that a message of cargo tells of.
fn program(message: &Value) -> Option<((String, String), (PathBuf, PathBuf))> {
    let executable = PathBuf::from(message["executable"].as_str()?);
    let directory = PathBuf::from(message["manifest_path"].as_str()?).parent()?.to_path_buf();
    let package = directory.file_name()?.to_str()?.to_string();
    Some(((package, message["target"]["name"].as_str()?.to_string()), (executable, directory)))
}

/// Runs one test, with the fault or without.
fn attempt(binaries: &Binaries, fault: &Fault, test: &str, with_fault: bool) -> Result<Ended> {
    let (binary, name) = test.split_once("::").map_or((test, None), |(binary, name)| (binary, Some(name)));
    let Some((program, directory)) = binaries.get(&(fault.package.clone(), binary.to_string())) else {
        return Ok(Ended::Neither);
    };
    let mut command = Command::new(program);
    // A model under a fault may print much before it fails: nobody reads it.
    command.current_dir(directory).args(name).env("RUST_BACKTRACE", "0").stderr(Stdio::null());
    if name.is_some() {
        command.arg("--exact");
    }
    if test.starts_with(Runner::Shuttle.prefix()) {
        command.env("UNPLUG_SCHEDULES", SCHEDULES);
    }
    let variable = format!("{}_MUTANT", fault.package.to_uppercase());
    if with_fault {
        command.env(variable, &fault.name)
    } else {
        command.env_remove(variable)
    };
    let log = tempfile::NamedTempFile::new().context("no place for a temporary file")?;
    command.stdout(log.reopen()?);
    let child = command.spawn().with_context(|| format!("{} cannot be started", program.display()))?;
    let Some(success) = wait(child)? else { return Ok(Ended::Neither) };
    let printed = String::from_utf8_lossy(&std::fs::read(log.path())?).into_owned();
    Ok(match success {
        // A filter that fits no test passes too.
        true if printed.contains("ok. 0 passed") => Ended::Neither,
        true => Ended::Passed,
        // It failed, or died of a panic while it unwound; but it has to have begun.
        false if printed.contains("running 0 tests") => Ended::Neither,
        false => Ended::Failed,
    })
}

/// Waits for a test; `None` where it hangs, and is ended.
fn wait(mut child: Child) -> Result<Option<bool>> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status.success()));
        }
        if start.elapsed() > PATIENCE {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(5));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "
        mutants! {
            /// The first thing is wrong. Caught by `one::a` and
            /// `loom_two::b`.
            First = \"first\",
            /// The second is. Caught by `three`, all tests.
            Second = \"second\",
        }
        let known = \"x\",
    ";

    #[test]
    fn a_list_of_faults_is_read() {
        let faults = parse("mm", LIST).unwrap();
        assert_eq!(faults.len(), 2);
        assert_eq!(faults[0].what, "The first thing is wrong.");
        assert_eq!(faults[0].tests, ["one::a", "loom_two::b"]);
        assert_eq!((faults[1].name.as_str(), faults[1].tests.len()), ("second", 1));
    }

    #[test]
    fn a_fault_that_nothing_catches_is_an_error() {
        assert!(parse("mm", "/// Wrong.\nFirst = \"first\",").is_err());
        assert!(parse("mm", "/// Wrong. Caught by luck.\nFirst = \"first\",").is_err());
    }

    #[test]
    fn the_lists_of_the_packages_can_be_read() {
        let faults = faults().unwrap();
        for (package, nr) in
            [("mm", 12), ("dax", 1), ("nvdimm", 4), ("fs", 20), ("sched", 10), ("nvme", 8), ("iommu", 15)]
        {
            assert!(faults.iter().filter(|fault| fault.package == package).count() >= nr, "{package}");
        }
    }

    /// A name with a slip in it would be a test that neither passes nor fails, which only the full run notices.
    /// A package without models is built for the host alone: what it imports is not there under loom.
    #[test]
    fn the_models_are_built_of_the_packages_that_have_some() {
        let has_models = |package: &&str| {
            let tests = paths::root().join("kernel").join(package).join("tests");
            let entries = std::fs::read_dir(tests).into_iter().flatten().flatten();
            entries.map(|entry| entry.file_name()).any(|name| name.to_string_lossy().starts_with("loom_"))
        };
        let modelled: Vec<_> = PACKAGES.iter().filter(|package| has_models(package)).collect();
        assert_eq!(modelled, MODELLED.iter().collect::<Vec<_>>());
        for (runner, packages) in
            [(Runner::Host, &PACKAGES[..]), (Runner::Loom, &MODELLED), (Runner::Shuttle, &MODELLED)]
        {
            let cargo = builder(runner);
            let named: Vec<_> = cargo.get_args().filter_map(|arg| arg.to_str()?.strip_prefix("-p")).collect();
            assert_eq!(named, packages, "{runner:?}");
        }
    }

    #[test]
    fn the_models_that_catch_a_fault_exist() {
        let mut by_shuttle = 0;
        for fault in faults().unwrap() {
            for test in &fault.tests {
                by_shuttle += u32::from(test.starts_with("shuttle:"));
                let test = test.trim_start_matches("shuttle:");
                let Some((file, name)) = test.split_once("::").filter(|(file, _)| file.starts_with("loom")) else {
                    continue;
                };
                let path = paths::root().join(format!("kernel/{}/tests/{file}.rs", fault.package));
                let text = std::fs::read_to_string(&path).unwrap();
                assert!(text.contains(&format!("fn {name}()")), "{}: there is no model {test}", fault.name);
            }
        }
        assert!(by_shuttle > 10, "faults of interleaving are shown to both checkers");
    }

    /// One row for each fault, which says what the list says; and no row of a fault that is no more.
    #[test]
    fn the_table_in_the_docs_is_that_of_the_lists() {
        let text = std::fs::read_to_string(paths::root().join("docs/proofs.md")).unwrap();
        let (_, text) = text.split_once("| fault | what is wrong | caught by |\n|---|---|---|\n").unwrap();
        let row = |fault: &Fault| {
            let tests: Vec<String> = fault.tests.iter().map(|test| format!("`{test}`")).collect();
            format!("| `{}` | {} | {} |", fault.name, fault.what, tests.join(", "))
        };
        let mut listed: Vec<String> = faults().unwrap().iter().map(row).collect();
        let mut rows: Vec<&str> = text.lines().take_while(|line| line.starts_with('|')).collect();
        listed.sort_unstable();
        rows.sort_unstable();
        for (listed, row) in listed.iter().zip(&rows) {
            assert_eq!(listed, row, "kernel/*/src/mutant.rs (left) and docs/proofs.md (right) do not agree");
        }
        assert_eq!(listed.len(), rows.len());
    }

    #[test]
    fn a_program_is_found_in_what_cargo_says() {
        let line = r#"{"executable":"/t/stale-1","manifest_path":"/p/kernel/mm/Cargo.toml","target":{"name":"stale"}}"#;
        let (key, (executable, directory)) = program(&serde_json::from_str(line).unwrap()).unwrap();
        assert_eq!(key, ("mm".into(), "stale".into()));
        assert_eq!((executable, directory), ("/t/stale-1".into(), "/p/kernel/mm".into()));
        assert!(program(&serde_json::from_str(r#"{"reason":"build-finished"}"#).unwrap()).is_none());
    }
}
