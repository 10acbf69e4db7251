//! Where everything lies, computed from the size alone, and the superblock that says so.

use core::fmt;
use core::str::FromStr;

use zerocopy::IntoBytes;

use crate::error::FsError;
use crate::format::{
    BLOCK_SIZE, FLAG_EXTERNAL_LOG, FLAG_NO_REVERSE_MAP, GROUP_BLOCKS, RawDesc, RawSuper, SUPER_MAGIC, VERSION,
    is_sealed, seal, view,
};
use crate::pmem::Pmem;
use crate::superblock::Found;

/// The state's block.
pub const STATE_BLOCK: u64 = 1;
/// Blocks by which the inode table grows.
pub(crate) const TABLE_CHUNK: u64 = 4;
/// Fewest and most blocks of a journal.
const JOURNAL_BLOCKS: core::ops::RangeInclusive<u64> = 16..=1024;
/// Descriptors in a block.
pub(crate) const DESCS_PER_BLOCK: u64 = BLOCK_SIZE / size_of::<RawDesc>() as u64;

/// A label of a file system: UTF-8, padded with zeroes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Label(pub(crate) [u8; 32]);

/// The text is longer than a label can be. Holds its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LabelTooLong(usize);

impl fmt::Display for LabelTooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a label has at most {} bytes, not {}", size_of::<Label>(), self.0)
    }
}

impl core::error::Error for LabelTooLong {}

impl FromStr for Label {
    type Err = LabelTooLong;

    fn from_str(text: &str) -> Result<Self, LabelTooLong> {
        let mut label = Self::default();
        label.0.get_mut(..text.len()).ok_or(LabelTooLong(text.len()))?.copy_from_slice(text.as_bytes());
        Ok(label)
    }
}

/// The places of everything that does not move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Blocks in all.
    pub nr_blocks: u64,
    /// `FLAG_*`.
    pub flags: u32,
    /// Names the file system.
    pub uuid: [u8; 16],
    /// For people.
    pub label: [u8; 32],
    /// First block of the journal; 0: on another device.
    pub journal_start: u64,
    /// Its blocks.
    pub journal_blocks: u64,
    /// First block of the group descriptors.
    pub desc_start: u64,
    /// First bitmap block.
    pub bitmap_start: u64,
    /// First block of the inode table.
    pub table_start: u64,
    /// First block for data.
    pub data_start: u64,
}

impl Layout {
    /// The layout of a file system of `nr_blocks`, with `log_blocks` of journal on another device where given.
    ///
    /// # Errors
    /// [`FsError::TooSmall`]: not even a few blocks are left for data.
    pub fn plan(nr_blocks: u64, log_blocks: Option<u64>, flags: u32) -> Result<Self, FsError> {
        let journal_blocks = match log_blocks {
            Some(blocks) => blocks.min(*JOURNAL_BLOCKS.end()),
            None => (nr_blocks / 64).clamp(*JOURNAL_BLOCKS.start(), *JOURNAL_BLOCKS.end()),
        };
        if journal_blocks < 2 || nr_blocks > 1 << 40 {
            return Err(FsError::TooSmall);
        }
        let nr_groups = nr_blocks.div_ceil(GROUP_BLOCKS);
        let (journal_start, desc_start) = match log_blocks {
            Some(_) => (0, STATE_BLOCK + 1),
            None => (STATE_BLOCK + 1, STATE_BLOCK + 1 + journal_blocks),
        };
        let bitmap_start = desc_start + nr_groups.div_ceil(DESCS_PER_BLOCK);
        let table_start = bitmap_start + nr_groups;
        let data_start = table_start + TABLE_CHUNK;
        // The root directory, a file, and the superblock's copy.
        if data_start + 4 > nr_blocks {
            return Err(FsError::TooSmall);
        }
        let external = if log_blocks.is_some() { FLAG_EXTERNAL_LOG } else { 0 };
        Ok(Self {
            nr_blocks,
            flags: flags & FLAG_NO_REVERSE_MAP | external,
            uuid: [0; 16],
            label: [0; 32],
            journal_start,
            journal_blocks,
            desc_start,
            bitmap_start,
            table_start,
            data_start,
        })
    }

    /// Reads the superblock, or its copy where the first is lost or damaged. The copy says nothing of a medium whose first
    /// block is in somebody else's use: it may be what a file system of ours, long gone, has left behind.
    ///
    /// # Errors
    /// [`FsError::NoFileSystem`] where neither is one of ours, or the first block is somebody else's. Else both are damaged,
    /// or the first is of another version, or describes something that does not fit the device.
    pub(crate) fn read(pmem: &dyn Pmem) -> Result<Self, FsError> {
        Self::find(pmem).map(|(layout, _)| layout)
    }

    /// The same, with the block of the one that was read.
    pub(crate) fn find(pmem: &dyn Pmem) -> Result<(Self, u64), FsError> {
        let last = (pmem.len_bytes() / BLOCK_SIZE).checked_sub(1).ok_or(FsError::TooSmall)?;
        match Self::read_at(pmem, 0) {
            Ok(layout) => Ok((layout, 0)),
            Err(error) => match (Found::at(pmem, 0)?, Self::read_at(pmem, last)) {
                (Found::Nothing | Found::Damaged, Ok(layout)) => Ok((layout, last)),
                // What has no trace of a superblock says nothing: the other one does.
                (Found::Nothing, Err(other)) if error == FsError::NoFileSystem => Err(other),
                _ => Err(error),
            },
        }
    }

    /// One of the two superblocks.
    pub(crate) fn read_at(pmem: &dyn Pmem, block: u64) -> Result<Self, FsError> {
        let mut bytes = [0; size_of::<RawSuper>()];
        pmem.read(block * BLOCK_SIZE, &mut bytes)?;
        if bytes[..4] != SUPER_MAGIC.to_le_bytes() {
            return Err(FsError::NoFileSystem);
        }
        if !is_sealed(&bytes, SUPER_MAGIC, 0) {
            return Err(FsError::damaged("superblock", block));
        }
        let raw: RawSuper = view(&bytes, "superblock", block)?;
        if raw.version.get() != VERSION {
            return Err(FsError::damaged("superblock of another version", u64::from(raw.version.get())));
        }
        let log_blocks = (raw.flags.get() & FLAG_EXTERNAL_LOG != 0).then(|| raw.journal_blocks.get());
        let planned = Self::plan(raw.nr_blocks.get(), log_blocks, raw.flags.get())?;
        let planned = Self { uuid: raw.uuid, label: raw.label, ..planned };
        // The places follow from the size: a superblock that says otherwise was not made by us.
        if planned.raw().as_bytes() != raw.as_bytes() {
            return Err(FsError::damaged("superblock with impossible contents", block));
        }
        // The last block of the device is the copy's of a file system that fills it. One that begins further in, as in a
        // namespace, may end there, too.
        if block != 0 && block != planned.copy_block() {
            return Err(FsError::NoFileSystem);
        }
        if planned.nr_blocks > pmem.len_bytes() / BLOCK_SIZE {
            return Err(FsError::damaged("file system larger than the device, in blocks", planned.nr_blocks));
        }
        Ok(planned)
    }

    /// As it is on the medium, sealed.
    pub(crate) fn raw(&self) -> RawSuper {
        let mut raw = RawSuper {
            magic: SUPER_MAGIC.into(),
            crc: 0.into(),
            version: VERSION.into(),
            flags: self.flags.into(),
            nr_blocks: self.nr_blocks.into(),
            uuid: self.uuid,
            journal_start: self.journal_start.into(),
            journal_blocks: self.journal_blocks.into(),
            desc_start: self.desc_start.into(),
            bitmap_start: self.bitmap_start.into(),
            table_start: self.table_start.into(),
            data_start: self.data_start.into(),
            label: self.label,
        };
        seal(raw.as_mut_bytes(), 0);
        raw
    }

    /// Is the journal on another device?
    pub fn has_external_log(&self) -> bool {
        self.flags & FLAG_EXTERNAL_LOG != 0
    }
    /// Is a reverse map kept?
    pub fn has_reverse_map(&self) -> bool {
        self.flags & FLAG_NO_REVERSE_MAP == 0
    }
    /// Groups.
    pub fn nr_groups(&self) -> u64 {
        self.nr_blocks.div_ceil(GROUP_BLOCKS)
    }
    /// Block and offset of a group's descriptor.
    pub fn desc_place(&self, group: u64) -> (u64, usize) {
        let at = (group % DESCS_PER_BLOCK) as usize * size_of::<RawDesc>();
        (self.desc_start + group / DESCS_PER_BLOCK, at)
    }
    /// The last block: the superblock's copy.
    pub(crate) fn copy_block(&self) -> u64 {
        self.nr_blocks - 1
    }
    /// Blocks of one group; the last may be shorter.
    pub(crate) fn blocks_in(&self, group: u64) -> u64 {
        (self.nr_blocks - group * GROUP_BLOCKS).min(GROUP_BLOCKS)
    }
    /// May `nr` blocks from `first` on be held by a file?
    pub(crate) fn is_data(&self, first: u64, nr: u64) -> bool {
        nr != 0 && first >= self.data_start && first.checked_add(nr).is_some_and(|end| end <= self.copy_block())
    }
    /// Does block `block` belong to the file system itself, for ever?
    pub(crate) fn is_fixed(&self, block: u64) -> bool {
        block < self.data_start || block >= self.copy_block()
    }
    /// Mixed into the journal's checksums.
    pub(crate) fn journal_salt(&self) -> u64 {
        u64::from_le_bytes([0, 1, 2, 3, 4, 5, 6, 7].map(|i| self.uuid[i] ^ self.uuid[i + 8]))
    }
}
