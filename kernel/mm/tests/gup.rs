//! gup on the emulated machine: each race is forced at the step at which it matters. What it refuses is in
//! `gup_refused.rs`.
#![cfg(not(loom))]

mod common;

use common::gup_rig::{FAST, Running, rig};
use common::{Device, counts, load, machine, page, pin, space_with, store_to, unpin};
use mm::addr::{PAGE_SIZE, PageSize, Pfn};
use mm::entry::Prot;
use mm::gup::{self, GupError, GupFlags, PageArray};
use mm::machine::{Machine, Point};
use mm::space::{Access, SigBusCause};
use mm::sync::Arc;
use testkit::emu::Event;

// covers: G1
#[test]
fn an_entry_that_is_zapped_before_the_recheck_is_not_pinned() {
    for point in [Point::GupLeafRead, Point::GupPinned] {
        let rig = rig(3, PageSize::Size4K);
        rig.emu.on_cpu(0, || {
            // Page 1 alone: its neighbours keep the page table, so that the entry itself is cleared.
            let zap = rig.race(point, rig.unmap(1, 1));
            assert_eq!(pin(&rig.space, page(1), 1, FAST), Err(GupError::NotPresent(page(1))), "at {point:?}");
            rig.finish(&zap);
        });
        assert_eq!(counts(&rig.mm.meta, rig.device.pfn(1)), (0, 0), "no stray reference");
    }
}

// covers: G1
#[test]
fn a_page_table_that_is_unlinked_before_the_recheck_is_not_pinned_through() {
    for point in [Point::GupLeafRead, Point::GupPinned] {
        // Three page tables; the middle one goes as a whole and its own entries stay as they are.
        let rig = rig(3 * 512, PageSize::Size4K);
        rig.emu.on_cpu(0, || {
            let zap = rig.race(point, rig.unmap(512, 512));
            assert_eq!(pin(&rig.space, page(600), 1, FAST), Err(GupError::NotPresent(page(600))), "at {point:?}");
            rig.finish(&zap);
        });
        assert_eq!(counts(&rig.mm.meta, rig.device.pfn(600)), (0, 0));
    }
}

// covers: G1, G5
#[test]
fn a_run_ends_before_an_entry_that_is_zapped_meanwhile() {
    for point in [Point::GupLeafRead, Point::GupPinned] {
        let rig = rig(5, PageSize::Size4K);
        rig.emu.on_cpu(0, || {
            let zap = Running::default();
            let (emu, started, unmap) = (rig.emu.clone(), zap.clone(), rig.unmap(2, 1));
            // When the walk is at the third page.
            rig.emu.at(0, Event::At(point), 3, move || *started.lock().unwrap() = Some(emu.start(1, unmap)));
            let runs = pin(&rig.space, page(0), 5, FAST).unwrap();
            assert_eq!((runs[0].start(), runs[0].nr_pages()), (rig.device.pfn(0), 2), "at {point:?}");
            rig.finish(&zap);
            unpin(&rig.mm, &runs);
        });
        assert_eq!(counts(&rig.mm.meta, rig.device.pfn(2)), (0, 0));
        assert_eq!(rig.mm.meta.totals().pins, 0);
    }
}

// covers: G1, G5
#[test]
fn a_run_through_a_table_that_is_unlinked_meanwhile_is_given_back() {
    for nth in 1..=3 {
        let rig = rig(3 * 512, PageSize::Size4K);
        rig.emu.on_cpu(0, || {
            let zap = Running::default();
            let (emu, started, unmap) = (rig.emu.clone(), zap.clone(), rig.unmap(512, 512));
            rig.emu.at(0, Event::At(Point::GupPinned), nth, move || {
                *started.lock().unwrap() = Some(emu.start(1, unmap));
            });
            assert_eq!(pin(&rig.space, page(600), 3, FAST), Err(GupError::NotPresent(page(600))), "at page {nth}");
            rig.finish(&zap);
        });
        let totals = rig.mm.meta.totals();
        assert_eq!((totals.pins, totals.refs), (0, 1024));
    }
}

// covers: G1, G6
#[test]
fn small_leaves_over_one_large_folio_are_pinned_together_and_checked_together() {
    let fresh = || {
        let rig = rig(1024, PageSize::Size2M);
        // A hole that is filled again leaves 512 small leaves over the first folio.
        let mut gather = mm::gather::Gather::new(&rig.mm);
        mm::mapping::unmap_mapping_range(&rig.device.mapping, 5, 1, &mut gather);
        gather.finish();
        store_to(&rig.space, &rig.emu, page(5), 5).unwrap();
        rig
    };
    let rig = fresh();
    let runs = pin(&rig.space, page(3), 600, FAST).unwrap();
    assert_eq!((runs.len(), runs[0].nr_pages(), rig.pins(0)), (1, 600, 509));
    unpin(&rig.mm, &runs);
    for (first, nr) in [(7, 1), (0, 512)] {
        let rig = fresh();
        rig.emu.on_cpu(0, || {
            let zap = rig.race(Point::GupPinned, rig.unmap(first, nr));
            assert_eq!(pin(&rig.space, page(3), 20, FAST), Err(GupError::NotPresent(page(3))), "{nr} pages go");
            rig.finish(&zap);
        });
        assert_eq!(rig.pins(0), 0);
    }
}

// covers: G1
#[test]
fn a_huge_leaf_that_is_split_before_the_recheck_is_not_pinned() {
    for point in [Point::GupLeafRead, Point::GupPinned] {
        let rig = rig(512, PageSize::Size2M);
        rig.emu.on_cpu(0, || {
            let zap = rig.race(point, rig.unmap(7, 1));
            assert_eq!(pin(&rig.space, page(7), 1, FAST), Err(GupError::NotPresent(page(7))), "at {point:?}");
            rig.finish(&zap);
        });
        assert_eq!(counts(&rig.mm.meta, rig.device.first), (511, 0), "one reference for each leaf that is left");
    }
}

// covers: G1
#[test]
fn a_right_that_is_taken_away_before_the_recheck_is_not_used() {
    for point in [Point::GupLeafRead, Point::GupPinned] {
        let rig = rig(3, PageSize::Size4K);
        rig.emu.on_cpu(0, || {
            let space = rig.space.clone();
            let protect = rig.race(point, move || _ = space.protect(page(1), PAGE_SIZE, Prot::USER_READ).unwrap());
            assert_eq!(pin(&rig.space, page(1), 1, FAST), Err(GupError::NotPresent(page(1))), "at {point:?}");
            rig.finish(&protect);
        });
        assert_eq!(counts(&rig.mm.meta, rig.device.pfn(1)), (1, 0), "the mapping's own reference");
    }
}

// covers: G1
#[test]
fn accessed_and_dirty_bits_are_no_change() {
    let rig = rig(2, PageSize::Size4K);
    rig.space.protect(page(0), PAGE_SIZE, Prot::USER_WRITE).unwrap();
    let (emu, space) = (rig.emu.clone(), rig.space.clone());
    rig.space.unmap(page(1), PAGE_SIZE).unwrap();
    rig.space.map(page(1), PAGE_SIZE, Prot::USER_WRITE, &rig.device.ops(), 1).unwrap();
    common::load_from(&rig.space, &rig.emu, page(1)).unwrap();
    rig.emu.at(0, Event::At(Point::GupPinned), 1, move || {
        emu.on_cpu(1, || store_to(&space, &emu, page(1), 3).unwrap());
    });
    let runs = pin(&rig.space, page(1), 1, FAST).expect("dirty was set, nothing else");
    rig.emu.assert_hooks_ran();
    unpin(&rig.mm, &runs);
}

// covers: G2, G3
#[test]
fn nothing_that_a_walk_may_touch_is_freed_during_it() {
    let rig = rig(3, PageSize::Size4K);
    rig.emu.on_cpu(0, || {
        let zap = Running::default();
        let (emu, mm, unmap, started) = (rig.emu.clone(), rig.mm.clone(), rig.unmap(0, 3), zap.clone());
        let pfn = rig.device.pfn(1);
        rig.emu.at(0, Event::At(Point::GupLeafRead), 1, move || {
            assert!(!emu.irqs_on(), "gup-fast walks with interrupts off");
            let tables = emu.live_tables();
            let unmap = emu.start(1, unmap);
            assert!(!unmap.is_finished() && emu.is_pending(0), "the unmap waits for this CPU");
            assert_eq!(emu.live_tables(), tables, "table pages are held until the sync");
            assert_eq!(counts(&mm.meta, pfn), (1, 0), "so is the mapping's reference");
            *started.lock().unwrap() = Some(unmap);
        });
        // What was unlinked is the root's entry, which gup-fast does not read again: the pin is taken before the
        // unmap is over, and counts.
        let runs = pin(&rig.space, page(1), 1, FAST).unwrap();
        rig.finish(&zap);
        assert_eq!(counts(&rig.mm.meta, rig.device.pfn(1)), (1, 1), "the pin outlives the mapping");
        unpin(&rig.mm, &runs);
    });
    assert_eq!(rig.device.pages.live_folios(), 0);
    assert_eq!(rig.emu.live_tables(), 1);
}

// covers: G2, G3
#[test]
fn a_page_keeps_the_reference_of_its_mapping_until_every_cpu_has_answered() {
    let rig = rig(3, PageSize::Size4K);
    rig.emu.on_cpu(0, || {
        let zap = rig.race(Point::GupLeafRead, rig.unmap(1, 1));
        let (mm, pfn) = (rig.mm.clone(), rig.device.pfn(1));
        rig.emu.at(0, Event::At(Point::GupPinned), 1, move || {
            assert_eq!(
                counts(&mm.meta, pfn),
                (2, 1),
                "the mapping's reference and the pin that is about to be dropped"
            );
        });
        assert_eq!(pin(&rig.space, page(1), 1, FAST), Err(GupError::NotPresent(page(1))));
        rig.finish(&zap);
    });
    assert_eq!(rig.device.pages.live_folios(), 2);
}

// covers: G1
#[test]
fn nothing_of_the_page_map_is_touched() {
    let rig = rig(2, PageSize::Size4K);
    let (held, live) = (Arc::strong_count(&rig.device.pages), rig.device.pages.live_folios());
    let pages = rig.device.pages.clone();
    rig.emu.at(0, Event::At(Point::GupPinned), 1, move || {
        assert_eq!((Arc::strong_count(&pages), pages.live_folios()), (held + 1, live));
    });
    unpin(&rig.mm, &pin(&rig.space, page(0), 1, FAST).unwrap());
    rig.emu.assert_hooks_ran();
}

// covers: G4, G5
#[test]
fn the_slow_path_serves_what_the_fast_one_cannot() {
    let (emu, mm) = machine(1);
    let device = Device::dax_with(&mm, 64, PageSize::Size4K);
    let space = space_with(&mm, &device, 8, &[0]);
    (0..3).for_each(|nr| store_to(&space, &emu, page(nr), nr).unwrap());
    assert_eq!(pin(&space, page(0), 8, FAST).map(|runs| runs[0].nr_pages()), Ok(3), "the fast path alone");
    let no_fault = GupFlags::NO_FAULT | GupFlags::WRITE;
    assert_eq!(pin(&space, page(0), 8, no_fault).map(|runs| runs[0].nr_pages()), Ok(3));
    assert_eq!(pin(&space, page(3), 1, no_fault), Err(GupError::NotPresent(page(3))));
    let runs = pin(&space, page(0), 8, GupFlags::WRITE).unwrap();
    assert_eq!((runs.len(), runs[0].nr_pages()), (1, 8), "neighbours melt into one run");
    assert_eq!(counts(&mm.meta, device.pfn(0)), (4, 3));
    assert_eq!(counts(&mm.meta, device.pfn(7)), (2, 1));
}

// covers: G4
#[test]
fn a_dead_device_is_noticed_by_the_slow_path() {
    let (_emu, mm) = machine(1);
    let device = Device::dax_with(&mm, 64, PageSize::Size4K);
    let space = space_with(&mm, &device, 8, &[0]);
    device.kill();
    let gone = GupError::SigBus(page(2), SigBusCause::DeviceGone);
    assert_eq!(pin(&space, page(2), 1, GupFlags::WRITE), Err(gone));
    assert_eq!(device.pages.live_folios(), 0);
}

// covers: G5
#[test]
fn an_error_after_a_part_gives_the_part() {
    let rig = rig(4, PageSize::Size4K);
    // Pages 0 to 3 are mapped, page 4 is not.
    for flags in [FAST, GupFlags::WRITE, GupFlags::NO_FAULT] {
        let runs = pin(&rig.space, page(2), 5, flags).unwrap();
        assert_eq!((runs[0].start(), runs[0].nr_pages()), (rig.device.pfn(2), 2), "{flags:?}");
        unpin(&rig.mm, &runs);
    }
    assert_eq!(pin(&rig.space, page(4), 5, GupFlags::WRITE), Err(GupError::NotMapped(page(4))));
}

// covers: G6
#[test]
fn a_huge_leaf_costs_the_same_for_one_page_and_for_all() {
    for (leaf, nr_pages) in [(PageSize::Size2M, 512), (PageSize::Size1G, 1 << 18)] {
        let rig = rig(nr_pages, leaf);
        let looks = |nr: u64| {
            rig.emu.reset_stats();
            let runs = pin(&rig.space, page(nr_pages - nr), nr, FAST).unwrap();
            assert_eq!(runs.len(), 1);
            assert_eq!((runs[0].start(), runs[0].nr_pages()), (rig.device.pfn(nr_pages - nr), nr));
            assert_eq!(rig.pins(0), nr as u32, "each page is a pin");
            let looks = rig.emu.stats().entry_looks;
            unpin(&rig.mm, &runs);
            looks
        };
        assert_eq!(looks(2), looks(nr_pages), "{leaf}");
        // A single page is looked for among the small ones first.
        assert!(looks(1) <= 2 * looks(nr_pages), "{leaf}");
        assert_eq!(rig.pins(0), 0);
    }
}

// covers: G6
#[test]
fn pages_and_ranges_say_the_same() {
    let rig = rig(512, PageSize::Size2M);
    let mut pages = [Pfn::new(0); 20];
    let mut array = PageArray::new(&mut pages);
    assert_eq!(gup::pin_user_pages_fast(&rig.space, page(500), 20, FAST, &mut array), Ok(12));
    let want: Vec<_> = (500..512).map(|nr| rig.device.pfn(nr)).collect();
    assert_eq!(array.as_slice(), want);
    want.iter().for_each(|&pfn| gup::unpin(&rig.mm, pfn, 1));
    // A full array ends the request, not the kernel.
    let mut array = PageArray::new(&mut pages[..5]);
    assert_eq!(gup::pin_user_pages_fast(&rig.space, page(0), 20, FAST, &mut array), Ok(5));
    gup::unpin(&rig.mm, rig.device.pfn(0), 5);
    assert_eq!(rig.pins(0), 0);
}

// covers: G1, G4
#[test]
fn a_space_that_is_not_loaded_is_pinned_by_the_slow_path() {
    let rig = rig(2, PageSize::Size4K);
    load(&rig.mm, None);
    assert_eq!(pin(&rig.space, page(0), 1, FAST), Err(GupError::NotPresent(page(0))));
    unpin(&rig.mm, &pin(&rig.space, page(0), 1, GupFlags::WRITE).unwrap());
    common::load(&rig.mm, Some(&rig.space));
    common::go_idle(&rig.mm);
    assert_eq!(pin(&rig.space, page(0), 1, FAST), Err(GupError::NotPresent(page(0))), "an idle CPU may be skipped");
}

// covers: G3 G8
#[test]
fn a_pin_outlives_the_unmap_of_its_whole_block() {
    let rig = rig(512, PageSize::Size4K);
    rig.emu.on_cpu(0, || {
        let pinned = pin(&rig.space, page(7), 1, FAST).unwrap();
        rig.unmap(0, 512)();
        assert_eq!((counts(&rig.mm.meta, rig.device.pfn(7)), rig.device.pages.live_folios()), ((1, 1), 1));
        unpin(&rig.mm, &pinned);
    });
    assert_eq!(rig.mm.ledger_snapshot().count(mm::ledger::Kind::MetadataBytes), 0);
}

#[test]
fn a_pin_outlives_the_unmap_of_many_large_leaves() {
    const LEAVES: u64 = 100;
    let rig = rig(LEAVES * 512, PageSize::Size2M);
    rig.emu.on_cpu(0, || {
        (0..LEAVES).for_each(|nth| rig.space.handle_fault(page(512 * nth), Access::Read).unwrap());
        let pinned = pin(&rig.space, page(70 * 512 + 5), 1, FAST).unwrap();
        rig.unmap(0, LEAVES * 512)();
        assert_eq!((counts(&rig.mm.meta, rig.device.pfn(70 * 512)), rig.device.pages.live_folios()), ((1, 1), 1));
        unpin(&rig.mm, &pinned);
    });
    assert_eq!(rig.mm.ledger_snapshot().count(mm::ledger::Kind::MetadataBytes), 0);
}

#[test]
fn a_block_that_two_spaces_map_goes_with_the_second() {
    let rig = rig(512, PageSize::Size4K);
    let other = space_with(&rig.mm, &rig.device, 512, &[]);
    rig.emu.on_cpu(0, || {
        // One page of the other space is absent: its table is not full, so that its leaves go one by one.
        (1..512).for_each(|nr| other.handle_fault(page(nr), Access::Read).unwrap());
        rig.unmap(0, 512)();
        assert_eq!(rig.device.pages.live_folios(), 511);
        let stats = other.unmap(page(0), 512 * PAGE_SIZE).unwrap();
        assert_eq!((stats.leaves, stats.table_pages), (511, 3));
    });
    assert_eq!(rig.mm.ledger_snapshot().count(mm::ledger::Kind::MetadataBytes), 0);
}
