//! Bytes that others have written, as a line of the console that nobody takes for one of the kernel's own.

use alloc::format;
use alloc::string::String;

/// What a line of the kernel's own begins with, or one of TAP, which its tests speak: `docs/console.md`.
const OWN: &[&[u8]] = &[
    b"@",
    b"[",
    b"#",
    b"error: ",
    b"unplug> ",
    b"job ",
    b"run-qemu: ",
    b"ok",
    b"not ok",
    b"1..",
    b"KTAP ",
    b"TAP ",
    b"Bail out!",
];

/// Bytes of a medium as a line: what is no text is escaped. So is the first letter of what could be taken for a line of the
/// kernel's own, by a program that reads the console; to such a program blanks in front of it say nothing.
///
/// ```
/// use cli::shown::shown;
///
/// assert_eq!(shown(b"some text\n"), "some text\\n");
/// assert_eq!(shown(b"not ok 1 a"), "\\x6eot ok 1 a");
/// assert_eq!(shown(b"  1..3"), "  \\x31..3");
/// ```
#[must_use]
pub fn shown(bytes: &[u8]) -> String {
    let blanks = bytes.iter().take_while(|&&byte| byte == b' ').count();
    let (blanks, text) = bytes.split_at(blanks);
    match text.split_first() {
        Some((first, rest)) if OWN.iter().any(|own| text.starts_with(own)) => {
            format!("{}\\x{first:02x}{}", blanks.escape_ascii(), rest.escape_ascii())
        }
        _ => format!("{}", bytes.escape_ascii()),
    }
}
