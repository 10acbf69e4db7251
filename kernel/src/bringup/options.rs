//! Boot options: `key=value` words. Each bad one gets one line; with any, the kernel goes no further.

use core::fmt;

use arrayvec::ArrayString;
use dax::inject::Fault;
use log::LevelFilter;
use spin::Once;

/// What to do after bring-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The demonstration.
    Demo,
    /// The in-kernel tests.
    Test,
    /// The in-kernel benchmarks.
    Bench,
    /// A line-reading shell on the serial console.
    Shell,
    /// The search for a schedule at which a fault strikes.
    #[cfg(feature = "zoo")]
    Zoo,
}

/// How long the stress tests are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stress {
    /// A few seconds.
    #[default]
    Short,
    /// A million operations.
    Full,
}

/// The options, with their defaults where nothing was said.
#[derive(Clone, Debug)]
pub struct Options {
    /// `mode=`
    pub mode: Mode,
    /// `deterministic=1`: the time-stamp counter counts instructions, 64 for each.
    pub deterministic: bool,
    /// `tests=`: which tests, as a glob.
    pub tests: ArrayString<96>,
    /// `bench=`: which groups of measurements, as the benchmarks read it.
    pub bench: ArrayString<96>,
    /// `quiet=1`: warnings and machine-readable lines alone.
    pub quiet: bool,
    /// `tty=1`: at the other end of the console is a terminal, with somebody in front of it.
    pub tty: bool,
    /// `columns=`: so wide is what reads the console.
    pub columns: usize,
    /// `log=`
    pub log: LevelFilter,
    /// `stress=`
    pub stress: Stress,
    /// `inject=`: what is to fail in the next attach or removal.
    pub inject: Option<Fault>,
    /// `dax.aliasing=1`: the CPU's data cache counts as one that aliases.
    pub dax_aliasing: bool,
    /// `force=1`: what lies on the NVDIMMs may be written over, and their labels are not looked at.
    pub force: bool,
    /// `host_requests=`: somebody reads the console and grants what the kernel asks for, within so many seconds; 0: nobody.
    pub host_requests_s: u64,
    /// `step=1`: the demonstration waits before each act for the end of a line on the serial console.
    pub step: bool,
    /// `bug=` and how it is searched for.
    #[cfg(feature = "zoo")]
    pub zoo: crate::bringup::zoo::Zoo,
}

impl Default for Options {
    fn default() -> Self {
        let tests = ArrayString::from("*").unwrap_or_default();
        Self {
            mode: Mode::Demo,
            deterministic: false,
            tests,
            bench: ArrayString::from("all").unwrap_or_default(),
            quiet: false,
            tty: false,
            columns: 80,
            log: LevelFilter::Info,
            stress: Stress::Short,
            inject: None,
            dax_aliasing: false,
            force: false,
            host_requests_s: 0,
            step: false,
            #[cfg(feature = "zoo")]
            zoo: crate::bringup::zoo::Zoo::default(),
        }
    }
}

/// As many bytes of them are read; the host refuses more (`boot/src/limits.rs`).
pub const MAX_BYTES: usize = 1024;
const MAX_COLUMNS: usize = 1000;
const MAX_HOST_REQUESTS_S: u64 = 3600;
const KNOWN: &str = "mode, deterministic, tests, bench, quiet, tty, columns, log, stress, inject, dax.aliasing, force, host_requests, step";

impl Options {
    /// Reads what begins a file of `len` bytes. Of a file that is longer than what was read nothing counts: a word that is
    /// cut in two may be one that means something else.
    pub fn read(bytes: &[u8], len: usize, complain: &mut dyn FnMut(fmt::Arguments<'_>)) -> Self {
        let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
        match core::str::from_utf8(&bytes[..end]) {
            _ if len > bytes.len() => complain(format_args!("{len} bytes of boot options (allowed: {})", bytes.len())),
            Err(_) => complain(format_args!("not text")),
            Ok(text) => return Self::parse(text, complain),
        }
        Self::default()
    }

    /// Reads `text`. Each word that makes no sense is given to `complain` as one line; the others are read.
    pub fn parse(text: &str, complain: &mut dyn FnMut(fmt::Arguments<'_>)) -> Self {
        let mut options = Self::default();
        for word in text.split_ascii_whitespace() {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            match options.set(key, value) {
                Ok(()) => {}
                Err(Bad::Key) => complain(format_args!("unknown option \"{key}\" (known: {KNOWN})")),
                Err(Bad::Value(allowed)) => {
                    complain(format_args!("option \"{key}\" cannot be \"{value}\" (allowed: {allowed})"));
                }
            }
        }
        options
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), Bad> {
        match key {
            "mode" => {
                self.mode = match value {
                    "demo" => Mode::Demo,
                    "test" => Mode::Test,
                    "bench" => Mode::Bench,
                    "shell" => Mode::Shell,
                    #[cfg(feature = "zoo")]
                    "zoo" => Mode::Zoo,
                    _ => return Err(Bad::Value("demo, test, bench, shell")),
                }
            }
            "deterministic" => self.deterministic = switch(value)?,
            "quiet" => self.quiet = switch(value)?,
            "tty" => self.tty = switch(value)?,
            "columns" => match value.parse() {
                Ok(columns @ 1..=MAX_COLUMNS) => self.columns = columns,
                _ => return Err(Bad::Value("columns, from 1 to 1000")),
            },
            "dax.aliasing" => self.dax_aliasing = switch(value)?,
            "force" => self.force = switch(value)?,
            "step" => self.step = switch(value)?,
            "tests" => match ArrayString::from(value) {
                Ok(glob) if !glob.is_empty() => self.tests = glob,
                _ => return Err(Bad::Value("a glob of 1 to 96 characters")),
            },
            "bench" => match ArrayString::from(value) {
                Ok(groups) => self.bench = groups,
                Err(_) => return Err(Bad::Value("groups of measurements, in at most 96 characters")),
            },
            "log" => {
                self.log = match value {
                    "debug" => LevelFilter::Debug,
                    "info" => LevelFilter::Info,
                    "warn" => LevelFilter::Warn,
                    _ => return Err(Bad::Value("debug, info, warn")),
                }
            }
            "inject" => match Fault::parse(value) {
                Ok(fault) => self.inject = Some(fault),
                Err(_) => return Err(Bad::Value("attach:N, remove:N, alloc:N, with N from 1")),
            },
            "host_requests" => match value.parse() {
                Ok(seconds) if seconds <= MAX_HOST_REQUESTS_S => self.host_requests_s = seconds,
                _ => return Err(Bad::Value("seconds, from 0 to 3600")),
            },
            "stress" => {
                self.stress = match value {
                    "short" => Stress::Short,
                    "full" => Stress::Full,
                    _ => return Err(Bad::Value("short, full")),
                }
            }
            #[cfg(feature = "zoo")]
            _ => return self.zoo.set(key, value),
            #[cfg(not(feature = "zoo"))]
            _ => return Err(Bad::Key),
        }
        Ok(())
    }
}

static OPTIONS: Once<Options> = Once::new();

/// Keeps the options for all later stages. Called once.
pub fn set(options: Options) {
    OPTIONS.call_once(|| options);
}

/// The options.
///
/// # Panics
/// Before [`set`].
pub fn get() -> &'static Options {
    OPTIONS.get().expect("the boot options are read first")
}

/// Why a word makes no sense.
pub(crate) enum Bad {
    /// There is no such key.
    Key,
    /// The key takes something else: this.
    Value(&'static str),
}

fn switch(value: &str) -> Result<bool, Bad> {
    match value {
        "1" => Ok(true),
        "0" => Ok(false),
        _ => Err(Bad::Value("0, 1")),
    }
}
