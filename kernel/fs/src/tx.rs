//! A transaction: copies of the metadata blocks that an operation changes.
//!
//! An operation never touches the medium's metadata. It changes copies, and when it has succeeded the differences go
//! through the journal as one. An operation that fails drops its copies, and nothing has happened.

use alloc::boxed::Box;
use alloc::collections::btree_map::Entry;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use mm::sync::Arc;

use crate::error::FsError;
use crate::format::{ATTR_MAGIC, BLOCK_SIZE, DIR_MAGIC, EXTENTS_MAGIC, is_sealed, seal};
use crate::journal::Change;
use crate::layout::Layout;
use crate::mutant::Faults;
use crate::pmem::{Pmem, WrittenBack, store};

/// A block's bytes.
pub(crate) type Bytes = [u8; BLOCK_SIZE as usize];

/// What a metadata block is, and so how it is checked and sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BlockKind {
    /// The state; sealed by who changes it.
    State,
    /// Group descriptors; each sealed by who changes it.
    Descs,
    /// The bitmap of a group; its checksum is in the descriptor.
    Bitmap(u64),
    /// Inodes; each sealed by who changes it.
    Table,
    /// Extents of a file.
    Map,
    /// Directory entries.
    Dir,
    /// Attributes.
    Attr,
}

impl BlockKind {
    /// The magic number of those that have a checksum over the whole block.
    fn magic(self) -> Option<u32> {
        match self {
            Self::Map => Some(EXTENTS_MAGIC),
            Self::Dir => Some(DIR_MAGIC),
            Self::Attr => Some(ATTR_MAGIC),
            Self::State | Self::Descs | Self::Bitmap(_) | Self::Table => None,
        }
    }
}

/// A block being changed.
pub(crate) struct Image {
    pub(crate) bytes: Box<Bytes>,
    kind: BlockKind,
    way: Way,
}

/// How a block's new bytes get to the medium.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// The block holds metadata: the words that differ, through the journal.
    Differences,
    /// It was free: as a whole, before the record, and not through the journal.
    Before,
    /// It held data of a file until now, of which nobody knows how far they are durable: as a whole, through the journal.
    Whole,
}

/// Blocks that become free when the operation is done.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Freed {
    pub(crate) first: u64,
    pub(crate) nr: u64,
    /// The journal may hold changes to them.
    pub(crate) metadata: bool,
}

/// An operation under way.
#[derive(Default)]
pub(crate) struct Tx {
    pub(crate) images: BTreeMap<u64, Image>,
    /// New data, on their way.
    pub(crate) data: WrittenBack,
    /// Inodes whose in-memory copy has changed: forgotten where the operation fails.
    pub(crate) touched: BTreeSet<u64>,
    pub(crate) freed: Vec<Freed>,
    /// Blocks taken from the free ones.
    pub(crate) taken: u64,
    /// Inodes made, less those freed.
    pub(crate) inodes: i64,
    /// About how many bytes of the journal this will take.
    pub(crate) cost: usize,
}

impl Tx {
    /// Adds data on their way.
    pub(crate) fn add_data(&mut self, data: WrittenBack) {
        self.data = core::mem::take(&mut self.data).and(data);
    }

    /// These blocks are free once the operation is done, and not before: nothing may be put into them meanwhile.
    pub(crate) fn free(&mut self, first: u64, nr: u64, metadata: bool) {
        self.cost += 96 + nr as usize / 8;
        self.freed.push(Freed { first, nr, metadata });
    }

    /// A block that was free, as zeroes.
    pub(crate) fn fresh(&mut self, block: u64, kind: BlockKind) -> &mut Bytes {
        self.zeroes(block, kind, Way::Before)
    }

    /// A block that has held data of a file until now, as zeroes.
    pub(crate) fn logged(&mut self, block: u64, kind: BlockKind) -> &mut Bytes {
        self.cost += BLOCK_SIZE as usize;
        self.zeroes(block, kind, Way::Whole)
    }

    fn zeroes(&mut self, block: u64, kind: BlockKind, way: Way) -> &mut Bytes {
        let bytes = Box::new([0; BLOCK_SIZE as usize]);
        let image = self.images.entry(block).insert_entry(Image { bytes, kind, way });
        &mut image.into_mut().bytes
    }
}

/// The medium, with what is known of its layout.
pub(crate) struct Store {
    pub(crate) pmem: Arc<dyn Pmem>,
    pub(crate) layout: Layout,
    pub(crate) faults: Faults,
}

impl Store {
    /// A block as it is on the medium, checked where it has a checksum of its own.
    pub(crate) fn read(&self, block: u64, kind: BlockKind) -> Result<Box<Bytes>, FsError> {
        let mut bytes = Box::new([0; BLOCK_SIZE as usize]);
        self.pmem.read(block * BLOCK_SIZE, &mut bytes[..])?;
        match kind.magic() {
            Some(magic) if !is_sealed(&bytes[..], magic, block) => Err(FsError::damaged(
                match kind {
                    BlockKind::Map => "mapping block",
                    BlockKind::Dir => "directory block",
                    _ => "attribute block",
                },
                block,
            )),
            _ => Ok(bytes),
        }
    }

    /// The operation's copy of a block.
    pub(crate) fn image<'t>(&self, tx: &'t mut Tx, block: u64, kind: BlockKind) -> Result<&'t mut Bytes, FsError> {
        let image = match tx.images.entry(block) {
            Entry::Occupied(image) => image.into_mut(),
            Entry::Vacant(place) => place.insert(Image { bytes: self.read(block, kind)?, kind, way: Way::Differences }),
        };
        Ok(&mut image.bytes)
    }

    /// Seals the operation's blocks; answers what is to go through the journal.
    pub(crate) fn changes(&self, tx: &mut Tx) -> Result<Vec<Change>, FsError> {
        let mut changes = Vec::new();
        let mut home = [0; BLOCK_SIZE as usize];
        for (&block, image) in &mut tx.images {
            if let Some(magic) = image.kind.magic() {
                image.bytes[..4].copy_from_slice(&magic.to_le_bytes());
                seal(&mut image.bytes[..], block);
            }
            let offset = block * BLOCK_SIZE;
            match image.way {
                Way::Differences => {
                    self.pmem.read(offset, &mut home)?;
                    differences(offset, &home, &image.bytes, &mut changes);
                }
                Way::Whole => changes.push(Change { offset, bytes: image.bytes.to_vec() }),
                Way::Before => {}
            }
        }
        Ok(changes)
    }

    /// Writes the blocks that were free.
    pub(crate) fn write_fresh(&self, tx: &mut Tx) -> Result<(), FsError> {
        let mut written = WrittenBack::default();
        for (&block, image) in tx.images.iter().filter(|(_, image)| image.way == Way::Before) {
            let stored = store(&*self.pmem, block * BLOCK_SIZE, &image.bytes[..])?;
            written = written.and(stored.write_back(&*self.pmem));
        }
        tx.add_data(written);
        Ok(())
    }
}

/// Bytes that are compared as one.
const WORD: usize = 8;
/// Words that are alike between two that are not, and yet cheaper to write than to leave out.
const GAP: usize = 3;

/// The runs of words in which `new` differs from `old`.
fn differences(offset: u64, old: &Bytes, new: &Bytes, changes: &mut Vec<Change>) {
    let words = old.len() / WORD;
    let differs = |word: usize| old[word * WORD..][..WORD] != new[word * WORD..][..WORD];
    let mut word = 0;
    while word < words {
        if !differs(word) {
            word += 1;
            continue;
        }
        let (first, mut end) = (word, word + 1);
        word += 1;
        while word < words && word - end < GAP {
            if differs(word) {
                end = word + 1;
            }
            word += 1;
        }
        let bytes = new[first * WORD..end * WORD].to_vec();
        changes.push(Change { offset: offset + (first * WORD) as u64, bytes });
        word = end.max(word.min(end + GAP));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_name_every_changed_word_and_nothing_twice() {
        let old = [0_u8; 4096];
        let mut new = old;
        for at in [0, 8, 40, 4095] {
            new[at] = 1;
        }
        let mut changes = Vec::new();
        differences(8192, &old, &new, &mut changes);
        let runs: Vec<_> = changes.iter().map(|change| (change.offset - 8192, change.bytes.len())).collect();
        assert_eq!(runs, [(0, 16), (40, 8), (4088, 8)]);
        let mut replayed = old;
        for change in &changes {
            let at = (change.offset - 8192) as usize;
            replayed[at..at + change.bytes.len()].copy_from_slice(&change.bytes);
        }
        assert_eq!(replayed, new);
    }
}
