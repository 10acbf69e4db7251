//! Holders: whoever builds on a DAX device and has to hear when it fails or goes away.
//!
//! A file system is a holder; so is a driver that stacks another device on this one, or a cache. Each registers
//! itself with [`DaxDevice::register_holder`](crate::device::DaxDevice::register_holder) and is told of failures
//! by [`Holder::notify_failure`]. The device never learns what a holder is: it does not name file systems.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use bitflags::bitflags;

bitflags! {
    /// Why a holder is told (Linux: `enum mf_flags`).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct NotifyFlags: u32 {
        /// The device is about to be removed. It still works while the holder is told, nothing is broken, and
        /// no page is to be marked as poisoned.
        const PRE_REMOVE = 1 << 0;
        /// A task has met the failure and cannot go on without an answer.
        const ACTION_REQUIRED = 1 << 1;
        /// The device has gone, without a word: nothing of it can be read or written, and nothing is to be saved. No page
        /// is to be marked as poisoned: it may come back as it was.
        const GONE = 1 << 3;
        /// Tasks that map the range get SIGBUS even where they asked to be told later.
        const MUST_KILL = 1 << 2;
    }
}

impl fmt::Display for NotifyFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("none");
        }
        bitflags::parser::to_writer(self, f)
    }
}

/// What a holder, or the device itself, answers to a notification other than "done".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotifyError {
    /// The device is dead.
    NoSuchDevice,
    /// The holder has no such operation, or its configuration does not allow it.
    NotSupported,
    /// No byte of the range belongs to the holder.
    NoSuchAddress,
    /// The holder is not ready (not fully mounted), or could not do what it should.
    Io,
    /// The holder's own metadata was hit, and it has shut itself down.
    Corrupted,
}

impl fmt::Display for NotifyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoSuchDevice => "no such device",
            Self::NotSupported => "not supported",
            Self::NoSuchAddress => "no such address",
            Self::Io => "I/O error",
            Self::Corrupted => "metadata is corrupt",
        })
    }
}

impl core::error::Error for NotifyError {}

/// Somebody who builds on a DAX device.
///
/// ```
/// use std::sync::Arc;
/// use dax::device::{DataCache, alloc_dax};
/// use dax::holder::{Holder, NotifyError, NotifyFlags, Role};
/// use dax::kill::kill_dax;
/// use mm::addr::Pfn;
/// use testkit::emu::{self, Frames};
///
/// struct FileSystem;
/// impl Holder for FileSystem {
///     fn name(&self) -> &str { "fs" }
///     fn notify_failure(&self, offset: u64, len: u64, flags: NotifyFlags) -> Result<(), NotifyError> {
///         assert_eq!((offset, len, flags), (0, dax::range::WHOLE, NotifyFlags::PRE_REMOVE));
///         Err(NotifyError::Io)
///     }
/// }
///
/// let mm = emu::context(1);
/// let frames = Frames::new(&mm, Pfn::new(0x10_0000), 512);
/// let live = alloc_dax("dax0.0", &frames.map, DataCache::Coherent, &mm.ledger).unwrap();
/// let _registration = live.device().register_holder(Role::Owner, Arc::new(FileSystem)).unwrap();
/// // Its answer is on record. It does not keep the device from dying.
/// let (_dead, report) = kill_dax(live, &mut core::hint::spin_loop, &mut |_, _| ());
/// assert_eq!(report.answers[0].to_string(), "fs: I/O error");
/// ```
pub trait Holder: Send + Sync {
    /// The name for reports.
    fn name(&self) -> &str;

    /// `len` bytes from `offset` of the device fail, or go away where `flags` say
    /// [`PRE_REMOVE`](NotifyFlags::PRE_REMOVE). Offset 0 with length [`WHOLE`](crate::range::WHOLE) is the whole
    /// device; [`clip`](crate::range::clip) turns a range into the holder's own.
    ///
    /// The device is alive until this returns. It must end: no retry without bound.
    ///
    /// # Errors
    /// Whatever keeps the holder from acting; it is recorded, and a removal goes on. A holder that does not
    /// implement this answers [`NotifyError::NotSupported`].
    fn notify_failure(&self, offset: u64, len: u64, flags: NotifyFlags) -> Result<(), NotifyError> {
        let _ = (offset, len, flags);
        Err(NotifyError::NotSupported)
    }
}

/// How a holder holds. Who is not ready to be told when it registers says so later, by
/// [`Registration::confirm`](crate::device::Registration::confirm).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It owns the contents, as a file system does: there is at most one.
    Owner,
    /// It only wants to hear of failures: any number.
    Observer,
}

/// What one holder said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Its name.
    pub holder: String,
    /// What it answered.
    pub result: Result<(), NotifyError>,
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.result {
            Ok(()) => write!(f, "{}: done", self.holder),
            Err(error) => write!(f, "{}: {error}", self.holder),
        }
    }
}

/// Number of one registration. Never used twice for the same device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HolderId(u64);

/// The registered holders of one device, oldest first.
#[derive(Default)]
pub(crate) struct Holders {
    next: u64,
    list: Vec<(HolderId, Role, Arc<dyn Holder>)>,
}

impl Holders {
    /// Adds one; `None` where the device has an owner already and this would be another.
    pub(crate) fn add(&mut self, role: Role, holder: Arc<dyn Holder>) -> Option<HolderId> {
        if role == Role::Owner && self.list.iter().any(|&(_, role, _)| role == Role::Owner) {
            return None;
        }
        let id = HolderId(self.next);
        self.next += 1;
        self.list.push((id, role, holder));
        Some(id)
    }

    /// Takes one out, if it is still there.
    pub(crate) fn remove(&mut self, id: HolderId) -> Option<Arc<dyn Holder>> {
        let at = self.list.iter().position(|&(other, ..)| other == id)?;
        Some(self.list.remove(at).2)
    }

    /// Those to be told, so that they are called without the list's lock.
    pub(crate) fn snapshot(&self) -> Vec<Arc<dyn Holder>> {
        self.list.iter().map(|(.., holder)| Arc::clone(holder)).collect()
    }

    /// Takes all of them out.
    pub(crate) fn take_all(&mut self) -> Vec<Arc<dyn Holder>> {
        self.list.drain(..).map(|(.., holder)| holder).collect()
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }
}
