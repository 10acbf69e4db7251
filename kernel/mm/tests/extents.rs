//! What one space maps of a device by many VMAs goes in one pass: what lies side by side as one, and nothing of what others
//! map in between.
#![cfg(not(loom))]

mod common;

use common::*;
use mm::addr::{PAGE_SIZE, PageSize, Pfn, VirtAddr};
use mm::entry::Prot;
use mm::gather::{Gather, ZapStats};
use mm::ledger::Kind;
use mm::mapping::unmap_each;
use mm::pagemap::MemoryKind;
use mm::space::{Access, AddressSpace};
use mm::sync::Arc;

const MIB2: u64 = PageSize::Size2M.bytes();
const GIB: u64 = PageSize::Size1G.bytes();

fn at(offset: u64) -> VirtAddr {
    VirtAddr::new(BASE.as_u64() + offset)
}

fn map(space: &Arc<Space>, device: &Arc<Device>, offset: u64, len: u64, first: u64) {
    space.map(at(offset), len, Prot::USER_WRITE, &device.ops(), first).expect("mapped");
    space.populate(at(offset), PAGE_SIZE, Access::Write).expect("populated");
}

/// Takes the pages `first .. first + nr` of the device away from everybody; answers the first addresses of who is told,
/// what was looked at before the shootdown, and all figures.
fn take(mm: &Arc<EmuContext>, device: &Device, first: u64, nr: u64) -> (Vec<VirtAddr>, u64, ZapStats) {
    let (mut gather, mut told) = (Gather::new(mm), Vec::new());
    unmap_each(&device.mapping, first, nr, &mut gather, &mut |_, range| told.push(range.start()));
    let looks = gather.stats().entries_visited;
    (told, looks, gather.finish())
}

/// The device that goes, another that stays, and a space for both.
fn two_devices(mm: &Arc<EmuContext>) -> (Arc<Device>, Arc<Device>, Arc<Space>) {
    let other = Device::new(mm, Pfn::new(0x80_0000), 512, MemoryKind::DevDax, PageSize::Size4K);
    (Device::dax(mm, 2048), other, AddressSpace::new(mm, "task").expect("an address space"))
}

// covers: R2
#[test]
fn vmas_side_by_side_go_with_the_tables_that_they_alone_use() {
    for nr in [16, 600] {
        let (_, mm) = machine(1);
        let device = Device::dax_with(&mm, nr * 512, PageSize::Size2M);
        let space = AddressSpace::new(&mm, "task").expect("an address space");
        for nth in 0..nr {
            map(&space, &device, 2 * nth * MIB2, MIB2, nth * 512);
        }
        device.kill();
        let (told, looks, stats) = take(&mm, &device, 0, u64::MAX);
        assert_eq!(told, (0..nr).map(|nth| at(2 * nth * MIB2)).collect::<Vec<_>>());
        assert_eq!((looks, stats.leaves, stats.rounds), (1, nr, 1), "one entry of the root: {stats:?}");
        // In the tables that went only what there may be was looked at.
        let tables = (2 * nr - 1).div_ceil(512);
        assert_eq!((stats.table_pages, stats.entries_visited), (1 + tables, 1 + tables + 2 * nr - 1));
        assert_eq!(mm.ledger.count(Kind::TablePages), 1, "the root is left");
        assert_eq!(device.pages.live_folios(), 0);
    }
}

// covers: R7
#[test]
fn what_others_map_in_between_stays() {
    let (emu, mm) = machine(1);
    let (device, other, space) = two_devices(&mm);
    for nth in 0..8 {
        map(&space, &device, 4 * nth * PAGE_SIZE, PAGE_SIZE, nth);
    }
    // Another device's page between the third and the fourth, and a page of the same that is not asked for.
    map(&space, &other, 10 * PAGE_SIZE, PAGE_SIZE, 3);
    map(&space, &device, 18 * PAGE_SIZE, PAGE_SIZE, 100);
    device.kill();
    let (told, _, stats) = take(&mm, &device, 0, 100);
    assert_eq!(told, (0..8).map(|nth| at(4 * nth * PAGE_SIZE)).collect::<Vec<_>>());
    assert_eq!((stats.leaves, stats.table_pages), (8, 0));
    assert_eq!(space.translate(at(10 * PAGE_SIZE)).map(|found| found.entry.pfn()), Some(other.pfn(3)));
    assert_eq!(space.translate(at(18 * PAGE_SIZE)).map(|found| found.entry.pfn()), Some(device.pfn(100)));
    assert_eq!((device.pages.live_folios(), other.pages.live_folios()), (1, 1));
    emu.assert_no_stale();
    let (told, _, stats) = take(&mm, &device, 0, u64::MAX);
    assert_eq!((told.len(), stats.leaves), (9, 1));
    assert_eq!((device.pages.live_folios(), other.pages.live_folios()), (0, 1));
}

/// Two pages, a tebibyte apart, in tables that others use too: the entries of the gap are not looked at.
// covers: R2
#[test]
fn vmas_far_apart_are_taken_one_by_one() {
    let (_, mm) = machine(1);
    let (device, other, space) = two_devices(&mm);
    map(&space, &other, 0, PAGE_SIZE, 0);
    map(&space, &device, PAGE_SIZE, PAGE_SIZE, 0);
    map(&space, &device, 1024 * GIB, PAGE_SIZE, 1);
    map(&space, &other, 1024 * GIB + PAGE_SIZE, PAGE_SIZE, 1);
    device.kill();
    let (told, looks, stats) = take(&mm, &device, 0, u64::MAX);
    assert_eq!((told.len(), stats.leaves, stats.table_pages), (2, 2, 0));
    assert_eq!(looks, 2 * 4, "an entry of each level for each");
}

/// Leaves of several folios are given back under one hold of the store's lock: one that others hold too stays.
// covers: R2 G8
#[test]
fn large_leaves_are_given_back_by_the_run() {
    let (_, mm) = machine(1);
    let device = Device::dax_with(&mm, 200 * 512, PageSize::Size2M);
    let (one, two) = (AddressSpace::new(&mm, "one").unwrap(), AddressSpace::new(&mm, "two").unwrap());
    for nth in 0..200 {
        // Some in a row, some not.
        let folio = if nth % 5 == 0 { nth } else { 200 - nth };
        map(&one, &device, nth * MIB2, MIB2, folio % 200 * 512);
    }
    map(&two, &device, 0, MIB2, 77 * 512);
    let live = device.pages.live_folios();
    assert!(live > 100, "{live} folios");
    let stats = one.unmap(at(0), 200 * MIB2).expect("unmapped");
    assert_eq!((stats.leaves, device.pages.live_folios()), (200, 1));
    assert_eq!(counts(&mm.meta, device.pfn(77 * 512)), (1, 0));
    two.unmap(at(0), MIB2).expect("unmapped");
    assert_eq!(mm.ledger.count(Kind::MetadataBytes), 0);
}
