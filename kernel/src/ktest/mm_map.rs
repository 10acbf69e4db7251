//! Tests of mappings as the CPU sees them: leaves of every size, rights, splitting and promoting.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;

use mm::addr::{PAGE_SIZE, PageSize, VirtAddr};
use mm::entry::Prot;
use mm::ledger::Kind;
use mm::space::{Access, MapError, SigBusCause};

use crate::ktest::fixtures::{BASE, Device, at, here, new_space, page, read_frame, run_in, segv, stamp, write_frame};
use crate::ktest::test::{Ctx, Test, check, check_eq};
use crate::mem::machine::{Space, mm};
use crate::mem::paging;
use crate::task::user;

const MIB2: u64 = PageSize::Size2M.bytes();
const GIB: u64 = PageSize::Size1G.bytes();

/// The tests of this file.
pub const TESTS: &[Test] = &[
    Test { name: "mm.map.leaf_4k_reaches_its_frame", covers: "G7", run: |ctx| Device::with(ctx, MIB2, leaf_4k) },
    Test {
        name: "mm.map.leaf_2m_reaches_its_frames",
        covers: "G6 G7",
        run: |ctx| Device::with(ctx, 2 * MIB2, leaf_2m),
    },
    Test {
        name: "mm.map.leaf_1g_reaches_its_frames",
        covers: "G6 G7",
        run: |ctx| Device::with_leaf(ctx, GIB, PageSize::Size1G, leaf_1g),
    },
    Test { name: "mm.map.rights_change_under_the_cpu", covers: "G7", run: |ctx| Device::with(ctx, 2 * MIB2, rights) },
    Test { name: "mm.map.bad_ranges_are_refused", covers: "G7", run: |ctx| Device::with(ctx, 2 * MIB2, bad_ranges) },
    Test {
        name: "mm.map.a_promised_leaf_is_not_cut",
        covers: "G7",
        run: |ctx| Device::with(ctx, 2 * MIB2, promised_leaf),
    },
    Test { name: "mm.map.holes_stay_holes", covers: "G7", run: |ctx| Device::with(ctx, MIB2, holes) },
    Test { name: "mm.map.a_part_of_a_2m_leaf_goes", covers: "", run: |ctx| Device::with(ctx, 2 * MIB2, split_2m) },
    Test {
        name: "mm.map.a_part_of_a_1g_leaf_goes",
        covers: "",
        run: |ctx| Device::with_leaf(ctx, GIB, PageSize::Size1G, split_1g),
    },
    Test {
        name: "mm.map.rights_of_a_part_of_a_leaf",
        covers: "G7",
        run: |ctx| Device::with(ctx, 2 * MIB2, protect_part),
    },
    Test { name: "mm.map.promotion_brings_the_leaf_back", covers: "", run: |ctx| Device::with(ctx, 2 * MIB2, promote) },
    Test { name: "mm.map.one_frame_in_two_spaces", covers: "", run: |ctx| Device::with(ctx, MIB2, two_spaces) },
    Test {
        name: "mm.map.the_space_takes_its_tables_along",
        covers: "G3",
        run: |ctx| Device::with(ctx, MIB2, tables_go),
    },
];

fn leaf_4k(ctx: &mut Ctx, device: &Device) -> Result<(), String> {
    leaf(ctx, device, PageSize::Size4K, &[0, 1, 255, 511])
}

fn leaf_2m(ctx: &mut Ctx, device: &Device) -> Result<(), String> {
    leaf(ctx, device, PageSize::Size2M, &[0, 1, 511, 512, 1023])
}

fn leaf_1g(ctx: &mut Ctx, device: &Device) -> Result<(), String> {
    if !paging::has_gib_leaves() {
        ctx.skip("this CPU has no 1 GiB leaves");
        return Ok(());
    }
    leaf(ctx, device, PageSize::Size1G, &[0, 511, 512, 262_143])
}

/// Maps the device from its beginning on with leaves of `size`, and looks at `pages` from both sides.
fn leaf(_: &mut Ctx, device: &Device, size: PageSize, pages: &'static [u64]) -> Result<(), String> {
    let space = new_space("leaf")?;
    let last = pages.last().copied().unwrap_or(0);
    let len = page(last + 1).next_multiple_of(size.bytes());
    device.map(&space, BASE, 0, len, size)?;
    for &n in pages {
        write_frame(device.pfn(n), stamp(n, 1));
    }
    run_in(here(), &space, move || {
        for &n in pages {
            check_eq!(user::read_u64(at(page(n))), Ok(stamp(n, 1)), "page {n} through a {size} leaf");
            check_eq!(user::write_u64(at(page(n)), stamp(n, 2)), Ok(()), "store to page {n}");
        }
        Ok(())
    })?;
    for &n in pages {
        check_eq!(read_frame(device.pfn(n)), stamp(n, 2), "page {n} through the direct map");
        let found = space.translate(at(page(n))).ok_or_else(|| format!("page {n} is not mapped"))?;
        check_eq!(found.size, size, "leaf over page {n}");
        check_eq!(found.pfn_at(at(page(n))), device.pfn(n), "frame of page {n}");
        check!(found.entry.is_accessed() && found.entry.is_dirty(), "the CPU left no trace in {:?}", found.entry);
    }
    let zapped = space.unmap(BASE, len).map_err(|error| format!("unmap: {error}"))?;
    check!(zapped.leaves >= 1 && zapped.leaves <= pages.len() as u64, "{} leaves were removed", zapped.leaves);
    check_eq!(zapped.nr_pages, zapped.leaves * size.nr_pages(), "pages under the leaves that were removed");
    run_in(here(), &space, move || {
        for &n in pages {
            check_eq!(user::read_u64(at(page(n))), Err(segv(at(page(n)))), "page {n} after the unmap");
        }
        Ok(())
    })
}

fn rights(_: &mut Ctx, device: &Device) -> Result<(), String> {
    for size in [PageSize::Size4K, PageSize::Size2M] {
        let space = new_space("rights")?;
        device.map_as(&space, BASE, 0, MIB2, (size, Prot::USER_READ))?;
        write_frame(device.pfn(0), stamp(0, 3));
        let inner = Arc::clone(&space);
        run_in(here(), &space, move || {
            let protect = |prot| inner.protect(BASE, MIB2, prot).map_err(|error| format!("protect: {error}"));
            check_eq!(user::read_u64(BASE), Ok(stamp(0, 3)), "load from a read-only {size} leaf");
            check_eq!(user::write_u64(BASE, 1), Err(segv(BASE)), "store to a read-only {size} leaf");
            protect(Prot::USER_WRITE)?;
            check_eq!(user::write_u64(BASE, stamp(0, 4)), Ok(()), "store once it is writable");
            protect(Prot::USER_READ)?;
            check_eq!(user::write_u64(BASE, 1), Err(segv(BASE)), "store once it is read-only again");
            check_eq!(user::read_u64(BASE), Ok(stamp(0, 4)), "load once it is read-only again");
            Ok(())
        })?;
        check_eq!(read_frame(device.pfn(0)), stamp(0, 4), "what the refused stores left");
    }
    Ok(())
}

fn bad_ranges(_: &mut Ctx, device: &Device) -> Result<(), String> {
    let space = new_space("bad")?;
    let (small, large) = (device.open(PageSize::Size4K)?, device.open_exactly(PageSize::Size2M)?);
    let map = |va, len, ops, offset| space.map(va, len, Prot::USER_WRITE, ops, offset);
    let end = space.user_end();
    let high = |bytes: u64| VirtAddr::new(end.as_u64() - bytes);
    check_eq!(map(BASE, 0, &small, 0), Err(MapError::BadRange), "an empty range");
    check_eq!(map(VirtAddr::new(0), page(1), &small, 0), Err(MapError::AtZero), "the page at address 0");
    check_eq!(map(at(8), page(1), &small, 0), Err(MapError::BadRange), "a crooked address");
    check_eq!(map(BASE, 8, &small, 0), Err(MapError::BadRange), "a crooked length");
    check_eq!(map(high(page(1)), page(2), &small, 0), Err(MapError::BadRange), "a range that leaves the user half");
    check_eq!(map(VirtAddr::new(!0xfff), page(2), &small, 0), Err(MapError::BadRange), "a range that wraps");
    let pages = device.frames.nr_pages();
    let beyond = Err(MapError::Refused(SigBusCause::BeyondEnd));
    check_eq!(map(BASE, page(2), &small, pages - 1), beyond, "a range that leaves the device");
    check_eq!(map(BASE, page(1), &small, u64::MAX >> 12), Err(MapError::BadRange), "an offset that wraps");
    check_eq!(map(at(page(1)), MIB2, &large, 0), Err(MapError::Misaligned(PageSize::Size2M)), "2 MiB, crooked address");
    check_eq!(map(BASE, MIB2, &large, 1), Err(MapError::Misaligned(PageSize::Size2M)), "2 MiB, crooked offset");
    check_eq!(map(BASE, page(2), &small, 0), Ok(()), "a good range");
    check_eq!(map(at(page(1)), page(2), &small, 0), Err(MapError::Occupied), "a range that is occupied");
    check_eq!(map(high(page(1)), page(1), &small, 0), Ok(()), "the last page of the user half");
    let last = high(page(1));
    run_in(here(), &space, move || {
        check_eq!(user::write_u64(last, 7), Ok(()), "store to the last page of the user half");
        Ok(())
    })
}

/// Half of a leaf that the mapping promises is neither unmapped nor given other rights; a whole one is, and comes again.
fn promised_leaf(_: &mut Ctx, device: &Device) -> Result<(), String> {
    let (space, ops) = (new_space("promised")?, device.open_exactly(PageSize::Size2M)?);
    let map = |va, len, offset| space.map(va, len, Prot::USER_WRITE, &ops, offset);
    check_eq!(map(BASE, 2 * MIB2, 0), Ok(()), "two leaves");
    space.populate(BASE, 2 * MIB2, Access::Write).map_err(|error| format!("populate: {error}"))?;
    let cuts = Some(MapError::CutsLeaf(PageSize::Size2M));
    for (first, nr) in [(5, 1), (0, 511), (100, 512)] {
        check_eq!(space.unmap(at(page(first)), page(nr)).err(), cuts, "unmap of {nr} pages from {first} on");
        let refused = space.protect(at(page(first)), page(nr), Prot::USER_READ).err();
        check_eq!(refused, cuts, "rights of {nr} pages from {first} on");
    }
    run_in(here(), &space, || {
        check_eq!(user::write_u64(at(page(5)), 5), Ok(()), "a store to what was to be unmapped");
        Ok(())
    })?;
    check!(space.unmap(at(MIB2), MIB2).is_ok(), "a whole leaf was not unmapped");
    check_eq!(map(at(MIB2), MIB2, 512), Ok(()), "the hole, mapped again");
    Ok(())
}

fn holes(_: &mut Ctx, device: &Device) -> Result<(), String> {
    let space = new_space("holes")?;
    // Pages 0 and 2 of three.
    device.map(&space, BASE, 0, page(3), PageSize::Size4K)?;
    let unmap = |va, len| space.unmap(va, len).map_err(|error| format!("unmap: {error}"));
    unmap(at(page(1)), page(1))?;
    run_in(here(), &space, || {
        check_eq!(user::write_u64(at(0), 1), Ok(()), "below the hole");
        check_eq!(user::write_u64(at(page(2)), 1), Ok(()), "above the hole");
        for hole in [at(page(1)), at(page(3)), VirtAddr::new(BASE.as_u64() - 8), VirtAddr::new(0)] {
            check_eq!(user::read_u64(hole), Err(segv(hole)), "load from a hole");
            check_eq!(user::write_u64(hole, 1), Err(segv(hole)), "store to a hole");
        }
        // A copy that runs into the hole stops there.
        let mut bytes = [0; 64];
        let from = at(page(1) - 32);
        check_eq!(user::copy_from(&mut bytes, from), Err(segv(at(page(1)))), "a copy that runs into the hole");
        Ok(())
    })?;
    // Nothing is there any more: no error, and nothing to shoot down.
    let nothing = unmap(at(page(1)), page(1))?;
    check_eq!((nothing.leaves, nothing.rounds, nothing.ipis), (0, 0, 0), "(leaves, rounds, interrupts) of a hole");
    Ok(())
}

/// What covers the page, as words.
fn size_at(space: &Space, n: u64) -> Option<PageSize> {
    space.translate(at(page(n))).map(|found| found.size)
}

fn split_2m(_: &mut Ctx, device: &Device) -> Result<(), String> {
    let space = new_space("split")?;
    device.map(&space, BASE, 0, 2 * MIB2, PageSize::Size2M)?;
    let populated = space.populate(BASE, 2 * MIB2, Access::Write);
    check_eq!(populated, Ok(()), "populate");
    for n in [0, 99, 100, 101, 511, 512] {
        write_frame(device.pfn(n), stamp(n, 5));
    }
    let inner = Arc::clone(&space);
    run_in(here(), &space, move || {
        check_eq!(user::read_u64(at(page(100))), Ok(stamp(100, 5)), "before");
        let zapped = inner.unmap(at(page(100)), page(1)).map_err(|error| format!("unmap: {error}"))?;
        check_eq!((zapped.leaves, zapped.rounds), (1, 1), "(leaves, rounds)");
        check_eq!(user::read_u64(at(page(100))), Err(segv(at(page(100)))), "the page that went");
        for n in [0, 99, 101, 511, 512] {
            check_eq!(user::read_u64(at(page(n))), Ok(stamp(n, 5)), "page {n}, which stays");
        }
        Ok(())
    })?;
    let sizes = [99, 100, 101, 512].map(|n| size_at(&space, n));
    let small = Some(PageSize::Size4K);
    check_eq!(sizes, [small, None, small, Some(PageSize::Size2M)], "leaves around the hole and beyond");
    // The folio did not split: one count serves what is left of the leaf.
    let folio = mm().meta.inspect(device.pfn(0)).ok_or("the folio is gone")?;
    check_eq!((folio.size, folio.counts.refs), (PageSize::Size2M, 511), "(size, references) of the folio");
    Ok(())
}

fn split_1g(ctx: &mut Ctx, device: &Device) -> Result<(), String> {
    if !paging::has_gib_leaves() {
        ctx.skip("this CPU has no 1 GiB leaves");
        return Ok(());
    }
    let space = new_space("split")?;
    device.map(&space, BASE, 0, GIB, PageSize::Size1G)?;
    // Two levels down: one page in the middle of the third 2 MiB.
    let (hole, stay) = (2 * 512 + 7, [0, 2 * 512 + 6, 2 * 512 + 8, 3 * 512, 262_143]);
    for n in stay {
        write_frame(device.pfn(n), stamp(n, 6));
    }
    let inner = Arc::clone(&space);
    run_in(here(), &space, move || {
        check_eq!(user::write_u64(at(page(hole)), 1), Ok(()), "before");
        inner.unmap(at(page(hole)), page(1)).map_err(|error| format!("unmap: {error}"))?;
        check_eq!(user::write_u64(at(page(hole)), 1), Err(segv(at(page(hole)))), "the page that went");
        for n in stay {
            check_eq!(user::read_u64(at(page(n))), Ok(stamp(n, 6)), "page {n}, which stays");
        }
        Ok(())
    })?;
    let sizes = [hole - 1, hole, 3 * 512].map(|n| size_at(&space, n));
    check_eq!(sizes, [Some(PageSize::Size4K), None, Some(PageSize::Size2M)], "leaves beside, in and beyond the hole");
    let folio = mm().meta.inspect(device.pfn(0)).ok_or("the folio is gone")?;
    check_eq!((folio.size, folio.counts.refs), (PageSize::Size1G, 511 + 511), "(size, references) of the folio");
    Ok(())
}

fn protect_part(_: &mut Ctx, device: &Device) -> Result<(), String> {
    let space = new_space("part")?;
    device.map(&space, BASE, 0, MIB2, PageSize::Size2M)?;
    let inner = Arc::clone(&space);
    run_in(here(), &space, move || {
        check_eq!(user::write_u64(at(page(10)), 1), Ok(()), "before");
        inner.protect(at(page(10)), page(2), Prot::USER_READ).map_err(|error| format!("protect: {error}"))?;
        for (n, expected) in [(9, Ok(())), (10, Err(segv(at(page(10))))), (11, Err(segv(at(page(11))))), (12, Ok(()))] {
            check_eq!(user::write_u64(at(page(n)), stamp(n, 7)), expected, "store to page {n}");
            check!(user::read_u64(at(page(n))).is_ok(), "page {n} cannot be read");
        }
        Ok(())
    })
}

fn promote(_: &mut Ctx, device: &Device) -> Result<(), String> {
    let space = new_space("promote")?;
    device.map(&space, BASE, 0, MIB2, PageSize::Size2M)?;
    write_frame(device.pfn(300), stamp(300, 8));
    let inner = Arc::clone(&space);
    run_in(here(), &space, move || {
        let protect = |prot| inner.protect(at(page(10)), page(1), prot).map_err(|error| format!("protect: {error}"));
        let promote = || inner.promote(BASE, MIB2).map_err(|error| format!("promote: {error}"));
        check!(user::read_u64(BASE).is_ok(), "before");
        let tables = mm().ledger.count(Kind::TablePages);
        protect(Prot::USER_READ)?;
        check_eq!(mm().ledger.count(Kind::TablePages), tables + 1, "table pages once the leaf is split");
        check_eq!(promote()?, 0, "promotion where the rights differ");
        protect(Prot::USER_WRITE)?;
        check_eq!(promote()?, 0, "promotion where the parts are of different VMAs");
        Ok(())
    })?;
    // One VMA over all of it; its pages are in one folio, which the small leaves below keep alive.
    let whole = new_space("whole")?;
    device.map(&whole, BASE, 0, MIB2, PageSize::Size4K)?;
    let inner = Arc::clone(&whole);
    run_in(here(), &whole, move || {
        check_eq!(inner.populate(BASE, MIB2, Access::Write), Ok(()), "populate");
        check_eq!(size_at(&inner, 300), Some(PageSize::Size4K), "before");
        let tables = mm().ledger.count(Kind::TablePages);
        check_eq!(inner.promote(BASE, MIB2), Ok(1), "tables promoted");
        check_eq!(size_at(&inner, 300), Some(PageSize::Size2M), "afterwards");
        check_eq!(mm().ledger.count(Kind::TablePages), tables - 1, "table pages");
        check_eq!(user::read_u64(at(page(300))), Ok(stamp(300, 8)), "load through the promoted leaf");
        check_eq!(user::write_u64(at(page(300)), stamp(300, 9)), Ok(()), "store through the promoted leaf");
        check_eq!(inner.promote(BASE, MIB2), Ok(0), "a second promotion");
        Ok(())
    })?;
    check_eq!(read_frame(device.pfn(300)), stamp(300, 9), "page 300 through the direct map");
    Ok(())
}

fn two_spaces(_: &mut Ctx, device: &Device) -> Result<(), String> {
    let (one, two) = (new_space("one")?, new_space("two")?);
    // The same frame, at different addresses.
    device.map(&one, BASE, page(5), page(1), PageSize::Size4K)?;
    device.map(&two, at(GIB), page(5), page(1), PageSize::Size4K)?;
    run_in(here(), &one, || user::write_u64(BASE, stamp(5, 1)).map_err(|signal| format!("one: {signal}")))?;
    let seen = run_in(here(), &two, || user::read_u64(at(GIB)).map_err(|signal| format!("two: {signal}")))?;
    check_eq!(seen, stamp(5, 1), "what the other space sees");
    let refs = |expected| {
        let found = mm().meta.inspect(device.pfn(5)).map_or(0, |folio| folio.counts.refs);
        if found == expected { Ok(()) } else { Err(format!("references: expected {expected}, found {found}")) }
    };
    refs(2)?;
    one.unmap(BASE, PAGE_SIZE).map_err(|error| format!("unmap: {error}"))?;
    refs(1)?;
    run_in(here(), &two, || user::write_u64(at(GIB), stamp(5, 2)).map_err(|signal| format!("two: {signal}")))?;
    drop(two);
    refs(0)?;
    check_eq!(read_frame(device.pfn(5)), stamp(5, 2), "page 5 through the direct map");
    Ok(())
}

fn tables_go(_: &mut Ctx, device: &Device) -> Result<(), String> {
    let before = mm().ledger.count(Kind::TablePages);
    let space = new_space("tables")?;
    check_eq!(mm().ledger.count(Kind::TablePages), before + 1, "an empty space's tables");
    // Four pages, each in another 512 GiB: three tables each.
    for n in 1..5 {
        device.map(&space, VirtAddr::new(n << 39), 0, page(1), PageSize::Size4K)?;
    }
    run_in(here(), &space, || {
        for n in 1..5 {
            check_eq!(user::write_u64(VirtAddr::new(n << 39), n), Ok(()), "store in slot {n} of the root");
        }
        Ok(())
    })?;
    check_eq!(mm().ledger.count(Kind::TablePages), before + 13, "tables for four distant pages");
    let zapped = space.unmap(VirtAddr::new(1 << 39), PAGE_SIZE).map_err(|error| format!("unmap: {error}"))?;
    check_eq!(zapped.table_pages, 3, "tables that went with one of them");
    drop(space);
    check_eq!(mm().ledger.count(Kind::TablePages), before, "tables once the space is gone");
    Ok(())
}
