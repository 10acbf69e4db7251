//! The program behind `run-qemu.sh`.

use boot::cli::{Cli, Command};
use boot::{exit, explore, medium, mutants, peer, run, suite};
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = Cli::from_process();
    let job = cli.job();
    let done = match &job {
        Command::Run | Command::Shell | Command::Bench => match cli.options.linux {
            Some(series) => peer::job(&cli, series),
            None => run::run(&cli),
        },
        Command::Build => run::build_only(&cli.options),
        Command::Test => suite::run(&cli),
        Command::Mutants => mutants::job(),
        Command::Explore(asked) => explore::job(asked, &cli.options),
        Command::Media { file } => return exit(medium::job(file, &mut std::io::stdout().lock()), 2),
    };
    exit(done, 5)
}
