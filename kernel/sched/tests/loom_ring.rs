//! Models of the ring of notes: the very code of `sched::ring`.
//!
//! Run with `RUSTFLAGS="--cfg loom" cargo test -p sched --release --test loom_ring`.
//!
//! Property: what is read is what was written, each note once and whole, those of one writer in their order; what is not read was
//! counted as lost. Two writers are two CPUs here; in the kernel they are a handler and the NMI that interrupts it, which is
//! less.
#![cfg(any(loom, shuttle))]

use mm::sync::model::{Bound, explore_as, thread};
use mm::sync::{Arc, AtomicUsize, Ordering};
use sched::ring::Ring;

struct Model<const N: usize> {
    ring: Ring<N>,
    /// Operations begun. loom remembers one access to each atomic when it looks for what else could have come first, so that
    /// a thread's own load hides another's before it, and "another pops between two pushes" is not tried by itself. Each
    /// operation begins with a read-modify-write of this, which hides nothing, and, relaxed, orders nothing.
    begun: AtomicUsize,
}

impl<const N: usize> Model<N> {
    fn push(&self, nr: u64) -> bool {
        self.begun.fetch_add(1, Ordering::Relaxed);
        // The second word tells whether the first belongs to it.
        self.ring.push([nr, !nr])
    }

    /// Tries so often to take one.
    fn pop(&self, times: usize, found: &mut Vec<u64>) {
        for _ in 0..times {
            self.begun.fetch_add(1, Ordering::Relaxed);
            let Some([nr, check]) = self.ring.pop() else { continue };
            assert_eq!(check, !nr, "a torn note");
            found.push(nr);
        }
    }
}

/// Each writer writes its notes; a reader tries so often at any time, and takes the rest at the end.
fn explore<const N: usize>(name: &str, writers: &'static [&'static [u64]], tries: usize) {
    explore_as(&format!("loom_ring::{name}"), Bound::Preemptions(4), move || {
        let model = Arc::new(Model { ring: Ring::<N>::new(), begun: AtomicUsize::new(0) });
        let start = |notes: &'static [u64]| {
            let model = model.clone();
            thread::spawn(move || notes.iter().filter(|&&nr| !model.push(nr)).count())
        };
        let running: Vec<_> = writers.iter().map(|notes| start(notes)).collect();
        let mut found = Vec::new();
        model.pop(tries, &mut found);
        let lost: usize = running.into_iter().map(|writer| writer.join().unwrap()).sum();
        model.pop(N, &mut found);
        assert_eq!(model.ring.take_lost(), lost, "lost notes are counted");
        assert_eq!(model.ring.nr_notes(), found.len());
        let written: usize = writers.iter().map(|notes| notes.len()).sum();
        assert_eq!(found.len() + lost, written, "{found:?} were read");
        for notes in writers {
            let of_this: Vec<u64> = found.iter().copied().filter(|nr| notes.contains(nr)).collect();
            assert!(of_this.is_sorted() && of_this.windows(2).all(|pair| pair[0] != pair[1]), "{found:?} were read");
        }
    });
}

/// Stores to a slot's turn: initial value, 1 full, 1 free; to `begun`: initial value, 2 pushes, 4 pops.
#[test]
fn a_writer_and_a_reader() {
    explore::<2>("a_writer_and_a_reader", &[&[1, 2]], 2);
}

/// Stores to a slot's turn: initial value, 1 full, 1 free; to `written`: initial value, 2; to `begun`: initial value, 2 pushes,
/// 3 pops.
#[test]
fn two_writers_and_a_reader() {
    explore::<2>("two_writers_and_a_reader", &[&[1], &[2]], 1);
}

/// Stores to the slot's turn: initial value, 3 full, 3 free; to a word of its note: initial value, 3; to `begun`: initial value,
/// 3 pushes, 3 pops.
#[test]
fn a_ring_that_is_full_and_read() {
    explore::<1>("a_ring_that_is_full_and_read", &[&[1, 2, 3]], 2);
}

/// Stores to the slot's turn: initial value, 2 full, 2 free; to `begun`: initial value, 2 pushes, 2 pops.
#[test]
fn two_writers_and_no_room_for_both() {
    explore::<1>("two_writers_and_no_room_for_both", &[&[1], &[2]], 1);
}
