//! Finds Miri, the interpreter that sees undefined behaviour, where it is installed; nothing is installed here.
//!
//! It is a component of nightly toolchains, while everything else is built by a stable one, which `run-qemu.sh` puts
//! first on `PATH`. So a nightly of rustup is asked for by name, and then whatever `cargo` there is.

use crate::paths;
use std::env;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What is said where there is none.
pub const SKIPPED: &str = "Miri is skipped: no nightly toolchain with miri and rust-src \
                           (rustup toolchain install nightly --component miri,rust-src)";

/// How a toolchain's programs are started: what stands before their name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Toolchain(Vec<OsString>);

/// The toolchains that are asked, in this order.
fn candidates() -> Vec<Toolchain> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
    let installed = home.map(|home| home.join("bin/rustup")).filter(|rustup| rustup.exists());
    let rustup = installed.map_or_else(|| "rustup".into(), PathBuf::into_os_string);
    vec![Toolchain(vec![rustup, "run".into(), "nightly".into()]), Toolchain(Vec::new())]
}

/// A toolchain that has Miri and the library's source, which Miri interprets too.
#[must_use]
pub fn find() -> Option<Toolchain> {
    find_among(candidates())
}

fn find_among(candidates: Vec<Toolchain>) -> Option<Toolchain> {
    candidates.into_iter().find(|toolchain| toolchain.has_miri() && toolchain.has_source())
}

impl Toolchain {
    fn program(&self, name: &str) -> Command {
        let mut words = self.0.iter().map(OsString::as_os_str).chain([OsStr::new(name)]);
        let mut command = Command::new(words.next().unwrap_or(OsStr::new(name)));
        command.args(words).current_dir(paths::root()).stdin(Stdio::null());
        // It is to use what is there.
        command.env("RUSTUP_AUTO_INSTALL", "0").env_remove("RUSTC_BOOTSTRAP").env_remove("RUSTFLAGS");
        command
    }

    /// What a program of it prints; `None` where there is no such program, or it fails.
    fn answer(&self, name: &str, args: &[&str]) -> Option<String> {
        let output = self.program(name).args(args).stderr(Stdio::null()).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_string())
    }

    fn has_miri(&self) -> bool {
        self.answer("cargo", &["miri", "--version"]).is_some()
    }

    fn has_source(&self) -> bool {
        let library = "lib/rustlib/src/rust/library/core/Cargo.toml";
        self.answer("rustc", &["--print", "sysroot"]).is_some_and(|root| Path::new(&root).join(library).exists())
    }

    /// Runs the tests of these packages in these files, a pattern, each once for every one of `seeds` (`first..end`,
    /// as Miri's flag wants it; `None`: once). A seed decides where threads are switched, and which of the values that it
    /// may return a load returns.
    #[must_use]
    pub fn tests(&self, files: &str, packages: &[&str], seeds: Option<&str>) -> Command {
        let mut command = self.program("cargo");
        command.args(["miri", "test", "--no-fail-fast", "--test", files]).args(packages);
        // A switch after one basic block in fifty, instead of in a hundred: the tests are small.
        let mut flags = String::from("-Zmiri-preemption-rate=0.02");
        if let Some(seeds) = seeds {
            flags.push_str(" -Zmiri-many-seeds=");
            flags.push_str(seeds);
        }
        command.env("MIRIFLAGS", flags).env("CARGO_TARGET_DIR", paths::target().join("miri"));
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    /// A toolchain whose programs are run by a script in a directory of its own.
    fn toolchain(script: &str) -> (tempfile::TempDir, Toolchain) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        (directory, Toolchain(vec!["sh".into(), path.into()]))
    }

    fn with_source(directory: &Path) {
        let library = directory.join("lib/rustlib/src/rust/library/core");
        fs::create_dir_all(&library).unwrap();
        fs::write(library.join("Cargo.toml"), "").unwrap();
    }

    const WHOLE: &str = "case $1 in cargo) echo miri 0.1.0;; rustc) dirname \"$0\";; esac";

    #[test]
    fn a_toolchain_with_miri_and_the_source_is_found() {
        let (directory, whole) = toolchain(WHOLE);
        with_source(directory.path());
        let (_other, without) = toolchain("exit 1");
        assert_eq!(find_among(vec![without, whole.clone()]), Some(whole));
    }

    #[test]
    fn one_that_lacks_a_part_is_passed_over() {
        let (_a, without_source) = toolchain(WHOLE);
        let (directory, without_miri) = toolchain("[ $1 = rustc ] && dirname \"$0\"");
        with_source(directory.path());
        let nowhere = Toolchain(vec!["/nonexistent/rustup".into(), "run".into(), "nightly".into()]);
        assert_eq!(find_among(vec![without_source, without_miri, nowhere]), None);
    }

    #[test]
    fn nothing_is_installed_on_the_way() {
        let (directory, asked) = toolchain("[ \"$RUSTUP_AUTO_INSTALL\" = 0 ] && dirname \"$0\"");
        with_source(directory.path());
        assert_eq!(find_among(vec![asked.clone()]), Some(asked));
    }

    #[test]
    fn the_seeds_and_the_directory_are_miris_own() {
        let (_directory, whole) = toolchain(WHOLE);
        let command = whole.tests("miri*", &["-pmm"], Some("0..4"));
        let variable = |name: &str| command.get_envs().find(|(key, _)| *key == name).and_then(|(_, value)| value);
        assert!(variable("MIRIFLAGS").unwrap().to_string_lossy().ends_with("-Zmiri-many-seeds=0..4"));
        assert!(Path::new(variable("CARGO_TARGET_DIR").unwrap()).ends_with("miri"));
        assert!(command.get_args().any(|arg| arg == "-pmm"));
        assert!(
            !whole
                .tests("miri*", &[], None)
                .get_envs()
                .any(|(_, value)| value.is_some_and(|v| v.to_string_lossy().contains("seeds")))
        );
    }
}
