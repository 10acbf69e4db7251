//! What a grade is made of is built here: once of the project's own sources, however long that takes, and then of a student's,
//! within limits. Everything is below `target/labs`, where it is built again only as far as a part makes it necessary.

use super::stage::{End, Ended, Limits, Running};
use super::tree::{self, Files};
use crate::build::{KERNEL_FLAGS, image_maker_cargo};
use crate::{image, paths};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

/// How long the project's own sources may take to build: nobody waits for ever.
const FIRST_BUILD: Duration = Duration::from_secs(3600);
/// Address space of a compiler, in bytes: LLVM reserves more than it uses.
const COMPILER_BYTES: u64 = 8 << 30;

/// What is built.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Product {
    /// Tests for the host.
    Host,
    /// Models under shuttle.
    Models,
    /// Models under loom.
    Loom,
    /// The kernel, in a disk image.
    Kernel,
}

/// What came of a build.
#[derive(Debug)]
pub enum Built {
    /// Programs by their name; of the kernel it is its ELF file.
    Programs(BTreeMap<String, PathBuf>),
    /// It does not compile, and the first of the compiler's errors.
    Not(String),
}

/// The place in which grades are made, one after the other.
#[derive(Debug)]
pub struct Workshop {
    place: PathBuf,
    running: Running,
    quiet: bool,
    _alone: File,
}

impl Product {
    /// All of them, in the order in which a grade comes to them.
    pub const ALL: [Self; 4] = [Self::Host, Self::Models, Self::Loom, Self::Kernel];

    fn word(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Models => "shuttle",
            Self::Loom => "loom",
            Self::Kernel => "kernel",
        }
    }
}

impl Workshop {
    /// Opens the place; one that another grade works in is waited for.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn open(running: Running, quiet: bool) -> Result<Self> {
        let place = paths::target().join("labs");
        fs::create_dir_all(&place).with_context(|| place.display().to_string())?;
        let lock = File::create(place.join("lock")).with_context(|| place.display().to_string())?;
        if lock.try_lock().is_err() {
            eprintln!("run-qemu: another grade is being made here: this one waits");
            lock.lock().with_context(|| place.display().to_string())?;
        }
        Ok(Self { place, running, quiet, _alone: lock })
    }

    /// The package of a part, where its tests run.
    #[must_use]
    pub fn package(&self) -> PathBuf {
        self.tree().join("kernel/mm")
    }

    /// What runs programs here.
    #[must_use]
    pub fn running(&self) -> &Running {
        &self.running
    }

    fn tree(&self) -> PathBuf {
        self.place.join("tree")
    }

    /// Says what goes on.
    pub fn say(&self, line: &str) {
        if !self.quiet {
            eprintln!("run-qemu: {line}");
        }
    }

    /// Builds products, each with its files of tests, of the project's own sources where that was not done yet: what a
    /// student's build then finds done is all that no part is of. They are built at once: each waits for its own last unit.
    ///
    /// # Errors
    /// They do not build.
    pub fn prepare(&self, products: &[(Product, Vec<&str>)], model: &Files) -> Result<()> {
        self.forget_without_tree()?;
        let fingerprint = tree::fingerprint(model);
        let is_done = |product| fs::read_to_string(self.stamp(product)).is_ok_and(|made_of| made_of == fingerprint);
        let due: Vec<_> = products.iter().filter(|(product, _)| !is_done(*product)).collect();
        if due.is_empty() {
            return Ok(());
        }
        let words: Vec<_> = due.iter().map(|(product, _)| product.word()).collect();
        self.say(&format!("lab: building for the first time since the kernel has changed: {}", words.join(", ")));
        let start = Instant::now();
        tree::write(&self.tree(), model)?;
        let of_one = |product: Product, tests: &[&str]| {
            self.prepare_one(product, tests)?;
            fs::write(self.stamp(product), &fingerprint).with_context(|| self.stamp(product).display().to_string())?;
            self.say(&format!("lab: built after {:.1} s: {}", start.elapsed().as_secs_f64(), product.word()));
            Ok(())
        };
        thread::scope(|scope| {
            let builds: Vec<_> = due.iter().map(|(product, tests)| scope.spawn(|| of_one(*product, tests))).collect();
            builds.into_iter().try_for_each(|build| build.join().expect("a build does not panic"))
        })
    }

    /// Where there is no tree, nothing was built of it: what was built of the last one would pass for built of the next, whose
    /// files have the dates of the project's.
    fn forget_without_tree(&self) -> Result<()> {
        if tree::is_there(&self.tree()) {
            return Ok(());
        }
        let gone = |removed: io::Result<()>, what: PathBuf| match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).context(what.display().to_string()),
            _ => Ok(()),
        };
        // The stamps first: what is left of a build that is half removed is removed the next time.
        for product in Product::ALL {
            gone(fs::remove_file(self.stamp(product)), self.stamp(product))?;
        }
        Product::ALL
            .into_iter()
            .try_for_each(|product| gone(fs::remove_dir_all(self.target(product)), self.target(product)))
    }

    fn prepare_one(&self, product: Product, tests: &[&str]) -> Result<()> {
        if product == Product::Kernel {
            self.seed()?;
            self.image_maker()?;
        }
        match self.build(product, tests, FIRST_BUILD)? {
            Built::Programs(_) => Ok(()),
            Built::Not(error) => bail!("the project's own sources do not build for a lab: {error}"),
        }
    }

    fn stamp(&self, product: Product) -> PathBuf {
        self.place.join(format!("{}.stamp", product.word()))
    }

    /// Puts a student's sources in place.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn put(&self, files: &Files) -> Result<()> {
        tree::write(&self.tree(), files)
    }

    /// Builds one product of what is in place, for so long.
    ///
    /// # Errors
    /// The tools fail, not the sources.
    pub fn build(&self, product: Product, tests: &[&str], wall: Duration) -> Result<Built> {
        let command = self.cargo(product, tests);
        let limits = Limits { wall, cpu_s: None, memory_bytes: Some(COMPILER_BYTES) };
        let ended = self.running.run(command, limits)?;
        match ended.end {
            End::Exited(0) => {}
            End::OverTime => return Ok(Built::Not(format!("it was not built after {} s", wall.as_secs()))),
            _ => return does_not_build(&ended),
        }
        if product == Product::Kernel {
            let kernel = self.target(product).join(paths::KERNEL_TARGET).join("debug/kernel");
            return Ok(Built::Programs(BTreeMap::from([("kernel".into(), kernel)])));
        }
        let lines = ended.stdout.lines().filter_map(|line| program(&serde_json::from_str(line).ok()?));
        Ok(Built::Programs(lines.collect()))
    }

    /// The disk image of a kernel.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn image(&self, kernel: &Path) -> Result<PathBuf> {
        image::make_at(kernel, self.place.join("lab.img"))
    }

    fn target(&self, product: Product) -> PathBuf {
        self.place.join(product.word())
    }

    fn cargo(&self, product: Product, tests: &[&str]) -> Command {
        let mut command = Command::new("cargo");
        command.current_dir(self.tree()).env("CARGO_TARGET_DIR", self.target(product)).env_remove("RUSTFLAGS");
        if product == Product::Kernel {
            command.arg("build").args(KERNEL_FLAGS).env("RUSTC_BOOTSTRAP", "1");
            return command;
        }
        command.args(["test", "--profile", "lab", "-pmm", "--no-run", "--message-format=json-render-diagnostics"]);
        for test in tests {
            command.args(["--test", test]);
        }
        command.env_remove("RUSTC_BOOTSTRAP");
        if product != Product::Host {
            command.env("RUSTFLAGS", format!("--cfg {}", product.word()));
        }
        command
    }

    /// Copies what the project's own build of the kernel has of packages that are in no lab: cargo knows them again, because
    /// their sources, flags and compiler are the same.
    fn seed(&self) -> Result<()> {
        let to = self.target(Product::Kernel);
        if to.exists() {
            return Ok(());
        }
        for built in ["debug".into(), format!("{}/debug", paths::KERNEL_TARGET)] {
            let into = to.join(&built);
            fs::create_dir_all(&into).with_context(|| into.display().to_string())?;
            for part in ["deps", ".fingerprint", "build"] {
                let from = paths::target().join(&built).join(part);
                if from.exists() {
                    // With their dates, by which cargo judges.
                    let copied = Command::new("cp").args(["-a", "--reflink=auto"]).arg(&from).arg(&into).status();
                    ensure!(copied.context("cp")?.success(), "{} cannot be copied", from.display());
                }
            }
        }
        Ok(())
    }

    fn image_maker(&self) -> Result<()> {
        if paths::image_maker().exists() {
            return Ok(());
        }
        let limits = Limits { wall: FIRST_BUILD, cpu_s: None, memory_bytes: None };
        let ended = self.running.run(image_maker_cargo("build"), limits)?;
        ensure!(ended.end == End::Exited(0), "what makes disk images did not build: {}", first_error(&ended.stderr));
        Ok(())
    }
}

/// It failed: by what the compiler says of the sources, or for another reason.
fn does_not_build(ended: &Ended) -> Result<Built> {
    let error = first_error(&ended.stderr);
    // Cargo's word where a compiler has failed, also one that was ended for lack of memory.
    ensure!(ended.stderr.contains("could not compile"), "cargo failed: {error}");
    eprint!("{}", ended.stderr);
    Ok(Built::Not(error))
}

/// The compiler's first error, and where it is.
fn first_error(said: &str) -> String {
    let mut lines = said.lines().skip_while(|line| !line.starts_with("error")).map(str::trim);
    let error = lines.next().unwrap_or("it says nothing");
    let place = lines.next().and_then(|line| line.strip_prefix("--> "));
    place.map_or_else(|| error.into(), |place| format!("{error} ({place})"))
}

/// The test program that a message of cargo tells of.
fn program(message: &Value) -> Option<(String, PathBuf)> {
    Some((message["target"]["name"].as_str()?.into(), message["executable"].as_str()?.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// covers: T5
    #[test]
    fn an_error_of_the_compiler_is_a_grade_and_another_is_none() {
        let ended = |stderr: &str| Ended { end: End::Exited(101), stdout: String::new(), stderr: stderr.into() };
        let said = "warning: x\nerror[E0308]: mismatched types\n   --> kernel/mm/src/a.rs:3:5\nerror: could not compile `mm`\n";
        let Ok(Built::Not(error)) = does_not_build(&ended(said)) else { panic!("it is about the sources") };
        assert_eq!(error, "error[E0308]: mismatched types (kernel/mm/src/a.rs:3:5)");
        let error = does_not_build(&ended("error: failed to download `x`\n")).expect_err("it is about the network");
        assert!(error.to_string().contains("failed to download"), "{error}");
    }

    /// Somebody has removed the tree, or what is in it: what was built of it goes too, before anything is taken for done; and
    /// all of it, not what is asked for now alone. covers: T5
    #[test]
    fn a_tree_that_was_removed_takes_along_what_was_built_of_it() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let file = File::create(place.path().join("lock")).expect("a file");
        let workshop = Workshop { place: place.path().into(), running: Running::default(), quiet: true, _alone: file };
        let there = || {
            Product::ALL
                .map(|product| (workshop.stamp(product).exists(), workshop.target(product).join("deps").exists()))
        };
        let build = || {
            for product in Product::ALL {
                fs::create_dir_all(workshop.target(product).join("deps")).expect("a directory");
                fs::write(workshop.stamp(product), tree::fingerprint(&Files::new())).expect("a file");
            }
        };
        build();
        fs::create_dir_all(workshop.tree().join("kernel")).expect("a directory");
        workshop.prepare(&[(Product::Loom, vec![])], &Files::new()).expect("nothing is due");
        assert_eq!(there(), [(true, true); 4]);
        for remove in [workshop.tree().join("kernel"), workshop.tree()] {
            build();
            fs::remove_dir_all(remove).expect("removed");
            workshop.prepare(&[], &Files::new()).expect("nothing is asked for");
            assert_eq!(there(), [(false, false); 4]);
            // There was none: nothing is wrong with that.
            workshop.prepare(&[], &Files::new()).expect("nothing is asked for");
        }
    }
}
