//! What it costs to attach and to remove a device: idle, with many extents, from many address spaces.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use dax::devdax::OpenOptions;
use dax::removal::{Method, RemovalReport};
use mm::addr::{PAGE_SHIFT, PageSize, PfnRange};
use mm::entry::Prot;
use mm::space::{Access, VmOps};

use crate::bench::figures::{Bound, Cost, Figures};
use crate::bench::zap::Halted;
use crate::ktest::fixtures::{at, new_space, others, page};
use crate::ktest::idle::{attach, idle, idle_bound, remove};
use crate::mem::machine::{KernelMachine, Space};
use crate::pmem::devices;

/// Numbers of extents.
const EXTENTS: [u64; 4] = [1, 10, 100, 1000];
/// Numbers of address spaces, with one extent each.
const SPACES: [u64; 3] = [1, 10, 100];

/// Measures NVDIMM `slot`.
pub fn run(figures: &mut Figures, slot: usize) -> Result<(), String> {
    let mib = devices::slots()[slot].frames.nr_pages() >> (20 - PAGE_SHIFT);
    let (attach, remove) = idle(slot)?;
    // Nothing grows with the size but the direct map, by one leaf a GiB. (An idle removal is a dozen allocations and
    // one shootdown of the kernel half.)
    let bound = Bound::AtMost(idle_bound(devices::slots()[slot].frames.nr_pages()));
    figures.cost(&format!("attach_idle_{mib}_mib"), Cost::of(attach, 1), bound, "");
    figures.cost(&format!("remove_idle_{mib}_mib"), Cost::of(remove, 1), bound, "");
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
    match PfnRange::new(devices::slots()[slot].frames.start(), PageSize::Size1G.nr_pages()) {
        Some(gib) if gib.nr_pages() <= devices::slots()[slot].frames.nr_pages() => baseline(figures, slot, mib, gib),
        _ => Ok(()),
    }
}

/// 1 GiB that is mapped with 4 KiB pages, all of them present, by a space that every other CPU has loaded: taken away
/// by range, and frame by frame for every one of its 262,144 frames. What both cost is all of it: clearing, shooting
/// down, and giving back what was mapped.
fn baseline(figures: &mut Figures, slot: usize, mib: u64, gib: PfnRange) -> Result<(), String> {
    let mut costs = [Cost::default(); 2];
    for (cost, (method, word)) in
        costs.iter_mut().zip([(Method::Ranged, "ranged"), (Method::PerFrame(gib), "per_frame")])
    {
        attach(slot)?;
        let space = new_space("baseline")?;
        map(slot, &space, 0, gib.nr_pages())?;
        let halted = Halted::start(&space);
        let report = remove(slot, method);
        halted.stop()?;
        let report = report?;
        let zap = report.cost.zap;
        if zap.nr_pages != gib.nr_pages() || zap.leaves != gib.nr_pages() {
            return Err(format!("1 GiB of 4 KiB pages, {word}: {zap:?}"));
        }
        *cost = Cost::of(report.cost.instructions, 1);
        figures.cost(&format!("remove_1g_of_4K_{word}_{mib}_mib"), *cost, Bound::None, "");
        let name = format!("remove_1g_of_4K_{word}_{mib}_mib_ipis");
        // By range there is one round, whatever is mapped.
        let bound = if method == Method::Ranged { Bound::AtMost(others().len() as u64) } else { Bound::None };
        figures.add(&name, "interrupts", Cost::of(zap.ipis, 1), bound, "");
    }
    let [ranged, per_frame] = costs;
    let name = format!("per_frame_over_ranged_1g_of_4K_{mib}_mib");
    // Not a thousand: what gets a frame at a time cheaper (a mapping found by page map and number, a frame marked without a
    // reference) lowers it, and is no loss.
    figures.add(&name, "times", per_frame.times(ranged), Bound::AtLeast(900), "");
    Ok(())
}

/// However many extents: one round of shootdown, and at most one interrupt for each other CPU.
fn rounds(figures: &mut Figures, report: &RemovalReport, name: &str) {
    let rounds = Cost::of(report.cost.zap.rounds, 1);
    figures.add(&format!("{name}_rounds"), "rounds", rounds, Bound::AtMost(1), "");
    let ipis = Cost::of(report.cost.zap.ipis, 1);
    figures.add(&format!("{name}_ipis"), "interrupts", ipis, Bound::AtMost(others().len().into()), "");
}

/// Removes a device that `nr_spaces` address spaces map, each by `nr_extents` extents of one page, all present.
fn removal(slot: usize, nr_spaces: u64, nr_extents: u64) -> Result<Arc<RemovalReport>, String> {
    attach(slot)?;
    let spaces = (0..nr_spaces).map(|_| mapped(slot, nr_extents)).collect::<Result<Vec<_>, String>>();
    let report = remove(slot, Method::Ranged)?;
    let spaces = spaces?;
    let expected = nr_spaces * nr_extents;
    drop(spaces);
    if report.cost.zap.leaves != expected || report.users.len() as u64 != expected {
        return Err(format!("{expected} extents: {:?}, {} users", report.cost.zap, report.users.len()));
    }
    Ok(report)
}

fn mapped(slot: usize, nr_extents: u64) -> Result<Arc<Space>, String> {
    let space = new_space("extents")?;
    // Every other page, so that each is an extent of its own.
    (0..nr_extents).try_for_each(|nth| map(slot, &space, 2 * nth, 1))?;
    Ok(space)
}

/// Maps `nr` pages of the device from `first` on with 4 KiB pages, at the page of the same number, and lets all of them
/// be present.
fn map(slot: usize, space: &Arc<Space>, first: u64, nr: u64) -> Result<(), String> {
    let fail = |error: &dyn core::fmt::Display| format!("page {first} and {nr} in all: {error}");
    let file = devices::file(slot).map_err(|error| fail(&error))?;
    let file = file.open(OpenOptions::exactly(PageSize::Size4K)).map_err(|error| fail(&error))?;
    let ops: Arc<dyn VmOps<KernelMachine>> = file;
    let va = at(page(first));
    space.map(va, page(nr), Prot::USER_WRITE, &ops, first).map_err(|error| fail(&error))?;
    space.populate(va, page(nr), Access::Write).map_err(|error| fail(&error))
}
