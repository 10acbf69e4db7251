//! What the two rounds cost, side by side; the ledger; the verdict.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use dax::removal::RemovalReport;
use mm::addr::PfnRange;
use mm::ledger::Kind;

use super::Books;
use crate::{console, report, time};

/// What came of one round.
pub struct Round {
    /// The removal.
    pub report: Arc<RemovalReport>,
    /// Tasks that used the device.
    pub users: usize,
    /// Those of them that SIGBUS ended.
    pub ended_by_sigbus: usize,
    /// Tasks that did not use it.
    pub bystanders: usize,
    /// Those of them that went on until they were told to stop.
    pub went_on: usize,
    /// Pages pinned, in all.
    pub pins: u64,
    /// Wrong stamps.
    pub wrong_stamps: u64,
}

/// Good, or why not.
pub struct Verdict {
    faults: Vec<String>,
}

impl Verdict {
    /// The demonstration could not be done.
    pub fn bad(reason: String) -> Self {
        Self { faults: alloc::vec![reason] }
    }

    /// Prints the table and the ledger, and judges.
    pub fn new(device: PfnRange, ranged: Round, per_frame: Round, before: &Books, after: &Books) -> Self {
        let mut verdict = Self { faults: Vec::new() };
        print_table(device, &ranged, &per_frame);
        verdict.judge_ledger(before, after);
        verdict.judge_round("ranged", &ranged);
        verdict.judge_round("per-frame", &per_frame);
        verdict.expect(ranged.report.cost.zap.rounds == 1, "the ranged removal took more than one shootdown");
        verdict
    }

    /// Is everything as it should be?
    pub fn is_good(&self) -> bool {
        self.faults.is_empty()
    }

    /// Says so.
    pub fn print(&self) {
        match self.faults.first() {
            None => {
                log::info!("good");
                report!("verdict result=good");
            }
            Some(first) => {
                for fault in &self.faults {
                    log::error!("{fault}");
                }
                report!("verdict result=bad reason={}", first.replace(' ', "-"));
            }
        }
    }

    fn expect(&mut self, holds: bool, otherwise: &str) {
        if !holds {
            self.faults.push(otherwise.into());
        }
    }

    fn judge_round(&mut self, name: &str, round: &Round) {
        report!(
            "round method={name} users={} sigbus={} bystanders={} went_on={} pins={} wrong_stamps={}",
            round.users,
            round.ended_by_sigbus,
            round.bystanders,
            round.went_on,
            round.pins,
            round.wrong_stamps
        );
        self.expect(round.ended_by_sigbus == round.users, "a task that used the device did not end by SIGBUS");
        self.expect(round.went_on == round.bystanders, "a task that did not use the device did not go on");
        self.expect(round.wrong_stamps == 0, "a page carried a wrong stamp");
        self.expect(round.report.problems().next().is_none(), "a step of a removal met a problem");
    }

    fn judge_ledger(&mut self, before: &Books, after: &Books) {
        for &kind in Kind::ALL {
            let delta = after.ledger.count(kind) - before.ledger.count(kind);
            report!("ledger kind={kind} count={} delta={delta}", after.ledger.count(kind));
            self.expect(delta == 0, "the ledger is not what it was before the device came");
        }
        let leaked = after.frames as i64 - before.frames as i64;
        report!("ledger kind=ram_frames count={} delta={leaked}", after.frames);
        self.expect(leaked == 0, "frames of RAM were not given back");
    }
}

/// One line for each figure: what the range cost, what the frames cost.
fn print_table(device: PfnRange, ranged: &Round, per_frame: &Round) {
    let covered = per_frame.report.step(dax::removal::Step::Invalidate);
    let frames = covered.and_then(|record| record.facts.get("frames_failed")).unwrap_or(0);
    console::line(format_args!("{:<18} {:>14} {:>14}", "", "ranged", "per frame"));
    print_row("frames_covered", device.nr_pages(), frames);
    let (ranged_rows, per_frame_rows) = (ranged.report.cost.rows(), per_frame.report.cost.rows());
    for ((name, range), (_, frame)) in ranged_rows.into_iter().zip(per_frame_rows) {
        let name = if name == "instructions" { time::cost_unit() } else { name };
        print_row(name, range, frame);
    }
    let per = |cost: u64, frames: u64| cost.checked_div(frames).unwrap_or(0);
    let (range, frame) = (ranged.report.cost, per_frame.report.cost);
    print_row("ns_per_frame", per(range.ns, device.nr_pages()), per(frame.ns, frames));
    let whole = u128::from(frame.ns) * u128::from(device.nr_pages()) / u128::from(frames.max(1));
    console::line(format_args!(
        "The range took {} microseconds for all {} frames. At the rate measured over {frames} frames, one by one would \
         take {} milliseconds (extrapolated).",
        range.ns / 1000,
        device.nr_pages(),
        whole / 1_000_000
    ));
}

fn print_row(name: &str, ranged: u64, per_frame: u64) {
    console::line(format_args!("{name:<18} {ranged:>14} {per_frame:>14}"));
    report!("table row={name} ranged={ranged} perframe={per_frame}");
}
