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
pub use self::spinning::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

#[cfg(loom)]
pub use self::modelled::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

#[cfg(not(loom))]
mod spinning {
    //! Spin locks. Each spin executes `pause` (through `core::hint::spin_loop`), without which a CPU that waits
    //! would starve the one it waits for where CPUs take turns on one host thread.

    /// A spin lock. Interrupts stay as they are: do not take one in an interrupt handler that is also taken
    /// outside without interrupts off.
    pub type Mutex<T> = spin::mutex::SpinMutex<T>;
    /// Guard of a [`Mutex`].
    pub type MutexGuard<'a, T> = spin::mutex::SpinMutexGuard<'a, T>;
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
