//! A student's directory, and what is done with it.

use boot::lab::catalog::Lab;
use boot::lab::markers;
use boot::paths;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tempfile::TempDir;

/// Seconds that a grade may take where only what is right is asked for: the host's other work counts, too.
const PATIENCE: &str = "1200";

/// One at a time: a grade waits for another one anyway, and what runs is looked at.
static ALONE: Mutex<()> = Mutex::new(());

/// A student's directory.
pub struct Bench {
    lab: &'static Lab,
    place: TempDir,
    alone: Option<MutexGuard<'static, ()>>,
}

/// What the grader said.
pub struct Grade {
    pub points: u32,
    pub status: i32,
    pub text: String,
    pub error: String,
}

impl fmt::Display for Grade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n{}", self.text, self.error)
    }
}

impl Grade {
    /// The hint of a point that was lost.
    pub fn hint(&self, what: &str) -> Option<String> {
        let mut lines = self
            .text
            .lines()
            .skip_while(|line| !(line.starts_with("not ok ") && line.contains(&format!("- {what} ("))));
        lines.next()?;
        Some(lines.next()?.strip_prefix("# hint: ")?.into())
    }
}

/// Where `run-qemu.sh` builds: where the image of the end-to-end tests is.
fn target() -> PathBuf {
    paths::image().parent().expect("a file is in a directory").to_path_buf()
}

impl Bench {
    pub fn new(lab: &'static Lab, seed: Option<u64>) -> Self {
        let alone = (!lab.parts.is_empty()).then(|| ALONE.lock().unwrap_or_else(PoisonError::into_inner));
        let bench = Self { lab, place: tempfile::tempdir().expect("a temporary directory"), alone };
        let seed = seed.map(|seed| format!("--seed={seed}"));
        let (number, shown) = (lab.number.to_string(), bench.shown());
        let made =
            bench.lab(&[&["new", &number, &shown][..], &seed.iter().map(String::as_str).collect::<Vec<_>>()].concat());
        assert_eq!(made.status, 0, "{made}");
        bench
    }

    pub fn place(&self) -> &Path {
        self.place.path()
    }

    pub fn shown(&self) -> String {
        self.place().display().to_string()
    }

    pub fn read(&self, file: &str) -> String {
        fs::read_to_string(self.place().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lab"));
        command.arg("lab").args(args).env("CARGO_TARGET_DIR", target());
        // What a test's own build was told.
        for variable in ["RUSTFLAGS", "UNPLUG_IMAGE", "UNPLUG_KERNEL", "CARGO_PROFILE_DEV_DEBUG"] {
            command.env_remove(variable);
        }
        command
    }

    /// The job `lab`.
    pub fn lab(&self, args: &[&str]) -> Grade {
        let output = self.command(args).output().expect("it starts");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let sum = text.lines().last().and_then(|line| line.strip_prefix("# points: ")?.split_once(' ')?.0.parse().ok());
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        Grade { points: sum.unwrap_or(u32::MAX), status: output.status.code().unwrap_or(-1), text, error }
    }

    pub fn grade(&self) -> Grade {
        self.lab(&["grade", &self.lab.number.to_string(), &self.shown(), "--seconds", PATIENCE, "--quiet"])
    }

    pub fn put_model(&self) {
        let done = self.lab(&["model", &self.lab.number.to_string(), &self.shown(), "--force"]);
        assert_eq!(done.status, 0, "{done}");
    }

    /// A text in the place of a part.
    pub fn put_part(&self, name: &str, text: &str) {
        let place = self.lab.parts.iter().find(|part| part.name == name).expect("the lab has it");
        let source = self.read(place.file);
        let part = markers::part(&source, self.lab.number, name).expect("it is there");
        fs::write(self.place().join(place.file), part.replace(&source, text)).expect("written");
    }

    /// The starting point of a part with a body in the place of its `todo!`.
    pub fn put_body(&self, name: &str, body: &str) {
        let place = self.lab.parts.iter().find(|part| part.name == name).expect("the lab has it");
        let start = fs::read_to_string(place.start(self.lab)).expect("it has a starting point");
        let line =
            start.lines().find(|line| line.trim_start().starts_with("todo!(")).expect("there is something to do");
        self.put_part(name, &start.replace(line, body));
    }

    /// Names of the wrong solutions.
    pub fn wrong_ones(&self) -> Vec<String> {
        let entries = fs::read_dir(self.lab.directory().join("wrong")).expect("there are some").flatten();
        let mut names: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort_unstable();
        names.iter().map(|name| name.rsplit_once('.').expect("it has a kind").0.into()).collect()
    }

    /// Puts a wrong solution into the model's place; answers the point that it loses.
    pub fn put_wrong(&self, name: &str) -> String {
        self.put_model();
        let file = |kind| self.lab.directory().join("wrong").join(format!("{name}.{kind}"));
        let text = fs::read_to_string(file("rs")).or_else(|_| fs::read_to_string(file("txt"))).expect("there is one");
        let (head, body): (Vec<_>, Vec<_>) =
            text.lines().partition(|line| line.starts_with("//= ") || line.starts_with("#= "));
        let value = |key: &str| head.iter().find_map(|line| line.split_once(key)).map(|(_, value)| value.to_string());
        match value("= part: ") {
            Some(part) => self.put_part(&part, &body.join("\n")),
            None => self.put_answers(&body),
        }
        value("= loses: ").expect("it says what it loses")
    }

    /// Answers in the place of the right ones.
    fn put_answers(&self, answers: &[&str]) {
        let key = |line: &str| line.split_once(" = ").map(|(key, _)| key.to_string());
        let sheet = self.read("answers.txt");
        let wrong = |line: &str| answers.iter().find(|answer| key(line).is_some() && key(answer) == key(line)).copied();
        let lines: Vec<_> = sheet.lines().map(|line| wrong(line).unwrap_or(line)).collect();
        assert_ne!(sheet.trim_end(), lines.join("\n"), "they are right");
        fs::write(self.place().join("answers.txt"), lines.join("\n")).expect("written");
    }

    /// No program that was built for a grade runs.
    pub fn assert_nothing_runs(&self) {
        assert!(self.alone.is_some(), "others may grade meanwhile");
        let built = target().join("labs");
        let of = |entry: fs::DirEntry| fs::read_link(entry.path().join("exe")).ok();
        let running: Vec<_> = fs::read_dir("/proc").expect("Linux").flatten().filter_map(of).collect();
        let ours: Vec<_> = running.iter().filter(|program| program.starts_with(&built)).collect();
        assert!(ours.is_empty(), "{ours:?}");
    }

    /// Begins a grade, and interrupts it when a test of the student's runs.
    pub fn interrupt_a_grade(&self) {
        let mut command = self.command(&["grade", &self.lab.number.to_string(), &self.shown(), "--seconds", PATIENCE]);
        let mut grade = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
        let built = target().join("labs/host");
        while !fs::read_dir("/proc")
            .expect("Linux")
            .flatten()
            .any(|entry| fs::read_link(entry.path().join("exe")).is_ok_and(|program| program.starts_with(&built)))
        {
            assert!(grade.try_wait().expect("its state").is_none(), "it ended before a test ran");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let signalled = Command::new("kill").args(["-INT", &grade.id().to_string()]).status().expect("kill");
        assert!(signalled.success());
        assert_eq!(grade.wait().expect("it ends").code(), Some(130));
    }
}
