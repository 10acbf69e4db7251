//! The host side of Unplug: makes the disk image, starts QEMU, talks to the guest's serial console and to QEMU's
//! monitor, reads KTAP, and runs the tests. The program `boot` is a thin front over this library, and the end-to-end
//! tests in `tests/` use it directly.
//!
//! With the kernel it shares the words on the console (see [`records`] for the lines that begin with `@` and [`ktap`] for
//! the results of the in-kernel tests), what is known of media that others made, and the file system.

pub mod backing;
pub mod bench;
#[cfg(feature = "book")]
pub mod book;
pub mod build;
pub mod cli;
pub mod console;
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
pub mod keep;
pub mod ktap;
mod limits;
#[cfg(test)]
mod links;
pub mod machine;
pub mod medium;
pub mod miri;
pub mod mutants;
pub mod outcome;
pub mod paths;
pub mod peer;
pub mod progress;
pub mod qmp;
pub mod records;
#[cfg(feature = "report")]
pub mod report;
#[cfg(test)]
mod rooms;
pub mod run;
mod screen;
pub mod size;
pub mod suite;
pub mod summary;
pub mod symbols;
pub mod tally;
pub mod terminal;
#[cfg(feature = "trace")]
pub mod trace;
pub mod whole;

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
