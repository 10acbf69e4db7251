//! The program behind `run-qemu.sh`.

use boot::cli::{Cli, Command};
use boot::{fsimage, mutants, run, suite};
use std::process::ExitCode;

fn main() -> ExitCode {
    // Image files need no machine, and have options of their own.
    if let Some(done) = fsimage::job(std::env::args_os()) {
        // Whatever is wrong is wrong with an image, or with what was asked of it.
        return exit(done, 2);
    }
    let cli = Cli::from_process();
    let done = match cli.job() {
        Command::Run | Command::Bench => run::run(&cli),
        Command::Test => suite::run(&cli),
        Command::Mutants => mutants::job(),
    };
    exit(done, 5)
}

/// The status that `done` says, or `failed` with a line of why.
fn exit(done: anyhow::Result<u8>, failed: u8) -> ExitCode {
    match done {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("run-qemu: {error:#}");
            ExitCode::from(failed)
        }
    }
}
