//! A line from a program: an echo, and what a teletype had. A test harness reads the echo, so nothing else is sent.

use alloc::string::String;
use alloc::vec::Vec;

use crate::{MAX_LINE, Typed};

/// A line on its way.
#[derive(Clone, Debug, Default)]
pub struct Plain {
    bytes: Vec<u8>,
    too_long: bool,
}

impl Plain {
    /// Takes a byte; what is to be sent back goes to `echo`. Answers how the line has ended, if it has.
    ///
    /// Backspace deletes, control-C and control-U drop the line, control-D on an empty one leaves. What no line can
    /// have is kept, so that the line is refused.
    pub fn push(&mut self, byte: u8, echo: &mut dyn FnMut(&str)) -> Option<Typed> {
        match byte {
            b'\r' | b'\n' => {
                echo("\n");
                let line = core::mem::take(self);
                Some(match line.too_long {
                    true => Typed::TooLong,
                    false => Typed::Line(String::from_utf8_lossy(&line.bytes).into_owned()),
                })
            }
            0x08 | 0x7f => {
                while let Some(byte) = self.bytes.pop() {
                    if !matches!(byte, 0x80..=0xbf) {
                        echo("\u{8} \u{8}");
                        break;
                    }
                }
                None
            }
            0x04 if self.bytes.is_empty() && !self.too_long => {
                echo("\n");
                Some(Typed::Left)
            }
            0x03 | 0x15 => {
                *self = Self::default();
                echo("\n");
                Some(Typed::Dropped)
            }
            _ if self.bytes.len() >= MAX_LINE => {
                self.too_long = true;
                None
            }
            _ => {
                self.bytes.push(byte);
                match byte {
                    b' '..=b'~' => echo(char::from(byte).encode_utf8(&mut [0; 4])),
                    b'\t' => echo(" "),
                    // One for each character.
                    0x80..=0xbf => {}
                    _ => echo("?"),
                }
                None
            }
        }
    }
}
