//! What single flushes cost against a full one: where `mm::tlb::FULL_FLUSH_ABOVE` comes from.
//!
//! A full flush costs what it executes, and the misses of everything that was in use and is looked up anew. In
//! deterministic mode, which counts instructions, a miss costs nothing: the walk is the machine's, not the program's.
//! Otherwise it is the time that the emulator takes.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;

use mm::addr::{PageSize, VirtRange};
use mm::shootdown::{FULL_FLUSH_ABOVE, FlushRange, Round};

use crate::bench::figures::{Bound, Cost, Figures, once};
use crate::bench::zap::{in_space, populate};
use crate::ktest::fixtures::{BASE, Device, at, page};
use crate::mem::machine::{Space, mm};
use crate::task::user;

/// Numbers of pages that are flushed.
const FLUSHED: [u64; 9] = [1, 2, 4, 8, 16, FULL_FLUSH_ABOVE, 64, 128, 256];
/// Pages that are in use besides, and are touched again after a flush.
const HOT: u64 = 64;
const TURNS: u64 = 64;

/// What the same work costs the least: another CPU's turn, or the host's other work, only adds.
fn least(mut work: impl FnMut() -> u64) -> u64 {
    (0..TURNS).map(|_| work()).min().unwrap_or(0)
}

/// Restores the number of single flushes.
struct Ceiling;

impl Ceiling {
    fn set(nr: u64) -> Self {
        mm().shootdown.set_full_flush_above(nr);
        Self
    }
}

impl Drop for Ceiling {
    fn drop(&mut self) {
        mm().shootdown.set_full_flush_above(FULL_FLUSH_ABOVE);
    }
}

/// One round on this CPU alone that takes `nr` pages away.
fn flush(space: &Arc<Space>, nr: u64) {
    let pages = |range| FlushRange::Pages { range, stride: PageSize::Size4K };
    let mut round = Round::new();
    round.issue(space.tlb(), VirtRange::new(BASE, page(nr)).map_or(FlushRange::All, pages), false);
    round.dispatch(&mm().shootdown, &mm().machine).sync();
}

/// Looks at each page in use.
fn touch() {
    for nr in 0..HOT {
        // All are mapped and present; one that is not is counted when they are touched for the first time.
        let _ = core::hint::black_box(user::read_u64(at(page(512 + nr))));
    }
}

/// The cost of touching all pages in use after flushing `nr` others, less that where nothing was flushed.
fn refill(space: &Arc<Space>, nr: u64) -> u64 {
    let after = least(|| {
        touch();
        flush(space, nr);
        once(touch).0
    });
    let warm = least(|| {
        touch();
        once(touch).0
    });
    after.saturating_sub(warm)
}

/// Measures flushes of this CPU alone.
pub fn run(figures: &mut Figures, device: &Device) -> Result<(), String> {
    let (single, full, refills) = in_space(device, (2 * PageSize::Size2M.bytes(), PageSize::Size4K), |space| {
        populate(space, 0, 512 + HOT)?;
        (0..HOT)
            .try_for_each(|nr| user::read_u64(at(page(512 + nr))).map(drop))
            .map_err(|signal| format!("{signal}"))?;
        let ceiling = Ceiling::set(u64::MAX);
        let single = FLUSHED.map(|nr| least(|| once(|| flush(space, nr)).0));
        let after_one = refill(space, 1);
        drop(ceiling);
        let ceiling = Ceiling::set(0);
        let full = least(|| once(|| flush(space, 1)).0);
        let after_full = refill(space, 1);
        drop(ceiling);
        Ok((single, full, (after_one, after_full)))
    })?;
    for (nr, cost) in FLUSHED.into_iter().zip(single) {
        figures.cost(&format!("flush_{nr}_pages"), Cost::of(cost, 1), Bound::None, "");
    }
    figures.cost("flush_all", Cost::of(full, 1), Bound::None, "");
    figures.cost(&format!("refill_{HOT}_pages_after_one_flush"), Cost::of(refills.0, 1), Bound::None, "");
    figures.cost(&format!("refill_{HOT}_pages_after_flush_all"), Cost::of(refills.1, 1), Bound::None, "");
    let (first, last, nr_last) = (single[0], single[FLUSHED.len() - 1], FLUSHED[FLUSHED.len() - 1]);
    let per_page = Cost::of(last.saturating_sub(first), nr_last - 1);
    figures.cost("flush_each_further_page", per_page, Bound::None, "");
    // Up to so many pages single flushes are the cheaper ones, where so many others are in use.
    let dearer = Cost::of((full + refills.1).saturating_sub(first + refills.0), 1);
    let pages = Cost::of(1, 1).plus(dearer.over(per_page));
    figures.add(&format!("flush_break_even_{HOT}_pages_in_use"), "pages", pages, Bound::None, "");
    Ok(())
}
