//! The jobs `run` and `bench`: build, boot, show.

use crate::bench::{self, Held};
use crate::cli::{Cli, Command, Mode, Options};
use crate::console::Echo;
use crate::guest::Guest;
use crate::machine::Machine;
use crate::out::outln;
use crate::outcome::Status;
use crate::paths;
use crate::results::Results;
use crate::screen::{self, Screen};
use crate::terminal::{self, Interrupt};
use crate::{build, hotplug, image, medium};
use anyhow::Result;
use std::io::{IsTerminal, stdin};
use std::path::Path;
use std::time::Duration;

/// The status of this program when a file that the command line names is wrong: the same as for a wrong option.
pub(crate) const BAD_COMMAND_LINE: u8 = 2;

/// Does the job and says with which status this program ends.
///
/// # Errors
/// When something cannot be built, or QEMU cannot be started.
pub fn run(cli: &Cli) -> Result<u8> {
    let options = match cli.job() {
        Command::Bench => bench::options(&cli.options, &bench::PMEM_BYTES),
        _ => cli.options.clone(),
    };
    // Before anything is built: a wrong file name should not cost a minute.
    let machine = match Machine::from_options(&options).and_then(|machine| ready(cli, told(cli, machine))) {
        Ok(machine) => machine,
        Err(error) => {
            eprintln!("run-qemu: {error:#}");
            return Ok(BAD_COMMAND_LINE);
        }
    };
    // Before there is something to be cleaned up.
    let interrupt = Interrupt::install()?;
    let held = match hold(cli, &options, &machine) {
        Ok(held) => held,
        Err(error) => {
            eprintln!("run-qemu: {error:#}");
            return Ok(BAD_COMMAND_LINE);
        }
    };
    let results = match Results::reserve(&options) {
        Ok(results) => results,
        Err(error) => {
            eprintln!("run-qemu: {error:#}");
            return Ok(BAD_COMMAND_LINE);
        }
    };
    let kernel = build::kernel(machine.build, cli.options.quiet)?;
    image::make_for(&kernel, machine.build)?;
    if machine.gdb.is_some() {
        say_how_to_debug(&kernel);
    }
    boot(&machine, &options, &interrupt, held, results)
}

/// What the figures of `bench` are held against; `None` for another job.
fn hold(cli: &Cli, options: &Options, machine: &Machine) -> Result<Option<Held>> {
    (cli.job() == Command::Bench).then(|| Held::from_options(options, machine)).transpose()
}

/// The machine that is asked for by `options`, those of the command line with what the job adds to them.
///
/// # Errors
/// One line.
pub(crate) fn machine(cli: &Cli, options: &Options) -> Result<Machine> {
    ready(cli, Machine::from_options(options)?)
}

/// The machine, with what the kernel is told of the command line and the terminal.
fn told(cli: &Cli, mut machine: Machine) -> Machine {
    if cli.options.quiet {
        machine.append.push("quiet=1".into());
    }
    if cli.options.step {
        machine.append.push("step=1".into());
    }
    // Who pulls modules out waits for lines that are for programs.
    let for_people = machine.mode == Mode::Shell && cli.options.pull_every.is_none();
    if let Some(columns) = terminal::columns().filter(|_| for_people) {
        // In front of the user's own, which count where they say otherwise.
        machine.append.insert(0, format!("tty=1 columns={columns}"));
    }
    if let Some(bug) = &cli.options.bug {
        machine.append.push(format!("bug={bug}"));
    }
    machine
}

/// The same machine, ready to be booted. The files for it are made last, so that whatever is refused leaves none behind.
fn ready(cli: &Cli, machine: Machine) -> Result<Machine> {
    machine.check_options()?;
    refuse_foreign(cli)?;
    machine.make_files()?;
    Ok(machine)
}

/// Whatever writes over the whole of a backing file does not write over what somebody may still want. The shell writes
/// nothing by itself, and asks before each command that does.
fn refuse_foreign(cli: &Cli) -> Result<()> {
    let options = &cli.options;
    let writes = cli.job() == Command::Bench || options.mode != Mode::Shell;
    if !writes || options.force {
        return Ok(());
    }
    let files = [&options.pmem_file, &options.dimm_file].into_iter().flatten();
    // One that is not there yet, or is empty, holds nothing.
    let mut old = files.filter(|file| file.metadata().is_ok_and(|meta| meta.len() != 0));
    old.try_for_each(|file| medium::refuse(file))
}

/// The job `build`: prints where the disk image is.
///
/// # Errors
/// When something cannot be built.
pub fn build_only(options: &Options) -> Result<u8> {
    let profile = options.build();
    let kernel = build::kernel(profile, options.quiet)?;
    outln!("{}", image::make_for(&kernel, profile)?.display());
    Ok(0)
}

fn boot(
    machine: &Machine,
    options: &Options,
    interrupt: &Interrupt,
    held: Option<Held>,
    results: Results,
) -> Result<u8> {
    let measures = held.is_some();
    let is_demo = options.mode == Mode::Demo;
    let is_summed_up = is_demo && screen::replaces_the_console(options);
    let is_shown = !is_summed_up && !options.tap;
    let mut guest = Guest::start(machine, if is_shown { Echo::Stdout } else { Echo::Off })?;
    interrupt.ends(&guest);
    let results = results.follow(guest.console());
    let screen = is_demo.then(|| Screen::start(&mut guest, options));
    if let Some(seconds) = options.pull_every {
        hotplug::pull_at_random(guest.hand(), guest.console(), Duration::from_secs(seconds), options.seed);
    }
    let is_shell = machine.mode == Mode::Shell;
    let _restored_on_return = if is_shell { terminal::connect(&mut guest, interrupt)? } else { None };
    let mut outcome = guest.finish()?;
    if interrupt.came() {
        outcome.status = Status::Interrupted;
    } else if is_shell && outcome.status == Status::Good && !stdin().is_terminal() {
        outcome.status = Status::of_script(&outcome.console);
    } else if let Some(held) = held {
        outcome.status = held.judge(&outcome);
    }
    results.end(&outcome, options.quiet)?;
    let all_is_said = screen.is_some_and(|screen| screen.end(&outcome, options.quiet));
    for line in &outcome.hang {
        eprintln!("run-qemu: {line}");
    }
    if !(all_is_said || options.quiet && outcome.status == Status::Good) {
        match &outcome.status {
            // The kernel's own verdict knows of no baseline.
            Status::Good if measures => eprintln!("run-qemu: good"),
            Status::Bad(reason) if measures => eprintln!("run-qemu: bad: {reason}"),
            status => eprintln!("run-qemu: {status}"),
        }
    }
    Ok(outcome.status.exit_code())
}

/// For whoever has asked for gdb: nothing runs before it says so.
pub(crate) fn say_how_to_debug(kernel: &Path) {
    let script = paths::root().join("boot").join("gdb").join("unplug.py");
    eprintln!("run-qemu: the CPUs are stopped. In another terminal:");
    eprintln!("run-qemu:     gdb {} -x {}", kernel.display(), script.display());
}
