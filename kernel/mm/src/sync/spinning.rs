//! Spin locks. Each spin executes `pause` (through `core::hint::spin_loop`), without which a CPU that waits
//! would starve the one it waits for where CPUs take turns on one host thread.

use core::ops::{Deref, DerefMut};

use spin::mutex::{SpinMutex, SpinMutexGuard};

use crate::lock_check::HeldLock;

/// A spin lock, held for a few steps and never while waiting, which stops a debug build: see [`crate::lock_check`].
/// Interrupts stay as they are: do not take one in an interrupt handler that is also taken outside without
/// interrupts off.
#[derive(Debug, Default)]
pub struct Mutex<T>(SpinMutex<T>);

impl<T> Mutex<T> {
    /// A lock around `value`.
    pub const fn new(value: T) -> Self {
        Self(SpinMutex::new(value))
    }
    /// Spins for the lock.
    #[inline(always)]
    pub fn lock(&self) -> MutexGuard<'_, T> {
        #[cfg(feature = "hosted")]
        if super::hosted::is_watched() {
            return self.lock_watched();
        }
        // First: who was switched away between the two would hold a lock that is not counted.
        let held = HeldLock::new();
        MutexGuard { guard: self.0.lock(), _held: held }
    }
    /// Who has it may be a CPU that this very thread runs.
    #[cfg(feature = "hosted")]
    fn lock_watched(&self) -> MutexGuard<'_, T> {
        use super::hosted::{LockStep, tell};

        tell(LockStep::Before);
        loop {
            match self.try_lock() {
                Some(guard) => return guard,
                None => tell(LockStep::Taken),
            }
        }
    }
    /// Takes the lock if it is free.
    #[inline(always)]
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        let held = HeldLock::new();
        Some(MutexGuard { guard: self.0.try_lock()?, _held: held })
    }
    /// The value, which nobody else can reach.
    pub fn get_mut(&mut self) -> &mut T {
        self.0.get_mut()
    }
    /// The value.
    pub fn into_inner(self) -> T {
        self.0.into_inner()
    }
}

/// Guard of a [`Mutex`].
#[derive(Debug)]
pub struct MutexGuard<'a, T> {
    // In this order: it is counted for as long as it is held, and from before that.
    guard: SpinMutexGuard<'a, T>,
    _held: HeldLock,
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;
    #[inline(always)]
    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

/// A [`Mutex`] that is not counted: for those of the shootdown itself, whose holder loads and stores a few words and
/// calls nobody.
pub(crate) type RawMutex<T> = SpinMutex<T>;

/// A lock that its holder may keep while it waits. So nobody spins for it: who finds it taken lets others run.
#[derive(Debug, Default)]
pub struct SleepLock<T>(SpinMutex<T>);
/// Guard of a [`SleepLock`].
pub type SleepLockGuard<'a, T> = SpinMutexGuard<'a, T>;

impl<T> SleepLock<T> {
    /// A lock that nobody has.
    pub const fn new(value: T) -> Self {
        Self(SpinMutex::new(value))
    }
    /// Takes it if it is free.
    #[inline]
    pub fn try_take(&self) -> Option<SleepLockGuard<'_, T>> {
        self.0.try_lock()
    }
    /// Takes it; calls `relax` for as long as another has it.
    ///
    /// # Panics
    /// In debug builds, when the task holds a [`Mutex`].
    #[track_caller]
    pub fn take(&self, mut relax: impl FnMut()) -> SleepLockGuard<'_, T> {
        crate::lock_check::might_sleep("a sleep lock");
        loop {
            match self.try_take() {
                Some(guard) => return guard,
                None => relax(),
            }
        }
    }
    /// The value, which nobody else can reach.
    pub fn get_mut(&mut self) -> &mut T {
        self.0.get_mut()
    }
}

/// A spinning readers-writer lock.
pub type RwLock<T> = spin::RwLock<T>;
/// Shared guard of a [`RwLock`].
pub type RwLockReadGuard<'a, T> = spin::RwLockReadGuard<'a, T>;
/// Exclusive guard of a [`RwLock`].
pub type RwLockWriteGuard<'a, T> = spin::RwLockWriteGuard<'a, T>;
