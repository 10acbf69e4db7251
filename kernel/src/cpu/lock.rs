//! The kernel's innermost lock: a spin lock held with interrupts off.
//!
//! For what interrupt handlers and the scheduler also touch. Whoever holds one neither waits nor logs. Everything
//! else uses `mm::sync::Mutex`, whose holder may be preempted.

use core::fmt;
use core::mem::ManuallyDrop;
use core::ops::{Deref, DerefMut};

use arch::cpu::IrqSave;
use spin::mutex::{SpinMutex, SpinMutexGuard};

/// A spin lock whose holder has interrupts off.
pub struct IrqLock<T>(SpinMutex<T>);

impl<T> IrqLock<T> {
    /// A lock around `value`.
    pub const fn new(value: T) -> Self {
        Self(SpinMutex::new(value))
    }

    /// Turns interrupts off and waits for the lock.
    #[inline]
    pub fn lock(&self) -> IrqLockGuard<'_, T> {
        let irq = IrqSave::new();
        IrqLockGuard { guard: ManuallyDrop::new(self.0.lock()), _irq: irq }
    }

    /// Opens the lock whoever holds it. For the panic path, when every other CPU has been stopped.
    ///
    /// # Safety
    /// The holder will never run again, and the value may be used in whatever state it is in.
    pub unsafe fn force_unlock(&self) {
        // SAFETY: by this function's contract.
        unsafe { self.0.force_unlock() }
    }
}

impl<T> fmt::Debug for IrqLock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IrqLock")
    }
}

/// Access to the value; dropping it opens the lock, then restores the interrupt flag.
pub struct IrqLockGuard<'a, T> {
    guard: ManuallyDrop<SpinMutexGuard<'a, T>>,
    _irq: IrqSave,
}

impl<T> Deref for IrqLockGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T> DerefMut for IrqLockGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

impl<T> Drop for IrqLockGuard<'_, T> {
    fn drop(&mut self) {
        // Fields are dropped after this body: the lock must open before interrupts come back.
        // SAFETY: dropped once, here, and not used again.
        unsafe { ManuallyDrop::drop(&mut self.guard) };
    }
}
