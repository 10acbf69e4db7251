//! The job `explore`: builds the schedule explorer (`kernel/explorer`), fully optimised, and hands over to it.

mod guest;

use crate::cli::Options;
use crate::out::outln;
use crate::paths;
use anyhow::{Context, Result, ensure};
use clap::Args;
use std::ffi::OsString;
use std::process::{Command, Stdio};

/// Schedules of shuttle's model for a comparison.
const SHUTTLE_SCHEDULES: &str = "200000";
/// What is measured where no scenario is named: the explorer's `gup-against-zap` is a scenario of the same.
const SHUTTLE_MODEL: &str = "gup_fast_against_zap";

/// The options of the job; what they may be is the explorer's business.
#[derive(Args, Clone, Debug, Default, Eq, PartialEq)]
pub struct Explore {
    /// Most schedules of each scenario.
    #[arg(long)]
    pub seeds: Option<String>,
    /// How they are made.
    #[arg(long)]
    pub strategy: Option<String>,
    /// Steps of an order, or preemptions.
    #[arg(long)]
    pub depth: Option<String>,
    /// This scenario alone.
    #[arg(long)]
    pub scenario: Option<String>,
    /// Run this schedule.
    #[arg(long)]
    pub replay: Option<String>,
    /// Threads.
    #[arg(long)]
    pub threads: Option<String>,
    /// Name the faults and the scenarios.
    #[arg(long)]
    pub list: bool,
    /// Measure.
    #[arg(long)]
    pub measure: bool,
    /// On the real kernel.
    #[arg(long)]
    pub guest: bool,
}

/// A fault of the zoo by its word in its package; any other name as it is.
fn word_of(bug: &str) -> String {
    zoo::Bug::find(bug).map_or(bug, |bug| bug.fault).into()
}

impl Explore {
    /// As the explorer takes them.
    fn words(&self, options: &Options) -> Vec<OsString> {
        let (bug, seed) = (options.bug.as_ref().map(|bug| word_of(bug)), options.seed);
        let values = [
            ("bug", &bug),
            ("seeds", &self.seeds),
            ("strategy", &self.strategy),
            ("depth", &self.depth),
            ("scenario", &self.scenario),
            ("replay", &self.replay),
            ("threads", &self.threads),
            ("seed", &seed.map(|seed| seed.to_string())),
        ];
        let valued = values.into_iter().filter_map(|(name, value)| Some(format!("--{name}={}", value.as_ref()?)));
        let flags = [("list", self.list), ("measure", self.measure)];
        let given = flags.into_iter().filter(|(_, is_given)| *is_given).map(|(name, _)| format!("--{name}"));
        valued.chain(given).map(OsString::from).collect()
    }
}

/// Builds the explorer and runs it; says with which status this program ends: 0 nothing struck, 1 something did, 2 the command
/// line is wrong.
///
/// # Errors
/// It does not build, or cannot be started.
pub fn job(asked: &Explore, options: &Options) -> Result<u8> {
    if asked.guest {
        return guest::job(asked, options);
    }
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "--release", "-pexplorer"]).current_dir(paths::root());
    cargo.env("CARGO_TARGET_DIR", paths::target().join("host")).env_remove("RUSTC_BOOTSTRAP");
    if options.quiet {
        cargo.arg("--quiet");
    }
    ensure!(cargo.status().context("cargo cannot be started")?.success(), "the explorer does not build");
    let program = paths::target().join("host/release/explorer");
    let mut explorer = Command::new(&program);
    let status = explorer.args(asked.words(options)).status();
    let status = status.with_context(|| format!("{} cannot be started", program.display()))?;
    if asked.measure && asked.scenario.is_none() && status.success() {
        compare()?;
    }
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(5))
}

/// The same for shuttle, which says by itself how fast its model was.
fn compare() -> Result<()> {
    let mut cargo = Command::new("cargo");
    cargo.args(["test", "--release", "-pmm", "--test", "loom_gup", SHUTTLE_MODEL, "--", "--exact", "--nocapture"]);
    cargo.current_dir(paths::root()).env_remove("RUSTC_BOOTSTRAP").stderr(Stdio::inherit());
    cargo.env("RUSTFLAGS", "--cfg shuttle").env("CARGO_TARGET_DIR", paths::target().join("shuttle"));
    cargo.env("UNPLUG_SCHEDULES", SHUTTLE_SCHEDULES);
    let output = cargo.output().context("cargo cannot be started")?;
    ensure!(output.status.success(), "shuttle's model {SHUTTLE_MODEL} did not pass");
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find_map(|line| line.find("model ").map(|at| &line[at..]));
    outln!("shuttle, one thread: {}", line.context("shuttle's model did not say how fast it was")?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use clap::Parser;

    #[test]
    fn what_is_asked_for_is_handed_on() {
        let options = |arguments: &[&str]| {
            let cli = Cli::parse_from(["run-qemu.sh", "explore"].iter().chain(arguments));
            cli.options
        };
        let asked = Explore { list: true, ..Explore::default() };
        let words = asked.words(&options(&["--bug", "no_shootdown", "--seed", "7"]));
        assert_eq!(words, ["--bug=no_shootdown", "--seed=7", "--list"]);
        assert_eq!(Explore::default().words(&options(&["--bug", "no-look-again"])), ["--bug=no_entry_recheck"]);
        let of_iommu = Explore::default().words(&options(&["--bug", "iotlb-not-invalidated"]));
        assert_eq!(of_iommu, ["--bug=no_invalidation"], "whichever package's fault it is");
        assert!(Explore::default().words(&options(&[])).is_empty());
    }
}
