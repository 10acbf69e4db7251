//! The host side of Unplug: makes the disk image, starts QEMU, talks to the guest's serial console and to QEMU's
//! monitor, reads KTAP, and runs the tests. The program `boot` is a thin front over this library, and the end-to-end
//! tests in `tests/` use it directly.
//!
//! # For others
//! It drives guests of other projects' tests as well, with our kernel in them or another one:
//! ```no_run
#![doc = include_str!("../examples/harness.rs")]
//! ```
//! That is a whole program of a package outside this workspace. It needs a path dependency on this package, QEMU, and for
//! our own kernel a disk image, which `run-qemu.sh build` makes; no environment variable.
//!
//! | for | see |
//! |---|---|
//! | the machine, and what it boots | [`Builder`] |
//! | a guest that runs: text that is waited for, its shell, QEMU's monitor, modules that are pulled out | [`Guest`] |
//! | an answer of our kernel's shell, and values in it | [`Answer`], [`records::Record::field`] |
//! | how it ended | [`Outcome`], [`Status`] |
//! | the tests that it ran | [`ktap::Report`], [`tap`](mod@tap), and with the feature `junit` [`junit`](mod@junit) |
//! | what went wrong | [`Error`] |
//!
//! A guest ends with the value that stands for it, and with this process, however that ends. At most two of a process run at
//! once; a further one waits. `docs/harness.md` has more.
//!
//! With the kernel it shares the words on the console (see [`records`] for the lines that begin with `@` and [`ktap`] for
//! the results of the in-kernel tests), what is known of media that others made, and the file system.

// It panics where nobody reads: see `out`.
#![cfg_attr(not(test), deny(clippy::print_stdout))]

pub mod answer;
pub mod backing;
pub mod bench;
#[cfg(feature = "book")]
pub mod book;
pub mod build;
pub mod builder;
pub mod cli;
pub mod console;
pub mod error;
pub mod explore;
pub mod fences;
#[cfg(feature = "fs")]
pub mod fsimage;
#[cfg(feature = "fs")]
pub mod fsmount;
pub mod guest;
pub mod hang;
mod host_request;
pub mod hotplug;
pub mod image;
#[cfg(test)]
mod imports;
#[cfg(feature = "junit")]
pub mod junit;
pub mod keep;
pub mod ktap;
#[cfg(feature = "lab")]
pub mod lab;
mod limits;
#[cfg(test)]
mod links;
pub mod machine;
pub mod medium;
pub mod miri;
pub mod mutants;
mod out;
pub mod outcome;
pub mod paths;
pub mod peer;
pub mod progress;
pub mod qmp;
pub mod records;
#[cfg(feature = "report")]
pub mod report;
mod results;
#[cfg(test)]
mod rooms;
pub mod run;
mod screen;
pub mod size;
mod spawn;
pub mod suite;
pub mod summary;
pub mod symbols;
pub mod tally;
pub mod tap;
pub mod terminal;
#[cfg(feature = "trace")]
pub mod trace;
pub mod whole;

pub use answer::Answer;
pub use builder::Builder;
pub use error::Error;
pub use guest::Guest;
pub use outcome::{Outcome, Status};
pub use serde_json::{Value, json};

use std::process::ExitCode;

/// The status that `done` says, or `failed` with a line of why.
#[must_use]
pub fn exit(done: anyhow::Result<u8>, failed: u8) -> ExitCode {
    match done {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("run-qemu: {error:#}");
            ExitCode::from(failed)
        }
    }
}
