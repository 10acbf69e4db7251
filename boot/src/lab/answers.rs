//! The sheet of a lab with questions: what is asked, what was answered, and which points that gives.

use super::bytes;
use super::catalog::{Check, Lab};
use super::dump::{self, Dump, Truth};
use super::grade::Mark;
use super::tree::Files;
use anyhow::{Context, Result};
use mm::addr::PageSize;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;

/// The file that is filled in.
pub const FILE: &str = "answers.txt";
/// The file with the page table.
const DUMP: &str = "dump.txt";
/// What is in the place of an answer.
const OPEN: &str = "?";
/// The head of the sheet.
const HEAD: &str = "\
# Fill in what is behind each `=`, from dump.txt, by hand. What is allowed:
#   physical  the physical address, in hexadecimal (0x1234)
#   size      of the page: 4K, 2M or 1G
#   store     may a user's program store there? yes or no
#   level     of the entry at which the walk ends: 4 for an entry of the root, 1 for the lowest
";

/// What is asked of an address, and what is right.
fn questions(dump: &Dump) -> Vec<(String, u64, String)> {
    let mut all = Vec::new();
    for (name, (va, truth)) in &dump.asked {
        let mut ask = |what: &str, right: String| all.push((format!("{name}.{what}"), *va, right));
        match truth {
            Truth::Page { physical, size, store } => {
                ask("physical", format!("{physical:#x}"));
                ask("size", word(*size).into());
                ask("store", if *store { "yes" } else { "no" }.into());
            }
            Truth::Nothing { level } => ask("level", level.to_string()),
        }
    }
    all
}

fn word(size: PageSize) -> &'static str {
    match size {
        PageSize::Size4K => "4K",
        PageSize::Size2M => "2M",
        PageSize::Size1G => "1G",
    }
}

fn filled(dump: &Dump, answer: impl Fn(&str) -> String) -> String {
    let mut text = HEAD.to_string();
    let mut last = 0;
    for (name, va, right) in questions(dump) {
        if last != va {
            let _ = writeln!(text, "\n# {}: the virtual address {va:#x}", name.split('.').next().unwrap_or_default());
        }
        last = va;
        let _ = writeln!(text, "{name} = {}", answer(&right));
    }
    text
}

/// What a student is given.
///
/// # Errors
/// As [`dump::make`].
pub fn sheet(seed: u64, _lab: &Lab) -> Result<Files> {
    let dump = dump::make(seed)?;
    let open = filled(&dump, |_| OPEN.into());
    Ok(Files::from([(DUMP.into(), dump.text.into_bytes()), (FILE.into(), open.into_bytes())]))
}

/// Is there nothing that somebody has written: no sheet, the open one, or the one of [`solve`]?
///
/// # Errors
/// As [`dump::make`], or the sheet cannot be read.
pub fn is_nobodys(directory: &Path, seed: u64) -> Result<bool> {
    let file = directory.join(FILE);
    if file.metadata().is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound) {
        return Ok(true);
    }
    let text = bytes(&file)?;
    let dump = dump::make(seed)?;
    let ours = [filled(&dump, |_| OPEN.into()), filled(&dump, |right| right.into())];
    Ok(ours.iter().any(|ours| ours.as_bytes() == text))
}

/// Writes the right answers.
///
/// # Errors
/// They cannot be written.
pub fn solve(directory: &Path, seed: u64, _lab: &Lab) -> Result<()> {
    let text = filled(&dump::make(seed)?, |right| right.into());
    fs::write(directory.join(FILE), text).with_context(|| directory.join(FILE).display().to_string())
}

/// One mark for each point of the lab. The page table is made anew from the seed: what is in the student's copy of it does not
/// count.
///
/// # Errors
/// As [`dump::make`].
pub fn check(directory: &Path, seed: u64, lab: &Lab) -> Result<Vec<Mark>> {
    let dump = dump::make(seed)?;
    let right: BTreeMap<_, _> = questions(&dump).into_iter().map(|(name, _, right)| (name, right)).collect();
    let text = bytes(&directory.join(FILE)).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let text = text.unwrap_or_default();
    let given: BTreeMap<_, _> =
        text.lines().filter_map(|line| line.split_once('=')).map(|(k, v)| (k.trim(), v.trim())).collect();
    let mark = |name: &str| match (given.get(name).copied().unwrap_or(OPEN), &right[name]) {
        (OPEN | "", _) => Mark::Lost(format!("{name} has no answer")),
        (given, right) if is_same(given, right) => Mark::Had,
        (given, _) => Mark::Lost(format!("{name} is not {given}")),
    };
    let marks = lab.points.iter().map(|point| match point.check {
        Check::Answers(names) => names.split(' ').map(mark).find(|mark| *mark != Mark::Had).unwrap_or(Mark::Had),
        _ => Mark::Lost("it is no question".into()),
    });
    Ok(marks.collect())
}

/// Numbers are the same however they are written.
fn is_same(given: &str, right: &str) -> bool {
    let number = |text: &str| match text.to_ascii_lowercase().replace('_', "").strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    };
    given.eq_ignore_ascii_case(right) || number(given).is_some_and(|given| Some(given) == number(right))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// covers: T5
    #[test]
    fn answers_are_the_same_however_they_are_written() {
        assert!(is_same("0x0012_AB", "0x12ab") && is_same("YES", "yes") && is_same("4k", "4K") && is_same("1", "1"));
        assert!(!is_same("12ab", "0x12ab") && !is_same("0x", "0x0") && !is_same("2M", "4K"));
    }
}
