//! Tests of a file system that is full, and of one whose superblock is lost.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec;
use core::sync::atomic::{AtomicBool, Ordering};

use fs::error::FsError;
use fs::mount::{MakeOptions, make};
use fs::pmem::Pmem;
use mm::addr::{PAGE_SIZE, PageSize};
use mm::entry::Prot;
use mm::space::SigBusCause;
use mm::sync::Mutex;
use spin::Once;

use crate::ktest::fixtures::{at, here, run_in, spawn_in, wait_until};
use crate::ktest::fs::{cx, let_go, numbered, said, space_with, with_fs};
use crate::ktest::test::{Ctx, Test, check, check_eq};
use crate::pmem::mounts::{self, Fs};
use crate::pmem::{devices, fs_device};
use crate::task::tcb::{Choice, SigBus};
use crate::task::{sched, user};
use crate::trap::memory_error;

const MIB2: u64 = PageSize::Size2M.bytes();
/// Size of the file system that is filled: a device takes long.
const SMALL: u64 = 16 << 20;
/// Pages of the file whose holes it cannot fill.
const HOLES: u64 = 8 * MIB2 / PAGE_SIZE;

/// The tests of this file.
pub const TESTS: &[Test] = &[
    Test { name: "fs.mmap.no_space_can_be_caught", covers: "", run: |ctx| with_fs(ctx, &[0], no_space) },
    Test {
        name: "fs.failure.who_maps_a_lost_page_is_told_without_a_touch",
        covers: "P1 N11",
        run: |ctx| with_fs(ctx, &[0], told_untouched),
    },
    Test { name: "fs.failure.of_the_superblock", covers: "M5", run: |ctx| with_fs(ctx, &[0], superblock_fails) },
];

/// The first [`SMALL`] bytes of a device.
struct Front(Arc<dyn Pmem>);

impl Pmem for Front {
    fn len_bytes(&self) -> u64 {
        SMALL
    }
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), FsError> {
        self.0.read(offset, buf)
    }
    fn store(&self, offset: u64, bytes: &[u8]) -> Result<(), FsError> {
        self.0.store(offset, bytes)
    }
    fn renew(&self, offset: u64, len: u64) -> Result<(), FsError> {
        self.0.renew(offset, len)
    }
    fn write_back(&self, offset: u64, len: u64) {
        self.0.write_back(offset, len);
    }
    fn fence(&self) -> Result<(), FsError> {
        self.0.fence()
    }
}

/// A task maps a file and has never touched the page that is lost: it is sent SIGBUS all the same, for a device that works in
/// its place faults nowhere.
fn told_untouched(_: &mut Ctx, mounted: &[Arc<Fs>]) -> Result<(), String> {
    let fs = &mounted[0];
    let file = numbered(fs, "/file", 4)?;
    let space = space_with(&file, 4, Prot::USER_WRITE)?;
    let pfn = run_in(here(), &space, || {
        user::read_u64(at(0)).map_err(|signal| format!("{signal}"))?;
        Ok(())
    })
    .and_then(|()| space.translate(at(0)).map(|found| found.pfn_at(at(0)).add(1)).ok_or("nothing is mapped".into()))?;
    let (failed, answer) = (Arc::new(AtomicBool::new(false)), Arc::new(Once::new()));
    let (has_failed, answer_to) = (Arc::clone(&failed), Arc::clone(&answer));
    let task = spawn_in(here(), &space, move || {
        wait_until(|| has_failed.load(Ordering::Acquire));
        answer_to.call_once(user::check_signal);
        Ok(())
    });
    memory_error::fail(pfn);
    failed.store(true, Ordering::Release);
    check_eq!(sched::join(&task), Ok(()), "end of the task");
    let poisoned = SigBus { addr: at(PAGE_SIZE), len_bytes: PAGE_SIZE, cause: SigBusCause::Poisoned };
    check_eq!(answer.get(), Some(&Err(poisoned.into())), "what the task was sent");
    check_eq!(fs.shutdown_reason(), None, "shut down by the loss of a file's page");
    drop(task);
    // Whole again, for whoever comes after this test.
    check_eq!(fs.write_all(&cx(), &file, PAGE_SIZE, &[0; PAGE_SIZE as usize]), Ok(()), "a write of the whole page");
    let_go(fs, file, space);
    Ok(())
}

/// Makes and mounts a small file system in place of the one that is there.
fn small_one() -> Result<Arc<Fs>, String> {
    mounts::unmount(0)?;
    let front: Arc<dyn Pmem> = Arc::new(Front(fs_device::memory(0)?));
    make(&front, &MakeOptions::default()).map_err(said("make"))?;
    mounts::mount(0)
}

/// A task stores to a hole of a file when nothing is free: it hears why, and goes on.
fn no_space(_: &mut Ctx, _: &[Arc<Fs>]) -> Result<(), String> {
    let fs = &small_one()?;
    let sparse = fs.create(&cx(), "/sparse", true).map_err(said("create"))?;
    fs.truncate(&cx(), &sparse, HOLES * PAGE_SIZE).map_err(said("longer"))?;
    let filler = fs.create(&cx(), "/filler", true).map_err(said("create"))?;
    for len in [MIB2, PAGE_SIZE] {
        let bytes = vec![1; len as usize];
        let mut offset = fs.stat(&cx(), "/filler").map_err(said("stat"))?.size;
        while fs.write(&cx(), &filler, offset, &bytes).is_ok() {
            offset += len;
        }
    }
    let space = space_with(&sparse, HOLES, Prot::USER_WRITE)?;
    let told = Arc::new(Mutex::new(None));
    let noted = Arc::clone(&told);
    run_in(here(), &space, move || {
        user::catch_sigbus(move |lost| {
            *noted.lock() = Some(*lost);
            Choice::GoOn
        });
        let refused = (0..HOLES).find(|nr| user::write_u64(at(nr * PAGE_SIZE), 1).is_err());
        check!(refused.is_some(), "every hole was filled");
        check_eq!(user::check_signal(), Ok(()), "a signal that was caught is pending");
        Ok(())
    })?;
    let lost = *told.lock();
    check_eq!(
        lost.map(|lost| (lost.len_bytes, lost.cause)),
        Some((PAGE_SIZE, SigBusCause::NoSpace)),
        "what was caught"
    );
    fs.truncate(&cx(), &filler, 0).map_err(said("cut"))?;
    let addr = lost.map(|lost| lost.addr).ok_or("nothing was caught")?;
    run_in(here(), &space, move || {
        check_eq!(user::write_u64(addr, 1), Ok(()), "the same store, with space");
        Ok(())
    })?;
    drop(filler);
    let_go(fs, sparse, space);
    Ok(())
}

/// The first superblock is lost while nothing is mounted: it is an I/O error for the checker, and the next mount renews it.
fn superblock_fails(_: &mut Ctx, _: &[Arc<Fs>]) -> Result<(), String> {
    mounts::unmount(0)?;
    let bad = || devices::block(0).map(|block| block.bad_blocks().len()).map_err(said("block device"));
    memory_error::fail(devices::slots()[0].frames.start());
    check_eq!(bad()?, 1, "lost runs");
    let report = mounts::fsck(0)?;
    check!(report.problems.iter().any(|line| line.contains("superblock at block 0")), "{:?}", report.problems);
    drop(mounts::mount(0)?);
    check_eq!(bad()?, 0, "lost runs after a mount");
    mounts::unmount(0)?;
    check!(mounts::fsck(0)?.is_clean(), "damage after the mount has renewed it");
    memory_error::fail(devices::slots()[0].frames.start());
    check_eq!(mounts::repair(0)?.map(|renewed| renewed.block), Some(0), "what a repair renews");
    check_eq!((bad()?, mounts::repair(0)?), (0, None), "what is lost after a repair, and what the next one renews");
    Ok(())
}
