//! Leaves of 1 GiB on files: a device of 4 GiB, of which the memory is sparse.

mod rig;
mod sparse;

use std::sync::Arc;

use dax::holder::NotifyFlags;
use fs::format::{BLOCK_SIZE, GIANT_BLOCKS, HUGE_BLOCKS, ROOT_INO};
use fs::mount::{MakeOptions, MountOptions, make, mount};
use fs::pmem::Pmem;
use fs::volume::Volume;
use mm::addr::{PAGE_SIZE, PageSize};
use mm::space::SigBusCause;
use rig::*;
use sparse::Sparse;
use testkit::sim::Random;

const GIB: u64 = GIANT_BLOCKS * BLOCK_SIZE;

fn new_fs(len: u64) -> (Arc<dyn Pmem>, Volume) {
    let pmem: Arc<dyn Pmem> = Arc::new(Sparse::new(len));
    make(&pmem, &MakeOptions::default()).unwrap();
    let volume = mount(&pmem, &MountOptions::default()).unwrap();
    (pmem, volume)
}

/// Fills a preallocated file by faults, one in each 2 MiB, in the order of `steps`.
fn fill(volume: &mut Volume, ino: u64, steps: impl Iterator<Item = u64>) {
    for area in steps {
        assert_eq!(volume.map_block(ino, area * HUGE_BLOCKS + 9, true).unwrap().len % HUGE_BLOCKS, 0);
    }
}

/// Is the 1 GiB of the file from `first` on one run, at a multiple of 1 GiB of the device?
fn is_giant(volume: &mut Volume, ino: u64, first: u64) -> bool {
    let runs = volume.runs(ino, first, first + GIANT_BLOCKS).unwrap();
    // A run that begins where the one before it ends may be two extents.
    runs.iter().all(|run| run.physical.is_some_and(|at| (at ^ run.logical).is_multiple_of(GIANT_BLOCKS)))
        && runs.iter().map(|run| run.len).sum::<u64>() == GIANT_BLOCKS
        && runs.windows(2).all(|pair| pair[0].physical.unwrap() + pair[0].len == pair[1].physical.unwrap())
}

#[test]
fn a_preallocated_file_is_mapped_by_a_leaf_of_a_gibibyte() {
    let (_emu, mm) = rig(1);
    let (pmem, mut volume) = new_fs(4 * GIB);
    let ino = volume.create(ROOT_INO, b"pool", true).unwrap();
    volume.truncate(ino, GIB + 5 * PAGE_SIZE).unwrap();
    // From the back and from the front in turn, while small files come beside it.
    let areas = GIANT_BLOCKS / HUGE_BLOCKS;
    for area in 0..areas / 2 {
        fill(&mut volume, ino, [areas - 1 - area, area].into_iter());
        if area % 16 == 0 {
            let small = volume.create(ROOT_INO, format!("small{area}").as_bytes(), true).unwrap();
            volume.write(small, 0, &[1; 10_000]).unwrap();
        }
    }
    assert!(is_giant(&mut volume, ino, 0), "{:?}", volume.runs(ino, 0, GIANT_BLOCKS));
    volume.unmount().unwrap();
    let (_live, fs) = mount_over(&mm, pmem);
    let file = fs.open(&cx(), "pool").unwrap();
    let task = Task::with(&mm, 0, &file, GIANT_BLOCKS);
    task.store(77, 7).unwrap();
    let leaf = task.space.translate(page(77)).unwrap();
    assert_eq!((leaf.size, task.fetch(77)), (PageSize::Size1G, Ok(7)));
    // Of a page that is lost nothing but the page is lost.
    let offset = (leaf.pfn_at(page(99)).as_u64() - START) * PAGE_SIZE;
    let flags = NotifyFlags::ACTION_REQUIRED.union(NotifyFlags::MUST_KILL);
    assert_eq!(fs.device().notify_failure(offset, PAGE_SIZE, flags).unwrap()[0].result, Ok(()));
    assert_eq!((task.cause(99), task.fetch(77)), (Some(SigBusCause::Poisoned), Ok(7)));
    assert!([98, 100, HUGE_BLOCKS, GIANT_BLOCKS - 1].into_iter().all(|nr| task.fetch(nr).is_ok()));
    // A cut through the leaf leaves nothing of it mapped.
    fs.truncate(&cx(), &file, GIB / 2).unwrap();
    assert!(task.space.translate(page(77)).is_none() && task.fetch(77).is_ok());
    assert_ne!(task.space.translate(page(77)).unwrap().size, PageSize::Size1G);
}

#[test]
fn a_gibibyte_can_still_be_had_after_small_files_have_come_and_gone() {
    let (pmem, mut volume) = new_fs(4 * GIB);
    let mut random = Random::new(3);
    let mut names: Vec<Vec<u8>> = Vec::new();
    for nr in 0..3000_u64 {
        if names.len() > 400 || !names.is_empty() && random.below(3) == 0 {
            let name = names.swap_remove(random.below(names.len() as u64) as usize);
            let gone = volume.unlink(ROOT_INO, &name).unwrap().unwrap();
            volume.free(gone).unwrap();
        } else {
            let name = format!("{nr}").into_bytes();
            let ino = volume.create(ROOT_INO, &name, true).unwrap();
            volume.write(ino, 0, &vec![1; 1 + random.below(60_000) as usize]).unwrap();
            names.push(name);
        }
    }
    // Two that are preallocated, filled in turn: each has its own.
    let files = [&b"one"[..], b"two"].map(|name| volume.create(ROOT_INO, name, true).unwrap());
    files.iter().for_each(|&ino| volume.truncate(ino, GIB).unwrap());
    for area in 0..GIANT_BLOCKS / HUGE_BLOCKS {
        files.iter().for_each(|&ino| fill(&mut volume, ino, core::iter::once(area)));
    }
    files.iter().for_each(|&ino| assert!(is_giant(&mut volume, ino, 0)));
    // What is punched out and filled again comes to the same place, in small pieces too.
    volume.punch(files[0], 0, 5 * HUGE_BLOCKS * BLOCK_SIZE).unwrap();
    fill(&mut volume, files[0], [4, 3, 0, 1].into_iter());
    for nr in (0..HUGE_BLOCKS).map(|nr| nr * 7 % HUGE_BLOCKS) {
        volume.write(files[0], (2 * HUGE_BLOCKS + nr) * BLOCK_SIZE, b"x").unwrap();
    }
    assert!(is_giant(&mut volume, files[0], 0));
    // A third one: the last whole 1 GiB has the superblock's copy in it, so that it makes do with areas of 2 MiB.
    let ino = volume.create(ROOT_INO, b"three", true).unwrap();
    volume.truncate(ino, GIB).unwrap();
    fill(&mut volume, ino, 0..8);
    for run in volume.runs(ino, 0, 8 * HUGE_BLOCKS).unwrap() {
        let at = run.physical.unwrap();
        assert!((at ^ run.logical).is_multiple_of(HUGE_BLOCKS) && at % GIANT_BLOCKS != 0, "{run:?}");
    }
    volume.unmount().unwrap();
    let report = fs::check::check(&pmem, None);
    assert!(report.is_clean(), "{report:?}");
}

/// Written by calls, the whole of it, its size given first.
#[test]
fn a_file_whose_size_is_given_first_is_written_into_one_gibibyte() {
    let (_pmem, mut volume) = new_fs(3 * GIB);
    let ino = volume.create(ROOT_INO, b"a", true).unwrap();
    volume.truncate(ino, GIB).unwrap();
    let piece = vec![0; 8 << 20];
    for at in (0..GIB).step_by(piece.len()) {
        volume.write(ino, at, &piece).unwrap();
    }
    assert!(is_giant(&mut volume, ino, 0), "{:?}", volume.runs(ino, 0, GIANT_BLOCKS));
}

/// The bits of one run's blocks can be more than the journal takes: it becomes free in several steps, also by the mount after it.
#[test]
fn a_run_that_is_larger_than_the_journal_becomes_free() {
    const PIECE: usize = 8 << 20;
    let log: Arc<dyn Pmem> = Arc::new(Sparse::new(2 * BLOCK_SIZE));
    let pmem: Arc<dyn Pmem> = Arc::new(Sparse::new(GIB / 2));
    make(&pmem, &MakeOptions { log: Some(Arc::clone(&log)), ..MakeOptions::default() }).unwrap();
    let mounted = || mount(&pmem, &MountOptions { log: Some(Arc::clone(&log)), ..MountOptions::default() });
    let mut volume = mounted().unwrap();
    // The root has its block.
    let first = volume.create(ROOT_INO, b"first", true).unwrap();
    volume.unlink(ROOT_INO, b"first").unwrap();
    volume.free(first).unwrap();
    let before = volume.statfs().unwrap().free_blocks;
    for is_mounted_anew in [false, true] {
        let ino = volume.create(ROOT_INO, b"large", true).unwrap();
        let piece = vec![0; PIECE];
        for at in (0..300 << 20).step_by(PIECE) {
            assert_eq!(volume.write(ino, at, &piece), Ok(PIECE));
        }
        volume.unlink(ROOT_INO, b"large").unwrap();
        if is_mounted_anew {
            drop(volume);
            volume = mounted().unwrap();
        } else {
            volume.free(ino).unwrap();
        }
        assert_eq!(volume.statfs().unwrap().free_blocks, before, "mounted anew: {is_mounted_anew}");
    }
    volume.unmount().unwrap();
}
