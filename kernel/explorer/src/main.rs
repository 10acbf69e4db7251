//! The program behind `run-qemu.sh explore`.
#![cfg(not(any(loom, shuttle)))]
#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, ValueEnum};
use explorer::fault::Fault;
use explorer::lanes::lanes;
use explorer::run::{Replayed, replay};
use explorer::scenario::{self, Scenario};
use explorer::schedule::Named;
use explorer::search::{Outcome, Search, Strike, search, shorten};
use explorer::strategy::Strategy;

/// The status where nobody reads on: that of a program that SIGPIPE has ended.
const NOBODY_READS: u8 = 141;
/// What is said of no fault.
const NO_BUG: &str = "none";
/// Schedules of each scenario for a measurement.
const MEASURED: u64 = 200_000;
/// The scenario that is measured where none is named: shuttle has a model of the same.
const MEASURED_SCENARIO: &str = "gup-against-zap";

/// Finds the order of events in which a deliberate fault strikes.
#[derive(Debug, Parser)]
#[command(name = "explore")]
struct Args {
    /// The fault; `none` explores without one.
    #[arg(long, default_value = NO_BUG)]
    bug: String,
    /// Most schedules of each scenario.
    #[arg(long, default_value_t = 20_000)]
    seeds: u64,
    /// From which number they are made.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How they are made.
    #[arg(long, default_value = "random")]
    strategy: Way,
    /// pct: orders of so many steps; exhaustive: so many preemptions.
    #[arg(long)]
    depth: Option<u32>,
    /// This scenario alone.
    #[arg(long)]
    scenario: Option<String>,
    /// Run this schedule, as one was printed.
    #[arg(long)]
    replay: Option<String>,
    /// Threads; each has a machine of its own.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Name the faults and the scenarios.
    #[arg(long)]
    list: bool,
    /// Say how many schedules there are in a second.
    #[arg(long)]
    measure: bool,
}

/// How schedules are made.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Way {
    /// A random walk.
    Random,
    /// Priorities that change.
    Pct,
    /// All within a bound.
    Exhaustive,
}

impl Args {
    fn strategy(&self) -> Result<Strategy> {
        Ok(match (self.strategy, self.depth) {
            (Way::Random, None) => Strategy::Random,
            (Way::Random, Some(_)) => bail!("--depth is for pct and exhaustive"),
            (Way::Pct, depth) => {
                let depth = depth.unwrap_or(3);
                ensure!((1..=16).contains(&depth), "expected a --depth of 1 to 16, found {depth}");
                Strategy::Pct { depth }
            }
            (Way::Exhaustive, preemptions) => Strategy::Exhaustive { preemptions: preemptions.unwrap_or(2) },
        })
    }

    fn search(&self, schedules: u64) -> Result<Search> {
        ensure!((1..=64).contains(&self.threads), "expected 1 to 64 --threads, found {}", self.threads);
        Ok(Search { strategy: self.strategy()?, schedules, seed: self.seed, threads: self.threads })
    }
}

/// A line on standard output, in a function that answers an error where it cannot be written.
macro_rules! say {
    ($($line:tt)*) => {
        writeln!(io::stdout(), $($line)*)?
    };
}

fn main() -> ExitCode {
    match job(&Args::parse()) {
        Ok(code) => code,
        Err(error) => {
            if error.downcast_ref().is_some_and(|io: &io::Error| io.kind() == io::ErrorKind::BrokenPipe) {
                return ExitCode::from(NOBODY_READS);
            }
            eprintln!("explore: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn job(args: &Args) -> Result<ExitCode> {
    if args.list {
        return list();
    }
    let named = args.replay.as_deref().map(str::parse::<Named>).transpose()?;
    let bug = named.as_ref().map_or(args.bug.as_str(), |named| named.bug.as_str());
    let fault = fault(bug)?;
    if Fault::environment(fault).any(|(variable, word)| std::env::var(variable).unwrap_or_default() != word) {
        return anew(fault);
    }
    if let Some(named) = named {
        return replayed(&named);
    }
    if args.measure {
        return measure(args);
    }
    explore(args, fault)
}

fn fault(bug: &str) -> Result<Option<Fault>> {
    if bug == NO_BUG {
        return Ok(None);
    }
    let known = Fault::find(bug).map(Some);
    known.with_context(|| format!("expected a deliberate fault or `{NO_BUG}`, found `{bug}` (see --list)"))
}

/// Starts this program with the variables as they have to be.
fn anew(fault: Option<Fault>) -> Result<ExitCode> {
    let program = std::env::current_exe().context("this program does not find itself")?;
    let mut command = Command::new(&program);
    command.args(std::env::args_os().skip(1));
    for (variable, word) in Fault::environment(fault) {
        match word {
            "" => command.env_remove(variable),
            word => command.env(variable, word),
        };
    }
    let status = command.status().with_context(|| format!("{} cannot be started", program.display()))?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(3)))
}

fn list() -> Result<ExitCode> {
    say!("{:<24} faults that it can make strike", "scenario");
    for scenario in scenario::all() {
        let faults: Vec<_> = scenario.faults.iter().map(|fault| fault.name()).collect();
        say!("{:<24} {}\n{:<24}   {}", scenario.name, faults.join(" "), "", scenario.what);
    }
    let never = Fault::all().filter(|fault| scenario::of(*fault).next().is_none());
    say!("no scenario: {}", never.map(|fault| fault.name()).collect::<Vec<_>>().join(" "));
    Ok(ExitCode::SUCCESS)
}

/// The scenarios that were asked for.
fn chosen(args: &Args, fault: Option<Fault>) -> Result<Vec<&'static Scenario>> {
    if let Some(name) = &args.scenario {
        let found = scenario::find(name);
        return Ok(vec![found.with_context(|| format!("expected a scenario, found `{name}` (see --list)"))?]);
    }
    let Some(fault) = fault else { return Ok(scenario::all().collect()) };
    let found: Vec<_> = scenario::of(fault).collect();
    ensure!(!found.is_empty(), "{} strikes in no scenario: see --list", fault.name());
    Ok(found)
}

fn explore(args: &Args, fault: Option<Fault>) -> Result<ExitCode> {
    let asked = args.search(args.seeds)?;
    for scenario in chosen(args, fault)? {
        let outcome = search(scenario, asked);
        let Some(strike) = &outcome.strike else {
            say_nothing_struck(scenario, &outcome)?;
            continue;
        };
        say_strike(scenario, fault, asked.seed, strike)?;
        return Ok(ExitCode::from(1));
    }
    if fault.is_some() {
        say!("no strike");
    }
    Ok(ExitCode::SUCCESS)
}

fn say_nothing_struck(scenario: &Scenario, outcome: &Outcome) -> Result<()> {
    let Outcome { run, marks, is_complete, .. } = outcome;
    let all = if *is_complete { ", all there are" } else { "" };
    let marks = *marks as f64 / (*run).max(1) as f64;
    say!("{}: {run} schedules of {marks:.0} marks{all}, nothing struck", scenario.name);
    Ok(())
}

fn say_strike(scenario: &'static Scenario, fault: Option<Fault>, seed: u64, strike: &Strike) -> Result<()> {
    let name =
        |schedule| Named { bug: fault.map_or(NO_BUG, Fault::name).into(), scenario: scenario.name.into(), schedule };
    if !strike.is_alone {
        say!("{}: struck once, in schedule {} of seed {seed}, and not by itself", scenario.name, strike.nth);
        say!("  {}", strike.what);
        say!("found ({} switches)\n  {}", strike.schedule.0.len(), name(strike.schedule.clone()));
        say!("it strikes behind the schedules before it alone: it is not made shorter");
        return Ok(());
    }
    say!("{}: strikes in schedule {} of seed {seed}", scenario.name, strike.nth);
    say!("  {}", strike.what);
    say!("found ({} switches)\n  {}", strike.schedule.0.len(), name(strike.schedule.clone()));
    let (short, runs) = shorten(scenario, &strike.schedule);
    let again = replay(scenario, short.schedule.clone());
    say!("shortened ({} switches, {runs} runs)\n  {}", short.schedule.0.len(), name(short.schedule.clone()));
    say!("replayed: {}", if again == short { "the same to the byte" } else { "NOT the same" });
    say_lanes(scenario, &again)
}

fn say_lanes(scenario: &Scenario, of: &Replayed) -> Result<()> {
    write!(io::stdout(), "\n{}", lanes(&scenario.shape.names(), &of.trace))?;
    match &of.struck {
        Some(what) => say!("\nstrikes: {what}"),
        None => say!("\nnothing strikes"),
    }
    Ok(())
}

fn replayed(named: &Named) -> Result<ExitCode> {
    let found = scenario::find(&named.scenario);
    let scenario = found.with_context(|| format!("expected a scenario, found `{}` (see --list)", named.scenario))?;
    let of = replay(scenario, named.schedule.clone());
    say!("replayed ({} switches)\n  {}:{}:{}", of.schedule.0.len(), named.bug, named.scenario, of.schedule);
    say_lanes(scenario, &of)?;
    Ok(ExitCode::from(u8::from(of.struck.is_some())))
}

fn measure(args: &Args) -> Result<ExitCode> {
    let name = args.scenario.as_deref().unwrap_or(MEASURED_SCENARIO);
    let scenario = scenario::find(name).with_context(|| format!("expected a scenario, found `{name}` (see --list)"))?;
    let asked = args.search(MEASURED)?;
    ensure!(!matches!(asked.strategy, Strategy::Exhaustive { .. }), "--measure is of random schedules");
    let Outcome { run, marks, seconds, strike, .. } = search(scenario, asked);
    ensure!(strike.is_none(), "something struck: --measure goes with --bug {NO_BUG}");
    let (marks, rate) = (marks as f64 / run as f64, run as f64 / seconds);
    say!("{name}: {run} schedules of {marks:.0} marks on {} threads, {seconds:.2} s, {rate:.0} a second", args.threads);
    Ok(ExitCode::SUCCESS)
}
