//! Builds the kernel for its own target, with the compiler that `run-qemu.sh` put first on the path.

use crate::paths::{self, Profile};
use anyhow::{Context, Result, bail};
use std::path::PathBuf;
use std::process::Command;

/// The flags with which every cargo command for the kernel is run: its own target, and the library built from source.
/// They are here and not in `.cargo/config.toml` because there they would break every build for the host.
pub const KERNEL_FLAGS: [&str; 5] = [
    "-pkernel",
    "--target=x86_64-target.json",
    "-Zbuild-std=core,alloc",
    "-Zbuild-std-features=compiler-builtins-mem",
    "-Zjson-target-spec",
];

/// A cargo command for the kernel's target, in the project's root: the one place where unstable features of the
/// compiler are allowed.
#[must_use]
pub fn kernel_cargo(verb: &str, profile: Profile) -> Command {
    let mut command = Command::new("cargo");
    command.arg(verb).args(KERNEL_FLAGS).args(["--profile", profile.word()]).current_dir(paths::root());
    command.env("RUSTC_BOOTSTRAP", "1").env("CARGO_TARGET_DIR", paths::target());
    command
}

/// Brings the kernel up to date, with cargo's own progress on standard error (but for a `quiet` build), and says where it
/// is. A kernel that `UNPLUG_KERNEL` names is taken as it is.
///
/// # Errors
/// When cargo cannot be started or the kernel does not build.
pub fn kernel(profile: Profile, quiet: bool) -> Result<PathBuf> {
    if let Some(kernel) = std::env::var_os("UNPLUG_KERNEL") {
        return Ok(kernel.into());
    }
    let verbosity = quiet.then_some("--quiet");
    let status = kernel_cargo("build", profile).args(verbosity).status().context("cargo cannot be started")?;
    if !status.success() {
        bail!("the kernel did not build");
    }
    let built = paths::built_kernel(profile);
    built.canonicalize().with_context(|| format!("cargo left no kernel at {}", built.display()))
}
