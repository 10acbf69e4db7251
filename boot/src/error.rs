//! What can go wrong with a guest, for callers that want to know which it was.

use std::error;
use std::fmt;
use std::time::Duration;

/// How many of the last lines an error remembers.
pub(crate) const SEEN_LINES: usize = 20;

/// Why something did not come of a guest. [`Display`](fmt::Display) is one line; what was seen instead is in
/// [`Error::seen`], and follows in `{:#}` and in [`Debug`](fmt::Debug), which is what `unwrap` and a `main` that returns it
/// print.
#[non_exhaustive]
pub enum Error {
    /// No guest was started: the machine makes no sense, a file is missing or in use, or there is no QEMU.
    Machine(String),
    /// Its time was up first.
    TimedOut {
        /// What was waited for.
        awaited: String,
        /// How long the wait was allowed to take; of a guest's own time limit, all of it.
        after: Duration,
        /// The last lines of its console, and QEMU's messages.
        seen: Vec<String>,
    },
    /// The guest ended first.
    Ended {
        /// What was waited for.
        awaited: String,
        /// The last lines of its console, and QEMU's messages.
        seen: Vec<String>,
    },
    /// The shell answered a command with `error:`.
    Refused {
        /// The command.
        command: String,
        /// What follows `error: `.
        reason: String,
    },
    /// An answer has not what was looked for in it, or it is of another type.
    Answer(String),
    /// QEMU's monitor cannot be reached, or has closed the connection.
    Monitor(String),
    /// QEMU's monitor refuses a command.
    Qmp {
        /// The command.
        command: String,
        /// QEMU's own words.
        reason: String,
    },
}

impl Error {
    /// What the guest printed last, if that is what the error is about; QEMU's own messages come after it.
    #[must_use]
    pub fn seen(&self) -> &[String] {
        match self {
            Self::TimedOut { seen, .. } | Self::Ended { seen, .. } => seen,
            _ => &[],
        }
    }

    /// The same, with more said of what was waited for.
    pub(crate) fn awaited_with(mut self, more: &str) -> Self {
        if let Self::TimedOut { awaited, .. } | Self::Ended { awaited, .. } = &mut self {
            awaited.push_str(more);
        }
        self
    }

    /// One line of a chain of causes, as an error of the machine's.
    pub(crate) fn machine(error: anyhow::Error) -> Self {
        // What was already one of ours stays what it was.
        error.downcast().unwrap_or_else(|error| Self::Machine(format!("{error:#}")))
    }

    fn line(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Machine(why) | Self::Answer(why) => write!(f, "{why}"),
            Self::TimedOut { awaited, after, seen } => {
                write!(f, "{awaited} did not come in {} s{}", after.as_secs_f64(), last(seen))
            }
            Self::Ended { awaited, seen } => write!(f, "the guest ended before {awaited} came{}", last(seen)),
            Self::Refused { command, reason } => write!(f, "{command:?} was refused: {reason}"),
            Self::Monitor(why) => write!(f, "QEMU's monitor: {why}"),
            Self::Qmp { command, reason } => write!(f, "{command}: {reason}"),
        }
    }
}

fn last(seen: &[String]) -> String {
    match seen.iter().rfind(|line| !line.trim().is_empty()) {
        Some(line) => format!("; the last line was {line:?}"),
        None => "; nothing was printed".into(),
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.line(f)?;
        if f.alternate() && self.seen().len() > 1 {
            write!(f, "\nthe last lines were:")?;
            self.seen().iter().try_for_each(|line| write!(f, "\n    {line}"))?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:#}")
    }
}

impl error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    fn late() -> Error {
        let seen = vec!["one".to_string(), "two".into(), String::new()];
        Error::TimedOut { awaited: "\"three\"".into(), after: Duration::from_secs(9), seen }
    }

    /// covers: T5
    #[test]
    fn an_error_is_one_line_and_has_what_was_seen_behind_it() {
        assert_eq!(late().to_string(), "\"three\" did not come in 9 s; the last line was \"two\"");
        assert_eq!(format!("{:?}", late()), format!("{}\nthe last lines were:\n    one\n    two\n    ", late()));
        assert_eq!(late().seen().len(), 3);
        let ended = Error::Ended { awaited: "a prompt".into(), seen: vec![] };
        assert_eq!(ended.to_string(), "the guest ended before a prompt came; nothing was printed");
        assert_eq!(format!("{ended:#}"), ended.to_string());
    }

    #[test]
    fn an_error_of_ours_stays_one_on_its_way_through_others() {
        assert!(matches!(Error::machine(anyhow::Error::new(late())), Error::TimedOut { .. }));
        let other = anyhow::anyhow!("inner").context("outer");
        assert_eq!(Error::machine(other).to_string(), "outer: inner");
    }
}
