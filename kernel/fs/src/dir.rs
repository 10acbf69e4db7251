//! Directories: names in slots of 64 bytes, 63 to a block. In memory a map from name to entry.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use zerocopy::IntoBytes;

use crate::error::FsError;
use crate::format::{BLOCK_SIZE, DIR_SLOTS, Kind, MAX_NAME, RawDirHead, RawEntry, SLOT_SIZE, view};
use crate::node::{Change, Node};
use crate::tx::{BlockKind, Bytes, Store};

/// Bytes of a name in its first slot.
const FIRST_PART: usize = 48;

/// What a name leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) ino: u64,
    pub(crate) kind: Kind,
    block: u64,
    slot: u8,
}

/// The entries of a directory.
pub(crate) struct Names {
    pub(crate) by_name: BTreeMap<Vec<u8>, Entry>,
    /// By block: bit n is set while slot n is in use.
    used: BTreeMap<u64, u64>,
}

/// Is this a name that a file can have?
pub(crate) fn check_name(name: &[u8]) -> Result<(), FsError> {
    let bad = name.is_empty() || name == b"." || name == b"..";
    if bad || name.iter().any(|&byte| byte == b'/' || byte == 0) { Err(FsError::BadName) } else { check_len(name) }
}

/// Is it short enough for a name?
pub(crate) fn check_len(name: &[u8]) -> Result<(), FsError> {
    if name.len() > MAX_NAME { Err(FsError::NameTooLong) } else { Ok(()) }
}

/// Slots that a name takes.
fn slots_of(name: &[u8]) -> usize {
    1 + name.len().saturating_sub(FIRST_PART).div_ceil(SLOT_SIZE)
}

fn slot_at(slot: usize) -> usize {
    size_of::<RawDirHead>() + slot * SLOT_SIZE
}

fn mask(slot: usize, nr: usize) -> u64 {
    ((1 << nr) - 1) << slot
}

impl Names {
    /// Reads a directory's blocks.
    pub(crate) fn load(store: &Store, node: &Node) -> Result<Self, FsError> {
        let mut names = Self { by_name: BTreeMap::new(), used: BTreeMap::new() };
        let blocks = node.raw.size.get() / BLOCK_SIZE;
        if node.end() != blocks || blocks > node.raw.blocks.get() {
            return Err(FsError::damaged("size of directory", node.ino));
        }
        for piece in node.pieces(0, blocks) {
            let Some(first) = piece.physical else {
                return Err(FsError::damaged("hole in directory", node.ino));
            };
            for block in first..first + piece.len {
                let bytes = store.read(block, BlockKind::Dir)?;
                names.load_block(block, &bytes, node.ino)?;
            }
        }
        Ok(names)
    }

    fn load_block(&mut self, block: u64, bytes: &Bytes, dir: u64) -> Result<(), FsError> {
        let bad = || FsError::damaged("directory block", block);
        let head: RawDirHead = view(bytes, "directory block", block)?;
        if head.ino.get() != dir {
            return Err(bad());
        }
        let (mut slot, mut used) = (0, 0);
        while slot < DIR_SLOTS {
            let raw: RawEntry = view(&bytes[slot_at(slot)..], "directory block", block)?;
            if raw.used == 0 {
                slot += 1;
                continue;
            }
            let (nr, len) = (usize::from(raw.slots), usize::from(raw.name_len));
            if raw.used != 1 || nr == 0 || slot + nr > DIR_SLOTS {
                return Err(bad());
            }
            let mut name = raw.name[..len.min(FIRST_PART)].to_vec();
            let rest = len - name.len();
            name.extend_from_slice(bytes.get(slot_at(slot + 1)..slot_at(slot + 1) + rest).ok_or_else(bad)?);
            let kind = Kind::from_u8(raw.kind).filter(|kind| matches!(kind, Kind::File | Kind::Directory));
            let entry = Entry { ino: raw.ino.get(), kind: kind.ok_or_else(bad)?, block, slot: slot as u8 };
            if check_name(&name).is_err() || slots_of(&name) != nr || self.by_name.insert(name, entry).is_some() {
                return Err(bad());
            }
            used |= mask(slot, nr);
            slot += nr;
        }
        self.used.insert(block, used);
        Ok(())
    }

    /// `nr` free slots in a row: block and first slot.
    fn find(&self, nr: usize) -> Option<(u64, usize)> {
        self.used.iter().find_map(|(&block, used)| {
            let slot = (0..=DIR_SLOTS - nr).find(|&slot| used & mask(slot, nr) == 0)?;
            Some((block, slot))
        })
    }
}

impl Node {
    /// The entries, which [`Volume::dir`](crate::volume::Volume) has loaded.
    pub(crate) fn names(&mut self) -> Result<&mut Names, FsError> {
        self.names.as_mut().ok_or(FsError::NotDirectory)
    }

    /// Adds a name that the directory does not have.
    pub(crate) fn add_name(
        &mut self,
        change: &mut Change<'_>,
        name: &[u8],
        ino: u64,
        kind: Kind,
    ) -> Result<(), FsError> {
        let nr = slots_of(name);
        let (block, slot) = match self.names()?.find(nr) {
            Some(place) => place,
            None => (self.add_dir_block(change)?, 0),
        };
        let first = name.len().min(FIRST_PART);
        let mut raw = RawEntry {
            used: 1,
            slots: nr as u8,
            name_len: name.len() as u8,
            kind: kind as u8,
            pad: 0.into(),
            ino: ino.into(),
            name: [0; FIRST_PART],
        };
        raw.name[..first].copy_from_slice(&name[..first]);
        let bytes = change.store.image(change.tx, block, BlockKind::Dir)?;
        bytes[slot_at(slot)..][..SLOT_SIZE].copy_from_slice(raw.as_bytes());
        bytes[slot_at(slot + 1)..][..name.len() - first].copy_from_slice(&name[first..]);
        let names = self.names()?;
        names.by_name.insert(name.to_vec(), Entry { ino, kind, block, slot: slot as u8 });
        *names.used.entry(block).or_default() |= mask(slot, nr);
        change.tx.cost += 64 + nr * SLOT_SIZE;
        Ok(())
    }

    fn add_dir_block(&mut self, change: &mut Change<'_>) -> Result<u64, FsError> {
        let block = change.store.take(change.tx, 1, change.hint, false)?.first;
        let head = RawDirHead { magic: 0.into(), crc: 0.into(), ino: self.ino.into(), reserved: [0; 48] };
        let bytes = change.tx.fresh(block, BlockKind::Dir);
        bytes[..size_of::<RawDirHead>()].copy_from_slice(head.as_bytes());
        self.add(change, self.raw.size.get() / BLOCK_SIZE, block, 1)?;
        self.raw.size += BLOCK_SIZE;
        Ok(block)
    }

    /// Takes a name out.
    pub(crate) fn remove_name(&mut self, change: &mut Change<'_>, name: &[u8]) -> Result<Entry, FsError> {
        let names = self.names()?;
        let entry = names.by_name.remove(name).ok_or(FsError::NotFound)?;
        let (slot, nr) = (usize::from(entry.slot), slots_of(name));
        *names.used.entry(entry.block).or_default() &= !mask(slot, nr);
        let bytes = change.store.image(change.tx, entry.block, BlockKind::Dir)?;
        bytes[slot_at(slot)..slot_at(slot + nr)].fill(0);
        change.tx.cost += 64 + nr * SLOT_SIZE;
        Ok(entry)
    }

    /// Lets a name lead elsewhere.
    pub(crate) fn redirect_name(
        &mut self,
        change: &mut Change<'_>,
        name: &[u8],
        ino: u64,
        kind: Kind,
    ) -> Result<Entry, FsError> {
        let entry = self.names()?.by_name.get_mut(name).ok_or(FsError::NotFound)?;
        let old = *entry;
        *entry = Entry { ino, kind, ..old };
        let bytes = change.store.image(change.tx, old.block, BlockKind::Dir)?;
        let at = slot_at(usize::from(old.slot));
        bytes[at + 3] = kind as u8;
        bytes[at + 8..at + 16].copy_from_slice(&ino.to_le_bytes());
        change.tx.cost += 96;
        Ok(old)
    }
}
