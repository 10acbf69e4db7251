//! The console: whole lines on the serial port, notes from interrupt handlers, what a command is.
//! May import: cpu.

pub mod command;
pub mod ring;
pub mod serial;

pub(crate) use self::serial::{answer, report};
pub use self::serial::{cost, for_people, has_prompt, init, is_for_people, line, raw, seize, try_read, words};
