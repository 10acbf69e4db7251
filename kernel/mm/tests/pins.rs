//! Pins as values, and the ledger that names them.
#![cfg(not(loom))]

mod common;

use common::{BASE, DEVICE_START, Device, counts, machine, page, space_with};
use mm::account::OverLimit;
use mm::addr::{PAGE_SIZE, PageSize};
use mm::entry::Prot;
use mm::gup::{GupError, GupFlags};
use mm::pagemap::MemoryKind;
use mm::pins::PinnedPages;
use mm::region::{MemoryRegion, Notice, RegionError, RegionOwner, Terms};
use mm::sync::Weak;

// covers: G8
#[test]
fn pinned_pages_are_given_back_once_when_the_value_goes() {
    let (emu, mm) = machine(1);
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
    let (emu, mm) = machine(1);
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
    let (emu, mm) = machine(1);
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
        let pinned = PinnedPages::pin(&space, page(1), 2, GupFlags::WRITE).unwrap();
        let lines = listed();
        assert_eq!(lines.len(), 1);
        assert!(lines[0].starts_with("2 pages from frame"), "{}", lines[0]);
        assert!(!lines[0].contains("long-term") && lines[0].contains(space.name()), "{}", lines[0]);
        assert!(lines[0].contains("tests/pins.rs:") && lines[0].contains(" 5 ms ago; account "), "{}", lines[0]);
        drop((pinned, unlisted));
        assert!(listed().is_empty());
    });
}

/// Off, the ledger takes no memory, which it does where it is on; and gup-fast looks at nothing more with it.
// covers: L7
#[test]
fn the_ledger_costs_nothing_while_it_is_off() {
    let (emu, mm) = machine(1);
    let device = Device::dax_with(&mm, 4 << 18, PageSize::Size4K);
    let space = space_with(&mm, &device, 4, &[0]);
    let pin = || PinnedPages::pin(&space, page(0), 4, GupFlags::WRITE);
    let bare = || {
        emu.reset_stats();
        let runs = common::pin(&space, page(0), 4, GupFlags::WRITE).unwrap();
        common::unpin(&mm, &runs);
        emu.stats()
    };
    emu.on_cpu(0, || {
        drop(pin().unwrap());
        let off = bare();
        // The list of the frames grows once, and nothing else does.
        emu.limit_growth(1);
        assert!(pin().is_ok());
        mm.pins.for_each(&mut |record| panic!("{} is listed", record.owner));
        mm.pins.switch(true);
        emu.limit_growth(1);
        assert_eq!(pin().err(), Some(GupError::OutOfMemory), "a record takes memory");
        emu.limit_growth(u64::MAX);
        assert_eq!(bare(), off);
        assert!(off.entry_looks > 0, "nothing was counted");
        assert_eq!(mm.meta.totals().pins, 0);
    });
}

// covers: L4
#[test]
fn memory_that_runs_out_for_the_list_leaves_nothing_pinned() {
    const RUNS: u64 = 12;
    let (emu, mm) = machine(1);
    let device = Device::dax_with(&mm, 4 << 18, PageSize::Size4K);
    let space = space_with(&mm, &device, 1, &[0]);
    // Every other page of the device, so that each is a run of its own.
    for nr in 1..RUNS {
        space.map(page(nr), PAGE_SIZE, Prot::USER_WRITE, &device.ops(), 2 * nr).unwrap();
    }
    mm.pins.switch(true);
    let account = mm.pins.open_account("owner", 100);
    mm.pins.exempt_reserved(false);
    let pin = || PinnedPages::pin_charged(&account, &space, page(0), RUNS, GupFlags::WRITE);
    emu.on_cpu(0, || {
        let mut failures = 0;
        loop {
            emu.limit_growth(failures);
            let result = pin();
            emu.limit_growth(u64::MAX);
            match result {
                Err(GupError::OutOfMemory) => failures += 1,
                Err(error) => panic!("after {failures} growths: {error}"),
                Ok(pinned) => {
                    assert_eq!((pinned.frames().len() as u64, account.used_pages()), (RUNS, RUNS));
                    break;
                }
            }
            assert_eq!((mm.meta.totals().pins, account.used_pages()), (0, 0), "after {failures} growths");
        }
        // The list grew more than once, and the ledger's copy of it could fail too.
        assert!(failures >= 3, "{failures} failures");
        assert_eq!(GupError::OutOfMemory.to_string(), "out of memory");
        assert_eq!((mm.meta.totals().pins, account.used_pages()), (0, 0), "given back and uncharged");
    });
}

// covers: L5
#[test]
fn an_owner_is_held_to_its_limit() {
    let (emu, mm) = machine(1);
    let device = Device::new(&mm, DEVICE_START, 4 << 18, MemoryKind::FsDax, PageSize::Size2M);
    let space = space_with(&mm, &device, 1024, &[0]);
    let account = mm.pins.open_account("owner", 600);
    let pin = |nr, nr_pages| PinnedPages::pin_charged(&account, &space, page(nr), nr_pages, GupFlags::WRITE);
    let over =
        |used_pages, wanted_pages| Some(GupError::OverLimit(OverLimit { limit_pages: 600, used_pages, wanted_pages }));
    emu.on_cpu(0, || {
        let first = pin(0, 512).unwrap();
        assert_eq!((account.used_pages(), account.exempt_pages()), (512, 0));
        assert_eq!(pin(0, 89).err(), over(512, 89));
        // One more than what would make the sum zero again.
        assert_eq!(pin(0, (1 << 51) - 512).err(), over(512, (1 << 51) - 512));
        assert_eq!(pin(0, u64::MAX - 511).err(), Some(GupError::BadRange));
        assert_eq!(mm.meta.totals().pins, 512, "charged before anything is pinned");
        let second = pin(600, 88).unwrap();
        assert_eq!(account.used_pages(), 600);
        // A part that cannot be pinned is charged for no longer than it takes to find out.
        drop(first);
        assert_eq!(pin(1020, 8).err(), Some(GupError::NotMapped(page(1024))));
        assert_eq!((account.used_pages(), mm.meta.totals().pins), (88, 88));
        drop(second);
        assert_eq!((account.used_pages(), mm.meta.totals().pins), (0, 0));
    });
}

// covers: L5 L7
#[test]
fn reserved_memory_is_exempt_by_policy_and_the_list_says_so() {
    let (emu, mm) = machine(1);
    let dax = Device::dax_with(&mm, 4 << 18, PageSize::Size4K);
    let file = Device::new(&mm, DEVICE_START.add(4 << 18), 64, MemoryKind::FsDax, PageSize::Size4K);
    let space = space_with(&mm, &dax, 3, &[0]);
    space.map(page(3), 2 * PAGE_SIZE, Prot::USER_WRITE, &file.ops(), 0).unwrap();
    mm.pins.switch(true);
    let account = mm.pins.open_account("an owner", 2);
    let pin = |nr_pages| PinnedPages::pin_charged(&account, &space, page(0), nr_pages, GupFlags::WRITE);
    emu.on_cpu(0, || {
        let pinned = pin(5).unwrap();
        assert_eq!((account.used_pages(), account.exempt_pages()), (2, 3));
        let mut lines = Vec::new();
        mm.pins.for_each(&mut |record| lines.push((record.describe(0).to_string(), record.fields(0).to_string())));
        let (words, fields) = &lines[0];
        assert!(words.ends_with("; account an owner: 2 pages count, 3 are exempt"), "{words}");
        assert!(fields.contains(" term=transient account=an-owner counted=2 exempt=3"), "{fields}");
        let mut accounts = Vec::new();
        mm.pins.for_each_account(&mut |account| accounts.push((account.owner().to_string(), account.exempt_pages())));
        assert_eq!(accounts, [("an owner".to_string(), 3)]);
        drop(pinned);
        mm.pins.exempt_reserved(false);
        assert!(matches!(pin(5).err(), Some(GupError::OverLimit(OverLimit { wanted_pages: 5, .. }))));
        let pinned = pin(2).unwrap();
        assert_eq!((account.used_pages(), account.exempt_pages()), (2, 0));
        // What is charged stays as it was charged.
        mm.pins.exempt_reserved(true);
        drop(pinned);
        assert_eq!((account.used_pages(), account.exempt_pages()), (0, 0));
    });
    drop(account);
    mm.pins.for_each_account(&mut |account| panic!("the account of {} outlived its handles", account.owner()));
}

struct Nobody;

impl RegionOwner for Nobody {
    fn asked(&self, _: &Notice) {}
}

/// Short pins and registrations of one owner together; nobody need have asked for an account.
// covers: L5
#[test]
fn the_pins_of_an_owner_are_bounded_by_its_account_whichever_flags_they_came_with() {
    let (emu, mm) = machine(1);
    let device = Device::dax_with(&mm, 4 << 18, PageSize::Size4K);
    let space = space_with(&mm, &device, 4096, &[0]);
    mm.pins.exempt_reserved(false);
    let account = space.account();
    assert_eq!((account.owner(), account.limit_pages()), (space.name(), 2048));
    let over = |used_pages, wanted_pages| OverLimit { limit_pages: 2048, used_pages, wanted_pages };
    let short = |flags, nr_pages| PinnedPages::pin(&space, page(0), nr_pages, flags);
    let terms = Terms { flags: GupFlags::WRITE, grace_ns: 0, account: &account };
    let long = |nr_pages| MemoryRegion::register(&space, page(100), nr_pages, &terms, Weak::<Nobody>::new());
    emu.on_cpu(0, || {
        let first = short(GupFlags::WRITE, 2000).unwrap();
        assert_eq!(short(GupFlags::empty(), 49).err(), Some(over(2000, 49).into()));
        assert_eq!(short(GupFlags::FORCE, 49).err(), Some(over(2000, 49).into()));
        assert_eq!(long(49).err(), Some(RegionError::Pin(over(2000, 49).into())));
        let second = long(48).unwrap();
        assert_eq!(short(GupFlags::WRITE, 1).err(), Some(over(2048, 1).into()), "not one more, however long");
        assert_eq!((mm.meta.totals().pins, account.used_pages()), (2048, 2048));
        drop(first);
        assert_eq!(long(2001).err(), Some(RegionError::Pin(over(48, 2001).into())));
        assert_eq!((mm.meta.totals().pins, account.used_pages()), (48, 48), "nothing is left of what was refused");
        drop(second);
        assert_eq!((mm.meta.totals().pins, account.used_pages()), (0, 0));
    });
}
