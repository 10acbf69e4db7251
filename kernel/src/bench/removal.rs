//! What it costs to attach and to remove a device: idle, from several address spaces, mapped with 4 KiB pages, mapped
//! throughout. The cost of a removal is the sum of its eight steps, as its report has it: without the console, and without
//! the look at every page table that a build with checks takes between two of the steps.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use dax::devdax::OpenOptions;
use dax::removal::{Method, RemovalReport};
use mm::addr::{PAGE_SHIFT, PageSize, PfnRange};
use mm::entry::Prot;
use mm::space::{Access, VmOps};

use crate::bench::figures::{Bound, Cost, Figures, median, once};
use crate::bench::zap::Halted;
use crate::ktest::fixtures::{at, new_space, no_problems, others, page};
use crate::ktest::idle::attach;
use crate::mem::machine::{KernelMachine, Space};
use crate::mem::paging;
use crate::pmem::devices;

const MIB2: u64 = PageSize::Size2M.bytes();
/// How often an idle device is attached and removed, after one time that does not count.
const REPEATS: usize = 5;
/// Numbers of address spaces, with one extent each.
const SPACES: [u64; 2] = [1, 100];
/// Pages that are taken away by range and frame by frame: 4 GiB.
const SMALL_PAGES: u64 = 4 * PageSize::Size1G.nr_pages();

/// The size of slot `slot`, for a name: `6_tib`.
pub fn size_name(slot: usize) -> String {
    let mib = devices::slots()[slot].frames.nr_pages() >> (20 - PAGE_SHIFT);
    match mib {
        _ if mib.is_multiple_of(1 << 20) => format!("{}_tib", mib >> 20),
        _ if mib.is_multiple_of(1 << 10) => format!("{}_gib", mib >> 10),
        _ => format!("{mib}_mib"),
    }
}

/// The slot with the most frames.
pub fn largest() -> usize {
    let slots = devices::slots();
    (0..slots.len()).max_by_key(|&slot| slots[slot].frames.nr_pages()).unwrap_or(0)
}

/// Measures slot `slot` while nobody uses it.
pub fn idle(figures: &mut Figures, slot: usize) -> Result<(), String> {
    let (attaches, removals) = idle_costs(slot)?;
    let size = size_name(slot);
    figures.median(&format!("attach_{size}"), attaches, Bound::at_most(30_000), "");
    figures.median(&format!("idle_removal_{size}"), removals, Bound::at_most(20_000), "");
    Ok(())
}

/// The costs of attaching and of removing a device that nobody uses, several times.
pub fn idle_costs(slot: usize) -> Result<(Vec<u64>, Vec<u64>), String> {
    let turn = || {
        let (cost, attached) = once(|| attach(slot));
        attached?;
        Ok((cost, remove(slot, Method::Ranged)?.instructions()))
    };
    turn()?;
    let turns = (0..REPEATS).map(|_| turn()).collect::<Result<Vec<_>, String>>()?;
    Ok(turns.into_iter().unzip())
}

/// Does a removal several times; answers the costs, and the last report.
pub fn repeated(
    repeats: usize,
    mut removal: impl FnMut() -> Result<Arc<RemovalReport>, String>,
) -> Result<(Vec<u64>, Arc<RemovalReport>), String> {
    let mut last = removal()?;
    let mut costs = alloc::vec![last.instructions()];
    for _ in 1..repeats {
        last = removal()?;
        costs.push(last.instructions());
    }
    Ok((costs, last))
}

/// Removes a device that many address spaces map.
pub fn spaces(figures: &mut Figures, slot: usize) -> Result<(), String> {
    for nr in SPACES {
        let (costs, report) = repeated(REPEATS, || from_spaces(slot, nr))?;
        let name = format!("removal_from_{nr}_spaces");
        figures.median(&name, costs, Bound::None, "");
        rounds(figures, &report, &name);
    }
    Ok(())
}

fn from_spaces(slot: usize, nr: u64) -> Result<Arc<RemovalReport>, String> {
    attach(slot)?;
    let mapped = |_| {
        let space = new_space("spaces")?;
        map(slot, &space, (0, 1), PageSize::Size4K).map(|()| space)
    };
    let spaces = (0..nr).map(mapped).collect::<Result<Vec<_>, String>>();
    let report = remove(slot, Method::Ranged)?;
    drop(spaces?);
    expect(&report, nr)?;
    Ok(report)
}

/// The same 16 extents in four spaces, three of which other CPUs have loaded, on a small device and on a large one: the
/// cost of the one over that of the other.
pub fn by_size(figures: &mut Figures, small: usize, large: usize) -> Result<(), String> {
    let mut costs = [Cost::default(); 2];
    for (cost, slot) in costs.iter_mut().zip([small, large]) {
        let (costs, report) = repeated(REPEATS, || sixteen(slot, &mut || ()))?;
        *cost = Cost::of(median(costs.clone()), 1);
        let name = format!("removal_{}_of_16_extents", size_name(slot));
        figures.median(&name, costs, Bound::None, "");
        rounds(figures, &report, &name);
    }
    let name = format!("removal_{}_over_{}", size_name(large), size_name(small));
    figures.add(&name, "times", costs[1].times(costs[0]), Bound::at_most_hundredths(110), "");
    Ok(())
}

/// Removes a device of which four spaces map four extents of 2 MiB each.
/// `mapped` is called when all is mapped.
pub fn sixteen(slot: usize, mapped: &mut dyn FnMut()) -> Result<Arc<RemovalReport>, String> {
    attach(slot)?;
    let spaces = (0..4).map(|_| new_space("sixteen")).collect::<Result<Vec<_>, _>>()?;
    for (nth, space) in (0..).zip(&spaces) {
        for extent in 0..4 {
            let first = (nth * 4 + extent) * 1024;
            map_at(slot, space, extent * 2 * MIB2, (first, 512), PageSize::Size2M)?;
        }
    }
    mapped();
    let halted = Halted::start_each(&spaces[..3]);
    let report = remove(slot, Method::Ranged);
    halted.stop()?;
    let report = report?;
    expect(&report, 16)?;
    Ok(report)
}

/// All of a device mapped with leaves of 1 GiB, by three spaces that other CPUs have loaded.
pub fn mapped_throughout(figures: &mut Figures, slot: usize) -> Result<(), String> {
    let nr = devices::slots()[slot].frames.nr_pages() & !(PageSize::Size1G.nr_pages() - 1);
    if !paging::has_gib_leaves() || nr == 0 {
        return Ok(());
    }
    attach(slot)?;
    let spaces = (0..3).map(|_| new_space("whole")).collect::<Result<Vec<_>, _>>()?;
    spaces.iter().try_for_each(|space| map(slot, space, (0, nr), PageSize::Size1G))?;
    let halted = Halted::start_each(&spaces);
    let report = remove(slot, Method::Ranged);
    halted.stop()?;
    let report = report?;
    expect(&report, 3 * nr / PageSize::Size1G.nr_pages())?;
    let name = format!("removal_{}_mapped_1g", size_name(slot));
    figures.cost(&name, Cost::of(report.instructions(), 1), Bound::at_most(2_000_000), "");
    rounds(figures, &report, &name);
    Ok(())
}

/// 4 GiB that are mapped with 4 KiB pages, all of them present, by a space that every other CPU has loaded: taken away by
/// range, and frame by frame for every one of its 1,048,576 frames. What both cost is all of it: clearing, shooting down,
/// and giving back what was mapped.
pub fn small_pages(figures: &mut Figures, slot: usize) -> Result<(), String> {
    let start = devices::slots()[slot].frames.start();
    let Some(range) = PfnRange::new(start, SMALL_PAGES) else { return Err("4 GiB end beyond the last frame".into()) };
    if devices::slots()[slot].frames.nr_pages() < SMALL_PAGES {
        let why = "no device has 4 GiB";
        figures.cannot("removal_4k_each_page", EACH_SMALL_PAGE, why);
        figures.cannot("per_frame_over_ranged", PER_FRAME, why);
        return Ok(());
    }
    let ranged = of_small_pages(slot, Method::Ranged)?;
    figures.cost("removal_4k_each_page", Cost::of(ranged.instructions(), SMALL_PAGES), EACH_SMALL_PAGE, "95");
    rounds(figures, &ranged, "removal_4k");
    let per_frame = of_small_pages(slot, Method::PerFrame(range))?;
    let cost = Cost::of(per_frame.instructions(), SMALL_PAGES);
    figures.cost("removal_4k_per_frame_each_page", cost, Bound::None, "");
    let ipis = Cost::of(per_frame.cost.zap.ipis, SMALL_PAGES);
    figures.add("removal_4k_per_frame_ipis_each_page", "interrupts", ipis, Bound::None, "");
    let times = Cost::of(per_frame.instructions(), 1).times(Cost::of(ranged.instructions(), 1));
    figures.add("per_frame_over_ranged", "times", times, PER_FRAME, "");
    Ok(())
}

const EACH_SMALL_PAGE: Bound = Bound::at_most(1);
const PER_FRAME: Bound = Bound::at_least(5000);

fn of_small_pages(slot: usize, method: Method) -> Result<Arc<RemovalReport>, String> {
    attach(slot)?;
    let space = new_space("baseline")?;
    map(slot, &space, (0, SMALL_PAGES), PageSize::Size4K)?;
    let halted = Halted::start(&space);
    let report = remove(slot, method);
    halted.stop()?;
    let report = report?;
    let zap = report.cost.zap;
    if zap.nr_pages != SMALL_PAGES || zap.leaves != SMALL_PAGES {
        return Err(format!("4 GiB of 4 KiB pages, {method:?}: {zap:?}"));
    }
    Ok(report)
}

/// However much: one round of shootdown, and at most one interrupt for each other CPU.
pub fn rounds(figures: &mut Figures, report: &RemovalReport, name: &str) {
    let rounds = Cost::of(report.cost.zap.rounds, 1);
    figures.add(&format!("{name}_rounds"), "rounds", rounds, Bound::at_most(1), "");
    let ipis = Cost::of(report.cost.zap.ipis, 1);
    figures.add(&format!("{name}_ipis"), "interrupts", ipis, Bound::at_most(others().len().into()), "");
}

/// Fails unless so many leaves went.
pub fn expect(report: &RemovalReport, leaves: u64) -> Result<(), String> {
    if report.cost.zap.leaves == leaves {
        return Ok(());
    }
    Err(format!("{}: {leaves} leaves were mapped: {:?}", report.device, report.cost.zap))
}

/// Removes the device of slot `slot` without a word on the console.
pub fn remove(slot: usize, method: Method) -> Result<Arc<RemovalReport>, String> {
    let report = devices::remove_quietly(slot, method).map_err(|error| format!("removal: {error}"))?;
    no_problems(&report)?;
    Ok(report)
}

/// The device of slot `slot` as a file that is mapped with leaves of `size`.
pub fn file(slot: usize, size: PageSize) -> Result<Arc<dyn VmOps<KernelMachine>>, String> {
    let file = devices::file(slot).map_err(|error| format!("no file: {error}"))?;
    let file = file.open(OpenOptions::exactly(size)).map_err(|error| format!("open: {error}"))?;
    Ok(file)
}

/// Maps pages of the device (the first, how many) with leaves of `size` at the page of the same number, and lets all of
/// them be present.
pub fn map(slot: usize, space: &Arc<Space>, (first, nr): (u64, u64), size: PageSize) -> Result<(), String> {
    map_at(slot, space, page(first), (first, nr), size)
}

fn map_at(slot: usize, space: &Arc<Space>, offset: u64, (first, nr): (u64, u64), size: PageSize) -> Result<(), String> {
    let fail = |error: &dyn core::fmt::Display| format!("page {first} and {nr} in all: {error}");
    let ops = file(slot, size)?;
    let va = at(offset);
    space.map(va, page(nr), Prot::USER_WRITE, &ops, first).map_err(|error| fail(&error))?;
    space.populate(va, page(nr), Access::Write).map_err(|error| fail(&error))
}
