//! The reports of the devices' last removals, and where they are kept when memory is short.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicUsize, Ordering};

use dax::removal::RemovalReport;

use crate::pmem::removal_log;
use crate::pmem::slots::{Slot, slots};

/// Keeps the report of a removal, which is the last one of its slot from now on. Where memory ran short, parts of it are
/// in the reserve, which the next removal needs; by now the device's tables and metadata have gone, and there is mostly
/// memory for a copy. Where there is none it stays there, until [`settle`]. Answers what is kept.
pub(super) fn keep(at: usize, slot: &Slot, report: Arc<RemovalReport>, was_short: bool) -> Arc<RemovalReport> {
    let copy = if was_short { removal_log::out_of_reserve(&report) } else { Some(Arc::clone(&report)) };
    let stays = copy.is_none();
    let kept = copy.unwrap_or(report);
    let before = slot.last.lock().replace(Arc::clone(&kept));
    drop(before);
    if stays {
        log::info!("{}: memory is short still: the report is kept in the reserve", slot.name);
        settle_one(IN_RESERVE.swap(at + 1, Ordering::AcqRel), Some(at));
    }
    kept
}

/// Number of the slot, plus one, whose report has parts in the reserve; 0 where none has.
static IN_RESERVE: AtomicUsize = AtomicUsize::new(0);

/// An attach or a removal is about to begin, and may need all of the reserve: a report that lies there is copied out of
/// it or, where memory is short even now, forgotten.
pub(super) fn settle() {
    settle_one(IN_RESERVE.swap(0, Ordering::AcqRel), None);
}

/// The same for the report of one slot, by its number plus one; not for that of slot `but`, which is a newer one.
fn settle_one(number: usize, but: Option<usize>) {
    let Some(at) = number.checked_sub(1).filter(|&at| Some(at) != but) else { return };
    let slot = &slots()[at];
    let Some(report) = slot.last.lock().clone() else { return };
    let copy = removal_log::out_of_reserve(&report);
    if copy.is_none() {
        log::warn!("{}: memory is short still: the report of its removal is kept no longer", slot.name);
    }
    let mut last = slot.last.lock();
    // Unless a removal has put a newer one there.
    let before = if last.as_ref().is_some_and(|last| Arc::ptr_eq(last, &report)) {
        core::mem::replace(&mut *last, copy)
    } else {
        None
    };
    drop(last);
    drop(before);
}
