//! What is typed at the shell, and what the shell lays out for whoever reads it. Nothing here knows a command.
//!
//! | module | what it does |
//! |---|---|
//! | [`words`] | takes a line apart: words, quotes, escapes, a `&` at its end |
//! | [`number`](mod@number) | reads a number |
//! | [`keys`] | makes keys of bytes: characters, control characters, escape sequences that may be cut |
//! | [`edit`] | a line at a terminal, edited by `noline` |
//! | [`screen`] | what of it the terminal is to show |
//! | [`plain`] | a line from a program, with nothing but an echo |
//! | [`complete`](mod@complete) | what Tab adds |
//! | [`help`] | usages and words at any width |
//! | [`record`] | a line for programs in a form for people |
//! | [`shown`] | bytes of a medium as a line that is no line of the kernel's own |
//!
//! Every byte comes from outside. None of them ends in a panic, and none vanishes without a word: a line that has one
//! that it cannot have is refused as a whole.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod complete;
pub mod edit;
pub mod help;
pub mod keys;
pub mod number;
pub mod plain;
pub mod record;
pub mod screen;
pub mod shown;
pub mod words;

/// Longest line that is taken, in bytes; a longer one is refused.
pub const MAX_LINE: usize = 512;

/// What came of reading a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Typed {
    /// A line.
    Line(alloc::string::String),
    /// It has more than [`MAX_LINE`] bytes: what there was room for is not a command that anybody has given.
    TooLong,
    /// It was dropped (control-C).
    Dropped,
    /// Whoever typed has left (control-D on an empty line, or a hang-up).
    Left,
}
