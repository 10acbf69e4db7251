//! What a word of a command stands for, and how bytes are shown.

use alloc::format;
use alloc::string::String;

use crate::pmem::devices;

/// The number of the slot of a device, by that number or by the device's name.
pub fn device(word: &str) -> Result<usize, String> {
    let numbered = || number(word).ok().and_then(|number| usize::try_from(number).ok());
    let found = devices::slot_named(word).or_else(numbered);
    found.ok_or_else(|| format!("\"{word}\" is no number of a device, and no name of one"))
}

/// Bytes of a medium as a line: what is no text is escaped. So is the first letter of what could be taken for a line of the
/// kernel's own, by a program that reads the console.
pub fn shown(bytes: &[u8]) -> String {
    const OWN: [&[u8]; 9] = [b"@", b"[", b"#", b"error: ", b"unplug> ", b"job ", b"ok", b"not ok", b"run-qemu: "];
    match bytes.split_first() {
        Some((first, rest)) if OWN.iter().any(|own| bytes.starts_with(own)) => {
            format!("\\x{first:02x}{}", rest.escape_ascii())
        }
        _ => format!("{}", bytes.escape_ascii()),
    }
}

/// A number, in decimal or with `0x`.
pub fn number(word: &str) -> Result<u64, String> {
    cli::number::number(word).ok_or_else(|| format!("\"{word}\" is not a number"))
}
