//! Each way through gup: what it costs in looks at page tables, and that it pins what was asked for and nothing beside.
#![cfg(not(loom))]

mod common;

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

use common::gup_rig::{FAST, Rig, rig};
use common::{
    BASE, Device, EmuContext, Space, counts, load, machine, machine_with, page, pin, space_with, store_to, through,
    unpin,
};
use mm::addr::{PAGE_SIZE, PageSize, Pfn};
use mm::entry::Prot;
use mm::gather::Gather;
use mm::gup::{self, GupError, GupFlags, PageArray, RangeArray};
use mm::machine::Point;
use mm::mapping::unmap_mapping_range;
use mm::meta::MAX_REFS;
use mm::pagemap::MemoryKind;
use mm::region::{MemoryRegion, Notice, RegionOwner, Terms};
use mm::space::{Access, AddressSpace, VmOps};
use mm::sync::Arc;
use testkit::emu::{Config, EmuMachine, Event};

/// A space of `nr_pages` that the CPU has not used yet, loaded on CPUs 0 and 1.
fn unused(nr_pages: u64, levels: u8, largest: PageSize) -> (EmuMachine, Arc<EmuContext>, Arc<Device>, Arc<Space>) {
    let (emu, mm) = machine_with(Config { cpus: 2, levels, ..Config::default() });
    let device = Device::dax_with(&mm, 4 << 18, largest);
    let space = space_with(&mm, &device, nr_pages, &[0, 1]);
    space.populate(page(0), nr_pages * PAGE_SIZE, Access::Write).unwrap();
    (emu, mm, device, space)
}

/// Pins pages without a lock, gives them back, and answers how many looks at entries that took.
fn looks(emu: &EmuMachine, mm: &EmuContext, space: &Space, first: u64, nr: u64) -> u64 {
    emu.reset_stats();
    let runs = pin(space, page(first), nr, FAST).unwrap();
    let looks = emu.stats().entry_looks;
    assert_eq!(runs.iter().map(|run| run.nr_pages()).sum::<u64>(), nr, "{nr} pages from {first} on");
    unpin(mm, &runs);
    assert_eq!(mm.meta.totals().pins, 0);
    looks
}

// covers: G6
#[test]
fn one_page_costs_a_look_at_each_level() {
    for levels in [4, 5] {
        let (emu, mm, _, space) = unused(3, levels, PageSize::Size4K);
        assert_eq!(looks(&emu, &mm, &space, 1, 1), levels.into());
        // Into an array of frames as well.
        emu.reset_stats();
        let mut frames = [Pfn::new(0); 1];
        assert_eq!(gup::pin_user_pages_fast(&space, page(2), 1, FAST, &mut PageArray::new(&mut frames)), Ok(1));
        assert_eq!(emu.stats().entry_looks, levels.into());
        unpin(&mm, &[mm::addr::PfnRange::new(frames[0], 1).unwrap()]);
        // What the CPU notes at this very moment is looked at once more, by the walk for many pages.
        let (at, ours) = (emu.clone(), space.clone());
        emu.at(0, Event::At(Point::GupPinned), 1, move || {
            let before = at.stats().entry_looks;
            at.on_cpu(1, || store_to(&ours, &at, page(1), 3).unwrap());
            assert_eq!(at.stats().entry_looks, before, "the CPU's own walk is none of software's");
        });
        assert_eq!(looks(&emu, &mm, &space, 1, 1), u64::from(2 * levels + 2));
        emu.assert_hooks_ran();
    }
}

// covers: G6
#[test]
fn pages_of_one_huge_leaf_cost_one_walk() {
    for (largest, nr_pages, walk) in [(PageSize::Size2M, 1024, 3), (PageSize::Size1G, 1 << 19, 2)] {
        let (emu, mm, _, space) = unused(nr_pages, 4, largest);
        let leaf = largest.nr_pages();
        for (first, nr) in [(0, leaf), (leaf, leaf), (5, 2), (leaf - 2, 2)] {
            assert_eq!(looks(&emu, &mm, &space, first, nr), walk, "{nr} pages from {first} on, {largest}");
        }
        assert_eq!(looks(&emu, &mm, &space, 7, 1), walk, "a single page, {largest}");
        // Two leaves are looked for as one leaf first.
        assert_eq!(looks(&emu, &mm, &space, leaf - 2, 4), 3 * walk, "{largest}");
    }
}

// covers: G6
#[test]
fn a_run_of_small_pages_costs_a_look_for_each_and_a_walk_for_each_table() {
    let (emu, mm, device, space) = unused(1024, 4, PageSize::Size4K);
    // A look for a huge leaf, a walk, and one more look at the first entry. (A look at an entry is one at where it is: that
    // is read before its page is taken, and again after.)
    let ranges = [0..16, 1..14, 2..4, 3..5, 3..7, 4..12, 6..23, 500..512, 0..512];
    for Range { start, end } in ranges.clone() {
        assert_eq!(looks(&emu, &mm, &space, start, end - start), 4 + 4 + 1 + end - start, "{start}..{end}");
    }
    assert_eq!(looks(&emu, &mm, &space, 505, 20), 4 + 2 * (4 + 1) + 20, "over two tables");
    // What the CPU has noted, here and there, does not end a run.
    (0..20).step_by(3).for_each(|nr| emu.on_cpu(1, || store_to(&space, &emu, page(nr), nr).unwrap()));
    for Range { start, end } in ranges {
        // A group that is not all alike is looked at once more, page by page.
        let (all, once) = (looks(&emu, &mm, &space, start, end - start), 4 + 4 + 1 + end - start);
        assert!((once..=once + (end - start)).contains(&all), "{start}..{end}, some used: {all}");
    }
    // Nor does what it notes just now.
    for nth in 1..=9 {
        let (at, ours) = (emu.clone(), space.clone());
        emu.at(0, Event::At(Point::GupPinned), nth, move || {
            for nr in 30 + u64::from(nth)..33 + u64::from(nth) {
                at.on_cpu(1, || store_to(&ours, &at, page(nr), nr).unwrap());
            }
        });
        let all = looks(&emu, &mm, &space, 31, 9);
        assert!((4 + 4 + 1 + 9..=4 + 4 + 1 + 2 * 9).contains(&all), "noted at page {nth}: {all}");
        emu.assert_hooks_ran();
        space.unmap(page(30), 15 * PAGE_SIZE).unwrap();
        space.map(page(30), 15 * PAGE_SIZE, Prot::USER_WRITE, &device.ops(), 30).unwrap();
        space.populate(page(30), 15 * PAGE_SIZE, Access::Write).unwrap();
    }
}

/// Small leaves over one large folio are followed twice: before they are pinned together, and after.
// covers: G1, G6
#[test]
fn small_leaves_over_one_folio_cost_two_looks_each() {
    let (emu, mm, device, space) = unused(512, 4, PageSize::Size2M);
    let mut gather = Gather::new(&mm);
    unmap_mapping_range(&device.mapping, 511, 1, &mut gather);
    gather.finish();
    for Range { start, end } in [0..2, 3..20, 0..511] {
        assert_eq!(looks(&emu, &mm, &space, start, end - start), 4 + 4 + 1 + 2 * (end - start), "{start}..{end}");
    }
}

// covers: G1, G5
#[test]
fn a_run_ends_where_the_next_entry_leads_elsewhere() {
    for cut in 1..14 {
        let (emu, mm) = machine(1);
        let device = Device::dax_with(&mm, 512, PageSize::Size4K);
        let space = space_with(&mm, &device, cut, &[0]);
        // All of it in one block of metadata.
        space.map(page(cut), (16 - cut) * PAGE_SIZE, Prot::USER_WRITE, &device.ops(), cut + 3).unwrap();
        space.populate(page(0), 16 * PAGE_SIZE, Access::Write).unwrap();
        let runs = pin(&space, page(0), 16, FAST).unwrap();
        let got: Vec<_> = runs.iter().map(|run| (run.start(), run.nr_pages())).collect();
        assert_eq!(got, [(device.pfn(0), cut), (device.pfn(cut + 3), 16 - cut)]);
        for nr in 0..24 {
            let mapped = u32::from(nr < cut || (cut + 3..19).contains(&nr));
            assert_eq!(counts(&mm.meta, device.pfn(nr)), (2 * mapped, mapped), "page {nr}, cut at {cut}");
        }
        unpin(&mm, &runs);
        assert_eq!((mm.meta.totals().pins, mm.meta.totals().refs), (0, 16), "cut at {cut}");
        drop((emu, space));
    }
}

/// Pins `nr` of many pages from `first` on and checks that each of these has one pin, and no other page has.
fn exactly(rig: &Rig, first: u64, nr: u64, flags: GupFlags) {
    let pinned = |nr_pages: u64| {
        for page in first.saturating_sub(20)..first + nr + 20 {
            let want = u32::from((first..first + nr_pages).contains(&page));
            assert_eq!(rig.pins(page), want, "page {page}, {nr} from {first} on, {flags:?}");
        }
    };
    let mut frames = vec![Pfn::new(0); 64];
    let mut array = PageArray::new(&mut frames);
    assert_eq!(gup::pin_user_pages_fast(&rig.space, page(first), nr, flags, &mut array), Ok(nr));
    let wanted: Vec<_> = (first..first + nr).map(|nr| rig.device.pfn(nr)).collect();
    assert_eq!(array.as_slice(), wanted);
    pinned(nr);
    wanted.iter().for_each(|&pfn| gup::unpin(&rig.mm, pfn, 1));
    let runs = pin(&rig.space, page(first), nr, flags).unwrap();
    assert_eq!(runs.len(), 1);
    pinned(nr);
    unpin(&rig.mm, &runs);
    pinned(0);
}

// covers: G5
#[test]
fn as_many_are_pinned_as_were_asked_for_and_no_more() {
    let rig = rig(1024, PageSize::Size4K);
    let no_fault = GupFlags::NO_FAULT | GupFlags::WRITE;
    for (first, nr) in [(3, 1), (3, 2), (3, 5), (4, 8), (5, 17), (490, 40), (510, 2)] {
        exactly(&rig, first, nr, FAST);
    }
    load(&rig.mm, None);
    for (first, nr) in [(3, 1), (3, 5), (490, 40)] {
        exactly(&rig, first, nr, no_fault);
    }
}

// covers: G5, G8
#[test]
fn a_page_that_cannot_be_had_ends_the_run_before_it_wherever_it_is() {
    for full in 1..18 {
        let rig = rig(24, PageSize::Size4K);
        let nr = MAX_REFS - 1;
        rig.mm.meta.with_page(rig.device.pfn(full), |page| page.try_pin(nr)).expect("live").expect("room");
        for flags in [FAST, GupFlags::WRITE] {
            let runs = pin(&rig.space, page(0), 18, flags).unwrap();
            assert_eq!((runs[0].start(), runs[0].nr_pages(), runs.len()), (rig.device.pfn(0), full, 1));
            for nr in (0..24).filter(|&nr| nr != full) {
                assert_eq!(rig.pins(nr), u32::from(nr < full), "page {nr}, where {full} is full");
            }
            unpin(&rig.mm, &runs);
        }
        rig.mm.meta.unpin(rig.device.pfn(full), nr);
    }
}

/// Without the lockless walk, a request goes from leaf to leaf, and a leaf's folio has the pins of its own pages.
// covers: G4, G6
#[test]
fn the_slow_path_goes_on_in_the_next_leaf() {
    let rig = rig(2 * 512, PageSize::Size2M);
    load(&rig.mm, None);
    for (first, nr) in [(5, 600), (511, 2), (500, 12), (0, 1024)] {
        let runs = pin(&rig.space, page(first), nr, GupFlags::WRITE).unwrap();
        let in_first = nr.min(512 - first) as u32;
        assert_eq!((rig.pins(0), rig.pins(512)), (in_first, nr as u32 - in_first), "{nr} from {first} on");
        assert_eq!((runs.len(), runs[0].start()), (1, rig.device.pfn(first)));
        unpin(&rig.mm, &runs);
        assert_eq!((rig.pins(0), rig.pins(512)), (0, 0));
    }
}

// covers: G5, G6
#[test]
fn no_pages_are_refused_where_a_huge_leaf_is_too() {
    for leaf in [PageSize::Size2M, PageSize::Size1G] {
        let rig = rig(leaf.nr_pages(), leaf);
        for flags in [FAST, GupFlags::WRITE, GupFlags::empty()] {
            assert_eq!(pin(&rig.space, page(3), 0, flags), Err(GupError::NoPages), "{leaf}, {flags:?}");
        }
        assert_eq!(counts(&rig.mm.meta, rig.device.pfn(3)), (1, 0));
    }
}

/// Plain references: taken by the same ways, counted as references alone, and given back as they were taken.
// covers: G4, G6
#[test]
fn plain_references_are_had_and_given_back_in_any_number() {
    for (leaf, first, nr) in [
        (PageSize::Size4K, 3, 1),
        (PageSize::Size4K, 3, 20),
        (PageSize::Size4K, 500, 40),
        (PageSize::Size2M, 7, 1),
        (PageSize::Size2M, 7, 30),
        (PageSize::Size2M, 500, 40),
    ] {
        for is_loaded in [true, false] {
            let rig = rig(1024, leaf);
            if !is_loaded {
                load(&rig.mm, None);
            }
            let before = rig.mm.meta.totals().refs;
            let mut runs = [None; 4];
            let mut sink = RangeArray::new(&mut runs);
            let got = gup::get_user_pages_fast(&rig.space, page(first), nr, GupFlags::WRITE, &mut sink);
            assert_eq!(got, Ok(nr), "{leaf}");
            let run = sink.iter().next().expect("a run");
            assert_eq!((run.start(), run.nr_pages()), (rig.device.pfn(first), nr));
            assert_eq!((rig.mm.meta.totals().refs, rig.mm.meta.totals().pins), (before + nr, 0), "{leaf}");
            // They keep the pages past the end of the mapping.
            rig.space.unmap(page(0), 1024 * PAGE_SIZE).unwrap();
            assert_eq!(rig.mm.meta.totals().refs, nr);
            gup::put_page(&rig.mm, run.start(), nr);
            assert_eq!((rig.mm.meta.totals().refs, rig.device.pages.live_folios()), (0, 0), "{leaf}");
        }
    }
}

// covers: G4
#[test]
fn a_request_whose_fault_is_turned_away_waits_and_comes_again() {
    let (emu, mm) = machine(1);
    let device = Device::dax_with(&mm, 64, PageSize::Size4K);
    let away = Arc::new(AtomicU32::new(3));
    // A fault that is turned away: all is well, and nothing is mapped.
    let left = away.clone();
    let ops = through(
        &device,
        move |device, request, install| {
            if left.load(Ordering::SeqCst) != 0 { Ok(()) } else { device.fault(request, install) }
        },
    );
    let space = AddressSpace::new(&mm, "test").unwrap();
    space.map(BASE, 8 * PAGE_SIZE, Prot::USER_WRITE, &ops, 0).unwrap();
    load(&mm, Some(&space));
    // It waits between two tries, and each wait brings the end nearer.
    for nth in 1..=3 {
        let away = away.clone();
        emu.at(0, Event::Relax, nth, move || _ = away.fetch_sub(1, Ordering::SeqCst));
    }
    let runs = pin(&space, page(0), 4, GupFlags::WRITE).unwrap();
    emu.assert_hooks_ran();
    unpin(&mm, &runs);
    // Where nothing is turned away nothing waits.
    emu.at(0, Event::Relax, 1, || panic!("it waits although all went well"));
    unpin(&mm, &pin(&space, page(4), 3, GupFlags::WRITE).unwrap());
}

/// How often interrupts are turned off while `nr` pages from `first` on are pinned.
fn sections(rig: &Rig, first: u64, nr: u64, by_page: bool) -> u32 {
    let count = Arc::new(AtomicU32::new(0));
    for nth in 1..=32 {
        let count = count.clone();
        rig.emu.at(0, Event::IrqDisable, nth, move || _ = count.fetch_add(1, Ordering::SeqCst));
    }
    if by_page {
        let mut frames = vec![Pfn::new(0); nr as usize];
        let got = gup::pin_user_pages_fast(&rig.space, page(first), nr, FAST, &mut PageArray::new(&mut frames));
        assert_eq!(got, Ok(nr));
    } else {
        assert_eq!(pin(&rig.space, page(first), nr, FAST).unwrap().len(), 1);
    }
    count.load(Ordering::SeqCst)
}

/// Interrupts are off as long as they may be: each time that they come on and go off again costs.
// covers: G2
#[test]
fn interrupts_come_on_no_more_often_than_they_must() {
    let steps = gup::IRQS_OFF_STEPS;
    for by_page in [false, true] {
        for (leaf, first, nr, wanted) in [
            // Once for one huge leaf, which it is not, and once for each so many steps.
            (PageSize::Size4K, 100, 300, 1 + 1),
            (PageSize::Size4K, 500, 24, 1 + 1),
            (PageSize::Size4K, 500, steps, 1 + 1),
            (PageSize::Size4K, 500, steps + 1, 1 + 2),
            (PageSize::Size4K, 100, 4 * steps, 1 + 4),
            (PageSize::Size2M, 500, 24, 1 + 1),
            (PageSize::Size2M, 500, 2 * steps, if by_page { 1 + 2 } else { 1 + 1 }),
        ] {
            let rig = rig(8 * 512, leaf);
            let sections = rig.emu.clone().on_cpu(0, || sections(&rig, first, nr, by_page));
            assert_eq!(sections, wanted, "{nr} pages from {first} on, {leaf}, by page: {by_page}");
        }
    }
}

/// An owner of a registration that is never asked.
struct Owner;

impl RegionOwner for Owner {
    fn asked(&self, _: &Notice) {}
}

/// A registration is long-term by itself, whatever flags come with it, and takes the lockless way where it can.
// covers: L2, G6
#[test]
fn a_registration_needs_no_lock_where_the_pages_are_there() {
    for flags in [GupFlags::WRITE, GupFlags::WRITE | GupFlags::LONGTERM] {
        for (leaf, nr, looks) in [(PageSize::Size4K, 16, 4 + 4 + 1 + 16), (PageSize::Size2M, 16, 3)] {
            let rig = rig(512, leaf);
            let account = rig.mm.pins.open_account("account", 2048);
            let terms = Terms { flags, grace_ns: 0, account: &account };
            let owner: Arc<dyn RegionOwner> = Arc::new(Owner);
            let register = || MemoryRegion::register(&rig.space, page(3), nr, &terms, Arc::downgrade(&owner));
            rig.emu.on_cpu(0, || {
                rig.emu.reset_stats();
                let region = register().expect("registered");
                assert_eq!(rig.emu.stats().entry_looks, looks, "{leaf}, {flags:?}");
                assert_eq!(rig.mm.meta.totals().pins, nr);
                drop(region);
                // With the lock, where the space is not loaded.
                load(&rig.mm, None);
                drop(register().expect("registered"));
            });
            assert_eq!(rig.mm.meta.totals().pins, 0);
        }
    }
}

/// Memory that does not tolerate a long-term pin is left to the slow path, which refuses it, by each lockless way.
// covers: L3
#[test]
fn no_lockless_way_pins_for_long_what_cannot_be_taken_back() {
    for kind in [MemoryKind::FsDax, MemoryKind::DevDax] {
        let (emu, mm) = machine(1);
        let device = Device::new(&mm, common::DEVICE_START, 4 * 512, kind, PageSize::Size2M);
        // A huge leaf; small leaves over a large folio; small pages.
        let space = space_with(&mm, &device, 2 * 512, &[0]);
        space.map(page(1024), 64 * PAGE_SIZE, Prot::USER_WRITE, &device.ops(), 1024).unwrap();
        space.populate(page(0), 1088 * PAGE_SIZE, Access::Write).unwrap();
        let mut gather = Gather::new(&mm);
        unmap_mapping_range(&device.mapping, 1023, 1, &mut gather);
        gather.finish();
        let sizes = [3, 600, 1030].map(|nr| mm.meta.inspect(device.pfn(nr)).unwrap().size);
        assert_eq!(sizes, [PageSize::Size2M, PageSize::Size2M, PageSize::Size4K]);
        for first in [3, 600, 1030] {
            for nr in [1, 2, 20] {
                let long = pin(&space, page(first), nr, FAST | GupFlags::LONGTERM);
                assert_eq!(long, Err(GupError::NotPresent(page(first))), "{nr} pages from {first} on, {kind:?}");
                assert_eq!(mm.meta.totals().pins, 0);
                unpin(&mm, &pin(&space, page(first), nr, FAST).expect("for a short time"));
            }
        }
        drop(emu);
    }
}

/// What a CPU has looked up last serves for one block alone, divided or not.
// covers: G1, G6
#[test]
fn pages_of_two_blocks_in_turn_are_each_found() {
    for largest in [PageSize::Size4K, PageSize::Size2M, PageSize::Size1G] {
        let (_, mm, device, space) = unused(if largest == PageSize::Size1G { 2 << 18 } else { 1536 }, 4, largest);
        let block = largest.max(PageSize::Size2M).nr_pages();
        for nr in [1, block + 1, 2, block - 1, block + 2, block, 0] {
            let runs = pin(&space, page(nr), 1, FAST).unwrap();
            assert_eq!(runs[0].start(), device.pfn(nr), "{largest}");
            let totals = (counts(&mm.meta, device.pfn(nr)), mm.meta.totals().pins);
            assert!(matches!(totals, ((_, 1), 1)), "page {nr} of {largest} leaves: {totals:?}");
            unpin(&mm, &runs);
        }
    }
}

/// Pages that are neighbours in the address space alone: each frame in a block of its own, or on either side of one.
// covers: G1, G5
#[test]
fn pages_whose_frames_are_far_apart_are_pinned_in_one_walk() {
    let (emu, mm) = machine(1);
    let device = Device::dax_with(&mm, 3 << 18, PageSize::Size4K);
    let space = space_with(&mm, &device, 1, &[0]);
    // Some in the same GiB as the one before, some in another, two that are neighbours after all, one behind another.
    let offsets = [600, 1200, 1100, (1 << 18) + 7, 9, (2 << 18) + 600, (2 << 18) + 601, 20, 19, 700];
    for (nr, &offset) in (1..).zip(&offsets) {
        space.map(page(nr), PAGE_SIZE, Prot::USER_WRITE, &device.ops(), offset).unwrap();
    }
    let nr = offsets.len() as u64;
    space.populate(page(1), nr * PAGE_SIZE, Access::Write).unwrap();
    let expected: Vec<_> = offsets.iter().map(|&offset| device.pfn(offset)).collect();
    for room in [offsets.len(), 4, 1] {
        let mut frames = vec![Pfn::new(0); room];
        let mut sink = PageArray::new(&mut frames);
        emu.reset_stats();
        assert_eq!(gup::pin_user_pages_fast(&space, page(1), nr, FAST, &mut sink), Ok(room as u64));
        assert_eq!(sink.as_slice(), &expected[..room]);
        let looks = emu.stats().entry_looks;
        assert!(looks <= 2 * 4 + 3 * room as u64, "{room} pages: {looks} looks");
        assert_eq!(mm.meta.totals().pins, room as u64);
        for &pfn in &frames {
            assert_eq!(counts(&mm.meta, pfn), (2, 1));
            gup::unpin(&mm, pfn, 1);
        }
    }
    // As ranges: the two neighbours are one.
    let runs = pin(&space, page(1), nr, FAST).unwrap();
    assert_eq!(runs.iter().map(|run| run.nr_pages()).collect::<Vec<_>>(), [1, 1, 1, 1, 1, 2, 1, 1, 1]);
    unpin(&mm, &runs);
    // A page that is not there, and one whose right is missing, end it.
    space.unmap(page(6), PAGE_SIZE).unwrap();
    space.protect(page(4), PAGE_SIZE, Prot::USER_READ).unwrap();
    let runs = pin(&space, page(1), nr, FAST).unwrap();
    assert_eq!(runs.len(), 3);
    unpin(&mm, &runs);
    assert_eq!(mm.meta.totals().pins, 0);
}
