//! The count of stores: that a model which loom would not show every value ends, and that others do not.
//! `RUSTFLAGS="--cfg loom" cargo test -p mm --release --test loom_history`
#![cfg(loom)]

use mm::sync::model::{Bound, explore, thread};
use mm::sync::{Arc, AtomicU64, Ordering};

/// Another thread loads a word that has had `before` stores when it begins and has `beside` meanwhile, after the first
/// value.
fn load_beside_stores(before: u64, beside: u64) {
    explore(Bound::Preemptions(1), move || {
        let word = Arc::new(AtomicU64::new(0));
        (0..before).for_each(|nr| word.store(nr, Ordering::Relaxed));
        let theirs = word.clone();
        let thread = thread::spawn(move || _ = theirs.load(Ordering::Relaxed));
        (0..beside).for_each(|nr| word.store(nr, Ordering::Relaxed));
        thread.join().unwrap();
    });
}

#[test]
fn six_stores_beside_the_first_value_are_all_shown() {
    load_beside_stores(0, 6);
}

#[test]
#[should_panic(expected = "had 8 stores when it was loaded, of which loom shows the 7 newest")]
fn seven_are_too_many() {
    load_beside_stores(0, 7);
}

#[test]
fn what_one_thread_stored_alone_counts_once() {
    load_beside_stores(20, 6);
}

#[test]
#[should_panic(expected = "this model is too long")]
fn the_last_of_those_counts() {
    load_beside_stores(20, 7);
}

/// Joined threads have stored before everything that comes: only the newest of their stores can be loaded.
#[test]
fn what_joined_threads_stored_counts_once() {
    explore(Bound::Preemptions(1), || {
        let word = Arc::new(AtomicU64::new(0));
        for _ in 0..3 {
            let theirs = word.clone();
            thread::spawn(move || (0..4).for_each(|_| _ = theirs.fetch_add(1, Ordering::Relaxed))).join().unwrap();
        }
        assert_eq!(word.load(Ordering::Relaxed), 12);
    });
}
