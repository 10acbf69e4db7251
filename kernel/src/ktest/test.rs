//! What an in-kernel test is. The list of all is in [`ktest`](crate::ktest).

use alloc::string::String;

use crate::console;

/// One test.
pub struct Test {
    /// `area.subject.case`, without spaces.
    pub name: &'static str,
    /// The rows of the specification that it covers, such as `G1 G2`; empty for what has no row.
    pub covers: &'static str,
    /// Runs it. An error says what was expected and what was found.
    pub run: fn(&mut Ctx) -> Result<(), String>,
}

/// What a test can use.
#[derive(Debug, Default)]
pub struct Ctx {
    skipped: Option<String>,
}

impl Ctx {
    /// Says why the test cannot run here; return `Ok` after it.
    pub fn skip(&mut self, reason: impl Into<String>) {
        self.skipped = Some(reason.into());
    }

    /// Why the test could not run here, if it said so.
    pub fn skipped(self) -> Option<String> {
        self.skipped
    }

    /// A line of explanation on the console, which KTAP readers ignore.
    pub fn note(&self, args: core::fmt::Arguments<'_>) {
        console::line(format_args!("# {args}"));
    }
}

/// Fails the test with both values unless they are equal.
macro_rules! check_eq {
    ($found:expr, $expected:expr, $($what:tt)+) => {{
        let (found, expected) = (&$found, &$expected);
        if found != expected {
            return Err(alloc::format!("{}: expected {expected:?}, found {found:?}", format_args!($($what)+)));
        }
    }};
}
pub(crate) use check_eq;

/// Fails the test unless the condition holds.
macro_rules! check {
    ($condition:expr, $($what:tt)+) => {
        if !$condition {
            return Err(alloc::format!($($what)+));
        }
    };
}
pub(crate) use check;
