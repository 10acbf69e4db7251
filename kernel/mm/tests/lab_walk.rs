//! Lab 2: what a walk finds, one fault for each test (`docs/labs/2-walk.md`).
#![cfg(not(loom))]

mod common;

use common::{BASE, Device, EmuContext, machine, machine_with, page};
use mm::addr::{PAGE_SIZE, PageSize, VirtAddr};
use mm::entry::Prot;
use mm::space::{Access, AddressSpace};
use mm::sync::Arc;
use testkit::emu::Config;

type Space = AddressSpace<testkit::emu::EmuMachine>;

/// A space that maps `nr_pages` of a device in leaves of at most `leaf`, and has touched each of them. Nothing that the walk is
/// about is asked for here.
fn mapped(mm: &Arc<EmuContext>, nr_pages: u64, leaf: PageSize) -> (Arc<Device>, Arc<Space>) {
    let device = Device::dax_with(mm, nr_pages, leaf);
    let space = AddressSpace::new(mm, "task").expect("memory for a root");
    space.map(BASE, nr_pages * PAGE_SIZE, Prot::USER_WRITE, &device.ops(), 0).expect("there is room");
    space.populate(BASE, nr_pages * PAGE_SIZE, Access::Write).expect("there are pages");
    (device, space)
}

/// The walk leads to page `nr` of the device by a leaf of `leaf`, as the emulated CPU's does.
fn assert_found(device: &Device, space: &Space, nr: u64, leaf: PageSize) {
    let found = space.translate(page(nr)).expect("it is mapped, and was not found");
    assert_eq!(found.size, leaf, "the size of the leaf at page {nr}");
    assert_eq!(found.pfn_at(page(nr)), device.pfn(nr), "the frame at page {nr}");
    let emulated = space.mm().machine.translate(space.tlb().root(), page(nr)).expect("the CPU finds it");
    assert_eq!((found.entry.pfn(), found.size), (emulated.0.pfn(), emulated.1), "what the CPU finds");
}

// covers: G7, T5
#[test]
fn a_small_page_is_found() {
    let (_, mm) = machine(1);
    let (device, space) = mapped(&mm, 3, PageSize::Size4K);
    (0..3).for_each(|nr| assert_found(&device, &space, nr, PageSize::Size4K));
}

// covers: G7, T5
#[test]
fn addresses_far_apart_lead_to_pages_of_their_own() {
    let (_, mm) = machine(1);
    let device = Device::dax_with(&mm, 64, PageSize::Size4K);
    let space = AddressSpace::new(&mm, "task").expect("memory for a root");
    // One bit of the address of each level, and one of none.
    let far: Vec<_> = [0, 1 << 12, 1 << 21, 1 << 30, 1 << 39].map(|bit| VirtAddr::new(BASE.as_u64() ^ bit)).into();
    for (nr, &va) in (0..).zip(&far) {
        space.map(va, PAGE_SIZE, Prot::USER_WRITE, &device.ops(), nr).expect("there is room");
        space.populate(va, PAGE_SIZE, Access::Write).expect("there is a page");
    }
    for (nr, &va) in (0..).zip(&far) {
        assert_eq!(space.translate(va).map(|found| found.entry.pfn()), Some(device.pfn(nr)), "at {va}");
    }
}

// covers: G6, G7, T5
#[test]
fn large_leaves_are_found_at_their_level() {
    for leaf in [PageSize::Size2M, PageSize::Size1G] {
        let (_, mm) = machine(1);
        let (device, space) = mapped(&mm, 2 * leaf.nr_pages(), leaf);
        for nr in [0, 7, leaf.nr_pages() - 1, leaf.nr_pages() + 5] {
            assert_found(&device, &space, nr, leaf);
        }
    }
}

// covers: G7, T5
#[test]
fn what_is_not_mapped_is_not_found() {
    let (_, mm) = machine(1);
    let (device, space) = mapped(&mm, 3, PageSize::Size4K);
    // First that it finds anything at all.
    assert_found(&device, &space, 1, PageSize::Size4K);
    for bit in [3 << 12, 1 << 21, 1 << 30, 1 << 39] {
        let va = VirtAddr::new(BASE.as_u64() ^ bit);
        assert_eq!(space.translate(va), None, "nothing is mapped at {va}");
    }
    space.unmap(page(1), PAGE_SIZE).expect("it was mapped");
    assert_eq!(space.translate(page(1)), None, "it was unmapped");
}

// covers: G7, T5
#[test]
fn five_levels_are_walked_too() {
    let (_, mm) = machine_with(Config { cpus: 1, levels: 5, ..Config::default() });
    let (device, space) = mapped(&mm, 3, PageSize::Size4K);
    assert_found(&device, &space, 2, PageSize::Size4K);
}
