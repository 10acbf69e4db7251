//! What it costs until nobody can reach a device any more, where it has gone, and where somebody wants it back. Of what has gone
//! nobody is asked for anything, so it must not cost more. The memory is there in both: what is done is the same as if it was
//! not, and nothing is said on the console.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;

use dax::removal::{Cause, RemovalReport};
use mm::addr::PageSize;
use mm::gup::GupFlags;
use mm::region::{MemoryRegion, Notice, RegionOwner, Terms};

use crate::bench::figures::{Bound, Cost, Figures, median};
use crate::bench::removal::map;
use crate::bench::zap::Halted;
use crate::ktest::fixtures::{BASE, new_space, no_problems};
use crate::ktest::idle::attach;
use crate::mem::machine::mm;
use crate::pmem::devices;

/// How often each is done, after one time that does not count.
const REPEATS: usize = 5;
/// Pages that every other CPU has mapped, and that are registered.
const PAGES: u64 = 512;

/// Measures slot `slot`.
pub fn run(figures: &mut Figures, slot: usize) -> Result<(), String> {
    let mut cost_of = |cause: Cause| {
        let turn = || Ok(removed(slot, cause)?.instructions_until_unreachable());
        turn()?;
        let costs = (0..REPEATS).map(|_| turn()).collect::<Result<alloc::vec::Vec<_>, String>>()?;
        let cost = Cost::of(median(costs.clone()), 1);
        figures.median(&format!("removal_{cause}_until_unreachable"), costs, Bound::None, "");
        Ok::<_, String>(cost)
    };
    let (announced, gone) = (cost_of(Cause::Announced)?, cost_of(Cause::Gone)?);
    figures.add("removal_gone_over_announced", "times", gone.times(announced), Bound::at_most_hundredths(100), "");
    Ok(())
}

/// Removes a device that a space maps which all other CPUs have loaded, with a registration over all of that.
fn removed(slot: usize, cause: Cause) -> Result<Arc<RemovalReport>, String> {
    attach(slot)?;
    let space = new_space("gone")?;
    map(slot, &space, (0, PAGES), PageSize::Size4K)?;
    let account = mm().pins.open_account("bench", PAGES);
    let owner: Arc<dyn RegionOwner> = Arc::new(|_: &Notice| ());
    let terms = Terms { flags: GupFlags::WRITE, grace_ns: 0, account: &account };
    let region = MemoryRegion::register(&space, BASE, PAGES, &terms, Arc::downgrade(&owner));
    let region = region.map_err(|error| format!("register: {error}"))?;
    let halted = Halted::start(&space);
    let report = devices::remove_quietly_because(slot, cause).map_err(|error| format!("removal: {error}"));
    halted.stop()?;
    drop((region, owner));
    let report = report?;
    no_problems(&report)?;
    if report.cause != cause || report.cost.zap.leaves != PAGES {
        return Err(format!("cause {}, {} leaves", report.cause, report.cost.zap.leaves));
    }
    Ok(report)
}
