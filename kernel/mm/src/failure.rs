//! Losing one page: `memory_failure`, and the loop over it that a ranged removal is compared with.
//!
//! A frame fails → its folio is marked poisoned → its owner's reverse map tells who maps it → the entry is taken
//! out of each of their page tables → one shootdown → the next access of a task faults and is answered with
//! SIGBUS. All of that for **one** frame: a 6 TiB device has 1,610,612,736 of them.
//!
//! Linux: `mm/memory-failure.c`, `memory_failure` and `mf_generic_kill_procs`.

use alloc::vec::Vec;
use core::fmt;

use crate::addr::{Pfn, PfnRange};
use crate::context::MmContext;
use crate::gather::{Gather, ZapStats};
use crate::machine::{Machine, has_room};
use crate::mapping::{Unmapped, unmap_each};
use crate::meta::Page;
use crate::sync::Arc;

/// Why the frame fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// The medium has lost the contents: the frame is marked poisoned.
    Media,
    /// The device is about to leave and its contents are as good as ever: nothing is marked (Linux:
    /// `MF_MEM_PRE_REMOVE`).
    PreRemove,
}

/// A frame that no device owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoSuchFrame(pub Pfn);

impl fmt::Display for NoSuchFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "frame {} belongs to no registered device", self.0)
    }
}

/// What one failure found.
pub struct Failure<M: Machine> {
    /// It was marked already.
    pub was_poisoned: bool,
    /// Who mapped it, and where.
    pub users: Vec<Unmapped<M>>,
    /// What it cost.
    pub stats: ZapStats,
}

/// Takes the frame away from everybody who maps it.
///
/// When it returns no CPU can reach the frame through a user mapping. Pins stay: their owners learn of it from the
/// device. A frame that nobody maps is marked all the same.
///
/// # Errors
/// [`NoSuchFrame`]: nothing is done.
///
/// # Panics
/// With interrupts off: it waits for a shootdown.
pub fn memory_failure<M: Machine>(
    mm: &Arc<MmContext<M>>,
    pfn: Pfn,
    kind: FailureKind,
) -> Result<Failure<M>, NoSuchFrame> {
    let map = mm.meta.find_map(pfn).ok_or(NoSuchFrame(pfn))?;
    let was_poisoned = match kind {
        FailureKind::Media => !map.poison(pfn),
        FailureKind::PreRemove => false,
    };
    let mut gather = Gather::new(mm);
    let mut users = Vec::new();
    // Without a reference: its count may have no room for one. If the folio goes meanwhile, there is nothing to unmap.
    let look = |page: &Page| {
        if kind != FailureKind::PreRemove {
            page.set_poisoned(true);
        }
        (page.owner(), page.head())
    };
    if let Some((owner, head)) = mm.meta.with_page(pfn, look)
        && let Some(mapping) = mm.find_mapping(&map, owner.mapping)
    {
        let offset = owner.offset + (pfn.as_u64() - head.as_u64());
        unmap_each(&mapping, offset, 1, &mut gather, &mut |space, range| {
            // It is taken away in any case; who did it is named as long as there is memory for that.
            if has_room(&mm.machine, &mut users) {
                users.push(Unmapped { space: Arc::clone(space), range });
            }
        });
    }
    Ok(Failure { was_poisoned, users, stats: gather.finish() })
}

/// The baseline: [`memory_failure`] for each frame of a range, one after the other, each with a shootdown of its
/// own. Frames that no device owns are skipped.
pub fn fail_each_frame<M: Machine>(mm: &Arc<MmContext<M>>, frames: PfnRange) -> ZapStats {
    let mut stats = ZapStats::default();
    for pfn in frames.start().as_u64()..frames.end().as_u64() {
        if let Ok(failure) = memory_failure(mm, Pfn::new(pfn), FailureKind::PreRemove) {
            stats.add(failure.stats);
        }
    }
    stats
}
