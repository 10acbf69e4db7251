//! Pins as values, and the ledger that names them.
#![cfg(not(loom))]

mod common;

use common::{BASE, Device, counts, page, space_with, world};
use mm::addr::PageSize;
use mm::gup::{GupError, GupFlags};
use mm::pins::PinnedPages;

// covers: G8
#[test]
fn pinned_pages_are_given_back_once_when_the_value_goes() {
    let (emu, mm) = world(1);
    let device = Device::dax_with(&mm, 4 << 18, PageSize::Size4K);
    let space = space_with(&mm, &device, 8, &[0]);
    emu.on_cpu(0, || {
        let pinned = PinnedPages::pin(&space, page(2), 4, GupFlags::WRITE).unwrap();
        assert_eq!(pinned.frames().len(), 1, "frames in a row are one run");
        let again = PinnedPages::pin(&space, page(2), 1, GupFlags::empty()).unwrap();
        assert_eq!(counts(&mm.meta, device.pfn(2)).1, 2);
        drop(pinned);
        assert_eq!(counts(&mm.meta, device.pfn(2)).1, 1);
        drop(again);
        assert_eq!(mm.meta.totals().pins, 0);
    });
}

// covers: G5
#[test]
fn a_value_holds_all_pages_or_none() {
    let (emu, mm) = world(1);
    let device = Device::dax_with(&mm, 4 << 18, PageSize::Size4K);
    let space = space_with(&mm, &device, 4, &[0]);
    emu.on_cpu(0, || {
        let error = PinnedPages::pin(&space, page(2), 4, GupFlags::WRITE).err();
        assert_eq!(error, Some(GupError::NotMapped(page(4))));
        assert_eq!(PinnedPages::pin(&space, BASE, 0, GupFlags::WRITE).err(), Some(GupError::NoPages));
        assert_eq!(mm.meta.totals().pins, 0);
    });
}

// covers: E9 L7
#[test]
fn the_ledger_names_owner_place_and_age_while_it_is_on() {
    let (emu, mm) = world(1);
    let device = Device::dax_with(&mm, 4 << 18, PageSize::Size4K);
    let space = space_with(&mm, &device, 4, &[0]);
    let listed = || {
        let mut lines = Vec::new();
        mm.pins.for_each(&mut |record| lines.push(record.describe(record.since_ns + 5_000_000).to_string()));
        lines
    };
    emu.on_cpu(0, || {
        let unlisted = PinnedPages::pin(&space, page(0), 1, GupFlags::WRITE).unwrap();
        mm.pins.switch(true);
        let pinned = PinnedPages::pin(&space, page(1), 2, GupFlags::WRITE | GupFlags::LONGTERM).unwrap();
        let lines = listed();
        assert_eq!(lines.len(), 1);
        assert!(lines[0].starts_with("2 pages from frame"), "{}", lines[0]);
        assert!(lines[0].contains("long-term") && lines[0].contains(space.name()), "{}", lines[0]);
        assert!(lines[0].contains("tests/pins.rs:") && lines[0].ends_with("5 ms ago"), "{}", lines[0]);
        drop((pinned, unlisted));
        assert!(listed().is_empty());
    });
}
