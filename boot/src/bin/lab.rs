//! The program behind `run-qemu.sh lab`. A program of its own so that nobody who only boots the kernel waits for the emulated
//! machine to be built.

use boot::{exit, lab};
use std::process::ExitCode;

fn main() -> ExitCode {
    exit(lab::job(std::env::args_os()), 5)
}
