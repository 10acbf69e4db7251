//! The job `bench`: the machine that it measures, and what becomes of the figures.

pub mod baseline;
pub mod figures;

use self::baseline::{Baseline, IN_TREE, Subject, of_tree};
use self::figures::Figures;
use crate::cli::{Mode, Options};
use crate::machine::Machine;
use crate::out::outln;
use crate::outcome::{Outcome, Status};
use crate::paths::Profile;
use crate::size::{GIB, TIB};
use crate::whole::Place;
use anyhow::{Context, Result, ensure};
use std::path::PathBuf;

/// The NVDIMMs that `bench` brings where none are asked for, in bytes: a small one, and a large one to compare it with.
/// Neither takes room on the host for what is only mapped.
pub const PMEM_BYTES: [u64; 2] = [6 * GIB, 6 * TIB];

/// Seconds that `bench` has where nothing else is said: it takes some 80 where the host has nothing else to do.
pub const BENCH_PATIENCE_S: u64 = 1200;

/// The command that announces figures: what it stores is what `test` holds later ones against.
pub const ANNOUNCE: &str = "./run-qemu.sh bench --save boot/bench-baseline.json";

/// The options of a machine that measures: those that were asked for, in deterministic mode, with NVDIMMs of these sizes
/// in bytes unless some are asked for.
pub(crate) fn options(asked: &Options, pmem: &[u64]) -> Options {
    let mut options = asked.clone();
    options.mode = Mode::Bench;
    options.deterministic = true;
    // Whoever steps through it with gdb has as long as it takes.
    options.timeout = options.timeout.or((!options.debug).then_some(BENCH_PATIENCE_S));
    if options.pmem.is_empty() && options.pmem_file.is_none() {
        options.pmem = pmem.to_vec();
    }
    options
}

/// What the figures of a run are held against, and where they go.
#[derive(Debug)]
pub struct Held {
    subject: Subject,
    /// The baseline that was named, with its name.
    against: Option<(PathBuf, Baseline)>,
    /// The one that says which misses are known, with its name.
    known: Option<(String, Baseline)>,
    save: Option<Place>,
    /// Some groups of rows alone are measured.
    partial: bool,
    /// Points for plots are, and no row.
    sweep: bool,
}

impl Held {
    /// Reads what the options name, before anything is built.
    ///
    /// # Errors
    /// One line about a file that cannot be read, written, or compared with.
    pub fn from_options(options: &Options, machine: &Machine) -> Result<Self> {
        let subject = Subject::of(machine, if options.release { Profile::Release } else { Profile::Dev });
        let words = options.append.iter().flat_map(|words| words.split_whitespace());
        let groups = words.filter_map(|word| word.strip_prefix("bench=")).next_back().unwrap_or("all");
        let (partial, sweep) = (groups != "all", groups == "sweep");
        ensure!(!(partial && options.save.is_some()), "--save stores all rows, and bench= asks for some");
        ensure!(!(sweep && options.baseline.is_some()), "--baseline is about rows, and bench=sweep measures none");
        let against = options.baseline.as_ref().map(|path| {
            let read = Baseline::read_for(path, &subject).context("--baseline")?;
            anyhow::Ok((path.clone(), read))
        });
        let against = against.transpose()?;
        // The tree's own is of one machine and one build: it says nothing about others.
        let known = match &against {
            Some((path, stored)) => Some((path.display().to_string(), stored.clone())),
            None => Baseline::read_for(&of_tree(), &subject).ok().map(|stored| (IN_TREE.into(), stored)),
        };
        let save = options.save.as_deref().map(|path| Place::reserve(path).context("--save")).transpose()?;
        Ok(Self { subject, against, known, save, partial, sweep })
    }

    /// Says what became of the figures, stores them if that was asked for, and judges the run.
    #[must_use]
    pub fn judge(self, outcome: &Outcome) -> Status {
        if !was_measured(&outcome.status) || self.sweep {
            return outcome.status.clone();
        }
        match figures::of_console(&outcome.console) {
            Ok(figures) => self.judge_figures(figures),
            Err(error) => Status::Bad(format!("{error:#}")),
        }
    }

    fn judge_figures(mut self, figures: Figures) -> Status {
        let place = self.save.take();
        // What is stored and held against nothing that was named becomes what is known.
        let status = if place.is_some() && self.against.is_none() { Status::Good } else { self.compare(&figures) };
        match place.map_or(Ok(()), |place| store(place, self.subject, figures)) {
            Ok(()) => status,
            Err(error) => Status::Bad(format!("--save: {error:#}")),
        }
    }

    /// Says what has moved, and judges it.
    fn compare(&self, figures: &Figures) -> Status {
        let missed = nr_missed(figures);
        let worse = self.against.as_ref().map_or(0, |(path, stored)| {
            let mut changes = stored.changes(figures);
            changes.retain(|change| !self.partial || change.now.is_some());
            outln!("rows that moved by more than 1 % since {}: {}", path.display(), changes.len());
            changes.iter().for_each(|change| outln!("{change}"));
            changes.iter().filter(|change| change.is_worse()).count()
        });
        let unknown = unknown_misses(figures, self.known.as_ref().map(|(_, stored)| stored));
        match (&unknown[..], worse) {
            ([], 0) => {
                if let (false, Some((name, _))) = (missed == 0, &self.known) {
                    outln!("goals that are missed: {missed}, all of them known with these figures ({name})");
                }
                Status::Good
            }
            ([], worse) => Status::Bad(format!("{worse} rows are worse than in the baseline")),
            (unknown, _) => Status::Bad(format!("goals that are missed and not known to be: {}", unknown.join(" "))),
        }
    }
}

fn nr_missed(figures: &Figures) -> usize {
    figures.values().filter(|figure| !figure.met).count()
}

/// Writes all rows into a file.
fn store(place: Place, subject: Subject, figures: Figures) -> Result<()> {
    let (rows, missed) = (figures.len(), nr_missed(&figures));
    place.write(&Baseline { subject, figures }.text())?;
    outln!("{rows} rows are stored, {missed} of them with a goal that is missed");
    Ok(())
}

/// Was everything measured, whether or not goals are missed?
#[must_use]
pub fn was_measured(status: &Status) -> bool {
    match status {
        Status::Good => true,
        Status::Bad(reason) => reason.ends_with("_bounds_missed"),
        _ => false,
    }
}

/// The rows that miss their goals, and of which the baseline does not say so, or not with such a figure.
#[must_use]
pub fn unknown_misses(figures: &Figures, known: Option<&Baseline>) -> Vec<String> {
    let is_known = |name: &str| known.is_some_and(|known| known.knows_miss(name, &figures[name]));
    figures.iter().filter(|(name, figure)| !figure.met && !is_known(name)).map(|(name, _)| name.clone()).collect()
}

#[cfg(test)]
mod tests;
