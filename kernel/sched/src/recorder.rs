//! A flight recorder: a ring for each CPU that keeps the latest events and lets the oldest go.
//!
//! Unlike a [`ring`](crate::ring) of notes it never waits for its reader, who may look at any time, from any CPU, and takes
//! nothing away.
//!
//! The writers of one recorder are all on one CPU: a task, an interrupt handler that comes between two of its instructions,
//! an NMI that comes between two of the handler's. So writers nest: who has begun later is done earlier. But a task can be
//! switched away in the middle, and then the ring may come round to its slot before it has filled it.
//!
//! # Protocol
//! A slot's turn says which event of all it holds, or that somebody is writing it.
//! ```text
//!  writer                                         reader
//!  W1 at = written++                              R1 the slot's turn says that it holds event `at`?
//!  W2 say that we are at the slot; fence          R2 read it
//!  W3 was somebody, or is a later event there?    R3 fence; is the turn still the same?
//!     then ours is lost
//!  W4 fill it
//!  W5 say that it holds event `at`
//! ```
//! W2 is one exchange: a task that looked first could be switched away before it said so, and the ring come round meanwhile.
//! Who finds in R3 another turn than in R1 has read words of two events, perhaps, and passes over both. Linux:
//! `kernel/trace/ring_buffer.c`, whose writers nest in the same way; a reader's second look is that of `seqlock`.
//!
//! Model: `tests/loom_recorder.rs`.

use mm::sync::{AtomicU64, Ordering, fence};

use crate::mutant::Mutant;

/// Words of an event, beside its tag.
pub const WORDS: usize = 3;

/// Somebody is writing the slot.
const BUSY: u64 = u64::MAX;

#[derive(Debug)]
#[repr(align(32))]
struct Slot {
    /// 0 at first, [`BUSY`], or what [`full`] says.
    turn: AtomicU64,
    words: [AtomicU64; WORDS],
}

/// A deliberate fault: the slot is taken from one who is at it, or from a later event.
#[inline(always)]
fn is_taken_anyway(before: u64) -> bool {
    if before == BUSY { Mutant::RecorderTakesBusy.is_on() } else { Mutant::RecorderTakesLater.is_on() }
}

/// Events are counted in steps of it, so that a number and a tag make a turn by one `or`.
const STEP: u64 = 1 << 8;

/// A slot's turn while it holds the event that was begun at `count`, with its tag: never 0, since the tag is not.
#[inline(always)]
fn full(count: u64, tag: u64) -> u64 {
    count | tag
}

/// What was recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// What kind of event it is.
    pub tag: u8,
    /// The rest.
    pub words: [u64; WORDS],
}

/// Places in a writer's work at which it can be interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Between {
    /// W1 and W2.
    TakenAndBusy,
    /// W3 and W4.
    BusyAndFilled,
    /// In W4, after its first word.
    Words,
    /// W4 and W5.
    FilledAndFull,
}

/// One CPU's recorder, of the latest `N` events, a power of two.
#[derive(Debug)]
pub struct Recorder<const N: usize> {
    /// How many events were begun, in [`STEP`]s.
    written: AtomicU64,
    lost: AtomicU64,
    slots: [Slot; N],
}

impl<const N: usize> Recorder<N> {
    /// An empty one.
    #[cfg(not(any(loom, shuttle)))]
    pub const fn new() -> Self {
        const { assert!(N.is_power_of_two(), "a recorder has a power of two of slots") };
        let slots = [const { Slot { turn: AtomicU64::new(0), words: [const { AtomicU64::new(0) }; WORDS] } }; N];
        Self { written: AtomicU64::new(0), lost: AtomicU64::new(0), slots }
    }
    /// An empty one.
    #[cfg(any(loom, shuttle))]
    pub fn new() -> Self {
        let word = |_| AtomicU64::new(0);
        let slot = |_| Slot { turn: AtomicU64::new(0), words: core::array::from_fn(word) };
        Self { written: AtomicU64::new(0), lost: AtomicU64::new(0), slots: core::array::from_fn(slot) }
    }

    #[inline(always)]
    fn slot(&self, at: u64) -> &Slot {
        &self.slots[at as usize % N]
    }

    /// Records an event; its tag is from 1 to 255. On the recorder's CPU alone. `false`: it is lost, and counted, because an event that was begun a whole
    /// ring earlier is not done yet, or one that was begun a whole ring later is.
    #[inline(always)]
    pub fn push(&self, tag: u64, words: [u64; WORDS]) -> bool {
        self.push_interrupted(tag, words, |_| {})
    }

    /// As [`push`](Self::push); `interrupt` is what comes between its steps, on the same CPU: for tests.
    #[inline(always)]
    pub fn push_interrupted(&self, tag: u64, words: [u64; WORDS], mut interrupt: impl FnMut(Between)) -> bool {
        // W1. By an exchange, which whoever interrupts us comes before or after.
        let count = self.written.fetch_add(STEP, Ordering::Relaxed);
        interrupt(Between::TakenAndBusy);
        let slot = self.slot(count / STEP);
        // W2. The fence pairs with that of R3: who has read a word that we write sees that we were at it.
        let before = if Mutant::RecorderNotBusy.is_on() {
            slot.turn.load(Ordering::Relaxed)
        } else {
            slot.turn.swap(BUSY, Ordering::Relaxed)
        };
        if !Mutant::RecorderNoFence.is_on() {
            fence(Ordering::Release);
        }
        // W3. A later event's turn is larger, and so is BUSY.
        if before > count && !is_taken_anyway(before) {
            self.lose(slot, before);
            return false;
        }
        interrupt(Between::BusyAndFilled);
        // W5. Release; pairs with the Acquire of R1: the words are there for who sees it.
        let order = if Mutant::RecorderRelaxed.is_on() { Ordering::Relaxed } else { Ordering::Release };
        if Mutant::RecorderFullEarly.is_on() {
            slot.turn.store(full(count, tag), order);
        }
        // W4.
        slot.words[0].store(words[0], Ordering::Relaxed);
        interrupt(Between::Words);
        // One by one: an iterator asks in a build with checks whether its pointer is null.
        slot.words[1].store(words[1], Ordering::Relaxed);
        slot.words[2].store(words[2], Ordering::Relaxed);
        interrupt(Between::FilledAndFull);
        if !Mutant::RecorderFullEarly.is_on() {
            slot.turn.store(full(count, tag), order);
        }
        true
    }

    /// Apart, so that what is recorded needs no stack. The slot held `before`.
    #[cold]
    #[inline(never)]
    fn lose(&self, slot: &Slot, before: u64) {
        // Somebody who is at it says himself what it holds then. A later event is left as it was: since W2 the slot is ours.
        if before != BUSY {
            slot.turn.store(before, Ordering::Release);
        }
        if !Mutant::RecorderLossNotCounted.is_on() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many events there have been, lost ones too.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Acquire) / STEP
    }

    /// How many of them are lost because their slot was being written.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// The events that the ring can still hold, by number, oldest first.
    pub fn held(&self) -> core::ops::Range<u64> {
        let end = self.written();
        end.saturating_sub(N as u64)..end
    }

    /// The same of the events from `first` on, which was the next one at some time: those that the ring can still hold, and
    /// those that there were.
    pub fn since(&self, first: u64) -> (core::ops::Range<u64>, core::ops::Range<u64>) {
        let held = self.held();
        let end = held.end.max(first);
        (held.start.max(first)..end, first..end)
    }

    /// Event `at`; `None` where it was lost, was overwritten, or is being written.
    pub fn read(&self, at: u64) -> Option<Recorded> {
        let slot = self.slot(at);
        // R1. Acquire; pairs with W5.
        let turn = slot.turn.load(Ordering::Acquire);
        if turn == 0 || turn == BUSY || turn / STEP != at {
            return None;
        }
        // R2.
        let words = slot.words.each_ref().map(|word| word.load(Ordering::Relaxed));
        // R3. Pairs with the fence of W3.
        fence(Ordering::Acquire);
        if slot.turn.load(Ordering::Relaxed) != turn && !Mutant::RecorderNotLookedAgain.is_on() {
            return None;
        }
        Some(Recorded { tag: turn as u8, words })
    }
}

impl<const N: usize> Default for Recorder<N> {
    fn default() -> Self {
        Self::new()
    }
}
