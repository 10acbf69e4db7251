//! Builds the kernel for its own target, with the compiler that `run-qemu.sh` put first on the path.

use crate::paths;
use anyhow::{Context, Result, bail};
use std::path::PathBuf;
use std::process::Command;

/// The flags with which every cargo command for the kernel is run: its own target, and the library built from source.
/// They are here and not in `.cargo/config.toml` because there they would break every build for the host.
pub const KERNEL_FLAGS: [&str; 6] = [
    "-pkernel",
    "--target=x86_64-target.json",
    "-Zbuild-std=core,alloc",
    "-Zbuild-std-features=compiler-builtins-mem",
    "-Zjson-target-spec",
    "--profile=dev",
];

/// A cargo command for the kernel's target, in the project's root: the one place where unstable features of the
/// compiler are allowed.
#[must_use]
pub fn kernel_cargo(verb: &str) -> Command {
    let mut command = Command::new("cargo");
    command.arg(verb).args(KERNEL_FLAGS).current_dir(paths::root());
    command.env("RUSTC_BOOTSTRAP", "1").env("CARGO_TARGET_DIR", paths::target());
    command
}

/// Brings the kernel up to date, with cargo's own progress on standard error, and says where it is. A kernel that
/// `UNPLUG_KERNEL` names is taken as it is.
///
/// # Errors
/// When cargo cannot be started or the kernel does not build.
pub fn kernel() -> Result<PathBuf> {
    if std::env::var_os("UNPLUG_KERNEL").is_some() {
        return Ok(paths::kernel());
    }
    let status = kernel_cargo("build").status().context("cargo cannot be started")?;
    if !status.success() {
        bail!("the kernel did not build");
    }
    let built = paths::kernel();
    built.canonicalize().with_context(|| format!("cargo left no kernel at {}", built.display()))
}
