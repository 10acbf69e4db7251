//! Damaged images: an error, never a panic, never an endless loop, nothing written.

use fs::check::check;
use fs::error::FsError;
use fs::format::{Kind, ROOT_INO, RawInode};
use fs::mount::{MakeOptions, MountOptions, make, mount};
use fs::owner::Owner;
use fs::pmem::Pmem;
use fs::superblock::repair;
use fs::volume::Volume;
use proptest::prelude::*;
use std::sync::Arc;
use testkit::damage::{check_image, reseal, sample};
use testkit::sim::{Limits, Random, SimPmem};
use zerocopy::FromBytes;

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    /// Bytes and words changed anywhere, with and without the checksums made right afterwards.
    #[test]
    fn any_damage_is_survived(
        patches in prop::collection::vec((0_usize..256 * 4096 / 8, any::<u64>(), 0_u8..4), 1..12),
        metadata_only: bool,
        sealed: bool,
    ) {
        let mut image = sample();
        for (word, value, how) in patches {
            // The first blocks are where everything is that is not data.
            let at = if metadata_only { word * 8 % (40 * 4096) } else { word * 8 };
            let old = u64::from_le_bytes(image[at..at + 8].try_into().unwrap());
            let new = match how {
                0 => value,
                1 => old ^ 1 << (value % 64),
                2 => old.wrapping_add(value % 5).wrapping_sub(2),
                _ => [0, u64::MAX, u64::from(u32::MAX), 1][(value % 4) as usize],
            };
            image[at..at + 8].copy_from_slice(&new.to_le_bytes());
        }
        if sealed {
            reseal(&mut image);
        }
        check_image(&image);
    }

    /// Inodes, mapping blocks and directory blocks changed where their fields are, and sealed.
    #[test]
    fn any_sealed_field_is_survived(seed: u64, nr in 1..6) {
        let mut image = sample();
        let mut random = Random::new(seed);
        let places: Vec<usize> = (0..image.len()).step_by(256).filter(|&at| image[at..].starts_with(b"UP")).collect();
        for _ in 0..nr {
            let place = places[random.below(places.len() as u64) as usize];
            let field = place + 8 + 4 * random.below(62) as usize;
            let value = [random.below(300), random.next_u64(), 0, u64::MAX][random.below(4) as usize] as u32;
            image[field..field + 4].copy_from_slice(&value.to_le_bytes());
        }
        reseal(&mut image);
        check_image(&image);
    }

    /// No file system at all.
    #[test]
    fn garbage_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..9000)) {
        check_image(&bytes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// The inode table, which whoever looks at every inode goes through, with its own inode changed.
    #[test]
    fn any_inode_table_is_survived(extent in 0_usize..8, field in 0_usize..4, value: u32, few in 0_u32..300, small: bool) {
        let mut image = sample();
        let table = (0..image.len()).step_by(4096).find(|&at| image[at + 256..].starts_with(b"UPIN")).unwrap();
        let field = table + 256 + 128 + extent * 16 + field * 4;
        image[field..field + 4].copy_from_slice(&if small { few } else { value }.to_le_bytes());
        reseal(&mut image);
        check_image(&image);
    }
}

#[test]
fn the_sample_itself_is_sound_and_resealing_changes_nothing() {
    let image = sample();
    let mut sealed = image.clone();
    reseal(&mut sealed);
    assert!(image == sealed);
    check_image(&image);
}

#[test]
fn a_truncated_image_is_refused() {
    let image = sample();
    for len in [0, 100, 4096, 5000, image.len() / 2, image.len() - 4096] {
        check_image(&image[..len]);
    }
}

/// Found by the fuzz target: the table's extent moved to the far end of the largest file, so that there seemed to be
/// 68 billion inodes.
#[test]
fn an_inode_table_with_a_hole_is_refused() {
    let mut image = sample();
    let table = (0..image.len()).step_by(4096).find(|&at| image[at + 256..].starts_with(b"UPIN")).unwrap();
    image[table + 256 + 128..][..4].copy_from_slice(&0xf000_0000_u32.to_le_bytes());
    reseal(&mut image);
    check_image(&image);
}

/// One with no block at all has no inodes to count.
#[test]
fn an_inode_table_without_blocks_is_refused() {
    // At rest, so that no journal puts anything right.
    let sim = Arc::new(SimPmem::from_bytes(sample()));
    let pmem: Arc<dyn Pmem> = sim.clone();
    mount(&pmem, &MountOptions::default()).unwrap().unmount().unwrap();
    let mut image = sim.bytes();
    let table = (0..image.len()).step_by(4096).find(|&at| image[at + 256..].starts_with(b"UPIN")).unwrap() + 256;
    // Its size, its blocks, its extents.
    for range in [32..48, 128..256] {
        image[table + range.start..table + range.end].fill(0);
    }
    reseal(&mut image);
    check_image(&image);
    let pmem: Arc<dyn Pmem> = Arc::new(SimPmem::from_bytes(image));
    let refused = mount(&pmem, &MountOptions::default()).and_then(|mut volume| volume.statfs());
    assert_eq!(refused, Err(FsError::damaged("inode table shorter than it was made, in blocks", 0)));
}

/// An inode that nobody can read is in use as far as anybody knows; a question about sizes fails for none.
#[test]
fn damaged_inodes_count_as_used() {
    let used = |sim: &Arc<SimPmem>| {
        let pmem: Arc<dyn Pmem> = sim.clone();
        let sizes = mount(&pmem, &MountOptions::default()).unwrap().statfs().unwrap();
        sizes.nr_inodes - sizes.free_inodes
    };
    let image = sample();
    let table = (0..image.len()).step_by(4096).find(|&at| image[at + 256..].starts_with(b"UPIN")).unwrap();
    let whole = used(&Arc::new(SimPmem::from_bytes(image.clone())));
    let mut bytes = image.clone();
    bytes[table + 4096 + 40] ^= 1;
    assert_eq!(used(&Arc::new(SimPmem::from_bytes(bytes))), whole + 1);
    let sim = Arc::new(SimPmem::from_bytes(image));
    sim.break_range(table as u64 + 4096, table as u64 + 2 * 4096);
    assert_eq!(used(&sim), whole + 16);
}

/// Reads and changes something of every kind; the first error.
fn use_every_structure(bytes: &[u8]) -> Result<(), FsError> {
    let pmem: Arc<dyn Pmem> = Arc::new(SimPmem::from_bytes(bytes.to_vec()));
    let mut volume = mount(&pmem, &MountOptions::default())?;
    let mut dirs = vec![ROOT_INO];
    while let Some(dir) = dirs.pop() {
        for entry in volume.readdir(dir)? {
            match entry.kind {
                Kind::Directory => dirs.push(entry.ino),
                _ => {
                    volume.runs(entry.ino, 0, u64::MAX)?;
                    volume.attributes(entry.ino)?;
                }
            }
        }
    }
    let ino = volume.create(ROOT_INO, b"new", true)?;
    volume.write(ino, 0, b"x").map(drop)
}

/// What somebody else has written, or nobody, is no damaged file system; one of ours with a trace left is.
#[test]
fn a_foreign_medium_is_not_called_damaged() {
    let refusal = |bytes: Vec<u8>| {
        let pmem: Arc<dyn Pmem> = Arc::new(SimPmem::from_bytes(bytes));
        mount(&pmem, &MountOptions::default()).map(drop)
    };
    let mut random = Random::new(3);
    let noise = (0..1 << 20).map(|_| random.below(251) as u8).collect();
    assert_eq!([refusal(vec![0; 1 << 20]), refusal(noise)], [Err(FsError::NoFileSystem); 2]);
    assert!(!FsError::NoFileSystem.to_string().contains("damaged"));
    let image = sample();
    let last = image.len() - 4096;
    let with = |spoil: &dyn Fn(&mut Vec<u8>)| {
        let mut image = image.clone();
        spoil(&mut image);
        refusal(image)
    };
    // The first is all zeroes, and the copy serves, or is damaged, or has lost its magic number.
    assert_eq!(with(&|image| image[..4096].fill(0)), Ok(()));
    let copy = with(&|image| {
        image[..4096].fill(0);
        image[last + 20] ^= 1;
    });
    assert_eq!(copy, Err(FsError::damaged("superblock", (last / 4096) as u64)));
    let neither = with(&|image| {
        image[..4096].fill(0);
        image[last] ^= 1;
    });
    assert_eq!(neither, Err(FsError::NoFileSystem));
    // The first has no magic number, and is not lost either: it may be anybody's.
    assert_eq!(with(&|image| image[0] ^= 1), Err(FsError::NoFileSystem));
    let first = with(&|image| {
        image[20] ^= 1;
        image[last] ^= 1;
    });
    assert_eq!(first, Err(FsError::damaged("superblock", 0)));
}

/// Neither a mount nor a repair takes `bytes` for a file system, and neither writes to it. What each says.
fn left_alone(bytes: Vec<u8>) -> [FsError; 2] {
    let sim = Arc::new(SimPmem::from_bytes(bytes));
    let pmem: Arc<dyn Pmem> = sim.clone();
    let mounted = mount(&pmem, &MountOptions::default()).map(drop);
    let repaired = repair(&*sim);
    assert_eq!(sim.stats().stores, 0, "written to: {mounted:?}, {repaired:?}");
    [mounted.unwrap_err(), repaired.unwrap_err()]
}

/// Somebody else has the medium now, and our copy is still in the last block.
#[test]
fn the_copy_that_a_file_system_has_left_behind_is_not_taken_for_one() {
    let over = |at: usize, bytes: &[u8]| {
        let mut image = sample();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        image
    };
    // The first block is theirs: a swap area, a partition table, anything.
    let mut partitions = [0; 4096];
    partitions[510..512].copy_from_slice(&[0x55, 0xaa]);
    let mut swap = [0; 4096];
    swap[4086..].copy_from_slice(b"SWAPSPACE2");
    for first in [swap, partitions, [0x58; 4096]] {
        assert_eq!(left_alone(over(0, &first)), [FsError::NoFileSystem; 2]);
    }
    // A superblock that is whole, and of a version that we do not know.
    let mut image = sample();
    image[8] += 1;
    reseal(&mut image);
    assert!(left_alone(image).iter().all(|error| error.to_string().contains("another version")));
    // They leave the first block free, and use what is behind it.
    let mut theirs = vec![0; 2 * 4096];
    theirs[4096..][..16].copy_from_slice(b"NVDIMM_PFN_INFO\0");
    assert_eq!(left_alone(over(0, &theirs)), [FsError::damaged("state", 1); 2]);
    let wiped = [FsError::damaged("journal epoch", 0), FsError::damaged("state", 1)];
    assert_eq!(left_alone(over(0, &[0; 17 * 4096])), wiped);
    // The state is still there, and what else a mount reads is not.
    let mut image = over(0, &[0; 4096]);
    let table = (0..image.len()).step_by(4096).find(|&at| image[at + 256..].starts_with(b"UPIN")).unwrap();
    image[table..table + 4096].fill(0x58);
    assert_eq!(left_alone(image)[1], FsError::damaged("inode", 1));
}

/// It ends with the medium and does not begin with it, or it ends before: no copy of a file system that has the medium.
#[test]
fn the_copy_of_a_smaller_file_system_is_not_taken_for_the_mediums() {
    let sample = sample();
    let free = vec![0; sample.len()];
    assert_eq!(left_alone([free.clone(), sample.clone()].concat()), [FsError::NoFileSystem; 2]);
    let mut front = [sample, free].concat();
    front[..4096].fill(0);
    assert_eq!(left_alone(front), [FsError::NoFileSystem; 2]);
}

/// One bit of any structure is changed and nothing is sealed: the checker finds it, and so does whoever reads it.
#[test]
fn every_structure_is_checked_when_it_is_read() {
    let sim = Arc::new(SimPmem::from_bytes(sample()));
    let pmem: Arc<dyn Pmem> = sim.clone();
    // So that no journal puts anything right.
    let mut volume = mount(&pmem, &MountOptions::default()).unwrap();
    let layout = *volume.layout();
    assert_eq!(volume.load_all(), 0);
    let mut found = Vec::new();
    volume.owners(0, layout.nr_blocks, |(first, end, owner)| {
        let what = match owner {
            Owner::Mapping { .. } => "mapping block",
            Owner::Directory { .. } => "directory block",
            Owner::Attribute { .. } => "attribute block",
            Owner::Metadata | Owner::Data { .. } => return,
        };
        found.extend((first..end).map(|block| (what, block as usize * 4096, 4096)));
    });
    volume.unmount().unwrap();
    let image = sim.bytes();
    assert_eq!(use_every_structure(&image), Ok(()));
    let (desc, bitmap) = (layout.desc_start as usize * 4096, layout.bitmap_start as usize * 4096);
    found.extend([
        ("superblock", 0, 120),
        ("group descriptor", desc, 32),
        ("state", 4096, 32),
        ("bitmap", bitmap, 4096),
    ]);
    let table = layout.table_start as usize * 4096;
    found.extend((1..16).map(|ino| ("inode", table + ino * 256, 256)));
    let mut random = Random::new(5);
    let mut read = std::collections::BTreeMap::<_, u64>::new();
    for (what, at, len) in found {
        for _ in 0..12 {
            let mut bad = image.clone();
            let place = at + random.below(len as u64) as usize;
            bad[place] ^= 1 << random.below(8);
            let pmem: Arc<dyn Pmem> = Arc::new(SimPmem::from_bytes(bad.clone()));
            assert!(!check(&pmem, None).is_clean(), "the checker does not see byte {place:#x}, in a {what}");
            match use_every_structure(&bad) {
                Err(FsError::Damaged(_)) => *read.entry(what).or_default() += 1,
                // Its copy serves; an inode that is free is read by nobody.
                Ok(()) if what == "superblock" || what == "inode" => {}
                // Its magic number is what it is known by.
                Err(FsError::NoFileSystem) if what == "superblock" && place < 4 => {}
                other => panic!("byte {place:#x}, in a {what}: {other:?}"),
            }
        }
    }
    println!("found out by whoever reads: {read:?}");
    assert!(read.len() >= 7, "{read:?}");
}

/// covers: M5
#[test]
fn a_superblock_that_is_lost_is_written_anew_from_the_other_and_what_is_not_ours_is_left_alone() {
    const BLOCK: u64 = 4096;
    let sample = sample();
    let last = sample.len() as u64 / BLOCK - 1;
    let mounted = |sim: &Arc<SimPmem>| {
        let pmem: Arc<dyn Pmem> = sim.clone();
        mount(&pmem, &MountOptions::default()).map(|volume| volume.renewed().map(|renewed| renewed.to_string()))
    };
    let block = |sim: &SimPmem, nr: u64| sim.bytes()[(nr * BLOCK) as usize..][..BLOCK as usize].to_vec();
    assert_eq!(mounted(&Arc::new(SimPmem::from_bytes(sample.clone()))), Ok(None));
    for (lost, from) in [(0, last), (last, 0)] {
        let words = format!("the superblock at block {lost} was lost: written anew from the one at block {from}");
        let range = (lost * BLOCK) as usize..((lost + 1) * BLOCK) as usize;
        // It cannot be read; it was written over by zeroes, which healed it.
        let unreadable = Arc::new(SimPmem::from_bytes(sample.clone()));
        unreadable.break_range(lost * BLOCK, (lost + 1) * BLOCK);
        let mut bytes = sample.clone();
        bytes[range.clone()].fill(0);
        for sim in [unreadable, Arc::new(SimPmem::from_bytes(bytes))] {
            let before = sim.bytes();
            let pmem: Arc<dyn Pmem> = sim.clone();
            assert!(!check(&pmem, None).is_clean());
            assert!(sim.bytes() == before, "a check has written something");
            assert_eq!(mounted(&sim), Ok(Some(words.clone())));
            assert_eq!(block(&sim, lost), block(&SimPmem::from_bytes(sample.clone()), lost));
            assert_eq!(mounted(&sim), Ok(None), "it is whole now");
        }
        // Somebody else's bytes are in its place, and stay. Where they begin the medium, it is theirs.
        let mut bytes = sample.clone();
        bytes[range.clone()].fill(0x58);
        let sim = Arc::new(SimPmem::from_bytes(bytes));
        assert_eq!(mounted(&sim), if lost == 0 { Err(FsError::NoFileSystem) } else { Ok(None) });
        assert_eq!(block(&sim, lost), vec![0x58; BLOCK as usize]);
        match repair(&*sim) {
            Err(FsError::NoFileSystem) => assert_eq!(lost, 0),
            Err(FsError::Damaged(damage)) => assert!(lost == last && damage.what.contains("not ours")),
            other => panic!("{other:?}"),
        }
        assert_eq!(block(&sim, lost), vec![0x58; BLOCK as usize]);
        // One of ours that is damaged is not touched by a mount, and is by who asks for it.
        let mut bytes = sample.clone();
        bytes[range.start + 20] ^= 1;
        let sim = Arc::new(SimPmem::from_bytes(bytes));
        assert_eq!(mounted(&sim), Ok(None));
        assert_eq!(repair(&*sim).map(|renewed| renewed.map(|renewed| renewed.block)), Ok(Some(lost)));
        assert_eq!(repair(&*sim), Ok(None));
    }
    // The copy is one that is whole, of another file system: it is not damaged, but somebody's.
    let mut bytes = sample.clone();
    bytes.copy_within(..BLOCK as usize, (last * BLOCK) as usize);
    bytes[(last * BLOCK) as usize + 24] ^= 1;
    reseal(&mut bytes);
    let sim = Arc::new(SimPmem::from_bytes(bytes.clone()));
    assert!(matches!(repair(&*sim), Err(FsError::Damaged(damage)) if damage.what.contains("not ours")));
    assert!(sim.bytes() == bytes);
    // Both are lost: nothing can be said, and nothing is written.
    let mut bytes = sample;
    bytes[..BLOCK as usize].fill(0);
    bytes[(last * BLOCK) as usize..].fill(0);
    let sim = Arc::new(SimPmem::from_bytes(bytes.clone()));
    assert!(mounted(&sim).is_err() && repair(&*sim).is_err() && sim.bytes() == bytes);
}

/// Runs of two files overlap, and the longer one, which comes first, reaches into the next group.
// covers: M5
#[test]
fn overlapping_runs_that_reach_into_another_group_are_told_of() {
    const LEN: u32 = 40_000;
    let sim = Arc::new(SimPmem::new(45_000 * 4096));
    let pmem: Arc<dyn Pmem> = sim.clone();
    make(&pmem, &MakeOptions::default()).unwrap();
    let mut volume = mount(&pmem, &MountOptions::default()).unwrap();
    let first = |volume: &mut Volume, name: &[u8]| {
        let ino = volume.create(ROOT_INO, name, true).unwrap();
        volume.write(ino, 0, b"x").unwrap();
        (ino, volume.runs(ino, 0, 1).unwrap()[0].physical.unwrap())
    };
    let ((ino, a), (_, b)) = (first(&mut volume, b"a"), first(&mut volume, b"b"));
    assert!(a < b && b < a + u64::from(LEN) && a + u64::from(LEN) > fs::format::GROUP_BLOCKS, "{a}, {b}");
    volume.unmount().unwrap();
    let mut bytes = sim.bytes();
    let size = fs::format::INODE_SIZE as usize;
    for part in bytes.chunks_exact_mut(size) {
        let (raw, _) = RawInode::mut_from_prefix(part).unwrap();
        if raw.magic.get() == fs::format::INODE_MAGIC && raw.ino.get() == ino {
            raw.extents[0].len = LEN.into();
            raw.blocks = u64::from(LEN).into();
            raw.size = (u64::from(LEN) * 4096).into();
        }
    }
    reseal(&mut bytes);
    let pmem: Arc<dyn Pmem> = Arc::new(SimPmem::from_bytes(bytes));
    let report = check(&pmem, None);
    assert!(report.problems.iter().any(|line| line.contains("belongs to inode")), "{:?}", report.problems);
}

/// Wherever the power is cut while a lost superblock is written anew, the other one counts, and it can be repaired.
// covers: M5
#[test]
fn a_power_cut_while_a_superblock_is_written_anew() {
    let last = sample().len() / 4096 - 1;
    for lost in [0, last] {
        let mut bytes = sample();
        bytes[lost * 4096..(lost + 1) * 4096].fill(0);
        let sim = Arc::new(SimPmem::from_bytes(bytes));
        let mut recorder = sim.record();
        let pmem: Arc<dyn Pmem> = sim.clone();
        assert!(mount(&pmem, &MountOptions::default()).unwrap().renewed().is_some());
        let limits = Limits { per_point: 256, torn: 64, seed: 1 };
        let counts = recorder.crash_images(&sim, limits, &mut |image, _| {
            let pmem: Arc<dyn Pmem> = Arc::new(SimPmem::from_bytes(image.to_vec()));
            // The mount that was cut off may have left more to recover.
            let mounted = mount(&pmem, &MountOptions::default()).and_then(Volume::unmount);
            assert_eq!(mounted, Ok(()), "block {lost}");
            let repaired = repair(&*pmem);
            assert!(repaired.is_ok(), "block {lost}: {repaired:?}");
            assert!(check(&pmem, None).is_clean(), "block {lost}");
            true
        });
        assert!(counts.images > 4, "{counts:?}");
    }
}
