//! The program, and what it prints.

use std::process::Command;

/// What the program prints, on standard error behind the rest, and its status.
pub fn explorer(args: &[&str]) -> (String, i32) {
    let output = Command::new(env!("CARGO_BIN_EXE_explorer")).args(args).output().expect("the program starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    (format!("{}{errors}", String::from_utf8_lossy(&output.stdout)), output.status.code().unwrap_or(-1))
}

/// Without the numbers of table pages behind these words: the machine, which may be kept from one run to the next, takes
/// whichever it has.
pub fn without_tables_behind(words: &str, text: &str) -> String {
    let before_number = format!("{words} 0x");
    let mut parts = text.split(&before_number);
    let mut left = parts.next().unwrap_or_default().to_string();
    for part in parts {
        left.push_str(words);
        left.push_str(" …");
        left.push_str(part.trim_start_matches(|digit: char| digit.is_ascii_hexdigit()));
    }
    left
}
