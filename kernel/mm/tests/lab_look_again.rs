//! Lab 5: what a lockless pin has to notice, one fault for each test (`docs/labs/5-look-again.md`). All races together are in
//! `gup.rs`.
#![cfg(not(loom))]

mod common;

use common::gup_rig::{FAST, rig};
use common::{counts, page, pin, store_to, unpin};
use mm::addr::PageSize;
use mm::gup::GupError;
use mm::machine::Point;
use testkit::emu::Event;

/// Pins page `nr` of `nr_pages` small ones while another CPU unmaps `(first, count)` at `point`; it must be refused.
fn refused_at(point: Point, nr_pages: u64, (first, count): (u64, u64), nr: u64) {
    let rig = rig(nr_pages, PageSize::Size4K);
    rig.emu.on_cpu(0, || {
        let zap = rig.race(point, rig.unmap(first, count));
        let pinned = pin(&rig.space, page(nr), 1, FAST);
        assert_eq!(pinned, Err(GupError::NotPresent(page(nr))), "the page was unmapped at {point:?}, and was pinned");
        rig.finish(&zap);
    });
}

// covers: G1, T5
#[test]
fn a_page_that_stays_is_pinned_once() {
    let rig = rig(3, PageSize::Size4K);
    for (first, nr_pages) in [(1, 1), (0, 3)] {
        let runs = pin(&rig.space, page(first), nr_pages, FAST).expect("nobody takes it away");
        assert_eq!(counts(&rig.mm.meta, rig.device.pfn(1)), (2, 1), "the mapping's reference, and one pin");
        unpin(&rig.mm, &runs);
    }
    assert_eq!(counts(&rig.mm.meta, rig.device.pfn(1)), (1, 0), "the mapping's reference alone");
}

// covers: G1, T5
#[test]
fn an_entry_that_goes_before_the_reference_is_noticed() {
    // Its neighbours keep the page table, so that the entry itself is cleared.
    refused_at(Point::GupLeafRead, 3, (1, 1), 1);
}

// covers: G1, T5
#[test]
fn an_entry_that_goes_behind_the_reference_is_noticed() {
    refused_at(Point::GupPinned, 3, (1, 1), 1);
}

// covers: G1, T5
#[test]
fn a_table_that_is_unlinked_is_noticed() {
    // Of three page tables the middle one goes as a whole, and its own entries stay as they are.
    refused_at(Point::GupLeafRead, 3 * 512, (512, 512), 600);
}

// covers: G1, G8, T5
#[test]
fn a_reference_that_is_not_kept_is_given_back() {
    let rig = rig(3, PageSize::Size4K);
    rig.emu.on_cpu(0, || {
        let zap = rig.race(Point::GupLeafRead, rig.unmap(1, 1));
        let pinned = pin(&rig.space, page(1), 1, FAST);
        rig.finish(&zap);
        if let Ok(runs) = pinned {
            unpin(&rig.mm, &runs);
        }
    });
    assert_eq!(counts(&rig.mm.meta, rig.device.pfn(1)), (0, 0), "a reference was taken, and nobody gives it back");
}

// covers: G1, T5
#[test]
fn accessed_and_dirty_bits_are_no_change() {
    let rig = rig(3, PageSize::Size4K);
    rig.space.unmap(page(0), 3 * mm::addr::PAGE_SIZE).expect("it was mapped");
    rig.space
        .map(page(0), 3 * mm::addr::PAGE_SIZE, mm::entry::Prot::USER_WRITE, &rig.device.ops(), 0)
        .expect("there is room");
    (0..3).for_each(|nr| _ = common::load_from(&rig.space, &rig.emu, page(nr)).expect("it is there"));
    let (emu, space) = (rig.emu.clone(), rig.space.clone());
    // The first store to the page comes while the walk has its reference.
    rig.emu.at(0, Event::At(Point::GupPinned), 1, move || {
        emu.on_cpu(1, || store_to(&space, &emu, page(0), 7).expect("it may be stored to"));
    });
    let runs = pin(&rig.space, page(0), 3, FAST).expect("dirty was set, nothing else");
    rig.emu.assert_hooks_ran();
    assert_eq!(runs.iter().map(|run| run.nr_pages()).sum::<u64>(), 3, "a bit that the CPU has set ended the walk");
    unpin(&rig.mm, &runs);
}
