//! What it costs to attach and to remove a device: idle, with many extents, from many address spaces.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use dax::devdax::OpenOptions;
use dax::removal::{Method, RemovalReport};
use mm::addr::{PAGE_SHIFT, PAGE_SIZE, PageSize};
use mm::entry::Prot;
use mm::space::{Access, VmOps};

use crate::bench::{Bound, Cost, Figures, once};
use crate::devices;
use crate::ktests_mm::{at, new_space, no_problems, page};
use crate::machine::{KernelMachine, Space};

/// Numbers of extents.
const EXTENTS: [u64; 4] = [1, 10, 100, 1000];
/// Numbers of address spaces, with one extent each.
const SPACES: [u64; 3] = [1, 10, 100];

/// Measures NVDIMM `slot`.
pub fn run(figures: &mut Figures, slot: usize) -> Result<(), String> {
    let mib = devices::slots()[slot].frames.nr_pages() >> (20 - PAGE_SHIFT);
    let (attach, remove) = idle(slot)?;
    figures.cost(&format!("attach_idle_{mib}_mib"), Cost::of(attach, 1), Bound::None, "");
    figures.cost(&format!("remove_idle_{mib}_mib"), Cost::of(remove, 1), Bound::None, "");
    let mut per_extent = Vec::new();
    for nr in EXTENTS {
        let report = removal(slot, 1, nr)?;
        let cost = report.cost.instructions;
        per_extent.push(Cost::of(cost, nr));
        figures.cost(&format!("remove_{nr}_extents_{mib}_mib"), Cost::of(cost, 1), Bound::None, "");
        rounds(figures, &report, &format!("remove_{nr}_extents_{mib}_mib"));
    }
    // Linear: an extent among a thousand costs no more than one among a hundred, but for the depth of the trees.
    if let [.., hundred, thousand] = per_extent[..] {
        let percent = thousand.times(hundred).in_percent();
        figures.add(&format!("remove_linear_{mib}_mib"), "percent", percent, Bound::AtMost(120), "");
    }
    for nr in SPACES {
        let report = removal(slot, nr, 1)?;
        let cost = Cost::of(report.cost.instructions, 1);
        figures.cost(&format!("remove_{nr}_spaces_{mib}_mib"), cost, Bound::None, "");
        rounds(figures, &report, &format!("remove_{nr}_spaces_{mib}_mib"));
    }
    Ok(())
}

/// However many extents: one round of shootdown.
fn rounds(figures: &mut Figures, report: &RemovalReport, name: &str) {
    let rounds = Cost::of(report.cost.zap.rounds, 1);
    figures.add(&format!("{name}_rounds"), "rounds", rounds, Bound::AtMost(1), "");
}

fn attach(slot: usize) -> Result<(), String> {
    devices::attach_supervised(slot, &mut |_| Ok(())).map(drop).map_err(|error| format!("attach: {error}"))
}

fn remove(slot: usize) -> Result<Arc<RemovalReport>, String> {
    let report = devices::remove(slot, Method::Ranged).map_err(|error| format!("removal: {error}"))?;
    no_problems(&report)?;
    Ok(report)
}

/// The cost of attaching and of removing a device that nobody uses; the console's work is not in it.
fn idle(slot: usize) -> Result<(u64, u64), String> {
    let (cost, attached) = once(|| attach(slot));
    attached?;
    Ok((cost, remove(slot)?.instructions()))
}

/// Removes a device that `nr_spaces` address spaces map, each by `nr_extents` extents of one page, all present.
fn removal(slot: usize, nr_spaces: u64, nr_extents: u64) -> Result<Arc<RemovalReport>, String> {
    attach(slot)?;
    let spaces = (0..nr_spaces).map(|_| mapped(slot, nr_extents)).collect::<Result<Vec<_>, String>>();
    let report = remove(slot)?;
    let spaces = spaces?;
    let expected = nr_spaces * nr_extents;
    drop(spaces);
    if report.cost.zap.leaves != expected || report.users.len() as u64 != expected {
        return Err(format!("{expected} extents: {:?}, {} users", report.cost.zap, report.users.len()));
    }
    Ok(report)
}

fn mapped(slot: usize, nr_extents: u64) -> Result<Arc<Space>, String> {
    let file = devices::file(slot).map_err(|error| format!("no file: {error}"))?;
    let file = file.open(OpenOptions::exactly(PageSize::Size4K)).map_err(|error| format!("open: {error}"))?;
    let ops: Arc<dyn VmOps<KernelMachine>> = file;
    let space = new_space("extents")?;
    for nth in 0..nr_extents {
        // Every other page, so that each is an extent of its own.
        let va = at(page(2 * nth));
        let fail = |error: &dyn core::fmt::Display| format!("extent {nth}: {error}");
        space.map(va, PAGE_SIZE, Prot::USER_WRITE, &ops, 2 * nth).map_err(|error| fail(&error))?;
        space.populate(va, PAGE_SIZE, Access::Write).map_err(|error| fail(&error))?;
    }
    Ok(space)
}
