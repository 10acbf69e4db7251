//! What a terminal is to show of a line, and how it gets there from what it shows.
//!
//! The editor behind it believes in a terminal of one very long row: so its cursor's column is the place in the line,
//! and no row of the real one ever has to be known. What it paints there is kept here, and is brought to the real
//! terminal by moves relative to where its cursor is, which nobody has to ask for. Lines that the kernel prints in
//! between scroll that terminal; the line is then painted anew below them.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write as _;

/// Columns of the editor's terminal: more than a line has, and less than the 10,000 that it can count to.
pub const ROW: usize = 9000;

/// Which part of a sequence of the editor's is next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Part {
    #[default]
    Text,
    Escape,
    /// Numbers: the row, which does not count, and the column.
    Numbers(usize),
}

/// A line on a terminal.
#[derive(Debug)]
pub struct Screen {
    /// How it is to be.
    text: Vec<char>,
    cursor: usize,
    /// What the terminal shows.
    shown: Vec<char>,
    shown_cursor: usize,
    columns: usize,
    part: Part,
}

/// What the editor wants besides painting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// To be told where its cursor is.
    Position,
    /// A bell.
    Bell,
}

impl Screen {
    /// An empty line.
    pub fn new(columns: usize) -> Self {
        Self {
            text: Vec::new(),
            cursor: 0,
            shown: Vec::new(),
            shown_cursor: 0,
            columns: columns.max(1),
            part: Part::Text,
        }
    }

    /// Begins a line anew, below whatever is on the terminal.
    pub fn clear(&mut self) {
        self.text.clear();
        self.cursor = 0;
        self.forget();
    }

    /// The terminal shows nothing of the line any more, and its cursor is at the beginning of a row.
    pub fn forget(&mut self) {
        self.shown.clear();
        self.shown_cursor = 0;
    }

    /// The terminal has so many columns.
    pub fn set_columns(&mut self, columns: usize) {
        self.columns = columns.max(1);
    }

    /// So many it has.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// What is in front of the cursor, without the first `prompt` characters.
    pub fn before_cursor(&self, prompt: usize) -> String {
        self.text.iter().take(self.cursor).skip(prompt).collect()
    }

    /// How many characters it has, those of the prompt among them.
    #[expect(clippy::len_without_is_empty, reason = "there is a prompt at least")]
    pub fn len(&self) -> usize {
        self.text.len()
    }

    /// Takes a character of what the editor paints.
    pub fn paint(&mut self, c: char) -> Option<Wish> {
        match (self.part, c) {
            (Part::Text, '\x1b') => self.part = Part::Escape,
            (Part::Text, '\x07') => return Some(Wish::Bell),
            (Part::Text, '\r') => self.cursor = 0,
            // The line is complete.
            (Part::Text, '\n') => {}
            (Part::Text, c) => {
                match self.text.get_mut(self.cursor) {
                    Some(place) => *place = c,
                    None => self.text.push(c),
                }
                self.cursor += 1;
            }
            (Part::Escape, '[') => self.part = Part::Numbers(0),
            // It keeps and restores the cursor around a question that goes nowhere.
            (Part::Escape, _) => self.part = Part::Text,
            (Part::Numbers(_), ';') => self.part = Part::Numbers(0),
            (Part::Numbers(number), '0'..='9') => {
                self.part = Part::Numbers(number.saturating_mul(10).saturating_add(c as usize - '0' as usize));
            }
            (Part::Numbers(number), c) => {
                self.part = Part::Text;
                match c {
                    'n' => return Some(Wish::Position),
                    'J' => self.text.truncate(self.cursor),
                    // Beyond the end is where it wants to see the edge of the terminal.
                    'H' => self.cursor = number.saturating_sub(1).min(self.text.len()),
                    _ => {}
                }
            }
        }
        None
    }

    /// Adds to `out` what brings the terminal from what it shows to what it is to show.
    pub fn show(&mut self, out: &mut String) {
        let same = self.text.iter().zip(&self.shown).take_while(|(to, from)| to == from).count();
        let (end, shorter) = (self.text.len(), self.text.len() < self.shown.len());
        if same < end || shorter {
            self.go(self.shown_cursor, same, out);
            // As wide as it is long on every terminal; what it is, the answer says.
            out.extend(self.text[same..].iter().map(|c| if c.is_ascii() { *c } else { '?' }));
            if same < end && end.is_multiple_of(self.columns) {
                // The terminal waits for one more character before it goes to the next row.
                out.push_str(" \r");
            }
            if shorter {
                out.push_str("\x1b[J");
            }
            self.shown_cursor = end;
            self.shown.clone_from(&self.text);
        }
        self.go(self.shown_cursor, self.cursor, out);
        self.shown_cursor = self.cursor;
    }

    /// Adds what moves the cursor.
    fn go(&self, from: usize, to: usize, out: &mut String) {
        if from == to {
            return;
        }
        let (from_row, to_row, column) = (from / self.columns, to / self.columns, to % self.columns);
        // A string takes whatever is written to it.
        let _ = match (from_row > to_row, from_row.abs_diff(to_row)) {
            (_, 0) => Ok(()),
            (true, rows) => write!(out, "\x1b[{rows}A"),
            (false, rows) => write!(out, "\x1b[{rows}B"),
        };
        out.push('\r');
        if column > 0 {
            let _ = write!(out, "\x1b[{column}C");
        }
    }

    /// Adds what brings the cursor behind the line's end, in a row of its own.
    pub fn leave(&mut self, out: &mut String) {
        self.cursor = self.text.len();
        self.show(out);
        out.push('\n');
    }
}
