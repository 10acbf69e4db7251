//! Which tests failed and the beginning of what they said, from what `cargo test` prints.

/// Lines of a reason that are kept.
const REASON_LINES: usize = 4;
/// Most characters of a kept line.
const LINE_CHARS: usize = 240;

/// A test that failed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Failure {
    /// Its name.
    pub name: String,
    /// The first lines of what it said.
    pub reason: Vec<String>,
}

/// Reads line by line.
#[derive(Debug, Default)]
pub struct Failures {
    found: Vec<Failure>,
    /// Whose words the lines are.
    speaks: Option<usize>,
}

impl Failures {
    /// The next line of the output.
    pub fn line(&mut self, line: &str) {
        if let Some(name) = line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED")) {
            // libtest-mimic pads names to one width.
            self.found.push(Failure { name: name.trim_end().into(), reason: Vec::new() });
            self.speaks = None;
        } else if let Some(name) = heading(line) {
            // The latest: two files can have a test of one name. Or it is not known yet: libtest-mimic with one thread writes
            // FAILED behind whatever the test has printed.
            self.speaks = self.found.iter().rposition(|failure| failure.name == name);
            if self.speaks.is_none() {
                self.speaks = Some(self.found.len());
                self.found.push(Failure { name: name.into(), reason: Vec::new() });
            }
        } else if line == "failures:" || line.starts_with("test result: ") {
            self.speaks = None;
        } else if let Some(speaks) = self.speaks {
            let reason = &mut self.found[speaks].reason;
            if !line.trim().is_empty() && reason.len() < REASON_LINES {
                reason.push(line.chars().take(LINE_CHARS).collect());
            }
        }
    }

    /// All that failed so far.
    #[must_use]
    pub fn into_found(self) -> Vec<Failure> {
        self.found
    }
}

/// `---- NAME stdout ----` of libtest, `---- NAME ----` of libtest-mimic.
fn heading(line: &str) -> Option<&str> {
    let name = line.strip_prefix("---- ")?.strip_suffix(" ----")?;
    Some(name.strip_suffix(" stdout").unwrap_or(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<Failure> {
        let mut failures = Failures::default();
        text.lines().for_each(|line| failures.line(line));
        failures.into_found()
    }

    fn failure(name: &str, reason: &[&str]) -> Failure {
        Failure { name: name.into(), reason: reason.iter().map(|line| (*line).into()).collect() }
    }

    #[test]
    fn a_failed_test_of_libtest_has_its_first_words() {
        let text = "test pmem::a ... ok\ntest pmem::b ... FAILED\ntest c ... FAILED\n\nfailures:\n\n\
                    ---- pmem::b stdout ----\n\nthread 'pmem::b' (7) panicked at x.rs:1:2:\nno verdict\n1\n2\n3\n\
                    ---- c stdout ----\nlast words\n\nfailures:\n    pmem::b\n    c\n\n\
                    test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured\n";
        let said = ["thread 'pmem::b' (7) panicked at x.rs:1:2:", "no verdict", "1", "2"];
        assert_eq!(read(text), [failure("pmem::b", &said), failure("c", &["last words"])]);
    }

    #[test]
    fn a_failed_test_of_libtest_mimic_too() {
        let text = "test mm.a.b   ... FAILED\ntest mm.a.b.c ... ok\n\nfailures:\n\n---- mm.a.b ----\n# two pins\n\n\
                    failures:\n    mm.a.b\n";
        assert_eq!(read(text), [failure("mm.a.b", &["# two pins"])]);
    }

    #[test]
    fn a_failed_test_whose_line_was_broken_by_what_it_printed_too() {
        let text = "test lab_4 ... thread 'main' panicked\nFAILED\n\nfailures:\n\n---- lab_4 ----\nno hint\n";
        assert_eq!(read(text), [failure("lab_4", &["no hint"])]);
    }

    #[test]
    fn words_without_an_end_are_cut_and_a_test_may_have_none() {
        let text = format!("test a ... FAILED\ntest b ... FAILED\n---- a stdout ----\n{}\n", "ß".repeat(1000));
        let read = read(&text);
        assert_eq!((read[0].reason[0].chars().count(), read[1].reason.len()), (LINE_CHARS, 0));
    }
}
