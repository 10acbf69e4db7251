//! Sweeps: the same act over a range of sizes, for plots. `bench=sweep` does all of them, and nothing else; what a machine
//! has no room for is left out. `@sweep plot=… series=… x=… value=…`: nothing is held against anything.

use alloc::format;
use alloc::string::String;

use dax::removal::Method;
use mm::addr::{PAGE_SHIFT, PAGE_SIZE, PageSize, PfnRange};
use mm::ledger::Kind;

use crate::bench::extents::{self, idle, no_room_for, no_room_for_leaves};
use crate::bench::figures::{Cost, median};
use crate::bench::gup::{self, MANY};
use crate::bench::removal::{self, idle_costs, remove, sixteen};
use crate::bench::zap::Halted;
use crate::console::report;
use crate::cpu::percpu;
use crate::ktest::fixtures::{Device, new_space};
use crate::ktest::idle::attach;
use crate::ktest::test::Ctx;
use crate::mem::machine::mm;
use crate::mem::paging;
use crate::pmem::devices;

const GIB: u64 = PageSize::Size1G.bytes();
/// Numbers of mapped extents.
const EXTENTS: [u64; 11] = [1, 4, 16, 64, 256, 1024, 4096, 16_384, 65_536, 262_144, 1_000_000];
/// Frames that are taken away one by one.
const FRAMES: u64 = 64;

/// Does all sweeps that this machine has room for.
pub fn run() -> Result<(), String> {
    (0..devices::slots().len()).try_for_each(by_size)?;
    let large = removal::largest();
    by_extents(large)?;
    by_batch()?;
    by_cpus(large)
}

fn point(plot: &str, series: &str, x: u64, value: Cost) {
    report!("sweep plot={plot} series={series} x={x} value={value}");
}

/// Attach, removal and bytes of metadata; x is the device's size in GiB.
fn by_size(slot: usize) -> Result<(), String> {
    let gib = devices::slots()[slot].frames.nr_pages() >> (30 - PAGE_SHIFT);
    let (attaches, removals) = idle_costs(slot)?;
    point("attach", "idle", gib, Cost::of(median(attaches), 1));
    point("size", "idle", gib, Cost::of(median(removals), 1));
    let held = || {
        let ledger = &mm().ledger;
        [ledger.count(Kind::MetadataBytes), ledger.count(Kind::TablePages) * PAGE_SIZE as i64]
    };
    let before = held();
    attach(slot)?;
    let attached = held();
    remove(slot, Method::Ranged)?;
    for (series, (now, before)) in ["metadata_idle", "tables_idle"].into_iter().zip(attached.into_iter().zip(before)) {
        point("bytes", series, gib, Cost::of((now - before).unsigned_abs(), 1));
    }
    // As many extents as the smallest device of the sweep holds.
    if gib >= 1 {
        let mut mapped = before;
        let report = sixteen(slot, &mut || mapped = held())?;
        point("size", "16_extents_in_4_spaces", gib, Cost::of(report.instructions(), 1));
        let (metadata, tables) = (mapped[0] - before[0], mapped[1] - before[1]);
        point("bytes", "metadata_16_extents", gib, Cost::of(metadata.unsigned_abs(), 1));
        point("bytes", "tables_16_extents", gib, Cost::of(tables.unsigned_abs(), 1));
    }
    Ok(())
}

/// Removal by number of extents; the value is that of each.
fn by_extents(slot: usize) -> Result<(), String> {
    let idle = idle(slot)?;
    let each = |total: u64, nr: u64| Cost::of(total.saturating_sub(idle), nr);
    for nr in EXTENTS {
        match no_room_for(slot, nr) {
            None => point("extents", "mappings", nr, each(extents::of_mappings(slot, nr)?.instructions(), nr)),
            Some(why) => log::info!("sweep: {nr} mappings are left out: {why}"),
        }
        match no_room_for_leaves(slot, nr) {
            None => {
                point("extents", "leaves_of_one_mapping", nr, each(extents::of_leaves(slot, nr)?.instructions(), nr))
            }
            Some(why) => log::info!("sweep: {nr} leaves are left out: {why}"),
        }
    }
    Ok(())
}

/// Pins by number of pages in a call, and by size of the leaf; the value is that of each page.
fn by_batch() -> Result<(), String> {
    Device::with_leaf(&mut Ctx::default(), GIB, PageSize::Size1G, |_, device| {
        for (size, leaf) in [(PageSize::Size4K, "4k"), (PageSize::Size2M, "2m"), (PageSize::Size1G, "1g")] {
            if size == PageSize::Size1G && !paging::has_gib_leaves() {
                continue;
            }
            let space = gup::space_of(device, MANY.max(size.nr_pages()), size)?;
            for nr in (0..=MANY.ilog2()).map(|shift| 1 << shift) {
                let pinned = gup::loaded(&space, move |space| gup::pin_many(space, nr, 2))?;
                point("batch", &format!("array_{leaf}"), nr, pinned.array.shared_by(nr));
                point("batch", &format!("ranges_{leaf}"), nr, pinned.range.shared_by(nr));
            }
        }
        Ok(())
    })
}

/// Interrupts of a removal of 64 pages that every CPU has loaded, by range and frame by frame; x is the number of CPUs.
fn by_cpus(slot: usize) -> Result<(), String> {
    let start = devices::slots()[slot].frames.start();
    let frames = PfnRange::new(start, FRAMES).ok_or("the device ends beyond the last frame")?;
    let cpus = percpu::online().len() as u64;
    for (method, series) in [(Method::Ranged, "by_range"), (Method::PerFrame(frames), "frame_by_frame")] {
        attach(slot)?;
        let space = new_space("cpus")?;
        removal::map(slot, &space, (0, FRAMES), PageSize::Size4K)?;
        let halted = Halted::start(&space);
        let report = remove(slot, method);
        halted.stop()?;
        let report = report?;
        point("interrupts", series, cpus, Cost::of(report.cost.zap.ipis, 1));
        point("cpus", series, cpus, Cost::of(report.instructions(), 1));
    }
    Ok(())
}
