//! Whose a place of the device is, and who maps it: for reports.

use dax::range::ByteSpan;
use mm::machine::Machine;
use mm::space::Mapping;
use mm::sync::Arc;

use crate::error::FsError;
use crate::format::BLOCK_SIZE;
use crate::lock_order::{Context, LockOrder};
use crate::mounted::Mounted;
use crate::owner::Owner;

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
}
