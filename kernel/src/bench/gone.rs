//! What it costs until nobody can reach a device any more, where it has gone, and where somebody wants it back. Of what has gone
//! nobody is asked for anything, so it must not cost more. The memory is there in both: what is done is the same as if it was
//! not, and nothing is said on the console.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use dax::removal::{Cause, RemovalReport};
use mm::addr::PageSize;
use mm::gup::GupFlags;
use mm::region::{MemoryRegion, Notice, RegionOwner, Terms};

use crate::bench::figures::{Bound, Cost, Figures};
use crate::bench::removal::map;
use crate::bench::zap::Halted;
use crate::ktest::fixtures::{at, new_space, no_problems, page};
use crate::ktest::idle::attach;
use crate::mem::machine::mm;
use crate::pmem::devices;

/// How often each is done, in turn, after one time that does not count.
const REPEATS: usize = 48;
/// Pages that every other CPU has mapped, and that are registered, in parts.
const PAGES: u64 = 512;
const REGISTRATIONS: u64 = 16;

/// Measures slot `slot`. The figure is the least of each: a timer that ticks on some CPU adds to a turn, nothing takes away.
pub fn run(figures: &mut Figures, slot: usize) -> Result<(), String> {
    const CAUSES: [Cause; 2] = [Cause::Announced, Cause::Gone];
    let turn = |cause| Ok::<_, String>(removed(slot, cause)?.instructions_until_unreachable());
    CAUSES.into_iter().try_for_each(|cause| turn(cause).map(drop))?;
    let mut costs = [const { Vec::new() }; 2];
    for _ in 0..REPEATS {
        for (costs, cause) in costs.iter_mut().zip(CAUSES) {
            costs.push(turn(cause)?);
        }
    }
    let least = costs.map(|costs| Cost::of(costs.into_iter().min().unwrap_or(0), 1));
    for (least, cause) in least.into_iter().zip(CAUSES) {
        figures.cost(&format!("removal_{cause}_until_unreachable"), least, Bound::None, "");
    }
    let [announced, gone] = least;
    figures.add("removal_gone_over_announced", "times", gone.times(announced), Bound::at_most_hundredths(100), "");
    Ok(())
}

/// Removes a device that a space maps which all other CPUs have loaded, with registrations over all of that.
fn removed(slot: usize, cause: Cause) -> Result<Arc<RemovalReport>, String> {
    attach(slot)?;
    let space = new_space("gone")?;
    map(slot, &space, (0, PAGES), PageSize::Size4K)?;
    let account = mm().pins.open_account("bench", PAGES);
    let owner: Arc<dyn RegionOwner> = Arc::new(|_: &Notice| ());
    let terms = Terms { flags: GupFlags::WRITE, grace_ns: 0, account: &account };
    let register = |nr| {
        let (va, each) = (at(page(nr * (PAGES / REGISTRATIONS))), PAGES / REGISTRATIONS);
        let region = MemoryRegion::register(&space, va, each, &terms, Arc::downgrade(&owner));
        region.map_err(|error| format!("register: {error}"))
    };
    let regions = (0..REGISTRATIONS).map(register).collect::<Result<Vec<_>, String>>()?;
    let halted = Halted::start(&space);
    let report = devices::remove_quietly_because(slot, cause).map_err(|error| format!("removal: {error}"));
    halted.stop()?;
    drop((regions, owner));
    let report = report?;
    no_problems(&report)?;
    if report.cause != cause || report.cost.zap.leaves != PAGES {
        return Err(format!("cause {}, {} leaves", report.cause, report.cost.zap.leaves));
    }
    Ok(report)
}
