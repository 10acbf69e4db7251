//! What the demonstration compares: what is held before and after, and what a removal cost.

use alloc::format;
use alloc::string::String;

use dax::removal::{Cost, Method, RemovalReport, Step};
use mm::ledger::Snapshot;

use crate::mem::books;
use crate::mem::machine::mm;
use crate::pmem::devices;

/// What is held at a moment: the ledger, and frames of RAM.
pub struct Books {
    ledger: Snapshot,
    frames: u64,
}

impl Books {
    /// What is held now. Kernel stacks are kept for the next tasks, and are not counted.
    pub fn now() -> Self {
        Self { ledger: mm().ledger_snapshot(), frames: books::frames() }
    }

    /// The ledger.
    pub fn ledger(&self) -> &Snapshot {
        &self.ledger
    }

    /// Frames of RAM.
    pub fn frames(&self) -> u64 {
        self.frames
    }

    /// Kinds of which there is not as much as there was, the frames of RAM among them.
    pub fn left(&self) -> u64 {
        let now = Self::now();
        now.ledger.diff(&self.ledger).count() as u64 + u64::from(now.frames != self.frames)
    }
}

/// What is judged of a removal. `Copy`, so that it holds no memory when the books are compared: the report itself has
/// lists, which are whole pages where many tasks used the device.
#[derive(Clone, Copy)]
pub struct Removed {
    /// What it cost.
    pub cost: Cost,
    /// Frames that were failed one by one.
    pub frames_failed: u64,
    /// Has a step met a problem?
    pub has_problem: bool,
}

impl From<&RemovalReport> for Removed {
    fn from(report: &RemovalReport) -> Self {
        let invalidated = report.step(Step::Invalidate);
        Self {
            cost: report.cost,
            frames_failed: invalidated.and_then(|record| record.facts.get("frames_failed")).unwrap_or(0),
            has_problem: report.problems().next().is_some(),
        }
    }
}

/// Was nothing wrong with a removal?
///
/// # Errors
/// The first step that met a problem, and which.
pub fn was_well(report: &RemovalReport) -> Result<(), String> {
    match report.problems().next() {
        None => Ok(()),
        Some((step, problem)) => Err(format!("the removal of {}: step {step}: {problem}", report.device)),
    }
}

/// Removes device `at` without a word, where its removal is not what is looked at.
///
/// # Errors
/// It was not removed, or a step of it met a problem.
pub fn remove_well(at: usize) -> Result<(), String> {
    let report = devices::remove_quietly(at, Method::Ranged).map_err(|error| format!("removal: {error}"))?;
    was_well(&report)
}
