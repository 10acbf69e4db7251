//! The life of a node of the tree, as the models see it.
//!
//! In the kernel this is nothing at all. Under a checker each table, chunk and folio carries a cell that every look
//! reads and that freeing writes: it then reports a look that is not ordered before the freeing, and a flag
//! reports a look that comes after it.

#[cfg(not(any(loom, shuttle)))]
mod imp {
    /// Nothing.
    pub(in super::super) struct Life;
    impl Life {
        /// A look at the node.
        #[inline(always)]
        pub(in super::super) fn check(&self) {}
    }
}

#[cfg(any(loom, shuttle))]
mod imp {
    use core::sync::atomic::{AtomicBool, Ordering};

    use crate::sync::model::UnsafeCell;

    /// Watches one node.
    pub(in super::super) struct Life {
        looks: UnsafeCell<()>,
        /// Not the checker's: it must not order anything.
        ended: AtomicBool,
    }
    // SAFETY: the cell holds nothing, and the checker ends the model where two threads use it without order.
    unsafe impl Sync for Life {}
    impl Life {
        /// The node exists.
        pub(in super::super) fn begin() -> Self {
            Self { looks: UnsafeCell::new(()), ended: AtomicBool::new(false) }
        }
        /// A look at the node.
        pub(in super::super) fn check(&self) {
            // Inside, where it counts: others may run before a use begins.
            self.looks.with(|_| assert!(!self.ended.load(Ordering::Relaxed), "metadata was used after it was freed"));
        }
        /// The node is freed. (Its memory is leaked, so that a late look is found and not undefined.)
        pub(in super::super) fn end(&self) {
            self.looks.with_mut(|_| ());
            self.ended.store(true, Ordering::Relaxed);
        }
    }
}

pub(super) use imp::Life;
