//! `bench --linux`: Debian's kernel is measured in the same emulator, and stands beside ours in one table.
//!
//! Its packages are unpacked, not installed ([`packages`]); of the kernel, three programs' worth of sources in
//! `boot/peer` and busybox a guest is made (`guest`), which measures and prints (`machine`). What of it belongs to
//! which figure of ours is one list (`rows`). Everything is kept in `target/peer`: a file or directory there has its
//! name only when it is whole.

mod guest;
mod machine;
pub mod packages;
mod results;
pub(crate) mod rows;
mod table;

use crate::bench::{self, was_measured};
use crate::cli::{Cli, Options};
use crate::console::Echo;
use crate::machine::Machine;
use crate::out::outln;
use crate::outcome::{Outcome, Status};
use crate::paths::{self, Profile};
use crate::size::GIB;
use crate::terminal::Interrupt;
use crate::whole::UNFINISHED;
use crate::{build, image, run};
use anyhow::{Context, Result, bail};
use results::Measured;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use table::{Comparison, Ours};

/// A series of Debian's kernels.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Series {
    /// The one of Debian 12.
    V6_1,
    /// The newer one that Debian 12 offers beside it.
    V6_12,
}

impl Series {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V6_1, Self::V6_12];

    /// As Debian and the command line name it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
        }
    }

    /// Where what was measured of it is kept.
    #[must_use]
    pub fn results(self) -> PathBuf {
        place().join(format!("linux-{}.json", self.word()))
    }

    /// The package that depends on the newest kernel of the series.
    fn package(self) -> &'static str {
        match self {
            Self::V6_1 => "linux-image-amd64",
            Self::V6_12 => "linux-image-6.12-amd64",
        }
    }
}

/// Where everything is kept.
fn place() -> PathBuf {
    paths::target().join("peer")
}

/// The value of `--linux`.
pub(crate) fn parse(word: &str) -> Result<Series, String> {
    let known = Series::ALL.into_iter().find(|series| series.word() == word);
    known.ok_or_else(|| "the kernels that can be measured are 6.1 and 6.12".into())
}

/// What of our CPU is not as QEMU's `max` has it, for both kernels: four levels of page tables; and no fast `rep stosb`,
/// because a counted instruction is then charged for each byte that it stores, and Linux would pay that.
pub(crate) const CPU: [&str; 2] = ["la57=off", "erms=off"];
/// The sizes that are measured on both sides.
const SIZES_GIB: [u64; 3] = [1, 4, 16];
/// And that of a large device.
const LARGE_GIB: u64 = 6 << 10;

/// Does the job and says with which status this program ends.
///
/// # Errors
/// One line: what is missing, or what went wrong.
pub fn job(cli: &Cli, chosen: Option<Series>) -> Result<u8> {
    let options = ours(&cli.options);
    let machine = match run::machine(cli, &options) {
        // The same devices on both sides: what the peer's drivers would do with them is not measured.
        Ok(machine) => {
            Machine { cpu: CPU.map(String::from).into(), iommu: false, edu: false, nvme: Some(0), ..machine }
        }
        Err(error) => {
            eprintln!("run-qemu: {error:#}");
            return Ok(run::BAD_COMMAND_LINE);
        }
    };
    let say = |line: &str| {
        if !options.quiet {
            eprintln!("run-qemu: {line}");
        }
    };
    packages::check_tools()?;
    let place = place();
    let _alone = alone(&place)?;
    let chosen = chosen.map_or(Series::ALL.into(), |series| vec![series]);
    let apt = packages::Apt::new(&place)?;
    let mut peers = Vec::new();
    for series in chosen {
        peers.push((series, linux(series, &apt, &place, &say)?));
    }
    let profile = if options.release { Profile::Release } else { Profile::Dev };
    let kernel = build::kernel(profile, options.quiet)?;
    image::make(&kernel)?;
    say("our own bench runs");
    if machine.gdb.is_some() {
        run::say_how_to_debug(&kernel);
    }
    let outcome = bench(&machine)?;
    if !was_measured(&outcome.status) {
        outcome.console.iter().rev().take(20).rev().for_each(|line| eprintln!("{line}"));
        bail!("our own bench: {}", outcome.status);
    }
    let ours = Ours::of(&outcome.console, profile).context("our own bench")?;
    let comparison = Comparison { ours, peers };
    outln!("{}", comparison.markdown().trim_end());
    let kept = comparison.keep(&place)?;
    say(&format!("the same as JSON and CSV: {}, and .csv", kept.display()));
    // Goals of ours that are missed are what `bench` itself fails for.
    Ok(Status::Good.exit_code())
}

/// Our bench as it is compared: deterministic, and with all sizes unless the user names some.
fn ours(asked: &Options) -> Options {
    let sizes: Vec<_> = SIZES_GIB.iter().chain([&LARGE_GIB]).map(|gib| gib * GIB).collect();
    // Each device costs what one costs otherwise.
    bench::options(asked, &sizes)
}

fn bench(machine: &Machine) -> Result<Outcome> {
    let interrupt = Interrupt::install()?;
    let guest = crate::guest::Guest::start(machine, Echo::Off)?;
    interrupt.ends(&guest);
    let mut outcome = guest.finish()?;
    if interrupt.came() {
        outcome.status = Status::Interrupted;
    }
    Ok(outcome)
}

/// One such job at a time; what one that was killed left unfinished goes away.
fn alone(place: &Path) -> Result<File> {
    fs::create_dir_all(place).with_context(|| place.display().to_string())?;
    let lock = File::create(place.join("lock")).with_context(|| place.display().to_string())?;
    if lock.try_lock().is_err() {
        bail!("{} is in use by another bench --linux", place.display());
    }
    for entry in fs::read_dir(place)?.flatten() {
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            let path = entry.path();
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.with_context(|| path.display().to_string())?;
        }
    }
    Ok(lock)
}

/// A directory for what is not whole yet.
fn unfinished(place: &Path) -> Result<tempfile::TempDir> {
    tempfile::Builder::new().prefix(UNFINISHED).tempdir_in(place).with_context(|| place.display().to_string())
}

/// The figures of a kernel: kept ones, where they are of this very package and measured in this very way.
fn linux(series: Series, apt: &packages::Apt, place: &Path, say: &dyn Fn(&str)) -> Result<Measured> {
    let kernel = packages::Kernel::of(series, apt)?;
    let file = series.results();
    let recipe = machine::recipe(&kernel)?;
    if let Some(kept) = Measured::kept(&file, &recipe) {
        say(&format!("Linux {}: measured before ({})", kept.kernel, file.display()));
        return Ok(kept);
    }
    let guest = guest::make(&kernel, apt, place, say)?;
    say(&format!("Linux {} is measured, which takes about six minutes", kernel.release));
    let mut lines = Vec::new();
    for boot in machine::Boot::ALL {
        lines.extend(machine::run(&guest, boot, unfinished(place)?.path())?);
    }
    let measured = Measured::of(&lines, &kernel, recipe)?;
    measured.keep(&file)?;
    Ok(measured)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_is_one_of_two() {
        assert_eq!(parse("6.1"), Ok(Series::V6_1));
        assert_eq!(parse("6.12"), Ok(Series::V6_12));
        for other in ["5.10", "6", "6.1.0-56-amd64", ""] {
            assert!(parse(other).is_err_and(|line| line.contains("6.1 and 6.12")), "{other}");
        }
    }

    #[test]
    fn two_jobs_at_once_are_one_and_a_line() {
        let place = tempfile::tempdir().expect("a temporary directory").path().join("peer");
        let left = place.join("unfinished-x/y");
        fs::create_dir_all(&left).expect("made");
        let held = alone(&place).expect("it is free");
        assert!(!left.exists());
        assert!(alone(&place).is_err_and(|error| error.to_string().contains("in use by another")));
        drop(held);
        assert!(alone(&place).is_ok());
    }
}
