//! Tests of gup on live page tables: sizes, result kinds, refusals, and which path served a request.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use mm::addr::{PAGE_SIZE, PageSize, Pfn, PfnRange, VirtAddr};
use mm::entry::Prot;
use mm::gup::{GupError, GupFlags, PageArray, RangeArray, get_user_pages_fast, pin_user_pages_fast, put_page, unpin};
use mm::meta::Counts;
use mm::space::Access;

use crate::ktest::fixtures::{
    BASE, Device, at, here, new_space, other_cpu, page, read_frame, run_in, spawn_in, stamp, write_frame,
};
use crate::ktest::test::{Ctx, Test, check, check_eq};
use crate::mem::machine::{Space, mm};
use crate::mem::paging;
use crate::task::{sched, user};

const MIB2: u64 = PageSize::Size2M.bytes();
const GIB: u64 = PageSize::Size1G.bytes();

/// The tests of this file.
pub const TESTS: &[Test] = &[
    Test { name: "mm.gup.pins_are_counted_exactly", covers: "G1 G8", run: |ctx| Device::with(ctx, MIB2, counted) },
    Test { name: "mm.gup.huge_leaves_are_one_range", covers: "G6", run: |ctx| Device::with(ctx, 2 * MIB2, huge_2m) },
    Test {
        name: "mm.gup.a_1g_leaf_is_one_range",
        covers: "G6",
        run: |ctx| Device::with_leaf(ctx, GIB, PageSize::Size1G, huge_1g),
    },
    Test { name: "mm.gup.arrays_and_ranges_agree", covers: "G6", run: |ctx| Device::with(ctx, 4 * MIB2, mixed) },
    Test { name: "mm.gup.loaded_space_goes_fast", covers: "G1 G2", run: |ctx| Device::with(ctx, MIB2, goes_fast) },
    Test { name: "mm.gup.foreign_space_goes_slow", covers: "G4", run: |ctx| Device::with(ctx, MIB2, goes_slow) },
    Test { name: "mm.gup.slow_path_faults_in", covers: "G4 G5", run: |ctx| Device::with(ctx, MIB2, faults_in) },
    Test { name: "mm.gup.partial_success_is_a_count", covers: "G5", run: |ctx| Device::with(ctx, MIB2, partial) },
    Test { name: "mm.gup.read_only_refuses_a_write", covers: "G7", run: |ctx| Device::with(ctx, 2 * MIB2, read_only) },
    Test { name: "mm.gup.bad_requests_are_refused", covers: "G7", run: |ctx| Device::with(ctx, MIB2, bad_requests) },
    Test { name: "mm.gup.no_fault_stays_out", covers: "G4 G7", run: |ctx| Device::with(ctx, MIB2, no_fault) },
    Test {
        name: "mm.gup.bare_long_term_pins_are_refused",
        covers: "L6",
        run: |ctx| Device::with(ctx, MIB2, long_term),
    },
    Test { name: "mm.gup.a_pin_outlives_its_mapping", covers: "G8 R10", run: |ctx| Device::with(ctx, MIB2, outlives) },
    Test { name: "mm.gup.every_cpu_pins_one_page", covers: "G1 G8", run: |ctx| Device::with(ctx, MIB2, every_cpu) },
];

/// Pins pages one by one into an array; answers the frames.
fn pin(space: &Space, va: VirtAddr, nr: u64, flags: GupFlags) -> Result<Vec<Pfn>, GupError> {
    let mut frames = alloc::vec![Pfn::new(0); nr as usize];
    let mut sink = PageArray::new(&mut frames);
    let got = pin_user_pages_fast(space, va, nr, flags, &mut sink)?;
    assert!(sink.as_slice().len() as u64 == got, "gup answers {got} and gives {}", sink.as_slice().len());
    frames.truncate(got as usize);
    Ok(frames)
}

/// Pins pages as runs; answers them.
fn pin_ranges(space: &Space, va: VirtAddr, nr: u64, flags: GupFlags) -> Result<Vec<PfnRange>, GupError> {
    let mut ranges = [None; 16];
    let mut sink = RangeArray::new(&mut ranges);
    let got = pin_user_pages_fast(space, va, nr, flags, &mut sink)?;
    let ranges: Vec<PfnRange> = sink.iter().collect();
    assert!(ranges.iter().map(|range| range.nr_pages()).sum::<u64>() == got, "gup answers {got} and gives {ranges:?}");
    Ok(ranges)
}

fn unpin_all(frames: &[Pfn]) {
    frames.iter().for_each(|&pfn| unpin(mm(), pfn, 1));
}

/// References and pins of the folio of `pfn`; zero where there is none.
fn counts(pfn: Pfn) -> (u32, u32) {
    mm().meta.inspect(pfn).map_or((0, 0), |folio| {
        let Counts { refs, pins } = folio.counts;
        (refs, pins)
    })
}

/// A space that maps the first `len` bytes of the device with leaves of `size`, all of them installed.
fn mapped(device: &Device, len: u64, size: PageSize) -> Result<Arc<Space>, String> {
    let space = new_space("gup")?;
    device.map(&space, BASE, 0, len, size)?;
    space.populate(BASE, len, Access::Write).map_err(|error| format!("populate: {error}"))?;
    Ok(space)
}

/// Fast path or nothing.
const FAST: GupFlags = GupFlags::WRITE.union(GupFlags::FAST_ONLY);

fn counted(_: &mut Ctx, device: &Device) -> Result<(), String> {
    let space = mapped(device, page(8), PageSize::Size4K)?;
    let first = device.pfn(0);
    let map = mm().meta.find_map(first).ok_or("no page map")?;
    let inner = Arc::clone(&space);
    run_in(here(), &space, move || {
        let folios = map.live_folios();
        for round in 1..=3 {
            check_eq!(pin(&inner, at(12), 1, FAST), Ok(alloc::vec![first]), "pin of a page from its middle");
            check_eq!(counts(first), (1 + round, round), "(references, pins) after {round} pins");
        }
        // The walk takes nothing on the page map: what a removal waits for is the page's own count.
        check_eq!(map.live_folios(), folios, "live folios of the page map");
        check!(arch::cpu::irqs_on(), "interrupts are off after gup");
        let mut frames = [Pfn::new(0); 1];
        let mut sink = PageArray::new(&mut frames);
        check_eq!(get_user_pages_fast(&inner, BASE, 1, FAST, &mut sink), Ok(1), "a plain reference");
        check_eq!(counts(first), (5, 3), "(references, pins) with a plain reference");
        put_page(mm(), first, 1);
        unpin(mm(), first, 1);
        check_eq!(counts(first), (3, 2), "(references, pins) after one put and one unpin");
        unpin_all(&[first; 2]);
        check_eq!(counts(first), (1, 0), "(references, pins) at the end: the mapping's");
        Ok(())
    })
}

fn huge_2m(_: &mut Ctx, device: &Device) -> Result<(), String> {
    let space = mapped(device, 2 * MIB2, PageSize::Size2M)?;
    let (first, inner) = (device.pfn(0), Arc::clone(&space));
    run_in(here(), &space, move || {
        let all = pin_ranges(&inner, BASE, 512, FAST).map_err(|error| format!("{error}"))?;
        check_eq!(all, [PfnRange::new(first, 512)].into_iter().flatten().collect::<Vec<_>>(), "512 pages");
        check_eq!(counts(first), (1 + 512, 512), "(references, pins): each page of the run is a pin");
        // Part by part, and a part across two leaves, which lie side by side.
        unpin(mm(), first, 100);
        unpin(mm(), first.add(100), 1);
        unpin(mm(), first.add(101), 411);
        check_eq!(counts(first), (1, 0), "(references, pins) at the end: the mapping's");
        let across = pin_ranges(&inner, at(page(500)), 24, FAST).map_err(|error| format!("{error}"))?;
        check_eq!(across.len(), 1, "runs of 24 pages across two leaves: {across:?}");
        check_eq!((counts(first).1, counts(first.add(512)).1), (12, 12), "pins of the two folios");
        unpin(mm(), first.add(500), 24);
        Ok(())
    })
}

fn huge_1g(ctx: &mut Ctx, device: &Device) -> Result<(), String> {
    if !paging::has_gib_leaves() {
        ctx.skip("this CPU has no 1 GiB leaves");
        return Ok(());
    }
    let space = mapped(device, GIB, PageSize::Size1G)?;
    let (first, inner) = (device.pfn(0), Arc::clone(&space));
    run_in(here(), &space, move || {
        let nr = PageSize::Size1G.nr_pages();
        let all = pin_ranges(&inner, BASE, nr, FAST).map_err(|error| format!("{error}"))?;
        check_eq!(all, [PfnRange::new(first, nr)].into_iter().flatten().collect::<Vec<_>>(), "262,144 pages");
        check_eq!(counts(first), (1 + nr as u32, nr as u32), "(references, pins)");
        unpin(mm(), first, nr);
        let one = pin(&inner, at(GIB - 1), 1, FAST);
        check_eq!(one, Ok(alloc::vec![first.add(nr - 1)]), "the last page");
        unpin(mm(), first.add(nr - 1), 1);
        check_eq!(counts(first), (1, 0), "(references, pins) at the end: the mapping's");
        Ok(())
    })
}

fn mixed(_: &mut Ctx, device: &Device) -> Result<(), String> {
    let space = new_space("mixed")?;
    // A 2 MiB leaf, then small leaves over the frames that follow, then small leaves over frames from elsewhere.
    device.map(&space, BASE, 0, MIB2, PageSize::Size2M)?;
    device.map(&space, at(MIB2), MIB2, page(4), PageSize::Size4K)?;
    device.map(&space, at(MIB2 + page(4)), 2 * MIB2, page(4), PageSize::Size4K)?;
    space.populate(BASE, MIB2 + page(8), Access::Write).map_err(|error| format!("populate: {error}"))?;
    let (start, inner) = (at(MIB2 - page(4)), Arc::clone(&space));
    let expected: Vec<Pfn> = (508..516).chain(1024..1028).map(|n| device.pfn(n)).collect();
    for (n, &pfn) in expected.iter().enumerate() {
        write_frame(pfn, stamp(n as u64, 1));
    }
    run_in(here(), &space, move || {
        let frames = pin(&inner, start, 12, FAST).map_err(|error| format!("array: {error}"))?;
        check_eq!(frames, expected, "frames of the array");
        let ranges = pin_ranges(&inner, start, 12, FAST).map_err(|error| format!("ranges: {error}"))?;
        check_eq!(ranges.len(), 2, "runs: {ranges:?}");
        let spelt: Vec<Pfn> = ranges.iter().flat_map(|run| (0..run.nr_pages()).map(|n| run.start().add(n))).collect();
        check_eq!(spelt, expected, "frames of the ranges");
        for (n, &pfn) in frames.iter().enumerate() {
            let va = VirtAddr::new(start.as_u64() + page(n as u64));
            check_eq!(user::read_u64(va), Ok(read_frame(pfn)), "page {n} through mapping and direct map");
        }
        unpin_all(&frames);
        ranges.iter().for_each(|run| unpin(mm(), run.start(), run.nr_pages()));
        // An array that is too short for what was asked for gets its length.
        let mut short = [Pfn::new(0); 6];
        let mut sink = PageArray::new(&mut short);
        check_eq!(pin_user_pages_fast(&inner, start, 12, FAST, &mut sink), Ok(6), "pages in room for six");
        check_eq!(sink.as_slice(), &expected[..6], "frames in room for six");
        unpin_all(sink.as_slice());
        Ok(())
    })
}

fn goes_fast(ctx: &mut Ctx, device: &Device) -> Result<(), String> {
    let space = mapped(device, page(64), PageSize::Size4K)?;
    let cpus: Vec<_> = [here()].into_iter().chain(other_cpu(&mut Ctx::default())).collect();
    for &cpu in &cpus {
        let inner = Arc::clone(&space);
        run_in(cpu, &space, move || {
            let frames = pin(&inner, BASE, 64, FAST).map_err(|error| format!("fast only, on CPU {cpu}: {error}"))?;
            check_eq!(frames.len(), 64, "pages by the fast path alone");
            unpin_all(&frames);
            Ok(())
        })?;
    }
    ctx.note(format_args!("fast on CPUs {cpus:?}"));
    Ok(())
}

fn goes_slow(_: &mut Ctx, device: &Device) -> Result<(), String> {
    let space = mapped(device, page(8), PageSize::Size4K)?;
    // This task has no space loaded, or another one: the fast path may not look at foreign tables.
    check_eq!(pin(&space, BASE, 8, FAST), Err(GupError::NotPresent(BASE)), "fast only, no space loaded");
    let inner = Arc::clone(&space);
    let stranger = new_space("stranger")?;
    run_in(here(), &stranger, move || {
        check_eq!(pin(&inner, BASE, 8, FAST), Err(GupError::NotPresent(BASE)), "fast only, another space loaded");
        let frames = pin(&inner, BASE, 8, GupFlags::WRITE).map_err(|error| format!("by the slow path: {error}"))?;
        check_eq!(frames.len(), 8, "pages by the slow path");
        unpin_all(&frames);
        Ok(())
    })
}

fn faults_in(_: &mut Ctx, device: &Device) -> Result<(), String> {
    let space = new_space("absent")?;
    device.map(&space, BASE, 0, page(16), PageSize::Size4K)?;
    space.populate(BASE, page(4), Access::Write).map_err(|error| format!("populate: {error}"))?;
    let (frames, inner) = ((0..16).map(|n| device.pfn(n)).collect::<Vec<_>>(), Arc::clone(&space));
    run_in(here(), &space, move || {
        // The fast path serves what is present and stops; the slow path serves the rest.
        let fast = pin(&inner, BASE, 16, FAST).map_err(|error| format!("fast only: {error}"))?;
        check_eq!(fast, frames[..4], "by the fast path alone");
        let all = pin(&inner, BASE, 16, GupFlags::WRITE).map_err(|error| format!("both: {error}"))?;
        check_eq!(all, frames, "by both");
        let again = pin(&inner, BASE, 16, FAST).map_err(|error| format!("again: {error}"))?;
        check_eq!(again, frames, "by the fast path, now that all are present");
        [fast, all, again].iter().for_each(|frames| unpin_all(frames));
        Ok(())
    })
}

fn partial(_: &mut Ctx, device: &Device) -> Result<(), String> {
    let space = new_space("partial")?;
    device.map(&space, BASE, 0, page(4), PageSize::Size4K)?;
    device.map_as(&space, at(page(4)), page(4), page(4), (PageSize::Size4K, Prot::USER_READ))?;
    space.populate(BASE, page(4), Access::Read).map_err(|error| format!("populate: {error}"))?;
    let inner = Arc::clone(&space);
    run_in(here(), &space, move || {
        // Fast up to a page that does not allow it; slow up to the same; and up to a hole, all of it.
        for (what, start, flags, expected) in [
            ("fast, then read-only", 0, GupFlags::WRITE, Ok(4)),
            ("read-only at once", 4, GupFlags::WRITE, Err(GupError::AccessDenied(at(page(4))))),
            ("fast, slow, then a hole", 0, GupFlags::empty(), Ok(8)),
            ("a hole at once", 8, GupFlags::empty(), Err(GupError::NotMapped(at(page(8))))),
        ] {
            let got = pin(&inner, at(page(start)), 16 - start, flags).inspect(|frames| unpin_all(frames));
            check_eq!(got.map(|frames| frames.len()), expected, "{what}");
        }
        Ok(())
    })
}

fn read_only(_: &mut Ctx, device: &Device) -> Result<(), String> {
    for size in [PageSize::Size4K, PageSize::Size2M] {
        let space = new_space("read-only")?;
        device.map_as(&space, BASE, 0, MIB2, (size, Prot::USER_READ))?;
        space.populate(BASE, MIB2, Access::Read).map_err(|error| format!("populate: {error}"))?;
        let inner = Arc::clone(&space);
        run_in(here(), &space, move || {
            let denied = Err(GupError::AccessDenied(BASE));
            check_eq!(pin(&inner, BASE, 2, GupFlags::WRITE), denied, "to write, {size}");
            check_eq!(pin(&inner, BASE, 2, GupFlags::WRITE | GupFlags::FORCE), denied, "to write by force, {size}");
            check_eq!(pin(&inner, BASE, 2, FAST), Err(GupError::NotPresent(BASE)), "to write, fast only, {size}");
            let frames = pin(&inner, BASE, 2, GupFlags::FAST_ONLY).map_err(|error| format!("to read: {error}"))?;
            unpin_all(&frames);
            // What is made writable can be pinned at once: no walk remembers old rights.
            inner.protect(BASE, MIB2, Prot::USER_WRITE).map_err(|error| format!("protect: {error}"))?;
            let frames = pin(&inner, BASE, 2, FAST).map_err(|error| format!("once it is writable: {error}"))?;
            unpin_all(&frames);
            inner.protect(BASE, MIB2, Prot::USER_READ).map_err(|error| format!("protect: {error}"))?;
            check_eq!(pin(&inner, BASE, 2, GupFlags::WRITE), denied, "once it is read-only again, {size}");
            Ok(())
        })?;
    }
    Ok(())
}

fn bad_requests(_: &mut Ctx, device: &Device) -> Result<(), String> {
    let space = mapped(device, page(4), PageSize::Size4K)?;
    let inner = Arc::clone(&space);
    run_in(here(), &space, move || {
        let end = inner.user_end();
        let below = VirtAddr::new(end.as_u64() - PAGE_SIZE);
        let one = |va, nr| {
            let mut frames = [Pfn::new(0); 1];
            pin_user_pages_fast(&*inner, va, nr, GupFlags::empty(), &mut PageArray::new(&mut frames))
        };
        check_eq!(one(BASE, 0), Err(GupError::NoPages), "no pages");
        let no_room = pin_user_pages_fast(&*inner, BASE, 1, GupFlags::empty(), &mut PageArray::new(&mut []));
        check_eq!(no_room, Err(GupError::NoRoom), "no room for a result");
        let no_room = pin_user_pages_fast(&*inner, BASE, 1, GupFlags::empty(), &mut RangeArray::new(&mut []));
        check_eq!(no_room, Err(GupError::NoRoom), "no room for a run");
        for (va, nr, what) in [
            (VirtAddr::new(!0xfff), 2, "wraps to address 0"),
            (BASE, u64::MAX, "has a length that wraps"),
            (BASE, 1 << 52, "has a length of 2^64 bytes"),
            (below, 2, "leaves the user half"),
            (end, 1, "begins beyond the user half"),
            (VirtAddr::new(crate::mem::layout::DIRECT_MAP), 1, "is the kernel's"),
        ] {
            check_eq!(one(va, nr), Err(GupError::BadRange), "a range that {what}");
        }
        check_eq!(one(below, 1), Err(GupError::NotMapped(below)), "the last page of the user half");
        check_eq!(one(VirtAddr::new(0), 1), Err(GupError::NotMapped(VirtAddr::new(0))), "address 0");
        check_eq!(one(at(page(4)), 1), Err(GupError::NotMapped(at(page(4)))), "the page behind a mapping");
        Ok(())
    })
}

fn no_fault(_: &mut Ctx, device: &Device) -> Result<(), String> {
    let space = new_space("no fault")?;
    device.map(&space, BASE, 0, page(4), PageSize::Size4K)?;
    let (first, inner) = (device.pfn(0), Arc::clone(&space));
    run_in(here(), &space, move || {
        let flags = GupFlags::WRITE | GupFlags::NO_FAULT;
        check_eq!(pin(&inner, BASE, 4, flags), Err(GupError::NotPresent(BASE)), "nothing is present");
        check_eq!(counts(first), (0, 0), "(references, pins): nothing was faulted in");
        check_eq!(user::write_u64(BASE, 1), Ok(()), "store");
        check_eq!(pin(&inner, BASE, 4, flags), Ok(alloc::vec![first]), "the page that is present");
        unpin(mm(), first, 1);
        Ok(())
    })
}

fn long_term(_: &mut Ctx, device: &Device) -> Result<(), String> {
    for size in [PageSize::Size4K, PageSize::Size2M] {
        let space = mapped(device, MIB2, size)?;
        let inner = Arc::clone(&space);
        let flags = GupFlags::WRITE | GupFlags::LONGTERM;
        let only = Err(GupError::RevocableOnly(BASE));
        run_in(here(), &space, move || {
            check_eq!(pin(&inner, BASE, 3, flags), only, "long-term pins of {size}: a registration can be taken back");
            check_eq!(
                pin(&inner, BASE, 3, FAST | GupFlags::LONGTERM),
                Err(GupError::NotPresent(BASE)),
                "the fast path"
            );
            Ok(())
        })?;
        // By the slow path too: nothing is loaded here.
        check_eq!(pin(&space, BASE, 3, flags), Err(GupError::RevocableOnly(BASE)), "long-term pins by the slow path");
    }
    Ok(())
}

fn outlives(_: &mut Ctx, device: &Device) -> Result<(), String> {
    let space = mapped(device, page(4), PageSize::Size4K)?;
    let (first, inner) = (device.pfn(0), Arc::clone(&space));
    write_frame(first, stamp(0, 1));
    run_in(here(), &space, move || {
        pin(&inner, BASE, 1, FAST).map_err(|error| format!("{error}"))?;
        inner.unmap(BASE, page(4)).map_err(|error| format!("unmap: {error}"))?;
        check_eq!(counts(first), (1, 1), "(references, pins) once the mapping is gone: the pin's own");
        check_eq!(counts(first.add(1)), (0, 0), "(references, pins) of a page without a pin");
        check_eq!(read_frame(first), stamp(0, 1), "contents of the pinned page");
        Ok(())
    })?;
    // The task and its space are gone, the pin is not.
    drop(space);
    check_eq!(counts(first), (1, 1), "(references, pins) once the space is gone");
    let other = mapped(device, page(1), PageSize::Size4K)?;
    check_eq!(counts(first), (2, 1), "(references, pins) with a new mapping");
    unpin(mm(), first, 1);
    check_eq!(counts(first), (1, 0), "(references, pins) after the unpin");
    drop(other);
    check_eq!(counts(first), (0, 0), "(references, pins) at the end");
    Ok(())
}

fn every_cpu(_: &mut Ctx, device: &Device) -> Result<(), String> {
    const ROUNDS: u64 = 2000;
    let space = mapped(device, page(1), PageSize::Size4K)?;
    let first = device.pfn(0);
    let task = |cpu| {
        let inner = Arc::clone(&space);
        spawn_in(cpu, &space, move || {
            for _ in 0..ROUNDS {
                match pin(&inner, BASE, 1, FAST) {
                    Ok(frames) => unpin_all(&frames),
                    Err(error) => panic!("CPU {cpu}: a page that stays mapped cannot be pinned: {error}"),
                }
            }
            Ok(())
        })
    };
    let tasks: Vec<_> = crate::cpu::percpu::online().iter().map(task).collect();
    for task in &tasks {
        check_eq!(sched::join(task), Ok(()), "end of {task:?}");
    }
    check_eq!(counts(first), (1, 0), "(references, pins) at the end: the mapping's");
    Ok(())
}
