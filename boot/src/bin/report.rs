//! The program behind `run-qemu.sh report`. A program of its own so that nobody who only boots the kernel waits for what
//! draws plots.

use boot::{exit, report};
use std::process::ExitCode;

fn main() -> ExitCode {
    exit(report::job(std::env::args_os()), 5)
}
