//! How a line is read: with an editor from somebody at a terminal, plainly from a program.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering};

use cli::Typed;
use cli::complete::{Completion, Names, Usage, complete};
use cli::edit::{Editor, Input, Tty};
use cli::plain::Plain;
use fs::format::Kind;
use fs::lock_order::Context;

use crate::console;
use crate::pmem::{devices, mounts};
use crate::shell::args::device;
use crate::shell::{PROMPT, commands, help, input};
use crate::task::sched;

/// So wide is what reads the console.
static COLUMNS: AtomicUsize = AtomicUsize::new(80);

/// So many columns has what reads the console.
pub fn columns() -> usize {
    COLUMNS.load(Ordering::Relaxed)
}

/// Who is at the other end.
pub enum Reader {
    /// Somebody, in front of a terminal.
    Person(Box<Editor>),
    /// A program.
    Program,
}

impl Reader {
    /// For a terminal or a program.
    pub fn new(columns: usize, is_terminal: bool) -> Self {
        COLUMNS.store(columns, Ordering::Relaxed);
        match is_terminal {
            true => Self::Person(Box::new(Editor::new(columns))),
            false => Self::Program,
        }
    }

    /// Reads a line behind the prompt.
    pub fn read(&mut self) -> Typed {
        match self {
            Self::Person(editor) => {
                let typed = editor.read(PROMPT, &mut Terminal);
                COLUMNS.store(editor.columns(), Ordering::Relaxed);
                typed
            }
            Self::Program => {
                console::raw(PROMPT);
                let mut line = Plain::default();
                loop {
                    if let Some(typed) = line.push(next(), &mut console::raw) {
                        return typed;
                    }
                }
            }
        }
    }
}

/// Waits for a byte.
fn next() -> u8 {
    loop {
        match input::next() {
            Some(byte) => return byte,
            None => sched::sleep_ns(input::POLL_NS),
        }
    }
}

/// The terminal at the other end of the serial line.
struct Terminal;

impl Tty for Terminal {
    fn read(&mut self) -> Input {
        loop {
            if !console::has_prompt() {
                return Input::Printed;
            }
            if let Some(byte) = input::next() {
                return Input::Byte(byte);
            }
            sched::sleep_ns(input::POLL_NS);
        }
    }

    fn write(&mut self, text: &str) {
        console::raw(text);
    }

    fn complete(&mut self, before_cursor: &str) -> Completion {
        let usages: Vec<_> = commands().map(|command| Usage { name: command.name, args: command.args }).collect();
        complete(before_cursor, &usages, &Known)
    }
}

/// What can be named here.
struct Known;

impl Names for Known {
    fn devices(&self) -> Vec<String> {
        devices::slots().iter().map(|slot| slot.name.as_str().into()).collect()
    }

    fn entries(&self, word: &str, directory: &str) -> Vec<String> {
        let fs = device(word).and_then(mounts::get);
        let entries = fs.ok().and_then(|fs| fs.readdir(&Context::new(), directory).ok()).unwrap_or_default();
        let named = entries.into_iter().filter_map(|entry| {
            let mut name = String::from_utf8(entry.name.to_vec()).ok()?;
            if entry.kind == Kind::Directory {
                name.push('/');
            }
            // The others cannot be typed.
            name.bytes().all(|byte| matches!(byte, b' '..=b'~')).then_some(name)
        });
        named.collect()
    }

    fn topics(&self) -> Vec<String> {
        help::TOPICS.iter().map(|(name, _)| (*name).into()).collect()
    }
}
