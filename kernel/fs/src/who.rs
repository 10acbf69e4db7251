//! Whose a place of the device is, and who maps it: for reports.

use alloc::vec::Vec;

use dax::range::ByteSpan;
use mm::machine::Machine;
use mm::space::Mapping;
use mm::sync::Arc;

use crate::error::FsError;
use crate::format::{BLOCK_SIZE, ROOT_INO};
use crate::lock_order::{Context, LockOrder};
use crate::mounted::Mounted;
use crate::owner::Owner;
use crate::volume::Volume;

/// Who owns a block.
pub struct BlockOwner<M: Machine> {
    /// Whose it is.
    pub owner: Owner,
    /// The block of the file, where it is a file's data.
    pub page: u64,
    /// Who maps that file; `None` where nobody has it open.
    pub mapping: Option<Arc<Mapping<M>>>,
}

impl<M: Machine> Mounted<M> {
    /// The owner of the byte at `offset` of the device, as far as it is known: inodes that are not loaded are not looked for.
    /// `None`: nobody, or that byte is not of this file system.
    ///
    /// # Errors
    /// The file system is unmounted.
    pub fn owner_of(&self, context: &Context, offset: u64) -> Result<Option<BlockOwner<M>>, FsError> {
        let inside = ByteSpan::from_len(offset, 1).and_then(|byte| byte.intersection(self.part));
        let Some(inside) = inside.and_then(|byte| byte.relative_to(self.part)) else { return Ok(None) };
        let block = inside.first() / BLOCK_SIZE;
        let mut found = None;
        self.volume(context)?.owners(block, block + 1, |(first, _, owner)| found = Some((first, owner)));
        let Some((first, owner)) = found else { return Ok(None) };
        let Owner::Data { ino, logical } = owner else { return Ok(Some(BlockOwner { owner, page: 0, mapping: None })) };
        let inodes = context.lock(&self.mm.machine, LockOrder::Table, &self.inodes);
        let mapping = inodes.get(&ino).map(|inode| Arc::clone(&inode.mapping));
        Ok(Some(BlockOwner { owner, page: logical + (block - first), mapping }))
    }

    /// Is any of these bytes of the device the file's, as far as that is known (see [`owner_of`](Self::owner_of))?
    ///
    /// # Errors
    /// The file system is unmounted.
    pub fn has_any_of(&self, context: &Context, ino: u64, bytes: ByteSpan) -> Result<bool, FsError> {
        let inside = bytes.intersection(self.part).and_then(|bytes| bytes.relative_to(self.part));
        let Some(inside) = inside else { return Ok(false) };
        let mut found = false;
        self.volume(context)?.owners_while(
            inside.first() / BLOCK_SIZE,
            inside.last() / BLOCK_SIZE + 1,
            |(_, _, owner)| {
                found |= owner.file() == Some(ino);
                !found
            },
        );
        Ok(found)
    }

    /// The file that is mapped through `mapping`, while somebody has it open. Linear in the open files.
    pub fn file_mapped_by(&self, context: &Context, mapping: &Mapping<M>) -> Option<u64> {
        let inodes = context.lock(&self.mm.machine, LockOrder::Table, &self.inodes);
        inodes.iter().find(|(_, inode)| inode.mapping.id() == mapping.id()).map(|(&ino, _)| ino)
    }

    /// A path to an inode, from the root, as far as directories are in memory: whoever has come to a file by a path has
    /// brought them there. Of several names one. Linear in the entries that are in memory; reads nothing.
    ///
    /// # Errors
    /// The file system is unmounted.
    pub fn path_of(&self, context: &Context, ino: u64) -> Result<Option<Vec<u8>>, FsError> {
        self.volume(context).map(|volume| volume.path_in_memory(ino))
    }
}

impl Volume {
    fn path_in_memory(&self, ino: u64) -> Option<Vec<u8>> {
        let name_in = |dir: u64, ino: u64| {
            let names = self.nodes.get(&dir)?.names.as_ref()?;
            names.by_name.iter().find(|(_, entry)| entry.ino == ino).map(|(name, _)| name.clone())
        };
        let (mut at, name) = self.nodes.keys().find_map(|&dir| name_in(dir, ino).map(|name| (dir, name)))?;
        let mut path = Vec::from([name]);
        while at != ROOT_INO {
            // No tree is deeper than it has directories; one that is damaged may go round.
            if path.len() > self.nodes.len() {
                return None;
            }
            let above = self.nodes.get(&at)?.raw.parent.get();
            path.push(name_in(above, at)?);
            at = above;
        }
        Some(path.iter().rev().flat_map(|name| [&b"/"[..], name].concat()).collect())
    }
}
