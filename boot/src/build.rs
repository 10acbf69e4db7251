//! Builds the kernel for its own target, with the compiler that `run-qemu.sh` put first on the path; and beside it the
//! program that makes disk images, with the UEFI loader in it.

use crate::paths::{self, Profile};
use anyhow::{Context, Result, bail, ensure};
use std::io;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::thread::{self, JoinHandle};
use std::time::Instant;

/// Cargo's profile for programs of the host that nobody measures: quick to build.
pub const TOOL_PROFILE: &str = "tool";

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

/// A cargo command for the program that makes disk images.
#[must_use]
pub fn image_maker_cargo(verb: &str) -> Command {
    let mut command = Command::new("cargo");
    command.args([verb, "-pdiskimage", "--profile", TOOL_PROFILE]).current_dir(paths::root());
    // The loader is built from the standard library's source, which stable Rust must be told to allow.
    // In a directory of its own: what looks at that variable would be built anew by each of two builds in turn.
    command.env("RUSTC_BOOTSTRAP", "1").env("CARGO_TARGET_DIR", paths::image_maker_target());
    command
}

/// Brings the kernel and, at the same time, the program that makes its disk image up to date, with cargo's own progress
/// of the kernel on standard error (but for a `quiet` build), and says where the kernel is. A kernel that
/// `UNPLUG_KERNEL` names is taken as it is.
///
/// # Errors
/// When cargo cannot be started, or one of the two does not build.
pub fn kernel(profile: Profile, quiet: bool) -> Result<PathBuf> {
    let maker = ImageMaker::start(quiet);
    let kernel = match std::env::var_os("UNPLUG_KERNEL") {
        Some(kernel) => Ok(kernel.into()),
        None => kernel_alone(profile, quiet),
    };
    // Waited for in any case: nothing goes on in the background after this program has ended.
    let maker = maker.finish();
    let kernel = kernel?;
    maker?;
    Ok(kernel)
}

fn kernel_alone(profile: Profile, quiet: bool) -> Result<PathBuf> {
    let verbosity = quiet.then_some("--quiet");
    let status = kernel_cargo("build", profile).args(verbosity).status().context("cargo cannot be started")?;
    ensure!(status.success(), "the kernel did not build");
    let built = paths::built_kernel(profile);
    built.canonicalize().with_context(|| format!("cargo left no kernel at {}", built.display()))
}

/// The build of the program that makes disk images: in a directory of its own, so that neither of the two builds waits
/// for the other. What cargo prints is kept, because lines of two builds do not mix, and shown where the build fails.
struct ImageMaker {
    cargo: JoinHandle<io::Result<Output>>,
    since: Instant,
    /// Is it told what goes on? Only where it takes long: there is none yet.
    speaks: bool,
}

impl ImageMaker {
    fn start(quiet: bool) -> Self {
        let speaks = !quiet && !paths::image_maker().exists();
        if speaks {
            eprintln!("run-qemu: beside the kernel, once: the UEFI loader, and what makes a disk image of the two");
        }
        let mut command = image_maker_cargo("build");
        Self { cargo: thread::spawn(move || command.output()), since: Instant::now(), speaks }
    }

    fn finish(self) -> Result<()> {
        if self.speaks && !self.cargo.is_finished() {
            eprintln!("run-qemu: the kernel is done after {}, the loader not yet", seconds(self.since));
        }
        let (since, speaks) = (self.since, self.speaks);
        let output = self.cargo.join().expect("it does not panic").context("cargo cannot be started")?;
        if !output.status.success() {
            eprint!("{}", String::from_utf8_lossy(&output.stderr));
            bail!("the UEFI loader did not build: {}", who_built());
        }
        if speaks {
            eprintln!("run-qemu: kernel and loader are done after {}", seconds(since));
        }
        Ok(())
    }
}

fn seconds(since: Instant) -> String {
    format!("{:.1} s", since.elapsed().as_secs_f64())
}

/// Which compiler and which loader did not get on, and which are known to.
fn who_built() -> String {
    let rustc = Command::new("rustc").arg("--version").output().map(|output| output.stdout).unwrap_or_default();
    format!(
        "{} and bootloader {}. Known to work: the Rust that run-qemu.sh asks for, with the loader pinned in Cargo.toml; \
         another compiler may want another loader",
        String::from_utf8_lossy(&rustc).trim_end(),
        pinned_loader()
    )
}

/// The version of the loader that the workspace's table pins.
fn pinned_loader() -> &'static str {
    let table = include_str!("../../Cargo.toml");
    let line = table.lines().find_map(|line| line.strip_prefix("bootloader = ")).unwrap_or_default();
    line.split('"').find_map(|word| word.strip_prefix('=')).unwrap_or("of no pinned version")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loader_that_is_named_is_the_one_that_is_locked() {
        let locked = format!("name = \"bootloader\"\nversion = \"{}\"\n", pinned_loader());
        assert!(include_str!("../../Cargo.lock").contains(&locked), "{locked}");
    }
}
