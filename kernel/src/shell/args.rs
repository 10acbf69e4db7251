//! What a word of a command stands for.

use alloc::format;
use alloc::string::String;

use crate::pmem::devices;

/// The number of the slot of a device, by that number or by the device's name.
pub fn device(word: &str) -> Result<usize, String> {
    let numbered = || number(word).ok().and_then(|number| usize::try_from(number).ok());
    let found = devices::slot_named(word).or_else(numbered);
    found.ok_or_else(|| format!("\"{word}\" is no number of a device, and no name of one"))
}

/// A number, in decimal or with `0x`.
pub fn number(word: &str) -> Result<u64, String> {
    cli::number::number(word).ok_or_else(|| format!("\"{word}\" is not a number"))
}
