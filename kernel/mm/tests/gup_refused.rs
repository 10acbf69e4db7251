//! What gup refuses, on the emulated machine: every bad request is a clear error on every path, and a page that is put
//! without having been got stops the kernel.
#![cfg(not(loom))]

mod common;

use common::gup_rig::{FAST, panic_of, rig};
use common::{BASE, DEVICE_START, Device, counts, machine, page, pin, space_with, store_to, unpin};
use mm::addr::{PAGE_SIZE, PageSize, VirtAddr};
use mm::entry::Prot;
use mm::gup::{self, GupError, GupFlags, PageArray, RangeArray};
use mm::pagemap::MemoryKind;

// covers: G7
#[test]
fn a_read_only_mapping_is_not_pinned_for_writing() {
    for leaf in [PageSize::Size4K, PageSize::Size2M] {
        let rig = rig(512, leaf);
        rig.space.protect(page(0), 512 * PAGE_SIZE, Prot::USER_READ).unwrap();
        assert_eq!(pin(&rig.space, page(3), 1, FAST), Err(GupError::NotPresent(page(3))));
        assert_eq!(pin(&rig.space, page(3), 1, GupFlags::WRITE), Err(GupError::AccessDenied(page(3))));
        let force = GupFlags::WRITE | GupFlags::FORCE;
        assert_eq!(pin(&rig.space, page(3), 1, force), Err(GupError::AccessDenied(page(3))));
        unpin(&rig.mm, &pin(&rig.space, page(3), 1, GupFlags::empty()).unwrap());
    }
}

// covers: G7
#[test]
fn bad_ranges_are_clear_errors_on_every_path() {
    let rig = rig(2, PageSize::Size4K);
    let last = VirtAddr::new(u64::MAX - 0xfff);
    let kernel = VirtAddr::new(0xffff_8000_0000_0000);
    let end = rig.space.user_end();
    let below = |pages: u64| VirtAddr::new(end.as_u64() - pages * PAGE_SIZE);
    for flags in [FAST, GupFlags::WRITE, GupFlags::empty()] {
        for (va, nr) in [(last, 2), (last, 1), (kernel, 1), (end, 1), (below(1), 2), (BASE, 1 << 52), (BASE, u64::MAX)]
        {
            assert_eq!(pin(&rig.space, va, nr, flags), Err(GupError::BadRange), "{va} + {nr} pages");
        }
        assert_eq!(pin(&rig.space, BASE, 0, flags), Err(GupError::NoPages));
        let mut none = RangeArray::new(&mut []);
        let result = gup::pin_user_pages_fast(&rig.space, BASE, 1, flags, &mut none);
        assert_eq!(result, Err(GupError::NoRoom), "no room for a result");
    }
    assert_eq!(pin(&rig.space, page(2), 1, GupFlags::WRITE), Err(GupError::NotMapped(page(2))));
    assert_eq!(pin(&rig.space, below(1), 1, GupFlags::WRITE), Err(GupError::NotMapped(below(1))));
    let totals = rig.mm.meta.totals();
    assert_eq!((totals.pins, totals.refs), (0, 2));
}

// covers: G7
#[test]
fn wrapped_ranges_are_refused_by_the_address_space_too() {
    let rig = rig(1, PageSize::Size4K);
    let last = VirtAddr::new(u64::MAX - 0xfff);
    let bad = Err(mm::space::MapError::BadRange);
    for (va, len) in [(last, 2 * PAGE_SIZE), (BASE, 0), (BASE, 100), (VirtAddr::new(1), PAGE_SIZE), (BASE, !0xfff)] {
        assert_eq!(rig.space.unmap(va, len).map(|_| ()), bad, "{va} + {len:#x}");
        assert_eq!(rig.space.protect(va, len, Prot::USER_READ).map(|_| ()), bad);
        assert_eq!(rig.space.map(va, len, Prot::USER_READ, &rig.device.ops(), 0), bad);
    }
    let far = u64::MAX >> 12;
    assert_eq!(rig.space.map(page(9), PAGE_SIZE, Prot::USER_READ, &rig.device.ops(), far), bad, "a wrapped offset");
}

// covers: G8
#[test]
fn every_pin_is_given_back_once() {
    let rig = rig(2, PageSize::Size4K);
    let runs = pin(&rig.space, page(0), 1, FAST).unwrap();
    let again = pin(&rig.space, page(0), 1, FAST).unwrap();
    assert_eq!(counts(&rig.mm.meta, rig.device.pfn(0)), (3, 2));
    unpin(&rig.mm, &runs);
    assert_eq!(counts(&rig.mm.meta, rig.device.pfn(0)), (2, 1), "one pin, one reference");
    unpin(&rig.mm, &again);
    let message = panic_of(|| unpin(&rig.mm, &again));
    assert!(message.contains(&DEVICE_START.to_string()) && message.contains("unpin"), "{message}");
}

// covers: G8
#[test]
fn a_put_without_a_get_names_the_page() {
    let (_emu, mm) = machine(1);
    let device = Device::dax_with(&mm, 64, PageSize::Size4K);
    let message = panic_of(|| gup::put_page(&mm, device.pfn(3), 1));
    assert!(message.contains(&device.pfn(3).to_string()), "{message}");
}

// covers: L2, L3, L6
#[test]
fn a_long_term_pin_that_could_not_be_taken_back_is_refused_on_every_path() {
    let (emu, mm) = machine(1);
    let dax = Device::dax_with(&mm, 64, PageSize::Size4K);
    let first = DEVICE_START.add(1 << 18);
    let file = Device::new(&mm, first, 64, MemoryKind::FsDax, PageSize::Size4K);
    let space = space_with(&mm, &dax, 2, &[0]);
    space.map(page(2), 2 * PAGE_SIZE, Prot::USER_WRITE, &file.ops(), 0).unwrap();
    (0..4).for_each(|nr| store_to(&space, &emu, page(nr), nr).unwrap());
    let long = GupFlags::WRITE | GupFlags::LONGTERM;
    assert_eq!(pin(&space, page(0), 1, long), Err(GupError::RevocableOnly(page(0))), "by a registration only");
    assert_eq!(pin(&space, page(0), 4, long), Err(GupError::RevocableOnly(page(0))));
    assert_eq!(pin(&space, page(2), 1, long), Err(GupError::NotSupported(page(2))), "not at all");
    assert_eq!(pin(&space, page(0), 2, FAST | GupFlags::LONGTERM), Err(GupError::NotPresent(page(0))));
    assert_eq!(mm.meta.totals().pins, 0);
    assert_eq!(pin(&space, page(0), 4, GupFlags::WRITE).map(|runs| runs.len()), Ok(2), "a transient pin may");
}

// covers: L2, L3
#[test]
fn a_long_term_pin_is_refused_through_small_leaves_over_one_large_folio() {
    let (emu, mm) = machine(1);
    let file = Device::new(&mm, DEVICE_START, 1024, MemoryKind::FsDax, PageSize::Size2M);
    let space = space_with(&mm, &file, 1024, &[0]);
    store_to(&space, &emu, page(0), 1).unwrap();
    // A hole leaves small leaves over the folio.
    emu.on_cpu(0, || {
        let mut gather = mm::gather::Gather::new(&mm);
        mm::mapping::unmap_mapping_range(&file.mapping, 5, 1, &mut gather);
        gather.finish();
    });
    emu.on_cpu(0, || {
        let long = FAST | GupFlags::WRITE | GupFlags::LONGTERM;
        for (first, nr) in [(0, 1), (0, 3), (9, 100)] {
            assert!(pin(&space, page(first), nr, long).is_err(), "{nr} from {first}");
            assert_eq!(mm.meta.totals().pins, 0);
            let runs = pin(&space, page(first), nr, FAST | GupFlags::WRITE).unwrap();
            assert_eq!(runs[0].nr_pages(), nr, "a transient pin may");
            mm::gup::unpin(&mm, runs[0].start(), nr);
        }
    });
}

// covers: L4
#[test]
fn no_room_for_a_result_is_an_invalid_argument_before_anything_else() {
    let rig = rig(1, PageSize::Size4K);
    for flags in [GupFlags::WRITE, GupFlags::WRITE | GupFlags::LONGTERM] {
        let result = gup::pin_user_pages_fast(&rig.space, BASE, 1, flags, &mut PageArray::new(&mut []));
        assert_eq!(result, Err(GupError::NoRoom));
        assert!(GupError::NoRoom.to_string().starts_with("invalid argument"));
    }
    assert_eq!(rig.mm.meta.totals().pins, 0);
}
