//! What a gather holds and what it says: places that need no memory, figures of a zap, looks at detached tables.
#![cfg(not(loom))]

mod common;

use common::{Device, EmuContext, Space, counts, machine, page, space_with};
use mm::addr::{PAGE_SIZE, PageSize};
use mm::entry::Prot;
use mm::gather::ZapStats;
use mm::space::{Access, AddressSpace, MapError};
use mm::sync::Arc;
use testkit::emu::EmuMachine;

/// A space of one VMA of `nr_pages`, with leaves of at most `largest`, where every `step`th page is present.
fn populated(nr_pages: u64, largest: PageSize, step: u64) -> (EmuMachine, Arc<EmuContext>, Arc<Device>, Arc<Space>) {
    let (emu, mm) = machine(1);
    let device = Device::dax_with(&mm, nr_pages, largest);
    let space = space_with(&mm, &device, nr_pages, &[]);
    for nr in (0..nr_pages).step_by(step as usize) {
        space.populate(page(nr), PAGE_SIZE, Access::Write).expect("populated");
    }
    emu.reset_stats();
    (emu, mm, device, space)
}

/// Unmaps the first `nr_pages`; the lists cannot grow meanwhile, if `short`. The VMA is cut before, which takes memory.
fn unmap(emu: &EmuMachine, space: &Arc<Space>, nr_pages: u64, short: bool) -> ZapStats {
    space.protect(page(0), nr_pages * PAGE_SIZE, Prot::USER_WRITE).expect("cut");
    emu.limit_growth(if short { 0 } else { u64::MAX });
    let stats = space.unmap(page(0), nr_pages * PAGE_SIZE).expect("unmapped");
    emu.limit_growth(u64::MAX);
    stats
}

/// Leaves in a row are one thing to remember, so that a plain unmap needs no memory, and no more rounds without any.
// covers: A6
#[test]
fn leaves_in_a_row_take_one_place() {
    for (largest, leaf_pages) in [(PageSize::Size4K, 1), (PageSize::Size2M, 512)] {
        let (emu, mm, device, space) = populated(64 * leaf_pages, largest, leaf_pages);
        let stats = unmap(&emu, &space, 48 * leaf_pages, true);
        assert_eq!((stats.rounds, stats.leaves, stats.nr_pages), (1, 48, 48 * leaf_pages), "{largest}");
        assert_eq!(mm.meta.totals().refs, 16, "those that stay");
        assert_eq!(device.pages.live_folios(), 16);
    }
}

/// Where a row of small leaves meets a huge one, each is counted with its own size.
// covers: A6, G6
#[test]
fn leaves_of_two_sizes_are_not_one_row() {
    let (emu, mm, device, space) = populated(4 * 512, PageSize::Size2M, 512);
    // A hole splits the first huge leaf; the small leaves after it go on where the second huge leaf begins.
    space.unmap(page(0), PAGE_SIZE).expect("unmapped");
    let stats = unmap(&emu, &space, 3 * 512, true);
    assert_eq!((stats.leaves, stats.nr_pages), (511 + 2, 511 + 2 * 512));
    assert_eq!((mm.meta.totals().refs, device.pages.live_folios()), (1, 1), "the last huge leaf stays");
}

/// Four places are in the gather itself: without memory it shoots down whenever they are full, and not before.
// covers: A6, R5
#[test]
fn without_memory_a_round_comes_for_each_four_that_are_scattered() {
    let (emu, mm, _, space) = populated(64, PageSize::Size4K, 2);
    let stats = unmap(&emu, &space, 48, true);
    assert_eq!((stats.rounds, stats.leaves, stats.table_pages), (6, 24, 0));
    assert_eq!(mm.meta.totals().refs, 8);
    let (emu, mm, _, space) = populated(16 * 512, PageSize::Size4K, 512);
    let stats = unmap(&emu, &space, 12 * 512, true);
    assert_eq!((stats.rounds, stats.leaves, stats.table_pages), (3, 12, 12));
    assert_eq!(mm.meta.totals().refs, 4);
    // With memory all of it is one round.
    let (emu, _, _, space) = populated(64, PageSize::Size4K, 2);
    assert_eq!(unmap(&emu, &space, 48, false).rounds, 1);
    let (emu, _, _, space) = populated(16 * 512, PageSize::Size4K, 512);
    assert_eq!(unmap(&emu, &space, 12 * 512, false).rounds, 1);
}

/// A space whose tables go as a whole: one entry of the root, then what hangs below it, counted when it is freed: of each
/// table the entries that lie in the range.
// covers: R2
#[test]
fn what_hung_below_an_unlinked_table_is_counted() {
    let figures = |entries_visited, leaves, nr_pages, table_pages| ZapStats {
        entries_visited,
        leaves,
        nr_pages,
        table_pages,
        rounds: 1,
        ipis: 0,
    };
    let gib = 1 << 18;
    for (largest, nr_pages, wanted) in [
        (PageSize::Size1G, 4 * gib, figures(1 + 4, 4, 4 * gib, 1)),
        (PageSize::Size2M, gib, figures(1 + 1 + 512, 512, gib, 2)),
        (PageSize::Size4K, 512, figures(1 + 1 + 1 + 512, 512, 512, 3)),
    ] {
        let (emu, mm, device, space) = populated(nr_pages, largest, largest.nr_pages());
        assert_eq!(unmap(&emu, &space, nr_pages, false), wanted, "{largest}");
        assert_eq!((mm.meta.totals().refs, device.pages.live_folios(), emu.live_tables()), (0, 0, 1));
    }
}

/// How often a detached table's entries are looked at: once where it maps a whole block that nobody else uses, and once
/// more otherwise; where a row ends, the sixteen that are compared together are looked at one by one.
// covers: R2
#[test]
fn a_detached_table_is_looked_at_once_or_twice() {
    // One entry of the root, and twice that of each table between: for leaves, and for the table that it leads to.
    let upper = 1 + 2 * 2;
    let looks = |present: &[(u64, u64)], offset: u64| {
        let (emu, mm) = machine(1);
        let device = Device::dax_with(&mm, 1024, PageSize::Size4K);
        let space = AddressSpace::new(&mm, "test").expect("memory for a root");
        space.map(page(0), 512 * PAGE_SIZE, mm::entry::Prot::USER_WRITE, &device.ops(), offset).expect("mapped");
        for &(first, end) in present {
            space.populate(page(first), (end - first) * PAGE_SIZE, Access::Write).expect("populated");
        }
        emu.reset_stats();
        let stats = space.unmap(page(0), 512 * PAGE_SIZE).expect("unmapped");
        assert_eq!(stats.leaves, present.iter().map(|(first, end)| end - first).sum::<u64>());
        assert_eq!(mm.meta.totals().refs, 0);
        emu.stats().entry_looks - upper
    };
    assert_eq!(looks(&[(0, 512)], 0), 512, "a whole block");
    // Of two blocks, or not all of one: the first group is gone through entry by entry, the others are compared.
    assert_eq!(looks(&[(0, 512)], 256), 512 + 512, "all of the table, in two blocks");
    assert_eq!(looks(&[(0, 511)], 0), 512 + 512 + 16, "the last entry is empty");
    assert_eq!(looks(&[(0, 100), (101, 512)], 0), 512 + 512 + 16, "a hole in the middle");
    assert_eq!(looks(&[(0, 16)], 0), 512 + 512 + 16, "the row ends with a group");
}

/// A full table over two blocks of frames has no say over what others map of the first.
// covers: G3
#[test]
fn a_table_over_two_blocks_leaves_to_others_what_is_theirs() {
    let (_, mm) = machine(1);
    let device = Device::dax_with(&mm, 1024, PageSize::Size4K);
    let map = |offset, nr_pages: u64| {
        let space = AddressSpace::new(&mm, "test").expect("memory for a root");
        space.map(page(0), nr_pages * PAGE_SIZE, mm::entry::Prot::USER_WRITE, &device.ops(), offset).expect("mapped");
        space.populate(page(0), nr_pages * PAGE_SIZE, Access::Write).expect("populated");
        space
    };
    let (first, both) = (map(0, 256), map(256, 512));
    drop(both);
    for nr in 0..768 {
        let refs = u32::from(nr < 256);
        assert_eq!(counts(&mm.meta, device.pfn(nr)), (refs, 0), "page {nr}");
    }
    drop(first);
    assert_eq!(device.pages.live_folios(), 0);
}

/// What needs memory and can be refused is refused before anything has changed: a new VMA, and the cut of one.
// covers: A6
#[test]
fn without_memory_nothing_is_mapped_and_no_vma_is_cut() {
    let (emu, mm, device, space) = populated(8, PageSize::Size4K, 1);
    let refused = Err(MapError::OutOfMemory);
    emu.limit_growth(0);
    assert_eq!(space.unmap(page(2), PAGE_SIZE).map(drop), refused);
    assert_eq!(space.protect(page(0), 3 * PAGE_SIZE, Prot::USER_READ).map(drop), refused);
    assert_eq!(space.map(page(100), PAGE_SIZE, Prot::USER_WRITE, &device.ops(), 0), refused);
    assert_eq!((mm.meta.totals().refs, device.mapping.nr_vmas()), (8, 1));
    // What cuts nothing needs none.
    assert!(space.protect(page(0), 8 * PAGE_SIZE, Prot::USER_READ).is_ok());
    assert!(space.unmap(page(0), 8 * PAGE_SIZE).is_ok());
    assert_eq!((mm.meta.totals().refs, device.mapping.nr_vmas()), (0, 0));
}
