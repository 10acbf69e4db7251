//! Builds the kernel for its own target, with the compiler that `run-qemu.sh` put first on the path; and beside it the
//! program that makes disk images, with the UEFI loader in it.

use crate::error::Error;
use crate::paths::{self, Profile};
use anyhow::{Context, Result, bail};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
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
    command.args(profile.features());
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

/// Has `run-qemu.sh build` bring kernel and disk image up to date, which finds the compiler for it. Both go to the project's
/// own `target`, whatever directory the program that asks is built in.
///
/// # Errors
/// [`Error::Machine`] when something does not build; what it was is on standard error.
pub fn by_the_front_door(profile: Profile) -> Result<(), Error> {
    let mut command = Command::new(paths::root().join("run-qemu.sh"));
    command.args(paths::front_door_words(profile)).env_remove("CARGO_TARGET_DIR");
    let said = paths::front_door(profile);
    match command.stdin(Stdio::null()).stdout(Stdio::null()).status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(Error::Machine(format!("{said}: {status}"))),
        Err(error) => Err(Error::Machine(format!("{said} cannot be started: {error}"))),
    }
}

fn kernel_alone(profile: Profile, quiet: bool) -> Result<PathBuf> {
    let aside = profile.features().is_some().then(|| Aside::put(profile)).transpose()?;
    let verbosity = quiet.then_some("--quiet");
    let status = kernel_cargo("build", profile).args(verbosity).status().context("cargo cannot be started")?;
    if !status.success() {
        let what = what_stopped(not_fetched(profile));
        bail!("the kernel did not build{}", what.map_or_else(String::new, |what| format!(": {what}")));
    }
    aside.map(Aside::take_back).transpose()?;
    let built = paths::built_kernel(profile);
    built.canonicalize().with_context(|| format!("cargo left no kernel at {}", built.display()))
}

/// The kernel without features, while cargo puts one with some in its place: they are of the same profile, so that what they
/// are made of is built once.
struct Aside {
    profile: Profile,
    plain: PathBuf,
    aside: Option<PathBuf>,
}

impl Aside {
    fn put(profile: Profile) -> Result<Self> {
        let plain = paths::built_kernel(Profile::Dev);
        let aside = plain.exists().then(|| plain.with_extension("plain"));
        if let Some(aside) = &aside {
            std::fs::rename(&plain, aside).with_context(|| plain.display().to_string())?;
        }
        Ok(Self { profile, plain, aside })
    }

    /// The new one goes to its own place, the old one back to where it was.
    fn take_back(self) -> Result<()> {
        let built = paths::built_kernel(self.profile);
        std::fs::rename(&self.plain, &built).with_context(|| built.display().to_string())?;
        let Some(aside) = self.aside else { return Ok(()) };
        std::fs::rename(&aside, &self.plain).with_context(|| aside.display().to_string())
    }
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
            let said = String::from_utf8_lossy(&output.stderr);
            eprint!("{said}");
            bail!(
                "the UEFI loader did not build: {}",
                what_stopped(fetching_failed(&said).map(String::from)).unwrap_or_else(who_built)
            );
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

/// What stopped a build, where it was neither the code nor the compiler: the directory, or what could not be `fetched`, by
/// cargo's innermost reason.
fn what_stopped(not_fetched: Option<String>) -> Option<String> {
    let target = paths::target();
    if let Err(error) = has_room(&target) {
        let place = target.display();
        return Some(format!("{place}: {error}: make room, or name another directory with CARGO_TARGET_DIR"));
    }
    let reason = not_fetched?;
    Some(format!(
        "crates cannot be fetched ({reason}): cargo needs the network (HTTPS_PROXY), certificates (CARGO_HTTP_CAINFO) or a \
         mirror (cargo's source replacement)"
    ))
}

/// Why the kernel's crates cannot be fetched, where some are missing: without the network cargo says so only then.
fn not_fetched(profile: Profile) -> Option<String> {
    let offline = kernel_cargo("build", profile).args(["--offline", "--quiet"]).output().ok()?;
    if !String::from_utf8_lossy(&offline.stderr).contains("--offline") {
        return None;
    }
    let fetched =
        Command::new("cargo").args(["fetch", "--locked", "--quiet"]).current_dir(paths::root()).output().ok()?;
    let said = String::from_utf8_lossy(&fetched.stderr);
    (!fetched.status.success()).then(|| innermost(said.lines()).unwrap_or_default().to_string())
}

/// Does the directory take 16 MiB more?
fn has_room(directory: &Path) -> io::Result<()> {
    let mut file = tempfile::tempfile_in(directory)?;
    io::copy(&mut io::repeat(0).take(16 << 20), &mut file)?;
    Ok(())
}

/// The innermost reason, where cargo says that it could not fetch something.
fn fetching_failed(said: &str) -> Option<&str> {
    const WORDS: [&str; 4] =
        ["failed to download", "failed to fetch", "failed to query replaced source", "download of "];
    let about = said.lines().position(|line| WORDS.iter().any(|words| line.contains(words)))?;
    innermost(said.lines().skip(about).take_while(|line| !line.trim_start().starts_with("warning:")))
}

/// The last line that is not empty: of cargo's causes it is the innermost.
fn innermost<'s>(lines: impl Iterator<Item = &'s str>) -> Option<&'s str> {
    lines.map(str::trim).filter(|line| !line.is_empty()).last()
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

    #[test]
    fn what_cargo_could_not_fetch_is_told_by_its_innermost_reason() {
        let said = "    Updating index\nerror: failed to download from `https://example.invalid/`\n\nCaused by:\n  [6] Could not \
                    resolve hostname\n";
        assert_eq!(fetching_failed(said), Some("[6] Could not resolve hostname"));
        assert_eq!(fetching_failed("error[E0308]: mismatched types\n"), None);
        let what = what_stopped(fetching_failed(said).map(String::from)).expect("it was the network");
        assert!(what.contains("[6] Could not resolve hostname") && what.contains("CARGO_HTTP_CAINFO"), "{what}");
        assert!(has_room(Path::new("/nowhere")).is_err());
    }
}
