//! The file system held against outside testers: an image is mounted on a directory of the host (`fs mount --write`), and
//! they do not know what is behind it. Each gets a fresh image, and the checker runs over it afterwards.
//!
//! fsx and pjdfstest are built by cargo into a directory of their own; fio is a package of Debian's. What cannot be had is
//! passed over with a line, as is all of it where there is no /dev/fuse.

mod mount;
mod pjdfstest;
mod tools;

use boot::fsimage;
use boot::fsmount::Mounted;
use libtest_mimic::{Arguments, Failed, Trial};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use tempfile::TempDir;

/// A test's outcome.
type Done = Result<(), Failed>;

/// A job `fs` with these words. Answers its status.
fn job(words: &[&str]) -> Result<u8, Failed> {
    let words = ["boot", "fs"].iter().chain(words).map(OsString::from);
    fsimage::job(words).expect("its own words").map_err(|error| format!("{error:#}").into())
}

/// A directory for a test: an image in it, and a place to mount it on. In memory where that is a file system: a fence is
/// an `fdatasync` of the image.
struct Place {
    dir: TempDir,
}

impl Place {
    /// With a new file system of `size`.
    fn new(size: &str) -> Result<Self, Failed> {
        let memory = Path::new("/dev/shm");
        let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }?;
        let place = Self { dir };
        std::fs::create_dir(place.at())?;
        job(&["make", place.image().to_str().expect("it is ours"), "--size", size])?;
        Ok(place)
    }
    fn image(&self) -> PathBuf {
        self.dir.path().join("image")
    }
    /// Where it is mounted.
    fn at(&self) -> PathBuf {
        self.dir.path().join("mounted")
    }

    /// Does `work` while the image is mounted, unmounts it, and has it checked.
    fn mounted(&self, write: bool, work: impl FnOnce(&Path) -> Done) -> Done {
        let mut mounted = Mounted::new(&self.image(), None, &self.at(), write).map_err(|error| format!("{error:#}"))?;
        let mut unmounter = mounted.unmounter();
        let server = thread::spawn(move || mounted.run());
        let done = work(&self.at());
        unmounter.unmount()?;
        server.join().map_err(|_| "the server has panicked")?.map_err(|error| format!("{error:#}"))?;
        done?;
        match job(&["check", self.image().to_str().expect("it is ours")])? {
            0 => Ok(()),
            _ => Err("the checker finds faults".into()),
        }
    }
}

/// Why nothing can be mounted here; `None`: it can.
fn why_not() -> Option<String> {
    let device = std::fs::File::options().read(true).write(true).open("/dev/fuse");
    if let Err(error) = device {
        return Some(format!("/dev/fuse cannot be opened: {error}"));
    }
    let helper = tools::find("fusermount3").or_else(|| tools::find("fusermount"));
    let root = rustix::process::geteuid().is_root();
    (!root && helper.is_none()).then(|| "whoever is not root needs fusermount3 (Debian's package fuse3)".into())
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let mut trials = mount::trials();
    let why_not = why_not();
    match &why_not {
        Some(why) => eprintln!("nothing is mounted: {why}"),
        None if std::env::var_os("UNPLUG_FULL").is_some() && !arguments.list => trials.extend(tools::trials()),
        None => {}
    }
    if why_not.is_some() {
        trials = trials.into_iter().map(|trial| trial.with_ignored_flag(true)).collect();
    }
    // What comes to no mount can be tried anywhere.
    trials.extend([mount::trial_without_fuse(), pjdfstest::trial_of_the_table()]);
    libtest_mimic::run(&arguments, trials).exit_code()
}
