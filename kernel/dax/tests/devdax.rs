//! Device-dax: opening, mapping, faulting, pinning.
#![cfg(not(loom))]

mod common;

use std::sync::Arc;

use common::*;
use dax::devdax::{DevDax, OpenOptions};
use dax::device::{DataCache, DaxError, alloc_dax};
use dax::kill::kill_dax;
use mm::addr::{PAGE_SIZE, PageSize, Pfn};
use mm::entry::Prot;
use mm::failure::{FailureKind, memory_failure};
use mm::gup::{GupError, GupFlags};
use mm::pagemap::{DevPagemap, MemoryKind};
use mm::region::{MemoryRegion, Notice, RegionOwner, Terms};
use mm::space::{Access, FaultError, MapError, SigBusCause, VmOps};

#[test]
fn a_fault_installs_the_largest_leaf_that_fits() {
    let (_, mm) = machine(1);
    // 1 GiB, then 2 MiB and three pages more.
    let attached = attach_one(&mm, GIB + 512 + 3);
    let file = attached.file(OpenOptions::default());
    let task = space(&mm, "task");
    map(&task, &file, GIB + 512 + 3).unwrap();
    for (nr, size) in [(5, PageSize::Size1G), (GIB + 7, PageSize::Size2M), (GIB + 513, PageSize::Size4K)] {
        task.handle_fault(page(nr), Access::Write).unwrap();
        let found = task.translate(page(nr)).unwrap();
        assert_eq!((found.size, found.pfn_at(page(nr))), (size, Pfn::new(START + nr)), "page {nr}");
    }
    // Another address is not congruent with the offset: small leaves.
    let other = space(&mm, "other");
    other.map(page(1), 1024 * PAGE_SIZE, Prot::USER_WRITE, &file, 0).unwrap();
    other.handle_fault(page(600), Access::Read).unwrap();
    assert_eq!(other.translate(page(600)).unwrap().size, PageSize::Size4K);
}

#[test]
fn an_opener_may_ask_for_smaller_leaves_and_stricter_alignment() {
    let (_, mm) = machine(1);
    let attached = attach_one(&mm, 2 * GIB);
    for size in PageSize::ALL {
        let file = attached.file(OpenOptions::exactly(size));
        let task = space(&mm, "task");
        map(&task, &file, 2 * GIB).unwrap();
        task.handle_fault(page(GIB + 3), Access::Write).unwrap();
        assert_eq!(task.translate(page(GIB + 3)).unwrap().size, size);
        task.unmap(page(0), 2 * GIB * PAGE_SIZE).unwrap();
    }
}

/// covers: L2
#[test]
fn misaligned_requests_are_refused_with_the_alignment_in_the_message() {
    let (_, mm) = machine(1);
    let whole = [frames(START, 4 * 512 + 100)];
    let attached = attach(&mm, &whole, PageSize::Size2M).unwrap();
    assert_eq!(attached.dev.size_bytes(), 4 << 21, "the tail is too short for a leaf");
    let file = attached.file(OpenOptions::default());
    let task = space(&mm, "task");
    for (va, pages, offset) in [(page(1), 512, 0), (page(0), 511, 0), (page(0), 512, 4)] {
        let refused = task.map(va, pages * PAGE_SIZE, Prot::USER_WRITE, &file, offset).unwrap_err();
        assert_eq!(refused, MapError::Misaligned(PageSize::Size2M));
        assert!(refused.to_string().contains("2MiB"), "{refused}");
    }
    let beyond = MapError::Refused(SigBusCause::BeyondEnd);
    assert_eq!(task.map(page(0), 512 * PAGE_SIZE, Prot::USER_WRITE, &file, 4 * 512), Err(beyond));
    assert_eq!(task.map(page(0), 5 * 512 * PAGE_SIZE, Prot::USER_WRITE, &file, 0), Err(beyond));
    task.map(page(0), 512 * PAGE_SIZE, Prot::USER_WRITE, &file, 3 * 512).unwrap();
}

#[test]
fn a_device_whose_frames_cannot_carry_the_alignment_is_refused() {
    let (_, mm) = machine(1);
    let refused = |ranges: &[_], size| attach(&mm, ranges, size).map(|_| ()).unwrap_err();
    let misaligned = DaxError::Misaligned { required: 2 << 20 };
    assert_eq!(refused(&[frames(START + 1, 1024)], PageSize::Size2M), misaligned);
    assert_eq!(refused(&[frames(START, 511), frames(START + 1024, 512)], PageSize::Size2M), misaligned);
    // An opener who asks for more than the file does hears the same.
    let attached = attach(&mm, &[frames(START + 512, 1024)], PageSize::Size4K).unwrap();
    let open = |size| attached.dev.open(OpenOptions::exactly(size)).map(|_| ());
    assert_eq!(open(PageSize::Size2M), Ok(()));
    let error = open(PageSize::Size1G).unwrap_err();
    assert_eq!(error, DaxError::Misaligned { required: 1 << 30 });
    assert!(error.to_string().contains("a multiple of 1073741824 bytes is required"), "{error}");
    assert!(misaligned.to_string().contains("2097152 bytes"), "{misaligned}");
    assert_eq!(refused(&[frames(START, 1024)], PageSize::Size1G), DaxError::OutOfRange { size: 4 << 20 });
}

/// covers: M4
#[test]
fn memory_that_takes_no_writes_is_mapped_and_pinned_for_reading_only() {
    let (_, mm) = machine(1);
    let map = DevPagemap::read_only(MemoryKind::DevDax, [frames(START, 512)]).unwrap();
    mm.meta.register(&map).unwrap();
    let live = alloc_dax("dax0", &map, DataCache::Coherent, &mm.ledger).unwrap();
    let dev = DevDax::new(&mm, live.device(), PageSize::Size4K).unwrap();
    let file: Arc<dyn VmOps<_>> = dev.open(OpenOptions::default()).unwrap();
    let task = space(&mm, "task");
    let (len, refused) = (8 * PAGE_SIZE, Err(MapError::ReadOnly));
    assert_eq!(task.map(page(0), len, Prot::USER_WRITE, &file, 0), refused);
    assert!(MapError::ReadOnly.to_string().contains("for reading only"));
    task.map(page(0), len, Prot::USER_READ, &file, 0).unwrap();
    task.populate(page(0), len, Access::Read).unwrap();
    assert_eq!(task.handle_fault(page(1), Access::Write), Err(FaultError::AccessDenied(page(1))));
    // Of a range that reaches into it nothing is changed, not even what has nothing to do with it.
    let other = attach(&mm, &[frames(START + GIB, 8)], PageSize::Size4K).unwrap();
    task.map(page(8), len, Prot::USER_READ, &other.file(OpenOptions::default()), 0).unwrap();
    assert_eq!(task.protect(page(4), len, Prot::USER_WRITE).map(drop), refused);
    assert_eq!(task.handle_fault(page(8), Access::Write), Err(FaultError::AccessDenied(page(8))));
    assert_eq!(task.protect(page(8), len, Prot::USER_WRITE).map(drop), Ok(()));
    assert_eq!(task.protect(page(4), PAGE_SIZE, Prot::USER_READ).map(drop), Ok(()));
    assert!(pin(&task, page(2), 1, GupFlags::WRITE).is_err());
    unpin(&mm, &pin(&task, page(2), 1, GupFlags::empty()).unwrap());
}

/// A device begins where the machine has put it: whoever wants the largest leaves asks what fits.
#[test]
fn the_largest_leaf_is_the_one_that_the_frames_carry() {
    let first = START.next_multiple_of(GIB);
    for (ranges, leaf) in [
        (&[frames(first, 3 * GIB + 7)][..], PageSize::Size1G),
        (&[frames(first, 1)], PageSize::Size1G),
        (&[frames(first + GIB / 4, 3 * GIB)], PageSize::Size2M),
        (&[frames(first + 1, 3 * GIB)], PageSize::Size4K),
        (&[frames(first, GIB), frames(first + 4 * GIB, 9)], PageSize::Size1G),
        (&[frames(first, GIB - 512), frames(first + 4 * GIB, 9)], PageSize::Size2M),
    ] {
        let (_, mm) = machine(1);
        let attached = attach(&mm, ranges, PageSize::Size4K).unwrap();
        assert_eq!(attached.dev.largest_leaf(), leaf, "{ranges:?}");
        assert!(attached.dev.open(OpenOptions::exactly(leaf)).is_ok());
        let above = PageSize::ALL.into_iter().find(|size| *size > leaf);
        assert!(above.is_none_or(|size| attached.dev.open(OpenOptions::exactly(size)).is_err()), "{ranges:?}");
    }
}

/// covers: R8
#[test]
fn several_ranges_are_one_file() {
    let (_, mm) = machine(1);
    let attached = attach(&mm, &[frames(START + 4 * 512, 512), frames(START, 512)], PageSize::Size2M).unwrap();
    let file = attached.file(OpenOptions::default());
    let task = space(&mm, "task");
    map(&task, &file, 1024).unwrap();
    for (nr, pfn) in [(511, START + 511), (512, START + 4 * 512)] {
        task.handle_fault(page(nr), Access::Read).unwrap();
        let found = task.translate(page(nr)).unwrap();
        assert_eq!((found.size, found.pfn_at(page(nr))), (PageSize::Size2M, Pfn::new(pfn)));
    }
}

/// covers: G4 R7
#[test]
fn a_fault_on_a_dead_device_is_sigbus_and_nothing_can_be_mapped_or_pinned() {
    let (_, mm) = machine(1);
    let attached = attach_one(&mm, 1024);
    let file = attached.file(OpenOptions::default());
    let task = space(&mm, "task");
    map(&task, &file, 512).unwrap();
    let dev = attached.dev.clone();
    let (dead, _) = kill_dax(attached.live, &mut || panic!("no reader"), &mut |_, _| ());
    let lost = FaultError::SigBus { addr: page(7), len_bytes: PAGE_SIZE, cause: SigBusCause::DeviceGone };
    assert_eq!(task.handle_fault(page(7), Access::Read), Err(lost));
    assert!(pin(&task, page(7), 1, GupFlags::WRITE).is_err());
    let refused = task.map(page(512), PAGE_SIZE, Prot::USER_READ, &file, 0);
    assert_eq!(refused, Err(MapError::Refused(SigBusCause::DeviceGone)));
    assert_eq!(dev.open(OpenOptions::default()).map(|_| ()), Err(DaxError::NoSuchDevice));
    // The VMA keeps the file open, and with it the device in use.
    drop(file);
    assert!(!dead.is_idle());
    task.unmap(page(0), 512 * PAGE_SIZE).unwrap();
    assert!(dead.is_idle());
}

/// covers: L2 L3 L6
#[test]
fn both_kinds_of_pin_are_allowed() {
    let (_, mm) = machine(1);
    let attached = attach_one(&mm, 1024);
    let file = attached.file(OpenOptions::default());
    assert_eq!(file.kind(), MemoryKind::DevDax);
    let task = space(&mm, "task");
    map(&task, &file, 1024).unwrap();
    let runs = pin(&task, page(3), 1000, GupFlags::WRITE).unwrap();
    assert_eq!(runs.iter().map(|run| run.nr_pages()).sum::<u64>(), 1000);
    unpin(&mm, &runs);
    // Long-term, by who can give it back.
    let bare = pin(&task, page(3), 1000, GupFlags::WRITE | GupFlags::LONGTERM);
    assert_eq!(bare, Err(GupError::RevocableOnly(page(3))));
    let account = mm.pins.open_account("task", 0);
    let owner: Arc<dyn RegionOwner> = Arc::new(|_: &Notice| ());
    let terms = Terms { flags: GupFlags::WRITE, grace_ns: 0, account: &account };
    let region = MemoryRegion::register(&task, page(3), 1000, &terms, Arc::downgrade(&owner)).unwrap();
    assert_eq!((mm.meta.totals().pins, account.exempt_pages()), (1000, 1000));
    drop(region);
    assert_eq!(mm.meta.totals().pins, 0);
}

/// covers: P1
#[test]
fn a_page_that_fails_is_taken_away_and_sigbus_and_its_neighbours_are_not() {
    let (emu, mm) = machine(2);
    let attached = attach_one(&mm, 1024);
    let task = Loaded::new(&mm, 1, &attached.file(OpenOptions::default()), 1024);
    task.store(page(9), 1).unwrap();
    assert_eq!(task.space().translate(page(9)).unwrap().size, PageSize::Size2M);
    let failed = emu.on_cpu(0, || memory_failure(&mm, Pfn::new(START + 9), FailureKind::Media)).unwrap();
    assert!(!failed.was_poisoned);
    let lost: Vec<_> = failed.users.iter().map(|user| (user.space.id(), user.range.start())).collect();
    assert_eq!((lost, failed.users[0].range.len_bytes()), (vec![(task.space().id(), page(9))], PAGE_SIZE));
    drop(failed);
    let lost = FaultError::SigBus { addr: page(9), len_bytes: PAGE_SIZE, cause: SigBusCause::Poisoned };
    assert_eq!(task.fetch(page(9)), Err(lost));
    assert_eq!(task.store(page(9), 2), Err(lost));
    for nr in [0, 8, 10, 511, 600] {
        task.store(page(nr), 3).unwrap();
    }
    // Who maps the block anew gets small leaves around the poisoned frame, and large ones elsewhere.
    let other = Loaded::new(&mm, 0, &attached.file(OpenOptions::default()), 1024);
    assert_eq!(other.fetch(page(9)), Err(lost));
    for (nr, size) in [(8, PageSize::Size4K), (600, PageSize::Size2M)] {
        other.store(page(nr), 4).unwrap();
        assert_eq!(other.space().translate(page(nr)).unwrap().size, size);
    }
}
