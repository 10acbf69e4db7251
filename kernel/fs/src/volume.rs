//! A mounted file system, without the memory management around it: one caller at a time, inodes by number, each
//! operation durable when it returns. [`Mounted`](crate::mounted::Mounted) puts locks, mappings, freezing and the
//! device's life around it.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use zerocopy::IntoBytes;

use crate::dir::Names;
use crate::error::{FsError, ShutdownReason};
use crate::format::{
    BLOCK_SIZE, GROUP_BLOCKS, INODE_MAGIC, INODES_PER_BLOCK, Kind, RawInode, TABLE_INO, is_sealed, view,
};
use crate::journal::Journal;
use crate::layout::Layout;
use crate::mutant::Mutant;
use crate::node::{Change, Node};
use crate::owner::{Owned, ReverseMap};
use crate::superblock::Renewed;
use crate::tx::{BlockKind, Store, Tx};

/// A mounted file system.
pub struct Volume {
    pub(crate) store: Store,
    pub(crate) journal: Journal,
    /// Loaded inodes. The inode table is always among them.
    pub(crate) nodes: BTreeMap<u64, Node>,
    pub(crate) owners: ReverseMap,
    /// Inodes that are to be cut to size, or freed, in the order of the list on the medium.
    pub(crate) pending: Vec<u64>,
    pub(crate) free_blocks: u64,
    /// Inodes in use, once somebody has asked.
    pub(crate) used_inodes: Option<u64>,
    /// A change failed half-way: nothing may be changed any more.
    pub(crate) broken: Option<ShutdownReason>,
    /// What inodes get as their time.
    pub(crate) now_ns: u64,
    pub(crate) hint: u64,
    /// See [`renewed`](Self::renewed).
    pub(crate) renewed: Option<Renewed>,
}

/// Sizes of a file system (Linux: `struct statfs`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatFs {
    /// Blocks of 4096 bytes in all.
    pub nr_blocks: u64,
    /// Of these, free.
    pub free_blocks: u64,
    /// Blocks that can hold data at all.
    pub data_blocks: u64,
    /// Inodes that there are, in use or not, and that free blocks could hold: the inode table grows.
    pub nr_inodes: u64,
    /// Of these, not in use.
    pub free_inodes: u64,
}

impl Volume {
    /// Where everything lies.
    pub fn layout(&self) -> &Layout {
        &self.store.layout
    }

    /// Sizes. Asked for the first time it reads all of the inode table. An inode that is damaged there, or cannot be read,
    /// counts as in use, so that `free_inodes` is too small by up to one for each until the next mount; who opens such an
    /// inode is told.
    ///
    /// # Errors
    /// [`FsError::DeviceGone`].
    pub fn statfs(&mut self) -> Result<StatFs, FsError> {
        let (inodes, used) = self.count_inodes()?;
        let nr_inodes = inodes + self.free_blocks * INODES_PER_BLOCK;
        let layout = self.layout();
        Ok(StatFs {
            nr_blocks: layout.nr_blocks,
            free_blocks: self.free_blocks,
            data_blocks: layout.copy_block() - layout.data_start,
            nr_inodes,
            free_inodes: nr_inodes.saturating_sub(used),
        })
    }

    /// The superblock that this mount found lost.
    pub fn renewed(&self) -> Option<Renewed> {
        self.renewed
    }

    /// The time that changes get from now on, in nanoseconds.
    pub fn set_time(&mut self, now_ns: u64) {
        self.now_ns = now_ns;
    }

    /// Calls `visit` with the owned runs that share a block with `first .. end`, as far as inodes are loaded. Says
    /// how many nodes of the map were looked at.
    pub fn owners(&self, first: u64, end: u64, visit: impl FnMut(Owned)) -> usize {
        self.owners.query(first, end, visit)
    }
    /// The same for as long as `visit` answers that it wants more.
    pub(crate) fn owners_while(&self, first: u64, end: u64, visit: impl FnMut(Owned) -> bool) {
        self.owners.query_while(first, end, visit);
    }
    /// How many runs the reverse map knows.
    pub fn nr_owned_runs(&self) -> usize {
        self.owners.len()
    }

    // ---- inodes ----

    /// Block of the device and offset in it of an inode.
    pub(crate) fn inode_place(&self, ino: u64) -> Result<(u64, usize), FsError> {
        let at = (ino % INODES_PER_BLOCK) as usize * size_of::<RawInode>();
        if ino < INODES_PER_BLOCK {
            return Ok((self.store.layout.table_start, at));
        }
        let table = self.nodes.get(&TABLE_INO).ok_or(FsError::NotFound)?;
        let logical = ino / INODES_PER_BLOCK;
        match table.piece(logical, logical.saturating_add(1)).physical {
            Some(block) => Ok((block, at)),
            None => Err(FsError::NotFound),
        }
    }

    /// An inode as this operation sees it. Checked.
    pub(crate) fn raw_inode(&self, tx: &mut Tx, ino: u64) -> Result<RawInode, FsError> {
        if ino == 0 {
            return Err(FsError::NotFound);
        }
        let (block, at) = self.inode_place(ino)?;
        let bytes = &self.store.image(tx, block, BlockKind::Table)?[at..at + size_of::<RawInode>()];
        let raw: RawInode = view(bytes, "inode", ino)?;
        if !is_sealed(bytes, INODE_MAGIC, ino) || raw.ino.get() != ino || Kind::from_u8(raw.kind).is_none() {
            return Err(FsError::damaged("inode", ino));
        }
        Ok(raw)
    }

    /// An inode, loaded where it was not.
    pub(crate) fn node(&mut self, ino: u64) -> Result<&mut Node, FsError> {
        if !self.nodes.contains_key(&ino) {
            let raw = self.raw_inode(&mut Tx::default(), ino)?;
            if (ino == TABLE_INO) != (raw.kind == Kind::Table as u8) {
                return Err(FsError::damaged("kind of inode", ino));
            }
            let node = Node::load(&self.store, &mut self.owners, raw)?;
            self.nodes.insert(ino, node);
        }
        self.nodes.get_mut(&ino).ok_or(FsError::NotFound)
    }

    /// A regular file.
    pub(crate) fn file(&mut self, ino: u64) -> Result<&mut Node, FsError> {
        let node = self.node(ino)?;
        match node.kind {
            Kind::File => Ok(node),
            Kind::Directory => Err(FsError::IsDirectory),
            Kind::Table | Kind::Free => Err(FsError::NotFound),
        }
    }

    /// A directory with its entries.
    pub(crate) fn dir(&mut self, ino: u64) -> Result<&mut Node, FsError> {
        self.node(ino)?;
        let node = self.nodes.get_mut(&ino).ok_or(FsError::NotFound)?;
        if node.kind != Kind::Directory {
            return Err(FsError::NotDirectory);
        }
        if node.names.is_none() {
            node.names = Some(Names::load(&self.store, node)?);
        }
        Ok(node)
    }

    /// Is the inode in memory?
    pub(crate) fn is_loaded(&self, ino: u64) -> bool {
        self.nodes.contains_key(&ino)
    }

    /// Forgets an inode's in-memory copy: it is loaded again when it is needed.
    pub(crate) fn forget(&mut self, ino: u64) {
        if ino != TABLE_INO
            && let Some(mut node) = self.nodes.remove(&ino)
        {
            node.unload(&mut self.owners);
        }
    }

    /// Changes an inode's copy by `work`, and enters the copy into the operation.
    pub(crate) fn change<R>(
        &mut self,
        tx: &mut Tx,
        ino: u64,
        work: impl FnOnce(&mut Node, &mut Change<'_>) -> Result<R, FsError>,
    ) -> Result<R, FsError> {
        self.node(ino)?;
        tx.touched.insert(ino);
        let (block, at) = self.inode_place(ino)?;
        let now_ns = self.now_ns;
        let node = self.nodes.get_mut(&ino).ok_or(FsError::NotFound)?;
        node.raw.ctime_ns = now_ns.into();
        let mut change = Change { store: &self.store, owners: &mut self.owners, tx, hint: self.hint };
        let result = work(node, &mut change)?;
        let bytes = self.store.image(tx, block, BlockKind::Table)?;
        bytes[at..at + size_of::<RawInode>()].copy_from_slice(node.sealed().as_bytes());
        tx.cost += 64;
        Ok(result)
    }

    // ---- operations as a whole ----

    /// Runs an operation: all of it happens, durably, or nothing.
    pub(crate) fn operation<R>(
        &mut self,
        work: impl FnOnce(&mut Self, &mut Tx) -> Result<R, FsError>,
    ) -> Result<R, FsError> {
        if let Some(reason) = self.broken {
            return Err(FsError::ShutDown(reason));
        }
        let mut tx = Tx::default();
        let result = work(self, &mut tx).and_then(|result| self.commit(&mut tx).map(|()| result));
        if result.is_err() {
            for &ino in &tx.touched {
                self.forget(ino);
            }
            if tx.touched.contains(&TABLE_INO) {
                self.reload_table();
            }
            // As they are on the medium: a file that tasks map is to be found by its blocks. One that was made is not there.
            for &ino in &tx.touched {
                let _not_there_or_looked_for = self.node(ino);
            }
        }
        result
    }

    /// An operation that changed the table's copy has failed.
    fn reload_table(&mut self) {
        let raw = self.raw_inode(&mut Tx::default(), TABLE_INO);
        if let Some(mut old) = self.nodes.remove(&TABLE_INO) {
            old.unload(&mut self.owners);
        }
        match raw.and_then(|raw| Node::load(&self.store, &mut self.owners, raw)) {
            Ok(node) => {
                self.nodes.insert(TABLE_INO, node);
            }
            Err(FsError::DeviceGone) => self.broken = Some(ShutdownReason::DeviceGone),
            Err(_) => self.broken = Some(ShutdownReason::Corrupt),
        }
    }

    fn commit(&mut self, tx: &mut Tx) -> Result<(), FsError> {
        self.store.settle_space(tx)?;
        let changes = self.store.changes(tx)?;
        if Journal::size_of(&changes) > self.journal.capacity() {
            return Err(FsError::JournalTooSmall);
        }
        // From here on the medium is written: an error leaves it to the next mount to find out what it holds.
        let written = self.write_out(tx, &changes);
        if let Err(error) = written {
            self.broken = Some(match error {
                FsError::DeviceGone => ShutdownReason::DeviceGone,
                _ => ShutdownReason::MetadataIo,
            });
            return Err(error);
        }
        let freed: u64 = tx.freed.iter().map(|freed| freed.nr).sum();
        self.free_blocks = (self.free_blocks + freed).saturating_sub(tx.taken);
        self.used_inodes = self.used_inodes.map(|used| used.saturating_add_signed(tx.inodes));
        Ok(())
    }

    fn write_out(&mut self, tx: &mut Tx, changes: &[crate::journal::Change]) -> Result<(), FsError> {
        let home = &*self.store.pmem;
        self.journal.make_room(home, changes)?;
        self.store.write_fresh(tx)?;
        let data = core::mem::take(&mut tx.data);
        if changes.is_empty() {
            let _durable = data.fence(home)?;
            return Ok(());
        }
        self.journal.commit(home, changes, data)?;
        let logged = |freed: &crate::tx::Freed| freed.metadata && self.journal.has_logged(freed.first, freed.nr);
        if tx.freed.iter().any(logged) && !self.store.faults.has(Mutant::FreedMetadataReused) {
            self.journal.empty(home)?;
        }
        Ok(())
    }

    /// How much of the journal one step of a long operation may take.
    pub(crate) fn budget(&self) -> usize {
        self.journal.capacity() / 4
    }

    /// Notes where free blocks were found, so that the next search begins there.
    pub(crate) fn note_hint(&mut self, block: u64) {
        self.hint = block / GROUP_BLOCKS;
    }

    /// Bytes to blocks, rounding up.
    pub(crate) fn blocks(bytes: u64) -> u64 {
        bytes.div_ceil(BLOCK_SIZE)
    }
}
