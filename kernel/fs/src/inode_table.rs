//! The inode table: making and freeing inodes, and the list of those that are to be cut to size or freed.
//!
//! Both lists are chained through the inodes and begin in inode 1. An inode on the *pending* list is unlinked, and
//! goes when nobody has it open; or it is linked, and blocks beyond its size wait to be freed. A mount works the
//! list off, so that a power cut in the middle loses nothing and keeps nothing.

use alloc::vec::Vec;

use zerocopy::IntoBytes;

use crate::error::FsError;
use crate::format::{
    BLOCK_SIZE, INODE_DAX, INODE_MAGIC, INODE_SIZE, INODES_PER_BLOCK, Kind, RawExtent, RawInode, TABLE_INO, seal,
};
use crate::layout::TABLE_CHUNK;
use crate::node::Node;
use crate::tx::{BlockKind, Bytes, Tx};
use crate::volume::Volume;

/// A free inode.
pub(crate) fn free_inode(ino: u64, generation: u32, next: u64) -> RawInode {
    let zero = RawExtent { logical: 0.into(), len: 0.into(), physical: 0.into() };
    let mut raw = RawInode {
        magic: INODE_MAGIC.into(),
        crc: 0.into(),
        ino: ino.into(),
        kind: Kind::Free as u8,
        flags: 0,
        pad: [0; 2],
        nlink: 0.into(),
        generation: generation.into(),
        pad2: 0.into(),
        size: 0.into(),
        blocks: 0.into(),
        mtime_ns: 0.into(),
        ctime_ns: 0.into(),
        parent: 0.into(),
        next: next.into(),
        map_head: 0.into(),
        attr_block: 0.into(),
        free_head: 0.into(),
        pending_head: 0.into(),
        reserved: 0.into(),
        reserved2: 0.into(),
        extents: [zero; crate::format::INLINE_EXTENTS],
    };
    seal(raw.as_mut_bytes(), ino);
    raw
}

/// A block of free inodes from `first` on; each leads to the next, and the last to `after`.
pub(crate) fn free_block(first: u64, after: u64, bytes: &mut Bytes) {
    for (slot, ino) in bytes.chunks_exact_mut(INODE_SIZE as usize).zip(first..) {
        let next = if ino + 1 == first + INODES_PER_BLOCK { after } else { ino + 1 };
        slot.copy_from_slice(free_inode(ino, 0, next).as_bytes());
    }
}

impl Volume {
    /// Makes an inode without a link.
    pub(crate) fn make_inode(&mut self, tx: &mut Tx, kind: Kind, parent: u64, dax: bool) -> Result<u64, FsError> {
        let mut ino = self.node(TABLE_INO)?.raw.free_head.get();
        if ino == 0 {
            self.grow_table(tx)?;
            ino = self.node(TABLE_INO)?.raw.free_head.get();
        }
        let old = self.raw_inode(tx, ino)?;
        if old.kind != Kind::Free as u8 || self.nodes.contains_key(&ino) {
            return Err(FsError::damaged("list of free inodes at inode", ino));
        }
        self.change(tx, TABLE_INO, |table, _| {
            table.raw.free_head = old.next;
            Ok(())
        })?;
        let mut raw = free_inode(ino, old.generation.get().wrapping_add(1), 0);
        raw.kind = kind as u8;
        raw.flags = if dax { INODE_DAX } else { 0 };
        raw.parent = parent.into();
        raw.mtime_ns = self.now_ns.into();
        let node = Node::load(&self.store, &mut self.owners, raw)?;
        self.nodes.insert(ino, node);
        self.change(tx, ino, |_, _| Ok(()))?;
        tx.inodes += 1;
        Ok(ino)
    }

    /// Adds a chunk of free inodes.
    fn grow_table(&mut self, tx: &mut Tx) -> Result<(), FsError> {
        let end = self.node(TABLE_INO)?.end();
        let store = &self.store;
        let run = store.take(tx, TABLE_CHUNK, self.hint, false)?;
        for nr in 0..run.nr {
            let first = (end + nr) * INODES_PER_BLOCK;
            let after = if nr + 1 == run.nr { 0 } else { first + INODES_PER_BLOCK };
            free_block(first, after, tx.fresh(run.first + nr, BlockKind::Table));
        }
        self.change(tx, TABLE_INO, |table, change| {
            table.add(change, end, run.first, run.nr)?;
            table.raw.size += run.nr * BLOCK_SIZE;
            table.raw.free_head = (end * INODES_PER_BLOCK).into();
            Ok(())
        })
    }

    /// Frees an inode that has no block any more.
    pub(crate) fn unmake_inode(&mut self, tx: &mut Tx, ino: u64) -> Result<(), FsError> {
        let generation = self.node(ino)?.raw.generation.get();
        let next = self.change(tx, TABLE_INO, |table, _| {
            let next = table.raw.free_head.get();
            table.raw.free_head = ino.into();
            Ok(next)
        })?;
        tx.touched.insert(ino);
        let (block, at) = self.inode_place(ino)?;
        let bytes = self.store.image(tx, block, BlockKind::Table)?;
        bytes[at..at + INODE_SIZE as usize].copy_from_slice(free_inode(ino, generation, next).as_bytes());
        tx.inodes -= 1;
        Ok(())
    }

    /// Puts an inode on the pending list. `self.pending` follows when the operation has succeeded.
    pub(crate) fn link_pending(&mut self, tx: &mut Tx, ino: u64) -> Result<(), FsError> {
        let next = self.change(tx, TABLE_INO, |table, _| {
            let next = table.raw.pending_head.get();
            table.raw.pending_head = ino.into();
            Ok(next)
        })?;
        self.change(tx, ino, |node, _| {
            node.raw.next = next.into();
            Ok(())
        })
    }

    /// Takes an inode off the pending list. `self.pending` follows when the operation has succeeded.
    pub(crate) fn unlink_pending(&mut self, tx: &mut Tx, ino: u64) -> Result<(), FsError> {
        let at = self.pending.iter().position(|&other| other == ino);
        let at = at.ok_or(FsError::damaged("pending list lacks inode", ino))?;
        let next = self.node(ino)?.raw.next;
        match self.pending.get(at + 1).copied() {
            Some(before) => self.change(tx, before, |node, _| {
                node.raw.next = next;
                Ok(())
            })?,
            None => self.change(tx, TABLE_INO, |table, _| {
                table.raw.pending_head = next;
                Ok(())
            })?,
        }
        self.change(tx, ino, |node, _| {
            node.raw.next = 0.into();
            Ok(())
        })
    }

    /// Inodes in the table's blocks, and how many of them are in use: of a file, of a directory, or of the table. Counted
    /// once, when somebody asks, and kept up from then on. An inode that cannot be read, or is damaged, counts as in use:
    /// nobody gets it.
    pub(crate) fn count_inodes(&mut self) -> Result<(u64, u64), FsError> {
        // Number 0 is none.
        let nr = self.node(TABLE_INO)?.end() * INODES_PER_BLOCK - 1;
        if let Some(used) = self.used_inodes {
            return Ok((nr, used));
        }
        let mut used = 0;
        for first in (0..=nr).step_by(INODES_PER_BLOCK as usize) {
            let mut tx = Tx::default();
            for ino in first.max(TABLE_INO)..first + INODES_PER_BLOCK {
                used += match self.raw_inode(&mut tx, ino) {
                    Ok(raw) => u64::from(raw.kind != Kind::Free as u8),
                    Err(FsError::Damaged(_) | FsError::Media(_)) => 1,
                    Err(error) => return Err(error),
                };
            }
        }
        self.used_inodes = Some(used);
        Ok((nr, used))
    }

    pub(crate) fn is_pending(&self, ino: u64) -> bool {
        self.pending.contains(&ino)
    }

    /// Reads the pending list: the newest last, as `self.pending` has it.
    pub(crate) fn read_pending(&mut self) -> Result<Vec<u64>, FsError> {
        let mut list = Vec::new();
        let mut ino = self.node(TABLE_INO)?.raw.pending_head.get();
        let mut seen = alloc::collections::BTreeSet::new();
        while ino != 0 {
            if !seen.insert(ino) || ino == TABLE_INO {
                return Err(FsError::damaged("pending list at inode", ino));
            }
            list.push(ino);
            ino = self.node(ino)?.raw.next.get();
        }
        list.reverse();
        Ok(list)
    }
}
