//! An inode in memory: its fields and its extents.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use mm::rmap::IntervalId;
use zerocopy::IntoBytes;

use crate::dir::Names;
use crate::error::FsError;
use crate::format::{
    BLOCK_EXTENTS, BLOCK_SIZE, INLINE_EXTENTS, INODE_DAX, INODE_MAGIC, Kind, MAX_FILE, RawExtent, RawInode, RawMapHead,
    seal, view,
};
use crate::layout::TABLE_CHUNK;
use crate::mutant::Mutant;
use crate::owner::{Owner, ReverseMap};
use crate::space::Run;
use crate::tx::{BlockKind, Store, Tx};

/// Where an extent is written: index in a mapping block, or in the inode where `block` is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Slot {
    block: u64,
    index: u16,
}

/// A run of blocks of a file, by its first block in the file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extent {
    pub(crate) len: u64,
    pub(crate) physical: u64,
    slot: Slot,
    id: IntervalId,
}

/// An inode in memory.
pub(crate) struct Node {
    pub(crate) ino: u64,
    pub(crate) kind: Kind,
    /// What goes to the inode table.
    pub(crate) raw: RawInode,
    /// By first block in the file.
    pub(crate) extents: BTreeMap<u64, Extent>,
    free_slots: BTreeSet<Slot>,
    /// Mapping blocks, first to last.
    chain: Vec<(u64, IntervalId)>,
    attr: Option<IntervalId>,
    /// A directory's entries, once they were needed.
    pub(crate) names: Option<Names>,
}

/// What changing a node takes.
pub(crate) struct Change<'c> {
    pub(crate) store: &'c Store,
    pub(crate) owners: &'c mut ReverseMap,
    pub(crate) tx: &'c mut Tx,
    /// Group in which to look for blocks first.
    pub(crate) hint: u64,
}

/// A run of a file that is there, or a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// First block in the file.
    pub logical: u64,
    /// Blocks.
    pub len: u64,
    /// First block of the device; `None`: a hole.
    pub physical: Option<u64>,
}

impl Node {
    /// Reads what belongs to `raw`, and enters it in the reverse map.
    pub(crate) fn load(store: &Store, owners: &mut ReverseMap, raw: RawInode) -> Result<Self, FsError> {
        let ino = raw.ino.get();
        let Some(kind) = Kind::from_u8(raw.kind).filter(|&kind| kind != Kind::Free) else {
            return Err(FsError::NotFound);
        };
        let mut node = Self {
            ino,
            kind,
            raw,
            extents: BTreeMap::new(),
            free_slots: BTreeSet::new(),
            chain: Vec::new(),
            attr: None,
            names: None,
        };
        match node.load_all(store, owners) {
            Ok(()) => Ok(node),
            Err(error) => {
                node.unload(owners);
                Err(error)
            }
        }
    }

    fn load_all(&mut self, store: &Store, owners: &mut ReverseMap) -> Result<(), FsError> {
        let raw = self.raw;
        for (index, extent) in raw.extents.iter().enumerate() {
            self.load_extent(store, owners, *extent, Slot { block: 0, index: index as u16 })?;
        }
        let mut block = raw.map_head.get();
        while block != 0 {
            let seen = self.chain.iter().any(|&(other, _)| other == block);
            if seen || !store.layout.is_data(block, 1) {
                return Err(FsError::damaged("chain of mapping blocks of inode", self.ino));
            }
            let bytes = store.read(block, BlockKind::Map)?;
            let head: RawMapHead = view(&bytes[..], "mapping block", block)?;
            if head.ino.get() != self.ino {
                return Err(FsError::damaged("mapping block of another inode", block));
            }
            self.chain.push((block, owners.insert(block, 1, Owner::Mapping { ino: self.ino })));
            for index in 0..BLOCK_EXTENTS {
                let at = size_of::<RawMapHead>() + index * size_of::<RawExtent>();
                let extent = view(&bytes[at..], "mapping block", block)?;
                self.load_extent(store, owners, extent, Slot { block, index: index as u16 })?;
            }
            block = head.next.get();
        }
        let attr = raw.attr_block.get();
        if attr != 0 {
            if !store.layout.is_data(attr, 1) {
                return Err(FsError::damaged("attribute block of inode", self.ino));
            }
            self.attr = Some(owners.insert(attr, 1, Owner::Attribute { ino: self.ino }));
        }
        let len = self.extents.values().map(|extent| extent.len).sum::<u64>();
        let held = len + self.own_blocks().count() as u64;
        if raw.size.get() > MAX_FILE {
            return Err(FsError::damaged("size of inode", self.ino));
        }
        // No two inodes share a block, so that none has more than there are.
        if held != raw.blocks.get() || held > store.layout.nr_blocks {
            return Err(FsError::damaged("number of blocks of inode", self.ino));
        }
        // Whoever goes through all inodes relies on it.
        if self.kind == Kind::Table {
            if len < TABLE_CHUNK {
                return Err(FsError::damaged("inode table shorter than it was made, in blocks", len));
            }
            if len != self.end() || raw.size.get() != len * BLOCK_SIZE {
                return Err(FsError::damaged("hole in the inode table, or a wrong size of it, in blocks", len));
            }
        }
        Ok(())
    }

    fn load_extent(
        &mut self,
        store: &Store,
        owners: &mut ReverseMap,
        extent: RawExtent,
        slot: Slot,
    ) -> Result<(), FsError> {
        let (logical, len, physical) =
            (u64::from(extent.logical.get()), u64::from(extent.len.get()), extent.physical.get());
        if len == 0 {
            self.free_slots.insert(slot);
            return Ok(());
        }
        // The first part of the table lies where no file's data may.
        let inside = store.layout.is_data(physical, len)
            || self.kind == Kind::Table && physical == store.layout.table_start && len <= TABLE_CHUNK;
        let before = self.extents.range(..=logical).next_back().is_none_or(|(&first, e)| first + e.len <= logical);
        let after = self.extents.range(logical..).next().is_none_or(|(&first, _)| logical + len <= first);
        if !inside || !before || !after || logical + len > u64::from(u32::MAX) {
            return Err(FsError::damaged("extent of inode", self.ino));
        }
        let id = owners.insert(physical, len, self.owner(logical));
        self.extents.insert(logical, Extent { len, physical, slot, id });
        Ok(())
    }

    /// Leaves the reverse map.
    pub(crate) fn unload(&mut self, owners: &mut ReverseMap) {
        let extents = self.extents.values().map(|extent| extent.id);
        extents.chain(self.chain.iter().map(|&(_, id)| id)).chain(self.attr).for_each(|id| owners.remove(id));
        self.extents.clear();
        self.chain.clear();
        self.attr = None;
    }

    fn owner(&self, logical: u64) -> Owner {
        match self.kind {
            Kind::Directory => Owner::Directory { ino: self.ino },
            Kind::Table => Owner::Metadata,
            Kind::File | Kind::Free => Owner::Data { ino: self.ino, logical },
        }
    }

    /// Is it a file that is mapped by DAX?
    pub(crate) fn is_dax(&self) -> bool {
        self.kind == Kind::File && self.raw.flags & INODE_DAX != 0
    }

    /// What is at `logical`: as much of a run or of a hole as lies before `end`.
    pub(crate) fn piece(&self, logical: u64, end: u64) -> Piece {
        if let Some((&first, extent)) = self.extents.range(..=logical).next_back()
            && logical < first + extent.len
        {
            let len = (first + extent.len).min(end) - logical;
            return Piece { logical, len, physical: Some(extent.physical + (logical - first)) };
        }
        let next = self.extents.range(logical..).next().map_or(end, |(&first, _)| first.min(end));
        Piece { logical, len: next - logical, physical: None }
    }

    /// The runs and holes of `first..end`, rising.
    pub(crate) fn pieces(&self, first: u64, end: u64) -> impl Iterator<Item = Piece> + '_ {
        let mut at = first;
        core::iter::from_fn(move || {
            (at < end).then(|| {
                let piece = self.piece(at, end);
                at += piece.len;
                piece
            })
        })
    }

    /// One past the last block that the file has.
    pub(crate) fn end(&self) -> u64 {
        self.extents.last_key_value().map_or(0, |(&first, extent)| first + extent.len)
    }

    /// Blocks that the inode holds apart from its extents.
    pub(crate) fn own_blocks(&self) -> impl Iterator<Item = u64> + '_ {
        let attr = Some(self.raw.attr_block.get()).filter(|&block| block != 0);
        self.chain.iter().map(|&(block, _)| block).chain(attr)
    }

    // ---- changes ----

    fn write_slot(&mut self, change: &mut Change<'_>, slot: Slot, extent: RawExtent) -> Result<(), FsError> {
        change.tx.cost += 96;
        if slot.block == 0 {
            self.raw.extents[usize::from(slot.index)] = extent;
            return Ok(());
        }
        let bytes = change.store.image(change.tx, slot.block, BlockKind::Map)?;
        let at = size_of::<RawMapHead>() + usize::from(slot.index) * size_of::<RawExtent>();
        bytes[at..at + size_of::<RawExtent>()].copy_from_slice(extent.as_bytes());
        Ok(())
    }

    fn set_extent(&mut self, change: &mut Change<'_>, logical: u64, extent: Extent) -> Result<(), FsError> {
        let raw = RawExtent {
            logical: (logical as u32).into(),
            len: (extent.len as u32).into(),
            physical: extent.physical.into(),
        };
        self.write_slot(change, extent.slot, raw)?;
        self.extents.insert(logical, extent);
        Ok(())
    }

    /// A free slot; makes a mapping block where there is none.
    fn take_slot(&mut self, change: &mut Change<'_>) -> Result<Slot, FsError> {
        if let Some(slot) = self.free_slots.pop_first() {
            return Ok(slot);
        }
        let block = change.store.take(change.tx, 1, change.hint, false)?.first;
        change.tx.fresh(block, BlockKind::Map);
        self.add_mapping_block(change, block)
    }

    /// The same where no block may be free: then the first of `run`, which this operation takes out of the file, becomes
    /// the mapping block, and `run` is what is left.
    fn take_slot_from(&mut self, change: &mut Change<'_>, run: &mut Run) -> Result<Slot, FsError> {
        let block = match self.take_slot(change) {
            Err(FsError::NoSpace) => run.first,
            slot => return slot,
        };
        (run.first, run.nr) = (run.first + 1, run.nr - 1);
        // Until the record is durable the file's data are in it.
        match change.store.faults.has(Mutant::FreedBlockWrittenEarly) {
            false => change.tx.logged(block, BlockKind::Map),
            true => change.tx.fresh(block, BlockKind::Map),
        };
        self.add_mapping_block(change, block)
    }

    /// Puts `block`, of zeroes in this operation, before the mapping blocks, and takes its first slot.
    fn add_mapping_block(&mut self, change: &mut Change<'_>, block: u64) -> Result<Slot, FsError> {
        let bytes = change.store.image(change.tx, block, BlockKind::Map)?;
        let head = RawMapHead {
            magic: 0.into(),
            crc: 0.into(),
            ino: self.ino.into(),
            next: self.raw.map_head,
            reserved: 0.into(),
        };
        bytes[..size_of::<RawMapHead>()].copy_from_slice(head.as_bytes());
        self.raw.map_head = block.into();
        self.raw.blocks += 1;
        self.chain.insert(0, (block, change.owners.insert(block, 1, Owner::Mapping { ino: self.ino })));
        self.free_slots.extend((1..BLOCK_EXTENTS).map(|index| Slot { block, index: index as u16 }));
        Ok(Slot { block, index: 0 })
    }

    /// Adds a run where there is a hole. It melts with a run that it continues, and with one that continues it.
    pub(crate) fn add(
        &mut self,
        change: &mut Change<'_>,
        logical: u64,
        physical: u64,
        len: u64,
    ) -> Result<(), FsError> {
        let (mut start, mut whole) = (logical, Run { first: physical, nr: len });
        let mut slot = None;
        // The inode table's first chunk stays by itself: what lies before the data blocks is looked at as that.
        let joins = |extent: &Extent| self.kind != Kind::Table || extent.physical != change.store.layout.table_start;
        if let Some((&first, &extent)) = self.extents.range(..logical).next_back()
            && first + extent.len == logical
            && extent.physical + extent.len == physical
            && joins(&extent)
        {
            change.owners.remove(extent.id);
            self.extents.remove(&first);
            slot = Some(extent.slot);
            (start, whole) = (first, Run { first: extent.physical, nr: extent.len + len });
        }
        if let Some(&extent) = self.extents.get(&(logical + len))
            && extent.physical == physical + len
        {
            change.owners.remove(extent.id);
            self.extents.remove(&(logical + len));
            whole.nr += extent.len;
            match slot {
                None => slot = Some(extent.slot),
                Some(_) => self.drop_slot(change, extent.slot)?,
            }
        }
        let slot = match slot {
            Some(slot) => slot,
            None => self.take_slot(change)?,
        };
        self.raw.blocks += len;
        let id = change.owners.insert(whole.first, whole.nr, self.owner(start));
        self.set_extent(change, start, Extent { len: whole.nr, physical: whole.first, slot, id })
    }

    /// A slot is no longer used.
    fn drop_slot(&mut self, change: &mut Change<'_>, slot: Slot) -> Result<(), FsError> {
        self.write_slot(change, slot, RawExtent { logical: 0.into(), len: 0.into(), physical: 0.into() })?;
        self.free_slots.insert(slot);
        Ok(())
    }

    /// Takes the runs of `first..end` out, from the back, until the operation is as large as `budget` allows. The
    /// blocks become free with the operation. Needs no free block. Answers where it stopped: `first` when all is done. With
    /// the last run go the mapping blocks; where these are too many, it has stopped just before `first`'s end.
    pub(crate) fn cut(&mut self, change: &mut Change<'_>, first: u64, end: u64, budget: usize) -> Result<u64, FsError> {
        let metadata = self.kind != Kind::File;
        let mut end = end;
        while let Some((&start, &extent)) = self.extents.range(..end).next_back() {
            if start + extent.len <= first {
                break;
            }
            if change.tx.cost > budget {
                return Ok(end);
            }
            let to = (start + extent.len).min(end);
            // A bit for each block that becomes free: one run alone can be more than the journal takes.
            let most = 8 * (budget - change.tx.cost) as u64 + 8;
            let from = start.max(first).max(to.saturating_sub(most));
            let mut freed = Run { first: extent.physical + (from - start), nr: to - from };
            change.owners.remove(extent.id);
            self.extents.remove(&start);
            let tail = start + extent.len - to;
            let mut keep = Some(extent.slot);
            if start < from {
                let id = change.owners.insert(extent.physical, from - start, self.owner(start));
                self.set_extent(change, start, Extent { len: from - start, id, ..extent })?;
                keep = None;
            }
            if tail > 0 {
                let slot = match keep.take() {
                    Some(slot) => slot,
                    None => self.take_slot_from(change, &mut freed)?,
                };
                let physical = extent.physical + (to - start);
                let id = change.owners.insert(physical, tail, self.owner(to));
                self.set_extent(change, to, Extent { len: tail, physical, slot, id })?;
            }
            if let Some(slot) = keep {
                self.drop_slot(change, slot)?;
            }
            if freed.nr > 0 {
                change.tx.free(freed.first, freed.nr, metadata);
            }
            self.raw.blocks -= to - from;
            end = from;
        }
        let done = !self.extents.is_empty() || self.drop_chain(change, budget);
        Ok(if done { first } else { first + 1 })
    }

    /// No extent is left: neither are mapping blocks, from the first on until the operation is as large as `budget` allows.
    /// Are all gone?
    fn drop_chain(&mut self, change: &mut Change<'_>, budget: usize) -> bool {
        while !self.chain.is_empty() {
            if change.tx.cost > budget {
                self.free_slots
                    .retain(|slot| slot.block == 0 || self.chain.iter().any(|&(block, _)| block == slot.block));
                self.raw.map_head = self.chain[0].0.into();
                return false;
            }
            let (block, id) = self.chain.remove(0);
            change.owners.remove(id);
            // Changes to it in this very operation are moot, and must not be written.
            change.tx.images.remove(&block);
            change.tx.free(block, 1, true);
            self.raw.blocks -= 1;
        }
        self.raw.map_head = 0.into();
        self.free_slots = (0..INLINE_EXTENTS).map(|index| Slot { block: 0, index: index as u16 }).collect();
        true
    }

    /// Sets or takes away the attribute block.
    pub(crate) fn set_attr(&mut self, change: &mut Change<'_>, block: Option<u64>) {
        if let Some(id) = self.attr.take() {
            change.owners.remove(id);
            change.tx.images.remove(&self.raw.attr_block.get());
            change.tx.free(self.raw.attr_block.get(), 1, true);
            self.raw.blocks -= 1;
        }
        self.raw.attr_block = block.unwrap_or(0).into();
        if let Some(block) = block {
            self.attr = Some(change.owners.insert(block, 1, Owner::Attribute { ino: self.ino }));
            self.raw.blocks += 1;
        }
    }

    /// As it is written to the table.
    pub(crate) fn sealed(&self) -> RawInode {
        let mut raw = self.raw;
        raw.magic = INODE_MAGIC.into();
        raw.ino = self.ino.into();
        seal(raw.as_mut_bytes(), self.ino);
        raw
    }
}
