//! Tests of what `fsync` writes back in the kernel, while tasks store and pin.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use mm::addr::PAGE_SIZE;
use mm::entry::Prot;
use mm::gup::GupFlags;
use mm::pins::PinnedPages;

use crate::ktest::fixtures::{at, here, run_in, spawn_in, wait_until};
use crate::ktest::fs::{a_cpu, cx, let_go, numbered, said, space_with, with_fs};
use crate::ktest::test::{Ctx, Test, check, check_eq};
use crate::pmem::mounts::Fs;
use crate::task::{sched, user};

/// The tests of this file.
pub const TESTS: &[Test] =
    &[Test { name: "fs.fsync.what_was_stored_since", covers: "", run: |ctx| with_fs(ctx, &[0], fsync) }];

/// `fsync` while another CPU stores to the page: it is write-protected each time, and no store goes unnoticed.
fn fsync(_: &mut Ctx, mounted: &[Arc<Fs>]) -> Result<(), String> {
    let fs = &mounted[0];
    let file = numbered(fs, "/file", 8)?;
    let space = space_with(&file, 8, Prot::USER_WRITE)?;
    let sync = || fs.fsync(&cx(), &file).map_err(said("fsync"));
    let writable = |nr: u64| space.translate(at(nr * PAGE_SIZE)).map(|found| found.entry.is_writable());
    run_in(here(), &space, || user::read_u64(at(0)).map(drop).map_err(|signal| format!("{signal}")))?;
    check_eq!((writable(0), sync()?.ranges), (Some(false), 0), "a page that was read");
    let (stop, stored) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (ends, counts) = (Arc::clone(&stop), Arc::clone(&stored));
    let storer = spawn_in(a_cpu(), &space, move || {
        while !ends.load(Ordering::Acquire) {
            user::write_u64(at(0), counts.fetch_add(1, Ordering::AcqRel))?;
            user::write_u64(at(2 * PAGE_SIZE), 1)?;
        }
        Ok(())
    });
    for _ in 0..64 {
        let before = stored.load(Ordering::Acquire);
        wait_until(|| stored.load(Ordering::Acquire) > before + 1 || storer.exit().is_some());
        // A whole store was made since the last one has returned.
        let synced = sync()?;
        check!(synced.fenced && synced.ranges <= 2, "fsync under stores: {synced:?}");
    }
    stop.store(true, Ordering::Release);
    check_eq!(sched::join(&storer), Ok(()), "end of the storer");
    sync()?;
    check_eq!((writable(0), writable(2)), (Some(false), Some(false)), "pages that are clean");
    let synced = sync()?;
    check_eq!((synced.ranges, synced.fenced), (0, false), "a second fsync");
    // A pin for stores is one of them, as long as it lasts.
    let pins = PinnedPages::pin(&space, at(3 * PAGE_SIZE), 1, GupFlags::WRITE).map_err(said("pin"))?;
    check_eq!([sync()?.ranges, sync()?.ranges], [1, 1], "fsync of a page that is pinned");
    drop(pins);
    check_eq!([sync()?.ranges, sync()?.ranges], [1, 0], "fsync after the pin");
    drop(storer);
    let_go(fs, file, space);
    Ok(())
}
