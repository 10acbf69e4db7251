//! Doors for one who runs several emulated CPUs on one thread of a host, in turns of his own choosing.
//!
//! A thread that [watches](watch) hears of each [`Mutex`](super::Mutex) before it is taken, so that another CPU may go on
//! there; and it must, where the lock is taken. Metadata that such a thread frees is overwritten and kept until
//! [`drop_kept`], so that a late look finds what cannot be, and not memory that belongs to somebody else by now.
//!
//! Threads that do not watch notice nothing of all this, and the kernel has none of it.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::any::Any;
use core::cell::{Cell, RefCell};

/// What the running CPU does about a lock, or a word that does a lock's work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockStep {
    /// It is about to take it.
    Before,
    /// It has found it taken, and tries again after this.
    Taken,
    /// It has looked at a word without a lock, and is about to change it.
    Between,
}

std::thread_local! {
    static WATCHER: Cell<Option<fn(LockStep)>> = const { Cell::new(None) };
    static KEPT: RefCell<Vec<Box<dyn Any>>> = const { RefCell::new(Vec::new()) };
}

/// From now on this thread tells `watcher` of its locks; `None`: nobody.
pub fn watch(watcher: Option<fn(LockStep)>) {
    WATCHER.set(watcher);
}

/// Does this thread watch?
pub(crate) fn is_watched() -> bool {
    WATCHER.get().is_some()
}

pub(super) fn tell(step: LockStep) {
    if let Some(watcher) = WATCHER.get() {
        watcher(step);
    }
}

/// Keeps freed memory that is overwritten already.
pub(crate) fn keep(freed: Box<dyn Any>) {
    KEPT.with_borrow_mut(|kept| kept.push(freed));
}

/// Frees what was kept on this thread.
pub fn drop_kept() {
    KEPT.with_borrow_mut(Vec::clear);
}
