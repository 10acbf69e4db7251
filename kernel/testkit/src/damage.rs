//! Damaged images: what must hold whatever the bytes say. For the tests and the fuzz target.

use fs::check::check;
use fs::error::FsError;
use fs::format::{
    ATTR_MAGIC, BLOCK_SIZE, DESC_MAGIC, DIR_MAGIC, EXTENTS_MAGIC, INODE_MAGIC, INODE_SIZE, Kind, ROOT_INO, RawDesc,
    RawInode, RawSuper, STATE_MAGIC, SUPER_MAGIC, crc_of, seal,
};
use fs::layout::{Layout, STATE_BLOCK};
use fs::mount::{MakeOptions, MountOptions, make, mount};
use fs::pmem::Pmem;
use fs::volume::Volume;
use mm::sync::Arc;
use zerocopy::{FromBytes, IntoBytes};

use crate::sim::SimPmem;

/// Makes the checksums of everything that looks like a structure right, so that damage gets past them.
pub fn reseal(bytes: &mut [u8]) {
    let block = BLOCK_SIZE as usize;
    let nr = bytes.len() / block;
    let magic = |bytes: &[u8]| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    for (number, bytes) in bytes.chunks_exact_mut(block).enumerate() {
        let salt = number as u64;
        match magic(bytes) {
            SUPER_MAGIC => seal(&mut bytes[..size_of::<RawSuper>()], 0),
            STATE_MAGIC => seal(&mut bytes[..32], STATE_BLOCK),
            DIR_MAGIC | EXTENTS_MAGIC | ATTR_MAGIC => seal(bytes, salt),
            _ => {}
        }
        for part in bytes.chunks_exact_mut(INODE_SIZE as usize).filter(|part| magic(part) == INODE_MAGIC) {
            let ino = RawInode::read_from_prefix(part).map_or(0, |(raw, _)| raw.ino.get());
            seal(part, ino);
        }
    }
    // Descriptors know their bitmaps, whose place follows from the size alone.
    let Ok(layout) = Layout::plan(nr as u64, None, 0) else { return };
    for group in 0..layout.nr_groups() {
        let (at, offset) = layout.desc_place(group);
        let at = (at * BLOCK_SIZE) as usize + offset;
        let bitmap = ((layout.bitmap_start + group) * BLOCK_SIZE) as usize;
        let Ok((mut desc, _)) = RawDesc::read_from_prefix(&bytes[at..]) else { return };
        if desc.magic.get() == DESC_MAGIC {
            desc.bitmap_crc = crc_of(&bytes[bitmap..bitmap + block], group).into();
            seal(desc.as_mut_bytes(), group);
            bytes[at..at + size_of::<RawDesc>()].copy_from_slice(desc.as_bytes());
        }
    }
}

/// The properties: the checker and the mount end, with an answer; neither panics; the checker writes nothing, and a
/// mount that is refused neither; a file system that is mounted answers every call, if with an error.
///
/// # Panics
/// Where they do not hold.
pub fn check_image(bytes: &[u8]) {
    let sim = Arc::new(SimPmem::from_bytes(bytes.to_vec()));
    let pmem: Arc<dyn Pmem> = sim.clone();
    let report = check(&pmem, None);
    assert_eq!(sim.stats().stores, 0, "the checker has written");
    match mount(&pmem, &MountOptions::default()) {
        Err(_) => {
            assert_eq!(sim.stats().stores, 0, "a mount that was refused has written");
            assert!(!report.is_clean(), "the checker is content with what cannot be mounted");
        }
        Ok(mut volume) => {
            let _ = use_all(&mut volume);
            let _ = volume.unmount();
        }
    }
}

/// Looks at everything and changes a little of each kind; stops at the first error of a change.
fn use_all(volume: &mut Volume) -> Result<(), FsError> {
    let mut to_do = Vec::from([(ROOT_INO, 0)]);
    let mut files = Vec::new();
    while let Some((dir, depth)) = to_do.pop() {
        for entry in volume.readdir(dir).unwrap_or_default() {
            match volume.stat(entry.ino) {
                Ok(stat) if stat.kind == Kind::Directory && depth < 4 => to_do.push((entry.ino, depth + 1)),
                Ok(_) => files.push(entry.ino),
                Err(_) => {}
            }
        }
    }
    let mut buf = [0; 5000];
    for &ino in &files {
        let _ = volume.read(ino, 100, &mut buf);
        let _ = volume.attributes(ino);
    }
    let ino = volume.create(ROOT_INO, b"new file", true)?;
    volume.write(ino, 3000, &buf)?;
    volume.truncate(ino, 10)?;
    for &ino in &files {
        let _ = volume.write(ino, 4000, b"overwritten");
        let _ = volume.punch(ino, 0, 9000);
        let _ = volume.truncate(ino, 1);
    }
    let dir = volume.mkdir(ROOT_INO, b"new directory")?;
    volume.rename((ROOT_INO, b"new file"), (dir, b"moved"))?;
    if let Some(gone) = volume.unlink(dir, b"moved")? {
        volume.free(gone)?;
    }
    let gone = volume.rmdir(ROOT_INO, b"new directory")?;
    volume.free(gone)
}

/// A small file system with something of everything, as an image: 256 blocks.
///
/// # Panics
/// Never: there is room for it.
pub fn sample() -> Vec<u8> {
    let sim = Arc::new(SimPmem::new(256 * BLOCK_SIZE as usize));
    let pmem: Arc<dyn Pmem> = sim.clone();
    let made = || -> Result<(), FsError> {
        make(&pmem, &MakeOptions::default())?;
        let mut volume = mount(&pmem, &MountOptions::default())?;
        let dir = volume.mkdir(ROOT_INO, b"directory")?;
        for nr in 0..4_u8 {
            let ino = volume.create(dir, &[b'a' + nr; 60], nr % 2 == 0)?;
            for piece in 0..12 {
                volume.write(ino, piece * 2 * BLOCK_SIZE, &[nr; 5000])?;
                volume.punch(ino, piece * 2 * BLOCK_SIZE, BLOCK_SIZE)?;
            }
            volume.set_attributes(ino, b"colour=red")?;
        }
        let ino = volume.lookup(dir, &[b'a'; 60])?;
        volume.link(ino, ROOT_INO, b"link")?;
        // Unlinked and not freed, as a power cut leaves an open file.
        volume.unlink(dir, &[b'b'; 60]).map(drop)
    };
    made().expect("256 blocks are enough for the sample");
    sim.bytes()
}
