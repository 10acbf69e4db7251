//! Freezing: no change begins until the thaw.
//!
//! # Protocol
//! ```text
//!  a change                                  a freeze that ends in a shutdown
//!  W1 adds itself to the writers             F1 says that the file system is frozen
//!     full fence                                full fence
//!  W2 looks whether it is frozen             F2 waits until there is no writer; the medium is at rest
//!  W3 looks whether it is shut down          F3 shuts it down
//!  W4 changes it                             F4 thaws it
//!  W5 is no writer any more
//! ```
//! The fences see to it that W2 finds F1, or F2 finds W1. A change that finds it thawed by F4 finds F3 too, because it
//! looks in this order: were it to look for the shutdown first, both could come between its looks, and it would change a
//! medium that was left at rest for good.
//!
//! There are two kinds of holders, the kernel and the user, each with a count: the file system is frozen while either is
//! not zero.
//!
//! A fault does not wait for a thaw, for it holds its address space: it is turned away and comes again. So nobody
//! who waits here holds anything, and a freeze waits only for changes that are under way.
//!
//! Model: `tests/loom_freeze.rs`.
//!
//! Linux: `fs/super.c`, `freeze_super` with `enum freeze_holder`.

use mm::machine::Machine;
use mm::sync::{AtomicU32, AtomicU64, Mutex, Ordering, SleepLock, SleepLockGuard, fence};

use crate::error::{FsError, ShutdownReason};
use crate::lock_order::Context;
use crate::mutant::{Faults, Mutant};

/// Who freezes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FreezeHolder {
    /// The kernel, for the time of something that it does.
    Kernel,
    /// A user, until the user thaws it.
    User,
}

#[derive(Default)]
struct Counts {
    kernel: u32,
    user: u32,
}

/// The gate of changes, and the shutdown.
pub struct Freeze {
    faults: Faults,
    counts: Mutex<Counts>,
    /// 1 while frozen.
    frozen: AtomicU32,
    writers: AtomicU64,
    /// 0: running; else a [`ShutdownReason`].
    shutdown: AtomicU32,
    /// Held from the first step of a freeze or a thaw to its last, so that who finds the file system frozen finds the
    /// medium at rest, and of two thaws at once one is the last.
    turn: SleepLock<()>,
}

/// A change is under way: no freeze completes.
#[must_use = "the change is over when this is dropped"]
pub struct WriteGuard<'f> {
    freeze: &'f Freeze,
}

impl Drop for WriteGuard<'_> {
    fn drop(&mut self) {
        self.freeze.writers.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Freeze {
    /// Open; with these deliberate faults.
    pub fn new(faults: Faults) -> Self {
        Self {
            faults,
            counts: Mutex::new(Counts::default()),
            frozen: AtomicU32::new(0),
            writers: AtomicU64::new(0),
            shutdown: AtomicU32::new(0),
            turn: SleepLock::new(()),
        }
    }

    /// Has the file system been shut down?
    pub(crate) fn shutdown(&self) -> Option<ShutdownReason> {
        match self.shutdown.load(Ordering::SeqCst) {
            1 => Some(ShutdownReason::ForcedUnmount),
            2 => Some(ShutdownReason::Corrupt),
            3 => Some(ShutdownReason::MetadataIo),
            4 => Some(ShutdownReason::DeviceGone),
            _ => None,
        }
    }

    /// Shuts it down; the first reason stays. Says whether it was this one.
    pub fn shut_down(&self, reason: ShutdownReason) -> bool {
        let value = match reason {
            ShutdownReason::ForcedUnmount => 1,
            ShutdownReason::Corrupt => 2,
            ShutdownReason::MetadataIo => 3,
            ShutdownReason::DeviceGone => 4,
        };
        self.shutdown.compare_exchange(0, value, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// Fails where the file system is shut down.
    pub(crate) fn check(&self) -> Result<(), FsError> {
        self.shutdown().map_or(Ok(()), |reason| Err(FsError::ShutDown(reason)))
    }

    /// Begins a change, if the file system is not frozen now; `None` where it is.
    ///
    /// # Errors
    /// [`FsError::ShutDown`].
    pub fn try_write(&self) -> Result<Option<WriteGuard<'_>>, FsError> {
        let looked = self.faults.has(Mutant::WriterCountedLate).then(|| self.is_frozen());
        // W1.
        self.writers.fetch_add(1, Ordering::SeqCst);
        let guard = WriteGuard { freeze: self };
        // Pairs with the fence in `begin`.
        fence(Ordering::SeqCst);
        let early = self.faults.has(Mutant::ShutdownAskedFirst);
        if early {
            self.check()?;
        }
        // W2, and only then W3.
        let frozen = looked.unwrap_or_else(|| self.is_frozen());
        if !early {
            self.check()?;
        }
        Ok((!frozen).then_some(guard))
    }

    fn is_frozen(&self) -> bool {
        self.frozen.load(Ordering::SeqCst) != 0
    }

    /// Begins a change; waits for a thaw.
    pub(crate) fn write<M: Machine>(&self, context: &Context, machine: &M) -> Result<WriteGuard<'_>, FsError> {
        loop {
            if let Some(guard) = self.try_write()? {
                return Ok(guard);
            }
            context.may_wait("a thaw");
            machine.relax();
        }
    }

    /// The right to freeze or to thaw. Waits for who has it, who waits for changes under way at most.
    pub(crate) fn turn<M: Machine>(&self, machine: &M) -> SleepLockGuard<'_, ()> {
        self.turn.take(|| machine.relax())
    }

    /// Freezes: when it returns no change is under way. Says whether this was the first of the freezes that hold.
    pub(crate) fn freeze<M: Machine>(
        &self,
        holder: FreezeHolder,
        machine: &M,
        timeout_ns: u64,
    ) -> Result<bool, FsError> {
        let first = self.begin(holder);
        let began = machine.now_ns();
        while self.has_writers() {
            if machine.now_ns() - began > timeout_ns {
                let _ = self.thaw(holder);
                return Err(FsError::Busy);
            }
            machine.relax();
        }
        Ok(first)
    }

    /// The first step of a freeze: no change begins from now on. Says whether this is the first of the freezes that hold.
    pub fn begin(&self, holder: FreezeHolder) -> bool {
        let mut counts = self.counts.lock();
        let first = counts.kernel + counts.user == 0;
        *counts.of(holder) += 1;
        // F1.
        self.frozen.store(1, Ordering::SeqCst);
        // Pairs with the fence in `try_write`.
        fence(Ordering::SeqCst);
        first
    }

    /// The second step waits for this: is a change under way that had begun before the first?
    pub fn has_writers(&self) -> bool {
        self.writers.load(Ordering::SeqCst) != 0
    }

    /// Takes one freeze of `holder` back. Says whether none is left, in which case changes go on.
    ///
    /// # Errors
    /// [`FsError::Invalid`] where `holder` has not frozen it.
    pub fn thaw(&self, holder: FreezeHolder) -> Result<bool, FsError> {
        let mut counts = self.counts.lock();
        let count = counts.of(holder);
        *count = count.checked_sub(1).ok_or(FsError::Invalid)?;
        let last = counts.kernel + counts.user == 0;
        if last {
            self.frozen.store(0, Ordering::SeqCst);
        }
        Ok(last)
    }

    /// Would the thaw of `holder` be the last?
    pub(crate) fn is_last(&self, holder: FreezeHolder) -> bool {
        let mut counts = self.counts.lock();
        *counts.of(holder) == 1 && counts.kernel + counts.user == 1
    }

    /// How often each holder has frozen it: kernel, user.
    pub(crate) fn holders(&self) -> (u32, u32) {
        let counts = self.counts.lock();
        (counts.kernel, counts.user)
    }
}

impl Counts {
    fn of(&mut self, holder: FreezeHolder) -> &mut u32 {
        match holder {
            FreezeHolder::Kernel => &mut self.kernel,
            FreezeHolder::User => &mut self.user,
        }
    }
}
