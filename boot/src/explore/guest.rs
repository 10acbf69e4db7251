//! `explore --guest`: the search on the real kernel, which is built with its faults and does it by itself.

use super::Explore;
use crate::backing::Nvdimm;
use crate::cli::{Mode, Options};
use crate::console::Echo;
use crate::guest::Guest;
use crate::machine::Machine;
use crate::out::outln;
use crate::outcome::{Outcome, Status};
use crate::paths::Profile;
use crate::size::MIB;
use crate::terminal::Interrupt;
use crate::{build, image};
use anyhow::Result;
use std::thread;
use std::time::Duration;
use zoo::ShownBy;

/// What the lines that say how the search goes begin with.
const WORDS: &str = "zoo: ";
/// The most that a search may take.
const PATIENCE: Duration = Duration::from_secs(1200);
/// The job's status where it was asked for what the guest does not do.
const BAD_COMMAND_LINE: u8 = 2;
/// The verdict's reason where the kernel has not searched, because what it was told makes no sense.
const NOT_SEARCHED: &str = "not-searched";
/// Where it has, and something went wrong that is no strike.
const SEARCH_FAILED: &str = "search-failed";
/// Where something has struck: the same as for the explorer of the host.
const STRUCK: u8 = 1;

/// Boots and searches; says with which status this program ends: 0 nothing struck, 1 something did, 2 the command line is wrong,
/// else as for any guest.
///
/// # Errors
/// When the kernel does not build, or QEMU cannot be started.
pub(super) fn job(asked: &Explore, options: &Options) -> Result<u8> {
    let machine = match machine(asked, options) {
        Ok(machine) => machine,
        Err(line) => {
            eprintln!("run-qemu: {line}");
            return Ok(BAD_COMMAND_LINE);
        }
    };
    let kernel = build::kernel(Profile::Zoo, options.quiet)?;
    image::make_for(&kernel, Profile::Zoo)?;
    let interrupt = Interrupt::install()?;
    let guest = Guest::start(&machine, Echo::Off)?;
    interrupt.ends(&guest);
    let console = guest.console();
    let telling = thread::spawn(move || {
        let mut from = 0;
        while let Ok(at) = console.wait_line(from, None, |line| line.starts_with(WORDS)) {
            outln!("{}", console.lines()[at].trim_start_matches(WORDS));
            from = at + 1;
        }
    });
    let outcome = guest.finish()?;
    // It ends with the console, which has ended.
    let _ = telling.join();
    for line in &outcome.hang {
        eprintln!("run-qemu: {line}");
    }
    if interrupt.came() {
        return Ok(Status::Interrupted.exit_code());
    }
    let code = code(&outcome);
    let is_told = match &outcome.status {
        Status::Good => true,
        Status::Bad(reason) => reason != SEARCH_FAILED,
        _ => false,
    };
    if !is_told {
        eprintln!("run-qemu: {}", outcome.status);
    }
    Ok(code)
}

/// The job's status: whether something has struck, whatever the kernel was to expect.
fn code(outcome: &Outcome) -> u8 {
    let struck = outcome.console.iter().any(|line| line.starts_with("@zoo_strike "));
    match &outcome.status {
        Status::Good | Status::Bad(_) if struck => STRUCK,
        Status::Bad(reason) if reason == NOT_SEARCHED => BAD_COMMAND_LINE,
        // It does not follow that nothing strikes.
        status @ Status::Bad(reason) if reason == SEARCH_FAILED => status.exit_code(),
        Status::Good | Status::Bad(_) => 0,
        status => status.exit_code(),
    }
}

/// The machine: always the same, and in deterministic mode, in which a CPU that waits for its turn lets the others run.
fn machine(asked: &Explore, options: &Options) -> Result<Machine, String> {
    for (option, given) in [
        ("--threads", asked.threads.is_some()),
        ("--depth", asked.depth.is_some()),
        ("--list", asked.list),
        ("--measure", asked.measure),
    ] {
        if given {
            return Err(format!("{option} is for the explorer on the host: it goes without --guest"));
        }
    }
    let mut words = vec!["mode=zoo".into()];
    if let Some(name) = options.bug.as_deref().filter(|bug| *bug != "none") {
        let names = || zoo::BUGS.iter().map(|bug| bug.name).collect::<Vec<_>>().join(", ");
        let bug = zoo::Bug::find(name)
            .ok_or_else(|| format!("there is no bug \"{name}\" in the guest (expected one of {})", names()))?;
        if let ShownBy::Test(test) = bug.shown_by {
            let name = bug.name;
            return Err(format!(
                "any order of events shows {name}: ./run-qemu.sh run --mode test --bug {name} --append \"tests={test}\""
            ));
        }
        words.push(format!("bug={}", bug.name));
    } else if asked.scenario.is_none() {
        return Err("without a --bug a --scenario is needed (docs/zoo names them)".into());
    }
    let given = [
        ("scenario", &asked.scenario),
        ("schedules", &asked.seeds),
        ("strategy", &asked.strategy),
        ("schedule", &asked.replay),
        ("seed", &options.seed.map(|seed| seed.to_string())),
    ];
    for (key, value) in given {
        let Some(value) = value else { continue };
        if value.is_empty() || value.contains(char::is_whitespace) {
            return Err(format!("\"{value}\" is no {key}"));
        }
        words.push(format!("{key}={value}"));
    }
    let machine = Machine {
        pmem: vec![Nvdimm::temporary(64 * MIB)],
        iommu: false,
        edu: false,
        deterministic: true,
        mode: Mode::Test,
        append: words,
        build: Profile::Zoo,
        timeout: Some(PATIENCE),
        ..Machine::default()
    };
    machine.check_options().map_err(|error| error.to_string())?;
    Ok(machine)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use clap::Parser;

    fn asked(arguments: &[&str]) -> Result<Machine, String> {
        let cli = Cli::parse_from(["run-qemu.sh", "explore", "--guest"].iter().chain(arguments));
        let Some(crate::cli::Command::Explore(asked)) = &cli.command else { panic!("another job") };
        machine(asked, &cli.options)
    }

    // covers: T4
    #[test]
    fn what_is_asked_for_becomes_boot_options() {
        let machine = asked(&["--bug", "no-look-again", "--seeds", "7", "--seed", "3"]).expect("it is right");
        assert_eq!(machine.append, ["mode=zoo", "bug=no-look-again", "schedules=7", "seed=3"]);
        assert_eq!(asked(&["--scenario", "two-pins"]).expect("it is right").append, ["mode=zoo", "scenario=two-pins"]);
    }

    // covers: T4
    #[test]
    fn a_search_that_finds_nothing_is_no_failure_and_one_that_was_not_made_is() {
        let of = |status, line: &str| code(&Outcome { status, console: vec![line.into()], hang: Vec::new() });
        assert_eq!(of(Status::Good, "@zoo_strike scenario=two-pins seed=1 schedule=none"), 1);
        assert_eq!(
            (of(Status::Good, "@zoo found=0"), of(Status::Bad("no reason given".into()), "@zoo found=0")),
            (0, 0)
        );
        assert_eq!(of(Status::Bad("not-searched".into()), "zoo: there is no player 9"), 2);
        // CPUs that wait for each other are a strike, whatever the verdict is; and a search that broke off has not found nothing.
        let stuck = "@zoo_strike scenario=two-pins seed=1 schedule=7:1";
        assert_eq!(of(Status::Bad("no reason given".into()), stuck), 1);
        assert_eq!(of(Status::Bad("search-failed".into()), "zoo: a player ended by SIGSEGV"), 1);
        assert_eq!(of(Status::Panic("page 7 put twice".into()), "@panic cpu=0"), 3);
    }

    #[test]
    fn what_the_guest_does_not_do_is_refused_in_a_line() {
        for (arguments, what) in [
            (
                &["--bug", "no_shootdown"][..],
                "there is no bug \"no_shootdown\" in the guest (expected one of no-look-again,",
            ),
            (&["--bug", "none"], "a --scenario is needed"),
            (&["--bug", "truncate-before-unmap"], "--append \"tests=fs.mmap.truncate_unmaps\""),
            (&["--bug", "no-look-again", "--threads", "2"], "--threads is for the explorer on the host"),
            (&["--bug", "no-look-again", "--replay", "1:0 quiet=1"], "is no schedule"),
        ] {
            let line = asked(arguments).expect_err("it is wrong");
            assert!(line.contains(what), "{line}");
        }
    }
}
