//! What can go wrong, and why a file system was shut down.

use core::fmt;

/// Why a file system stopped for good. The first reason stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShutdownReason {
    /// The device is about to leave: a forced unmount. What is on the medium is whole.
    ForcedUnmount,
    /// The device has gone, without a word. What was acknowledged is on it, and the next mount recovers.
    DeviceGone,
    /// A failure of the medium hit metadata, or damage was found there.
    Corrupt,
    /// A metadata write failed half-way: the next mount recovers.
    MetadataIo,
}

impl fmt::Display for ShutdownReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ForcedUnmount => "forced unmount",
            Self::DeviceGone => "the device has gone",
            Self::Corrupt => "corrupt metadata",
            Self::MetadataIo => "metadata I/O error",
        })
    }
}

/// A structure on the medium that is not what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Which structure, and what is wrong with it.
    pub what: &'static str,
    /// Where: a block, an inode or a group, as `what` says.
    pub at: u64,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.what, self.at)
    }
}

/// Why an operation was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FsError {
    /// No such file, directory or inode.
    NotFound,
    /// The name is taken.
    Exists,
    /// A directory was expected.
    NotDirectory,
    /// A directory was not expected.
    IsDirectory,
    /// The directory has entries.
    NotEmpty,
    /// No free block, or no free inode.
    NoSpace,
    /// The name is empty, `.` or `..`, or holds `/` or a zero byte (POSIX: `EINVAL`).
    BadName,
    /// The name is longer than 255 bytes (POSIX: `ENAMETOOLONG`).
    NameTooLong,
    /// An argument makes no sense: a directory moved into itself, a range that wraps.
    Invalid,
    /// Past the largest offset that a file can have, 16 TiB (POSIX: `EFBIG`).
    TooLarge,
    /// More bytes of attributes than an inode can have, 4072 (POSIX: `E2BIG`).
    AttributesTooLarge,
    /// The inode has as many links as it can count.
    TooManyLinks,
    /// In use: open files at unmount, a freeze that others hold.
    Busy,
    /// The device is too small to hold a file system.
    TooSmall,
    /// The configuration does not allow it.
    NotSupported,
    /// There is no file system of ours on the medium: nothing that could be one and is damaged, either.
    NoFileSystem,
    /// Metadata on the medium is damaged.
    Damaged(Damage),
    /// The medium cannot be read or written at this byte offset.
    Media(u64),
    /// What was written may not last: whoever keeps the memory did not confirm it.
    NotDurable,
    /// The file system has been shut down.
    ShutDown(ShutdownReason),
    /// The device is dead.
    DeviceGone,
    /// The change does not fit into the journal.
    JournalTooSmall,
}

impl FsError {
    /// Damage found at `at`.
    pub const fn damaged(what: &'static str, at: u64) -> Self {
        Self::Damaged(Damage { what, at })
    }
}

impl fmt::Display for FsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound => f.write_str("no such file or directory"),
            Self::Exists => f.write_str("the name is taken"),
            Self::NotDirectory => f.write_str("not a directory"),
            Self::IsDirectory => f.write_str("is a directory"),
            Self::NotEmpty => f.write_str("the directory is not empty"),
            Self::NoSpace => f.write_str("no space left"),
            Self::BadName => f.write_str("bad name"),
            Self::NameTooLong => f.write_str("the name is longer than 255 bytes"),
            Self::Invalid => f.write_str("invalid argument"),
            Self::TooLarge => f.write_str("past the largest file offset"),
            Self::AttributesTooLarge => f.write_str("more than 4072 bytes of attributes"),
            Self::TooManyLinks => f.write_str("too many links"),
            Self::Busy => f.write_str("busy"),
            Self::TooSmall => f.write_str("the device is too small for a file system (at least 112 KiB)"),
            Self::NotSupported => f.write_str("not supported by this configuration"),
            Self::NoFileSystem => f.write_str("there is no file system of Unplug's on it"),
            Self::Damaged(damage) => write!(f, "damaged: {damage}"),
            Self::Media(offset) => write!(f, "the medium fails at byte {offset:#x}"),
            Self::NotDurable => f.write_str("what was written may not last: the device did not confirm it"),
            Self::ShutDown(reason) => write!(f, "the file system is shut down: {reason}"),
            Self::DeviceGone => f.write_str("the device is gone"),
            Self::JournalTooSmall => f.write_str("the change does not fit into the journal"),
        }
    }
}

impl core::error::Error for FsError {}
