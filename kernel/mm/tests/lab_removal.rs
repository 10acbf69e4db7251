//! Lab 7: what a ranged removal takes away, and from whom (`docs/labs/7-ranged-removal.md`).
#![cfg(not(loom))]

mod common;

use common::{Device, machine, page, space_with, store_to};
use mm::addr::PageSize;
use mm::gather::Gather;
use mm::mapping::unmap_each;

// covers: R2, R7, T5
#[test]
fn the_range_goes_from_everybody_and_nothing_else_does() {
    let (emu, mm) = machine(2);
    let device = Device::dax_with(&mm, 64, PageSize::Size4K);
    let spaces: Vec<_> = (0..2).map(|cpu| space_with(&mm, &device, 8, &[cpu])).collect();
    for (cpu, space) in spaces.iter().enumerate() {
        emu.on_cpu(cpu, || (0..8).for_each(|nr| store_to(space, &emu, page(nr), nr).expect("it is mapped")));
    }
    let mut gather = Gather::new(&mm);
    unmap_each(&device.mapping, 2, 3, &mut gather, &mut |_, _| ());
    gather.finish();
    for space in &spaces {
        for nr in 0..8 {
            let is_there = emu.translate(space.tlb().root(), page(nr)).is_some();
            assert_eq!(is_there, !(2..5).contains(&nr), "page {nr}, of which 2 to 4 were to go");
        }
    }
    emu.assert_no_stale();
}

// covers: R7, T5
#[test]
fn everybody_who_maps_it_is_told() {
    let (emu, mm) = machine(3);
    let device = Device::dax_with(&mm, 64, PageSize::Size4K);
    let spaces: Vec<_> = (0..3).map(|cpu| space_with(&mm, &device, 8, &[cpu])).collect();
    // The third has mapped it, and not touched a page.
    for (cpu, space) in spaces.iter().enumerate().take(2) {
        emu.on_cpu(cpu, || store_to(space, &emu, page(3), 1).expect("it is mapped"));
    }
    let (mut gather, mut told) = (Gather::new(&mm), Vec::new());
    unmap_each(&device.mapping, 2, 3, &mut gather, &mut |space, range| {
        told.push((space.id(), range.start(), range.nr_pages()))
    });
    gather.finish();
    told.sort_unstable();
    let mut wanted: Vec<_> = spaces.iter().map(|space| (space.id(), page(2), 3)).collect();
    wanted.sort_unstable();
    assert_eq!(told, wanted, "each space that maps pages 2 to 4, and where");
}
