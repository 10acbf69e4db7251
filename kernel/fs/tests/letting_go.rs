//! Files that several CPUs let go of at once: each is freed once, and never in its number's second life.

mod rig;

use std::sync::Arc;

use fs::error::FsError;
use mm::addr::PAGE_SIZE;
use mm::gup::GupFlags;
use rig::*;

/// Two let go of an unlinked file while a page of it is pinned: one of them waits for the pin and frees the file, and the
/// other has nothing to do with that.
// covers: E8
#[test]
fn of_two_who_let_go_of_a_file_one_frees_it() {
    let (emu, mm) = rig(4);
    emu.clone().on_cpu(0, || {
        let device = Device::new(&mm, "pmem0", START, 128);
        let fs = device.mount().unwrap();
        let file = fs.create(&cx(), "a", true).unwrap();
        fs.write(&cx(), &file, 0, b"x").unwrap();
        let task = Task::with(&mm, 3, &file, 1);
        let pinned = task.pin(0, 1, GupFlags::WRITE).unwrap();
        task.exit();
        drop(file);
        let (one, other) = (fs.clone(), fs.clone());
        let unlinker = emu.start(1, move || one.unlink(&cx(), "a"));
        assert!(!emu.let_run(1, &unlinker), "a page is pinned");
        let reaper = emu.start(2, move || other.reap(&cx()));
        unpin(&mm, &pinned);
        assert_eq!(emu.finish(unlinker), Ok(()));
        emu.finish(reaper);
        assert!(!device.kernel.said("cannot let go"));
        fs.unmount(&cx()).unwrap();
    });
}

/// An unlink returns when the file is freed, also where another CPU has begun to free it.
#[test]
fn an_unlink_waits_for_another_who_frees_the_file() {
    let (emu, mm) = rig(4);
    emu.clone().on_cpu(0, || {
        let device = Device::new(&mm, "pmem0", START, 128);
        let fs = device.mount().unwrap();
        let file = fs.create(&cx(), "a", true).unwrap();
        fs.link(&cx(), "a", "b").unwrap();
        let free = fs.statfs().unwrap().free_blocks;
        fs.write(&cx(), &file, 0, b"x").unwrap();
        let task = Task::with(&mm, 3, &file, 1);
        task.store(0, 7).unwrap();
        let pinned = task.pin(0, 1, GupFlags::WRITE).unwrap();
        task.exit();
        fs.unlink(&cx(), "b").unwrap();
        drop(file);
        // The reaper frees nothing, but may be at it when the name goes.
        let (one, other) = (fs.clone(), fs.clone());
        let reaper = emu.start(2, move || other.reap(&cx()));
        let unlinker = emu.start(1, move || (one.unlink(&cx(), "a"), one.statfs().map(|sizes| sizes.free_blocks)));
        assert!(!emu.let_run(1, &unlinker), "a page is pinned");
        unpin(&mm, &pinned);
        assert_eq!(emu.finish(unlinker), (Ok(()), Ok(free)));
        emu.finish(reaper);
        fs.unmount(&cx()).unwrap();
    });
}

/// Makes a file, unlinks it while it is open, goes on with it, and lets go.
fn round(fs: &Arc<Fs>, name: &str, nr: u8) -> Result<(), FsError> {
    let file = fs.create(&cx(), name, true)?;
    fs.write(&cx(), &file, 0, &[nr; 2 * PAGE_SIZE as usize])?;
    fs.unlink(&cx(), name)?;
    // Numbers are reused at once: whoever freed this one a second time would take this file.
    fs.truncate(&cx(), &file, PAGE_SIZE)?;
    fs.write(&cx(), &file, 10, &[nr])?;
    let mut found = [0; 20];
    fs.read(&cx(), &file, 0, &mut found)?;
    assert_eq!(found, [nr; 20]);
    drop(file);
    fs.reap(&cx());
    // And one that is closed when its name goes.
    drop(fs.create(&cx(), name, true)?);
    fs.unlink(&cx(), name)?;
    fs.reap(&cx());
    Ok(())
}

/// Four CPUs make, unlink and let go of files, and of each other's: none loses one, and nothing is left.
#[test]
fn four_cpus_make_and_let_go_of_files() {
    let (emu, mm) = rig(5);
    emu.clone().on_cpu(0, || {
        let device = Device::new(&mm, "pmem0", START, 256);
        let fs = device.mount().unwrap();
        // So that the directory has its block.
        round(&fs, "first", 0).unwrap();
        let free = fs.statfs().unwrap();
        let start = |cpu: usize| {
            let (fs, emu) = (fs.clone(), emu.clone());
            let work = move || (0..1000).try_for_each(|nr| round(&fs, &format!("file-{cpu}"), nr as u8));
            std::thread::spawn(move || emu.on_cpu(cpu, work))
        };
        let running: Vec<_> = (1..5).map(start).collect();
        for thread in running {
            while !thread.is_finished() {
                emu.deliver(0);
                std::thread::yield_now();
            }
            assert_eq!(thread.join().unwrap(), Ok(()));
        }
        assert!(!device.kernel.said("cannot let go"));
        assert_eq!(fs.statfs().unwrap(), free);
        fs.unmount(&cx()).unwrap();
    });
}
