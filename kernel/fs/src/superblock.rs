//! The two superblocks, block 0 and the last one: one that is lost is written anew from the other.
//!
//! They never change after the file system was made, so that either is as good as the other. A mount renews one that the
//! medium has lost, or that holds nothing but zeroes, as after a write that made a lost block usable again. What holds
//! anything else may be somebody's: the mount leaves it alone, and [`repair`] takes it only for ours if it says so itself.

use core::fmt;

use zerocopy::IntoBytes;

use crate::error::FsError;
use crate::format::{BLOCK_SIZE, SUPER_MAGIC};
use crate::layout::Layout;
use crate::pmem::{Pmem, store};

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

/// What a block holds where a superblock should be.
enum Found {
    /// A superblock that is whole.
    Good,
    /// Nothing that can be read, or zeroes.
    Nothing,
    /// A superblock of ours that is damaged.
    Damaged,
    /// Something else.
    Other,
}

fn look(pmem: &dyn Pmem, layout: &Layout, block: u64) -> Found {
    if Layout::read_at(pmem, block).is_ok_and(|found| found == *layout) {
        return Found::Good;
    }
    let mut bytes = [0; BLOCK_SIZE as usize];
    match pmem.read(block * BLOCK_SIZE, &mut bytes) {
        Err(FsError::Media(_)) => Found::Nothing,
        Ok(()) if bytes.iter().all(|&byte| byte == 0) => Found::Nothing,
        Ok(()) if bytes.starts_with(&SUPER_MAGIC.to_le_bytes()) => Found::Damaged,
        _ => Found::Other,
    }
}

fn write(pmem: &dyn Pmem, layout: &Layout, block: u64) -> Result<(), FsError> {
    // A power cut in between leaves zeroes, which the next mount renews.
    pmem.renew(block * BLOCK_SIZE, BLOCK_SIZE)?;
    let mut bytes = [0; BLOCK_SIZE as usize];
    let raw = layout.raw();
    bytes[..raw.as_bytes().len()].copy_from_slice(raw.as_bytes());
    let _renewed = store(pmem, block * BLOCK_SIZE, &bytes)?.write_back(pmem).fence(pmem)?;
    Ok(())
}

/// Writes the superblock that is not at block `found` anew from that one, where it is lost.
pub(crate) fn renew(pmem: &dyn Pmem, layout: &Layout, found: u64) -> Option<Renewed> {
    let block = other(layout, found);
    let lost = matches!(look(pmem, layout, block), Found::Nothing);
    lost.then(|| Renewed { block, from: found, result: write(pmem, layout, block) })
}

/// The same on request, of a file system that is not mounted; a superblock that is damaged is written anew, too. `None`:
/// both are whole.
///
/// # Errors
/// Neither can be read; or [`FsError::Damaged`]: in the place of one is what is not ours, and is left alone.
pub fn repair(pmem: &dyn Pmem) -> Result<Option<Renewed>, FsError> {
    let (layout, found) = Layout::find(pmem)?;
    let block = other(&layout, found);
    match look(pmem, &layout, block) {
        Found::Good => Ok(None),
        Found::Nothing | Found::Damaged => {
            Ok(Some(Renewed { block, from: found, result: write(pmem, &layout, block) }))
        }
        Found::Other => Err(FsError::damaged("in place of a superblock is what is not ours, at block", block)),
    }
}

/// The block of the one that is not at block `found`.
fn other(layout: &Layout, found: u64) -> u64 {
    if found == 0 { layout.copy_block() } else { 0 }
}
