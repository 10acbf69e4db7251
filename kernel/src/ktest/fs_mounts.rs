//! Tests of who may mount, unmount and make a file system while somebody else does.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, Ordering};

use dax::holder::{Holder, Role};
use dax::removal::Method;
use fs::error::ShutdownReason;
use fs::freeze::FreezeHolder;
use fs::layout::Label;
use mm::entry::Prot;
use mm::pagemap::MemoryKind;
use mm::sync::Mutex;

use crate::ktest::fixtures::{at, here, run_in};
use crate::ktest::fs::{cx, let_go, numbered, said, space_with, with_fs};
use crate::ktest::test::{Ctx, Test, check, check_eq};
use crate::pmem::devices;
use crate::pmem::fs_device::{self, Owned};
use crate::pmem::mounts::{self, Fs};
use crate::task::preempt::NoPreempt;
use crate::task::{sched, user};

/// The tests of this file.
pub const TESTS: &[Test] = &[
    Test {
        name: "fs.mounts.an_unmount_takes_no_other_out",
        covers: "",
        run: |ctx| with_fs(ctx, &[0], an_unmount_takes_no_other_out),
    },
    Test {
        name: "fs.mounts.nothing_is_made_below_a_mount_under_way",
        covers: "",
        run: |ctx| with_fs(ctx, &[0], nothing_is_made_below),
    },
    Test {
        name: "fs.mounts.nothing_comes_over_pages_that_are_still_mapped",
        covers: "E1",
        run: |ctx| with_fs(ctx, &[0], over_mapped_pages),
    },
    Test {
        name: "fs.mounts.whoever_owns_a_device_does_not_own_the_next_one",
        covers: "",
        run: |ctx| {
            with_fs(ctx, &[0], |_, _| {
                mounts::unmount(0)?;
                a_successor_is_another()
            })
        },
    },
];

/// A file system was shut down while a task maps a file of it. Nothing else is made or mounted there before the task ends.
fn over_mapped_pages(_: &mut Ctx, mounted: &[Arc<Fs>]) -> Result<(), String> {
    let fs = &mounted[0];
    let file = numbered(fs, "/file", 1)?;
    let space = space_with(&file, 1, Prot::USER_WRITE)?;
    run_in(here(), &space, || user::write_u64(at(0), 7).map_err(|signal| format!("{signal}")))?;
    fs.shut_down(ShutdownReason::MetadataIo);
    for (what, done) in [("mount", mounts::mount(0).map(drop)), ("mkfs", mounts::mkfs(0, Label::default()).map(drop))] {
        let is_refused = done.as_ref().is_err_and(|why| why.contains("still map or hold pages of device 0"));
        check!(is_refused, "{what} over a page that a task maps: {done:?}");
    }
    let_go(fs, file, space);
    drop(mounts::mount(0)?);
    mounts::unmount(0)
}

/// Who owns a device that leaves does not get the bytes of the next one in its place.
fn a_successor_is_another() -> Result<(), String> {
    struct Observer;
    impl Holder for Observer {
        fn name(&self) -> &str {
            "test"
        }
    }
    let old = devices::dax(0).map_err(said("device"))?;
    let registration = old.register_holder(Role::Owner, Arc::new(Observer)).map_err(said("owner"))?;
    devices::remove_quietly(0, Method::Ranged).map_err(said("removal"))?;
    devices::attach_as(0, MemoryKind::FsDax).map_err(said("attach"))?;
    let owned = Owned::by(0, registration).map(drop);
    check!(owned.as_ref().is_err_and(|why| why.contains("has left meanwhile")), "the next device's bytes: {owned:?}");
    Ok(())
}

/// Turns that the other task has to come to its wait.
const TURNS: usize = 20;

/// While an unmount waits for a thaw, the file system is shut down and another one mounted in its place: that one stays.
fn an_unmount_takes_no_other_out(_: &mut Ctx, mounted: &[Arc<Fs>]) -> Result<(), String> {
    let old = &mounted[0];
    old.freeze(FreezeHolder::Kernel).map_err(|error| format!("freeze: {error:?}"))?;
    let (begun, answer) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(None)));
    let (its_begun, its_answer) = (Arc::clone(&begun), Arc::clone(&answer));
    // Of this CPU: it is where it waits while we run.
    let unmounter = sched::spawn("unmounter", arch::percpu::cpu(), None, move || {
        its_begun.store(true, Ordering::Relaxed);
        let said = mounts::unmount(0);
        *its_answer.lock() = Some(said);
        Ok(())
    });
    while !begun.load(Ordering::Relaxed) {
        sched::yield_now();
    }
    (0..TURNS).for_each(|_| sched::yield_now());
    check_eq!(unmounter.exit(), None, "end of the unmount of a frozen file system");
    let new = {
        let _stays = NoPreempt::new();
        old.shut_down(ShutdownReason::ForcedUnmount);
        mounts::mount(0)
    };
    check_eq!(sched::join(&unmounter), Ok(()), "end of the task");
    let (new, found) = (new?, mounts::get(0)?);
    check_eq!(answer.lock().take(), Some(Ok(())), "answer of the unmount");
    check!(Arc::ptr_eq(&new, &found), "another file system is mounted");
    new.create(&cx(), "/new", true).map_err(said("a file in the new one"))?;
    Ok(())
}

/// A mount owns the device from its first step on, and is found as mounted after its last.
fn nothing_is_made_below(_: &mut Ctx, mounted: &[Arc<Fs>]) -> Result<(), String> {
    mounted[0].create(&cx(), "/kept", true).map_err(said("create"))?;
    mounts::unmount(0)?;
    let under_way = fs_device::own(0, "test")?;
    let answers = [
        mounts::mkfs(0, Label::default()).map(drop),
        mounts::repair(0).map(drop),
        mounts::fsck(0).map(drop),
        mounts::mount(0).map(drop),
    ];
    for answer in answers {
        let is_refused = answer.as_ref().is_err_and(|why| why.contains("is being mounted"));
        check!(is_refused, "beside a mount under way: {answer:?}");
    }
    drop(under_way);
    mounts::mount(0)?.stat(&cx(), "/kept").map_err(said("the file from before"))?;
    Ok(())
}
