//! Completion entries, and the status in them (1.4 §4.6).

use core::fmt;

/// Words of a completion entry.
pub const WORDS: usize = 4;
/// Bytes of a completion entry.
pub const ENTRY_BYTES: usize = 4 * WORDS;
/// The word that says whether an entry is new; the device writes it last.
pub const LAST_WORD: usize = 3;

/// A completion entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// What the command answers, where it answers something.
    pub result: u32,
    /// How far the device has taken entries from the submission queue.
    pub sq_head: u16,
    /// Which submission queue the command was from.
    pub sq_id: u16,
    /// Which command.
    pub command: u16,
    /// Changes with each round of the device through the queue.
    pub phase: bool,
    /// How it went.
    pub status: Status,
}

impl Completion {
    /// From its little-endian words.
    #[must_use]
    pub const fn decode(words: [u32; WORDS]) -> Self {
        let [result, _, queue, last] = words;
        Self {
            result,
            sq_head: queue as u16,
            sq_id: (queue >> 16) as u16,
            command: last as u16,
            phase: last >> 16 & 1 != 0,
            status: Status((last >> 17) as u16),
        }
    }

    /// Back to words.
    #[must_use]
    pub const fn encode(self) -> [u32; WORDS] {
        let last = (self.status.0 as u32) << 17 | (self.phase as u32) << 16 | self.command as u32;
        [self.result, 0, (self.sq_id as u32) << 16 | self.sq_head as u32, last]
    }
}

/// The phase that the last word of an entry has.
#[must_use]
pub const fn phase_of(last_word: u32) -> bool {
    last_word >> 16 & 1 != 0
}

/// The status field, 15 bits: the code in bits 0 to 7, its kind in 8 to 10, *do not retry* in 14.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(pub u16);

impl Status {
    /// It is done.
    pub const SUCCESS: Self = Self(0);

    /// Did it succeed?
    #[must_use]
    pub const fn is_success(self) -> bool {
        self.0 & 0x7ff == 0
    }
    /// The kind of code: 0 is generic, 1 the command's own, 2 the medium's.
    #[must_use]
    pub const fn kind(self) -> u16 {
        self.0 >> 8 & 7
    }
    /// The code.
    #[must_use]
    pub const fn code(self) -> u16 {
        self.0 & 0xff
    }
    /// The same again would fail again.
    #[must_use]
    pub const fn is_final(self) -> bool {
        self.0 >> 14 & 1 != 0
    }

    /// In words, where the specification has some (1.4 figures 126 to 131).
    #[must_use]
    pub const fn words(self) -> Option<&'static str> {
        Some(match (self.kind(), self.code()) {
            (0, 0x00) => "success",
            (0, 0x01) => "invalid command opcode",
            (0, 0x02) => "invalid field in the command",
            (0, 0x03) => "command id conflict",
            (0, 0x04) => "data transfer error",
            (0, 0x05) => "aborted by a loss of power",
            (0, 0x06) => "internal error",
            (0, 0x07) => "abort requested",
            (0, 0x08) => "aborted by the deletion of its queue",
            (0, 0x0b) => "invalid namespace or format",
            (0, 0x0c) => "command sequence error",
            (0, 0x13) => "invalid offset in a PRP",
            (0, 0x20) => "namespace is write protected",
            (0, 0x80) => "block out of range",
            (0, 0x81) => "capacity exceeded",
            (0, 0x82) => "namespace not ready",
            (0, 0x83) => "reservation conflict",
            (0, 0x84) => "format in progress",
            (1, 0x00) => "invalid completion queue",
            (1, 0x01) => "invalid queue number",
            (1, 0x02) => "invalid queue size",
            (1, 0x08) => "invalid interrupt vector",
            (1, 0x80) => "conflicting attributes",
            (1, 0x82) => "write to a read-only range",
            (2, 0x80) => "write fault",
            (2, 0x81) => "unrecovered read error",
            (2, 0x82) => "guard check error",
            (2, 0x83) => "application tag check error",
            (2, 0x84) => "reference tag check error",
            (2, 0x85) => "compare failure",
            (2, 0x86) => "access denied",
            (2, 0x87) => "deallocated or unwritten block",
            _ => return None,
        })
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, code) = (self.kind(), self.code());
        match self.words() {
            Some(words) => write!(f, "{words} (status {kind}.{code:#04x})"),
            None => write!(f, "status {kind}.{code:#04x}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    extern crate std;
    use std::string::ToString;

    #[test]
    fn an_entry_as_the_specification_has_it() {
        let words = [7, 0, 0x0001_0005, 0xc301_0009];
        let found = Completion::decode(words);
        let status = Status(0x6180);
        assert_eq!(found, Completion { result: 7, sq_head: 5, sq_id: 1, command: 9, phase: true, status });
        assert!(phase_of(words[LAST_WORD]) && !phase_of(0xfffe_ffff));
        assert_eq!(found.encode(), words);
        assert!((status.kind(), status.code(), status.is_final()) == (1, 0x80, true) && !status.is_success());
    }

    #[test]
    fn a_status_has_words_or_its_number() {
        assert_eq!(Status(0x0080).to_string(), "block out of range (status 0.0x80)");
        assert_eq!(Status(0x0281).to_string(), "unrecovered read error (status 2.0x81)");
        assert_eq!(Status(0x0677).to_string(), "status 6.0x77");
        assert!(Status(0x4000).is_success() && Status::SUCCESS.is_success());
    }
}
