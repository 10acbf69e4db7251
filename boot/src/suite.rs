//! The job `test`: every check and test of the project, one stage after the other.
//!
//! Three directories for what is built keep the stages from undoing each other's work, because cargo builds everything
//! again when the flags change: the front door's own (the kernel and this program, with unstable features), `host` (the
//! tests of the portable packages, as any stable toolchain would build them) and `loom`.

use crate::cli::Cli;
use crate::paths::{self, Profile};
use crate::tally::{Counts, Kind, Tally};
use crate::{build, image, mutants};
use anyhow::Result;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

/// The packages that are tested on the host without a guest, beside `boot` itself.
const PORTABLE: [&str; 5] = ["-pmm", "-pdax", "-pnvdimm", "-pfs", "-psched"];

/// Runs all of it and says with which status this program ends.
///
/// # Errors
/// Never by itself: a stage that cannot be run counts as failed.
pub fn run(cli: &Cli) -> Result<u8> {
    let options = &cli.options;
    let mut tally = Tally::new(options.quiet);
    lint(&mut tally);
    let mut portable = host_cargo("test");
    portable.args(PORTABLE).args(["-Fmm/emu", "--no-fail-fast"]);
    tally.stage("unit tests: mm, dax, nvdimm, fs, sched", Kind::Tests, full(&mut portable, options.full));
    tally.stage("unit tests: boot", Kind::Tests, host_cargo("test").args(["-pboot", "--lib"]));
    tally.stage("loom models", Kind::Tests, full(&mut loom(), options.full));
    if options.full {
        deliberate_faults(&mut tally);
    }
    let start = Instant::now();
    match build::kernel(Profile::Dev, options.quiet).and_then(|kernel| Ok((image::make(&kernel)?, kernel))) {
        Ok((image, kernel)) => {
            tally.record("build: kernel and disk image", Counts::one(true), start.elapsed());
            for (name, test) in [("in-kernel tests", "guest"), ("end-to-end tests", "e2e")] {
                let mut command = end_to_end(test, &kernel, &image);
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

/// The fully optimised kernel, in an image of its own: the in-kernel tests pass there too.
fn release_build(tally: &mut Tally, quiet: bool) {
    let start = Instant::now();
    let built = build::kernel(Profile::Release, quiet)
        .and_then(|kernel| Ok((image::make_at(&kernel, paths::target().join("unplug-release.img"))?, kernel)));
    match built {
        Ok((image, kernel)) => {
            tally.record("build: kernel, release", Counts::one(true), start.elapsed());
            let mut command = end_to_end("guest", &kernel, &image);
            tally.stage("in-kernel tests, release", Kind::Tests, full(&mut command, false));
        }
        Err(error) => {
            eprintln!("{error:#}");
            tally.record("build: kernel, release", Counts::one(false), start.elapsed());
        }
    }
}

/// Format, and the lints of both worlds with every warning an error.
fn lint(tally: &mut Tally) {
    tally.stage("format", Kind::Check, host_cargo("fmt").args(["--all", "--check"]));
    let mut host = host_cargo("clippy");
    host.args(PORTABLE).args(["-pboot", "-Fmm/emu", "--all-targets", "--", "-Dwarnings"]);
    tally.stage("lints: host packages", Kind::Check, &mut host);
    let mut kernel = build::kernel_cargo("clippy", Profile::Dev);
    tally.stage("lints: kernel", Kind::Check, kernel.args(["--", "-Dwarnings"]));
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

/// The model checker's tests: those in files whose name begins with `loom`.
fn loom() -> Command {
    let mut command = host_cargo("test");
    command.args(["--release", "-pmm", "-pdax", "-pfs", "-psched", "--test", "loom*", "--no-fail-fast"]);
    command.env("RUSTFLAGS", "--cfg loom").env("CARGO_TARGET_DIR", paths::target().join("loom"));
    command
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
