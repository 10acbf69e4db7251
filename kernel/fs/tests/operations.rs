//! Operations against the plain model, and each on its own.

mod common;

use common::{Model, Op, apply, assert_clean, difference, mounted, new_fs, pmem, random_op, read_all};
use fs::error::FsError;
use fs::format::{BLOCK_SIZE, HUGE_BLOCKS, MAX_FILE, ROOT_INO, TABLE_INO};
use fs::mount::{MakeOptions, MountOptions, make, mount};
use fs::volume::Volume;
use proptest::prelude::*;
use std::sync::Arc;
use testkit::sim::{Random, SimPmem};

fn exact(_: &[u8], _: usize, _: u8) -> bool {
    false
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// Random operations: the same answers as the model's, the same contents, also after a mount; the checker is
    /// content.
    #[test]
    fn random_operations_agree_with_the_model(seed: u64, nr in 1_usize..120) {
        let sim = new_fs(640);
        let (mut volume, mut model, mut random) = (mounted(&sim), Model::default(), Random::new(seed));
        for _ in 0..nr {
            let op = random_op(&mut random, 60 * BLOCK_SIZE);
            let mut tried = model.clone();
            let want = tried.apply(&op);
            match apply(&mut volume, &op) {
                Err(FsError::NoSpace) => {
                    // What a long write had done when space ran out stays; the model starts from there.
                    model = read_all(&mut volume).unwrap();
                }
                got => {
                    // Where two things are wrong with two names, either may be said.
                    if !matches!(op, Op::Rename(..) | Op::Link(..)) || got.is_ok() || want.is_ok() {
                        prop_assert_eq!(got, want, "{:?}", op);
                    }
                    if want.is_ok() {
                        model = tried;
                    }
                }
            }
        }
        let got = read_all(&mut volume).unwrap();
        prop_assert_eq!(difference(&got, &model, &exact), None);
        volume.unmount().unwrap();
        assert_clean(&sim);
        let mut again = mounted(&sim);
        prop_assert_eq!(difference(&read_all(&mut again).unwrap(), &model, &exact), None);
        prop_assert_eq!(again.nr_mounts(), Ok(2));
        // Everything can be taken away again, and then everything is free.
        let before = mounted(&new_fs(640)).statfs().unwrap().free_blocks;
        let mut paths: Vec<_> = model.paths.keys().cloned().collect();
        paths.sort_by_key(|path| std::cmp::Reverse(path.len()));
        for path in paths {
            let op = if model.paths[&path] == common::Thing::Dir { Op::Rmdir(path) } else { Op::Unlink(path) };
            apply(&mut again, &op).unwrap();
        }
        let root = again.stat(ROOT_INO).unwrap().blocks;
        prop_assert_eq!(again.statfs().unwrap().free_blocks + root + (again.stat(1).unwrap().blocks - 4), before);
        drop(again);
        assert_clean(&sim);
    }
}

#[test]
fn large_files_lie_at_multiples_of_two_megabytes_also_on_an_aged_file_system() {
    let sim = new_fs(16 * 1024);
    let mut volume = mounted(&sim);
    let mut random = Random::new(7);
    // Small files come and go first.
    let small: Vec<_> = (0..300).map(|nr| format!("small{nr}").into_bytes()).collect();
    for name in &small {
        let ino = volume.create(ROOT_INO, name, true).unwrap();
        volume.write(ino, 0, &vec![1; (1 + random.below(20)) as usize * 1000]).unwrap();
    }
    for name in small.iter().step_by(2) {
        let gone = volume.unlink(ROOT_INO, name).unwrap().unwrap();
        volume.free(gone).unwrap();
    }
    let ino = volume.create(ROOT_INO, b"large", true).unwrap();
    volume.write(ino, 0, &vec![3; 12 << 20]).unwrap();
    let runs = volume.runs(ino, 0, u64::MAX).unwrap();
    for run in &runs {
        assert_eq!((run.logical ^ run.physical.unwrap()) % HUGE_BLOCKS, 0, "{runs:?}");
    }
    // Written in small pieces it comes out the same.
    let ino = volume.create(ROOT_INO, b"grown", true).unwrap();
    for piece in 0..(8 << 20) / 16384 {
        volume.write(ino, piece * 16384, &[4; 16384]).unwrap();
    }
    let runs = volume.runs(ino, HUGE_BLOCKS, u64::MAX).unwrap();
    assert!(runs.len() <= 2 && (runs[0].logical ^ runs[0].physical.unwrap()).is_multiple_of(HUGE_BLOCKS), "{runs:?}");
    drop(volume);
    assert_clean(&sim);
}

/// Whole free areas of 2 MiB, and free blocks.
fn free_areas(volume: &mut fs::volume::Volume) -> (u64, u64) {
    assert_eq!(volume.load_all(), 0);
    let blocks = volume.statfs().unwrap().nr_blocks;
    let mut used = vec![false; blocks as usize];
    volume.owners(0, blocks, |(first, end, _)| used[first as usize..end as usize].fill(true));
    let whole = used.chunks_exact(HUGE_BLOCKS as usize).filter(|area| area.iter().all(|used| !used)).count();
    (whole as u64, used.iter().filter(|used| !**used).count() as u64)
}

/// Thousands of small files come, grow and go while the file system is half full: whole areas stay whole, so that a
/// huge leaf can still be had.
#[test]
fn whole_areas_stay_whole_as_the_file_system_ages() {
    let sim = new_fs(16 * 1024);
    let mut volume = mounted(&sim);
    let mut random = Random::new(11);
    let mut names: Vec<Vec<u8>> = Vec::new();
    let mut worst = u64::MAX;
    for nr in 0..4000_u64 {
        let free = volume.statfs().unwrap().free_blocks;
        if free < 8 * 1024 || !names.is_empty() && random.below(3) == 0 {
            let name = names.swap_remove(random.below(names.len() as u64) as usize);
            let gone = volume.unlink(ROOT_INO, &name).unwrap().unwrap();
            volume.free(gone).unwrap();
        } else if !names.is_empty() && random.below(4) == 0 {
            let ino = volume.lookup(ROOT_INO, &names[random.below(names.len() as u64) as usize]).unwrap();
            let size = volume.stat(ino).unwrap().size;
            volume.write(ino, size, &vec![2; (1 + random.below(40_000)) as usize]).unwrap();
        } else {
            let name = format!("{nr}").into_bytes();
            let ino = volume.create(ROOT_INO, &name, true).unwrap();
            volume.write(ino, 0, &vec![1; (1 + random.below(100_000)) as usize]).unwrap();
            names.push(name);
        }
        if nr % 500 == 499 {
            let (whole, free) = free_areas(&mut volume);
            println!("after {nr}: {free} blocks are free, {whole} whole areas of {} that there could be", free / 512);
            worst = worst.min(whole * 100 / (free / HUGE_BLOCKS));
        }
    }
    assert!(worst >= 70, "only {worst} % of what is free can be had in whole areas");
    // A task that maps a large hole gets a huge leaf for each of them.
    let (whole, _) = free_areas(&mut volume);
    let ino = volume.create(ROOT_INO, b"large", true).unwrap();
    volume.truncate(ino, whole * HUGE_BLOCKS * BLOCK_SIZE).unwrap();
    for area in 0..whole - 1 {
        let run = volume.map_block(ino, area * HUGE_BLOCKS + 5, true).unwrap();
        assert!(run.len >= HUGE_BLOCKS && (run.logical ^ run.physical.unwrap()).is_multiple_of(HUGE_BLOCKS), "{run:?}");
    }
    drop(volume);
    assert_clean(&sim);
}

/// What is written into a gap melts with what is on both sides of it, whatever comes first.
#[test]
fn runs_that_meet_become_one() {
    let sim = new_fs(640);
    let mut volume = mounted(&sim);
    // Where mapping blocks go, so that none gets what was punched out.
    let low = volume.create(ROOT_INO, b"low", true).unwrap();
    volume.write(low, 0, &[3; 4 * BLOCK_SIZE as usize]).unwrap();
    let ino = volume.create(ROOT_INO, b"a", true).unwrap();
    volume.write(ino, 0, &[1; 40 * BLOCK_SIZE as usize]).unwrap();
    volume.truncate(low, 0).unwrap();
    let whole = volume.runs(ino, 0, u64::MAX).unwrap();
    assert_eq!(whole.len(), 1);
    for gap in (1..40).step_by(2) {
        volume.punch(ino, gap * BLOCK_SIZE, BLOCK_SIZE).unwrap();
    }
    // Twenty runs: some of them are in a mapping block.
    assert_eq!((volume.runs(ino, 0, u64::MAX).unwrap().len(), volume.stat(ino).unwrap().blocks), (20, 21));
    for gap in (0..20).rev().map(|nr| 2 * nr + 1) {
        volume.write(ino, gap * BLOCK_SIZE, &[2; BLOCK_SIZE as usize]).unwrap();
    }
    assert_eq!(volume.runs(ino, 0, u64::MAX).unwrap(), whole);
    volume.unmount().unwrap();
    let mut volume = mounted(&sim);
    assert_eq!(volume.runs(ino, 0, u64::MAX).unwrap(), whole);
    let mut bytes = vec![0; 40 * BLOCK_SIZE as usize];
    volume.read(ino, 0, &mut bytes).unwrap();
    let block =
        |nr: usize| bytes[nr * BLOCK_SIZE as usize..][..BLOCK_SIZE as usize].iter().all(|&b| b == nr as u8 % 2 + 1);
    assert!((0..40).all(block));
}

#[test]
fn attributes_are_kept_and_replaced_and_go_with_the_file() {
    let sim = new_fs(512);
    let mut volume = mounted(&sim);
    let free = volume.statfs().unwrap().free_blocks;
    let ino = volume.create(ROOT_INO, b"a", true).unwrap();
    let with_dir = volume.statfs().unwrap().free_blocks;
    volume.set_attributes(ino, b"colour=red").unwrap();
    volume.set_attributes(ino, &[7; fs::format::MAX_ATTR]).unwrap();
    assert_eq!(volume.set_attributes(ino, &[7; fs::format::MAX_ATTR + 1]), Err(FsError::AttributesTooLarge));
    volume.unmount().unwrap();
    let mut volume = mounted(&sim);
    assert_eq!(volume.attributes(ino).unwrap(), [7; fs::format::MAX_ATTR]);
    let gone = volume.unlink(ROOT_INO, b"a").unwrap().unwrap();
    volume.free(gone).unwrap();
    assert_eq!(volume.statfs().unwrap().free_blocks, with_dir);
    assert_eq!(with_dir + 1, free);
    drop(volume);
    assert_clean(&sim);
}

#[test]
fn a_file_of_many_extents_is_cut_in_steps_and_its_mapping_blocks_go_too() {
    let sim = new_fs(8192);
    let mut volume = mounted(&sim);
    let ino = volume.create(ROOT_INO, b"holes", true).unwrap();
    let free = volume.statfs().unwrap().free_blocks;
    for nr in 0..1500 {
        volume.write(ino, nr * 2 * BLOCK_SIZE, b"x").unwrap();
    }
    assert!(volume.stat(ino).unwrap().blocks > 1504, "the extents need mapping blocks");
    volume.punch(ino, 0, 1000 * BLOCK_SIZE).unwrap();
    assert_eq!(volume.runs(ino, 0, u64::MAX).unwrap().len(), 1000);
    volume.truncate(ino, 10).unwrap();
    assert_eq!((volume.stat(ino).unwrap().blocks, volume.statfs().unwrap().free_blocks), (0, free));
    drop(volume);
    assert_clean(&sim);
}

#[test]
fn no_space_is_an_error_and_nothing_is_lost() {
    let sim = new_fs(256);
    let mut volume = mounted(&sim);
    let ino = volume.create(ROOT_INO, b"big", true).unwrap();
    let free = volume.statfs().unwrap().free_blocks;
    // The last block but one goes to the file's last extent, the last to a mapping block, or there is none.
    assert_eq!(volume.write(ino, 0, &vec![1; 300 * 4096]), Ok(free as usize * 4096));
    volume.truncate(ino, free / 2 * 4096).unwrap();
    for nr in 0.. {
        if volume.create(ROOT_INO, format!("{nr}").as_bytes(), true).is_err() {
            break;
        }
        let size = volume.stat(ino).unwrap().size;
        if volume.write(ino, size, &[2; 4096]).is_err() {
            break;
        }
    }
    assert_eq!(volume.mkdir(ROOT_INO, b"dir").and_then(|dir| volume.create(dir, b"x", true)), Err(FsError::NoSpace));
    drop(volume);
    assert_clean(&sim);
}

#[test]
fn names_that_are_none_are_refused() {
    let sim = new_fs(256);
    let mut volume = mounted(&sim);
    for name in [&b""[..], b".", b"..", b"a/b", b"a\0"] {
        assert_eq!(volume.create(ROOT_INO, name, true), Err(FsError::BadName));
    }
    let long = [b'x'; 256];
    assert_eq!(volume.create(ROOT_INO, &long, true), Err(FsError::NameTooLong));
    // POSIX says so where it is looked for, too.
    assert_eq!(volume.lookup(ROOT_INO, &long), Err(FsError::NameTooLong));
    assert_eq!(volume.unlink(ROOT_INO, &long), Err(FsError::NameTooLong));
    assert_eq!(volume.resolve(&[&b"/a/"[..], &long].concat()), Err(FsError::NotFound));
    volume.create(ROOT_INO, &[b'x'; 255], true).unwrap();
    assert_eq!(volume.create(99, b"a", true), Err(FsError::NotFound));
    assert_eq!(volume.lookup(ROOT_INO, b"a"), Err(FsError::NotFound));
}

/// As POSIX has it: `.` and `..` name directories, and so does what a `/` follows.
#[test]
fn dots_and_slashes_in_paths() {
    let sim = new_fs(256);
    let mut volume = mounted(&sim);
    let dir = volume.mkdir(ROOT_INO, b"dir").unwrap();
    let sub = volume.mkdir(dir, b"sub").unwrap();
    let file = volume.create(dir, b"file", true).unwrap();
    for (path, want) in [
        ("", Ok(ROOT_INO)),
        (".", Ok(ROOT_INO)),
        ("/./", Ok(ROOT_INO)),
        ("..", Ok(ROOT_INO)),
        ("dir/", Ok(dir)),
        ("./dir//.", Ok(dir)),
        ("dir/sub/..", Ok(dir)),
        ("dir/sub/../../dir/file", Ok(file)),
        ("dir/../dir/sub/", Ok(sub)),
        ("dir/file/", Err(FsError::NotDirectory)),
        ("dir/file/.", Err(FsError::NotDirectory)),
        ("dir/file/..", Err(FsError::NotDirectory)),
        ("dir/none/..", Err(FsError::NotFound)),
    ] {
        assert_eq!(volume.resolve(path.as_bytes()), want, "{path:?}");
    }
    for (path, want) in [
        ("dir/new", Ok((dir, "new"))),
        ("dir/./../dir/new", Ok((dir, "new"))),
        ("dir/sub/", Ok((dir, "sub"))),
        ("dir/file/", Err(FsError::NotDirectory)),
        ("dir/new/", Err(FsError::NotFound)),
        ("dir/.", Err(FsError::BadName)),
        ("dir/..", Err(FsError::BadName)),
        ("/", Err(FsError::BadName)),
    ] {
        let want = want.map(|(dir, name)| (dir, name.as_bytes()));
        assert_eq!(volume.resolve_parent(path.as_bytes()), want, "{path:?}");
    }
    assert_eq!(volume.resolve_directory(b"dir/new/"), Ok((dir, &b"new"[..])));
}

/// Only files and directories have attributes: the inode table is an inode, too.
#[test]
fn the_inode_table_is_no_callers_concern() {
    let sim = new_fs(256);
    let mut volume = mounted(&sim);
    assert_eq!(volume.set_attributes(TABLE_INO, b"colour=red"), Err(FsError::NotFound));
    assert_eq!(volume.set_attributes(ROOT_INO, b"colour=red"), Ok(()));
    assert_eq!(volume.write(TABLE_INO, 0, b"x"), Err(FsError::NotFound));
    assert_eq!(volume.truncate(TABLE_INO, 0), Err(FsError::NotFound));
    assert_eq!(volume.punch(TABLE_INO, 0, BLOCK_SIZE), Err(FsError::NotFound));
    assert_eq!(volume.link(TABLE_INO, ROOT_INO, b"table"), Err(FsError::NotFound));
    assert_eq!(volume.free(TABLE_INO), Err(FsError::Busy));
}

#[test]
fn inodes_are_counted_and_each_life_of_a_number_has_a_generation() {
    let sim = new_fs(640);
    let mut volume = mounted(&sim);
    let before = volume.statfs().unwrap();
    // Four blocks of sixteen, less number 0; the table and the root are in use.
    assert_eq!(before.nr_inodes, 63 + 16 * before.free_blocks);
    assert_eq!(before.free_inodes, before.nr_inodes - 2);
    let used = |volume: &mut Volume| volume.statfs().map(|sizes| sizes.nr_inodes - sizes.free_inodes).unwrap();
    // The table grows on the way.
    for nr in 0..100 {
        volume.create(ROOT_INO, format!("{nr}").as_bytes(), true).unwrap();
        assert_eq!(used(&mut volume), nr + 3);
    }
    let ino = volume.lookup(ROOT_INO, b"50").unwrap();
    let generation = volume.stat(ino).unwrap().generation;
    assert_eq!(volume.create(ROOT_INO, b"50", true), Err(FsError::Exists));
    let gone = volume.unlink(ROOT_INO, b"50").unwrap().unwrap();
    assert_eq!(used(&mut volume), 102, "it is there until it is freed");
    volume.free(gone).unwrap();
    assert_eq!(used(&mut volume), 101);
    volume.unmount().unwrap();
    let mut volume = mounted(&sim);
    assert_eq!(used(&mut volume), 101, "counted anew");
    assert_eq!(volume.create(ROOT_INO, b"new", true), Ok(ino));
    assert_eq!(volume.stat(ino).unwrap().generation, generation + 1);
}

#[test]
fn the_copy_of_the_superblock_serves_where_the_first_is_damaged() {
    let sim = new_fs(256);
    let mut bytes = sim.bytes();
    bytes[30] ^= 1;
    let sim = Arc::new(SimPmem::from_bytes(bytes.clone()));
    mounted(&sim).unmount().unwrap();
    assert!(!fs::check::check(&pmem(&sim), None).is_clean(), "the checker says that one is damaged");
    bytes[255 * 4096 + 30] ^= 1;
    let sim = Arc::new(SimPmem::from_bytes(bytes));
    assert!(matches!(mount(&pmem(&sim), &MountOptions::default()), Err(FsError::Damaged(_))));
}

#[test]
fn an_external_journal_is_needed_where_it_was_made_with_one() {
    let (sim, log) = (Arc::new(SimPmem::new(1 << 20)), Arc::new(SimPmem::new(1 << 18)));
    let options = MakeOptions { uuid: [9; 16], log: Some(pmem(&log)), ..MakeOptions::default() };
    make(&pmem(&sim), &options).unwrap();
    assert_eq!(mount(&pmem(&sim), &MountOptions::default()).err(), Some(FsError::NotSupported));
    let options = MountOptions { log: Some(pmem(&log)), ..MountOptions::default() };
    let mut volume = mount(&pmem(&sim), &options).unwrap();
    let ino = volume.create(ROOT_INO, b"a", true).unwrap();
    volume.write(ino, 0, b"hello").unwrap();
    drop(volume);
    assert!(fs::check::check(&pmem(&sim), Some(&pmem(&log))).is_clean());
    let mut volume = mount(&pmem(&sim), &options).unwrap();
    let mut buf = [0; 5];
    let ino = volume.resolve(b"/a").unwrap();
    volume.read(ino, 0, &mut buf).unwrap();
    assert_eq!(&buf, b"hello");
}

#[test]
fn too_small_is_refused() {
    // What the message says.
    assert!(FsError::TooSmall.to_string().contains("112 KiB"));
    make(&pmem(&Arc::new(SimPmem::new(112 << 10))), &MakeOptions::default()).unwrap();
    for len in [0, 4096, 10 * 4096, (112 << 10) - 4096] {
        let sim = Arc::new(SimPmem::new(len));
        assert_eq!(make(&pmem(&sim), &MakeOptions::default()).err(), Some(FsError::TooSmall));
        assert!(mount(&pmem(&sim), &MountOptions::default()).is_err());
    }
}

/// The reverse map answers by what is found, not by how much there is.
#[test]
fn owners_are_found_in_logarithmic_time() {
    let sim = new_fs(8192);
    let mut volume = mounted(&sim);
    for file in 0..4 {
        let ino = volume.create(ROOT_INO, format!("{file}").as_bytes(), true).unwrap();
        for nr in 0..500 {
            volume.write(ino, nr * 2 * BLOCK_SIZE, b"x").unwrap();
        }
    }
    let runs = volume.nr_owned_runs();
    assert!(runs > 2000);
    let ino = volume.lookup(ROOT_INO, b"2").unwrap();
    for run in volume.runs(ino, 0, u64::MAX).unwrap() {
        let block = run.physical.unwrap();
        let mut found = Vec::new();
        let looks = volume.owners(block, block + 1, |owned| found.push(owned));
        let owner = fs::owner::Owner::Data { ino, logical: run.logical };
        assert_eq!(found, [(block, block + run.len, owner)]);
        assert!(looks <= 2 * runs.ilog2() as usize + 4, "{looks} nodes looked at among {runs}");
    }
}

/// A block that the medium loses, and that is free again when its file is gone, serves whoever gets it next.
#[test]
fn a_lost_block_that_is_free_serves_again() {
    let sim = new_fs(640);
    let mut volume = mounted(&sim);
    let ino = volume.create(ROOT_INO, b"a", true).unwrap();
    volume.write(ino, 0, &[7; BLOCK_SIZE as usize]).unwrap();
    let block = volume.map_block(ino, 0, false).unwrap().physical.unwrap();
    sim.break_range(block * BLOCK_SIZE, (block + 1) * BLOCK_SIZE);
    assert!(matches!(volume.read(ino, 0, &mut [0; 8]), Err(FsError::Media(_))));
    volume.truncate(ino, 0).unwrap();
    // All blocks there are: that one is among them.
    let all = volume.statfs().unwrap().free_blocks - 8;
    volume.write(ino, 0, &vec![9; (all * BLOCK_SIZE) as usize]).unwrap();
    let mut bytes = vec![0; (all * BLOCK_SIZE) as usize];
    assert_eq!(volume.read(ino, 0, &mut bytes), Ok(bytes.len()));
    assert!(bytes.iter().all(|&byte| byte == 9));
}

/// Offsets and lengths come from tasks and commands, and may be any number: each call does what it says, or is refused,
/// and a file that was not changed is the same file.
#[test]
fn any_offset_and_any_length_is_answered() {
    let sim = new_fs(640);
    let mut volume = mounted(&sim);
    let ino = volume.create(ROOT_INO, b"a", true).unwrap();
    let size = 3 * BLOCK_SIZE + 5;
    let bytes: Vec<u8> = (0..size).map(|at| at as u8 | 1).collect();
    volume.write(ino, 0, &bytes).unwrap();
    let mut numbers = vec![0, 1, u64::MAX - 1, u64::MAX, i64::MAX as u64, 1 << 63];
    for around in [BLOCK_SIZE, size, MAX_FILE, u64::MAX / BLOCK_SIZE, u64::MAX - BLOCK_SIZE] {
        numbers.extend([around - 1, around, around + 1]);
    }
    for &offset in &numbers {
        let from = (offset.min(size)) as usize;
        for len in [0, 1, BLOCK_SIZE as usize] {
            let mut buf = vec![0; len];
            let got = volume.read(ino, offset, &mut buf).unwrap();
            assert_eq!(buf[..got], bytes[from..(from + len).min(bytes.len())], "read {len} from {offset}");
        }
        let fits = offset < MAX_FILE;
        if !fits {
            assert_eq!(volume.write(ino, offset, &[1]), Err(FsError::TooLarge), "write at {offset}");
        }
        if offset > MAX_FILE {
            assert_eq!(volume.truncate(ino, offset), Err(FsError::TooLarge), "truncate to {offset}");
        }
        for &len in &numbers {
            let end = offset.checked_add(len).filter(|_| len != 0);
            // What lies in the file would be punched, which is not what is tested here.
            if end.is_none() || offset >= size {
                let want = end.map(drop).ok_or(FsError::Invalid);
                assert_eq!(volume.punch(ino, offset, len), want, "punch {len} from {offset}");
            }
        }
    }
    let mut all = vec![0; size as usize];
    assert_eq!((volume.read(ino, 0, &mut all), all), (Ok(size as usize), bytes));
}
