//! An inode in use: who maps it, which of its offsets are closed to faults, what tasks may have stored to.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use arrayvec::ArrayVec;
use mm::context::MmContext;
use mm::lock_check;
use mm::machine::Machine;
use mm::pagemap::DevPagemap;
use mm::space::Mapping;
use mm::sync::{Arc, AtomicU32, AtomicU64, Mutex, Ordering};

use crate::batch::FEW;
use crate::gate::{Closed, Gate, Handles, Inside};
use crate::lock_order::OrderedLock;
use crate::mutant::Faults;

/// An inode that somebody has open, or that is being freed.
pub(crate) struct Inode<M: Machine> {
    pub(crate) ino: u64,
    /// Is it a DAX regular file?
    pub(crate) dax: bool,
    /// Who maps it.
    pub(crate) mapping: Arc<Mapping<M>>,
    /// Serialises changes of size and blocks by calls. LockOrder: inode.
    pub(crate) lock: OrderedLock<()>,
    /// One `fsync` at a time. LockOrder: sync.
    pub(crate) syncing: OrderedLock<()>,
    /// Each VMA that maps it counts through its handle.
    pub(crate) handles: Handles,
    gate: Gate,
    /// Ranges of pages that tasks may store to without a fault, or have stored to and nobody has written back, by start;
    /// disjoint.
    touched: Mutex<BTreeMap<u64, u64>>,
    /// Who let go of it last could not write back what tasks had stored, and nobody has opened it since: 1.
    unsaved: AtomicU32,
    /// Pages beyond this are being cut off: they are gone already for a fault.
    limit: AtomicU64,
}

impl<M: Machine> Inode<M> {
    /// `map`: the page map of the device that has its blocks.
    pub(crate) fn new(mm: &Arc<MmContext<M>>, map: &Arc<DevPagemap>, faults: Faults, ino: u64, dax: bool) -> Arc<Self> {
        Arc::new(Self {
            ino,
            dax,
            mapping: Mapping::new(mm, map),
            lock: OrderedLock::new(()),
            syncing: OrderedLock::new(()),
            handles: Handles::new(faults),
            gate: Gate::new(faults),
            touched: Mutex::new(BTreeMap::new()),
            unsaved: AtomicU32::new(0),
            limit: AtomicU64::new(u64::MAX),
        })
    }

    /// Could it not be written back when it was let go of? With the table of inodes locked.
    pub(crate) fn is_unsaved(&self) -> bool {
        self.unsaved.load(Ordering::Acquire) == 1
    }
    pub(crate) fn set_unsaved(&self, unsaved: bool) {
        self.unsaved.store(unsaved.into(), Ordering::Release);
    }

    /// Is the page being cut off?
    pub(crate) fn is_beyond_limit(&self, page: u64) -> bool {
        page >= self.limit.load(Ordering::SeqCst)
    }
    pub(crate) fn set_limit(&self, pages: u64) {
        self.limit.store(pages, Ordering::SeqCst);
    }

    /// Lets a fault for `first..end` in; `None` while some of it is closed.
    pub(crate) fn enter(&self, first: u64, end: u64) -> Option<Inside<'_>> {
        self.gate.enter(first, end)
    }

    /// Closes `first..end` to faults; when it returns none is inside.
    pub(crate) fn close(&self, machine: &M, first: u64, end: u64) -> Closed<'_> {
        lock_check::might_sleep("faults");
        let closed = self.gate.begin_close(first, end);
        while self.gate.has_inside() {
            machine.relax();
        }
        closed
    }

    /// Notes that tasks may store to `first..end` from now on.
    pub(crate) fn touch(&self, first: u64, end: u64) {
        let touched = &mut *self.touched.lock();
        let (mut first, mut end) = (first, end);
        // Melt with what it meets.
        while let Some((&from, &to)) = touched.range(..=end).next_back().filter(|&(_, &to)| to >= first) {
            touched.remove(&from);
            (first, end) = (first.min(from), end.max(to));
        }
        touched.insert(first, end);
    }

    /// May tasks have stored to it since that was last forgotten?
    pub(crate) fn is_touched(&self) -> bool {
        !self.touched.lock().is_empty()
    }

    /// What tasks may have stored to; forgotten.
    pub(crate) fn take_touched(&self) -> Vec<(u64, u64)> {
        let touched = core::mem::take(&mut *self.touched.lock());
        touched.into_iter().collect()
    }

    /// The part of that within `first..end`, from the back, as much as has room without memory; forgotten. Where it fills
    /// the list there may be more.
    pub(crate) fn untouch(&self, first: u64, end: u64) -> ArrayVec<(u64, u64), FEW> {
        let touched = &mut *self.touched.lock();
        let mut inside = ArrayVec::new();
        while !inside.is_full()
            && let Some((&from, &to)) = touched.range(..end).next_back().filter(|&(_, &to)| to > first)
        {
            touched.remove(&from);
            let (a, b) = (from.max(first), to.min(end));
            inside.push((a, b));
            if from < a {
                touched.insert(from, a);
            }
            if b < to {
                touched.insert(b, to);
            }
        }
        inside
    }
}
