//! A line taken apart into words.
//!
//! Words are separated by spaces and tabs. Within `"…"` a backslash takes the meaning from `"` and `\`; within `'…'`
//! nothing has a meaning; elsewhere a backslash takes it from whatever follows. A word may be empty (`""`). A `&` that
//! stands alone at the end makes a job of the line. (The shell of POSIX, chapter 2.2, without expansions.)

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

/// A line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Line {
    /// Its words, without their quotes.
    pub words: Vec<String>,
    /// It ends in `&`.
    pub is_job: bool,
}

/// Why a line is none. Places count its characters, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bad {
    /// A quote is opened, and not closed.
    Unclosed(char, usize),
    /// It ends in a backslash.
    Backslash,
    /// A character that is not ASCII.
    NotAscii(char, usize),
    /// A control character: the rest of a key that this console does not know, for instance.
    Control(char, usize),
    /// There is nothing in front of the `&`.
    JobOfNothing,
    /// A `&` stands alone, and not at the end.
    Ampersand(usize),
}

impl fmt::Display for Bad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unclosed(quote, at) => write!(f, "the {quote} at character {at} is not closed")?,
            Self::Backslash => write!(f, "a backslash at the end has nothing behind it")?,
            Self::NotAscii(char::REPLACEMENT_CHARACTER, at) => write!(f, "character {at} is not ASCII, nor UTF-8")?,
            Self::NotAscii(c, at) => write!(f, "character {at}, \"{c}\", is not ASCII")?,
            Self::Control(c, at) => write!(f, "character {at} is a control character, {:#04x}", u32::from(*c))?,
            Self::JobOfNothing => write!(f, "expected a command in front of the &")?,
            Self::Ampersand(at) => write!(f, "the & at character {at} is not at the end (in quotes it is a word)")?,
        }
        f.write_str("; nothing was done")
    }
}

/// How far a line has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// Each word that has ended, and where it begins.
    pub words: Vec<(String, usize)>,
    /// The word at the end of the line, unless a blank ended it.
    pub last: Option<String>,
    /// The quote that is open at the end, and where it was opened.
    pub quote: Option<(char, usize)>,
    /// A backslash waits for its character.
    pub escape: bool,
    /// The last word, or the one before the blank at the end, is a `&` without quotes; so are these (places).
    ampersands: Vec<usize>,
    begun_at: usize,
    is_plain: bool,
}

impl Scan {
    /// Goes through a line, or through the part of it that is in front of the cursor.
    ///
    /// # Errors
    /// A character that no line has.
    pub fn of(line: &str) -> Result<Self, Bad> {
        let mut scan = Self::default();
        line.chars().enumerate().try_for_each(|(at, c)| scan.push(c, at + 1))?;
        Ok(scan)
    }

    fn push(&mut self, c: char, at: usize) -> Result<(), Bad> {
        match c {
            '\t' | ' '..='~' => {}
            _ if c.is_ascii() => return Err(Bad::Control(c, at)),
            _ => return Err(Bad::NotAscii(c, at)),
        }
        let quote = self.quote.map(|(quote, _)| quote);
        match (self.escape, quote, c) {
            (true, Some('"'), c) => {
                self.escape = false;
                if c != '"' && c != '\\' {
                    self.add('\\');
                }
                self.add(c);
            }
            (true, _, c) => {
                self.escape = false;
                self.add(c);
            }
            (false, None | Some('"'), '\\') => {
                self.begin(at);
                (self.escape, self.is_plain) = (true, false);
            }
            (false, Some(open), c) if c == open => self.quote = None,
            (false, None, '"' | '\'') => {
                self.begin(at);
                (self.quote, self.is_plain) = (Some((c, at)), false);
            }
            (false, None, ' ' | '\t') => self.end(),
            _ => {
                self.begin(at);
                self.add(c);
            }
        }
        Ok(())
    }

    fn begin(&mut self, at: usize) {
        if self.last.is_none() {
            self.last = Some(String::new());
            (self.begun_at, self.is_plain) = (at, true);
        }
    }

    fn add(&mut self, c: char) {
        self.last.get_or_insert_default().push(c);
    }

    fn end(&mut self) {
        let Some(word) = self.last.take() else { return };
        if word == "&" && self.is_plain {
            self.ampersands.push(self.begun_at);
        }
        self.words.push((word, self.begun_at));
    }
}

/// Takes a line apart.
///
/// # Errors
/// [`Bad`], in one line.
pub fn split(line: &str) -> Result<Line, Bad> {
    let mut scan = Scan::of(line)?;
    if let Some((quote, at)) = scan.quote {
        return Err(Bad::Unclosed(quote, at));
    }
    if scan.escape {
        return Err(Bad::Backslash);
    }
    scan.end();
    let last_at = scan.words.last().map_or(0, |(_, at)| *at);
    let is_job = scan.ampersands.last() == Some(&last_at) && scan.ampersands.pop().is_some();
    if let Some(at) = scan.ampersands.first() {
        return Err(Bad::Ampersand(*at));
    }
    let mut words: Vec<String> = scan.words.into_iter().map(|(word, _)| word).collect();
    if is_job {
        words.pop();
        if words.is_empty() {
            return Err(Bad::JobOfNothing);
        }
    }
    Ok(Line { words, is_job })
}
