//! What came of each act, told when it is over: in words, and in a line for programs. What is wrong with it the verdict says.

use alloc::format;
use core::fmt;

use super::desk::DeskAct;
use super::files::FilesAct;
use super::page::PageAct;
use super::verdict::Round;
use crate::console::report;
use crate::io::dma::DmaError;
use crate::trap::memory_error::RaisedBy;

/// A figure, or `none` where nobody has looked.
struct Known<T>(Option<T>);

impl<T: fmt::Display> fmt::Display for Known<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(value) => value.fmt(f),
            None => f.write_str("none"),
        }
    }
}

/// One of the two rounds.
pub fn tell_round(name: &str, round: &Round) {
    log::info!(
        "{name}: {} of {} tasks that used the device ended by SIGBUS, {} of {} others went on; {} pins, {} wrong stamps",
        round.ended_by_sigbus,
        round.users,
        round.went_on,
        round.bystanders,
        round.pins,
        round.wrong_stamps
    );
    report!(
        "round method={name} users={} sigbus={} bystanders={} went_on={} pins={} wrong_stamps={}",
        round.users,
        round.ended_by_sigbus,
        round.bystanders,
        round.went_on,
        round.pins,
        round.wrong_stamps
    );
}

/// The act without a load.
pub fn tell_page(act: &PageAct) {
    let lost_by = match act.lost {
        Some(loss) => format!("a machine check from the {}", RaisedBy::of(&loss)),
        None => "no machine check".into(),
    };
    log::info!(
        "one by one: {} faults injected, {} leaks; a page was lost by {lost_by}, was on the list as {} sectors, and \
         healed by a write: {}",
        act.faults,
        act.leaks,
        act.bad_sectors,
        act.healed
    );
    report!(
        "page faults={} leaks={} same={} users={} sigbus={} told={} read_on={} io_error={} bad_sectors={} healed={}",
        act.faults,
        act.leaks,
        u8::from(act.same),
        act.users,
        act.ended_by_sigbus,
        u8::from(act.told),
        u8::from(act.read_on),
        u8::from(act.io_error),
        act.bad_sectors,
        u8::from(act.healed)
    );
}

/// An act with a file system: `files`, or `desk`.
pub fn tell_files(name: &str, act: &FilesAct) {
    let FilesAct { programs, databases, callers, bystanders, .. } = act;
    log::info!(
        "{name}: {} of {} programs ended by SIGBUS, {} of {} databases caught it, {} of {} callers were refused, {} of \
         {} others went on; {} synced records lost, {} faults found by the checker",
        programs.rightly,
        programs.tasks,
        databases.rightly,
        databases.tasks,
        callers.rightly,
        callers.tasks,
        bystanders.rightly,
        bystanders.tasks,
        Known(act.found.map(|(_, lost)| lost)),
        Known(act.found.map(|(problems, _)| problems))
    );
    report!(
        "files act={name} programs={} sigbus={} databases={} caught={} callers={} refused={} bystanders={} went_on={} syncs={} \
         calls={} pins={} wrong={} nothing={} damage={} lost={}",
        programs.tasks,
        programs.rightly,
        databases.tasks,
        databases.rightly,
        callers.tasks,
        callers.rightly,
        bystanders.tasks,
        bystanders.rightly,
        act.syncs,
        act.calls,
        act.pins,
        act.wrong,
        act.nothing,
        Known(act.found.map(|(problems, _)| problems)),
        Known(act.found.map(|(_, lost)| lost))
    );
}

/// The last act.
pub fn tell_desk(act: &DeskAct) {
    tell_files("desk", &act.files);
    match &act.edu {
        Ok(()) => log::info!("desk: the edu device's transfer counts as done"),
        Err(error) => {
            log::info!("desk: the edu device says that its transfer is done; it is not believed: {error}")
        }
    }
    match &act.fault {
        Ok(record) => log::info!("desk: one more transfer, that nobody was asked for: {record}"),
        Err(why) => log::info!("desk: one more transfer, that nobody was asked for: {why}"),
    }
    match &act.disk {
        Some((reads, error)) => log::info!("desk: the disk did {reads} reads; the next one: {error}"),
        None => log::info!("desk: there is no disk"),
    }
    log::info!(
        "desk: {} transfers were blocked; the modules {}",
        act.blocked,
        if act.is_back { "were put back, and looked at" } else { "stay away" }
    );
    report!(
        "desk edu_refused={} edu_landed={} reads={} read_refused={} blocked={} back={} kept={}",
        u8::from(act.edu.is_err()),
        Known(act.edu_landed.map(u8::from)),
        Known(act.disk.as_ref().map(|(reads, _)| reads)),
        Known(
            act.disk
                .as_ref()
                .map(|(_, error)| u8::from(matches!(error, DmaError::Use(_) | DmaError::Fault(_) | DmaError::Gone)))
        ),
        act.blocked,
        u8::from(act.is_back),
        Known(act.kept.map(u8::from))
    );
}
