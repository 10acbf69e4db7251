//! The whole log of a run, kept in a file: that of the last one has always the same name, those of some runs before it have a
//! number each.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// How many logs are kept.
const KEPT: usize = 5;
/// How much of a log is kept at most, in bytes: a thousand times what a demonstration says.
const MOST_BYTES: usize = 64 << 20;

/// A log that is being written.
#[derive(Debug)]
pub struct Kept {
    directory: PathBuf,
    /// Of what.
    of: &'static str,
    /// `None` once it could not be written.
    file: Option<File>,
    bytes: usize,
    lines: usize,
}

/// The name of the log of this kind that is so many runs old.
fn name(of: &str, age: usize) -> String {
    if age == 0 { format!("{of}.log") } else { format!("{of}.{age}.log") }
}

impl Kept {
    /// Begins a log `of` something in this directory. One that cannot be written is one line on standard error.
    #[must_use]
    pub fn begin(directory: &Path, of: &'static str) -> Self {
        let mut kept = Self { directory: directory.to_path_buf(), of, file: None, bytes: 0, lines: 0 };
        match kept.open() {
            Ok(file) => kept.file = Some(file),
            Err(error) => kept.give_up(&error),
        }
        kept
    }

    fn open(&self) -> io::Result<File> {
        fs::create_dir_all(&self.directory)?;
        for age in (1..KEPT).rev() {
            let older = self.directory.join(name(self.of, age));
            match fs::rename(self.directory.join(name(self.of, age - 1)), older) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        File::create_new(self.directory.join(name(self.of, 0)))
    }

    fn give_up(&mut self, error: &io::Error) {
        self.file = None;
        let path = self.directory.join(name(self.of, 0));
        eprintln!("run-qemu: no log is kept: {} cannot be written ({error})", path.display());
    }

    /// Adds lines.
    pub fn add(&mut self, lines: &[String]) {
        let Some(file) = &mut self.file else { return };
        let mut text = String::new();
        for line in lines {
            if self.bytes.saturating_add(line.len()) > MOST_BYTES {
                break;
            }
            self.bytes += line.len() + 1;
            self.lines += 1;
            text.push_str(line);
            text.push('\n');
        }
        if let Err(error) = file.write_all(text.as_bytes()) {
            self.give_up(&error);
        }
    }

    /// Where it is, in one line; `None` where none was kept.
    #[must_use]
    pub fn place(&self) -> Option<String> {
        let ours = self.file.as_ref()?.metadata().ok()?;
        let is_ours = |path: &PathBuf| {
            fs::metadata(path).is_ok_and(|found| (found.dev(), found.ino()) == (ours.dev(), ours.ino()))
        };
        // Another run may have begun meanwhile.
        let path = (0..KEPT).map(|age| self.directory.join(name(self.of, age))).find(is_ours)?;
        let here = std::env::current_dir().unwrap_or_default();
        let path = path.strip_prefix(here).unwrap_or(&path);
        let cut = if self.bytes + 1024 > MOST_BYTES { ", and was cut" } else { "" };
        Some(format!("The whole log is in {} ({} lines{cut}).", path.display(), self.lines))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(String::from).collect()
    }

    #[test]
    fn the_last_few_logs_are_kept_and_the_newest_has_always_the_same_name() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let logs = directory.path().join("log");
        for run in 0..KEPT + 3 {
            let mut kept = Kept::begin(&logs, "demo");
            kept.add(&lines(&format!("run {run}\nmore")));
            let place = kept.place().expect("it is kept");
            assert!(place.ends_with("log/demo.log (2 lines)."), "{place}");
        }
        assert_eq!(fs::read_dir(&logs).expect("listed").count(), KEPT);
        assert_eq!(fs::read_to_string(logs.join("demo.log")).expect("read"), "run 7\nmore\n");
        assert_eq!(fs::read_to_string(logs.join("demo.4.log")).expect("read"), "run 3\nmore\n");
    }

    #[test]
    fn a_run_that_begins_meanwhile_takes_the_name_and_not_the_log() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut first = Kept::begin(directory.path(), "demo");
        let mut second = Kept::begin(directory.path(), "demo");
        second.add(&lines("second"));
        first.add(&lines("first"));
        assert!(first.place().is_some_and(|place| place.contains("demo.1.log")));
        assert_eq!(fs::read_to_string(directory.path().join("demo.1.log")).expect("read"), "first\n");
    }

    #[test]
    fn what_cannot_be_written_is_no_reason_to_end() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let file = directory.path().join("file");
        fs::write(&file, "").expect("written");
        let mut kept = Kept::begin(&file.join("log"), "demo");
        kept.add(&lines("a line"));
        assert_eq!(kept.place(), None);
    }

    #[test]
    fn a_log_has_an_end() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut kept = Kept::begin(directory.path(), "demo");
        kept.add(&vec!["x".repeat(1 << 10); 70 << 10]);
        let len = fs::metadata(directory.path().join("demo.log")).expect("it is there").len();
        assert!(len <= MOST_BYTES as u64, "{len}");
        assert!(kept.place().is_some_and(|place| place.ends_with("lines, and was cut).")));
    }
}
