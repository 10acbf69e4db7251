//! A device that may leave without a word: no success for bytes from nowhere.
//!
//! Loads from memory that is not there give 0, and stores are dropped, without an exception. So whoever has copied asks
//! *afterwards* whether the memory was there all the while ([`Presence`]); the answer no is an error, whatever was copied. All
//! that the file system reads, stores and fences goes through here, so that no read, no `fsync`, no mount and no replay of a
//! journal is a success that rests on what was not there.
//!
//! What a fence says is about all that was stored before it, also by tasks through their mappings: it asks last.

use mm::sync::Arc;

use crate::error::FsError;
use crate::mutant::Mutant;
use crate::pmem::Pmem;

/// Whether memory is there.
pub trait Presence: Send + Sync {
    /// Was it there all the time until now? Once the answer was no it is never yes again.
    fn is_there(&self) -> bool;
}

/// Memory that may leave, as the file system sees it.
pub struct Leaving {
    below: Arc<dyn Pmem>,
    presence: Arc<dyn Presence>,
}

impl Leaving {
    /// `below`, as long as `presence` says that it is there.
    pub fn new(below: Arc<dyn Pmem>, presence: Arc<dyn Presence>) -> Arc<Self> {
        Arc::new(Self { below, presence })
    }

    fn checked(&self, access: impl FnOnce() -> Result<(), FsError>) -> Result<(), FsError> {
        if Mutant::ThereAskedFirst.is_on() {
            return if self.presence.is_there() { access() } else { Err(FsError::DeviceGone) };
        }
        let result = access();
        // Of memory that has left nothing is known: not that it is damaged, either.
        if self.presence.is_there() { result } else { Err(FsError::DeviceGone) }
    }
}

impl Pmem for Leaving {
    fn len_bytes(&self) -> u64 {
        self.below.len_bytes()
    }
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), FsError> {
        self.checked(|| self.below.read(offset, buf))
    }
    fn store(&self, offset: u64, bytes: &[u8]) -> Result<(), FsError> {
        self.checked(|| self.below.store(offset, bytes))
    }
    fn renew(&self, offset: u64, len: u64) -> Result<(), FsError> {
        self.checked(|| self.below.renew(offset, len))
    }
    fn write_back(&self, offset: u64, len: u64) {
        // The fence behind it asks.
        self.below.write_back(offset, len);
    }
    fn fence(&self) -> Result<(), FsError> {
        if Mutant::FenceDoesNotAsk.is_on() {
            return self.below.fence();
        }
        self.checked(|| self.below.fence())
    }
}
