//! The kernel's results as a plain TAP 13 stream: for parsers that know neither the line `KTAP version 1` nor lines that
//! are not TAP.

use crate::ktap::{self, Line, Verdict};

/// Writes TAP, one console line at a time.
#[derive(Debug, Default)]
pub struct Tap {
    begun: bool,
    /// The plan, and how many results came.
    plan: Option<usize>,
    results: usize,
    /// A result had no number, or none that can be read.
    is_garbled: bool,
}

impl Tap {
    /// What the console's next line is in TAP; `None`: it is for the log.
    #[must_use]
    pub fn line(&mut self, line: &str) -> Option<String> {
        match ktap::classify(line) {
            Line::Version { .. } if !self.begun => {
                self.begun = true;
                Some("TAP version 13".into())
            }
            _ if !self.begun => None,
            Line::Plan { tests, .. } => {
                self.plan = Some(tests);
                Some(format!("1..{tests}"))
            }
            Line::Result { number, name, verdict } => {
                self.results += 1;
                self.is_garbled |= number.is_none();
                Some(result(number.unwrap_or(self.results), name, &verdict))
            }
            Line::Garbled => {
                self.is_garbled = true;
                None
            }
            Line::Diagnostic | Line::BailOut => Some(line.into()),
            Line::Version { .. } | Line::Subtest | Line::Noise => None,
        }
    }

    /// The last line, where the guest did not end as its tests let one expect: every consumer of TAP takes it for a
    /// failure of the whole. `why` is one line.
    #[must_use]
    pub fn end(&self, is_whole: bool, why: &str) -> Option<String> {
        let is_complete = self.plan.is_some_and(|plan| plan == self.results && plan != 0) && !self.is_garbled;
        (!is_whole || !is_complete).then(|| format!("Bail out! {why}"))
    }
}

fn result(number: usize, name: &str, verdict: &Verdict) -> String {
    let ok = if *verdict == Verdict::Failed { "not ok" } else { "ok" };
    let skip = match verdict {
        Verdict::Skipped(reason) => format!(" # SKIP {reason}"),
        _ => String::new(),
    };
    format!("{ok} {number} - {name}{skip}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tap(console: &str) -> (Tap, Vec<String>) {
        let mut tap = Tap::default();
        let lines = console.lines().filter_map(|line| tap.line(line)).collect();
        (tap, lines)
    }

    /// covers: T5
    #[test]
    fn only_tap_is_left_of_a_console() {
        let (stream, lines) = tap("@unplug v\n# before\nok 9 x\nKTAP version 1\n1..3\n[ 1.0] log\n@topic a=1\n\
                                   ok 1 a.b # covers: G1\nnot ok 2 c\n# why\nok 3 d # SKIP there is none\n@verdict result=bad");
        let wanted = ["TAP version 13", "1..3", "ok 1 - a.b", "not ok 2 - c", "# why", "ok 3 - d # SKIP there is none"];
        assert_eq!(lines, wanted);
        assert_eq!(stream.end(true, "why"), None);
    }

    /// covers: T5
    #[test]
    fn a_guest_that_ends_otherwise_bails_out() {
        for console in ["", "KTAP version 1", "KTAP version 1\n1..2\nok 1 a", "KTAP version 1\n1..0"] {
            assert_eq!(
                tap(console).0.end(true, "it panicked").as_deref(),
                Some("Bail out! it panicked"),
                "{console:?}"
            );
        }
        // A result that cannot be read may have been a failure.
        for line in ["not ok 99999999999999999999 b", "not ok b", "not ok"] {
            let (stream, _) = tap(&format!("KTAP version 1\n1..1\nok 1 a\n{line}"));
            assert_eq!(stream.end(true, "why").as_deref(), Some("Bail out! why"), "{line:?}");
        }
        let (stream, _) = tap("KTAP version 1\n1..1\nok 1 a");
        assert_eq!(stream.end(false, "it hangs").as_deref(), Some("Bail out! it hangs"));
    }
}
