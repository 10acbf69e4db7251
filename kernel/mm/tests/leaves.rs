//! Leaves that split, join or are of other sizes, on the emulated machine: no CPU keeps what they were.
#![cfg(not(loom))]

mod common;

use common::cached::{DEVICE_PAGES, assert_gone, mapped, unmap};
use common::{Device, load_from, machine, page, space_with, store_to};
use mm::addr::{PAGE_SIZE, PageSize, VirtAddr};
use mm::entry::Prot;
use mm::gather::Gather;
use mm::ledger::Kind;
use mm::mapping::{unmap_leftovers, unmap_mapping_range};
use mm::space::{Access, AddressSpace, MapError};
use testkit::emu::Config;

// covers: G3
#[test]
fn a_part_of_a_huge_leaf_goes_and_the_rest_stays() {
    for (leaf, nr_pages, hole) in [(PageSize::Size2M, 512, 5), (PageSize::Size1G, 1 << 18, 70_000)] {
        let (emu, mm) = machine(3);
        let device = Device::dax_with(&mm, DEVICE_PAGES, leaf);
        let space = space_with(&mm, &device, nr_pages, &[0, 1, 2]);
        for cpu in 0..3 {
            emu.on_cpu(cpu, || store_to(&space, &emu, page(hole), 17).unwrap());
        }
        assert_eq!(space.translate(page(hole)).unwrap().size, leaf);
        unmap(&space, hole, 1);
        assert_gone(&emu, &space, hole);
        for neighbour in [hole - 1, hole + 1, 0, nr_pages - 1] {
            let found = space.translate(page(neighbour)).expect("the rest stays mapped");
            assert_eq!(found.pfn_at(page(neighbour)), device.pfn(neighbour));
        }
        let refs = mm.meta.inspect(device.first).unwrap().counts.refs;
        let leaves = emu.leaves(space.tlb().root()).len();
        assert_eq!(refs as usize, leaves, "one reference for each leaf");
    }
}

/// Accessed and dirty bits, which the CPU sets, are never lost by what the kernel does to a leaf that stays.
#[test]
fn what_the_cpu_has_noted_stays_with_the_page() {
    let (emu, mm) = machine(1);
    let device = Device::dax_with(&mm, DEVICE_PAGES, PageSize::Size2M);
    let space = space_with(&mm, &device, 3 * 512, &[0]);
    space.populate(page(0), 3 * 512 * PAGE_SIZE, Access::Read).unwrap();
    emu.on_cpu(0, || store_to(&space, &emu, page(7), 1).unwrap());
    emu.on_cpu(0, || load_from(&space, &emu, page(512)).unwrap());
    let noted = |nr: u64| {
        let found = space.translate(page(nr)).unwrap();
        (found.size, found.entry.is_accessed(), found.entry.is_dirty())
    };
    let all = |size, wanted: [(bool, bool); 3]| {
        for (block, (accessed, dirty)) in wanted.into_iter().enumerate() {
            for nr in [0, 6, 511] {
                assert_eq!(noted(512 * block as u64 + nr), (size, accessed, dirty), "page {nr} of block {block}");
            }
        }
    };
    let noted_by_cpu = [(true, true), (true, false), (false, false)];
    all(PageSize::Size2M, noted_by_cpu);
    // Fewer rights, and all of them again.
    for prot in [Prot::USER_READ, Prot::USER_WRITE] {
        space.protect(page(0), 3 * 512 * PAGE_SIZE, prot).unwrap();
        all(PageSize::Size2M, noted_by_cpu);
    }
    // Split: nobody knows any more which of the pages it was, so it was each of them.
    [5, 512 + 5, 1024 + 5].into_iter().for_each(|nr| unmap(&space, nr, 1));
    all(PageSize::Size4K, noted_by_cpu);
    emu.on_cpu(0, || store_to(&space, &emu, page(1024), 1).unwrap());
    assert_eq!(
        [noted(1024), noted(1025)].map(|(_, accessed, dirty)| (accessed, dirty)),
        [(true, true), (false, false)]
    );
}

// covers: G3
#[test]
fn what_promotion_replaced_is_forgotten() {
    let (emu, mm) = machine(2);
    let device = Device::dax_with(&mm, DEVICE_PAGES, PageSize::Size2M);
    let space = space_with(&mm, &device, 1024, &[0, 1]);
    // The second huge leaf keeps the table above, so that the first is cleared by itself.
    [0, 512].into_iter().for_each(|nr| store_to(&space, &emu, page(nr), nr).unwrap());
    // A page that is taken away from outside and faults in again leaves 512 small leaves over one folio.
    let mut gather = Gather::new(&mm);
    unmap_mapping_range(&device.mapping, 5, 1, &mut gather);
    gather.finish();
    for cpu in 0..2 {
        emu.on_cpu(cpu, || (0..9).for_each(|nr| store_to(&space, &emu, page(nr), nr).unwrap()));
    }
    assert_eq!(space.translate(page(0)).unwrap().size, PageSize::Size4K);
    assert_eq!(space.promote(page(0), 512 * PAGE_SIZE), Ok(1));
    let promoted = space.translate(page(0)).unwrap();
    // One of the pages was stored to, and so all of it may have been.
    assert_eq!((promoted.size, promoted.entry.is_dirty()), (PageSize::Size2M, true));
    // What is cached of the old table would be right for as long as the huge leaf lasts; but when that goes, one
    // flush is all that it gets.
    unmap(&space, 0, 512);
    for nr in 0..9 {
        assert_gone(&emu, &space, nr);
    }
    assert_eq!(device.pages.live_folios(), 1);
}

// covers: G7
#[test]
fn promotion_stays_inside_an_area() {
    let (_emu, _mm, space) = mapped(2, 512, PageSize::Size2M);
    space.protect(page(9), PAGE_SIZE, Prot::USER_READ).unwrap();
    space.protect(page(9), PAGE_SIZE, Prot::USER_WRITE).unwrap();
    assert_eq!(space.promote(page(0), 512 * PAGE_SIZE), Ok(0), "there are three areas now");
}

// covers: G3
#[test]
fn a_split_without_memory_takes_the_whole_leaf() {
    let (emu, mm, space) = mapped(2, 512, PageSize::Size2M);
    emu.limit_tables(emu.live_tables());
    unmap(&space, 5, 1);
    assert!(emu.leaves(space.tlb().root()).is_empty());
    assert_gone(&emu, &space, 5);
    emu.limit_tables(64);
    assert_eq!(load_from(&space, &emu, page(6)), Ok(6), "what was not to go faults in again");
    assert_eq!(mm.ledger.count(Kind::Mappings), 2);
}

// covers: G3
#[test]
fn five_levels_and_machines_without_huge_leaves_work_alike() {
    for (levels, has_1g_leaves) in [(4, false), (5, true), (5, false)] {
        let (emu, mm) = common::machine_with(Config { cpus: 2, levels, has_1g_leaves, ..Config::default() });
        let device = Device::dax(&mm, DEVICE_PAGES);
        let space = space_with(&mm, &device, 1 << 18, &[0, 1]);
        for cpu in 0..2 {
            emu.on_cpu(cpu, || store_to(&space, &emu, page(700), 7).unwrap());
        }
        let size = space.translate(page(700)).unwrap().size;
        assert_eq!(size, if has_1g_leaves { PageSize::Size1G } else { PageSize::Size2M });
        unmap(&space, 700, 1);
        assert_gone(&emu, &space, 700);
        unmap(&space, 0, 1 << 18);
        assert_eq!(emu.live_tables(), 1);
    }
}

/// Of three VMAs in one page table, and one of whole blocks, those in which something is installed are told.
// covers: R5
#[test]
fn what_others_have_left_is_found_by_its_leaves() {
    let (emu, mm) = machine(1);
    let device = Device::dax_with(&mm, DEVICE_PAGES, PageSize::Size4K);
    let space = space_with(&mm, &device, 100, &[0]);
    let vmas = [(0, 100), (200, 100), (400, 700), (2048, 1024)];
    for (first, nr_pages) in &vmas[1..] {
        space.map(page(*first), nr_pages * PAGE_SIZE, Prot::USER_WRITE, &device.ops(), *first).unwrap();
    }
    let left = || {
        let (mut gather, mut found) = (Gather::new(&mm), Vec::new());
        unmap_leftovers(&device.mapping, &mut gather, &mut |_, range| found.push(range.start()));
        (found, gather.finish().entries_visited)
    };
    let store = |nr| emu.on_cpu(0, || store_to(&space, &emu, page(nr), 3).unwrap());
    emu.on_cpu(0, || {
        let (found, looks) = left();
        assert_eq!((found, looks), (vec![], 4), "of a space without tables one entry for each VMA");
    });
    for (nr, vma) in [(299, 1), (0, 0), (400, 2), (400 + 699, 2), (2048 + 600, 3), (99, 0)] {
        store(nr);
        emu.on_cpu(0, || assert_eq!(left().0, [page(vmas[vma].0)], "page {nr}"));
        assert!(space.translate(page(nr)).is_none(), "page {nr}");
    }
    [0, 299, 3000].into_iter().for_each(store);
    emu.on_cpu(0, || assert_eq!(left().0, [0, 1, 3].map(|vma: usize| page(vmas[vma].0))));
    emu.on_cpu(0, || assert_eq!(left().0, []));
}

#[test]
fn address_zero_is_never_mapped() {
    let (_emu, mm) = machine(1);
    let device = Device::dax(&mm, DEVICE_PAGES);
    let space = AddressSpace::new(&mm, "zero").unwrap();
    let map = |va, pages| space.map(VirtAddr::new(va), pages * PAGE_SIZE, Prot::USER_WRITE, &device.ops(), 0);
    assert_eq!((map(0, 1), map(0, 512)), (Err(MapError::AtZero), Err(MapError::AtZero)));
    assert!(MapError::AtZero.to_string().contains("address 0"));
    // The page after it can be; and what begins at 0 can be unmapped, for nothing is there.
    assert_eq!(map(PAGE_SIZE, 1), Ok(()));
    assert!(space.unmap(VirtAddr::new(0), 2 * PAGE_SIZE).is_ok());
    assert_eq!(mm.ledger.count(Kind::Mappings), 0);
}

#[test]
fn a_mapping_that_promises_one_leaf_size_is_cut_between_its_leaves() {
    let (_emu, mm) = machine(1);
    let device = Device::dax_with(&mm, DEVICE_PAGES, PageSize::Size2M);
    device.promise_leaves();
    let space = space_with(&mm, &device, 4 * 512, &[0]);
    space.populate(page(0), 4 * 512 * PAGE_SIZE, Access::Read).unwrap();
    let cuts = MapError::CutsLeaf(PageSize::Size2M);
    let refused = Some(cuts);
    let len = |pages: u64| pages * PAGE_SIZE;
    for (first, pages) in [(5, 1), (0, 5), (512, 511), (511, 513), (5, 512), (0, 2047)] {
        assert_eq!(space.unmap(page(first), len(pages)).err(), refused, "unmap of {pages} pages from {first} on");
        let protected = space.protect(page(first), len(pages), Prot::USER_READ).err();
        assert_eq!(protected, refused, "rights of {pages} pages from {first} on");
    }
    // Nothing was cut, and nothing went.
    assert_eq!((mm.ledger.count(Kind::Mappings), device.mapping.nr_vmas()), (1, 1));
    let whole = |nr: u64| space.translate(page(nr)).map(|found| (found.size, found.entry.is_writable()));
    assert!((0..2048).all(|nr| whole(nr) == Some((PageSize::Size2M, true))));
    assert!(cuts.to_string().contains("2MiB"));
    // Leaf by leaf it goes, and comes again: the hole is one that the provider can fill.
    space.unmap(page(512), len(512)).unwrap();
    assert_eq!((whole(511), whole(512), whole(1024)), (Some((PageSize::Size2M, true)), None, whole(2047)));
    space.map(page(512), len(512), Prot::USER_WRITE, &device.ops(), 512).unwrap();
    space.protect(page(1024), len(512), Prot::USER_READ).unwrap();
    // A range that ends where nothing is mapped, or around all of it, cuts nothing.
    space.unmap(page(2048), len(1)).unwrap();
    space.unmap(VirtAddr::new(page(0).as_u64() - PAGE_SIZE), len(2048 + 2)).unwrap();
    assert_eq!(mm.ledger.count(Kind::Mappings), 0);
}
