//! Tests of single pages of a device: lost ones, the block path, and what an idle device costs.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dax::devdax::{DevDax, OpenOptions};
use dax::device::{DataCache, alloc_dax};
use dax::removal::Method;
use mm::addr::{PAGE_SHIFT, PAGE_SIZE, PageSize, Pfn, PfnRange, VirtAddr};
use mm::entry::Prot;
use mm::failure::{FailureKind, NoSuchFrame, memory_failure};
use mm::ledger::Kind;
use mm::pagemap::{DevPagemap, MemoryKind};
use mm::space::{Access, SigBusCause};
use nvdimm::pmem::block::{BlockError, SECTOR_BYTES};

use crate::cpu::time;
use crate::ktest::fixtures::{
    BASE, Books, Device, at, here, new_space, no_problems, others, page, run_in, spawn_in, stamp, wait_until,
    write_frame,
};
use crate::ktest::idle;
use crate::ktest::test::{Ctx, Test, check, check_eq};
use crate::mem::machine::mm;
use crate::mem::{heap, memory, paging};
use crate::pmem::{bytes, devices};
use crate::task::tcb::Signal;
use crate::task::{sched, user};

const MIB2: u64 = PageSize::Size2M.bytes();
const GIB: u64 = PageSize::Size1G.bytes();
/// What a device may take while nobody uses it, in bytes (R4: 6 TiB).
const IDLE_BYTES: u64 = 256 << 10;
const SECTOR: usize = SECTOR_BYTES as usize;
const SECTORS_PER_PAGE: u64 = PAGE_SIZE / SECTOR_BYTES;

/// The tests of this file.
pub const TESTS: &[Test] = &[
    Test {
        name: "dax.failure.the_page_goes_and_no_other",
        covers: "P1 N10",
        run: |ctx| Device::with(ctx, 2 * MIB2, lost_page),
    },
    Test {
        name: "dax.failure.everybody_who_maps_it_is_hit",
        covers: "P1 N11",
        run: |ctx| Device::with(ctx, MIB2, everybody),
    },
    Test { name: "dax.failure.an_unmapped_page_is_marked", covers: "P4", run: |ctx| Device::with(ctx, MIB2, unmapped) },
    Test { name: "dax.failure.foreign_frames_are_refused", covers: "P4", run: |ctx| Device::with(ctx, MIB2, foreign) },
    Test {
        name: "dax.failure.pre_remove_marks_nothing",
        covers: "N10",
        run: |ctx| Device::with(ctx, MIB2, pre_remove),
    },
    Test {
        name: "dax.direct_map.what_is_mapped_is_not_mapped_again",
        covers: "A6",
        run: |ctx| Device::with(ctx, MIB2, mapped_once),
    },
    Test { name: "dax.failure.a_write_heals_the_page", covers: "P3", run: |ctx| Device::with(ctx, MIB2, heals) },
    Test { name: "dax.failure.a_pin_survives_it", covers: "P1 G8", run: |ctx| Device::with(ctx, MIB2, pin_survives) },
    Test { name: "dax.block.what_was_written_is_read", covers: "", run: |ctx| Device::with(ctx, MIB2, round_trip) },
    Test { name: "dax.block.bad_requests_are_refused", covers: "", run: |ctx| Device::with(ctx, MIB2, bad_requests) },
    Test { name: "dax.block.ends_with_the_device", covers: "R1", run: |ctx| Device::with(ctx, MIB2, block_ends) },
    Test {
        name: "dax.file.misaligned_requests_are_refused",
        covers: "L2",
        run: |ctx| Device::with_leaf(ctx, GIB, PageSize::Size1G, misaligned),
    },
    Test { name: "dax.idle.takes_almost_nothing", covers: "R4", run: idle_bytes },
    Test { name: "dax.idle.costs_its_steps", covers: "R2 R4 R6", run: idle_cost },
    Test {
        name: "dax.idle.metadata_goes_with_its_last_user",
        covers: "R4 R10",
        run: |ctx| Device::with(ctx, 2 * MIB2, metadata_goes),
    },
];

/// Leaves of the direct map are stored by the run: one that is there already stops all of its run, and stays.
fn mapped_once(_: &mut Ctx, device: &Device) -> Result<(), String> {
    let (whole, nr) = (device.frames, device.frames.nr_pages());
    let parts = [(0, nr), (0, 1), (nr - 1, 1), (nr / 2, nr / 2)];
    for (first, nr) in parts {
        let part = PfnRange::new(whole.start().add(first), nr).ok_or("no range")?;
        check_eq!(paging::map_device(part), Err(paging::MapError::Occupied), "page {first} and {nr} in all, again");
    }
    let read = bytes::read(0, device.size_bytes() - 8, 8)?;
    check_eq!(read.len(), 8, "bytes at the end of the device afterwards");
    Ok(())
}

/// Lets the frame of page `n` fail; answers how many VMAs mapped it.
fn fail(device: &Device, n: u64) -> Result<usize, String> {
    let failure = memory_failure(mm(), device.pfn(n), FailureKind::Media).map_err(|error| format!("{error}"))?;
    Ok(failure.users.len())
}

pub(super) fn poisoned(va: VirtAddr) -> Signal {
    Signal::SigBus { addr: va, len_bytes: PAGE_SIZE, cause: SigBusCause::Poisoned }
}

fn lost_page(_: &mut Ctx, device: &Device) -> Result<(), String> {
    for (first, size) in [(0, PageSize::Size4K), (512, PageSize::Size2M)] {
        let space = new_space("victim")?;
        device.map(&space, BASE, page(first), MIB2, size)?;
        for n in [6, 7, 8, 511] {
            write_frame(device.pfn(first + n), stamp(n, 1));
        }
        space.populate(BASE, MIB2, Access::Write).map_err(|error| format!("populate: {error}"))?;
        check_eq!(fail(device, first + 7), Ok(1), "mappings of the page, {size}");
        run_in(here(), &space, move || {
            for n in [6, 8, 511] {
                check_eq!(user::read_u64(at(page(n))), Ok(stamp(n, 1)), "page {n}, which is sound, {size}");
            }
            let lost = at(page(7));
            let inside = VirtAddr::new(lost.as_u64() + 80);
            check_eq!(user::read_u64(inside), Err(poisoned(lost)), "load from the lost page, {size}");
            check_eq!(user::write_u64(lost, 1), Err(poisoned(lost)), "store to the lost page, {size}");
            Ok(())
        })?;
    }
    Ok(())
}

fn everybody(_: &mut Ctx, device: &Device) -> Result<(), String> {
    let reached = Arc::new(AtomicU64::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let (mut hit, mut sound) = (alloc::vec::Vec::new(), alloc::vec::Vec::new());
    for cpu in crate::cpu::percpu::online().iter() {
        for (n, list) in [(3, &mut hit), (4, &mut sound)] {
            let space = new_space("reader")?;
            device.map(&space, BASE, 0, page(8), PageSize::Size4K)?;
            let (reached, stop) = (Arc::clone(&reached), Arc::clone(&stop));
            list.push(spawn_in(cpu, &space, move || {
                user::read_u64(at(page(n)))?;
                reached.fetch_add(1, Ordering::Release);
                while !stop.load(Ordering::Acquire) {
                    user::read_u64(at(page(n)))?;
                    arch::cpu::pause();
                }
                Ok(())
            }));
        }
    }
    wait_until(|| reached.load(Ordering::Acquire) == (hit.len() + sound.len()) as u64);
    let failure = memory_failure(mm(), device.pfn(3), FailureKind::Media).map_err(|error| format!("{error}"))?;
    check_eq!(failure.users.len(), hit.len() + sound.len(), "mappings of the page");
    let rounds = failure.stats.rounds;
    drop(failure);
    for task in &hit {
        check_eq!(sched::join(task), Err(poisoned(at(page(3)))), "end of {task:?}, which reads the lost page");
    }
    stop.store(true, Ordering::Release);
    for task in &sound {
        check_eq!(sched::join(task), Ok(()), "end of {task:?}, which reads its neighbour");
    }
    check_eq!(rounds, 1, "shootdowns for all address spaces");
    Ok(())
}

fn unmapped(_: &mut Ctx, device: &Device) -> Result<(), String> {
    check_eq!(fail(device, 5), Ok(0), "mappings of a page that nobody maps");
    check_eq!(fail(device, 5), Ok(0), "the same once more");
    let again = memory_failure(mm(), device.pfn(5), FailureKind::Media).map(|failure| failure.was_poisoned);
    check_eq!(again, Ok(true), "whether it was known");
    let space = new_space("late")?;
    device.map(&space, BASE, 0, MIB2, PageSize::Size2M)?;
    run_in(here(), &space, || {
        let lost = at(page(5));
        check_eq!(user::read_u64(lost), Err(poisoned(lost)), "load from the lost page");
        check!(user::read_u64(at(page(4))).is_ok(), "its neighbour cannot be read");
        Ok(())
    })?;
    let lost = space.translate(at(page(5)));
    check_eq!(lost, None, "leaf over the lost page");
    Ok(())
}

fn foreign(_: &mut Ctx, device: &Device) -> Result<(), String> {
    let ram = memory::alloc(0).ok_or("no memory")?;
    let beyond = device.frames.end();
    let below = Pfn::new(device.frames.start().as_u64() - 1);
    let huge = Pfn::new((1 << 40) - 1);
    let mut frames = vec![ram, below, huge, Pfn::new(0)];
    // Where a second NVDIMM follows without a gap, that frame is somebody's, but nobody has attached it.
    frames.push(beyond);
    for pfn in frames {
        let refused = memory_failure(mm(), pfn, FailureKind::Media).map(|failure| failure.users.len());
        check_eq!(refused, Err(NoSuchFrame(pfn)), "failure of frame {pfn}");
    }
    memory::free(ram, 0);
    let text = format!("{}", NoSuchFrame(beyond));
    check!(text.contains(&format!("{beyond}")), "the message does not name the frame: {text}");
    Ok(())
}

fn pre_remove(_: &mut Ctx, device: &Device) -> Result<(), String> {
    let space = new_space("user")?;
    device.map(&space, BASE, 0, page(8), PageSize::Size4K)?;
    space.populate(BASE, page(8), Access::Write).map_err(|error| format!("populate: {error}"))?;
    write_frame(device.pfn(2), stamp(2, 1));
    let failure = memory_failure(mm(), device.pfn(2), FailureKind::PreRemove).map_err(|error| format!("{error}"))?;
    check_eq!((failure.users.len(), failure.stats.leaves), (1, 1), "(mappings, leaves) that went");
    check_eq!(space.translate(at(page(2))), None, "the leaf");
    drop(failure);
    // Nothing is marked: the page can be faulted in again.
    run_in(here(), &space, || {
        check_eq!(user::read_u64(at(page(2))), Ok(stamp(2, 1)), "the page afterwards");
        Ok(())
    })?;
    let block = devices::block(0).map_err(|error| format!("{error}"))?;
    check!(block.bad_blocks().is_empty(), "bad blocks: {:?}", block.bad_blocks());
    Ok(())
}

fn heals(_: &mut Ctx, device: &Device) -> Result<(), String> {
    let space = new_space("user")?;
    device.map(&space, BASE, 0, page(8), PageSize::Size4K)?;
    space.populate(BASE, page(8), Access::Write).map_err(|error| format!("populate: {error}"))?;
    fail(device, 1)?;
    let block = devices::block(0).map_err(|error| format!("{error}"))?;
    let first = SECTORS_PER_PAGE;
    let mut bytes = vec![0; PAGE_SIZE as usize];
    let lost = Err(BlockError::Io { sector: first });
    check_eq!(block.read(first, &mut bytes), lost, "reading the lost page");
    check_eq!(block.read(0, &mut vec![0; 2 * PAGE_SIZE as usize]), lost, "reading it and its neighbour");
    check_eq!(block.read(0, &mut bytes), Ok(()), "reading its neighbour");
    let bad: u64 = block.bad_blocks().iter().map(|run| run.nr_sectors).sum();
    check_eq!(bad, SECTORS_PER_PAGE, "bad sectors");
    let last = first + SECTORS_PER_PAGE - 1;
    check_eq!(block.write(last, &bytes[..SECTOR]), Err(BlockError::Io { sector: last }), "writing a part of it");
    bytes.fill(0xa5);
    check_eq!(block.write(first, &bytes), Ok(()), "writing all of it");
    check!(block.bad_blocks().is_empty(), "bad blocks: {:?}", block.bad_blocks());
    bytes.fill(0);
    check_eq!(block.read(first, &mut bytes), Ok(()), "reading it again");
    check!(bytes.iter().all(|&byte| byte == 0xa5), "what was written is not what is read");
    run_in(here(), &space, || {
        check_eq!(user::read_u64(at(page(1))), Ok(0xa5a5_a5a5_a5a5_a5a5), "the healed page through the old mapping");
        Ok(())
    })
}

fn pin_survives(_: &mut Ctx, device: &Device) -> Result<(), String> {
    use mm::gup::GupFlags;
    use mm::pins::PinnedPages;
    let space = new_space("user")?;
    device.map(&space, BASE, 0, page(8), PageSize::Size4K)?;
    let pins = PinnedPages::pin(&space, BASE, 1, GupFlags::WRITE).map_err(|error| format!("pin: {error}"))?;
    fail(device, 0)?;
    let folio = mm().meta.inspect(device.pfn(0)).ok_or("the metadata went although the page is pinned")?;
    check!(folio.poisoned, "the pinned page is not marked");
    check_eq!((folio.counts.refs, folio.counts.pins), (1, 1), "(references, pins)");
    drop(pins);
    check_eq!(mm().meta.inspect(device.pfn(0)), None, "metadata after the unpin");
    // The page map remembers, though the metadata went.
    run_in(here(), &space, || {
        check_eq!(user::read_u64(BASE), Err(poisoned(BASE)), "access after the unpin");
        Ok(())
    })
}

fn round_trip(_: &mut Ctx, device: &Device) -> Result<(), String> {
    let block = devices::block(0).map_err(|error| format!("{error}"))?;
    let sectors = block.nr_sectors();
    check_eq!(sectors, device.size_bytes() / SECTOR_BYTES, "sectors of the device");
    let metadata = mm().ledger.count(Kind::MetadataBytes);
    for (first, nr) in [(0, 1), (7, 2), (sectors - 3, 3), (1, 129)] {
        let written: vec::Vec<u8> = (0..nr * SECTOR).map(|n| (n * 7 + first as usize) as u8).collect();
        check_eq!(block.write(first, &written), Ok(()), "write of {nr} sectors at {first}");
        check_eq!(block.flush(), Ok(()), "flush");
        let mut read = vec![0; nr * SECTOR];
        check_eq!(block.read(first, &mut read), Ok(()), "read of {nr} sectors at {first}");
        check!(read == written, "what was read at sector {first} is not what was written");
    }
    check_eq!(mm().ledger.count(Kind::MetadataBytes), metadata, "metadata after transfers");
    // The same bytes through a mapping.
    let space = new_space("mapped")?;
    device.map(&space, BASE, 0, page(1), PageSize::Size4K)?;
    let mut sector = [0; SECTOR];
    check_eq!(block.read(1, &mut sector), Ok(()), "read of sector 1");
    run_in(here(), &space, move || {
        let mut seen = [0; SECTOR];
        check_eq!(user::copy_from(&mut seen, at(SECTOR_BYTES)), Ok(()), "copy through the mapping");
        check!(seen == sector, "the mapping and the block path do not agree");
        Ok(())
    })
}

fn bad_requests(_: &mut Ctx, _: &Device) -> Result<(), String> {
    let block = devices::block(0).map_err(|error| format!("{error}"))?;
    let nr_sectors = block.nr_sectors();
    let beyond = Err(BlockError::OutOfRange { nr_sectors });
    let mut bytes = vec![0; 2 * SECTOR];
    for first in [nr_sectors, nr_sectors - 1, u64::MAX, u64::MAX - 1] {
        check_eq!(block.read(first, &mut bytes), beyond, "read of 2 sectors at {first}");
        check_eq!(block.write(first, &bytes), beyond, "write of 2 sectors at {first}");
    }
    for len in [1, SECTOR - 1, SECTOR + 1] {
        let crooked = Err(BlockError::Misaligned { len_bytes: len });
        check_eq!(block.read(0, &mut bytes[..len]), crooked, "read of {len} bytes");
        check_eq!(block.write(0, &bytes[..len]), crooked, "write of {len} bytes");
    }
    check_eq!(block.read(0, &mut []), Ok(()), "read of nothing");
    check_eq!(block.read(nr_sectors, &mut []), Ok(()), "read of nothing at the end");
    check!(bytes::read(0, nr_sectors * SECTOR_BYTES - 1, 2).is_err(), "bytes beyond the end were read");
    check!(bytes::read(0, 0, 0).is_err(), "zero bytes were read");
    check!(bytes::read(9999, 0, 1).is_err(), "an NVDIMM that is not there was read");
    Ok(())
}

fn block_ends(_: &mut Ctx, _: &Device) -> Result<(), String> {
    let block = devices::block(0).map_err(|error| format!("{error}"))?;
    let stop = Arc::new(AtomicBool::new(false));
    let served = Arc::new(AtomicU64::new(0));
    let reader = |cpu| {
        let (block, served, stop) = (Arc::clone(&block), Arc::clone(&served), Arc::clone(&stop));
        sched::spawn("block", cpu, None, move || {
            let mut bytes = [0; SECTOR];
            while block.read(0, &mut bytes).is_ok() && !stop.load(Ordering::Acquire) {
                served.fetch_add(1, Ordering::Release);
                sched::yield_now();
            }
            Ok(())
        })
    };
    let cpus = if others().is_empty() { crate::cpu::percpu::online() } else { others() };
    let tasks: vec::Vec<_> = cpus.iter().map(reader).collect();
    wait_until(|| served.load(Ordering::Acquire) > 8 * tasks.len() as u64);
    let report = devices::remove(0, Method::Ranged).map_err(|error| format!("removal: {error}"));
    // They end because the device says so, not because they are told.
    for task in &tasks {
        check_eq!(sched::join(task), Ok(()), "end of {task:?}");
    }
    no_problems(&*report?)?;
    check_eq!(block.read(0, &mut [0; SECTOR]), Err(BlockError::NoSuchDevice), "read after the removal");
    check_eq!(block.write(0, &[0; SECTOR]), Err(BlockError::NoSuchDevice), "write after the removal");
    check_eq!(block.flush(), Err(BlockError::NoSuchDevice), "flush after the removal");
    Ok(())
}

/// Attaches the device and measures what that takes: frames of RAM (tables of the direct map among them), small heap,
/// page metadata.
fn idle_bytes(ctx: &mut Ctx) -> Result<(), String> {
    let Some(slot) = devices::slots().first() else {
        ctx.skip("there is no NVDIMM");
        return Ok(());
    };
    if !paging::has_gib_leaves() {
        ctx.skip("this CPU has no 1 GiB leaves, so that the direct map grows with the device");
        return Ok(());
    }
    let (books, small) = (Books::now(), heap::usage().0);
    devices::attach(0).map_err(|error| format!("attach: {error}"))?;
    let frames = Books::now().frames() - books.frames();
    let small = heap::usage().0.saturating_sub(small) as u64;
    let metadata = mm().ledger.count(Kind::MetadataBytes);
    let report = devices::remove(0, Method::Ranged).map_err(|error| format!("removal: {error}"))?;
    no_problems(&report)?;
    // The tables right below the root are there since boot, for every device that may come; a device's share of them
    // counts as its own.
    const TABLE_SPAN: u64 = 512 << (30 - PAGE_SHIFT);
    let tables = slot.frames.end().as_u64().div_ceil(TABLE_SPAN) - slot.frames.start().as_u64() / TABLE_SPAN;
    let total = (frames + tables) * PAGE_SIZE + small;
    let mib = slot.frames.nr_pages() >> (20 - PAGE_SHIFT);
    ctx.note(format_args!(
        "{mib} MiB idle: {frames} frames, {tables} tables since boot, {small} bytes of heap, {metadata} of metadata"
    ));
    check_eq!(metadata, 0, "page metadata of an idle device, in bytes");
    check!(total <= IDLE_BYTES, "an idle device of {mib} MiB takes {total} bytes");
    books.compare()
}

/// Instructions to attach and to remove the device, which nobody uses. They follow the steps, and a store for each half TiB of the
/// kernel's own mapping: the same bound holds for 64 MiB and for 6 TiB.
fn idle_cost(ctx: &mut Ctx) -> Result<(), String> {
    let Some(slot) = devices::slots().first() else {
        ctx.skip("there is no NVDIMM");
        return Ok(());
    };
    if !paging::has_gib_leaves() || !time::is_deterministic() {
        ctx.skip("instructions are not counted, or this CPU has no 1 GiB leaves");
        return Ok(());
    }
    let bound = idle::idle_bound(slot.frames.nr_pages());
    let (attach, remove) = idle::idle(0)?;
    let gib = slot.frames.nr_pages().div_ceil(PageSize::Size1G.nr_pages());
    ctx.note(format_args!("{attach} instructions to attach, {remove} to remove {gib} GiB; at most {bound}"));
    check!(attach.max(remove) <= bound, "{attach} instructions to attach, {remove} to remove; at most {bound}");
    Ok(())
}

fn metadata_goes(_: &mut Ctx, device: &Device) -> Result<(), String> {
    let count = || mm().ledger.count(Kind::MetadataBytes);
    check_eq!(count(), 0, "metadata of an idle device");
    let space = new_space("user")?;
    device.map(&space, BASE, 0, 2 * MIB2, PageSize::Size4K)?;
    space.populate(BASE, page(1), Access::Write).map_err(|error| format!("populate: {error}"))?;
    let one = count();
    check!(one > 0, "a page in use has no metadata");
    space.populate(BASE, MIB2, Access::Write).map_err(|error| format!("populate: {error}"))?;
    check_eq!(count(), one, "metadata of the pages of one 2 MiB block: one chunk");
    space.populate(BASE, 2 * MIB2, Access::Write).map_err(|error| format!("populate: {error}"))?;
    check!(count() > one, "a second block has no metadata");
    space.unmap(at(MIB2), MIB2).map_err(|error| format!("unmap: {error}"))?;
    check_eq!(count(), one, "metadata once the second block is unmapped");
    drop(space);
    check_eq!(count(), 0, "metadata once nobody uses the device");
    // A large folio is one page of metadata, whatever its size.
    let large = new_space("large")?;
    device.map(&large, BASE, 0, MIB2, PageSize::Size2M)?;
    large.populate(BASE, MIB2, Access::Write).map_err(|error| format!("populate: {error}"))?;
    check!(count() < one, "the metadata of one 2 MiB folio, {} bytes, is no less than that of 512 pages", count());
    drop(large);
    check_eq!(count(), 0, "metadata at the end");
    Ok(())
}

/// Every refusal says what would have been right: maps of each alignment, and a file over frames that begin crookedly.
fn misaligned(_: &mut Ctx, device: &Device) -> Result<(), String> {
    let space = new_space("crooked")?;
    for (size, words) in [(PageSize::Size2M, "multiples of 2MiB"), (PageSize::Size1G, "multiples of 1GiB")] {
        let (ops, leaf) = (device.open_exactly(size)?, size.bytes());
        for (va, len, offset) in [(at(page(1)), leaf, 0), (BASE, leaf - page(1), 0), (BASE, leaf, 1)] {
            let refused = space.map(va, len, Prot::USER_WRITE, &ops, offset).map_err(|error| format!("{error}"));
            check!(
                refused.as_ref().is_err_and(|line| line.contains(words)),
                "{len} bytes at {va} from page {offset} on, where {size} is required: {refused:?}"
            );
        }
        check_eq!(space.map(BASE, leaf, Prot::USER_WRITE, &ops, 0).is_ok(), true, "{size}, aligned");
        space.unmap(BASE, leaf).map_err(|error| format!("unmap: {error:?}"))?;
    }
    // A device of its own on a part of the frames, which nobody announces.
    let frames = PfnRange::new(device.pfn(1), 1024).ok_or("no frames")?;
    let map = DevPagemap::new(MemoryKind::DevDax, [frames]).map_err(|error| format!("{error}"))?;
    let live = alloc_dax("crooked", &map, DataCache::Coherent, &mm().ledger).map_err(|error| format!("{error}"))?;
    for (size, bytes) in [(PageSize::Size2M, "2097152"), (PageSize::Size1G, "1073741824")] {
        let expected = Err(format!("misaligned: a multiple of {bytes} bytes is required"));
        let made = DevDax::new(mm(), live.device(), size).map(drop).map_err(|error| format!("{error}"));
        check_eq!(made, expected, "a file of {size}");
        let file = DevDax::new(mm(), live.device(), PageSize::Size4K).map_err(|error| format!("{error}"))?;
        let opened = file.open(OpenOptions::exactly(size)).map(drop).map_err(|error| format!("{error}"));
        check_eq!(opened, expected, "an open for {size}");
    }
    Ok(())
}
