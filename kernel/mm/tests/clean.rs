//! Which pages are stored to: a provider that wants to know it is told before each first store.
#![cfg(not(loom))]

mod common;

use common::{Device, EmuContext, load_from, machine, page, space_with, store_to};
use mm::addr::{PAGE_SIZE, PageSize};
use mm::entry::Prot;
use mm::gather::Gather;
use mm::gup::GupFlags;
use mm::machine::IrqOff;
use mm::mapping::{clean_mapping_range, unmap_mapping_range};
use mm::pins::PinnedPages;
use mm::space::VmOps;
use mm::sync::Arc;

/// Pages that the device of these tests has.
const DEVICE_PAGES: u64 = 4 << 18;

/// Cleans `nr_pages` of the device from `first` on; how many rounds that took.
fn clean(mm: &Arc<EmuContext>, device: &Device, first: u64, nr_pages: u64) -> u64 {
    let mut gather = Gather::new(mm);
    clean_mapping_range(device.mapping(), first, nr_pages, &mut gather);
    let stats = gather.finish();
    assert_eq!(stats.leaves, 0, "nothing is unmapped");
    stats.rounds
}

// covers: G7
#[test]
fn a_page_that_was_cleaned_is_stored_to_after_a_fault_only() {
    let (emu, mm) = machine(2);
    let device = Device::dax_with(&mm, DEVICE_PAGES, PageSize::Size4K);
    device.note_stores();
    let space = space_with(&mm, &device, 3, &[0, 1]);
    emu.on_cpu(0, || load_from(&space, &emu, page(0)).unwrap());
    assert!(!space.translate(page(0)).unwrap().entry.is_writable(), "after a load");
    assert_eq!(device.take_noted(), []);
    for nr in 0..2 {
        (0..2).for_each(|cpu| emu.on_cpu(cpu, || store_to(&space, &emu, page(nr), 7).unwrap()));
    }
    assert_eq!(device.take_noted(), [(0, 1), (1, 1)], "once for each page");
    // One round for all of it; what nobody has stored to needs none.
    assert_eq!((clean(&mm, &device, 0, 3), clean(&mm, &device, 0, 3)), (1, 0));
    let clean_leaf = space.translate(page(1)).unwrap().entry;
    assert!(!clean_leaf.is_writable() && !clean_leaf.is_dirty(), "{clean_leaf:?}");
    for cpu in 0..2 {
        assert_eq!(emu.on_cpu(cpu, || load_from(&space, &emu, page(1))), Ok(7));
    }
    assert_eq!(device.take_noted(), [], "after loads");
    emu.on_cpu(1, || store_to(&space, &emu, page(1), 8).unwrap());
    assert_eq!(device.take_noted(), [(1, 1)]);
    emu.assert_no_stale();
}

// covers: G7
#[test]
fn no_way_to_a_writable_page_goes_unnoticed() {
    let (emu, mm) = machine(1);
    let device = Device::dax_with(&mm, DEVICE_PAGES, PageSize::Size2M);
    device.note_stores();
    let space = space_with(&mm, &device, 1024, &[0]);
    // A change of rights there and back.
    emu.on_cpu(0, || load_from(&space, &emu, page(0)).unwrap());
    space.protect(page(0), 512 * PAGE_SIZE, Prot::USER_READ).unwrap();
    space.protect(page(0), 512 * PAGE_SIZE, Prot::USER_WRITE).unwrap();
    assert!(!space.translate(page(0)).unwrap().entry.is_writable());
    emu.on_cpu(0, || store_to(&space, &emu, page(5), 1).unwrap());
    assert_eq!(device.take_noted(), [(0, 512)], "all of a huge leaf");
    // A leaf that reaches out of what is cleaned is cleaned as a whole.
    assert_eq!(clean(&mm, &device, 5, 1), 1);
    // A pin for stores; one for loads is none of it.
    let pin = |nr: u64, flags| drop(PinnedPages::pin(&space, page(nr), 1, flags).unwrap());
    emu.on_cpu(0, || pin(6, GupFlags::empty()));
    assert_eq!(device.take_noted(), []);
    emu.on_cpu(0, || pin(6, GupFlags::WRITE));
    assert_eq!(device.take_noted(), [(0, 512)]);
    emu.on_cpu(0, || pin(7, GupFlags::WRITE));
    assert_eq!(device.take_noted(), []);
    // Where small leaves are, small ones are noted.
    emu.on_cpu(0, || store_to(&space, &emu, page(512), 1).unwrap());
    space.unmap(page(600), PAGE_SIZE).unwrap();
    space.map(page(600), PAGE_SIZE, Prot::USER_WRITE, &device.ops(), 600).unwrap();
    clean(&mm, &device, 0, 1024);
    device.take_noted();
    emu.on_cpu(0, || [600, 601].into_iter().for_each(|nr| store_to(&space, &emu, page(nr), 1).unwrap()));
    assert_eq!(device.take_noted(), [(600, 1), (601, 1)]);
    emu.assert_no_stale();
}

/// Two ranges are cleaned with one gather. Between them a CPU comes to the space, and stores to the second one; then somebody else
/// takes that out, and has not shot it down yet. The CPU is told to flush all the same: what it stores afterwards is to fault.
// covers: G7
#[test]
fn a_cpu_that_has_come_between_two_ranges_is_told_too() {
    let (emu, mm) = machine(2);
    let device = Device::dax_with(&mm, DEVICE_PAGES, PageSize::Size4K);
    device.note_stores();
    let space = space_with(&mm, &device, 3, &[0]);
    for nr in [0, 2] {
        emu.on_cpu(0, || store_to(&space, &emu, page(nr), 7).unwrap());
    }
    let mut cleaned = Gather::new(&mm);
    clean_mapping_range(device.mapping(), 0, 1, &mut cleaned);
    emu.on_cpu(1, || {
        mm.shootdown.switch_to(&IrqOff::new(&emu), Some(space.tlb()));
        store_to(&space, &emu, page(2), 8).unwrap();
    });
    let mut taken = Gather::new(&mm);
    unmap_mapping_range(device.mapping(), 2, 1, &mut taken);
    clean_mapping_range(device.mapping(), 2, 1, &mut cleaned);
    emu.on_cpu(0, || _ = cleaned.finish());
    assert!(emu.on_cpu(1, || emu.write(page(2), 9, true)).is_err(), "a store that nobody hears of");
    emu.on_cpu(0, || _ = taken.finish());
    emu.assert_no_stale();
}
