//! What a removal costs for each mapped extent: extents of 2 MiB that are mappings of their own, and leaves of one mapping.
//! That is what it costs above the removal of the same device while nobody uses it, shared by the extents.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;

use dax::removal::{Method, RemovalReport};
use mm::addr::{PAGE_SIZE, PageSize};
use mm::entry::Prot;
use mm::space::Access;

use crate::bench::figures::{Bound, Cost, Figures, median};
use crate::bench::removal::{expect, file, idle_costs, remove, repeated, rounds};
use crate::ktest::fixtures::{at, new_space, page};
use crate::ktest::idle::attach;
use crate::mem::memory;
use crate::pmem::devices;

/// Numbers of extents.
const EXTENTS: [u64; 5] = [16, 256, 4096, 16_384, 65_536];
/// How often a removal is done.
const REPEATS: usize = 3;
/// The same of few, each of which a tick of the timer would make dearer by a tenth.
const REPEATS_OF_FEW: usize = 7;
/// Leaves of one mapping.
const LEAVES: u64 = 65_536;
/// Every other 2 MiB are mapped, so that each is an extent of its own.
const STRIDE: u64 = 2 * PageSize::Size2M.nr_pages();
/// What a mapping of its own takes at most, in bytes: VMA, reverse map, page metadata, and its entry of three lists while the
/// device goes.
const BYTES_EACH: u64 = 1 << 10;
/// The same for a leaf.
const BYTES_EACH_LEAF: u64 = 256;

const EACH: Bound = Bound::at_most(400);
/// What an extent is on Linux 6.1, where there are 4,096 (`bench --linux`).
const LINUX_EACH: &str = "852";
const EACH_LEAF: Bound = Bound::at_most(200);
const LINEAR: Bound = Bound::at_most(110);

/// Measures removals of slot `slot` by number of extents.
pub fn run(figures: &mut Figures, slot: usize) -> Result<(), String> {
    let idle = idle(slot)?;
    let mut costs = (Cost::of(u64::MAX >> 8, 1), Cost::default());
    let mut all = true;
    for nr in EXTENTS {
        let name = format!("removal_of_{nr}_extents_each");
        if let Some(why) = no_room_for(slot, nr) {
            figures.cannot(&name, EACH, &why);
            all = false;
            continue;
        }
        // Where there are many, a tick of the timer more or less is nothing; where there are few, it is in few of the repeats.
        let repeats = match nr {
            ..=256 => REPEATS_OF_FEW,
            257..=4096 => REPEATS,
            _ => 1,
        };
        let (removals, report) = repeated(repeats, || of_mappings(slot, nr))?;
        let each = Cost::of(median(removals).saturating_sub(idle), nr);
        costs = (costs.0.min(each), costs.1.max(each));
        figures.cost(&name, each, EACH, if nr == 4096 { LINUX_EACH } else { "" });
        rounds(figures, &report, &format!("removal_of_{nr}_extents"));
    }
    let linear = "removal_of_extents_most_over_least";
    match all {
        true => figures.add(linear, "percent", costs.1.times(costs.0).in_percent(), LINEAR, ""),
        false => figures.cannot(linear, LINEAR, "not all numbers of extents could be had"),
    }
    let name = format!("removal_of_{LEAVES}_leaves_of_one_vma_each");
    if let Some(why) = no_room_for_leaves(slot, LEAVES) {
        figures.cannot(&name, EACH_LEAF, &why);
        return Ok(());
    }
    let report = of_leaves(slot, LEAVES)?;
    figures.cost(&name, Cost::of(report.instructions().saturating_sub(idle), LEAVES), EACH_LEAF, "");
    Ok(())
}

/// What the removal of slot `slot` costs while nobody uses it.
pub fn idle(slot: usize) -> Result<u64, String> {
    let (_, removals) = idle_costs(slot)?;
    Ok(median(removals))
}

fn too_small_for(slot: usize, nr: u64) -> Option<String> {
    let frames = devices::slots()[slot].frames.nr_pages();
    (frames < nr * STRIDE).then(|| format!("no device has {} GiB", (nr * STRIDE).div_ceil(1 << 18)))
}

/// Why so many mappings cannot be had, if they cannot.
pub fn no_room_for(slot: usize, nr: u64) -> Option<String> {
    room_for(slot, nr, BYTES_EACH, "mappings")
}

/// Why so many leaves of one mapping cannot be had, if they cannot.
pub fn no_room_for_leaves(slot: usize, nr: u64) -> Option<String> {
    room_for(slot, nr, BYTES_EACH_LEAF, "leaves")
}

fn room_for(slot: usize, nr: u64, bytes: u64, what: &str) -> Option<String> {
    let free = memory::stats().map_or(0, |stats| stats.free) * PAGE_SIZE;
    let room = free / bytes;
    too_small_for(slot, nr).or_else(|| (room < nr).then(|| format!("there is RAM for {room} {what}")))
}

/// Removes a device of which `nr` extents of 2 MiB are mapped, each by itself.
pub fn of_mappings(slot: usize, nr: u64) -> Result<Arc<RemovalReport>, String> {
    mapped(slot, nr, (1, STRIDE / 2))
}

/// Removes a device of which one mapping has `nr` leaves of 2 MiB, every other one present.
pub fn of_leaves(slot: usize, nr: u64) -> Result<Arc<RemovalReport>, String> {
    mapped(slot, nr, (nr, nr * STRIDE))
}

/// Maps extents of `len` pages, lets every other leaf be present, `nr` in all and `leaves` in each, and removes the device.
fn mapped(slot: usize, nr: u64, (leaves, len): (u64, u64)) -> Result<Arc<RemovalReport>, String> {
    attach(slot)?;
    let space = new_space("extents")?;
    let ops = file(slot, PageSize::Size2M)?;
    for nth in 0..nr {
        let first = nth * STRIDE;
        let va = at(page(first));
        let made = if nth % leaves == 0 { space.map(va, page(len), Prot::USER_WRITE, &ops, first) } else { Ok(()) };
        made.map_err(|error| format!("extent {nth} of {nr}: {error}"))?;
        let populated = space.populate(va, PageSize::Size2M.bytes(), Access::Write);
        populated.map_err(|error| format!("extent {nth} of {nr}: {error}"))?;
    }
    drop(ops);
    let report = remove(slot, Method::Ranged)?;
    expect(&report, nr)?;
    Ok(report)
}
