//! The results of the in-kernel tests for programs: `--tap` on standard output, `--junit` in a file.

use crate::cli::Options;
use crate::console::Console;
use crate::keep::Kept;
use crate::out::outln;
use crate::outcome::{Outcome, Status};
use crate::paths;
use crate::tap::Tap;
use crate::whole::Place;
use anyhow::{Context, Result, anyhow};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

/// What a run's results go to.
#[derive(Debug, Default)]
pub(crate) struct Results {
    has_tap: bool,
    junit: Option<Place>,
}

/// The same, of a guest that runs.
pub(crate) struct Following {
    tap: Option<JoinHandle<(Tap, Kept)>>,
    junit: Option<Place>,
}

impl Results {
    /// Sees to it that the file can be written, before minutes are spent on what it is to hold.
    ///
    /// # Errors
    /// One line.
    pub(crate) fn reserve(options: &Options) -> Result<Self> {
        let junit = match &options.junit {
            Some(_) if !cfg!(feature = "junit") => return Err(anyhow!("--junit: this program was built without it")),
            Some(path) => Some(Place::reserve(path).context("--junit")?),
            None => None,
        };
        Ok(Self { has_tap: options.tap, junit })
    }

    /// Begins with a guest's console. What is not TAP goes to a log.
    pub(crate) fn follow(self, console: Arc<Console>) -> Following {
        let tap = self.has_tap.then(|| thread::spawn(move || stream(&console)));
        Following { tap, junit: self.junit }
    }
}

/// Writes a console as TAP, until it ends.
fn stream(console: &Console) -> (Tap, Kept) {
    let (mut tap, mut kept) = (Tap::default(), Kept::begin(&paths::target().join("log"), "test"));
    let mut from = 0;
    while let Ok(lines) = console.more(from) {
        from += lines.len();
        kept.add(&lines);
        lines.iter().filter_map(|line| tap.line(line)).for_each(|line| outln!("{line}"));
    }
    (tap, kept)
}

impl Following {
    /// Ends with the guest.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn end(self, outcome: &Outcome, quiet: bool) -> Result<()> {
        if let Some(stream) = self.tap {
            let (tap, mut kept) = stream.join().map_err(|_| anyhow!("the stream of results has panicked"))?;
            let is_whole = matches!(outcome.status, Status::Good | Status::Bad(_));
            tap.end(is_whole, &outcome.status.to_string()).iter().for_each(|line| outln!("{line}"));
            kept.add(&outcome.hang);
            kept.place().filter(|_| !quiet).into_iter().for_each(|place| eprintln!("run-qemu: {place}"));
        }
        match self.junit {
            Some(place) => place.write(&xml(outcome)?),
            None => Ok(()),
        }
    }
}

#[cfg(feature = "junit")]
fn xml(outcome: &Outcome) -> Result<String> {
    Ok(crate::junit::xml("unplug", &[("kernel", outcome)])?)
}

#[cfg(not(feature = "junit"))]
fn xml(_: &Outcome) -> Result<String> {
    Err(anyhow!("--junit: this program was built without it"))
}
