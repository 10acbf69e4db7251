//! pjdfstest: what POSIX says of calls on a file system, in some 400 cases. Most of them are about what this one does
//! not have: the table in `docs/fs-mount.md` names each, and why. Such a case has to fail; one that passes, and any
//! other that fails, is a fault.

use super::tools::run;
use super::{Done, Failed, Place, Trial};
use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;
use std::process::Command;

/// The page with the table.
const PAGE: &str = include_str!("../../../docs/fs-mount.md");
/// The heading above it.
const HEADING: &str = "### Cases of pjdfstest that do not apply\n";

/// That the table can be read, which needs no tester.
pub fn trial_of_the_table() -> Trial {
    Trial::test("judges::the_cases_of_pjdfstest_that_do_not_apply_are_named", || {
        let two = ["a::b::d", "a::b::e", "a::c::d", "a::c::e"].map(String::from);
        if expand("a::{b,c}::{d,e}") != two || expand("a::b") != ["a::b"] {
            return Err("braces are not taken apart".into());
        }
        not_applicable().map(drop)
    })
}

/// The names that a pattern stands for: each choice between braces, as in a shell.
fn expand(pattern: &str) -> Vec<String> {
    let Some((before, (choices, rest))) =
        pattern.split_once('{').and_then(|(before, rest)| Some((before, rest.split_once('}')?)))
    else {
        return vec![pattern.into()];
    };
    let names = |choice: &str| expand(rest).into_iter().map(move |rest| format!("{before}{choice}{rest}")).collect();
    choices.split(',').flat_map(|choice| -> Vec<String> { names(choice) }).collect()
}

/// The cases that do not apply: what stands between backquotes in the second column.
fn not_applicable() -> Result<BTreeSet<String>, Failed> {
    let table = PAGE.split_once(HEADING).ok_or("the table's heading is gone")?.1;
    let table = table.split("\n#").next().unwrap_or_default();
    let mut cases = BTreeSet::new();
    for row in table.lines().filter_map(|line| line.strip_prefix("| ")) {
        let column = row.split(" | ").nth(1).ok_or_else(|| format!("a row has one column: {row}"))?;
        for case in column.split('`').skip(1).step_by(2).flat_map(expand) {
            if !cases.insert(case.clone()) {
                return Err(format!("{case} is named twice").into());
            }
        }
    }
    if cases.is_empty() { Err("the table is empty".into()) } else { Ok(cases) }
}

/// What the tester is told. The other two users are any two; the group of the first one has another name elsewhere.
fn config(cases: &BTreeSet<String>) -> Result<String, Failed> {
    let groups = std::fs::read_to_string("/etc/group").unwrap_or_default();
    let group = if groups.lines().any(|line| line.starts_with("nogroup:")) { "nogroup" } else { "nobody" };
    let mut config = String::from("[features]\n");
    for feature in ["posix_fallocate", "rename_ctime", "utime_now", "utimensat"] {
        writeln!(config, "{feature} = {{}}")?;
    }
    write!(config, "[dummy_auth]\nentries = [[\"nobody\", \"{group}\"], [\"daemon\", \"daemon\"]]\n")?;
    // Names as Rust prints them are strings there, too. Times are in nanoseconds.
    let cases: Vec<_> = cases.iter().collect();
    write!(config, "[settings]\nnaptime = 0.01\nexpected_failures = {cases:?}\n")?;
    Ok(config)
}

/// Runs it.
pub fn judge(program: &Path) -> Done {
    let place = Place::new("64M")?;
    let (file, other) = (place.dir.path().join("pjdfstest.toml"), place.dir.path().join("other"));
    let cases = not_applicable()?;
    std::fs::write(&file, config(&cases)?)?;
    std::fs::create_dir(&other)?;
    place.mounted(true, |root| {
        let mut command = Command::new(program);
        command
            .env("RUST_BACKTRACE", "0")
            .env("NO_COLOR", "1")
            .arg("-c")
            .arg(&file)
            .arg("-s")
            .arg(&other)
            .arg("-p")
            .arg(root);
        let said = run(&mut command)?;
        let summary = said.lines().find(|line| line.contains("Summary")).unwrap_or("it has ended without a summary");
        eprintln!("{summary}");
        // Its own judgement is that none failed that should not. That it has judged anything, is ours.
        let passed = said.lines().filter(|line| line.contains("::") && line.ends_with(" ok")).count();
        if passed > 100 { Ok(()) } else { Err(format!("{passed} cases have passed: {said}").into()) }
    })
}
