//! What was typed, and not read yet: so that a command can look for control-C without eating the lines behind it.

use arrayvec::ArrayVec;
use mm::sync::Mutex;

use crate::console;

/// How often the serial line is looked at, in nanoseconds.
pub const POLL_NS: u64 = 2_000_000;

/// As much is kept here; the rest waits at the other end of the serial line.
const MOST: usize = 1024;
const CONTROL_C: u8 = 0x03;

static TYPED: Mutex<ArrayVec<u8, MOST>> = Mutex::new(ArrayVec::new_const());

fn fetch(typed: &mut ArrayVec<u8, MOST>) {
    while !typed.is_full() {
        let Some(byte) = console::try_read() else { return };
        typed.push(byte);
    }
}

/// The next byte, if any.
pub fn next() -> Option<u8> {
    let mut typed = TYPED.lock();
    fetch(&mut typed);
    (!typed.is_empty()).then(|| typed.remove(0))
}

/// Was control-C typed? What came before it is dropped with it.
pub fn is_interrupted() -> bool {
    let mut typed = TYPED.lock();
    fetch(&mut typed);
    let Some(at) = typed.iter().rposition(|byte| *byte == CONTROL_C) else { return false };
    typed.drain(..=at);
    true
}
