//! The library as others use it: from a package of their own, with a kernel that is not ours; and its results, read by
//! parsers that are not ours. What cannot be had here is passed over with a line.

mod answers;
mod example;
mod foreign;
mod readers;

use boot::peer::packages::Apt;
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Mutex, PoisonError};

/// What reads Debian's packages.
const TOOLS: [&str; 4] = ["apt-get", "apt-cache", "dpkg-deb", "sha256sum"];

/// How a test ends: it passed, or why it could not be tried here.
type Done = Result<Completion, Failed>;

/// A test that may be passed over.
fn trial(name: &str, test: impl FnOnce() -> Done + Send + 'static) -> Trial {
    Trial::ignorable_test(name, test)
}

/// Passed over, with the line that says why.
fn passed_over(why: impl Into<String>) -> Done {
    Ok(Completion::ignored_with(why.into()))
}

/// Where what is fetched for these tests is kept.
fn place() -> PathBuf {
    boot::paths::target().join("others")
}

/// Debian's packages, one test at a time: apt keeps others away from its lists.
fn with_apt<T>(fetch: impl FnOnce(&Apt) -> anyhow::Result<T>) -> anyhow::Result<T> {
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(tool) = TOOLS.iter().find(|tool| find(tool).is_none()) {
        anyhow::bail!("Debian's packages cannot be fetched without {tool}");
    }
    std::fs::create_dir_all(place())?;
    fetch(&Apt::new(&place())?)
}

/// Are the slow cases wanted?
fn full() -> bool {
    std::env::var_os("UNPLUG_FULL").is_some()
}

/// A program on the path.
fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// Runs a program, which has to succeed, and answers what it printed on standard output.
fn output(command: &mut Command) -> Result<String, Failed> {
    let done = command.stdin(Stdio::null()).output().map_err(|error| format!("{command:?}: {error}"))?;
    let [out, err] = [&done.stdout, &done.stderr].map(|text| String::from_utf8_lossy(text).into_owned());
    if done.status.success() { Ok(out) } else { Err(format!("{command:?}: {}\n{out}{err}", done.status).into()) }
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let trials =
        [answers::trials(), example::trials(), foreign::trials(), readers::trials()].into_iter().flatten().collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}
