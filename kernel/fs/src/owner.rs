//! The reverse map: from a block of the device to its owner.
//!
//! It knows what never moves from the start, and every inode from when it is loaded until it is forgotten: mounting
//! costs nothing that grows with the number of files. An inode that is not loaded has no mapping, so that the walk
//! before a removal misses nothing; where a real failure needs the owner of any block, `Volume::load_all` completes
//! the map first.

use mm::rmap::{IntervalId, IntervalTree};

/// Whose block it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The file system itself: superblock, journal, descriptors, bitmaps, inode table.
    Metadata,
    /// Data of a file, `logical` being the file's block that the run begins with.
    Data {
        /// The file.
        ino: u64,
        /// The file's block.
        logical: u64,
    },
    /// Entries of a directory.
    Directory {
        /// The directory.
        ino: u64,
    },
    /// A mapping block: extents that did not fit into the inode.
    Mapping {
        /// The inode.
        ino: u64,
    },
    /// Attributes of an inode.
    Attribute {
        /// The inode.
        ino: u64,
    },
}

impl Owner {
    /// The file whose data it is.
    pub const fn file(self) -> Option<u64> {
        match self {
            Self::Data { ino, .. } => Some(ino),
            _ => None,
        }
    }

    /// Does the file system lose its own structures with such a block?
    pub const fn is_metadata(self) -> bool {
        !matches!(self, Self::Data { .. })
    }
}

/// An owned run of blocks: first block, end, owner.
pub type Owned = (u64, u64, Owner);

/// The map.
#[derive(Default)]
pub(crate) struct ReverseMap {
    tree: IntervalTree<Owner>,
}

impl ReverseMap {
    pub(crate) fn insert(&mut self, first: u64, nr: u64, owner: Owner) -> IntervalId {
        self.tree.insert(first, first + nr, owner)
    }
    pub(crate) fn remove(&mut self, id: IntervalId) {
        self.tree.remove(id);
    }
    /// Calls `visit` with every run that shares a block with `first .. end`: O(log n + answers). Says how many nodes
    /// were looked at.
    pub(crate) fn query(&self, first: u64, end: u64, mut visit: impl FnMut(Owned)) -> usize {
        self.tree.for_each_overlap(first, end, |start, end, &owner| visit((start, end, owner)))
    }
    /// The same for as long as `visit` answers that it wants more.
    pub(crate) fn query_while(&self, first: u64, end: u64, mut visit: impl FnMut(Owned) -> bool) {
        self.tree.overlaps_while(first, end, |start, end, &owner| visit((start, end, owner)));
    }
    pub(crate) fn len(&self) -> usize {
        self.tree.len()
    }
}
