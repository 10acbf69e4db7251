//! An inode in use: who maps it, which of its offsets are closed to faults, what tasks may have stored to.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use mm::held;
use mm::machine::Machine;
use mm::pagemap::DevPagemap;
use mm::space::Mapping;
use mm::sync::{Arc, AtomicU32, AtomicU64, AtomicUsize, Mutex, Ordering};
use mm::world::Mm;

use crate::rank::RankedLock;

/// An inode that somebody has open, or that is being freed.
pub(crate) struct Inode<M: Machine> {
    pub(crate) ino: u64,
    /// Is it a DAX regular file?
    pub(crate) dax: bool,
    /// Who maps it.
    pub(crate) mapping: Arc<Mapping<M>>,
    /// Serialises changes of size and blocks by calls. Rank: inode.
    pub(crate) lock: RankedLock<()>,
    /// One `fsync` at a time. Rank: sync.
    pub(crate) syncing: RankedLock<()>,
    /// Handles; each VMA that maps it counts through its handle.
    pub(crate) users: AtomicUsize,
    /// 1 while a CPU lets go of it. Changed with the table of inodes locked.
    leaving: AtomicU32,
    gate: Mutex<Gate>,
    /// Pages beyond this are being cut off: they are gone already for a fault.
    limit: AtomicU64,
}

#[derive(Default)]
struct Gate {
    /// Ranges of pages to which no fault is let.
    closed: Vec<(u64, u64)>,
    /// Faults that are past the gate.
    inside: u64,
    /// Ranges of pages that tasks may store to without a fault, or have stored to and nobody has written back, by start;
    /// disjoint.
    touched: BTreeMap<u64, u64>,
}

impl<M: Machine> Inode<M> {
    /// `map`: the page map of the device that has its blocks.
    pub(crate) fn new(mm: &Arc<Mm<M>>, map: &Arc<DevPagemap>, ino: u64, dax: bool) -> Arc<Self> {
        Arc::new(Self {
            ino,
            dax,
            mapping: Mapping::new(mm, map),
            lock: RankedLock::new(()),
            syncing: RankedLock::new(()),
            users: AtomicUsize::new(0),
            leaving: AtomicU32::new(0),
            gate: Mutex::new(Gate::default()),
            limit: AtomicU64::new(u64::MAX),
        })
    }

    /// Takes the turn to let go of it; `false` where another CPU has it.
    pub(crate) fn begin_leaving(&self) -> bool {
        self.leaving.swap(1, Ordering::SeqCst) == 0
    }
    /// Gives the turn back.
    pub(crate) fn end_leaving(&self) {
        self.leaving.store(0, Ordering::SeqCst);
    }
    /// Is a CPU letting go of it?
    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::SeqCst) == 1
    }

    /// Is the page being cut off?
    pub(crate) fn is_beyond_limit(&self, page: u64) -> bool {
        page >= self.limit.load(Ordering::SeqCst)
    }
    pub(crate) fn set_limit(&self, pages: u64) {
        self.limit.store(pages, Ordering::SeqCst);
    }

    /// Lets a fault for `first..end` in; `None` while some of it is closed.
    pub(crate) fn enter(&self, first: u64, end: u64) -> Option<Inside<'_, M>> {
        let mut gate = self.gate.lock();
        if gate.closed.iter().any(|&(from, to)| from < end && first < to) {
            return None;
        }
        gate.inside += 1;
        Some(Inside { inode: self })
    }

    /// Closes `first..end` to faults; when it returns none is inside.
    pub(crate) fn close(&self, machine: &M, first: u64, end: u64) -> Closed<'_, M> {
        held::assert_none("faults");
        self.gate.lock().closed.push((first, end));
        let closed = Closed { inode: self, first, end };
        while self.gate.lock().inside != 0 {
            machine.relax();
        }
        closed
    }

    /// Notes that tasks may store to `first..end` from now on.
    pub(crate) fn touch(&self, first: u64, end: u64) {
        let touched = &mut self.gate.lock().touched;
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
        !self.gate.lock().touched.is_empty()
    }

    /// What tasks may have stored to; forgotten.
    pub(crate) fn take_touched(&self) -> Vec<(u64, u64)> {
        let touched = core::mem::take(&mut self.gate.lock().touched);
        touched.into_iter().collect()
    }

    /// The part of that within `first..end`; forgotten.
    pub(crate) fn untouch(&self, first: u64, end: u64) -> Vec<(u64, u64)> {
        let touched = &mut self.gate.lock().touched;
        let all = core::mem::take(touched);
        let mut inside = Vec::new();
        for (from, to) in all {
            let (a, b) = (from.max(first), to.min(end));
            if a >= b {
                touched.insert(from, to);
                continue;
            }
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

/// A fault is past the gate.
pub(crate) struct Inside<'i, M: Machine> {
    inode: &'i Inode<M>,
}

impl<M: Machine> Drop for Inside<'_, M> {
    fn drop(&mut self) {
        self.inode.gate.lock().inside -= 1;
    }
}

/// A range of pages is closed to faults.
#[must_use = "the range is open again when this is dropped"]
pub(crate) struct Closed<'i, M: Machine> {
    inode: &'i Inode<M>,
    first: u64,
    end: u64,
}

impl<M: Machine> Drop for Closed<'_, M> {
    fn drop(&mut self) {
        let closed = &mut self.inode.gate.lock().closed;
        if let Some(at) = closed.iter().position(|&range| range == (self.first, self.end)) {
            closed.swap_remove(at);
        }
    }
}
