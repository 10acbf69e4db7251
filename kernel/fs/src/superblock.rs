//! The two superblocks, block 0 and the last one: one that is lost is written anew from the other.
//!
//! They never change after the file system was made, so that either is as good as the other. A mount renews one that the
//! medium has lost, or that holds nothing but zeroes, as after a write that made a lost block usable again. What holds
//! anything else may be somebody's: the mount leaves it alone, and [`repair`] takes it only for ours if it says so itself
//! and its checksum is wrong.
//!
//! Zeroes alone do not say that the medium is ours: other file systems leave their first block free. What was made over one
//! of ours may have left our copy in the last block. So nothing is written before the rest of the file system has been
//! seen: a mount has tried itself out by then, and [`repair`] looks at what a mount reads first.

use core::fmt;

use zerocopy::IntoBytes;

use crate::error::FsError;
use crate::format::{
    BLOCK_SIZE, INODE_MAGIC, INODE_SIZE, Kind, ROOT_INO, RawInode, RawState, RawSuper, STATE_MAGIC, SUPER_MAGIC,
    TABLE_INO, is_sealed, view,
};
use crate::layout::{Layout, STATE_BLOCK};
use crate::pmem::{Dirty, Pmem, store};

/// What the CPU stores whole, in bytes: the magic number and the checksum.
const WORD_BYTES: usize = 8;

/// A superblock that was written anew, or was to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Renewed {
    /// Its block.
    pub block: u64,
    /// The block of the other one, from which it was made.
    pub from: u64,
    /// What came of it.
    pub result: Result<(), FsError>,
}

impl fmt::Display for Renewed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { block, from, result } = self;
        match result {
            Ok(()) => write!(f, "the superblock at block {block} was lost: written anew from the one at block {from}"),
            Err(error) => write!(f, "the superblock at block {block} is lost, and cannot be written anew: {error}"),
        }
    }
}

/// What a block holds where a superblock should be, and is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// Nothing that can be read, or zeroes.
    Nothing,
    /// A superblock of ours that is damaged.
    Damaged,
    /// Something else: also a superblock that is whole, and another one than is expected.
    Other,
}

impl Found {
    pub(crate) fn at(pmem: &dyn Pmem, block: u64) -> Result<Self, FsError> {
        let mut bytes = [0; BLOCK_SIZE as usize];
        Ok(match pmem.read(block * BLOCK_SIZE, &mut bytes) {
            Err(FsError::DeviceGone) => return Err(FsError::DeviceGone),
            Err(FsError::Media(_)) => Self::Nothing,
            Ok(()) if bytes.iter().all(|&byte| byte == 0) => Self::Nothing,
            Ok(()) if is_sealed(&bytes[..size_of::<RawSuper>()], SUPER_MAGIC, 0) => Self::Other,
            Ok(()) if bytes.starts_with(&SUPER_MAGIC.to_le_bytes()) => Self::Damaged,
            _ => Self::Other,
        })
    }
}

fn is_good(pmem: &dyn Pmem, layout: &Layout, block: u64) -> bool {
    Layout::read_at(pmem, block).is_ok_and(|found| found == *layout)
}

/// Is the file system that `layout` describes there: the state, the inode table's own inode, and the root's?
fn check_there(pmem: &dyn Pmem, layout: &Layout) -> Result<(), FsError> {
    let mut state = [0; size_of::<RawState>()];
    pmem.read(STATE_BLOCK * BLOCK_SIZE, &mut state)?;
    if !is_sealed(&state, STATE_MAGIC, STATE_BLOCK) {
        return Err(FsError::damaged("state", STATE_BLOCK));
    }
    for (ino, kind) in [(TABLE_INO, Kind::Table), (ROOT_INO, Kind::Directory)] {
        let mut bytes = [0; INODE_SIZE as usize];
        pmem.read(layout.table_start * BLOCK_SIZE + ino * INODE_SIZE, &mut bytes)?;
        let raw: RawInode = view(&bytes, "inode", ino)?;
        if !is_sealed(&bytes, INODE_MAGIC, ino) || raw.ino.get() != ino || raw.kind != kind as u8 {
            return Err(FsError::damaged("inode", ino));
        }
    }
    Ok(())
}

fn write(pmem: &dyn Pmem, layout: &Layout, block: u64) -> Result<(), FsError> {
    pmem.renew(block * BLOCK_SIZE, BLOCK_SIZE)?;
    write_all(pmem, layout, &[block])
}

/// Writes the superblock to blocks of zeroes, or of a superblock of ours that is damaged. Its first word, which says whose it
/// is, lasts before the rest is begun, since of two cache lines either may last alone: so a power cut leaves zeroes, or a
/// superblock of ours that is damaged and can be repaired, and never what could be somebody else's.
pub(crate) fn write_all(pmem: &dyn Pmem, layout: &Layout, blocks: &[u64]) -> Result<(), FsError> {
    let mut bytes = [0; BLOCK_SIZE as usize];
    let raw = layout.raw();
    bytes[..raw.as_bytes().len()].copy_from_slice(raw.as_bytes());
    for part in [&bytes[..WORD_BYTES], &bytes[..]] {
        let mut dirty = Dirty::default();
        for block in blocks {
            dirty = dirty.and(store(pmem, block * BLOCK_SIZE, part)?);
        }
        let _lasts = dirty.write_back(pmem).fence(pmem)?;
    }
    Ok(())
}

/// Writes the superblock that is not at block `found` anew from that one, where it is lost.
///
/// # Errors
/// [`FsError::DeviceGone`]: nothing is known of it then.
pub(crate) fn renew(pmem: &dyn Pmem, layout: &Layout, found: u64) -> Result<Option<Renewed>, FsError> {
    let block = other(layout, found);
    let lost = !is_good(pmem, layout, block) && Found::at(pmem, block)? == Found::Nothing;
    let result = if lost { write(pmem, layout, block) } else { return Ok(None) };
    if result == Err(FsError::DeviceGone) {
        return Err(FsError::DeviceGone);
    }
    Ok(Some(Renewed { block, from: found, result }))
}

/// The same on request, of a file system that is not mounted; a superblock that is damaged is written anew, too. `None`:
/// both are whole.
///
/// Before it writes it looks whether the state and the first inodes are ours and whole. It does not replay the journal:
/// where a power cut has left one of them half-written, a mount comes first.
///
/// # Errors
/// [`FsError::NoFileSystem`]; neither can be read; or [`FsError::Damaged`]: what a mount reads first is not there, or in the
/// place of a superblock is what is not ours. Nothing has been written then.
pub fn repair(pmem: &dyn Pmem) -> Result<Option<Renewed>, FsError> {
    let (layout, found) = Layout::find(pmem)?;
    let block = other(&layout, found);
    if is_good(pmem, &layout, block) {
        return Ok(None);
    }
    match Found::at(pmem, block)? {
        Found::Nothing | Found::Damaged => {
            check_there(pmem, &layout)?;
            Ok(Some(Renewed { block, from: found, result: write(pmem, &layout, block) }))
        }
        Found::Other => Err(FsError::damaged("in place of a superblock is what is not ours, at block", block)),
    }
}

/// The block of the one that is not at block `found`.
fn other(layout: &Layout, found: u64) -> u64 {
    if found == 0 { layout.copy_block() } else { 0 }
}
