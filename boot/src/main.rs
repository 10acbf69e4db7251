//! The program behind `run-qemu.sh`.

use boot::cli::{Cli, Command};
use boot::{exit, mutants, run, suite};
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = Cli::from_process();
    let done = match cli.job() {
        Command::Run | Command::Bench => run::run(&cli),
        Command::Test => suite::run(&cli),
        Command::Mutants => mutants::job(),
    };
    exit(done, 5)
}
