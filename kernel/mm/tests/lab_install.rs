//! Lab 3: what an install and a zap have to do, where no other test says that alone (`docs/labs/3-install-and-zap.md`).
#![cfg(not(loom))]

mod common;

use common::cached::{small_pages, unmap};
use common::{Device, counts, load_from, machine, page, space_with, store_to};
use mm::addr::PageSize;

// covers: G7, T5
#[test]
fn what_is_mapped_is_reached_and_what_is_unmapped_is_not() {
    let (emu, _mm, space) = small_pages(1, 3);
    emu.on_cpu(0, || {
        assert_eq!(load_from(&space, &emu, page(1)), Ok(1), "what was stored to page 1");
        unmap(&space, 1, 1);
        // From the page table, whatever the TLB has.
        assert!(emu.translate(space.tlb().root(), page(1)).is_none(), "the page is still in the page table");
        assert_eq!(load_from(&space, &emu, page(2)), Ok(2), "its neighbour stays");
    });
}

// covers: G8, T5
#[test]
fn each_reference_is_given_back_once() {
    for (leaf, first, nr_pages) in [(PageSize::Size4K, 1, 1), (PageSize::Size2M, 0, 512)] {
        let (emu, mm) = machine(1);
        let device = Device::dax_with(&mm, 4 << 9, leaf);
        // One more leaf, so that the table stays and each entry is cleared by itself.
        let space = space_with(&mm, &device, 3 * leaf.nr_pages(), &[0]);
        (0..3).for_each(|nth| store_to(&space, &emu, page(nth * leaf.nr_pages()), nth).expect("it is mapped"));
        unmap(&space, first, nr_pages);
        assert_eq!(counts(&mm.meta, device.pfn(first)), (0, 0), "the mapping's reference is still there");
        let neighbour = device.pfn(2 * leaf.nr_pages());
        assert_eq!(counts(&mm.meta, neighbour), (1, 0), "the neighbour's reference stays");
    }
}
