//! The word that lets uses of a registration in, and that a revocation closes.
//!
//! # Protocol
//! | a use | who gives the pages back |
//! |---|---|
//! | U1 read the word: closed? refused | C1 set *closed*, unless it is set (one step: exactly one wins) |
//! | U2 add one, and see what the word was | C2 wait until no use is in flight (acquire) |
//! | U3 closed meanwhile: take the one back; refused | C3 give the pages back |
//! | U4 use the pages | C4 set *released* (release) |
//! | U5 take one off (release) | |
//!
//! Who comes second to C1 waits for *released* (acquire) instead: whoever returns from closing knows that the pages are
//! given back.
//!
//! Why it is enough: U2 and C1 are read-modify-writes of one word, so one comes first. If U2 does, C2 reads a value
//! from behind it, and finds zero only where U5 is behind it too: so what the use did happened before C3. If C1 does,
//! U3 sees it. U1 does not decide anything: it keeps a stream of latecomers from holding C2 up by what they add and
//! take back. U2 need not acquire: what a use does comes after its U2 in its own program, and before C3 by U5.
//!
//! # The word
//! | bits | meaning |
//! |---|---|
//! | 0 ..= 60 | uses in flight; once closed, also those that are between U2 and U3. A CPU adds one at a time, so it cannot overflow |
//! | 61 | *released*: the pages are given back. Never without bit 63 |
//! | 62 | it was the kernel that closed it. Never without bit 63 |
//! | 63 | *closed*: no further use. Set once, for ever |
//!
//! Model: `tests/loom_region.rs`, with a mutant for each of U3, U5, C2 and the wait of who comes second.

use crate::mutant::Mutant;
use crate::sync::{AtomicU64, Ordering, between};

const CLOSED: u64 = 1 << 63;
const REVOKED: u64 = 1 << 62;
const RELEASED: u64 = 1 << 61;
const USES: u64 = RELEASED - 1;

/// Who closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The owner gives it back.
    Owner,
    /// The kernel takes it back.
    Kernel,
}

/// The gate of one registration. Open at first; closed once, for ever.
#[derive(Debug)]
pub struct Gate {
    word: AtomicU64,
}

impl Default for Gate {
    fn default() -> Self {
        Self::new()
    }
}

impl Gate {
    /// Open.
    pub fn new() -> Self {
        Self { word: AtomicU64::new(0) }
    }

    /// Begins a use. Never waits.
    ///
    /// # Errors
    /// It is closed; who closed it.
    #[inline]
    pub fn enter(&self) -> Result<Entered<'_>, By> {
        let seen = self.word.load(Ordering::Relaxed);
        if seen & CLOSED != 0 {
            return Err(closed_by(seen));
        }
        between();
        let seen = self.word.fetch_add(1, Ordering::Relaxed);
        // Taken back when this is dropped.
        let entered = Entered { gate: self };
        if seen & CLOSED != 0 && !Mutant::UseNotRechecked.is_on() { Err(closed_by(seen)) } else { Ok(entered) }
    }

    /// Closes it. Answers how many uses were in flight at that moment where it was open until now: then the caller is
    /// who gives the pages back. The number is exact, for it is what the word was when it was closed: whoever comes
    /// later and is refused is not in it.
    #[must_use = "who closes a gate has to give back what is behind it"]
    pub fn close(&self, by: By) -> Option<u64> {
        let bits = CLOSED | if by == By::Kernel { REVOKED } else { 0 };
        let open = |word: u64| (word & CLOSED == 0).then_some(word | bits);
        // Relaxed: what orders is the word's own history; see the module.
        self.word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, open).ok().map(|word| word & USES)
    }

    /// Waits until no use is in flight, on a closed gate. `relax` is called in every round of waiting.
    pub fn wait_for_uses(&self, mut relax: impl FnMut()) {
        while self.uses() != 0 && !Mutant::RevokeDoesNotWait.is_on() {
            relax();
        }
    }

    /// Says that the pages are given back.
    pub fn set_released(&self) {
        // Release; pairs with the Acquire in `wait_released`.
        self.word.fetch_or(RELEASED, Ordering::Release);
    }

    /// Waits until the pages are given back, on a closed gate.
    pub fn wait_released(&self, mut relax: impl FnMut()) {
        while self.word.load(Ordering::Acquire) & RELEASED == 0 && !Mutant::SecondCloserDoesNotWait.is_on() {
            relax();
        }
    }

    /// Uses in flight.
    pub fn uses(&self) -> u64 {
        // Acquire; pairs with the Release in `Entered::drop`.
        self.word.load(Ordering::Acquire) & USES
    }

    /// Is it closed? By whom?
    pub fn closed(&self) -> Option<By> {
        let seen = self.word.load(Ordering::Relaxed);
        (seen & CLOSED != 0).then(|| closed_by(seen))
    }
}

fn closed_by(word: u64) -> By {
    if word & REVOKED != 0 { By::Kernel } else { By::Owner }
}

/// A use in flight, for as long as this lives.
#[derive(Debug)]
#[must_use = "the use ends when this is dropped"]
pub struct Entered<'g> {
    gate: &'g Gate,
}

impl Drop for Entered<'_> {
    #[inline]
    fn drop(&mut self) {
        let order = if Mutant::RelaxedUseEnd.is_on() { Ordering::Relaxed } else { Ordering::Release };
        self.gate.word.fetch_sub(1, order);
    }
}
