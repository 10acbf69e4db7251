//! A small sleepable read-copy-update: readers that may wait, and a writer that waits for the readers before it.
//!
//! A reader takes a [`ReadGuard`], looks at what the writer may take away (is the device alive?), uses it, and
//! drops the guard. A writer takes the thing away first and calls [`Srcu::synchronize`] next: when that returns,
//! every reader that could still have seen the thing has gone. Readers that begin afterwards are not waited
//! for, so a stream of them cannot hold the writer up.
//!
//! # The protocol
//! There are two counters of readers, and an index that says which of them a new reader takes.
//!
//! | reader | synchronizer |
//! |---|---|
//! | R1 read the index `i` | S1 flip the index from `i` to the other (release) |
//! | R2 add one to counter `i` (acquire and release) | S2 read counter `i` by *adding nothing to it* (acquire and release) |
//! | R3 read the index again; if it is no longer `i`, take the one back and start again | S3 if it was not zero, wait and go to S2 |
//! | R4 the critical section | S4 return |
//! | R5 take one from counter `i` (release) | |
//!
//! Why it is enough: R2 and S2 are read-modify-writes of one word, so one comes first. If R2 comes before
//! the S2 that read zero, that S2 also came after R5, and what the reader did happened before S4. If S2 comes
//! first, R2 reads from it or from a later link of its release sequence; so S1 happened before R3, which then
//! sees the flip and starts again. What that S2 left behind holds until the index comes back to `i`, so at the
//! start of each synchronization no reader is inside on the counter that the index is about to select. That is
//! why one flip suffices, and why the two plain fences that a load in S2 would need are not there.
//!
//! Model: `tests/loom_srcu.rs`, with one mutant for each of S1, S2, R3 and R5.

use mm::sync::{AtomicU64, Ordering, SleepLock};

use crate::mutant::Mutant;

/// One domain of readers: here, one for each DAX device, so that removing one device waits for no other's.
#[derive(Debug)]
pub struct Srcu {
    /// 0 or 1: the counter that a new reader takes.
    index: AtomicU64,
    /// Readers inside, by the index that they read.
    readers: [AtomicU64; 2],
    /// One synchronizer at a time: a flip while another waits would send readers to the counter waited for.
    turn: SleepLock<()>,
}

impl Default for Srcu {
    fn default() -> Self {
        Self::new()
    }
}

impl Srcu {
    /// No reader inside.
    pub fn new() -> Self {
        Self {
            index: AtomicU64::new(0),
            readers: core::array::from_fn(|_| AtomicU64::new(0)),
            turn: SleepLock::new(()),
        }
    }

    /// Enters. Never waits: it starts again only when a synchronizer flipped the index in that very moment.
    ///
    /// Guards nest, and one may be held across anything but [`synchronize`](Self::synchronize) on the same
    /// domain, which would wait for its own caller.
    #[inline]
    pub fn read_lock(&self) -> ReadGuard<'_> {
        loop {
            let index = self.index.load(Ordering::Acquire) as usize;
            self.readers[index].fetch_add(1, Ordering::AcqRel);
            if Mutant::SrcuNoRecheck.is_on() || self.index.load(Ordering::Acquire) as usize == index {
                return ReadGuard { srcu: self, index };
            }
            self.readers[index].fetch_sub(1, Ordering::Release);
        }
    }

    /// Returns when every reader that began before this call has gone; waits for none that begins after its
    /// first step. Answers how many readers it found inside (those that only looked in count too), and how
    /// often it had to wait. `relax` is called in every round of waiting and may let another task run.
    ///
    /// Must not be called with interrupts off, nor from inside a reader of the same domain.
    ///
    /// # Panics
    /// In debug builds, when the task holds a lock.
    pub fn synchronize(&self, mut relax: impl FnMut()) -> GracePeriod {
        let mut waits = 0;
        let _turn = self.turn.take(|| {
            waits += 1;
            relax();
        });
        let old = self.index.load(Ordering::Relaxed) as usize;
        if !Mutant::SrcuNoFlip.is_on() {
            self.index.store(1 - old as u64, Ordering::Release);
        }
        let found = self.inside(old);
        let mut inside = found;
        while inside != 0 {
            waits += 1;
            relax();
            inside = self.inside(old);
        }
        GracePeriod { readers_found: found, waits }
    }

    /// How many readers hold `index`, read by a read-modify-write (step S2 above).
    fn inside(&self, index: usize) -> u64 {
        if Mutant::SrcuPlainRead.is_on() {
            return self.readers[index].load(Ordering::Acquire);
        }
        self.readers[index].fetch_add(0, Ordering::AcqRel)
    }
}

/// What one [`Srcu::synchronize`] met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GracePeriod {
    /// Readers that were inside when the index was flipped.
    pub readers_found: u64,
    /// Rounds of waiting: for another synchronizer, and for those readers.
    pub waits: u64,
}

/// A reader is inside for as long as this lives.
#[derive(Debug)]
#[must_use = "the reader leaves when this is dropped"]
pub struct ReadGuard<'a> {
    srcu: &'a Srcu,
    index: usize,
}

impl Drop for ReadGuard<'_> {
    #[inline]
    fn drop(&mut self) {
        let order = if Mutant::SrcuRelaxedUnlock.is_on() { Ordering::Relaxed } else { Ordering::Release };
        self.srcu.readers[self.index].fetch_sub(1, order);
    }
}
