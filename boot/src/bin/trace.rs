//! The program behind `run-qemu.sh trace`. A program of its own so that nobody who only boots the kernel waits for what draws.

use boot::{exit, trace};
use std::process::ExitCode;

fn main() -> ExitCode {
    exit(trace::job(std::env::args_os()), 5)
}
