//! Two protocols around an inode: faults against who breaks its layout, and who lets go of it.
//!
//! # The gate of faults
//! ```text
//!  a fault                                        who breaks the layout
//!  F1 enters, unless the page is closed           C1 closes the pages
//!     (else it is turned away)                    C2 waits until nobody is inside
//!  F2 looks where the page is, and installs it    C3 takes the pages out of all page tables
//!  F3 leaves                                      C4 frees the blocks, and opens the pages
//! ```
//! F1 looks and counts itself in one step, so that C2 finds whom C1 came too late for. What those inside have installed C3
//! takes away.
//!
//! # Letting go
//! Handles are counted. Who drops the last one, and whoever takes the inode's last name, asks for the *turn* to let go of it; of
//! several who ask one gets it. It saves what tasks have stored, which takes time, and then looks again, with the table of
//! inodes locked: who opens a file finds its inode there, so that the look and the inode's leaving the table are one step for
//! an opener. Where somebody has opened it, the turn is given back, in the same step: the opener asks in his turn, and finds it
//! free.
//!
//! Models: `tests/loom_gate.rs`. Linux: `filemap_invalidate_lock` (`mm/filemap.c`); `iput_final` and `I_FREEING`
//! (`fs/inode.c`).

use alloc::vec::Vec;

use mm::sync::{AtomicU32, AtomicUsize, Mutex, Ordering};

use crate::mutant::{Faults, Mutant};

#[derive(Debug, Default)]
struct State {
    /// Ranges of pages to which no fault is let.
    closed: Vec<(u64, u64)>,
    /// Faults that are past the gate.
    inside: u64,
}

/// The gate of an inode's faults.
pub struct Gate {
    faults: Faults,
    state: Mutex<State>,
}

impl Gate {
    /// Open; with these deliberate faults.
    pub fn new(faults: Faults) -> Self {
        Self { faults, state: Mutex::new(State::default()) }
    }

    /// F1: lets a fault for the pages `first..end` in; `None` while some of them are closed.
    pub fn enter(&self, first: u64, end: u64) -> Option<Inside<'_>> {
        let is_closed = |state: &State| state.closed.iter().any(|&(from, to)| from < end && first < to);
        if self.faults.has(Mutant::EnteredInTwoSteps) && is_closed(&self.state.lock()) {
            return None;
        }
        let mut state = self.state.lock();
        if !self.faults.has(Mutant::EnteredInTwoSteps) && is_closed(&state) {
            return None;
        }
        state.inside += 1;
        Some(Inside { gate: self })
    }

    /// C1: closes the pages `first..end`. Faults that are inside already are waited for by [`has_inside`](Self::has_inside).
    pub fn begin_close(&self, first: u64, end: u64) -> Closed<'_> {
        self.state.lock().closed.push((first, end));
        Closed { gate: self, first, end }
    }

    /// C2 waits for this: is a fault past the gate? Perhaps one that came after C1, for other pages.
    pub fn has_inside(&self) -> bool {
        !self.faults.has(Mutant::InsideNotWaitedFor) && self.state.lock().inside != 0
    }
}

/// A fault is past the gate.
#[must_use = "the fault has left when this is dropped"]
pub struct Inside<'g> {
    gate: &'g Gate,
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.gate.state.lock().inside -= 1;
    }
}

/// A range of pages is closed to faults.
#[must_use = "the range is open again when this is dropped"]
pub struct Closed<'g> {
    gate: &'g Gate,
    first: u64,
    end: u64,
}

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        let closed = &mut self.gate.state.lock().closed;
        if let Some(at) = closed.iter().position(|&range| range == (self.first, self.end)) {
            closed.swap_remove(at);
        }
    }
}

/// Who lets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evictor {
    /// Nobody: somebody has it open.
    InUse,
    /// Who asks.
    Ours,
    /// Another, who has begun.
    Theirs,
}

/// Who has an inode open, and who lets go of it.
pub struct Handles {
    faults: Faults,
    open: AtomicUsize,
    /// 1 while somebody lets go of it. Changed with the table of inodes locked.
    leaving: AtomicU32,
}

impl Handles {
    /// Nobody; with these deliberate faults.
    pub fn new(faults: Faults) -> Self {
        Self { faults, open: AtomicUsize::new(0), leaving: AtomicU32::new(0) }
    }

    /// One handle more. With the table of inodes locked, in which the inode is; or by who has one already.
    pub fn open(&self) {
        self.open.fetch_add(1, Ordering::SeqCst);
    }

    /// One handle less. Says whether it was the last: somebody has to let go of the inode then.
    pub fn close(&self) -> bool {
        self.open.fetch_sub(1, Ordering::SeqCst) == 1
    }

    /// Has somebody it open, or is letting go of it? With the table of inodes locked.
    pub fn is_open(&self) -> bool {
        self.open.load(Ordering::SeqCst) != 0 || self.is_leaving()
    }

    /// Asks for the turn to let go. With the table of inodes locked, in which the inode is.
    pub fn ask(&self) -> Evictor {
        if self.open.load(Ordering::SeqCst) != 0 {
            return Evictor::InUse;
        }
        let taken = self.leaving.swap(1, Ordering::SeqCst) != 0;
        if taken && !self.faults.has(Mutant::LetGoTwice) { Evictor::Theirs } else { Evictor::Ours }
    }

    /// The last look of who has the turn, with the table of inodes locked: may the inode go? Where somebody has opened it, the
    /// turn is given back.
    pub fn may_go(&self) -> bool {
        let may_go = self.open.load(Ordering::SeqCst) == 0 || self.faults.has(Mutant::OpenedNotLookedFor);
        if !may_go && !self.faults.has(Mutant::TurnKept) {
            self.end();
        }
        may_go
    }

    /// Gives the turn back: it is done. With the table of inodes locked.
    pub fn end(&self) {
        self.leaving.store(0, Ordering::SeqCst);
    }

    /// Is somebody letting go of it?
    pub fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::SeqCst) == 1
    }
}
