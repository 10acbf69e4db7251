//! One domain on the emulated unit: what a device reaches, and what it does not reach any more.

mod common;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use common::{DEVICE, GIB, RW, Rig, run, scattered};
use iommu::domain::{MapError, Revocation};
use iommu::entry::Rights;
use iommu::fault::{Kind, Reason};
use iommu::queue::QueueError;
use mm::addr::{PAGE_SIZE, PfnRange};
use mm::sync::{Arc, Mutex};
use testkit::iommu::{Make, Point};

/// What is mapped, and pages of it that are looked at with the frames that they are.
type Shape = (Vec<PfnRange>, Vec<(u64, u64)>);

fn shapes() -> Vec<Shape> {
    vec![
        (vec![run(0x1000, 1)], vec![(0, 0x1000)]),
        (vec![run(0x1000, 3), run(0x5000, 1)], vec![(0, 0x1000), (2, 0x1002), (3, 0x5000)]),
        (scattered(0x7001, 512), vec![(0, 0x7001), (511, 0x7001 + 1022)]),
        (scattered(0x7001, 3000), vec![(0, 0x7001), (1024, 0x7001 + 2048), (2999, 0x7001 + 5998)]),
        // Leaves of 2 MiB between pages.
        (vec![run(0x1_03ff, 1030)], vec![(0, 0x1_03ff), (1, 0x1_0400), (700, 0x1_06bb), (1029, 0x1_0804)]),
        (vec![run(4 * GIB, GIB)], vec![(0, 4 * GIB), (GIB - 1, 5 * GIB - 1), (0x2345, 4 * GIB + 0x2345)]),
        // 2 GiB and more: the range is larger than a command can name.
        (vec![run(4 * GIB + 512, 3 * GIB)], vec![(0, 4 * GIB + 512), (3 * GIB - 1, 7 * GIB + 511)]),
        (
            vec![run(1 << 28, 24 * GIB), run(9, 1)],
            vec![(0, 1 << 28), (24 * GIB - 1, (1 << 28) + 24 * GIB - 1), (24 * GIB, 9)],
        ),
    ]
}

/// Every cache that a unit may have, and none.
fn makes() -> impl Iterator<Item = Make> {
    let of = |bit: u32, set: u32| set >> bit & 1 != 0;
    (0..32).map(move |set| Make {
        pieces: of(0, set),
        paging_caches: of(1, set),
        caching_mode: of(2, set),
        coherent: of(3, set),
        max_mask: (!of(4, set)).then_some(18),
        ..Make::default()
    })
}

// covers: D1, D2, D7
#[test]
fn after_a_revocation_a_device_reaches_nothing() {
    for make in makes() {
        for (runs, pages) in shapes() {
            let rig = Rig::new(make);
            let before = rig.one(0x77);
            let mapping = rig.domain.map(&runs, RW, 1).unwrap();
            for (nth, pfn) in &pages {
                rig.assert_reaches(&mapping, *nth, *pfn);
            }
            let done = rig.domain.revoke(&mapping);
            assert_eq!((done.first, done.failed, done.commands, done.ranges), (true, None, 1, 1), "{make:?}");
            for (nth, _) in &pages {
                rig.assert_blocked(&mapping, *nth);
            }
            rig.assert_reaches(&before, 0, 0x77);
        }
    }
}

// covers: D7
#[test]
fn leaves_are_as_large_as_the_unit_allows() {
    let runs = [run(4 * GIB - 512, GIB + 1025)];
    let cases = [(true, true, [1, 2, 1]), (true, false, [1, 514, 0]), (false, false, [GIB + 1025, 0, 0])];
    for (large_2m, large_1g, leaves) in cases {
        let rig = Rig::new(Make { large_2m, large_1g, ..Make::default() });
        let mapping = rig.domain.map(&runs, RW, 1).unwrap();
        let mut found = Vec::new();
        rig.domain.for_each(&mut |info| found.push((info.address, info.bytes, info.leaves)));
        assert_eq!(found, [(mapping.address(), (GIB + 1025) * PAGE_SIZE, leaves)]);
        for nth in [0, 511, 512, 512 + GIB / 2, 511 + GIB, GIB + 1023, GIB + 1024] {
            rig.assert_reaches(&mapping, nth, 4 * GIB - 512 + nth);
        }
        rig.assert_blocked(&mapping, GIB + 1025);
        assert_eq!(rig.domain.revoke(&mapping).leaves, leaves.iter().sum::<u64>());
    }
}

// covers: D2
#[test]
fn tables_are_freed_after_the_wait() {
    for (runs, pages) in shapes() {
        let rig = Rig::usual();
        let before = rig.unit.tables_in_use();
        let mapping = rig.domain.map(&runs, RW, 1).unwrap();
        pages.iter().for_each(|(nth, pfn)| rig.assert_reaches(&mapping, *nth, *pfn));
        // The unit stops the test where one is freed that it remembers. What comes late, in between, finds no free one either.
        let device = mapping.dma();
        rig.unit.watch(move |unit, point| {
            if matches!(point, Point::Done | Point::Freeing(_)) {
                let late = unit.device_writes(DEVICE, device.address, 1);
                assert_eq!(late.unwrap_err().reason, Reason::NotWritable);
            }
        });
        let made = rig.unit.tables_in_use() - before;
        let done = rig.domain.revoke(&mapping);
        rig.unit.unwatch();
        assert_eq!(rig.unit.tables_in_use(), before + made - done.tables);
        assert_eq!(rig.domain.stats().tables, rig.unit.tables_in_use() - 2, "two are root and context table");
        // Those that lead to where the next mapping will be stay.
        assert!(made - done.tables <= 3, "{made} {done:?}");
    }
}

/// Fills the part of the address space where small blocks are, of a unit of 39 bits, but for one page: the next search begins
/// anew. Page 1 has the first mapping.
fn wrapped() -> (Rig, iommu::domain::Mapping) {
    let rig = Rig::new(Make { bits: 39, ..Make::default() });
    let first = rig.one(0x1000);
    assert_eq!(first.address(), PAGE_SIZE, "page 0 is never mapped");
    // 128 GiB, without the first and that of the interrupt window.
    for _ in 0..126 {
        let _ = rig.domain.map(&[run(GIB, GIB)], RW, 2).unwrap();
    }
    (rig, first)
}

// covers: D2
#[test]
fn addresses_are_used_again_after_the_wait() {
    let rig = Rig::new(Make { bits: 39, ..Make::default() });
    // Half of the address space: there is one such block.
    let half = [run(0, 256 * GIB)];
    let mapping = rig.domain.map(&half, RW, 1).unwrap();
    let (domain, looked) = (rig.domain.clone(), Arc::new(AtomicU64::new(0)));
    let looks = looked.clone();
    rig.unit.watch(move |_, point| {
        if matches!(point, Point::Commands | Point::Done) {
            assert_eq!(domain.map(&half, RW, 2), Err(MapError::Full { bytes: 1 << 38 }), "{point:?}");
            looks.fetch_add(1, Ordering::Relaxed);
        }
    });
    assert!(rig.domain.revoke(&mapping).first);
    rig.unit.unwatch();
    assert_eq!(looked.load(Ordering::Relaxed), 2);
    let again = rig.domain.map(&half, RW, 3).unwrap();
    assert_eq!(again.address(), mapping.address());
    // Who still has the first cannot end the second by it.
    assert_eq!(rig.domain.revoke(&mapping), Revocation::default());
    rig.assert_reaches(&again, 17, 17);
}

// covers: D1
#[test]
fn a_mapping_made_during_a_revocation_is_reached_at_once() {
    let (rig, first) = wrapped();
    rig.assert_reaches(&first, 0, 0x1000);
    let (domain, made) = (rig.domain.clone(), Arc::new(Mutex::new(None)));
    let make = made.clone();
    rig.unit.watch(move |unit, point| {
        if point == Point::Commands {
            let mapping = domain.map(&[run(0x2000, 1)], RW, 3).unwrap();
            // The unit still remembers the table that led to the first.
            let at = unit.device_writes(DEVICE, mapping.address(), 1);
            assert_eq!(at.map(|at| at.as_u64()), Ok(0x2000 * PAGE_SIZE));
            *make.lock() = Some(mapping);
        }
    });
    assert_eq!(rig.domain.revoke(&first).tables, 2);
    rig.unit.unwatch();
    rig.assert_reaches(made.lock().as_ref().unwrap(), 0, 0x2000);
}

// covers: D2
#[test]
fn neighbours_in_one_table_are_left_alone() {
    let (rig, first) = wrapped();
    // They come into the table of the first, of which nothing is left then.
    let second = rig.domain.map(&[run(0x4000, 2)], RW, 3).unwrap();
    let third = rig.one(0x5000);
    assert_eq!((second.address(), third.address()), (2 * PAGE_SIZE, 4 * PAGE_SIZE));
    // The next is far away: no table stays for it.
    let _ = rig.domain.map(&[run(GIB, GIB / 2)], RW, 2).unwrap();
    rig.assert_reaches(&second, 1, 0x4001);
    assert_eq!(rig.domain.revoke(&first).tables, 0);
    rig.assert_blocked(&first, 0);
    rig.assert_reaches(&second, 0, 0x4000);
    assert_eq!(rig.domain.revoke(&third).tables, 0);
    rig.assert_reaches(&second, 0, 0x4000);
    assert_eq!(rig.domain.revoke(&second).tables, 1, "with the last the table goes");
    rig.assert_blocked(&second, 1);
}

// covers: D2
#[test]
fn tables_that_others_have_left_go_with_the_one_above_them() {
    let rig = Rig::usual();
    let before = rig.unit.tables_in_use();
    let first = rig.one(0x1000);
    assert_eq!(rig.domain.revoke(&first).tables, 0, "its tables stay for the next");
    let second = rig.domain.map(&scattered(0x2001, 512), RW, 2).unwrap();
    assert_eq!(second.address(), 2 << 20, "beside the first table");
    // The next is far away.
    let _ = rig.domain.map(&[run(GIB, GIB)], RW, 3).unwrap();
    // The unit remembers the empty table.
    rig.assert_blocked(&first, 0);
    rig.assert_reaches(&second, 511, 0x2001 + 1022);
    assert_eq!(rig.domain.revoke(&second).tables, 3, "both, and the one above them");
    assert_eq!(rig.unit.tables_in_use(), before + 1);
}

// covers: D7
#[test]
fn a_large_mapping_where_an_empty_table_was_left_is_reached() {
    // Eight GiB of addresses: they are soon used up.
    let rig = Rig::with_space(Make { bits: 39, ..Make::default() }, 33);
    let first = rig.one(0x1000);
    let _ = rig.domain.revoke(&first);
    let mut large = Vec::new();
    while let Ok(mapping) = rig.domain.map(&[run(0, 512)], RW, 2) {
        // The unit remembers the table that was the first's, and is empty.
        rig.assert_blocked(&first, 0);
        rig.assert_reaches(&mapping, 5, 5);
        large.push(mapping);
        if large.len() == 3 {
            // Beside it, to leave a table there when the search comes again.
            let small = rig.one(0x1000);
            rig.assert_reaches(&small, 0, 0x1000);
            let _ = rig.domain.revoke(&small);
            rig.assert_blocked(&small, 0);
        }
    }
    // All but the first 2 MiB, and where interrupts are.
    assert_eq!(large.len(), 4096 - 2);
    assert_eq!(rig.domain.stats().tables, rig.unit.tables_in_use() - 2);
}

// covers: D2
#[test]
fn who_comes_second_waits_too() {
    let rig = Rig::usual();
    let mapping = Arc::new(rig.one(0x1000));
    rig.assert_reaches(&mapping, 0, 0x1000);
    let (returned, waits) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let second = Arc::new(Mutex::new(None));
    {
        let (returned, waits, second) = (returned.clone(), waits.clone(), second.clone());
        let (domain, mapping) = (rig.domain.clone(), mapping.clone());
        rig.unit.watch(move |_, point| match point {
            Point::Relax => waits.store(true, Ordering::Relaxed),
            Point::Commands => {
                let (domain, mapping, flag) = (domain.clone(), mapping.clone(), returned.clone());
                *second.lock() = Some(thread::spawn(move || {
                    let done = domain.revoke(&mapping);
                    flag.store(true, Ordering::Relaxed);
                    done
                }));
                while !waits.load(Ordering::Relaxed) && !returned.load(Ordering::Relaxed) {
                    thread::yield_now();
                }
            }
            Point::Done => assert!(!returned.load(Ordering::Relaxed), "the device could still reach the page"),
            _ => {}
        });
    }
    assert!(rig.domain.revoke(&mapping).first);
    let second = second.lock().take().unwrap().join().unwrap();
    assert_eq!(second, Revocation::default());
    rig.assert_blocked(&mapping, 0);
}

// covers: D1
#[test]
fn neither_address_zero_nor_the_interrupt_window_is_mapped() {
    let rig = Rig::usual();
    let (window, mut behind) = (0xfee0_0000..0xfef0_0000u64, 0);
    for pages in [512, 3, 256, 64] {
        while behind < 8 {
            let mapping = rig.domain.map(&[run(0x1_0000, pages)], RW, 1).unwrap();
            let (first, end) = (mapping.address(), mapping.address() + mapping.bytes());
            assert!(first > 0 && first.is_multiple_of(PAGE_SIZE));
            assert!(end <= window.start || first >= window.end, "{mapping:?}");
            behind += u64::from(first > window.end);
            let _ = rig.domain.revoke(&mapping);
        }
        behind = if pages == 512 { 0 } else { 8 };
    }
    // A block that would have the window in it, or all small addresses, is found elsewhere.
    for gib in [1, 3, 8, 1024] {
        let mapping = rig.domain.map(&[run(0, gib * GIB)], RW, 1).unwrap();
        assert!(mapping.address() >= 4 << 30 || mapping.address() + mapping.bytes() <= 0xfee0_0000, "{mapping:?}");
        assert_ne!(mapping.address(), 0);
    }
}

// covers: D2
#[test]
fn what_the_unit_did_not_forget_is_never_used_again() {
    let (rig, first) = wrapped();
    rig.assert_reaches(&first, 0, 0x1000);
    let before = rig.unit.tables_in_use();
    rig.unit.fail(true);
    let done = rig.domain.revoke(&first);
    assert_eq!((done.first, done.failed, done.tables), (true, Some(QueueError::NoAnswer), 0));
    assert_eq!(rig.domain.revoke(&first).failed, Some(QueueError::NoAnswer), "who comes second hears of it too");
    rig.unit.fail(false);
    assert_eq!(rig.unit.tables_in_use(), before, "no table is freed");
    rig.assert_reaches(&first, 0, 0x1000);
    // All of that gigabyte may be remembered as leading to the lost table.
    let next = rig.one(0x2000);
    assert!(next.address() >> 30 != 0, "{next:?}");
    rig.assert_reaches(&next, 0, 0x2000);
    assert_eq!((rig.domain.nr_lost(), rig.domain.stats().lost), (1, 1));
    assert_eq!(rig.domain.owner_of(first.address()).map(|owner| (owner.tag, owner.revoked)), Some((0x1000, true)));
    let closed = rig.domain.close();
    assert!(closed.failed.is_none() && closed.ranges == 127, "{closed:?}");
}

#[test]
fn memory_that_runs_out_at_any_table_leaves_nothing() {
    let large = [run(4 * GIB + 512, GIB + 1)].into_iter().chain(scattered(9, 700)).collect::<Vec<_>>();
    for runs in [vec![run(0x1000, 1)], scattered(0x1001, 2000), large] {
        let rig = Rig::usual();
        let (start, mut failures) = (rig.unit.tables_in_use(), 0);
        let mapping = loop {
            let held = rig.unit.hold_back(failures);
            // A device that looks at each half-made table.
            rig.unit.watch(move |unit, point| {
                if matches!(point, Point::Allocated(_) | Point::Freeing(_)) {
                    (1..40u64).for_each(|nth| _ = unit.device_writes(DEVICE, nth << 21 | 0x1000, 1));
                }
            });
            let result = rig.domain.map(&runs, RW, 1);
            rig.unit.unwatch();
            rig.unit.give_back(held);
            match result {
                Ok(mapping) => break mapping,
                Err(error) => assert_eq!(error.to_string(), "no memory for translation tables"),
            }
            let stats = rig.domain.stats();
            assert_eq!((stats.mappings, stats.bytes), (0, 0));
            assert_eq!(stats.tables, rig.unit.tables_in_use() - 2);
            assert!(rig.unit.tables_in_use() - start <= 5, "those that lead to the next mapping may stay");
            failures += 1;
        };
        assert!(failures > 0);
        rig.assert_reaches(&mapping, 0, runs[0].start().as_u64());
        let _ = rig.domain.revoke(&mapping);
        rig.contexts.detach(DEVICE).unwrap();
        drop(rig.domain);
        assert_eq!(rig.unit.tables_in_use(), 2, "a domain that goes gives everything back");
    }
}

// covers: D1
#[test]
fn two_owners_of_one_page_have_each_their_rights() {
    let rig = Rig::usual();
    let page = [run(0x1000, 1)];
    let reader = rig.domain.map(&page, Rights::READ, 1).unwrap();
    let writer = rig.domain.map(&page, Rights::WRITE, 2).unwrap();
    let (read, write) = (
        |at| rig.unit.device_reads(DEVICE, at).map(|(_, word)| word),
        |at, value| rig.unit.device_writes(DEVICE, at, value).map(|_| ()),
    );
    write(writer.address(), 7).unwrap();
    assert_eq!(read(reader.address()), Ok(7));
    let fault = write(reader.address(), 8).unwrap_err();
    assert_eq!((fault.kind, fault.reason, fault.source), (Kind::Write, Reason::NotWritable, DEVICE));
    assert_eq!(rig.domain.owner_of(fault.address).map(|owner| owner.tag), Some(1));
    assert_eq!(read(writer.address()).unwrap_err().reason, Reason::NotReadable);
    let (records, overflow) = rig.unit.take_faults();
    assert_eq!((records.len(), overflow), (1, true), "one record, and a word that there were more");
    let _ = rig.domain.revoke(&writer);
    assert!(write(writer.address(), 9).is_err());
    assert_eq!(read(reader.address()), Ok(7));
}

// covers: D1
#[test]
fn a_unit_that_remembers_that_nothing_is_there_is_told_of_a_mapping() {
    let rig = Rig::new(Make { caching_mode: true, ..Make::default() });
    let first = rig.one(0x1000);
    // It looks at the page behind it, which will be the next one's.
    rig.assert_blocked(&first, 1);
    let second = rig.one(0x2000);
    assert_eq!(second.address(), first.address() + PAGE_SIZE);
    rig.assert_reaches(&second, 0, 0x2000);
    rig.unit.fail(true);
    assert_eq!(rig.domain.map(&[run(0x3000, 1)], RW, 3), Err(MapError::Queue(QueueError::NoAnswer)));
    rig.unit.fail(false);
    assert_eq!(rig.domain.stats().lost, 1, "its addresses are lost");
}

// covers: D2, D5
#[test]
fn a_domain_that_is_closed_ends_all_mappings_and_makes_none() {
    let rig = Rig::usual();
    let mappings: Vec<_> = (0..40).map(|nth| rig.one(0x1000 + nth)).collect();
    mappings.iter().zip(0x1000..).for_each(|(mapping, pfn)| rig.assert_reaches(mapping, 0, pfn));
    let waits = rig.unit.counts().waits;
    let done = rig.domain.close();
    assert_eq!((done.ranges, done.leaves, done.commands, done.failed), (40, 40, 3, None));
    assert_eq!(rig.unit.counts().waits - waits, 3, "one for each sixteen");
    mappings.iter().for_each(|mapping| rig.assert_blocked(mapping, 0));
    assert_eq!(rig.domain.map(&[run(1, 1)], RW, 1), Err(MapError::Closed));
    assert_eq!((rig.domain.close(), rig.domain.is_closed()), (Revocation::default(), true));
    assert_eq!(rig.domain.revoke(&mappings[0]), Revocation::default());
}

#[test]
fn the_last_mappings_are_remembered_for_faults_that_come_late() {
    let rig = Rig::usual();
    let ended: Vec<_> = (0..70).map(|nth| rig.domain.map(&[run(0x1000, 2)], RW, nth).unwrap()).collect();
    for mapping in &ended {
        let _ = rig.domain.revoke(mapping);
    }
    let tag_of = |nth: usize| rig.domain.owner_of(ended[nth].address() + PAGE_SIZE).map(|owner| owner.tag);
    assert_eq!((tag_of(69), tag_of(6)), (Some(69), Some(6)));
    assert_eq!(tag_of(5), None, "64 are");
}
