//! The program behind `run-qemu.sh fs`. A program of its own so that nobody who only boots the kernel waits for the
//! file system to be built for the host, too.

use anyhow::bail;
use boot::{exit, fsimage};
use std::process::ExitCode;

fn main() -> ExitCode {
    // Whatever is wrong is wrong with an image, or with what was asked of it.
    exit(fsimage::job(std::env::args_os()).unwrap_or_else(|| bail!("its first word is `fs`")), 2)
}
