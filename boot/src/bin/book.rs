//! The program behind `run-qemu.sh book`. A program of its own so that nobody who only boots the kernel waits for what
//! makes books.

use boot::{book, exit};
use std::process::ExitCode;

fn main() -> ExitCode {
    exit(book::job(std::env::args_os()), 5)
}
