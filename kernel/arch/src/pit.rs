//! The programmable interval timer's channel 2 as a clock to calibrate others against.
//!
//! Channel 2 has a gate at port 0x61, so no interrupt is needed. The host may take the CPU away at any moment; so
//! nothing here depends on when the counter reaches zero: the counter and the other clock are read together, and the
//! pair that was read fastest counts.

use crate::{cpu, port};

/// Input clock of the timer, in Hz (14.31818 MHz / 12).
pub const PIT_HZ: u64 = 1_193_182;

/// How often a pair of clocks is read to find one that was not interrupted.
const TRIES: usize = 5;

/// Two clocks at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    /// The time-stamp counter.
    pub tsc: u64,
    /// The other clock.
    pub other: u64,
}

/// Reads the time-stamp counter and `other` together: of a few tries the one that took the shortest.
pub fn read_together(mut other: impl FnMut() -> u64) -> Pair {
    let mut best = (u64::MAX, Pair { tsc: 0, other: 0 });
    for _ in 0..TRIES {
        let before = cpu::rdtsc();
        let other = other();
        let width = cpu::rdtsc().saturating_sub(before);
        if width < best.0 {
            best = (width, Pair { tsc: before + width / 2, other });
        }
    }
    best.1
}

/// Starts the counter at its largest value; it counts down and goes on below zero.
pub fn start() {
    // SAFETY: ports 0x42, 0x43 and 0x61 are the timer's channel 2, its command register and its gate. Bit 1 of 0x61
    // (the speaker) is kept off.
    unsafe {
        port::write_u8(0x61, port::read_u8(0x61) & !0b10 | 0b01);
        // Channel 2, low then high byte, mode 0, binary.
        port::write_u8(0x43, 0b1011_0000);
        port::write_u8(0x42, 0xff);
        port::write_u8(0x42, 0xff);
    }
}

/// The counter at this moment.
pub fn count() -> u64 {
    // SAFETY: the command latches channel 2's counter, the two reads take the latched value.
    unsafe {
        port::write_u8(0x43, 0b1000_0000);
        let low = port::read_u8(0x42);
        u64::from(u16::from_le_bytes([low, port::read_u8(0x42)]))
    }
}
