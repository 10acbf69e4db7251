//! The checker's locks with the spin locks' signatures (no poisoning: a panic ends the model).

#[cfg(loom)]
use loom::sync as checker;
#[cfg(shuttle)]
use shuttle::sync as checker;

pub use checker::{MutexGuard, RwLockReadGuard, RwLockWriteGuard};

/// The checker's lock.
#[derive(Debug)]
pub struct Mutex<T>(checker::Mutex<T>);
impl<T> Mutex<T> {
    /// A lock around `value`.
    pub fn new(value: T) -> Self {
        Self(checker::Mutex::new(value))
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
pub struct SleepLock<T>(Mutex<T>);
/// Guard of a [`SleepLock`].
pub type SleepLockGuard<'a, T> = MutexGuard<'a, T>;
impl<T> SleepLock<T> {
    /// A turn that nobody has.
    pub fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }
    /// Takes it if it is free.
    pub fn try_take(&self) -> Option<SleepLockGuard<'_, T>> {
        self.0.try_lock()
    }
    /// Takes it. loom's threads wait by themselves: `relax` is not needed.
    #[cfg(loom)]
    pub fn take(&self, _relax: impl FnMut()) -> SleepLockGuard<'_, T> {
        self.0.lock()
    }
    /// Takes it; calls `relax` for as long as another has it, as the kernel does.
    #[cfg(shuttle)]
    pub fn take(&self, mut relax: impl FnMut()) -> SleepLockGuard<'_, T> {
        loop {
            match self.try_take() {
                Some(turn) => return turn,
                None => relax(),
            }
        }
    }
}

/// The checker's readers-writer lock.
#[derive(Debug)]
pub struct RwLock<T>(checker::RwLock<T>);
impl<T> RwLock<T> {
    /// A lock around `value`.
    pub fn new(value: T) -> Self {
        Self(checker::RwLock::new(value))
    }
    /// Waits for shared access.
    pub fn read(&self) -> RwLockReadGuard<'_, T> {
        self.0.read().unwrap()
    }
    /// Waits for exclusive access.
    pub fn write(&self) -> RwLockWriteGuard<'_, T> {
        self.0.write().unwrap()
    }
    /// Shared access, if nobody has exclusive access.
    #[cfg(shuttle)]
    pub fn try_read(&self) -> Option<RwLockReadGuard<'_, T>> {
        self.0.try_read().ok()
    }
    /// Exclusive access, if nobody has any.
    #[cfg(shuttle)]
    pub fn try_write(&self) -> Option<RwLockWriteGuard<'_, T>> {
        self.0.try_write().ok()
    }
}
