//! The command line. Its help text is `boot/help.txt`, which `run-qemu.sh` can print before anything is built; a test
//! below keeps the two from drifting apart.

use crate::explore::Explore;
use crate::paths::Profile;
use crate::peer::{self, Series};
use crate::size::MIB;
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::path::PathBuf;
use values::*;

mod values;

/// The least RAM with which the kernel runs, in bytes: of this the firmware and the kernel's own image (some
/// 22 MB with what debuggers want to know) leave it the 64 MiB that it wants, and some more. With less
/// than 72 MiB not even the firmware and the loader get as far as the kernel, and nobody would say what is wrong.
pub const LEAST_MEM_BYTES: u64 = 100 * MIB;

/// What the whole program was asked to do.
#[derive(Debug, Parser)]
#[command(name = "run-qemu.sh", version, override_help = include_str!("../help.txt"), disable_help_subcommand = true)]
#[command(allow_negative_numbers = true)]
pub struct Cli {
    /// Which job; `run` when none is given.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The options, which may stand before or after the job's name.
    #[command(flatten)]
    pub options: Options,
}

/// The jobs.
#[derive(Clone, Debug, Default, Eq, PartialEq, Subcommand)]
pub enum Command {
    /// Boot and show the console.
    #[default]
    Run,
    /// Boot to the kernel's shell.
    Shell,
    /// Bring kernel and disk image up to date, and say where the image is.
    Build,
    /// Run every test.
    Test,
    /// Run the tests against deliberate faults.
    Mutants,
    /// Print the kernel's measurements.
    Bench,
    /// Look for the order of events in which a deliberate fault strikes.
    Explore(Explore),
    /// List what lies in a backing file.
    Media {
        /// The file.
        file: PathBuf,
    },
}

/// The options of every job. A default that depends on others is resolved where it is used.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Number of CPUs.
    #[arg(long, global = true, default_value = "4", value_parser = parse_smp)]
    pub smp: u32,
    /// RAM, in bytes.
    #[arg(long, global = true, value_parser = parse_mem, default_value = "512M")]
    pub mem: u64,
    /// NVDIMM sizes, in bytes; 0 for none.
    #[arg(long, global = true, value_parser = parse_pmem)]
    pub pmem: Vec<u64>,
    /// The first NVDIMM's backing file.
    #[arg(long, global = true)]
    pub pmem_file: Option<PathBuf>,
    /// Write over what the backing file holds.
    #[arg(long, global = true)]
    pub force: bool,
    /// The first NVDIMM is not armed.
    #[arg(long, global = true)]
    pub unarmed: bool,
    /// Sizes of virtio-pmem devices, in bytes.
    #[arg(long, global = true, value_parser = parse_virtio_pmem)]
    pub virtio_pmem: Vec<u64>,
    /// An IOMMU in front of all devices.
    #[arg(long, global = true, num_args = 0..=1, require_equals = true, default_value = "on", default_missing_value = "on")]
    pub iommu: Switch,
    /// A device with a DMA engine.
    #[arg(long, global = true, num_args = 0..=1, require_equals = true, default_value = "on", default_missing_value = "on")]
    pub edu: Switch,
    /// An NVMe disk's size, in bytes; 0 for none.
    #[arg(long, global = true, value_parser = parse_nvme)]
    pub nvme: Option<u64>,
    /// Sizes of memory modules, in bytes; 0 for none.
    #[arg(long, global = true, value_parser = parse_pmem)]
    pub dimm: Vec<u64>,
    /// The first module's backing file.
    #[arg(long, global = true)]
    pub dimm_file: Option<PathBuf>,
    /// Seconds in which the host pulls the first module out once, at a random moment, and puts it back.
    #[arg(long, global = true, value_parser = parse_pull)]
    pub pull_every: Option<u64>,
    /// Where the random moments begin.
    #[arg(long, global = true)]
    pub seed: Option<u64>,
    /// What runs the guest's instructions.
    #[arg(long, global = true, env = "ACCEL", default_value = "tcg")]
    pub accel: Accel,
    /// Count instructions instead of time.
    #[arg(long, global = true)]
    pub deterministic: bool,
    /// Raw ACPI tables for the guest.
    #[arg(long, global = true)]
    pub acpitable: Vec<PathBuf>,
    /// The fully optimised kernel.
    #[arg(long, global = true)]
    pub release: bool,
    /// A fault of the zoo.
    #[arg(long, global = true)]
    pub bug: Option<String>,
    /// The kernel with trace points.
    #[arg(long, global = true)]
    pub trace: bool,
    /// What the kernel does.
    #[arg(long, global = true, default_value = "demo")]
    pub mode: Mode,
    /// More boot options.
    #[arg(long, global = true, value_parser = parse_append)]
    pub append: Vec<String>,
    /// Seconds until a guest counts as hung; 0 is never.
    #[arg(long, global = true, value_parser = parse_timeout)]
    pub timeout: Option<u64>,
    /// Wait for gdb.
    #[arg(long, global = true)]
    pub debug: bool,
    /// The demonstration's whole console, as it comes.
    #[arg(long, short, global = true)]
    pub verbose: bool,
    /// The demonstration stops at each act, and goes on at Enter.
    #[arg(long, global = true)]
    pub step: bool,
    /// Only machine-readable lines and errors.
    #[arg(long, global = true)]
    pub quiet: bool,
    /// The results of the in-kernel tests as TAP, and nothing else, on standard output.
    #[arg(long, global = true)]
    pub tap: bool,
    /// The same as JUnit's XML, in this file.
    #[arg(long, global = true)]
    pub junit: Option<PathBuf>,
    /// Hold the measurements against those in this file.
    #[arg(long, global = true)]
    pub baseline: Option<PathBuf>,
    /// Store the measurements in this file.
    #[arg(long, global = true)]
    pub save: Option<PathBuf>,
    /// Measure Debian's kernel beside ours: the series, or all of them.
    #[arg(long, global = true, num_args = 0..=1, require_equals = true, value_parser = peer::parse)]
    pub linux: Option<Option<Series>>,
    /// The slow test cases too.
    #[arg(long, global = true)]
    pub full: bool,
}

/// What runs the guest's instructions.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub enum Accel {
    /// QEMU's emulation: what the project is tested with, and never replaced by KVM unasked.
    #[default]
    Tcg,
    /// The host's own CPU.
    Kvm,
}

/// Is a device there?
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Switch {
    /// It is.
    On,
    /// It is not.
    Off,
}

/// What the kernel does after bring-up: the boot option `mode=`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub enum Mode {
    /// The demonstration, once; then exit.
    #[default]
    Demo,
    /// The in-kernel tests, as KTAP; then exit.
    Test,
    /// The measurements; then exit.
    Bench,
    /// Commands from the serial console.
    Shell,
}

impl Mode {
    /// The word that the kernel knows.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Demo => "demo",
            Self::Test => "test",
            Self::Bench => "bench",
            Self::Shell => "shell",
        }
    }
}

impl Options {
    /// Which kernel is booted.
    #[must_use]
    pub fn build(&self) -> Profile {
        match (self.release, self.trace, &self.bug) {
            (true, _, _) => Profile::Release,
            (_, true, _) => Profile::Trace,
            (_, _, Some(_)) => Profile::Zoo,
            _ => Profile::Dev,
        }
    }
}

impl Cli {
    /// Reads the process's own command line. A wrong one ends the process: one line on standard error, status 2.
    #[must_use]
    pub fn from_process() -> Self {
        Self::read(std::env::args_os()).unwrap_or_else(|refusal| refusal.exit("--help"))
    }

    fn read(args: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> Result<Self, Refusal> {
        let args: Vec<OsString> = args.into_iter().map(Into::into).collect();
        let matches = Self::command().try_get_matches_from(&args)?;
        let mut cli = Self::from_arg_matches(&matches)?;
        check_sides(&args)?;
        cli.check_use(&matches)?;
        if cli.job() == Command::Shell {
            cli.options.mode = Mode::Shell;
        }
        cli.check()?;
        Ok(cli)
    }

    /// The job, with its default.
    #[must_use]
    pub fn job(&self) -> Command {
        self.command.clone().unwrap_or_default()
    }

    /// What clap cannot say about single options: which of them make no sense together.
    fn check(&self) -> Result<(), Refusal> {
        let options = &self.options;
        let bad = |line: &str| Err(Refusal::Bad(line.into()));
        for (option, sizes, file) in
            [("pmem", &options.pmem, &options.pmem_file), ("dimm", &options.dimm, &options.dimm_file)]
        {
            if sizes.contains(&0) && sizes.len() > 1 {
                return bad(&format!("--{option} none cannot stand beside another --{option}"));
            }
            if sizes.contains(&0) && file.is_some() {
                return bad(&format!("--{option} none and --{option}-file contradict each other"));
            }
        }
        if options.pmem_file.is_some() && options.pmem_file == options.dimm_file {
            return bad("--pmem-file and --dimm-file name the same file");
        }
        if options.force && options.pmem_file.is_none() && options.dimm_file.is_none() {
            return bad("--force is about what a --pmem-file or --dimm-file holds, and there is none");
        }
        self.check_pulls()?;
        if options.quiet && (options.verbose || options.step) {
            return bad("--quiet leaves out what --verbose and --step show");
        }
        if options.step && self.job() == Command::Run && options.mode != Mode::Demo {
            return bad(&format!("--step is for the demonstration, and this is --mode {}", options.mode.word()));
        }
        if (options.tap || options.junit.is_some()) && self.job() == Command::Run && options.mode != Mode::Test {
            return bad(&format!("--tap and --junit are for --mode test, and this is {}", options.mode.word()));
        }
        if options.tap && options.verbose {
            return bad("--tap leaves out what --verbose shows");
        }
        if options.release && (options.trace || options.bug.is_some()) {
            return bad("--trace and --bug are of the kernel with checks: they go without --release");
        }
        if options.trace && options.bug.is_some() {
            return bad("--trace and --bug are two kernels: one goes without the other");
        }
        self.check_bug()?;
        if options.accel == Accel::Kvm && options.linux.is_some() {
            return bad("--linux counts emulated instructions, which --accel kvm does not have");
        }
        if options.linux.is_some() && (options.baseline.is_some() || options.save.is_some()) {
            return bad("--linux measures other devices than a baseline is of: --baseline and --save go without it");
        }
        if options.accel == Accel::Kvm && options.deterministic {
            return bad("--deterministic counts emulated instructions, which --accel kvm does not have");
        }
        Ok(())
    }

    /// The same of the fault that is to be on: where a kernel is booted with it, it is one of the zoo.
    fn check_bug(&self) -> Result<(), Refusal> {
        let Some(name) = self
            .options
            .bug
            .as_deref()
            .filter(|_| matches!(self.job(), Command::Run | Command::Shell | Command::Build))
        else {
            return Ok(());
        };
        if zoo::Bug::find(name).is_some() {
            return Ok(());
        }
        let names: Vec<_> = zoo::BUGS.iter().map(|bug| bug.name).collect();
        Err(Refusal::Bad(format!("there is no bug \"{name}\" (expected one of {})", names.join(", "))))
    }

    /// The same of what the host pulls out.
    fn check_pulls(&self) -> Result<(), Refusal> {
        let options = &self.options;
        let bad = |line: &str| Err(Refusal::Bad(line.into()));
        if options.pull_every.is_none() {
            return if options.seed.is_none() || matches!(self.command, Some(Command::Explore(_))) {
                Ok(())
            } else {
                bad("--seed is about the moments of --pull-every, and there is none")
            };
        }
        // The others either have their modules pulled at moments of their own, or need them to stay.
        if options.mode != Mode::Shell {
            return bad(&format!("--pull-every is for --mode shell, and this is {}", options.mode.word()));
        }
        if !options.dimm.iter().any(|size| *size != 0) && options.dimm_file.is_none() {
            return bad("--pull-every is about the first --dimm, and there is none");
        }
        if options.deterministic {
            return bad("--pull-every comes at another instruction each time, which --deterministic does not have");
        }
        Ok(())
    }

    /// Refuses what the job would not look at: whoever gives an option expects it to do something.
    fn check_use(&self, matches: &ArgMatches) -> Result<(), Refusal> {
        type Unused = fn(&str) -> bool;
        let (job, unused, why): (_, Unused, _) = match self.job() {
            Command::Run => (
                "run",
                |option| matches!(option, "full" | "baseline" | "save" | "linux"),
                "--full is for test, --baseline, --save and --linux for bench",
            ),
            Command::Shell => (
                "shell",
                |option| matches!(option, "full" | "mode" | "baseline" | "save" | "linux" | "tap" | "junit"),
                "--full is for test, --tap and --junit are for tests in the kernel, --baseline, --save and --linux for bench, and the mode is shell",
            ),
            Command::Bench => (
                "bench",
                |option| {
                    let mode = matches!(option, "full" | "mode" | "tap" | "junit");
                    mode || matches!(option, "pull_every" | "seed" | "verbose" | "step" | "trace" | "bug")
                },
                "the kernel's mode is bench, which shows all that it measures, and nobody pulls anything out or traces",
            ),
            Command::Build => {
                ("build", |option| !matches!(option, "release" | "trace" | "bug" | "quiet"), "it starts no machine")
            }
            Command::Test => {
                ("test", |option| !matches!(option, "full" | "quiet"), "each test has a machine of its own")
            }
            Command::Mutants => ("mutants", |_| true, "it starts no machine"),
            Command::Explore(_) => {
                ("explore", |option| !matches!(option, "seed" | "quiet" | "bug"), "its machine is its own")
            }
            Command::Media { .. } => ("media", |_| true, "it starts no machine"),
        };
        // An option may stand before the job or after it; those of a job have the global ones too.
        let given = matches.subcommand().map_or(matches, |(_, given)| given);
        for argument in Self::command().get_arguments() {
            let (id, Some(long)) = (argument.get_id().as_str(), argument.get_long()) else { continue };
            if unused(id) && given.value_source(id) == Some(ValueSource::CommandLine) {
                return Err(Refusal::Bad(format!("--{long} has no use in {job}: {why}")));
            }
        }
        Ok(())
    }
}

/// Refuses an option that stands before the job and after it: clap would let those behind replace those in front.
fn check_sides(args: &[OsString]) -> Result<(), Refusal> {
    // The options in front alone; the job and all behind it are what clap calls an external subcommand.
    let mut front = clap::Command::new("front").allow_external_subcommands(true).allow_negative_numbers(true);
    for argument in Cli::command().get_arguments() {
        front = front.arg(argument.clone().global(false));
    }
    let Ok(matches) = front.try_get_matches_from(args) else { return Ok(()) };
    let Some((job, behind)) = matches.subcommand() else { return Ok(()) };
    let behind: Vec<_> = behind.get_many::<OsString>("").into_iter().flatten().collect();
    for argument in Cli::command().get_arguments() {
        let Some(long) = argument.get_long() else { continue };
        let (alone, with_value) = (format!("--{long}"), format!("--{long}="));
        let is_it = |word: &str| word == alone || word.starts_with(&with_value);
        let is_in_front = matches.value_source(argument.get_id().as_str()) == Some(ValueSource::CommandLine);
        // No value begins like that, unless it stands behind a `=`.
        if is_in_front && behind.iter().any(|word| word.to_str().is_some_and(is_it)) {
            return Err(Refusal::Bad(format!("--{long} stands before and after {job}: it goes on one side")));
        }
    }
    Ok(())
}

/// Why a command line was not taken.
pub(crate) enum Refusal {
    /// Not a mistake: the help or the version was asked for.
    Show(clap::Error),
    /// One line for the user.
    Bad(String),
}

impl From<clap::Error> for Refusal {
    /// Clap's message, cut down to its one line of substance.
    fn from(error: clap::Error) -> Self {
        if !error.use_stderr() {
            return Self::Show(error);
        }
        let text = error.to_string();
        let words: Vec<_> = text.lines().take_while(|line| !line.is_empty()).flat_map(str::split_whitespace).collect();
        Self::Bad(words.join(" ").trim_start_matches("error: ").to_string())
    }
}

/// The words behind a program's own name, as `C` has them; the process ends where they are no such command, or ask for the
/// help, as [`Refusal::exit`] says.
#[cfg(any(feature = "book", feature = "lab", feature = "report", feature = "trace"))]
pub(crate) fn words_of<C: Parser>(args: impl IntoIterator<Item = OsString>, help: &str) -> C {
    C::try_parse_from(args.into_iter().skip(1)).unwrap_or_else(|error| Refusal::from(error).exit(help))
}

impl Refusal {
    /// Ends the process: with the text that was asked for, or with one line on standard error that names `help`, and
    /// status 2.
    pub(crate) fn exit(self, help: &str) -> ! {
        match self {
            Self::Show(error) => error.exit(),
            Self::Bad(line) => {
                eprintln!("run-qemu: {line} (see {help})");
                std::process::exit(2);
            }
        }
    }
}

#[cfg(test)]
mod tests;
