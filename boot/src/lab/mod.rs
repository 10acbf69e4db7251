//! The job `lab`: hands the kernel's parts out to students, and grades what comes back.
//!
//! What is graded is the text between a part's comments ([`markers`]) and nothing else: it is put into the project's own
//! sources, with the project's own tests, in a place of its own (`build`). Each stage of it is a process group with limits
//! (`stage`).

mod answers;
mod build;
pub mod catalog;
mod dump;
mod grade;
pub mod markers;
mod stage;
mod tree;

use self::catalog::{LABS, Lab, Place};
use self::grade::Work;
use crate::backing::Nvdimm;
use crate::cli::{Mode, Refusal, words_of};
use crate::console::Echo;
use crate::guest::Guest;
use crate::machine::Machine;
use crate::out::outln;
use crate::paths;
use crate::size::MIB;
use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, Subcommand};
use rustix::fs::OFlags;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The file of a student's directory that says which lab it is.
const NOTE: &str = ".lab";
/// Most bytes of a source that a student hands in.
const MOST_BYTES: u64 = 1 << 20;
/// The status of a grade with less than all points.
const NOT_ALL: u8 = 1;

#[derive(Debug, Parser)]
#[command(
    name = "lab",
    bin_name = "./run-qemu.sh lab",
    about = "Labs: parts of the kernel to be written, and their grader (docs/labs)"
)]
struct Cli {
    #[command(subcommand)]
    job: Job,
}

#[derive(Debug, Subcommand)]
enum Job {
    /// Name the labs, how long each takes, and its points.
    List,
    /// Make a student's copy, with the part taken out.
    New {
        /// The lab's number.
        lab: u32,
        /// The directory, which is made.
        directory: PathBuf,
        /// Where the random questions of lab 1 begin, and of no other; another one each time where it is not given.
        #[arg(long)]
        seed: Option<u64>,
    },
    /// Grade a student's copy: points as KTAP, and status 0 where all are had, else 1.
    Grade {
        /// The lab's number.
        lab: u32,
        /// The student's directory.
        directory: PathBuf,
        /// Most seconds that it takes, once all is built that is not the student's: 10 to 3600.
        #[arg(long, default_value_t = grade::MOST_SECONDS, value_parser = clap::value_parser!(u64).range(10..=3600))]
        seconds: u64,
        /// Say nothing of what goes on.
        #[arg(long)]
        quiet: bool,
    },
    /// Put the kernel's own text, or the right answers, into a student's copy: for teachers.
    Model {
        /// The lab's number.
        lab: u32,
        /// The student's directory.
        directory: PathBuf,
        /// Also over what somebody has written there.
        #[arg(long)]
        force: bool,
    },
    /// Boot what a student's kernel is in: for `grade`.
    #[command(hide = true)]
    Guest {
        /// The lab's number.
        lab: u32,
        /// Seconds until it counts as hung.
        seconds: u64,
    },
}

/// Does the job. A wrong command line, or a directory that is none of a lab, ends the process with one line and status 2.
///
/// # Errors
/// One line, when the tools fail.
pub fn job(args: impl IntoIterator<Item = OsString>) -> Result<u8> {
    let cli: Cli = words_of(args, "lab --help");
    match cli.job {
        Job::List => list(),
        Job::New { lab, directory, seed } => new(given(find(lab)), &directory, seed),
        Job::Grade { lab, directory, seconds, quiet } => {
            let lab = given(find(lab));
            let work = given(work(lab, &directory, Duration::from_secs(seconds)));
            Ok(if grade::grade(&work, quiet)? == lab.most() { 0 } else { NOT_ALL })
        }
        Job::Model { lab, directory, force } => model(given(find(lab)), &directory, force),
        Job::Guest { lab, seconds } => boot(given(find(lab)), seconds),
    }
}

/// What was given is right, or the process ends.
fn given<T>(value: Result<T>) -> T {
    value.unwrap_or_else(|error| Refusal::Bad(format!("{error:#}")).exit("lab --help"))
}

fn find(number: u32) -> Result<&'static Lab> {
    let last = LABS.last().map_or(0, |lab| lab.number);
    Lab::find(number).with_context(|| format!("there is no lab {number} (expected 1 to {last})"))
}

fn list() -> Result<u8> {
    for lab in LABS {
        let (number, title, minutes, most) = (lab.number, lab.title, lab.minutes, lab.most());
        outln!("{number}  {title:<44} {minutes:>3} min  {most:>2} points  {}", lab.page().display());
    }
    Ok(0)
}

/// A directory that is not there yet, or is empty.
fn refuse_full(directory: &Path) -> Result<()> {
    let shown = directory.display();
    match fs::read_dir(directory) {
        Ok(mut entries) => ensure!(entries.next().is_none(), "{shown} is not empty: name a directory that is new"),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => bail!("{shown}: {error}"),
    }
    Ok(())
}

/// A lab without questions has none that begin anywhere.
fn refuse_seed(lab: &Lab, seed: Option<u64>) -> Result<()> {
    let is_used = lab.parts.is_empty() || seed.is_none();
    ensure!(is_used, "--seed is for a lab with random questions, and lab {} has none", lab.number);
    Ok(())
}

fn new(lab: &'static Lab, directory: &Path, seed: Option<u64>) -> Result<u8> {
    given(refuse_full(directory));
    given(refuse_seed(lab, seed));
    let seed = seed.unwrap_or_else(rand_seed);
    let mut files = if lab.parts.is_empty() { answers::sheet(seed, lab)? } else { tree::sources()? };
    tree::with_parts(&mut files, lab, &|place| start(lab, place))?;
    for page in pages(lab)? {
        let text = fs::read(paths::root().join(&page)).with_context(|| page.display().to_string())?;
        files.insert(page, text);
    }
    given(fs::create_dir_all(directory).with_context(|| directory.display().to_string()));
    tree::write(directory, &files)?;
    let note = format!("lab = {}\nseed = {seed}\n", lab.number);
    fs::write(directory.join(NOTE), note).with_context(|| directory.display().to_string())?;
    let shown = directory.display();
    outln!("lab {}: {}, about {} minutes", lab.number, lab.title, lab.minutes);
    outln!("  read   {shown}/{}", lab.page().display());
    for file in lab.files() {
        outln!("  write  {shown}/{file}, between `// lab {} begin` and `// lab {} end`", lab.number, lab.number);
    }
    if lab.parts.is_empty() {
        outln!("  write  {shown}/{}", answers::FILE);
    }
    outln!("  grade  ./run-qemu.sh lab grade {} {shown}", lab.number);
    Ok(0)
}

/// Another one each time: from the hash that each process keys its tables with.
fn rand_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0) >> 32
}

/// The pages that a student gets: the documentation; with a lab of questions its page alone.
fn pages(lab: &Lab) -> Result<Vec<PathBuf>> {
    if lab.parts.is_empty() {
        // And what it says to read.
        return Ok(vec![lab.page(), "docs/memory-layout.md".into(), "kernel/mm/src/entry.rs".into()]);
    }
    let mut pages = Vec::new();
    let mut directories = vec![PathBuf::from("docs")];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(paths::root().join(&directory)).with_context(|| directory.display().to_string())? {
            let entry = entry?;
            let path = directory.join(entry.file_name());
            if entry.file_type()?.is_dir() { directories.push(path) } else { pages.push(path) }
        }
    }
    Ok(pages)
}

/// A part's starting point.
fn start(lab: &Lab, place: &Place) -> Result<String> {
    let file = place.start(lab);
    fs::read_to_string(&file).with_context(|| file.display().to_string())
}

/// What a student's directory says that it is; its seed.
fn note(lab: &Lab, directory: &Path) -> Result<u64> {
    let shown = directory.display();
    ensure!(directory.is_dir(), "there is no directory {shown} (`lab new {} {shown}` makes it)", lab.number);
    let file = directory.join(NOTE);
    ensure!(file.exists(), "{shown} is no lab: it has no {NOTE}, which `lab new {} DIR` makes", lab.number);
    let text = source(&file)?;
    let value = |key: &str| {
        text.lines().find_map(|line| line.strip_prefix(key)?.trim().strip_prefix('=')?.trim().parse::<u64>().ok())
    };
    let number = value("lab").with_context(|| format!("{shown}/{NOTE} does not say which lab it is"))?;
    ensure!(number == u64::from(lab.number), "{shown} is lab {number}, not lab {}", lab.number);
    value("seed").with_context(|| format!("{shown}/{NOTE} has no seed"))
}

/// What is to be graded: the parts alone.
fn work<'a>(lab: &'static Lab, directory: &'a Path, most: Duration) -> Result<Work<'a>> {
    let seed = note(lab, directory)?;
    let mut parts = BTreeMap::new();
    for place in lab.parts {
        let file = directory.join(place.file);
        let source = source(&file)?;
        let part = markers::part(&source, lab.number, place.name).with_context(|| file.display().to_string())?;
        parts.insert(place.name, part.text(&source).to_string());
    }
    Ok(Work { lab, directory, seed, parts, most })
}

/// A source that a student hands in.
fn source(file: &Path) -> Result<String> {
    String::from_utf8(bytes(file)?).ok().with_context(|| format!("{} is no text (UTF-8)", file.display()))
}

/// The bytes of a file that a student hands in. Whatever stands in its place, it is not waited for, and no more of it is read
/// than a source has.
fn bytes(file: &Path) -> Result<Vec<u8>> {
    let shown = || file.display().to_string();
    // Of a pipe the other end would be waited for.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let opened = File::options().read(true).custom_flags(flags).open(file).with_context(shown)?;
    ensure!(opened.metadata().with_context(shown)?.is_file(), "{} is not a regular file", shown());
    let mut bytes = Vec::new();
    opened.take(MOST_BYTES + 1).read_to_end(&mut bytes).with_context(shown)?;
    ensure!(bytes.len() as u64 <= MOST_BYTES, "{} has more than {MOST_BYTES} bytes, more than a source has", shown());
    Ok(bytes)
}

fn model(lab: &'static Lab, directory: &Path, force: bool) -> Result<u8> {
    let seed = given(note(lab, directory));
    let may_go = |is_nobodys: bool, file: &Path| {
        ensure!(is_nobodys || force, "somebody has written in {} (--force writes over it)", file.display());
        Ok(())
    };
    if lab.parts.is_empty() {
        let file = directory.join(answers::FILE);
        given(may_go(given(answers::is_nobodys(directory, seed)), &file));
        answers::solve(directory, seed, lab)?;
        outln!("{}: the right answers", file.display());
        return Ok(0);
    }
    // All of it is looked at before anything is written.
    let mut files = BTreeMap::new();
    for place in lab.parts {
        let file = directory.join(place.file);
        let theirs = files.remove(&file).map_or_else(|| source(&file), Ok);
        let theirs = given(theirs);
        let part = given(markers::part(&theirs, lab.number, place.name).with_context(|| file.display().to_string()));
        let ours = fs::read_to_string(paths::root().join(place.file)).with_context(|| place.file.to_string())?;
        let ours = markers::part(&ours, lab.number, place.name)?.text(&ours).to_string();
        let written = part.text(&theirs).trim_end();
        given(may_go([&start(lab, place)?, &ours].iter().any(|text| text.trim_end() == written), &file));
        let with_ours = part.replace(&theirs, &ours);
        files.insert(file, with_ours);
    }
    for (file, text) in files {
        fs::write(&file, text).with_context(|| file.display().to_string())?;
        outln!("{}: the kernel's own text", file.display());
    }
    Ok(0)
}

/// Boots the image that the environment names, shows its console, and ends as it does.
fn boot(lab: &'static Lab, seconds: u64) -> Result<u8> {
    let machine = Machine {
        smp: 4,
        pmem: vec![Nvdimm::temporary(256 * MIB)],
        iommu: lab.devices,
        edu: lab.devices,
        nvme: Some(0),
        mode: Mode::Test,
        append: vec![format!("tests={}", lab.guest)],
        timeout: Some(Duration::from_secs(seconds)),
        ..Machine::default()
    };
    let outcome = Guest::start(&machine, Echo::Stdout)?.finish()?;
    eprintln!("run-qemu: {}", outcome.status);
    Ok(outcome.status.exit_code())
}

#[cfg(test)]
mod tests;
