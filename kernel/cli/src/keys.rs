//! Bytes of a terminal made into keys.
//!
//! Escape sequences are those of ECMA-48, chapter 5.4 (`ESC [`, parameters, a final byte) and of the VT100's keypad
//! (`ESC O`, a byte). One that is cut ends at the first byte that cannot be its own, which then counts by itself: an
//! Enter behind half a sequence is an Enter.

use core::mem::take;

/// A key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// A character; the replacement character for bytes that are no UTF-8.
    Char(char),
    /// The line is complete.
    Enter,
    /// Complete the word.
    Tab,
    /// Drop the line.
    Interrupt,
    /// Leave, on an empty line.
    End,
    /// Paint the line anew, on an empty screen.
    Refresh,
    /// Delete the character under the cursor.
    Delete,
    /// What the editor knows by its control character: to move the cursor, to delete, to recall.
    Control(u8),
    /// The terminal says that it has so many columns (xterm: `ESC [ 8 ; rows ; columns t`).
    Columns(usize),
    /// None that this console knows.
    Unknown,
}

/// Longest sequence of parameters; whatever is longer is none of a keyboard's.
const MAX_PARAMETERS: usize = 24;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Ground,
    Escape,
    /// `ESC O`.
    Keypad,
    /// `ESC [`.
    Sequence,
    /// In a character of so many bytes.
    Utf8(usize),
}

/// Makes keys of bytes.
#[derive(Clone, Debug, Default)]
pub struct Keys {
    state: State,
    bytes: [u8; MAX_PARAMETERS],
    len: usize,
}

impl Keys {
    /// Takes a byte. Up to two keys: what it has cut, and what it is itself.
    pub fn push(&mut self, byte: u8) -> [Option<Key>; 2] {
        match take(&mut self.state) {
            State::Ground => [None, self.ground(byte)],
            State::Escape => match byte {
                b'[' => self.enter(State::Sequence),
                b'O' => self.enter(State::Keypad),
                b' '..=b'~' => [Some(Key::Unknown), None],
                _ => [Some(Key::Unknown), self.ground(byte)],
            },
            State::Keypad => match byte {
                b' '..=b'~' => [Some(self.named(byte)), None],
                _ => [Some(Key::Unknown), self.ground(byte)],
            },
            State::Sequence => match byte {
                b' '..=b'?' if self.len < MAX_PARAMETERS => {
                    self.keep(byte);
                    self.state = State::Sequence;
                    [None, None]
                }
                b'@'..=b'~' => [Some(self.named(byte)), None],
                _ => [Some(Key::Unknown), self.ground(byte)],
            },
            State::Utf8(nr) => self.character(nr, byte),
        }
    }

    fn enter(&mut self, state: State) -> [Option<Key>; 2] {
        (self.state, self.len) = (state, 0);
        [None, None]
    }

    fn keep(&mut self, byte: u8) {
        self.bytes[self.len] = byte;
        self.len += 1;
    }

    fn ground(&mut self, byte: u8) -> Option<Key> {
        Some(match byte {
            b'\r' | b'\n' => Key::Enter,
            b'\t' => Key::Tab,
            0x03 => Key::Interrupt,
            0x04 => Key::End,
            0x0c => Key::Refresh,
            0x08 | 0x7f => Key::Control(0x08),
            // Start, back, end, forward, kill, next, previous, transpose, kill the line, kill the word.
            0x01 | 0x02 | 0x05 | 0x06 | 0x0b | 0x0e | 0x10 | 0x14 | 0x15 | 0x17 => Key::Control(byte),
            0x1b => {
                self.enter(State::Escape);
                return None;
            }
            b' '..=b'~' => Key::Char(char::from(byte)),
            0xc0..=0xf7 => {
                self.enter(State::Utf8(1 + usize::from(byte >= 0xe0) + usize::from(byte >= 0xf0) + 1));
                self.keep(byte);
                return None;
            }
            0x80.. => Key::Char(char::REPLACEMENT_CHARACTER),
            _ => Key::Unknown,
        })
    }

    /// The next byte of a character of `nr` bytes.
    fn character(&mut self, nr: usize, byte: u8) -> [Option<Key>; 2] {
        const NONE: Option<Key> = Some(Key::Char(char::REPLACEMENT_CHARACTER));
        if !matches!(byte, 0x80..=0xbf) {
            return [NONE, self.ground(byte)];
        }
        self.keep(byte);
        if self.len < nr {
            self.state = State::Utf8(nr);
            return [None, None];
        }
        let text = core::str::from_utf8(&self.bytes[..self.len]).unwrap_or_default();
        [text.chars().next().map_or(NONE, |c| Some(Key::Char(c))), None]
    }

    /// The key whose sequence ends in `last`.
    fn named(&self, last: u8) -> Key {
        let mut parameters = [0usize; 3];
        for (at, text) in self.bytes[..self.len].split(|byte| *byte == b';').enumerate() {
            let Some(parameter) = parameters.get_mut(at) else { return Key::Unknown };
            *parameter = core::str::from_utf8(text).unwrap_or_default().parse().unwrap_or(0);
        }
        match (last, parameters) {
            (b'A', _) => Key::Control(0x10),
            (b'B', _) => Key::Control(0x0e),
            (b'C', _) => Key::Control(0x06),
            (b'D', _) => Key::Control(0x02),
            (b'H', _) | (b'~', [1 | 7, ..]) => Key::Control(0x01),
            (b'F', _) | (b'~', [4 | 8, ..]) => Key::Control(0x05),
            (b'~', [3, ..]) => Key::Delete,
            (b't', [8, _, columns @ (1..)]) => Key::Columns(columns),
            _ => Key::Unknown,
        }
    }
}
