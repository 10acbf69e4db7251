//! Persistent memory: stores, write-backs and fences, and types that say how far a store has come.
//!
//! # Protocol
//! A store reaches the medium in three steps, and each step is a type:
//!
//! | value | what it says | next step |
//! |---|---|---|
//! | [`Dirty`] | these bytes are stored; the cache may or may not have evicted them | [`Dirty::write_back`] |
//! | [`WrittenBack`] | their cache lines are on the way to the medium | [`WrittenBack::fence`] |
//! | [`Durable`] | they survive a power cut | may be required as an argument |
//!
//! A function that must not run before something is on the medium takes a [`Durable`] and so cannot be called too
//! early; a [`Dirty`] that is dropped is a warning of the compiler. One fence completes every write-back that this
//! CPU issued before it, so that [`WrittenBack`] values may be joined and fenced once.
//!
//! Idea: H. LeBlanc et al., "SquirrelFS: using the Rust compiler to check file-system crash consistency" (OSDI 2024).
//! x86: `clwb` or `clflushopt` is the write-back, `sfence` the fence; Intel SDM vol. 2 at each of them.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::collections::btree_map::Entry;
use alloc::vec::Vec;

use mm::sync::{Arc, Mutex};

use crate::error::FsError;
use crate::mutant::{Faults, Mutant};

/// Bytes in a cache line: the unit of a write-back.
pub const LINE: u64 = 64;

/// Byte-addressable persistent memory, as the file system sees its part of a device (offset 0 is its first byte).
///
/// Everything takes `&self`: user mappings store to the same bytes at any time. A store of eight aligned bytes is
/// atomic with respect to a power cut; nothing larger is.
pub trait Pmem: Send + Sync {
    /// Size in bytes.
    fn len_bytes(&self) -> u64;
    /// Reads `buf.len()` bytes from `offset` on.
    ///
    /// # Errors
    /// [`FsError::Media`] where a byte cannot be read or lies outside; [`FsError::DeviceGone`].
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), FsError>;
    /// Stores `bytes` at `offset`, into the cache.
    ///
    /// # Errors
    /// As [`read`](Self::read); nothing is stored then.
    fn store(&self, offset: u64, bytes: &[u8]) -> Result<(), FsError>;
    /// These whole blocks are free, and are about to be written anew: where the medium has lost what they held, it is
    /// made to take bytes again. What they hold afterwards is not said.
    ///
    /// # Errors
    /// As [`read`](Self::read), where the medium takes nothing there.
    fn renew(&self, offset: u64, len: u64) -> Result<(), FsError> {
        let _ = (offset, len);
        Ok(())
    }
    /// Starts writing back the cache lines that hold these bytes.
    fn write_back(&self, offset: u64, len: u64);
    /// Waits for every write-back that this CPU started; on memory that somebody else keeps, until he has confirmed
    /// that it lasts.
    ///
    /// # Errors
    /// [`FsError::NotDurable`] where he does not: what was written before may be lost in a power cut.
    fn fence(&self) -> Result<(), FsError>;
}

/// A run of bytes: offset and length.
pub type Span = (u64, u64);

/// Stored, not yet written back.
#[must_use = "what is not written back may be lost in a power cut"]
#[derive(Debug, Default)]
pub struct Dirty(Vec<Span>);

/// Written back, not yet fenced.
#[must_use = "what is not fenced may be lost in a power cut"]
#[derive(Debug, Default)]
pub struct WrittenBack {
    any: bool,
}

/// What was written back before the fence that made this value survives a power cut.
#[derive(Debug)]
pub struct Durable(());

/// Stores bytes.
///
/// # Errors
/// Those of the medium.
pub fn store(pmem: &dyn Pmem, offset: u64, bytes: &[u8]) -> Result<Dirty, FsError> {
    pmem.store(offset, bytes)?;
    Ok(Dirty(Vec::from([(offset, bytes.len() as u64)])))
}

/// Bytes that somebody else stored: a task, through its mapping.
pub fn stored_by_others(offset: u64, len: u64) -> Dirty {
    Dirty(Vec::from([(offset, len)]))
}

impl Dirty {
    /// Both.
    pub fn and(mut self, mut other: Self) -> Self {
        self.0.append(&mut other.0);
        self
    }
    /// Writes the lines back.
    pub fn write_back(self, pmem: &dyn Pmem) -> WrittenBack {
        for &(offset, len) in &self.0 {
            pmem.write_back(offset, len);
        }
        WrittenBack { any: !self.0.is_empty() }
    }
}

impl WrittenBack {
    /// Both.
    pub fn and(self, other: Self) -> Self {
        Self { any: self.any || other.any }
    }
    /// Is there nothing to wait for?
    pub fn is_empty(&self) -> bool {
        !self.any
    }
    /// Waits. Costs nothing where nothing was written back.
    ///
    /// # Errors
    /// As [`Pmem::fence`].
    pub fn fence(self, pmem: &dyn Pmem) -> Result<Durable, FsError> {
        if self.any {
            pmem.fence()?;
        }
        Ok(Durable(()))
    }
    /// The same, where a deliberate fault may leave the fence out.
    pub(crate) fn fence_unless(self, faults: Faults, left_out: Mutant, pmem: &dyn Pmem) -> Result<Durable, FsError> {
        if faults.has(left_out) { Ok(Durable(())) } else { self.fence(pmem) }
    }
}

/// Checks that `len` bytes at `offset` lie inside `size`.
///
/// # Errors
/// [`FsError::Media`].
pub fn check_bounds(offset: u64, len: usize, size: u64) -> Result<(), FsError> {
    match offset.checked_add(len as u64) {
        Some(end) if end <= size => Ok(()),
        _ => Err(FsError::Media(offset)),
    }
}

const PAGE: usize = 4096;

/// Another [`Pmem`] on which every store goes to a copy in memory: what is below stays as it is. A recovery is tried
/// out on it, and the checker works on it.
pub struct Overlay {
    below: Arc<dyn Pmem>,
    pages: Mutex<BTreeMap<u64, Box<[u8; PAGE]>>>,
}

impl Overlay {
    /// Nothing stored yet.
    pub fn new(below: &Arc<dyn Pmem>) -> Arc<Self> {
        Arc::new(Self { below: Arc::clone(below), pages: Mutex::new(BTreeMap::new()) })
    }
}

/// Cuts a run of bytes at page ends: page, offset inside it, range of the caller's buffer.
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, core::ops::Range<usize>)> {
    let mut done = 0;
    core::iter::from_fn(move || {
        if done == len {
            return None;
        }
        let at = offset + done as u64;
        let inside = (at % PAGE as u64) as usize;
        let part = (PAGE - inside).min(len - done);
        let piece = (at / PAGE as u64, inside, done..done + part);
        done += part;
        Some(piece)
    })
}

impl Pmem for Overlay {
    fn len_bytes(&self) -> u64 {
        self.below.len_bytes()
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), FsError> {
        check_bounds(offset, buf.len(), self.len_bytes())?;
        let pages = self.pages.lock();
        for (page, inside, part) in pieces(offset, buf.len()) {
            let len = part.len();
            match pages.get(&page) {
                Some(copy) => buf[part].copy_from_slice(&copy[inside..inside + len]),
                None => self.below.read(page * PAGE as u64 + inside as u64, &mut buf[part])?,
            }
        }
        Ok(())
    }

    fn store(&self, offset: u64, bytes: &[u8]) -> Result<(), FsError> {
        check_bounds(offset, bytes.len(), self.len_bytes())?;
        let mut pages = self.pages.lock();
        for (page, inside, part) in pieces(offset, bytes.len()) {
            let len = part.len();
            let copy = match pages.entry(page) {
                Entry::Occupied(copy) => copy.into_mut(),
                Entry::Vacant(place) => {
                    let mut copy = Box::new([0; PAGE]);
                    let rest = (self.len_bytes() - page * PAGE as u64).min(PAGE as u64) as usize;
                    self.below.read(page * PAGE as u64, &mut copy[..rest])?;
                    place.insert(copy)
                }
            };
            copy[inside..inside + len].copy_from_slice(&bytes[part]);
        }
        Ok(())
    }

    fn write_back(&self, _offset: u64, _len: u64) {}
    fn fence(&self) -> Result<(), FsError> {
        Ok(())
    }
}
