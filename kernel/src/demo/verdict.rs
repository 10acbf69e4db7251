//! What the two rounds cost, side by side; the ledger; the verdict.

use alloc::string::String;
use alloc::vec::Vec;

use mm::addr::PfnRange;
use mm::ledger::Kind;

use super::books::{Books, Removed};
use super::desk::{self, DeskAct};
use super::files::FilesAct;
use super::page::PageAct;
use crate::console::{self, report};
use crate::cpu::time;

/// What came of the acts after the two rounds.
pub struct Acts {
    /// The act without a load.
    pub page: PageAct,
    /// That with a file system.
    pub files: FilesAct,
    /// Each device of lent memory held what was written to it.
    pub lent: bool,
    /// The last one, where the machine has what it takes.
    pub desk: Option<DeskAct>,
}

/// What came of one round.
pub struct Round {
    /// The removal.
    pub removed: Removed,
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
    pub fn new(
        device: PfnRange,
        ranged: Round,
        per_frame: Round,
        acts: &Acts,
        (before, after): (&Books, &Books),
    ) -> Self {
        let mut verdict = Self { faults: Vec::new() };
        print_table(device, &ranged, &per_frame);
        verdict.judge_ledger(before, after);
        verdict.judge_round(&ranged);
        verdict.judge_round(&per_frame);
        verdict.judge_page(&acts.page);
        verdict.judge_files("files", &acts.files);
        if let Some(act) = &acts.desk {
            verdict.judge_desk(act);
        }
        verdict.expect(acts.lent, "lent memory did not hold what was written to it");
        verdict.expect(ranged.removed.cost.zap.rounds == 1, "the ranged removal took more than one shootdown");
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

    fn judge_round(&mut self, round: &Round) {
        self.expect(round.ended_by_sigbus == round.users, "a task that used the device did not end by SIGBUS");
        self.expect(round.went_on == round.bystanders, "a task that did not use the device did not go on");
        self.expect(round.wrong_stamps == 0, "a page carried a wrong stamp");
        self.expect(!round.removed.has_problem, "a step of a removal met a problem");
    }

    fn judge_page(&mut self, act: &PageAct) {
        self.expect(act.leaks == 0, "a step that was made to fail left something over");
        self.expect(act.same, "a sector did not hold what was written to it");
        self.expect(act.told, "the task with the lost page was not told of it");
        self.expect(act.read_on, "a task with another page did not go on");
        self.expect(act.ended_by_sigbus == act.users, "a task that used the device did not end by SIGBUS");
        self.expect(act.io_error && act.bad_sectors == 8, "a lost page is not on the list of bad blocks");
        self.expect(act.healed, "a full write did not heal a page");
        self.expect(!act.removed.has_problem, "a step of a removal met a problem");
    }

    fn judge_desk(&mut self, act: &DeskAct) {
        self.judge_files("desk", &act.files);
        self.expect(act.edu.is_err(), "a transfer to memory that has left counts as done");
        let is_told = act.fault.as_ref().is_ok_and(|record| record.owner.is_some_and(|owner| owner.revoked));
        self.expect(is_told && act.blocked > 0, "a transfer to an address that was revoked is not told as a fault");
        self.expect(act.edu_landed != Some(true), "a transfer that was cut off has landed");
        self.expect(act.kept != Some(false), "what was on a module is not there once it is back");
        let is_refused = |(reads, _): &(u64, _)| *reads >= desk::WARM_READS;
        self.expect(act.disk.as_ref().is_none_or(is_refused), "a disk has not read before the memory left");
    }

    fn judge_files(&mut self, name: &str, act: &FilesAct) {
        let FilesAct { programs, databases, callers, bystanders, notified, .. } = act;
        self.expect(programs.all_did(), "a program that mapped a file did not end by SIGBUS");
        self.expect(databases.all_did(), "a database did not catch SIGBUS and go on");
        self.expect(callers.all_did(), "a task that made calls did not end by a refusal");
        self.expect(bystanders.all_did(), "a task that did not use the file system did not go on");
        self.expect(act.wrong == 0, "a file held what nobody had stored");
        // What a CPU loads through its own mapping before the departure is noticed cannot be looked at.
        self.expect(act.nothing == 0 || name == "desk", "a file held nothing where something had been stored");
        let is = |what: fn((usize, u64)) -> bool| act.found.is_none_or(what);
        self.expect(is(|(problems, _)| problems == 0), "the file system was damaged by the removal");
        self.expect(is(|(_, lost)| lost == 0), "what was synced was not there afterwards");
        self.expect(act.found.is_some() || name == "desk", "the device was not looked at afterwards");
        // Of memory that is not there nothing is written out.
        let told_before = notified.pre_remove && notified.frozen;
        self.expect(told_before || name == "desk", "the file system was not told before the removal");
        self.expect(notified.told == notified.mappings, "a task that had mapped a file was not told");
        self.expect(notified.rounds == 1, "the file system took more than one shootdown");
        self.expect(notified.errors.is_empty(), "a step of the file system's notification met an error");
        self.expect(!act.removed.has_problem, "a step of a removal met a problem");
    }

    fn judge_ledger(&mut self, before: &Books, after: &Books) {
        for &kind in Kind::ALL {
            let delta = after.ledger().count(kind) - before.ledger().count(kind);
            report!("ledger kind={kind} count={} delta={delta}", after.ledger().count(kind));
            self.expect(delta == 0, "the ledger is not what it was before the device came");
        }
        let held = |kind: &&Kind| after.ledger().count(**kind) != 0;
        match Kind::ALL.iter().filter(held).count() {
            0 => log::info!("ledger: zero in all {} kinds", Kind::ALL.len()),
            nr => log::info!("ledger: something is held in {nr} of {} kinds", Kind::ALL.len()),
        }
        let leaked = after.frames() as i64 - before.frames() as i64;
        report!("ledger kind=ram_frames count={} delta={leaked}", after.frames());
        self.expect(leaked == 0, "frames of RAM were not given back");
    }
}

/// One line for each figure: what the range cost, what the frames cost.
fn print_table(device: PfnRange, ranged: &Round, per_frame: &Round) {
    let frames = per_frame.removed.frames_failed;
    console::words(format_args!("{:<18} {:>14} {:>14}", "", "ranged", "per frame"));
    print_row("frames_covered", device.nr_pages(), frames);
    let (ranged_rows, per_frame_rows) = (ranged.removed.cost.rows(), per_frame.removed.cost.rows());
    for ((name, range), (_, frame)) in ranged_rows.into_iter().zip(per_frame_rows) {
        let name = if name == "instructions" { time::cost_unit() } else { name };
        print_row(name, range, frame);
    }
    let per = |cost: u64, frames: u64| cost.checked_div(frames).unwrap_or(0);
    let (range, frame) = (ranged.removed.cost, per_frame.removed.cost);
    print_row("ns_per_frame", per(range.ns, device.nr_pages()), per(frame.ns, frames));
    let whole = u128::from(frame.ns) * u128::from(device.nr_pages()) / u128::from(frames.max(1));
    console::words(format_args!(
        "The range took {} microseconds for all {} frames. At the rate measured over {frames} frames, one by one would \
         take {} milliseconds (extrapolated).",
        range.ns / 1000,
        device.nr_pages(),
        whole / 1_000_000
    ));
}

fn print_row(name: &str, ranged: u64, per_frame: u64) {
    console::words(format_args!("{name:<18} {ranged:>14} {per_frame:>14}"));
    report!("table row={name} ranged={ranged} perframe={per_frame}");
}
