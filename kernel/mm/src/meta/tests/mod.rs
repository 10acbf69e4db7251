//! The store: sizes and places, page maps; its counts and their misuse; against a model that is a plain map of folios; and
//! with threads.

use alloc::format;
use alloc::vec;
use alloc::vec::Vec;
use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::pagemap::{LongTermPin, MemoryKind};

const KIB4: PageSize = PageSize::Size4K;
const MIB2: PageSize = PageSize::Size2M;
const GIB1: PageSize = PageSize::Size1G;
/// Frames in a 2 MiB block and in a 1 GiB block.
const B2: u64 = 512;
const B1: u64 = 512 * 512;

fn range(start: u64, nr_pages: u64) -> PfnRange {
    PfnRange::new(Pfn::new(start), nr_pages).expect("a range of the test")
}

fn owner(offset: u64) -> Owner {
    Owner { mapping: 7, offset }
}

struct Rig {
    store: MetaStore,
    ledger: Arc<Ledger>,
}

impl Rig {
    fn new() -> Self {
        let ledger = Arc::new(Ledger::new());
        Self { store: MetaStore::new(Arc::clone(&ledger)), ledger }
    }
    fn device(&self, kind: MemoryKind, ranges: &[PfnRange]) -> Arc<DevPagemap> {
        let map = DevPagemap::new(kind, ranges.iter().copied()).expect("ranges of the test");
        self.store.register(&map).expect("a free place");
        map
    }
    fn live(&self) -> Vec<LiveFolio> {
        let mut live = Vec::new();
        self.store.for_each_live(&mut |folio| live.push(folio));
        live
    }
    /// Nothing is in use.
    fn assert_idle(&self) {
        assert_eq!(self.live(), []);
        for kind in [Kind::Folios, Kind::MetadataBytes, Kind::References, Kind::Pins] {
            assert_eq!(self.store.ledger_snapshot().count(kind), 0, "{kind}");
        }
    }
    /// The ledger's bytes are exactly the nodes that the live folios need.
    fn assert_in_proportion(&self) {
        let live = self.live();
        let distinct = |shift: u32, sizes: &[PageSize]| {
            let mut blocks: Vec<_> =
                live.iter().filter(|f| sizes.contains(&f.size)).map(|f| f.head.as_u64() >> shift).collect();
            blocks.dedup();
            blocks.len() as i64
        };
        let tables = distinct(27, &PageSize::ALL) + distinct(18, &[KIB4, MIB2]);
        let large = live.iter().filter(|folio| folio.size != KIB4).count() as i64;
        let bytes = 4096 * tables + 16384 * distinct(9, &[KIB4]) + 32 * large;
        assert_eq!(self.ledger.count(Kind::MetadataBytes), bytes);
        assert_eq!(self.ledger.count(Kind::Folios), live.len() as i64);
    }
}

// ---- sizes and places ----

/// covers: R4
#[test]
fn an_idle_device_of_6_tib_has_no_metadata() {
    let rig = Rig::new();
    let map = rig.device(MemoryKind::DevDax, &[range(1 << 28, 6 << 28)]);
    rig.assert_idle();
    assert_eq!(map.nr_pages(), 1_610_612_736);
    assert_eq!(rig.store.idle_bytes(), (1 << (52 - 39)) * 8, "a pointer for each 512 GiB of physical addresses");
    // One page in use anywhere in it costs two tables and a chunk, and they go with it.
    rig.store.get_or_create(Pfn::new(3 << 28), KIB4, owner(2 << 28), 1).expect("in the device");
    assert_eq!(rig.ledger.count(Kind::MetadataBytes), 4096 + 4096 + 16384);
    rig.store.put(Pfn::new(3 << 28), 1);
    rig.assert_idle();
}

#[test]
fn a_folio_is_as_large_as_its_place_allows() {
    let rig = Rig::new();
    // Begins and ends in the middle of 2 MiB blocks (a label area is taken off the end).
    let map = rig.device(MemoryKind::DevDax, &[range(B1 - 16, B1 + 16 + B2 + 32)]);
    let size = |pfn: u64, offset: u64| {
        let (head, size) = rig.store.get_or_create(Pfn::new(pfn), GIB1, owner(offset), 1).expect("in the device");
        let folio = rig.store.inspect(head).expect("just made");
        assert_eq!(folio.owner.offset, offset - (pfn - head.as_u64()), "the owner's offset is the head's");
        assert_eq!((folio.head, folio.size), (head, size));
        rig.store.put(Pfn::new(pfn), 1);
        (head.as_u64(), size)
    };
    assert_eq!(size(B1 - 1, 15), (B1 - 1, KIB4), "the block begins before the device");
    assert_eq!(size(B1 + 700, 716), (B1, GIB1));
    assert_eq!(size(B1 + 700, 200), (B1 + B2, MIB2), "the owner has nothing before its offset 0");
    assert_eq!(size(B1 + 700, 100), (B1 + 700, KIB4));
    assert_eq!(size(2 * B1 + 5, B1), (2 * B1, MIB2));
    assert_eq!(size(2 * B1 + B2 + 31, B1), (2 * B1 + B2 + 31, KIB4), "the block ends after the device");
    assert_eq!(rig.store.get_or_create(Pfn::new(2 * B1 + B2 + 32), KIB4, owner(0), 1), Err(MetaError::NoPageMap));
    assert_eq!(rig.store.get_or_create(Pfn::new(B1 - 17), KIB4, owner(0), 1), Err(MetaError::NoPageMap));
    assert!(map.is_drained());
    rig.assert_idle();
}

#[test]
fn a_live_folio_decides_the_size() {
    let rig = Rig::new();
    rig.device(MemoryKind::DevDax, &[range(0, 2 * B1)]);
    let get = |pfn: u64, want| rig.store.get_or_create(Pfn::new(pfn), want, owner(pfn), 1).expect("in the device");
    assert_eq!(get(5, KIB4), (Pfn::new(5), KIB4));
    assert_eq!(get(5, GIB1), (Pfn::new(5), KIB4), "a live small one stays");
    assert_eq!(get(6, GIB1), (Pfn::new(6), KIB4), "no 2 MiB folio over a live small one");
    assert_eq!(get(B2, GIB1), (Pfn::new(B2), MIB2), "no 1 GiB folio over a live small one");
    assert_eq!(get(B2 + 9, KIB4), (Pfn::new(B2), MIB2), "a live large one serves a small request");
    for (pfn, nr) in [(5, 2), (6, 1), (B2, 2)] {
        rig.store.put(Pfn::new(pfn), nr);
    }
    assert_eq!(get(5, GIB1), (Pfn::new(0), GIB1), "all went, so the whole block is free again");
    rig.store.put(Pfn::new(B1 - 1), 1);
    rig.assert_idle();
}

#[test]
fn policy_and_poison_reach_the_page() {
    let rig = Rig::new();
    let dax = rig.device(MemoryKind::DevDax, &[range(0, B2)]);
    rig.device(MemoryKind::FsDax, &[range(B2, B2)]);
    let look = |pfn: u64| {
        let pfn = Pfn::new(pfn);
        rig.store.get_or_create(pfn, MIB2, owner(0), 1).expect("in a device");
        let seen = rig.store.with_page(pfn, |page| (page.long_term(), page.is_reserved(), page.is_poisoned()));
        rig.store.put(pfn, 1);
        seen.expect("live")
    };
    assert_eq!(look(0), (LongTermPin::Revocable, true, false));
    assert_eq!(look(B2), (LongTermPin::Refused, false, false));
    // Marked while nobody uses it, and found by who does. covers: P4
    assert!(dax.poison(Pfn::new(3)) && !dax.poison(Pfn::new(3)));
    assert!(!dax.poison(Pfn::new(B2)), "another device's frame");
    assert!(look(0).2 && !look(B2).2);
    let sectors = crate::pagemap::sectors_of(Pfn::new(3), 1).expect("eight sectors");
    assert_eq!(dax.clear_lost(sectors), Ok(8));
    assert!(!look(0).2);
}

/// covers: P4
#[test]
fn of_a_run_of_small_pages_only_those_that_lost_data_say_so() {
    let rig = Rig::new();
    let map = rig.device(MemoryKind::FsDax, &[range(0, B2)]);
    assert!(map.poison(Pfn::new(0)) && map.poison(Pfn::new(5)) && map.poison(Pfn::new(7)));
    let run = rig.store.get_or_create_run(Pfn::new(0), 7, KIB4, KIB4, owner(0)).expect("in the device");
    assert_eq!(run.nr_pages, 7);
    let poisoned: Vec<_> = rig.live().iter().filter(|folio| folio.poisoned).map(|folio| folio.head.as_u64()).collect();
    assert_eq!(poisoned, [0, 5]);
    // Marked and cleared while somebody holds it.
    let mark = |poisoned| rig.store.with_page(Pfn::new(1), |page| (page.set_poisoned(poisoned), page.is_poisoned()));
    assert_eq!(
        [true, true, false, false].map(|poisoned| mark(poisoned).expect("live")),
        [(false, true), (true, true), (true, false), (false, false)]
    );
    rig.store.put_run(Pfn::new(0), 7, KIB4);
    rig.assert_idle();
}

/// A run ends with its block, also where the next one has metadata.
#[test]
fn a_run_of_small_pages_ends_with_its_block() {
    let rig = Rig::new();
    rig.device(MemoryKind::DevDax, &[range(0, 4 * B2)]);
    let get = |first: u64| rig.store.get_or_create_run(Pfn::new(first), 4, KIB4, KIB4, owner(first)).expect("in it");
    assert_eq!((get(B2), get(B2 - 1)).1.nr_pages, 1);
    rig.store.put_run(Pfn::new(B2 - 1), 5, KIB4);
    rig.assert_idle();
}

/// However far the making of a folio gets before memory is exhausted: nothing of it stays. covers: A6
#[test]
fn memory_that_runs_out_leaves_nothing_behind() {
    let rig = Rig::new();
    let map = rig.device(MemoryKind::DevDax, &[range(0, 2 * B1)]);
    let attempt = |pfn: u64, want, left| {
        raw::pool::tests::limit_allocations(Some(left));
        let got = rig.store.get_or_create(Pfn::new(pfn), want, owner(pfn), 1);
        raw::pool::tests::limit_allocations(None);
        got
    };
    // Nodes and folios to allocate where nothing is: two tables and a chunk, two tables and a folio, and so on.
    for (want, needed) in [(KIB4, 3), (MIB2, 3), (GIB1, 2)] {
        for left in 0..needed {
            assert_eq!(attempt(B1, want, left), Err(MetaError::OutOfMemory), "{want} with {left} of {needed}");
            assert!(map.is_drained());
            rig.assert_idle();
        }
        attempt(B1, want, needed).expect("just enough");
        rig.store.put(Pfn::new(B1), 1);
        rig.assert_idle();
    }
    // Beside a page that is in use, only what was new goes.
    rig.store.get_or_create(Pfn::new(5), KIB4, owner(5), 1).expect("in the device");
    let bytes = rig.ledger.count(Kind::MetadataBytes);
    assert_eq!(attempt(B2, KIB4, 0), Err(MetaError::OutOfMemory));
    assert_eq!(attempt(B1, KIB4, 1), Err(MetaError::OutOfMemory));
    assert_eq!(rig.ledger.count(Kind::MetadataBytes), bytes);
    rig.store.put(Pfn::new(5), 1);
    rig.assert_idle();
}

/// A walk over many frames finds what single looks find, across folios of every size.
#[test]
fn a_walk_that_remembers_agrees_with_single_looks() {
    let rig = Rig::new();
    rig.device(MemoryKind::DevDax, &[range(0, 3 * B1)]);
    let hold = |pfn: u64, want| rig.store.get_or_create(Pfn::new(pfn), want, owner(pfn), 1).expect("in the device");
    let frames: Vec<u64> = (0..4).chain([B2, B2 + 1, 2 * B2 + 7, 2 * B2 + 8, B1, B1 + B2, 1, 2 * B1 + 3]).collect();
    for &pfn in &frames {
        hold(
            pfn,
            if pfn % B1 == 0 && pfn != 0 {
                GIB1
            } else if pfn % B2 == 0 && pfn != 0 {
                MIB2
            } else {
                KIB4
            },
        );
    }
    let mut near = Near::default();
    for &pfn in &frames {
        let pfn = Pfn::new(pfn);
        // SAFETY: the test owns a reference on every one of them.
        let (found, single) = unsafe { (rig.store.lookup_near(pfn, &mut near), rig.store.lookup(pfn)) };
        let (found, single) = (found.expect("held"), single.expect("held"));
        assert_eq!((found.head, found.size), (single.head, single.size));
        assert!(core::ptr::eq(found.page, single.page));
    }
    frames.iter().for_each(|&pfn| rig.store.put(Pfn::new(pfn), 1));
    rig.assert_idle();
}

// ---- page maps ----

#[test]
fn each_registered_page_map_is_told_of_once_and_no_other() {
    let rig = Rig::new();
    let maps = [0, 1, 2, 3].map(|nr| rig.device(MemoryKind::DevDax, &[range(nr * B2, B2)]));
    rig.store.unregister(&maps[1]).expect("nobody uses it");
    let mut told = Vec::new();
    rig.store.for_each_map(&mut |map| {
        assert_eq!(crate::lock_check::locks_held(), 0);
        told.push(map.ranges()[0].start().as_u64());
    });
    assert_eq!(told, [0, 2 * B2, 3 * B2]);
    // A page names its own.
    rig.store.get_or_create(Pfn::new(3 * B2), KIB4, owner(0), 1).expect("in the device");
    assert_eq!((rig.live()[0].map, maps[3].id()), (MapId(3), Some(MapId(3))));
    rig.store.put(Pfn::new(3 * B2), 1);
}

/// covers: R8
#[test]
fn every_range_of_a_page_map_has_metadata() {
    let rig = Rig::new();
    let ranges = [range(0x100, 0x10), range(1 << 30, 0x10), range(0x300, 1)];
    let map = rig.device(MemoryKind::DevDax, &ranges);
    for range in ranges {
        for pfn in range.start().as_u64()..range.end().as_u64() {
            rig.store.get_or_create(Pfn::new(pfn), GIB1, owner(pfn), 1).expect("in the device");
        }
    }
    assert_eq!(map.live_folios(), 0x21);
    assert_eq!(rig.live().len(), 0x21, "all ranges are listed");
    for range in ranges {
        rig.store.put_run(range.start(), range.nr_pages(), KIB4);
    }
    assert!(map.is_drained());
    rig.assert_idle();
}

#[test]
fn the_live_folios_of_a_range_are_found_by_what_is_in_use_there() {
    let rig = Rig::new();
    let map = rig.device(MemoryKind::FsDax, &[range(0, 8 * B1)]);
    let get = |pfn, size| rig.store.get_or_create(Pfn::new(pfn), size, owner(pfn), 1).expect("in the device");
    let folios = [(7, KIB4), (B2 - 1, KIB4), (3 * B2, MIB2), (2 * B1, GIB1), (5 * B1 + 9, KIB4)];
    for (pfn, size) in folios {
        get(pfn, size);
    }
    let list = |start, nr_pages| {
        let mut found = Vec::new();
        let looks = rig.store.for_each_live_in(range(start, nr_pages), &mut |folio| found.push(folio.head.as_u64()));
        (found, looks.total)
    };
    assert_eq!(list(0, 8 * B1).0, folios.map(|(pfn, _)| pfn));
    assert_eq!((list(7, 1), list(8, 1)), ((vec![7], 1), (vec![], 1)));
    assert_eq!(list(8, B2 - 8).0, [B2 - 1]);
    // A large folio that reaches in from either side, and whole blocks that are empty.
    assert_eq!(list(4 * B2 - 1, 2), (vec![3 * B2], 2));
    assert_eq!(list(3 * B1 - 1, 2 * B1), (vec![2 * B1], 3));
    assert_eq!(list(6 * B1, 2 * B1), (vec![], 2));
    // Two chunks, one folio of 2 MiB, what is empty beside them: never a look for each of the two million pages.
    assert_eq!(list(0, 8 * B1).1, (512 + 511) + 1 + (512 + 511) + 5);
    folios.iter().for_each(|&(pfn, _)| rig.store.put(Pfn::new(pfn), 1));
    assert!(map.is_drained());
    rig.assert_idle();
}

/// Of one device and of all, the lock is held for a bounded number of looks, and not while somebody is told: so he may
/// ask the store himself.
#[test]
fn a_listing_holds_the_lock_for_a_bounded_number_of_looks() {
    let rig = Rig::new();
    // Two devices far from each other, the second at the end of the physical address space.
    let last = (1 << 40) - 8 * B1;
    let maps = [range(0, 8 * B1), range(last, 8 * B1)].map(|range| rig.device(MemoryKind::FsDax, &[range]));
    let get = |pfn, size| rig.store.get_or_create(Pfn::new(pfn), size, owner(pfn), 1).expect("in a device");
    // Four blocks with every page in use, one with a page, folios of both sizes.
    let dense = (B1..B1 + 4 * B2).map(|pfn| (pfn, KIB4));
    let sparse = [(2 * B1 + 7, KIB4), (3 * B1, MIB2), (4 * B1, GIB1), (last + 5, KIB4), (last + 8 * B1 - 1, KIB4)];
    let folios: Vec<_> = dense.chain(sparse).collect();
    folios.iter().for_each(|&(pfn, size)| _ = get(pfn, size));
    let mut found = Vec::new();
    let mut visit = |folio: LiveFolio| {
        assert_eq!(crate::lock_check::locks_held(), 0, "a lock is held while somebody is told");
        assert_eq!(rig.store.inspect(folio.head), Some(folio), "he may ask");
        found.push(folio.head.as_u64());
    };
    let expected: Vec<_> = folios.iter().map(|&(pfn, _)| pfn).collect();
    let all = rig.store.for_each_live(&mut visit);
    assert_eq!(core::mem::take(&mut found), expected);
    assert!(all.at_once <= LOOKS_AT_ONCE && all.holds >= all.total / LOOKS_AT_ONCE, "{all:?}");
    let mut visit = |folio: LiveFolio| found.push(folio.head.as_u64());
    let one = rig.store.for_each_live_in(range(0, 8 * B1), &mut visit);
    assert_eq!(found.len(), expected.len() - 2, "of the other device nothing is listed");
    assert!(one.at_once <= LOOKS_AT_ONCE && one.total < all.total, "{one:?}");
    // Dense as it is, no more than these can be told of at a time.
    assert!(one.holds >= 4 * B2 / LISTED_AT_ONCE as u64, "{one:?}");
    // What comes behind the place that a listing has come to is met, whoever makes it.
    let (mut met, mut made) = (0, false);
    rig.store.for_each_live_in(range(0, 8 * B1), &mut |_| {
        if !core::mem::replace(&mut made, true) {
            get(7 * B1, KIB4);
        }
        met += 1;
    });
    assert_eq!(met, expected.len() - 2 + 1);
    rig.store.put(Pfn::new(7 * B1), 1);
    folios.iter().for_each(|&(pfn, _)| rig.store.put(Pfn::new(pfn), 1));
    assert!(maps.iter().all(|map| map.is_drained()));
    rig.assert_idle();
}

#[test]
fn page_maps_do_not_overlap() {
    let rig = Rig::new();
    let first = rig.device(MemoryKind::DevDax, &[range(0x100, 0x100), range(0x400, 0x100)]);
    let other = |start, nr_pages| DevPagemap::new(MemoryKind::DevDax, [range(start, nr_pages)]).expect("a range");
    let wide = other(0x1ff, 0x300);
    assert_eq!(rig.store.register(&wide), Err(RegisterError::Overlap(range(0x100, 0x100))));
    assert_eq!(wide.state(), MapState::Unregistered);
    assert_eq!(rig.store.register(&other(0x4ff, 1)), Err(RegisterError::Overlap(range(0x400, 0x100))));
    assert_eq!(rig.store.register(&first), Err(RegisterError::AlreadyRegistered));
    let between = other(0x200, 0x200);
    rig.store.register(&between).expect("the gap is free");
    assert_ne!(first.id(), between.id());
    assert!(Arc::ptr_eq(&rig.store.find_map(Pfn::new(0x4ff)).expect("in the first"), &first));
    assert!(rig.store.find_map(Pfn::new(0x500)).is_none());
    assert_eq!(rig.ledger.count(Kind::PageMaps), 2);
}

/// covers: R10, R12
#[test]
fn a_dying_map_only_drains() {
    let rig = Rig::new();
    let map = rig.device(MemoryKind::DevDax, &[range(0, B2)]);
    let get = || rig.store.get_or_create(Pfn::new(1), KIB4, owner(1), 1);
    get().expect("alive");
    assert!(rig.store.kill(&map));
    assert!(!rig.store.kill(&map), "once");
    assert_eq!(get(), Err(MetaError::Dying), "not even a further reference on a live folio");
    let run = rig.store.get_or_create_run(Pfn::new(0), 4, KIB4, KIB4, owner(0));
    assert_eq!(run, Err(MetaError::Dying));
    assert_eq!(rig.store.unregister(&map), Err(UnregisterError::Busy(1)));
    rig.store.put(Pfn::new(1), 1);
    assert!(map.is_drained());
    rig.store.unregister(&map).expect("drained");
    assert_eq!(rig.store.unregister(&map), Err(UnregisterError::NotRegistered));
    assert_eq!(get(), Err(MetaError::NoPageMap));
    assert_eq!(rig.ledger.count(Kind::PageMaps), 0);
    // The same device can be attached again.
    rig.store.register(&map).expect("free again");
    get().expect("alive again");
    rig.store.put(Pfn::new(1), 1);
    rig.assert_idle();
}

#[test]
fn two_devices_in_one_2_mib_block_are_told_apart() {
    let rig = Rig::new();
    let left = rig.device(MemoryKind::DevDax, &[range(0, 100)]);
    let right = rig.device(MemoryKind::FsDax, &[range(100, 100)]);
    for pfn in 0..200 {
        rig.store.get_or_create(Pfn::new(pfn), MIB2, owner(pfn), 1).expect("in a device");
    }
    assert_eq!((left.live_folios(), right.live_folios()), (100, 100));
    rig.store.put_run(Pfn::new(50), 100, KIB4);
    assert_eq!((left.live_folios(), right.live_folios()), (50, 50));
    rig.store.put_run(Pfn::new(0), 50, KIB4);
    rig.store.put_run(Pfn::new(150), 50, KIB4);
    assert!(left.is_drained() && right.is_drained());
    rig.assert_idle();
}

mod counts;
mod model;
mod threads;
