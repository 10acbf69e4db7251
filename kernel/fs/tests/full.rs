//! A file system that is full: what a write answers, and that it can be emptied again.

mod common;
mod rig;

use std::sync::Arc;

use common::{Medium, assert_clean, mounted, new_fs, pmem};
use fs::Piece;
use fs::calls::CHUNK_BYTES;
use fs::check::check;
use fs::error::FsError;
use fs::format::{BLOCK_SIZE, HUGE_BLOCKS, INLINE_EXTENTS, ROOT_INO, TABLE_INO};
use fs::mount::{MakeOptions, MountOptions, make, mount};
use fs::owner::Owner;
use fs::pmem::Pmem;
use fs::volume::Volume;
use mm::addr::PAGE_SIZE;
use rig::*;
use testkit::sim::SimPmem;

const BLOCK: usize = BLOCK_SIZE as usize;

fn free(volume: &mut Volume) -> u64 {
    volume.statfs().unwrap().free_blocks
}

/// A file system with `left` free blocks, a directory's block among those in use, and what fills it.
fn filled(left: u64) -> (Medium, Volume) {
    let sim = new_fs(640);
    let mut volume = mounted(&sim);
    let filler = volume.create(ROOT_INO, b"filler", true).unwrap();
    let want = (free(&mut volume) - left) as usize * BLOCK;
    assert_eq!(volume.write(filler, 0, &vec![1; want]), Ok(want));
    assert_eq!(free(&mut volume), left);
    (sim, volume)
}

fn contents(volume: &mut Volume, ino: u64) -> Vec<u8> {
    let mut bytes = vec![0; volume.stat(ino).unwrap().size as usize];
    assert_eq!(volume.read(ino, 0, &mut bytes), Ok(bytes.len()));
    bytes
}

/// Some of it is overwritten in place, some fills a hole, some makes the file longer.
#[test]
fn a_write_answers_how_much_was_written_when_space_runs_out() {
    let (sim, mut volume) = filled(13);
    let ino = volume.create(ROOT_INO, b"a", true).unwrap();
    volume.write(ino, 0, &[2; 2 * BLOCK]).unwrap();
    volume.write(ino, 4 * BLOCK_SIZE, &[2; BLOCK]).unwrap();
    // Ten are left: two for the hole, eight behind the end.
    let bytes = vec![3; 20 * BLOCK];
    let (at, end) = (BLOCK / 2, 13 * BLOCK);
    assert_eq!(volume.write(ino, at as u64, &bytes), Ok(end - at));
    assert_eq!(free(&mut volume), 0);
    let want = [vec![2; at], vec![3; end - at]].concat();
    assert!(contents(&mut volume, ino) == want);
    // One that writes nothing says why, and changes nothing; nor does it in a place that is there and one that is not.
    assert_eq!(volume.write(ino, end as u64, &[4; 1]), Err(FsError::NoSpace));
    assert_eq!(volume.write(ino, end as u64 + 9, &[4; 9 * BLOCK]), Err(FsError::NoSpace));
    assert_eq!(volume.write(ino, 10, &[5; 10]), Ok(10));
    assert_eq!(volume.write(ino, end as u64 - 10, &[6; 30]), Ok(10));
    let mut want = want;
    want[10..20].fill(5);
    want[end - 10..].fill(6);
    volume.unmount().unwrap();
    assert!(contents(&mut mounted(&sim), ino) == want);
}

/// The last free blocks are given out to the last but one where the file needs a mapping block for them.
#[test]
fn the_last_free_block_serves_as_a_mapping_block() {
    for left in [1, 2, 7] {
        let (sim, mut volume) = filled(left + INLINE_EXTENTS as u64);
        let ino = volume.create(ROOT_INO, b"a", true).unwrap();
        (0..INLINE_EXTENTS as u64).for_each(|nr| _ = volume.write(ino, nr * 2 * BLOCK_SIZE, &[2; BLOCK]).unwrap());
        assert_eq!(free(&mut volume), left);
        let at = 100 * BLOCK_SIZE;
        let want = match left {
            1 => Err(FsError::NoSpace),
            left => Ok((left as usize - 1) * BLOCK),
        };
        assert_eq!(volume.write(ino, at, &vec![3; 30 * BLOCK]), want);
        assert_eq!(free(&mut volume), if left == 1 { 1 } else { 0 });
        assert_eq!(volume.write(ino, at + 30 * BLOCK_SIZE, &[4]), Err(FsError::NoSpace));
        let size = if left == 1 { (INLINE_EXTENTS as u64 * 2 - 1) * BLOCK_SIZE } else { at + (left - 1) * BLOCK_SIZE };
        assert_eq!(volume.stat(ino).unwrap().size, size);
        drop(volume);
        assert_clean(&sim);
    }
}

/// A full file system, and in it a file whose inode has no room for one more extent: each has five blocks, of `2`.
fn crowded() -> (Medium, Volume, u64) {
    let sim = new_fs(640);
    let mut volume = mounted(&sim);
    let [ino, filler] = [&b"a"[..], b"filler"].map(|name| volume.create(ROOT_INO, name, true).unwrap());
    for nr in 0..INLINE_EXTENTS as u64 {
        volume.write(ino, nr * 8 * BLOCK_SIZE, &[2; 5 * BLOCK]).unwrap();
    }
    let left = free(&mut volume) as usize * BLOCK;
    assert_eq!(volume.write(filler, 0, &vec![1; left]), Ok(left));
    assert_eq!((free(&mut volume), volume.runs(ino, 0, u64::MAX).unwrap().len()), (0, INLINE_EXTENTS));
    (sim, volume, ino)
}

/// Each hole is in the middle of a run and needs one more extent. The first takes a mapping block out of what it frees.
#[test]
fn a_full_file_system_can_be_emptied_by_punching() {
    let (sim, mut volume, ino) = crowded();
    let mut want = contents(&mut volume, ino);
    let mut punch = |volume: &mut Volume, from: usize, to: usize| {
        assert_eq!(volume.punch(ino, from as u64, (to - from) as u64), Ok(()), "{from} to {to}");
        want[from..to].fill(0);
        assert!(contents(volume, ino) == want, "{from} to {to}");
    };
    // With parts of the blocks beside it.
    punch(&mut volume, BLOCK - 10, 2 * BLOCK + 10);
    assert_eq!((free(&mut volume), volume.stat(ino).unwrap().blocks), (0, 40));
    punch(&mut volume, 3 * BLOCK, 4 * BLOCK);
    assert_eq!((free(&mut volume), volume.stat(ino).unwrap().blocks), (1, 39));
    (1..INLINE_EXTENTS).for_each(|nr| punch(&mut volume, (8 * nr + 2) * BLOCK, (8 * nr + 3) * BLOCK));
    drop(volume);
    assert_clean(&sim);
    let mut volume = mounted(&sim);
    assert!(contents(&mut volume, ino) == want);
    for ino in [ino, volume.lookup(ROOT_INO, b"filler").unwrap()] {
        volume.punch(ino, 0, u64::MAX / 2).unwrap();
        assert_eq!(volume.stat(ino).unwrap().blocks, 0);
    }
    let empty = mounted(&new_fs(640)).statfs().unwrap().free_blocks;
    assert_eq!(free(&mut volume), empty - 1, "the directory has a block");
}

/// What the journal replays over a block that a punch made a mapping block, and that serves as data again, is not seen.
#[test]
fn a_mapping_block_out_of_a_punch_serves_as_data_again() {
    let (sim, mut volume, ino) = crowded();
    volume.punch(ino, BLOCK_SIZE, BLOCK_SIZE).unwrap();
    assert_eq!(free(&mut volume), 0);
    volume.truncate(ino, 0).unwrap();
    assert_eq!(volume.write(ino, 0, &[9; 40 * BLOCK]), Ok(40 * BLOCK));
    // The power goes, with everything on its way to the medium: the journal is replayed.
    let image = Arc::new(SimPmem::from_bytes(sim.bytes()));
    assert!(contents(&mut mounted(&image), ino) == [9; 40 * BLOCK]);
}

/// Where a punch cannot be done, the parts of blocks at its edges are as they were, too.
#[test]
fn a_punch_that_fails_changes_nothing() {
    let (sim, volume, ino) = crowded();
    drop(volume);
    let sim = Arc::new(SimPmem::from_bytes(sim.bytes()));
    let mut volume = mounted(&sim);
    volume.punch(ino, BLOCK_SIZE, BLOCK_SIZE).unwrap();
    let mut extents = Vec::new();
    volume.owners(0, u64::MAX, |(first, _, owner)| {
        extents.extend(Some(first).filter(|_| owner == Owner::Mapping { ino }));
    });
    let [block] = extents[..] else { panic!("{extents:?}") };
    let want = contents(&mut volume, ino);
    sim.break_range(block * BLOCK_SIZE, (block + 1) * BLOCK_SIZE);
    let punched = volume.punch(ino, 2 * BLOCK_SIZE + 100, 2 * BLOCK_SIZE);
    assert_eq!(punched, Err(FsError::Media(block * BLOCK_SIZE)));
    let image = SimPmem::from_bytes(sim.bytes());
    assert!(contents(&mut mounted(&Arc::new(image)), ino) == want);
}

/// The last that is free is one whole area, and the file's inode has no room for its extent: a task that faults in a hole
/// of 2 MiB gets a page, and the file a mapping block.
#[test]
fn a_huge_fault_that_space_does_not_suffice_for_gets_a_page() {
    let sim = new_fs(3 * HUGE_BLOCKS);
    let mut volume = mounted(&sim);
    let [ino, filler] = [&b"a"[..], b"filler"].map(|name| volume.create(ROOT_INO, name, true).unwrap());
    for nr in 0..INLINE_EXTENTS as u64 {
        volume.write(ino, nr * 2 * BLOCK_SIZE, &[2; BLOCK]).unwrap();
    }
    volume.truncate(ino, 2 * HUGE_BLOCKS * BLOCK_SIZE).unwrap();
    let left = free(&mut volume) as usize * BLOCK;
    assert_eq!(volume.write(filler, 0, &vec![1; left]), Ok(left));
    for piece in volume.runs(filler, 0, u64::MAX).unwrap() {
        let first = piece.physical.unwrap();
        let (from, to) = (first.max(HUGE_BLOCKS), (first + piece.len).min(2 * HUGE_BLOCKS));
        if from < to {
            let at = piece.logical + (from - first);
            volume.punch(filler, at * BLOCK_SIZE, (to - from) * BLOCK_SIZE).unwrap();
        }
    }
    assert_eq!(free(&mut volume), HUGE_BLOCKS);
    let mapped = volume.map_block(ino, HUGE_BLOCKS + 7, true).unwrap();
    assert_eq!((mapped.logical, mapped.len, mapped.physical.is_some()), (HUGE_BLOCKS + 7, 1, true));
    assert_eq!(free(&mut volume), HUGE_BLOCKS - 2);
    drop(volume);
    assert_clean(&sim);
}

/// A punch that takes several operations fails in the last of them: the edges are as they were.
#[test]
fn the_edges_of_a_long_punch_are_zeroed_last() {
    let sim = new_fs(1200);
    let mut volume = mounted(&sim);
    let ino = volume.create(ROOT_INO, b"a", true).unwrap();
    let mut mapping = None;
    for nr in 0..500 {
        volume.write(ino, nr * 2 * BLOCK_SIZE, &[2; BLOCK]).unwrap();
        volume.owners(0, u64::MAX, |(first, _, owner)| {
            mapping = mapping.or(Some(first).filter(|_| owner == Owner::Mapping { ino }));
        });
    }
    // The one that was made first has the front of the file: the last cut comes to it.
    let mapping = mapping.unwrap() * BLOCK_SIZE;
    let [front, back] = [0, 998].map(|logical| {
        let piece = volume.runs(ino, logical, logical + 1).unwrap()[0];
        (piece.physical.unwrap() * BLOCK_SIZE) as usize
    });
    let before = free(&mut volume);
    sim.break_range(mapping, mapping + BLOCK_SIZE);
    assert_eq!(volume.punch(ino, 10, 998 * BLOCK_SIZE), Err(FsError::Media(mapping)));
    assert!(free(&mut volume) > before + 50, "it was not several operations");
    for at in [front, back] {
        assert!(sim.bytes()[at..at + BLOCK] == [2; BLOCK], "an edge has become zero");
    }
    // It can be read again: so can it be done again.
    sim.break_range(0, 0);
    volume.punch(ino, 10, 998 * BLOCK_SIZE).unwrap();
    let contents = contents(&mut volume, ino);
    let left: Vec<_> = (0..contents.len()).filter(|&at| contents[at] != 0).collect();
    assert!(left == [(0..10).collect::<Vec<_>>(), (998 * BLOCK + 10..999 * BLOCK).collect()].concat());
    drop(volume);
    assert_clean(&sim);
}

/// What was overwritten before the medium failed cannot be taken back: it is what was written.
#[test]
fn a_write_answers_how_much_was_written_when_the_medium_fails() {
    let sim = new_fs(640);
    let medium = Hooked::new(&sim);
    let pmem: Arc<dyn Pmem> = medium.clone();
    let mut volume = mount(&pmem, &MountOptions::default()).unwrap();
    let [ino, other] = [&b"a"[..], b"b"].map(|name| volume.create(ROOT_INO, name, true).unwrap());
    volume.write(ino, 0, &[2; BLOCK]).unwrap();
    volume.write(other, 0, &[2; BLOCK]).unwrap();
    volume.write(ino, BLOCK_SIZE, &[2; BLOCK]).unwrap();
    let runs = volume.runs(ino, 0, 2).unwrap();
    let [first, second] = runs[..] else { panic!("one run: {runs:?}") };
    let mut write = |bad: &Piece, byte: u8| {
        let at = bad.physical.unwrap() * BLOCK_SIZE;
        medium.refuse_stores(at..at + BLOCK_SIZE);
        let written = volume.write(ino, 0, &[byte; 2 * BLOCK]);
        (written, contents(&mut volume, ino))
    };
    assert!(write(&second, 3) == (Ok(BLOCK), [[3; BLOCK], [2; BLOCK]].concat()));
    let (written, left) = write(&first, 4);
    assert!(matches!(written, Err(FsError::Media(_))) && left == [[3; BLOCK], [2; BLOCK]].concat(), "{written:?}");
}

/// A call that is done in several parts answers for all of them.
#[test]
fn a_long_call_answers_how_much_was_written_too() {
    let (emu, mm) = rig(1);
    emu.clone().on_cpu(0, || {
        let device = Device::new(&mm, "pmem0", START, 2 * CHUNK_BYTES / PAGE_SIZE + 700);
        let fs = device.mount().unwrap();
        let file = fs.create(&cx(), "a", true).unwrap();
        let left = fs.statfs().unwrap().free_blocks * PAGE_SIZE;
        assert!((2 * CHUNK_BYTES..3 * CHUNK_BYTES).contains(&left));
        let bytes = vec![7; 3 * CHUNK_BYTES as usize];
        assert_eq!(fs.write(&cx(), &file, 0, &bytes), Ok(left as usize));
        assert_eq!((fs.stat(&cx(), "a").unwrap().size, fs.statfs().unwrap().free_blocks), (left, 0));
        assert_eq!(fs.write(&cx(), &file, left, &bytes), Err(FsError::NoSpace));
        assert_eq!(fs.write_all(&cx(), &file, left - 5, b"hello"), Ok(()));
        assert_eq!(fs.write_all(&cx(), &file, left - 5, b"hello!"), Err(FsError::NoSpace));
        // Also where a task maps it.
        let task = Task::with(&mm, 0, &file, 4);
        (0..4).for_each(|nr| task.store(nr, 1).unwrap());
        fs.punch(&cx(), &file, PAGE_SIZE, PAGE_SIZE).unwrap();
        assert!(task.space.translate(page(1)).is_none());
        assert_eq!(fs.statfs().unwrap().free_blocks, 1);
        drop((task, file));
        fs.reap(&cx());
    });
}

/// A truncation of several operations fails after the first: the file is short, and has blocks behind its end. What was cut off
/// does not come back when the file grows over them.
#[test]
fn what_a_truncation_that_failed_has_cut_off_does_not_come_back() {
    const GROWN: u64 = 20 * BLOCK_SIZE + 5;
    let grow: [fn(&mut Volume, u64); 2] = [
        |volume, ino| assert_eq!(volume.write(ino, GROWN, b"x"), Ok(1)),
        |volume, ino| volume.truncate(ino, GROWN).unwrap(),
    ];
    for grow in grow {
        let mut seen = 0;
        for reads in 0.. {
            let sim = new_fs(1100);
            let medium = Hooked::new(&sim);
            let pmem: Arc<dyn Pmem> = medium.clone();
            let mut volume = mount(&pmem, &MountOptions::default()).unwrap();
            let ino = volume.create(ROOT_INO, b"a", true).unwrap();
            for nr in 0..150 {
                volume.write(ino, 2 * nr * BLOCK_SIZE, &[7; BLOCK]).unwrap();
            }
            medium.fail_read_after(Some(reads));
            let cut = volume.truncate(ino, 0);
            medium.fail_read_after(None);
            let stat = volume.stat(ino).unwrap();
            if cut.is_err() && stat.size == 0 && stat.blocks > 0 {
                seen += 1;
                grow(&mut volume, ino);
                assert!(contents(&mut volume, ino)[..GROWN as usize].iter().all(|&byte| byte == 0), "{reads} reads");
            }
            volume.unmount().unwrap();
            if cut.is_ok() {
                break;
            }
        }
        assert!(seen > 0, "no truncation failed in the middle");
    }
}

/// The inode table grows where its new part begins right behind its first one: they stay two runs, for what a first part may be
/// is looked at when it is read.
#[test]
fn an_inode_table_that_grows_behind_its_first_part_can_be_read() {
    // One group, whose first area is free as a whole and whose last one is full.
    let sim = new_fs(32_256);
    let mut volume = mounted(&sim);
    let files = [400, 110].map(|blocks: u64| {
        let ino = volume.create(ROOT_INO, format!("of {blocks}").as_bytes(), true).unwrap();
        assert_eq!(volume.write(ino, 0, &vec![1; blocks as usize * BLOCK]), Ok(blocks as usize * BLOCK));
        ino
    });
    assert!(files.iter().all(|&ino| volume.runs(ino, 0, 400).unwrap()[0].physical > Some(31_000)));
    for nr in 0..70 {
        volume.create(ROOT_INO, format!("{nr}").as_bytes(), true).unwrap();
    }
    let runs = volume.runs(TABLE_INO, 0, 16);
    volume.unmount().unwrap();
    let mut volume = mounted(&sim);
    assert_eq!(volume.readdir(ROOT_INO).unwrap().len(), 72, "{runs:?}");
    volume.unmount().unwrap();
}

/// A file has more mapping blocks than a small journal takes in one operation: it goes all the same, some at a time, also where
/// the power is cut between two of these.
#[test]
fn a_file_of_very_many_runs_goes_with_a_small_journal() {
    const RUNS: u64 = 50_000;
    let sim = Arc::new(SimPmem::new((2 * RUNS + 2000) as usize * BLOCK));
    let log: Arc<dyn Pmem> = Arc::new(SimPmem::new(2 * BLOCK));
    let options = MakeOptions { log: Some(log.clone()), ..MakeOptions::default() };
    make(&pmem(&sim), &options).unwrap();
    let open = || mount(&pmem(&sim), &MountOptions { log: Some(log.clone()), ..MountOptions::default() }).unwrap();
    let mut volume = open();
    volume.create(ROOT_INO, b"other", true).unwrap();
    let before = free(&mut volume);
    type End = fn(&mut Volume, u64) -> Result<(), FsError>;
    let ends: [End; 2] = [Volume::free, |volume, ino| volume.truncate(ino, 0)];
    for end in ends {
        let ino = volume.create(ROOT_INO, b"a", true).unwrap();
        for run in 0..RUNS {
            volume.write(ino, 2 * run * BLOCK_SIZE, &[7]).unwrap();
        }
        assert!(volume.stat(ino).unwrap().blocks > RUNS + 180);
        assert_eq!(volume.unlink(ROOT_INO, b"a"), Ok(Some(ino)));
        end(&mut volume, ino).unwrap();
        // Where it was cut only, the next mount frees it.
        volume.unmount().unwrap();
        volume = open();
        assert_eq!(free(&mut volume), before);
    }
    volume.unmount().unwrap();
    assert!(check(&pmem(&sim), Some(&log)).is_clean());
}
