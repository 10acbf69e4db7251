//! A change of rights, or of what is clean, reaches just the pages that it names, and costs no fault that need not be.
#![cfg(not(loom))]

mod common;

use common::{DEVICE_START, Device, Space, load_from, machine, page, space_with, store_to};
use mm::addr::{PAGE_SIZE, PageSize};
use mm::entry::Prot;
use mm::gather::Gather;
use mm::mapping::{clean_mapping_range, unmap_mapping_range};
use mm::space::Access;
use mm::sync::Arc;
use testkit::emu::EmuMachine;

/// A space of 1024 pages in leaves of 2 MiB, all there, loaded on CPU 0; the device notes stores if `notes`.
fn huge(notes: bool) -> (EmuMachine, Arc<common::EmuContext>, Arc<Device>, Arc<Space>) {
    let (emu, mm) = machine(1);
    let device = Device::dax_with(&mm, 1024, PageSize::Size2M);
    if notes {
        device.note_stores();
    }
    let space = space_with(&mm, &device, 1024, &[0]);
    space.populate(page(0), 1024 * PAGE_SIZE, Access::Write).unwrap();
    assert_eq!(space.translate(page(0)).unwrap().size, PageSize::Size2M);
    device.take_noted();
    emu.reset_stats();
    (emu, mm, device, space)
}

fn writable(space: &Space, nr: u64) -> bool {
    space.translate(page(nr)).unwrap().entry.is_writable()
}

// covers: G7
#[test]
fn rights_change_for_the_pages_that_are_named_and_for_no_others() {
    for range in [0..9, 500..512, 100..101, 509..515, 0..512, 512..1024, 3..1021] {
        let (emu, mm, device, space) = huge(false);
        let len = range.end - range.start;
        space.protect(page(range.start), len * PAGE_SIZE, Prot::USER_READ).unwrap();
        for nr in 0..1024 {
            let found = space.translate(page(nr)).unwrap();
            assert_eq!(found.pfn_at(page(nr)), device.pfn(nr), "page {nr} after {range:?}");
            assert_eq!(found.entry.is_writable(), !range.contains(&nr), "page {nr} after {range:?}");
        }
        // A leaf is split where its rights differ, and only there.
        for block in [0..512, 512..1024] {
            let cut = range.contains(&block.start) != range.contains(&(block.end - 1))
                || (block.contains(&range.start) && range.start != block.start);
            let size = if cut { PageSize::Size4K } else { PageSize::Size2M };
            assert_eq!(space.translate(page(block.start)).unwrap().size, size, "{block:?} after {range:?}");
        }
        assert_eq!(mm.meta.totals().refs as usize, emu.leaves(space.tlb().root()).len());
    }
}

// covers: G7
#[test]
fn rights_that_come_back_are_there_without_a_fault_unless_the_provider_wants_to_know() {
    for notes in [false, true] {
        let (_, _, _, space) = huge(notes);
        // Not narrowed: a leaf that is writable stays so.
        space.protect(page(0), 512 * PAGE_SIZE, Prot { exec: true, ..Prot::USER_WRITE }).unwrap();
        assert!(writable(&space, 3), "notes: {notes}");
        space.protect(page(0), 512 * PAGE_SIZE, Prot::USER_READ).unwrap();
        assert!(!writable(&space, 3));
        space.protect(page(0), 512 * PAGE_SIZE, Prot::USER_WRITE).unwrap();
        assert_eq!(writable(&space, 3), !notes, "notes: {notes}");
    }
}

// covers: G3
#[test]
fn an_unmap_takes_the_pages_that_are_named_and_no_others() {
    for (largest, range) in [
        (PageSize::Size4K, 5..6),
        (PageSize::Size4K, 0..512),
        (PageSize::Size4K, 510..514),
        (PageSize::Size2M, 5..6),
        (PageSize::Size2M, 510..514),
        (PageSize::Size2M, 512..1024),
    ] {
        let (emu, mm) = machine(1);
        let device = Device::dax_with(&mm, 1536, largest);
        let space = space_with(&mm, &device, 1536, &[0]);
        space.populate(page(0), 1536 * PAGE_SIZE, Access::Write).unwrap();
        let mut gather = Gather::new(&mm);
        unmap_mapping_range(&device.mapping, range.start, range.end - range.start, &mut gather);
        gather.finish();
        for nr in 0..1536 {
            assert_eq!(
                space.translate(page(nr)).is_none(),
                range.contains(&nr),
                "page {nr} after {range:?}, {largest}"
            );
        }
        assert_eq!(mm.meta.totals().refs as usize, emu.leaves(space.tlb().root()).len());
    }
}

/// Cleaning flushes each leaf that it changes, by its size, and nothing else.
// covers: G7
#[test]
fn cleaning_flushes_what_it_has_cleaned() {
    for (largest, pages, flushes) in
        [(PageSize::Size4K, 3..6, 3), (PageSize::Size2M, 3..6, 1), (PageSize::Size2M, 509..514, 2)]
    {
        let (emu, mm) = machine(1);
        let device = Device::dax_with(&mm, 1024, largest);
        device.note_stores();
        let space = space_with(&mm, &device, 1024, &[0]);
        emu.on_cpu(0, || (0..1024).for_each(|nr| store_to(&space, &emu, page(nr), nr).unwrap()));
        emu.reset_stats();
        let mut gather = Gather::new(&mm);
        clean_mapping_range(&device.mapping, pages.start, pages.end - pages.start, &mut gather);
        gather.finish();
        assert_eq!((emu.stats().page_flushes, emu.stats().full_flushes), (flushes, 0), "{pages:?}, {largest}");
        let leaf_of = |nr: u64| nr / largest.nr_pages();
        for nr in 0..1024 {
            let cleaned = leaf_of(pages.start) <= leaf_of(nr) && leaf_of(nr) <= leaf_of(pages.end - 1);
            assert_eq!(!writable(&space, nr), cleaned, "page {nr} after {pages:?}, {largest}");
        }
        emu.assert_no_stale();
    }
}

/// Where small leaves stand, a store that makes one more writable notes that one.
// covers: G7
#[test]
fn no_more_is_noted_than_becomes_writable() {
    let (emu, mm, device, space) = huge(true);
    let mut gather = Gather::new(&mm);
    unmap_mapping_range(&device.mapping, 5, 1, &mut gather);
    gather.finish();
    assert_eq!(space.translate(page(4)).unwrap().size, PageSize::Size4K);
    emu.on_cpu(0, || store_to(&space, &emu, page(5), 1).unwrap());
    assert_eq!(device.take_noted(), [(5, 1)]);
    // With nothing in the way all of the leaf that comes.
    let mut gather = Gather::new(&mm);
    unmap_mapping_range(&device.mapping, 512, 512, &mut gather);
    gather.finish();
    emu.on_cpu(0, || load_from(&space, &emu, page(600)).unwrap());
    assert_eq!(device.take_noted(), []);
    emu.on_cpu(0, || store_to(&space, &emu, page(600), 1).unwrap());
    assert_eq!(device.take_noted(), [(512, 512)]);
    assert_eq!(space.translate(page(600)).unwrap().entry.pfn(), DEVICE_START.add(512));
}
