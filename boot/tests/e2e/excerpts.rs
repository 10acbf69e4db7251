//! What the docs show of a console is what comes: each command that makes an excerpt is run once, and compared.

use crate::support::{command, exit, start_shell};
use boot::cli::{Cli, Command, Mode, Options};
use boot::fences::{self, Fence, Mark};
use boot::machine::Machine;
use boot::outcome::Status;
use boot::paths;
use clap::Parser;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command as Process;
use std::time::Duration;

/// A command, and the blocks that it makes. Of a session those of one page, for what was typed before counts.
type Excerpts = BTreeMap<(Option<PathBuf>, Vec<String>), Vec<Fence>>;

/// The options, if the command is one that starts a shell.
fn shell_of(args: &[String]) -> Option<Options> {
    let cli = Cli::try_parse_from([&["run-qemu.sh".to_string()], args].concat());
    let cli = cli.unwrap_or_else(|error| panic!("{args:?}: {error}"));
    let is_shell = cli.job() == Command::Shell || cli.job() == Command::Run && cli.options.mode == Mode::Shell;
    is_shell.then_some(Options { mode: Mode::Shell, ..cli.options })
}

/// What is to be compared here, by command: either the sessions, or the rest.
fn excerpts(sessions: bool) -> Excerpts {
    let mut excerpts = Excerpts::new();
    for fence in fences::all() {
        let Mark::Run { args, .. } = &fence.mark else { continue };
        if shell_of(args).is_some() == sessions {
            let page = sessions.then(|| fence.page.clone());
            excerpts.entry((page, args.clone())).or_default().push(fence);
        }
    }
    excerpts
}

/// Types what the blocks say, in one session.
fn type_and_compare(args: &[String], blocks: &[Fence]) {
    let machine = Machine::from_options(&shell_of(args).expect("a shell")).expect("a machine");
    let mut guest = start_shell(&Machine { timeout: Some(Duration::from_secs(300)), ..machine });
    for block in blocks {
        for step in fences::steps(&block.lines) {
            let answer = command(&mut guest, step.typed);
            assert!(
                fences::answers(&step.shown, &answer),
                "{}, `{}`, shows\n{}\nand this comes:\n{}",
                block.place(),
                step.typed,
                step.shown.join("\n"),
                answer.join("\n")
            );
        }
    }
    assert_eq!(exit(guest).status, Status::Good, "{args:?}");
}

/// What the program behind the front door prints.
fn printed(args: &[String]) -> Vec<String> {
    let mut program = Process::new(env!("CARGO_BIN_EXE_boot"));
    program.args(args).env_remove("ACCEL").env("TERM", "dumb");
    // Where the program that makes images has been built, so that it is not built again.
    let image = paths::image();
    let target = image.parent().expect("a file has a directory");
    program.env("CARGO_TARGET_DIR", target).current_dir(paths::root());
    let output = program.output().expect("it starts");
    let messages = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {}\n{messages}", output.status);
    let text = String::from_utf8_lossy(&output.stdout).replace(&target.display().to_string(), "target");
    text.lines().map(String::from).collect()
}

// covers: T1 T5
#[test]
fn what_a_session_in_the_docs_shows_is_what_comes() {
    let sessions = excerpts(true);
    assert!(sessions.len() > 3, "{} sessions", sessions.len());
    for ((_, args), blocks) in &sessions {
        type_and_compare(args, blocks);
    }
}

// covers: T5
#[test]
fn what_a_run_in_the_docs_shows_is_what_comes() {
    let runs = excerpts(false);
    assert!(runs.len() > 1, "{} runs", runs.len());
    for ((_, args), blocks) in &runs {
        let lines = printed(args);
        for block in blocks {
            let Mark::Run { numbers, .. } = block.mark else { continue };
            let missing = fences::missing(&block.lines, &lines, numbers);
            assert_eq!(missing, None, "{} shows it, and it does not come:\n{}", block.place(), lines.join("\n"));
        }
    }
}
