//! The life of a node of the tree, as the models see it.
//!
//! In the kernel this is nothing at all. Under loom each cell of a table, chunk or folio carries a second one that every
//! use of the first reads and that freeing writes: loom then reports a use that is not ordered before the freeing, and a
//! flag reports a use that comes after it. There is no other way to the cell, so that no use can be forgotten.

use core::ops::Deref;

/// A cell that is freed some day. Whoever reaches what is in it uses it.
#[repr(C)]
pub(super) struct Watched<T> {
    cell: T,
    #[cfg(loom)]
    life: Life,
}

impl<T> Deref for Watched<T> {
    type Target = T;
    #[inline(always)]
    fn deref(&self) -> &T {
        #[cfg(loom)]
        self.life.check();
        &self.cell
    }
}

impl<T> Watched<T> {
    /// It exists.
    pub(super) fn new(cell: T) -> Self {
        Self {
            cell,
            #[cfg(loom)]
            life: Life::begin(),
        }
    }
    /// It is freed. (Its memory is leaked, so that a late use is found and not undefined.)
    #[cfg(loom)]
    pub(super) fn end(&self) {
        self.life.end();
    }
}

/// Watches one cell.
#[cfg(loom)]
struct Life {
    uses: loom::cell::UnsafeCell<()>,
    /// Not loom's: it must not order anything.
    ended: core::sync::atomic::AtomicBool,
}

// SAFETY: the cell holds nothing, and loom ends the model where two threads use it without order.
#[cfg(loom)]
unsafe impl Sync for Life {}

#[cfg(loom)]
impl Life {
    fn begin() -> Self {
        Self { uses: loom::cell::UnsafeCell::new(()), ended: core::sync::atomic::AtomicBool::new(false) }
    }
    fn check(&self) {
        let ended = self.ended.load(core::sync::atomic::Ordering::Relaxed);
        assert!(!ended, "metadata was used after it was freed");
        self.uses.with(|_| ());
    }
    fn end(&self) {
        self.uses.with_mut(|_| ());
        self.ended.store(true, core::sync::atomic::Ordering::Relaxed);
    }
}
