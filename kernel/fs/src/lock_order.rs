//! Who holds which lock, and whether it may wait: passed along as a value.
//!
//! | rank | lock | may wait for pins, a thaw or an eviction while holding it? |
//! |---|---|---|
//! | 0 sync | one `fsync` of an inode at a time | no |
//! | 1 space | an address space, held by the caller of a fault | no |
//! | 2 inode | an inode: its size and its blocks | **no**: the holder of a pin may need it to give the pin back |
//! | 3 table | the inodes in memory | no |
//! | 4 volume | the file system's metadata | no |
//! | 5 leaf | an inode's gate, the list of inodes let go | no |
//!
//! Locks are taken in rising order. A [`Context`] knows what its task holds; waiting asks it first. In debug builds a
//! lock out of rank and a wait at the wrong time stop the kernel with a message (invariant 9 of the design); release
//! builds only count on it.

use core::cell::Cell;
use core::ops::{Deref, DerefMut};

use mm::lock_check;
use mm::machine::Machine;
use mm::sync::{AtomicU32, Ordering, SleepLock, SleepLockGuard};

/// The place of a lock in the order in which locks are taken: a rising one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum LockOrder {
    /// An inode's `fsync`, which locks address spaces.
    Sync = 0,
    /// An address space.
    Space = 1,
    /// An inode.
    Inode = 2,
    /// The inodes in memory.
    Table = 3,
    /// Metadata.
    Volume = 4,
    /// Small things that are held for a few instructions.
    Leaf = 5,
}

/// A lock with a rank. Taken by [`Context::lock`].
///
/// It is a spin lock, and nearly fair: who has tried for long is let in before any newcomer. Without that, tasks that do
/// one change after the other keep everybody else out for as long as they go on, for they hold the metadata most of the
/// time, and so most likely also when their time slice ends. Among those who have tried for long the first to look takes
/// it: in the order of their coming each would wait until the one before it has a CPU, with the lock free all the while
/// (the demonstration's files were synced a fifth as often).
#[derive(Debug, Default)]
pub struct OrderedLock<T> {
    lock: SleepLock<T>,
    /// How many have tried for long.
    starving: AtomicU32,
}

/// So many tries are long.
const LONG: u32 = 8;

impl<T> OrderedLock<T> {
    /// A lock that nobody holds.
    pub fn new(value: T) -> Self {
        Self { lock: SleepLock::new(value), starving: AtomicU32::new(0) }
    }

    /// The value, without a context, where it is nobody else's yet.
    pub(crate) fn set(&self, value: T) {
        *self.lock.try_take().expect("nobody else has it yet") = value;
    }

    fn take<M: Machine>(&self, machine: &M) -> SleepLockGuard<'_, T> {
        let (mut tries, mut starves) = (0, false);
        loop {
            // Relaxed: this only says who tries, and who tries takes the lock or does not.
            if (starves || self.starving.load(Ordering::Relaxed) == 0)
                && let Some(guard) = self.lock.try_take()
            {
                if starves {
                    self.starving.fetch_sub(1, Ordering::Relaxed);
                }
                return guard;
            }
            tries += 1;
            if tries == LONG {
                self.starving.fetch_add(1, Ordering::Relaxed);
                starves = true;
            }
            machine.relax();
        }
    }
}

/// In whose name something is done, and what that task holds.
#[derive(Debug, Default)]
pub struct Context {
    /// Bit n: a lock of rank n.
    held: Cell<u8>,
    reclaim: bool,
}

impl Context {
    /// A task that holds nothing.
    pub fn new() -> Self {
        Self::default()
    }
    /// A task that is looking for memory: it must not wait for a pin, whose holder may be waiting for memory.
    pub fn reclaim() -> Self {
        Self { held: Cell::new(0), reclaim: true }
    }
    /// A task that faults: its address space is locked.
    pub fn fault() -> Self {
        Self { held: Cell::new(1 << LockOrder::Space as u8), reclaim: false }
    }
    /// Is this a task that looks for memory?
    pub fn is_reclaim(&self) -> bool {
        self.reclaim
    }

    /// The task is about to wait for `what`, perhaps for long.
    ///
    /// # Panics
    /// In debug builds, while memory is being reclaimed or with a lock held.
    #[track_caller]
    pub fn may_wait(&self, what: &str) {
        lock_check::might_sleep(what);
        debug_assert!(!self.reclaim, "waits for {what} while memory is being reclaimed");
        debug_assert!(self.held.get() == 0, "waits for {what} with locks of ranks {:#b} held", self.held.get());
    }

    /// Takes a lock. Spins with `relax`, so that its holder can run.
    ///
    /// # Panics
    /// In debug builds, where a lock of the same or a higher rank is held.
    #[track_caller]
    pub fn lock<'l, T, M: Machine>(
        &'l self,
        machine: &M,
        rank: LockOrder,
        lock: &'l OrderedLock<T>,
    ) -> OrderedGuard<'l, T> {
        let bit = 1 << rank as u8;
        lock_check::might_sleep("a lock of a file system");
        debug_assert!(self.held.get() < bit, "takes a lock of rank {rank:?} while it holds {:#b}", self.held.get());
        let guard = lock.take(machine);
        self.held.set(self.held.get() | bit);
        OrderedGuard { guard, context: self, bit }
    }
}

/// A lock that is held.
pub struct OrderedGuard<'l, T> {
    guard: SleepLockGuard<'l, T>,
    context: &'l Context,
    bit: u8,
}

impl<T> Deref for OrderedGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T> DerefMut for OrderedGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

impl<T> Drop for OrderedGuard<'_, T> {
    fn drop(&mut self) {
        self.context.held.set(self.context.held.get() & !self.bit);
    }
}
