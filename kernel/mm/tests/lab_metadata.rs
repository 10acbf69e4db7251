//! Lab 6: page metadata that exists only while it is needed, one fault for each test (`docs/labs/6-metadata-on-demand.md`).
#![cfg(not(loom))]

mod common;

use common::{EmuContext, machine};
use mm::addr::{PageSize, Pfn};
use mm::ledger::Kind;
use mm::meta::Owner;
use mm::sync::Arc;
use testkit::emu::Frames;

/// The first frame of a device of 3 GiB.
const FIRST: u64 = 1 << 18;

fn rig() -> (Arc<EmuContext>, Arc<Frames>) {
    let (_, mm) = machine(1);
    let device = Frames::new(&mm, Pfn::new(FIRST), 3 << 18);
    (mm, device)
}

fn bytes(mm: &EmuContext) -> i64 {
    mm.ledger.count(Kind::MetadataBytes)
}

/// Takes the first reference on page `nr`, in a folio of at most `size`.
fn get(mm: &EmuContext, nr: u64, size: PageSize) {
    let owner = Owner { mapping: 1, offset: nr };
    let (_, got) = mm.meta.get_or_create(Pfn::new(FIRST + nr), size, owner, 1).expect("there is memory");
    assert_eq!(got, size);
}

fn put(mm: &EmuContext, nr: u64) {
    mm.meta.put(Pfn::new(FIRST + nr), 1);
}

// covers: G8, R4, T5
#[test]
fn a_pages_metadata_goes_with_its_last_reference() {
    let (mm, device) = rig();
    assert_eq!(bytes(&mm), 0, "nobody uses it");
    get(&mm, 7, PageSize::Size4K);
    get(&mm, 7, PageSize::Size4K);
    let used = bytes(&mm);
    put(&mm, 7);
    assert_eq!((bytes(&mm), device.map.is_drained()), (used, false), "one reference is left");
    put(&mm, 7);
    assert!(mm.meta.inspect(Pfn::new(FIRST + 7)).is_none() && device.map.is_drained(), "the page is still live");
    assert!(bytes(&mm) < used, "the last reference is gone, and nothing of its metadata");
}

// covers: G8, R4, T5
#[test]
fn a_large_folios_metadata_goes_too() {
    for size in [PageSize::Size2M, PageSize::Size1G] {
        let (mm, device) = rig();
        get(&mm, 0, size);
        let used = bytes(&mm);
        assert!(used > 0);
        put(&mm, 5);
        assert!(device.map.is_drained(), "a folio of {size} is still live");
        assert!(bytes(&mm) < used, "the last reference on a folio of {size} is gone, and nothing of its metadata");
    }
}

// covers: R4, T5
#[test]
fn no_table_is_left_above_what_has_gone() {
    let (mm, _device) = rig();
    for nr in [0, 600, 1 << 18] {
        get(&mm, nr, PageSize::Size4K);
    }
    for nr in [600, 0, 1 << 18] {
        put(&mm, nr);
    }
    assert_eq!(bytes(&mm), 0, "nobody uses the device, and bytes of metadata are left");
}

// covers: R4, G8, T5
#[test]
fn a_table_that_others_use_stays() {
    let (mm, _device) = rig();
    // In one chunk, in one table of 1 GiB, and in another.
    for nr in [3, 4, 600, 1 << 18] {
        get(&mm, nr, PageSize::Size4K);
    }
    let live = |nr: u64| mm.meta.inspect(Pfn::new(FIRST + nr)).is_some_and(|folio| folio.counts.refs == 1);
    for (gone, rest) in [(4, &[3, 600, 1 << 18][..]), (600, &[3, 1 << 18]), (1 << 18, &[3])] {
        put(&mm, gone);
        assert!(rest.iter().all(|&nr| live(nr)), "page {gone} has gone, and with it what others use: {rest:?}");
    }
    put(&mm, 3);
}
