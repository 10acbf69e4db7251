//! What a command of the shell is. The list of all is in [`shell`](crate::shell).

use alloc::string::String;

/// One command.
pub struct Command {
    /// What is typed.
    pub name: &'static str,
    /// What follows it, for `help`.
    pub args: &'static str,
    /// What it does, in a few words.
    pub help: &'static str,
    /// A line that can be typed.
    pub example: &'static str,
    /// Does it. An error is printed as one line.
    pub run: fn(&[&str]) -> Result<(), String>,
}

/// Takes the last word away, if it is `force`: who says so means to write over whatever is there.
pub fn forced<'a, 'w>(args: &'a [&'w str]) -> (&'a [&'w str], bool) {
    match args {
        [rest @ .., "force"] => (rest, true),
        _ => (args, false),
    }
}
