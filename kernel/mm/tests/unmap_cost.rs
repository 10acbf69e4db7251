//! What taking a range away costs before anybody is interrupted: it does not depend on how much is mapped there.
#![cfg(not(loom))]

mod common;

use common::*;
use mm::addr::{PAGE_SIZE, PageSize, VirtAddr};
use mm::entry::Prot;
use mm::gather::Gather;
use mm::ledger::Kind;
use mm::mapping::unmap_mapping_range;
use mm::space::{Access, AddressSpace};

/// 512 GiB: what one entry of the root spans.
const SPAN: u64 = 512 << 30;

/// Entries looked at and tables freed until the shootdown is due, where `nr` pages of 4 KiB are present in 512 GiB, each
/// in a GiB of its own; and entries visited and leaves found in all.
fn unmap(nr: u64) -> (u64, usize, u64, u64) {
    let (emu, mm) = machine(1);
    let device = Device::dax_with(&mm, SPAN / PAGE_SIZE, PageSize::Size4K);
    let space = AddressSpace::new(&mm, "large").expect("an address space");
    let start = VirtAddr::new(SPAN);
    space.map(start, SPAN, Prot::USER_WRITE, &device.ops(), 0).expect("mapped");
    for nth in 0..nr {
        let va = VirtAddr::new(SPAN + nth * PageSize::Size1G.bytes());
        space.populate(va, PAGE_SIZE, Access::Write).expect("populated");
    }
    device.kill();
    let tables = emu.live_tables();
    emu.reset_stats();
    let mut gather = Gather::new(&mm);
    unmap_mapping_range(&device.mapping, 0, u64::MAX, &mut gather);
    let (looks, freed) = (gather.stats().entries_visited, tables - emu.live_tables());
    assert_eq!(space.translate(start), None, "the one entry of the root is gone");
    let zap = gather.finish();
    assert_eq!(mm.ledger_snapshot().count(Kind::MetadataBytes), 0);
    assert_eq!((zap.rounds, zap.table_pages), (1, 1 + 2 * nr));
    (looks, freed, zap.entries_visited, zap.leaves)
}

// covers: R2
#[test]
fn half_a_tebibyte_of_small_pages_goes_with_one_store() {
    for nr in [1, 64] {
        // The freeing, which comes after the shootdown, is what grows: with the tables that there are.
        assert_eq!(unmap(nr), (1, 0, 1 + 512 * (1 + 2 * nr), nr), "{nr} pages");
    }
}
