//! Models of the flight recorder: the very code of `sched::recorder`.
//!
//! Run with `RUSTFLAGS="--cfg loom" cargo test -p sched --release --test loom_recorder`.
//!
//! Property: what is read as event n is what was written as event n, whole; what is not in the ring at the end was overwritten
//! or counted as lost. The writers are one thread, as in the kernel they are on one CPU, and nest where the model says; the
//! reader is another.
#![cfg(any(loom, shuttle))]

use mm::sync::model::{Bound, explore_as, thread};
use mm::sync::{Arc, AtomicUsize, Ordering};
use sched::recorder::{Between, Recorded, Recorder};

/// What event `nr` says: each word tells whether the others belong to it.
fn event(nr: u64) -> (u64, [u64; 3]) {
    (nr + 1, [nr, !nr, nr ^ 0x55])
}

struct Model<const N: usize> {
    recorder: Recorder<N>,
    /// Operations begun, as in `loom_ring`: without it loom takes a writer's own look at a slot for the last access to it, and
    /// does not try what comes of a reader's before.
    begun: AtomicUsize,
}

impl<const N: usize> Model<N> {
    /// Event `at`, if it can be read, is that which was recorded `at`-th, as `numbers` has them.
    fn look(&self, at: u64, numbers: &[u64]) -> bool {
        self.begun.fetch_add(1, Ordering::Relaxed);
        let found = self.recorder.read(at);
        let expected =
            numbers.get(at as usize).map(|&nr| event(nr)).map(|(tag, words)| Recorded { tag: tag as u8, words });
        assert!(found.is_none() || found == expected, "event {at}: {found:x?}, not {expected:x?}");
        found.is_some()
    }

    fn push(&self, nr: u64) -> bool {
        self.push_interrupted(nr, |_| {})
    }

    fn push_interrupted(&self, nr: u64, interrupt: impl FnMut(Between)) -> bool {
        self.begun.fetch_add(1, Ordering::Relaxed);
        let (tag, words) = event(nr);
        self.recorder.push_interrupted(tag, words, interrupt)
    }
}

/// `before` events; then event 10, and at `place` of it `within` events, 20 and so on; then `after` events, 30 and so on. The
/// reader looks at event `wanted` meanwhile.
fn explore<const N: usize>(name: &str, (before, within, after): (u64, u64, u64), place: Between, wanted: u64) {
    explore_as(&format!("loom_recorder::{name}::{place:?}"), Bound::Preemptions(4), move || {
        let model = Arc::new(Model { recorder: Recorder::<N>::new(), begun: AtomicUsize::new(0) });
        // In which order they take their slots: who is interrupted has its own.
        let mut numbers: Vec<u64> = (0..before).collect();
        numbers.push(10);
        numbers.extend((0..within).map(|nr| 20 + nr));
        numbers.extend((0..after).map(|nr| 30 + nr));
        let writer = {
            let model = model.clone();
            thread::spawn(move || {
                let mut lost = (0..before).filter(|&nr| !model.push(nr)).count();
                let mut inner = 0;
                let done = model.push_interrupted(10, |at| {
                    if at == place {
                        inner = (0..within).filter(|&nr| !model.push(20 + nr)).count();
                    }
                });
                lost += inner + usize::from(!done);
                lost + (0..after).filter(|&nr| !model.push(30 + nr)).count()
            })
        };
        model.look(wanted, &numbers);
        let lost = writer.join().unwrap();
        let recorder = &model.recorder;
        assert_eq!(recorder.lost(), lost as u64, "lost events are counted");
        assert_eq!(recorder.written(), numbers.len() as u64);
        let held = recorder.held().filter(|&at| model.look(at, &numbers)).count();
        assert!(held + lost >= numbers.len().min(N), "{held} held, {lost} lost of {numbers:?}");
    });
}

/// Every place of an interruption.
const PLACES: [Between; 4] = [Between::TakenAndBusy, Between::BusyAndFilled, Between::Words, Between::FilledAndFull];

/// Stores to a slot's turn: initial value, 2 busy, 2 full; to a word: initial value, 2.
#[test]
fn a_slot_that_is_written_again() {
    for wanted in 0..2 {
        explore::<1>("a_slot_that_is_written_again", (1, 0, 0), Between::Words, wanted);
    }
}

/// Stores to a slot's turn: initial value, 2 busy, 2 full; to a word: initial value, 2.
#[test]
fn an_interrupt_comes_round_to_the_slot() {
    for place in PLACES {
        for wanted in 0..2 {
            explore::<1>("an_interrupt_comes_round_to_the_slot", (0, 1, 0), place, wanted);
        }
    }
}

/// Stores to a slot's turn: initial value, 2 busy, 2 full; to a word: initial value, 2.
#[test]
fn an_interrupt_and_more_after_it() {
    for place in PLACES {
        for wanted in 0..4 {
            explore::<2>("an_interrupt_and_more_after_it", (0, 2, 1), place, wanted);
        }
    }
}
