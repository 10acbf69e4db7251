//! The job `test`: every check and test of the project, one stage after the other.
//!
//! Five directories for what is built keep the stages from undoing each other's work, because cargo builds everything
//! again when the flags change: the front door's own (the kernel and this program, with unstable features), `host` (the
//! tests of the portable packages, as any stable toolchain would build them), `loom`, `shuttle` and `miri`.

use crate::cli::Cli;
use crate::paths::{self, Profile};
use crate::tally::{Counts, Kind, Tally};
use crate::{build, image, miri, mutants};
use anyhow::Result;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// The packages that are tested on the host without a guest, beside `boot` itself.
const PORTABLE: [&str; 10] =
    ["-pmm", "-pdax", "-pnvdimm", "-pfs", "-pmedia", "-pnvme", "-psched", "-pslabs", "-piommu", "-pcli"];
/// The packages that have tests for Miri.
const MIRI: [&str; 3] = ["-pmm", "-pdax", "-pslabs"];

/// Runs all of it and says with which status this program ends.
///
/// # Errors
/// Never by itself: a stage that cannot be run counts as failed.
pub fn run(cli: &Cli) -> Result<u8> {
    let options = &cli.options;
    let mut tally = Tally::new(options.quiet);
    lint(&mut tally);
    let mut portable = host_cargo("test");
    portable.args(PORTABLE).args(["-ptestkit", "-pmutants", "-pzoo", "-pexplorer", "--no-fail-fast"]);
    tally.stage(
        "unit tests: mm, dax, nvdimm, fs, media, nvme, sched, slabs, iommu, cli",
        Kind::Tests,
        full(&mut portable, options.full),
    );
    tally.stage("unit tests: boot", Kind::Tests, host_cargo("test").args(["-pboot", "--lib"]));
    tally.stage("examples in the documentation: boot", Kind::Tests, host_cargo("test").args(["-pboot", "--doc"]));
    let mut judges = host_cargo("test");
    judges.args(["-pboot", "--test", "judges"]);
    tally.stage("mounted images, outside testers", Kind::Tests, full(&mut judges, options.full));
    tally.stage("loom models", Kind::Tests, full(&mut models("loom"), options.full));
    tally.stage("shuttle models", Kind::Tests, full(&mut models("shuttle"), options.full));
    under_miri(&mut tally, miri::find(), options.full);
    if options.full {
        deliberate_faults(&mut tally);
    }
    let others = [
        ("UNPLUG_TRACE_IMAGE", other_build(&mut tally, "with trace points", Profile::Trace, options.quiet)),
        ("UNPLUG_ZOO_IMAGE", other_build(&mut tally, "with faults", Profile::Zoo, options.quiet)),
    ];
    let start = Instant::now();
    match build::kernel(Profile::Dev, options.quiet).and_then(|kernel| Ok((image::make(&kernel)?, kernel))) {
        Ok((image, kernel)) => {
            tally.record("build: kernel and disk image", Counts::one(true), start.elapsed());
            for (name, test) in [
                ("in-kernel tests", "guest"),
                ("end-to-end tests", "e2e"),
                ("the harness, used by others", "harness"),
                ("labs", "labs"),
            ] {
                let mut command = end_to_end(test, &kernel, &image);
                command.envs(others.clone());
                tally.stage(name, Kind::Tests, full(&mut command, options.full));
            }
        }
        Err(error) => {
            eprintln!("{error:#}");
            tally.record("build: kernel and disk image", Counts::one(false), start.elapsed());
        }
    }
    if options.full {
        release_build(&mut tally, options.quiet);
    }
    Ok(u8::from(!tally.finish()))
}

/// Another kernel, in an image of its own, which is booted by tests that ask for it. Says where it is to be.
fn other_build(tally: &mut Tally, what: &str, profile: Profile, quiet: bool) -> PathBuf {
    let start = Instant::now();
    let built = build::kernel(profile, quiet).and_then(|kernel| image::make_for(&kernel, profile));
    tally.record(&format!("build: kernel, {what}"), Counts::one(built.is_ok()), start.elapsed());
    built.unwrap_or_else(|error| {
        eprintln!("{error:#}");
        paths::image_of(profile)
    })
}

/// The fully optimised kernel, in an image of its own: the in-kernel tests pass there too.
fn release_build(tally: &mut Tally, quiet: bool) {
    let start = Instant::now();
    let built = build::kernel(Profile::Release, quiet)
        .and_then(|kernel| Ok((image::make_at(&kernel, paths::target().join("unplug-release.img"))?, kernel)));
    match built {
        Ok((image, kernel)) => {
            tally.record("build: kernel, release", Counts::one(true), start.elapsed());
            let mut command = end_to_end("guest", &kernel, &image);
            command.env("UNPLUG_TRACE_IMAGE", paths::image_of(Profile::Trace));
            command.env("UNPLUG_ZOO_IMAGE", paths::image_of(Profile::Zoo));
            tally.stage("in-kernel tests, release", Kind::Tests, full(&mut command, false));
        }
        Err(error) => {
            eprintln!("{error:#}");
            tally.record("build: kernel, release", Counts::one(false), start.elapsed());
        }
    }
}

/// Format, the lints of both worlds and the documentation, with every warning an error.
fn lint(tally: &mut Tally) {
    tally.stage("format", Kind::Check, host_cargo("fmt").args(["--all", "--check"]));
    let mut host = host_cargo("clippy");
    host.args(PORTABLE).args([
        "-ptestkit",
        "-pmutants",
        "-pzoo",
        "-pexplorer",
        "-pboot",
        "--all-targets",
        "--",
        "-Dwarnings",
    ]);
    tally.stage("lints: host packages", Kind::Check, &mut host);
    let mut kernel = build::kernel_cargo("clippy", Profile::Dev);
    tally.stage("lints: kernel", Kind::Check, kernel.args(["--", "-Dwarnings"]));
    for (what, profile) in [("with trace points", Profile::Trace), ("with faults", Profile::Zoo)] {
        let mut other = build::kernel_cargo("clippy", profile);
        tally.stage(&format!("lints: kernel, {what}"), Kind::Check, other.args(["--", "-Dwarnings"]));
    }
    let mut image_maker = build::image_maker_cargo("clippy");
    tally.stage("lints: disk image", Kind::Check, image_maker.args(["--", "-Dwarnings"]));
    let mut pages = host_cargo("doc");
    pages
        .args(PORTABLE)
        .args(["-ptestkit", "-Ftestkit/all", "-pmutants", "-pzoo", "-pexplorer", "--no-deps"])
        .env("RUSTDOCFLAGS", "-Dwarnings");
    tally.stage("documentation: mm, dax, nvdimm, fs, media, nvme, sched, slabs, iommu, cli", Kind::Check, &mut pages);
    let mut page = host_cargo("doc");
    page.args(["-pboot", "--lib", "--no-deps"]).env("RUSTDOCFLAGS", "-Dwarnings");
    tally.stage("documentation: boot", Kind::Check, &mut page);
}

/// Each deliberate fault is one test: it passes when the fault is caught.
fn deliberate_faults(tally: &mut Tally) {
    let start = Instant::now();
    eprintln!("\n== mutants");
    let counts = mutants::run().unwrap_or_else(|error| {
        eprintln!("mutants: {error:#}");
        Counts::one(false)
    });
    tally.record("mutants", counts, start.elapsed());
}

/// A cargo command for the host: no unstable features, a directory of its own.
fn host_cargo(verb: &str) -> Command {
    let mut command = Command::new("cargo");
    command.arg(verb).current_dir(paths::root()).env_remove("RUSTC_BOOTSTRAP");
    command.env("CARGO_TARGET_DIR", paths::target().join("host"));
    command
}

/// The models under a `checker`, loom or shuttle: the tests in files whose name begins with `loom`.
fn models(checker: &str) -> Command {
    let mut command = host_cargo("test");
    command.args(mutants::MODELLED.map(|package| format!("-p{package}")));
    command.args(["--release", "--test", "loom*", "--no-fail-fast"]);
    command.env("RUSTFLAGS", format!("--cfg {checker}")).env("CARGO_TARGET_DIR", paths::target().join(checker));
    command
}

/// The small tests with two threads under Miri, where it is installed: once each, and with many seeds if all is wanted.
fn under_miri(tally: &mut Tally, toolchain: Option<miri::Toolchain>, all: bool) {
    let Some(toolchain) = toolchain else {
        eprintln!("\n{}", miri::SKIPPED);
        tally.record("Miri", Counts { skipped: 1, ..Counts::default() }, Duration::ZERO);
        return;
    };
    tally.stage("Miri", Kind::Tests, &mut toolchain.tests("miri*", &MIRI, None));
    if all {
        tally.stage("Miri, slow tests", Kind::Tests, &mut toolchain.tests("slow_miri*", &MIRI, None));
        tally.stage("Miri, 32 seeds", Kind::Check, &mut toolchain.tests("miri*", &MIRI, Some("1..33")));
    }
}

/// Tests which start QEMU: two at a time, and each knows what to boot.
fn end_to_end(test: &str, kernel: &Path, image: &Path) -> Command {
    let mut command = host_cargo("test");
    command.args(["-pboot", "--test", test, "--", "--test-threads=2"]);
    command.env("UNPLUG_KERNEL", kernel).env("UNPLUG_IMAGE", image);
    command
}

/// Tells tests by `UNPLUG_FULL` that the slow cases are wanted too.
fn full(command: &mut Command, wanted: bool) -> &mut Command {
    if wanted { command.env("UNPLUG_FULL", "1") } else { command.env_remove("UNPLUG_FULL") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variable(command: &Command, name: &str) -> Option<String> {
        let value = command.get_envs().find(|(key, _)| *key == name)?.1?;
        Some(value.to_string_lossy().into_owned())
    }

    /// The counts say that it was passed over, and it makes the run neither good nor bad.
    #[test]
    fn miri_is_skipped_where_it_is_not_installed() {
        let mut tally = Tally::new(true);
        under_miri(&mut tally, None, true);
        assert_eq!(tally.total(), Counts { passed: 0, failed: 0, skipped: 1 });
        assert!(!tally.finish(), "nothing passed");
        tally.record("another", Counts::one(true), Duration::ZERO);
        assert!(tally.finish());
    }

    #[test]
    fn each_checker_builds_in_a_directory_of_its_own() {
        for checker in ["loom", "shuttle"] {
            let command = models(checker);
            assert_eq!(variable(&command, "RUSTFLAGS"), Some(format!("--cfg {checker}")));
            assert!(variable(&command, "CARGO_TARGET_DIR").unwrap().ends_with(&format!("/{checker}")));
        }
    }

    #[test]
    fn the_slow_cases_are_asked_for_by_a_variable() {
        assert_eq!(variable(full(&mut models("shuttle"), true), "UNPLUG_FULL"), Some("1".into()));
        assert_eq!(variable(full(&mut models("shuttle"), false), "UNPLUG_FULL"), None);
    }
}
