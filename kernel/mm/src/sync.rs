//! One door to atomics and locks: core's in the kernel and in plain tests, loom's under `--cfg loom`.
//!
//! Everything in this package that two CPUs touch goes through these names, so that the models in
//! `tests/loom_*.rs` check the very code that the kernel runs.

/// Plain counted pointers under loom too: what is modelled here is our protocols, not `Arc`.
pub use alloc::sync::{Arc, Weak};
#[cfg(not(loom))]
pub use core::sync::atomic::{AtomicI64, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};

#[cfg(loom)]
pub use loom::sync::atomic::{AtomicI64, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};

#[cfg(not(loom))]
pub(crate) use self::spinning::RawMutex;
#[cfg(not(loom))]
pub use self::spinning::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, Turn, TurnGuard};

#[cfg(loom)]
pub(crate) use self::modelled::RawMutex;
#[cfg(loom)]
pub use self::modelled::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, Turn, TurnGuard};

#[cfg(not(loom))]
mod spinning {
    //! Spin locks. Each spin executes `pause` (through `core::hint::spin_loop`), without which a CPU that waits
    //! would starve the one it waits for where CPUs take turns on one host thread.

    use core::ops::{Deref, DerefMut};

    use spin::mutex::{SpinMutex, SpinMutexGuard};

    use crate::held::Held;

    /// A spin lock, held for a few steps and never while waiting, which stops a debug build: see [`crate::held`].
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
            MutexGuard { guard: self.0.lock(), _held: Held::new() }
        }
        /// Takes the lock if it is free.
        #[inline(always)]
        pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
            Some(MutexGuard { guard: self.0.try_lock()?, _held: Held::new() })
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
        // In this order: it is counted for as long as it is held.
        guard: SpinMutexGuard<'a, T>,
        _held: Held,
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
    pub struct Turn<T>(SpinMutex<T>);
    /// Guard of a [`Turn`].
    pub type TurnGuard<'a, T> = SpinMutexGuard<'a, T>;

    impl<T> Turn<T> {
        /// A turn that nobody has.
        pub const fn new(value: T) -> Self {
            Self(SpinMutex::new(value))
        }
        /// Takes it if it is free.
        #[inline]
        pub fn try_take(&self) -> Option<TurnGuard<'_, T>> {
            self.0.try_lock()
        }
        /// Takes it; calls `relax` for as long as another has it.
        ///
        /// # Panics
        /// In debug builds, when the task holds a [`Mutex`].
        #[track_caller]
        pub fn take(&self, mut relax: impl FnMut()) -> TurnGuard<'_, T> {
            crate::held::assert_none("a turn");
            loop {
                match self.try_take() {
                    Some(turn) => return turn,
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
}

#[cfg(loom)]
mod modelled {
    //! loom's locks with the spin locks' signatures (no poisoning: a panic ends the model).

    pub use loom::sync::{MutexGuard, RwLockReadGuard, RwLockWriteGuard};

    /// See [`loom::sync::Mutex`].
    #[derive(Debug)]
    pub struct Mutex<T>(loom::sync::Mutex<T>);
    impl<T> Mutex<T> {
        /// A lock around `value`.
        pub fn new(value: T) -> Self {
            Self(loom::sync::Mutex::new(value))
        }
        /// Waits for the lock.
        pub fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().unwrap()
        }
        /// Takes the lock if it is free.
        pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
            self.0.try_lock().ok()
        }
    }

    impl<T: Default> Default for Mutex<T> {
        fn default() -> Self {
            Self::new(T::default())
        }
    }

    /// Here a lock like any other.
    pub(crate) type RawMutex<T> = Mutex<T>;

    /// A [`Mutex`] that its holder may keep while it waits.
    #[derive(Debug, Default)]
    pub struct Turn<T>(Mutex<T>);
    /// Guard of a [`Turn`].
    pub type TurnGuard<'a, T> = MutexGuard<'a, T>;
    impl<T> Turn<T> {
        /// A turn that nobody has.
        pub fn new(value: T) -> Self {
            Self(Mutex::new(value))
        }
        /// Takes it if it is free.
        pub fn try_take(&self) -> Option<TurnGuard<'_, T>> {
            self.0.try_lock()
        }
        /// Takes it. The model waits by itself: `relax` is not needed.
        pub fn take(&self, _relax: impl FnMut()) -> TurnGuard<'_, T> {
            self.0.lock()
        }
    }

    /// See [`loom::sync::RwLock`].
    #[derive(Debug)]
    pub struct RwLock<T>(loom::sync::RwLock<T>);
    impl<T> RwLock<T> {
        /// A lock around `value`.
        pub fn new(value: T) -> Self {
            Self(loom::sync::RwLock::new(value))
        }
        /// Waits for shared access.
        pub fn read(&self) -> RwLockReadGuard<'_, T> {
            self.0.read().unwrap()
        }
        /// Waits for exclusive access.
        pub fn write(&self) -> RwLockWriteGuard<'_, T> {
            self.0.write().unwrap()
        }
    }
}
