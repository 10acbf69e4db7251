//! The life of a node of the tree, as the models see it.
//!
//! In the kernel this is nothing at all. Under a checker each cell of a table, chunk or folio carries a second one that every
//! use of the first reads and that freeing writes: it then reports a use that is not ordered before the freeing, and a
//! flag reports a use that comes after it. There is no other way to the cell, so that no use can be forgotten.

use core::ops::Deref;

/// A cell that is freed some day. Whoever reaches what is in it uses it.
#[repr(C)]
pub(super) struct Watched<T> {
    cell: T,
    #[cfg(any(loom, shuttle))]
    life: Life,
}

impl<T> Deref for Watched<T> {
    type Target = T;
    #[inline(always)]
    fn deref(&self) -> &T {
        #[cfg(any(loom, shuttle))]
        self.life.check();
        &self.cell
    }
}

impl<T> Watched<T> {
    /// It exists.
    pub(super) fn new(cell: T) -> Self {
        Self {
            cell,
            #[cfg(any(loom, shuttle))]
            life: Life::begin(),
        }
    }
    /// It is freed. (Its memory is leaked, so that a late use is found and not undefined.)
    #[cfg(any(loom, shuttle))]
    pub(super) fn end(&self) {
        self.life.end();
    }
}

/// Watches one cell.
#[cfg(any(loom, shuttle))]
struct Life {
    uses: crate::sync::model::UnsafeCell<()>,
    /// Not the checker's: it must not order anything.
    ended: core::sync::atomic::AtomicBool,
}

// SAFETY: the cell holds nothing, and the checker ends the model where two threads use it without order.
#[cfg(any(loom, shuttle))]
unsafe impl Sync for Life {}

#[cfg(any(loom, shuttle))]
impl Life {
    fn begin() -> Self {
        Self { uses: crate::sync::model::UnsafeCell::new(()), ended: core::sync::atomic::AtomicBool::new(false) }
    }
    fn check(&self) {
        let ended = || self.ended.load(core::sync::atomic::Ordering::Relaxed);
        // Inside, where it counts: others may run before a use begins.
        self.uses.with(|_| assert!(!ended(), "metadata was used after it was freed"));
    }
    fn end(&self) {
        self.uses.with_mut(|_| ());
        self.ended.store(true, core::sync::atomic::Ordering::Relaxed);
    }
}
