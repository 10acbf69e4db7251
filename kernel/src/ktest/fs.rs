//! Tests of the file system as the kernel mounts it: operations, mappings, pins against truncate, the removal of the
//! device under it, failures of its pages.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use dax::removal::Method;
use fs::error::{FsError, ShutdownReason};
use fs::freeze::FreezeHolder;
use fs::layout::Label;
use fs::lock_order::Context;
use mm::addr::{PAGE_SHIFT, PAGE_SIZE, PageSize, VirtAddr};
use mm::entry::Prot;
use mm::gup::{GupError, GupFlags};
use mm::pagemap::MemoryKind;
use mm::pins::PinnedPages;
use mm::space::SigBusCause;

use crate::ktest::fixtures::{
    BASE, Books, at, here, new_space, no_problems, others, read_frame, run_in, spawn_in, wait_until, write_frame,
};
use crate::ktest::test::{Ctx, Test, check, check_eq};
use crate::mem::machine::{Space, mm};
use crate::pmem::mounts::{self, File, Fs};
use crate::pmem::{bytes, devices};
use crate::task::tcb::{SigBus, Signal, Task};
use crate::task::{sched, user};
use crate::trap::memory_error;

const MIB2: u64 = PageSize::Size2M.bytes();
/// Smallest device on which these tests run.
const MIN_BYTES: u64 = 32 << 20;

/// The tests of this file.
pub const TESTS: &[Test] = &[
    Test { name: "fs.calls.every_operation", covers: "", run: |ctx| with_fs(ctx, &[0], operations) },
    Test { name: "fs.mmap.leaves_and_rights", covers: "", run: |ctx| with_fs(ctx, &[0], leaves_and_rights) },
    Test { name: "fs.pins.long_term_is_refused", covers: "L1 L3", run: |ctx| with_fs(ctx, &[0], long_term) },
    Test { name: "fs.mmap.truncate_unmaps", covers: "E2", run: |ctx| with_fs(ctx, &[0], truncate_unmaps) },
    Test { name: "fs.pins.truncate_waits", covers: "E2 E4 E9", run: |ctx| with_fs(ctx, &[0], truncate_waits) },
    Test { name: "fs.pins.an_orphan_is_waited_for", covers: "E5 E6 E8", run: |ctx| with_fs(ctx, &[0], orphan) },
    Test { name: "fs.freeze.changes_wait", covers: "", run: |ctx| with_fs(ctx, &[0], freeze) },
    Test { name: "fs.failure.of_a_page", covers: "P1 P3", run: |ctx| with_fs(ctx, &[0], page_fails) },
    Test { name: "fs.failure.of_metadata", covers: "N12", run: |ctx| with_fs(ctx, &[0], metadata_fails) },
];

pub(crate) fn cx() -> Context {
    Context::new()
}

/// An error as a test's message.
pub(crate) fn said<E: core::fmt::Display>(what: &'static str) -> impl Fn(E) -> String {
    move |error| format!("{what}: {error}")
}

/// Attaches the devices for file systems, makes and mounts one on each, does `work`, unmounts, checks what is on the
/// media, removes the devices, and compares the books.
pub(crate) fn with_fs(
    ctx: &mut Ctx,
    slots: &[usize],
    work: fn(&mut Ctx, &[Arc<Fs>]) -> Result<(), String>,
) -> Result<(), String> {
    for &slot in slots {
        match devices::slots().get(slot) {
            None => ctx.skip(format!("there is no device {slot}")),
            Some(found) if found.frames.nr_pages() << PAGE_SHIFT < MIN_BYTES => ctx.skip("the device is too small"),
            Some(_) if devices::block(slot).is_ok() => ctx.skip("the device is in use"),
            Some(_) => match devices::check_writable(slot) {
                Err(reason) => ctx.skip(reason),
                Ok(()) => continue,
            },
        }
        return Ok(());
    }
    let before = Books::now();
    let mut mounted = Vec::new();
    for &slot in slots {
        devices::attach_as(slot, MemoryKind::FsDax).map_err(said("attach"))?;
        if devices::has_dax(slot).map_err(said("dax"))? {
            mounts::mkfs(slot, Label::default())?;
            mounted.push(mounts::mount(slot)?);
        } else {
            ctx.skip("the device came up without DAX");
        }
    }
    let worked = if mounted.len() == slots.len() { work(ctx, &mounted) } else { Ok(()) };
    drop(mounted);
    let ended: Result<Vec<()>, String> = slots.iter().map(|&slot| end(slot)).collect();
    worked.and(ended.map(drop)).and_then(|()| before.compare())
}

/// Unmounts what is mounted, looks for damage, and removes the device, which is idle then.
fn end(slot: usize) -> Result<(), String> {
    let mut unmounted = Ok(());
    if mounts::get(slot).is_ok() {
        unmounted = mounts::unmount(slot);
    }
    let checked = match mounts::fsck(slot) {
        Ok(report) if report.is_clean() => Ok(()),
        Ok(report) => Err(format!("damage: {:?}", report.problems)),
        // Nothing is attached, or without DAX, or a block is poisoned: the test has seen to that.
        Err(_) => Ok(()),
    };
    let removed = match devices::remove(slot, Method::Ranged) {
        Ok(report) => no_problems(&report),
        Err(error) => Err(format!("removal: {error}")),
    };
    unmounted.and(checked).and(removed)
}

/// A file of `pages` pages, each of which begins with its number.
pub(crate) fn numbered(fs: &Arc<Fs>, path: &str, pages: u64) -> Result<Arc<File>, String> {
    let file = fs.create(&cx(), path, true).map_err(said("create"))?;
    let mut bytes = vec![0; (pages * PAGE_SIZE) as usize];
    for nr in 0..pages {
        bytes[(nr * PAGE_SIZE) as usize..][..8].copy_from_slice(&nr.to_le_bytes());
    }
    fs.write_all(&cx(), &file, 0, &bytes).map_err(said("write"))?;
    Ok(file)
}

/// A new address space with the file's first pages at [`BASE`].
pub(crate) fn space_with(file: &Arc<File>, pages: u64, prot: Prot) -> Result<Arc<Space>, String> {
    let space = new_space("mapper")?;
    space.map(BASE, pages * PAGE_SIZE, prot, &file.ops(), 0).map_err(said("map"))?;
    Ok(space)
}

/// Lets go of a file and of a space that maps it.
pub(crate) fn let_go(fs: &Arc<Fs>, file: Arc<File>, space: Arc<Space>) {
    drop((file, space));
    fs.reap(&cx());
}

fn operations(_: &mut Ctx, mounted: &[Arc<Fs>]) -> Result<(), String> {
    let fs = &mounted[0];
    let free = fs.statfs().map_err(said("statfs"))?.free_blocks;
    fs.mkdir(&cx(), "/d").map_err(said("mkdir"))?;
    let file = numbered(fs, "/d/a", 16)?;
    fs.truncate(&cx(), &file, 5 * PAGE_SIZE).map_err(said("cut"))?;
    fs.truncate(&cx(), &file, 8 * PAGE_SIZE).map_err(said("grow"))?;
    fs.punch(&cx(), &file, PAGE_SIZE, PAGE_SIZE).map_err(said("punch"))?;
    let mut bytes = vec![0xff; (8 * PAGE_SIZE) as usize];
    check_eq!(fs.read(&cx(), &file, 0, &mut bytes), Ok(bytes.len()), "bytes read");
    let word = |nr: u64| u64::from_le_bytes(core::array::from_fn(|at| bytes[(nr * PAGE_SIZE) as usize + at]));
    check_eq!([word(0), word(1), word(2), word(4), word(6)], [0, 0, 2, 4, 0], "the first words of pages");
    fs.rename(&cx(), "/d/a", "/b").map_err(said("rename"))?;
    fs.link(&cx(), "/b", "/c").map_err(said("link"))?;
    let stat = fs.stat(&cx(), "/c").map_err(said("stat"))?;
    check_eq!((stat.size, stat.blocks, stat.nlink), (8 * PAGE_SIZE, 4, 2), "size, blocks, links");
    check_eq!(fs.stat(&cx(), "/d/a").err(), Some(FsError::NotFound), "the old name");
    check_eq!(fs.rmdir(&cx(), "/d"), Ok(()), "rmdir");
    let names: Vec<_> = fs.readdir(&cx(), "/").map_err(said("readdir"))?.into_iter().map(|entry| entry.name).collect();
    check_eq!(names, [b"b".to_vec(), b"c".to_vec()], "the names that are left");
    check_eq!(mounts::unmount(0).is_err(), true, "an unmount with an open file is refused");
    drop(file);
    fs.reap(&cx());
    fs.unlink(&cx(), "/b").map_err(said("unlink"))?;
    fs.unlink(&cx(), "/c").map_err(said("unlink"))?;
    let left = fs.statfs().map_err(said("statfs"))?.free_blocks;
    // The inode table may have grown by a block.
    check!(left + 1 >= free, "{free} blocks were free, now {left}");
    Ok(())
}

fn leaves_and_rights(_: &mut Ctx, mounted: &[Arc<Fs>]) -> Result<(), String> {
    let fs = &mounted[0];
    let small = numbered(fs, "/small", 4)?;
    let large = fs.create(&cx(), "/large", true).map_err(said("create"))?;
    fs.truncate(&cx(), &large, 2 * MIB2).map_err(said("grow"))?;
    let space = space_with(&small, 4, Prot::USER_READ)?;
    space.map(at(MIB2), 2 * MIB2, Prot::USER_WRITE, &large.ops(), 0).map_err(said("map"))?;
    run_in(here(), &space, || {
        check_eq!(user::read_u64(at(3 * PAGE_SIZE)), Ok(3), "a page of a file");
        check_eq!(user::write_u64(at(0), 1), Err(Signal::SigSegv { addr: at(0) }), "a store to a read-only mapping");
        check_eq!(user::write_u64(at(MIB2 + 8), 0x77), Ok(()), "a store to a hole");
        check_eq!(user::read_u64(at(MIB2 + 8)), Ok(0x77), "what was stored");
        Ok(())
    })?;
    let size = |va: VirtAddr| space.translate(va).map(|found| found.size);
    check_eq!(size(at(3 * PAGE_SIZE)), Some(PageSize::Size4K), "the leaf over a small file");
    check_eq!(size(at(MIB2)), Some(PageSize::Size2M), "the leaf over a whole hole of 2 MiB");
    let synced = fs.fsync(&cx(), &large).map_err(said("fsync"))?;
    check!(synced.ranges > 0 && synced.fenced, "fsync wrote nothing back: {synced:?}");
    let mut word = [0; 8];
    check_eq!(fs.read(&cx(), &large, 8, &mut word), Ok(8), "bytes read");
    check_eq!(u64::from_le_bytes(word), 0x77, "the call sees what the mapping stored");
    // Beyond the end may be mapped, and is a SIGBUS.
    fs.truncate(&cx(), &small, PAGE_SIZE).map_err(said("cut"))?;
    let lost = SigBus { addr: at(2 * PAGE_SIZE), len_bytes: PAGE_SIZE, cause: SigBusCause::BeyondEnd };
    run_in(here(), &space, move || {
        check_eq!(user::read_u64(at(2 * PAGE_SIZE)), Err(lost.into()), "a load beyond the end");
        Ok(())
    })?;
    drop(small);
    let_go(fs, large, space);
    Ok(())
}

fn long_term(_: &mut Ctx, mounted: &[Arc<Fs>]) -> Result<(), String> {
    let fs = &mounted[0];
    let file = numbered(fs, "/file", 8)?;
    let space = space_with(&file, 8, Prot::USER_WRITE)?;
    let inner = Arc::clone(&space);
    run_in(here(), &space, move || {
        let pinned = PinnedPages::pin(&inner, BASE, 8, GupFlags::WRITE).map_err(said("a transient pin"))?;
        check_eq!(mm().meta.totals().pins, 8, "transient pins");
        drop(pinned);
        // By the fast path: all is present now.
        let refused = PinnedPages::pin(&inner, BASE, 8, GupFlags::WRITE | GupFlags::LONGTERM).err();
        check_eq!(refused, Some(GupError::NotSupported(BASE)), "a long-term pin");
        check_eq!(mm().meta.totals().pins, 0, "pins after the refusal");
        Ok(())
    })?;
    let_go(fs, file, space);
    Ok(())
}

/// A copy engine: pins pages of the file through `space`, says so, and holds them until it is told to end.
fn engine(
    space: &Arc<Space>,
    cpu: usize,
    pages: u64,
    (pinned, stop): (&Arc<AtomicBool>, &Arc<AtomicBool>),
) -> Arc<Task> {
    let (pinned, stop, inner) = (Arc::clone(pinned), Arc::clone(stop), Arc::clone(space));
    spawn_in(cpu, space, move || {
        let pins = PinnedPages::pin(&inner, BASE, pages, GupFlags::WRITE);
        drop(inner);
        pinned.store(true, Ordering::Release);
        while !stop.load(Ordering::Acquire) {
            sched::yield_now();
        }
        drop(pins);
        Ok(())
    })
}

pub(crate) fn a_cpu() -> usize {
    others().iter().next().unwrap_or_else(here)
}

fn truncate_unmaps(_: &mut Ctx, mounted: &[Arc<Fs>]) -> Result<(), String> {
    let fs = &mounted[0];
    let file = numbered(fs, "/file", 8)?;
    let space = space_with(&file, 8, Prot::USER_WRITE)?;
    let (cutting, cut) = (Arc::clone(fs), Arc::clone(&file));
    let seen = run_in(a_cpu(), &space, move || {
        check!(user::read_u64(BASE).is_ok(), "a page of the file could not be read");
        cutting.truncate(&cx(), &cut, 0).map_err(said("truncate"))?;
        Ok(user::read_u64(BASE).is_ok())
    });
    let_go(fs, file, space);
    check_eq!(seen, Ok(false), "a page that the truncate has freed can be read");
    Ok(())
}

fn truncate_waits(_: &mut Ctx, mounted: &[Arc<Fs>]) -> Result<(), String> {
    let fs = &mounted[0];
    let file = numbered(fs, "/file", 8)?;
    let space = space_with(&file, 8, Prot::USER_WRITE)?;
    let (pinned, stop) = (Arc::default(), Arc::default());
    let engine = engine(&space, a_cpu(), 2, (&pinned, &stop));
    wait_until(|| pinned.load(Ordering::Acquire));
    let free = fs.statfs().map_err(said("statfs"))?.free_blocks;
    let done = Arc::new(AtomicBool::new(false));
    let (cutting, cut_done, cut_file) = (Arc::clone(fs), Arc::clone(&done), Arc::clone(&file));
    let cutter = sched::spawn("cutter", a_cpu(), None, move || {
        let cut = cutting.truncate(&cx(), &cut_file, 0);
        cut_done.store(cut.is_ok(), Ordering::Release);
        Ok(())
    });
    // It has come to where it waits when nobody reaches the pages any more.
    wait_until(|| space.translate(BASE).is_none());
    (0..64).for_each(|_| sched::yield_now());
    check!(!done.load(Ordering::Acquire), "the truncate returned while a page was pinned");
    // However long that takes: the console says who is waited for.
    let mut complaint = None;
    wait_until(|| {
        complaint = fs.last_complaint();
        complaint.is_some()
    });
    let complaint = complaint.unwrap_or_default();
    let names =
        ["has waited ", " pinned by mapper at ", "ktest/fs.rs:", " ms ago"].iter().all(|part| complaint.contains(part));
    check!(names, "the complaint does not name owner, place and age: {complaint}");
    check_eq!(fs.statfs().map_err(said("statfs"))?.free_blocks, free, "free blocks while a page is pinned");
    stop.store(true, Ordering::Release);
    check_eq!(sched::join(&engine), Ok(()), "end of the engine");
    check_eq!(sched::join(&cutter), Ok(()), "end of the cutter");
    check!(done.load(Ordering::Acquire), "the truncate failed");
    check_eq!(fs.statfs().map_err(said("statfs"))?.free_blocks, free + 8, "free blocks afterwards");
    drop((engine, cutter));
    let_go(fs, file, space);
    Ok(())
}

fn orphan(_: &mut Ctx, mounted: &[Arc<Fs>]) -> Result<(), String> {
    let fs = &mounted[0];
    let file = numbered(fs, "/file", 8)?;
    let free = fs.statfs().map_err(said("statfs"))?.free_blocks;
    let space = space_with(&file, 8, Prot::USER_WRITE)?;
    // A task pins pages, hands them to the engine, and ends; so does its address space, and the file is closed.
    let (inner, gone) = (Arc::clone(&space), Arc::downgrade(&space));
    let pinned =
        run_in(a_cpu(), &space, move || PinnedPages::pin(&inner, BASE, 8, GupFlags::WRITE).map_err(said("pin")))?;
    drop((file, space));
    // Now, while the file has a name: what is left of it later is the unlinker's. Who holds pins must not be the one who
    // waits for them.
    fs.reap(&cx());
    check!(gone.upgrade().is_none(), "somebody keeps the address space");
    let unlinking = Arc::clone(fs);
    let done = Arc::new(AtomicBool::new(false));
    let unlinked = Arc::clone(&done);
    let unlinker = sched::spawn("unlinker", a_cpu(), None, move || {
        let gone = unlinking.unlink(&cx(), "/file");
        unlinking.reap(&cx());
        unlinked.store(gone.is_ok(), Ordering::Release);
        Ok(())
    });
    wait_until(|| fs.stat(&cx(), "/file") == Err(FsError::NotFound));
    (0..64).for_each(|_| sched::yield_now());
    check!(!done.load(Ordering::Acquire), "the file was freed under a transfer");
    check_eq!(fs.statfs().map_err(said("statfs"))?.free_blocks, free, "free blocks during the transfer");
    // What others get meanwhile is none of the pages under transfer: the engine finds what was there, and stores.
    let_go_of_file(fs, numbered(fs, "/other", 64)?);
    let engine = sched::spawn("engine", a_cpu(), None, move || {
        let frames = pinned.frames().iter().flat_map(|run| (0..run.nr_pages()).map(|nr| run.start().add(nr)));
        for (nr, frame) in frames.enumerate() {
            if read_frame(frame) != nr as u64 {
                return Err(Signal::Killed);
            }
            write_frame(frame, !0);
        }
        drop(pinned);
        Ok(())
    });
    check_eq!(sched::join(&engine), Ok(()), "end of the engine: it finds what was pinned");
    check_eq!(sched::join(&unlinker), Ok(()), "end of the unlinker");
    check!(done.load(Ordering::Acquire), "the unlink failed");
    check_eq!(fs.statfs().map_err(said("statfs"))?.free_blocks, free + 8 - 64, "free blocks afterwards");
    let (other, mut word) = (fs.open(&cx(), "/other").map_err(said("open"))?, [0; 8]);
    for nr in 0..64 {
        check_eq!(fs.read(&cx(), &other, nr * PAGE_SIZE, &mut word), Ok(8), "bytes of the other file");
        check_eq!(u64::from_le_bytes(word), nr, "the other file's contents");
    }
    let_go_of_file(fs, other);
    Ok(())
}

fn freeze(_: &mut Ctx, mounted: &[Arc<Fs>]) -> Result<(), String> {
    let fs = &mounted[0];
    let file = numbered(fs, "/file", 1)?;
    fs.freeze(FreezeHolder::User).map_err(|error| format!("freeze: {error:?}"))?;
    let (begun, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (writing, begins, written, target) = (Arc::clone(fs), Arc::clone(&begun), Arc::clone(&done), Arc::clone(&file));
    // Of this CPU, so that our turns are its turns.
    let writer = sched::spawn("writer", here(), None, move || {
        begins.store(true, Ordering::Release);
        let wrote = writing.write(&cx(), &target, 0, b"later");
        written.store(wrote.is_ok(), Ordering::Release);
        Ok(())
    });
    wait_until(|| begun.load(Ordering::Acquire));
    (0..64).for_each(|_| sched::yield_now());
    check!(!done.load(Ordering::Acquire), "a write went through a frozen file system");
    fs.thaw(FreezeHolder::User).map_err(said("thaw"))?;
    check_eq!(sched::join(&writer), Ok(()), "end of the writer");
    check!(done.load(Ordering::Acquire), "the write failed after the thaw");
    drop((file, writer));
    fs.reap(&cx());
    Ok(())
}

fn page_fails(_: &mut Ctx, mounted: &[Arc<Fs>]) -> Result<(), String> {
    let fs = &mounted[0];
    let file = numbered(fs, "/file", 4)?;
    let space = space_with(&file, 4, Prot::USER_WRITE)?;
    run_in(here(), &space, || user::read_u64(at(PAGE_SIZE)).map(drop).map_err(|signal| format!("{signal}")))?;
    let Some(found) = space.translate(at(PAGE_SIZE)) else { return Err("nothing is mapped".into()) };
    let pfn = found.pfn_at(at(PAGE_SIZE));
    memory_error::fail(pfn);
    let poisoned = SigBus { addr: at(PAGE_SIZE), len_bytes: PAGE_SIZE, cause: SigBusCause::Poisoned };
    run_in(here(), &space, move || {
        check_eq!(user::read_u64(at(PAGE_SIZE)), Err(poisoned.into()), "the page that is lost");
        check_eq!(user::read_u64(at(2 * PAGE_SIZE)), Ok(2), "the page beside it");
        Ok(())
    })?;
    let read = fs.read(&cx(), &file, PAGE_SIZE, &mut [0; 8]);
    check!(matches!(read, Err(FsError::Media(_))), "a read of the lost page: {read:?}");
    check_eq!(fs.shutdown_reason(), None, "shut down by the loss of a file's page");
    let report = fs.last_notification().ok_or("the file system was not told")?;
    check_eq!((report.pre_remove, report.metadata, report.poisoned), (false, 0, 1), "the notification");
    // A store over a part of it is refused; a write of all of it makes the page usable again.
    check!(matches!(fs.write(&cx(), &file, PAGE_SIZE + 8, &[1]), Err(FsError::Media(_))), "a write of a part");
    check_eq!(fs.write_all(&cx(), &file, PAGE_SIZE, &[9; PAGE_SIZE as usize]), Ok(()), "a write of the whole page");
    let nines = u64::from_le_bytes([9; 8]);
    run_in(here(), &space, move || {
        check_eq!(user::read_u64(at(PAGE_SIZE)), Ok(nines), "the page that was written anew");
        Ok(())
    })?;
    // Lost again, and cut off with the file: whoever gets the block next gets one that works.
    memory_error::fail(pfn);
    let_go(fs, file, space);
    fs.unlink(&cx(), "/file").map_err(said("unlink"))?;
    let map = devices::dax(0).map_err(said("dax"))?;
    check!(map.pagemap().any_poisoned(pfn, 1), "the block is as it was while it is free");
    let pages = fs.statfs().map_err(said("statfs"))?.free_blocks.min(64);
    let_go_of_file(fs, numbered(fs, "/again", pages)?);
    check!(!map.pagemap().any_poisoned(pfn, 1), "none of {pages} blocks was the one that was lost");
    let again = fs.open(&cx(), "/again").map_err(said("open"))?;
    let mut bytes = vec![0; (pages * PAGE_SIZE) as usize];
    check_eq!(fs.read(&cx(), &again, 0, &mut bytes), Ok(bytes.len()), "bytes of the new file");
    let_go_of_file(fs, again);
    Ok(())
}

fn let_go_of_file(fs: &Arc<Fs>, file: Arc<File>) {
    drop(file);
    fs.reap(&cx());
}

/// Writes a whole page of device 0 through its block path, which heals it.
fn write_page(offset_bytes: u64, page: &[u8]) -> Result<(), String> {
    let block = devices::block(0).map_err(said("block"))?;
    block.write(offset_bytes / nvdimm::pmem::block::SECTOR_BYTES, page).map_err(said("write"))
}

fn metadata_fails(_: &mut Ctx, mounted: &[Arc<Fs>]) -> Result<(), String> {
    let fs = &mounted[0];
    let kept = bytes::read(0, 0, PAGE_SIZE as usize)?;
    memory_error::fail(devices::slots()[0].frames.start());
    check_eq!(fs.shutdown_reason(), Some(ShutdownReason::Corrupt), "after the loss of the superblock");
    check!(fs.create(&cx(), "/late", true).is_err(), "a file was made on a file system that is shut down");
    // So that the next test finds a whole device.
    write_page(0, &kept)
}
