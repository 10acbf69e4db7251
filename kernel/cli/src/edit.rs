//! A line at a terminal: arrows, history, Emacs' keys, completion. The editing is `noline`'s.
//!
//! `noline` asks the terminal how large it is and where the cursor is, and waits for the answer in what is typed; whatever
//! was typed ahead would be lost. Here nobody asks the terminal: [`screen`](crate::screen) answers. It also takes numbers
//! out of escape sequences without a look at how large they are; so it is given control characters alone, which
//! [`keys`](crate::keys) makes.

use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use noline::history::{CircularSlice, History, UnboundedHistory};
use noline::line_buffer::{LineBuffer, UnboundedBuffer};
use noline::sync_editor;

use crate::complete::Completion;
use crate::keys::{Key, Keys};
use crate::screen::{ROW, Screen, Wish};
use crate::{MAX_LINE, Typed, help};

/// As many lines can be recalled, and half of them at least.
const MAX_HISTORY: usize = 128;

/// What is typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// A byte.
    Byte(u8),
    /// Nothing yet, but somebody has printed lines: the one that is edited stands above them.
    Printed,
    /// Nothing more will come.
    End,
}

/// A terminal with somebody in front of it.
pub trait Tty {
    /// Waits for what comes next.
    fn read(&mut self) -> Input;
    /// Sends text.
    fn write(&mut self, text: &str);
    /// What could be added to a line.
    fn complete(&mut self, before_cursor: &str) -> Completion;
}

/// The newest lines, each once where it was typed several times in a row.
#[derive(Default)]
struct Recent {
    lines: UnboundedHistory,
    last: String,
}

impl History for Recent {
    fn get_entry(&self, index: usize) -> Option<CircularSlice<'_>> {
        (index < self.number_of_entries()).then(|| self.lines.get_entry(index)).flatten()
    }

    fn add_entry<'a>(&mut self, entry: &'a str) -> Result<(), &'a str> {
        if entry == self.last {
            return Ok(());
        }
        if self.number_of_entries() >= MAX_HISTORY {
            let old = core::mem::take(&mut self.lines);
            for line in (MAX_HISTORY / 2..old.number_of_entries()).filter_map(|at| old.get_entry(at)) {
                let bytes: Vec<u8> = line.into_iter().map(|(_, byte)| *byte).collect();
                // It was a line before.
                let _ = self.lines.add_entry(&String::from_utf8_lossy(&bytes));
            }
        }
        self.last = entry.into();
        self.lines.add_entry(entry)
    }

    fn number_of_entries(&self) -> usize {
        self.lines.number_of_entries()
    }
}

/// Reads lines, and remembers them.
pub struct Editor {
    editor: sync_editor::Editor<UnboundedBuffer, Recent>,
    keys: Keys,
    screen: Screen,
}

impl fmt::Debug for Editor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Editor").field("keys", &self.keys).field("screen", &self.screen).finish_non_exhaustive()
    }
}

impl Editor {
    /// For a terminal of so many columns.
    pub fn new(columns: usize) -> Self {
        // It takes the parts as they are, and asks nobody.
        let editor = sync_editor::Editor::new(LineBuffer::new_unbounded(), Recent::default(), &mut Nobody);
        let editor = editor.expect("an editor is made of its parts");
        Self { editor, keys: Keys::default(), screen: Screen::new(columns) }
    }

    /// So many columns the terminal has, as it has said last.
    pub fn columns(&self) -> usize {
        self.screen.columns()
    }

    /// Reads a line behind `prompt`, which is ASCII.
    pub fn read(&mut self, prompt: &str, tty: &mut impl Tty) -> Typed {
        self.screen.clear();
        let mut io = Io {
            tty,
            keys: &mut self.keys,
            screen: &mut self.screen,
            given: VecDeque::new(),
            prompt_len: prompt.len(),
            questions: 0,
            typed: None,
            too_long: false,
            tabs: 0,
        };
        let line = self.editor.readline(prompt, &mut io).map(String::from);
        let mut rest = String::new();
        io.screen.leave(&mut rest);
        io.tty.write(&rest);
        let (typed, too_long) = (io.typed.take(), io.too_long);
        match (typed, line) {
            (Some(typed), _) => typed,
            (None, Ok(_)) if too_long => Typed::TooLong,
            (None, Ok(line)) => Typed::Line(line),
            (None, Err(_)) => Typed::Left,
        }
    }
}

/// Nobody types, and nobody reads.
struct Nobody;

/// Why there is no line.
#[derive(Clone, Copy, Debug)]
struct NoLine;

impl embedded_io::Error for NoLine {
    fn kind(&self) -> embedded_io::ErrorKind {
        embedded_io::ErrorKind::Other
    }
}

impl embedded_io::ErrorType for Nobody {
    type Error = NoLine;
}

impl embedded_io::Read for Nobody {
    fn read(&mut self, _: &mut [u8]) -> Result<usize, NoLine> {
        Err(NoLine)
    }
}

impl embedded_io::Write for Nobody {
    fn write(&mut self, _: &[u8]) -> Result<usize, NoLine> {
        Err(NoLine)
    }
    fn flush(&mut self) -> Result<(), NoLine> {
        Ok(())
    }
}

/// What stands between the editor and a terminal.
struct Io<'i, T: Tty> {
    tty: &'i mut T,
    keys: &'i mut Keys,
    screen: &'i mut Screen,
    /// What the editor is to read before anything else is.
    given: VecDeque<u8>,
    prompt_len: usize,
    /// How often it has asked where the cursor is.
    questions: usize,
    /// How the line has ended without it.
    typed: Option<Typed>,
    too_long: bool,
    /// Tab was pressed so often in a row, and nothing could be added.
    tabs: usize,
}

impl<T: Tty> Io<'_, T> {
    fn show(&mut self) {
        let mut out = String::new();
        self.screen.show(&mut out);
        if !out.is_empty() {
            self.tty.write(&out);
        }
    }

    fn give(&mut self, text: &str) {
        // The part of the line that is on its way counts as well.
        for c in text.chars() {
            if self.screen.len() + self.given.len() >= self.prompt_len + MAX_LINE {
                self.too_long = true;
                return self.tty.write("\x07");
            }
            self.given.extend(c.encode_utf8(&mut [0; 4]).bytes());
        }
    }

    fn key(&mut self, key: Key) -> Result<(), NoLine> {
        self.tabs = if key == Key::Tab { self.tabs } else { 0 };
        match key {
            // What follows belongs to a line that is refused.
            Key::Char(_) | Key::Tab if self.too_long => {}
            Key::Char(c) => self.give(c.encode_utf8(&mut [0; 4])),
            Key::Enter => self.given.push_back(b'\r'),
            Key::Tab => self.complete(),
            Key::Interrupt => return self.end(Typed::Dropped),
            Key::End if self.screen.len() <= self.prompt_len => return self.end(Typed::Left),
            Key::End | Key::Delete => self.given.extend(*b"\x1b[3~"),
            Key::Refresh => {
                self.tty.write("\x1b[H\x1b[2J");
                self.screen.forget();
            }
            Key::Control(byte) => {
                // The whole line goes, and with it what was too much of it.
                self.too_long &= byte != 0x15;
                self.given.push_back(byte);
            }
            Key::Columns(columns) => self.screen.set_columns(columns),
            Key::Unknown => self.tty.write("\x07"),
        }
        Ok(())
    }

    fn end(&mut self, typed: Typed) -> Result<(), NoLine> {
        self.typed = Some(typed);
        Err(NoLine)
    }

    /// Adds what is certain; the second time in a row, says what there is to choose from.
    fn complete(&mut self) {
        let completion = self.tty.complete(&self.screen.before_cursor(self.prompt_len));
        if !completion.insert.is_empty() {
            self.tabs = 0;
            return self.give(&completion.insert);
        }
        self.tabs += 1;
        if self.tabs < 2 || completion.candidates.is_empty() {
            return self.tty.write("\x07");
        }
        let mut out = String::from("\n");
        for row in help::columns(&completion.candidates, self.screen.columns()) {
            out.push_str(&format!("{row}\n"));
        }
        self.tty.write(&out);
        self.screen.forget();
    }
}

impl<T: Tty> embedded_io::ErrorType for Io<'_, T> {
    type Error = NoLine;
}

impl<T: Tty> embedded_io::Read for Io<'_, T> {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, NoLine> {
        let Some(first) = buffer.first_mut() else { return Ok(0) };
        loop {
            if let Some(byte) = self.given.pop_front() {
                *first = byte;
                return Ok(1);
            }
            self.show();
            match self.tty.read() {
                Input::End => self.end(Typed::Left)?,
                Input::Printed => self.screen.forget(),
                Input::Byte(byte) => {
                    for key in self.keys.push(byte).into_iter().flatten() {
                        self.key(key)?;
                    }
                }
            }
        }
    }
}

impl<T: Tty> embedded_io::Write for Io<'_, T> {
    fn write(&mut self, bytes: &[u8]) -> Result<usize, NoLine> {
        for c in String::from_utf8_lossy(bytes).chars() {
            match self.screen.paint(c) {
                None => {}
                Some(Wish::Bell) => self.tty.write("\x07"),
                Some(Wish::Position) => {
                    // First it wants to know how large the terminal is, then where the prompt ends.
                    let column = if self.questions == 0 { ROW } else { self.prompt_len + 1 };
                    self.questions += 1;
                    self.given.extend(format!("\x1b[{};{column}R", 2 - self.questions.min(1)).bytes());
                }
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> Result<(), NoLine> {
        Ok(())
    }
}
