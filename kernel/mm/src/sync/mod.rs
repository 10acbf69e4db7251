//! One door to atomics and locks: core's in the kernel and in plain tests, loom's under `--cfg loom`, shuttle's under
//! `--cfg shuttle`.
//!
//! Everything in this package that two CPUs touch goes through these names, so that the models in
//! `tests/loom_*.rs` check the very code that the kernel runs. What a model itself is made of is in [`model`].

/// Plain counted pointers under a checker too: what is modelled here is our protocols, not `Arc`.
pub use alloc::sync::{Arc, Weak};
#[cfg(not(any(loom, shuttle)))]
pub use core::sync::atomic::{AtomicI64, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};

#[cfg(loom)]
pub use self::counted::{AtomicI64, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize};
#[cfg(loom)]
pub use loom::sync::atomic::{Ordering, fence};
#[cfg(shuttle)]
pub use shuttle::sync::atomic::{AtomicI64, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};

#[cfg(not(any(loom, shuttle)))]
pub(crate) use self::spinning::RawMutex;
#[cfg(not(any(loom, shuttle)))]
pub use self::spinning::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, SleepLock, SleepLockGuard};

#[cfg(any(loom, shuttle))]
pub(crate) use self::checked::RawMutex;
#[cfg(any(loom, shuttle))]
pub use self::checked::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, SleepLock, SleepLockGuard};

#[cfg(any(loom, shuttle))]
mod checked;
#[cfg(loom)]
mod counted;
#[cfg(all(feature = "hosted", not(any(loom, shuttle))))]
pub mod hosted;
#[cfg(any(loom, shuttle, feature = "hosted"))]
pub mod model;
#[cfg(shuttle)]
mod sampled;
#[cfg(not(any(loom, shuttle)))]
mod spinning;

/// Between two looks at a word that others change: there the host's schedule explorer lets another CPU go on. Nothing
/// anywhere else.
#[inline(always)]
pub(crate) fn between() {
    #[cfg(all(feature = "hosted", not(any(loom, shuttle))))]
    hosted::tell(hosted::LockStep::Between);
}
