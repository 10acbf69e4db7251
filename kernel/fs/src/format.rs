//! The structures on the medium (docs/fs-format.md has a table for each).
//!
//! Everything is little-endian. Every structure begins with a magic number and a CRC-32C; the checksum covers the
//! structure with that field zero, and a salt (its block, inode or group number), so that a structure in the wrong
//! place is as bad as a torn one. Nothing here trusts a byte: callers get a checked structure or an error.

use crc::{CRC_32_ISCSI, Crc, Table};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::error::FsError;

/// Bytes in a block.
pub const BLOCK_SIZE: u64 = 4096;
/// Blocks in a group: as many as one bitmap block has bits (128 MiB).
pub const GROUP_BLOCKS: u64 = BLOCK_SIZE * 8;
/// Blocks in a huge leaf (2 MiB), and so what large files are aligned to.
pub const HUGE_BLOCKS: u64 = 512;
/// Blocks in a giant leaf (1 GiB).
pub const GIANT_BLOCKS: u64 = 512 * HUGE_BLOCKS;
/// Version of the format that this code reads and writes.
pub const VERSION: u32 = 1;
/// The inode table, as a file.
pub const TABLE_INO: u64 = 1;
/// The root directory.
pub const ROOT_INO: u64 = 2;
/// Bytes in an inode.
pub const INODE_SIZE: u64 = 256;
/// Inodes in a block.
pub const INODES_PER_BLOCK: u64 = BLOCK_SIZE / INODE_SIZE;
/// Extents in an inode.
pub const INLINE_EXTENTS: usize = 8;
/// Extents in a mapping block.
pub const BLOCK_EXTENTS: usize = 254;
/// Slots in a directory block.
pub const DIR_SLOTS: usize = 63;
/// Bytes in a directory slot.
pub const SLOT_SIZE: usize = 64;
/// Longest name, in bytes.
pub const MAX_NAME: usize = 255;
/// First byte after the largest file.
pub const MAX_FILE: u64 = (u32::MAX as u64) * BLOCK_SIZE;
/// Bytes of attributes that an inode can have.
pub const MAX_ATTR: usize = 4096 - 24;
/// Most links to one inode.
pub const MAX_LINKS: u32 = 65_000;

/// First word of [`RawSuper`].
pub const SUPER_MAGIC: u32 = u32::from_le_bytes(*b"UPSB");
/// First word of [`RawState`].
pub const STATE_MAGIC: u32 = u32::from_le_bytes(*b"UPST");
/// First word of [`RawDesc`].
pub const DESC_MAGIC: u32 = u32::from_le_bytes(*b"UPGD");
/// First word of [`RawInode`].
pub const INODE_MAGIC: u32 = u32::from_le_bytes(*b"UPIN");
/// First word of a block of extents, [`RawMapHead`].
pub const EXTENTS_MAGIC: u32 = u32::from_le_bytes(*b"UPEX");
/// First word of a directory's block, [`RawDirHead`].
pub const DIR_MAGIC: u32 = u32::from_le_bytes(*b"UPDR");
/// First word of a block of attributes, [`RawAttrHead`].
pub const ATTR_MAGIC: u32 = u32::from_le_bytes(*b"UPAT");
pub(crate) const RECORD_MAGIC: u32 = u32::from_le_bytes(*b"UPJR");

/// The journal lies on another device.
pub const FLAG_EXTERNAL_LOG: u32 = 1;
/// No reverse map is kept: failure notifications are not supported.
pub const FLAG_NO_REVERSE_MAP: u32 = 2;

/// What an inode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Free.
    Free = 0,
    /// A regular file.
    File = 1,
    /// A directory.
    Directory = 2,
    /// The inode table.
    Table = 3,
}

impl Kind {
    /// From its byte.
    pub const fn from_u8(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Free),
            1 => Some(Self::File),
            2 => Some(Self::Directory),
            3 => Some(Self::Table),
            _ => None,
        }
    }
}

/// The file is mapped by DAX; without it the file can only be read and written by calls.
pub const INODE_DAX: u8 = 1;

/// The superblock: block 0, with a copy in the last block. Never changed after the file system was made.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawSuper {
    /// `UPSB`.
    pub magic: U32,
    /// CRC-32C, salt 0.
    pub crc: U32,
    /// [`VERSION`].
    pub version: U32,
    /// `FLAG_*`.
    pub flags: U32,
    /// Blocks in all.
    pub nr_blocks: U64,
    /// Names this file system, and its journal on another device.
    pub uuid: [u8; 16],
    /// First block of the journal; 0 where it is on another device.
    pub journal_start: U64,
    /// Blocks of the journal.
    pub journal_blocks: U64,
    /// First block of the group descriptors.
    pub desc_start: U64,
    /// First of the bitmap blocks, one for each group.
    pub bitmap_start: U64,
    /// First block of the inode table.
    pub table_start: U64,
    /// First block that can hold data.
    pub data_start: U64,
    /// For people; zero-padded UTF-8.
    pub label: [u8; 32],
}

/// The state: block 1, changed through the journal only.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawState {
    /// `UPST`.
    pub magic: U32,
    /// CRC-32C, salt 1.
    pub crc: U32,
    /// 1: unmounted, and `free_blocks` counts; 0: mounted, or not unmounted.
    pub clean: U32,
    /// Mounts so far.
    pub mounts: U32,
    /// Free blocks, where clean.
    pub free_blocks: U64,
    /// Zero.
    pub reserved: U64,
}

/// A group's descriptor.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawDesc {
    /// `UPGD`.
    pub magic: U32,
    /// CRC-32C, salt: the group.
    pub crc: U32,
    /// Free blocks in the group.
    pub free: U32,
    /// 1: the bitmap has been written; 0: all blocks of the group are free and the bitmap block is garbage.
    pub written: U32,
    /// CRC-32C of the bitmap block, salt: the group.
    pub bitmap_crc: U32,
    /// Zero.
    pub reserved: [u8; 12],
}

/// A run of blocks of a file.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawExtent {
    /// First block within the file.
    pub logical: U32,
    /// Blocks; 0: the slot is free.
    pub len: U32,
    /// First block of the device.
    pub physical: U64,
}

/// An inode.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawInode {
    /// `UPIN`.
    pub magic: U32,
    /// CRC-32C, salt: the inode's number.
    pub crc: U32,
    /// Its number.
    pub ino: U64,
    /// A [`Kind`].
    pub kind: u8,
    /// `INODE_*`.
    pub flags: u8,
    /// Zero.
    pub pad: [u8; 2],
    /// Links from directories; for a directory 2 and one for each directory in it.
    pub nlink: U32,
    /// Grows with each reuse of the number.
    pub generation: U32,
    /// Zero.
    pub pad2: U32,
    /// Bytes; for a directory and the table, of its blocks.
    pub size: U64,
    /// Blocks held: data, mapping and attribute blocks.
    pub blocks: U64,
    /// Last change of the contents, in nanoseconds of the kernel's clock.
    pub mtime_ns: U64,
    /// Last change of the inode.
    pub ctime_ns: U64,
    /// A directory's parent.
    pub parent: U64,
    /// Next on the list of free inodes, or of inodes that are to be cut to size or freed; 0: none.
    pub next: U64,
    /// First mapping block; 0: none.
    pub map_head: U64,
    /// Attribute block; 0: none.
    pub attr_block: U64,
    /// Inode 1 only: first free inode.
    pub free_head: U64,
    /// Inode 1 only: first inode that is to be cut to size, or freed where it has no link.
    pub pending_head: U64,
    /// Zero.
    pub reserved: U64,
    /// Zero.
    pub reserved2: U64,
    /// The first extents, in no order.
    pub extents: [RawExtent; INLINE_EXTENTS],
}

/// Head of a mapping block; 254 extents follow, in no order.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawMapHead {
    /// `UPEX`.
    pub magic: U32,
    /// CRC-32C of the block, salt: the block.
    pub crc: U32,
    /// The inode.
    pub ino: U64,
    /// The next mapping block; 0: none.
    pub next: U64,
    /// Zero.
    pub reserved: U64,
}

/// Head of a directory block; 63 slots of 64 bytes follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawDirHead {
    /// `UPDR`.
    pub magic: U32,
    /// CRC-32C of the block, salt: the block.
    pub crc: U32,
    /// The directory.
    pub ino: U64,
    /// Zero.
    pub reserved: [u8; 48],
}

/// First slot of a directory entry. A name that is longer than 48 bytes goes on in the next slots.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawEntry {
    /// 0: this slot is free; 1: an entry.
    pub used: u8,
    /// Slots that the entry takes.
    pub slots: u8,
    /// Bytes of the name.
    pub name_len: u8,
    /// A [`Kind`]: file or directory.
    pub kind: u8,
    /// Zero.
    pub pad: U32,
    /// The inode.
    pub ino: U64,
    /// The first bytes of the name.
    pub name: [u8; 48],
}

/// Head of an attribute block; the bytes follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawAttrHead {
    /// `UPAT`.
    pub magic: U32,
    /// CRC-32C of the block, salt: the block.
    pub crc: U32,
    /// The inode.
    pub ino: U64,
    /// Bytes.
    pub len: U64,
}

/// Head of a journal record; `entries` times [`RawChange`] with its bytes follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawRecord {
    /// `UPJR`.
    pub magic: U32,
    /// CRC-32C of the record, salt: its offset in the journal.
    pub crc: U32,
    /// The journal's epoch; a record of another epoch is none.
    pub epoch: U32,
    /// Number within the epoch, from 0.
    pub sequence: U32,
    /// Bytes of the record, this head included.
    pub len_bytes: U32,
    /// Changes in it.
    pub changes: U32,
    /// Zero.
    pub reserved: U64,
}

/// One change: these bytes go there.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawChange {
    /// Byte offset in the file system.
    pub offset: U64,
    /// Bytes, which follow, padded to a multiple of 8.
    pub len_bytes: U32,
    /// Zero.
    pub reserved: U32,
}

const _: () = {
    assert!(size_of::<RawInode>() as u64 == INODE_SIZE);
    assert!(size_of::<RawDesc>() == 32 && size_of::<RawState>() == 32);
    assert!(size_of::<RawMapHead>() + BLOCK_EXTENTS * size_of::<RawExtent>() == 4096);
    assert!(size_of::<RawDirHead>() + DIR_SLOTS * SLOT_SIZE == 4096);
    assert!(size_of::<RawEntry>() == SLOT_SIZE);
    assert!(size_of::<RawAttrHead>() + MAX_ATTR == 4096);
};

static CRC32C: Crc<u32, Table<16>> = Crc::<u32, Table<16>>::new(&CRC_32_ISCSI);

/// CRC-32C of bytes without a field of their own, with a salt.
pub fn crc_of(bytes: &[u8], salt: u64) -> u32 {
    let mut digest = CRC32C.digest();
    digest.update(&salt.to_le_bytes());
    digest.update(bytes);
    digest.finalize()
}

/// CRC-32C of a structure whose own checksum is the second word.
fn crc_of_structure(bytes: &[u8], salt: u64) -> u32 {
    let mut digest = CRC32C.digest();
    digest.update(&salt.to_le_bytes());
    digest.update(&bytes[..4]);
    digest.update(&[0; 4]);
    digest.update(&bytes[8..]);
    digest.finalize()
}

/// Writes the checksum of a structure, whose second word it is.
///
/// # Panics
/// Where `bytes` are fewer than 8.
pub fn seal(bytes: &mut [u8], salt: u64) {
    let crc = crc_of_structure(bytes, salt);
    bytes[4..8].copy_from_slice(&crc.to_le_bytes());
}

/// Is this such a structure, and whole?
pub(crate) fn is_sealed(bytes: &[u8], magic: u32, salt: u64) -> bool {
    let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    bytes.len() >= 8 && word(0) == magic && word(4) == crc_of_structure(bytes, salt)
}

/// A view of the front of `bytes`.
///
/// # Errors
/// Too few bytes, as damage `what` at `at`.
pub(crate) fn view<T: FromBytes + Immutable + KnownLayout + Unaligned + Copy>(
    bytes: &[u8],
    what: &'static str,
    at: u64,
) -> Result<T, FsError> {
    T::read_from_prefix(bytes).map(|(value, _)| value).map_err(|_| FsError::damaged(what, at))
}
