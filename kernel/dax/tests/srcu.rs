//! The SRCU with ordinary threads, and its promises to one thread step by step.
#![cfg(not(loom))]

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use dax::srcu::Srcu;

/// covers: N1 (the wait for readers in flight)
#[test]
fn waits_for_a_reader_that_began_before_and_for_none_that_began_after() {
    let srcu = Srcu::new();
    let before = RefCell::new(Some(srcu.read_lock()));
    let after = RefCell::new(None);
    let mut rounds = 0;
    let period = srcu.synchronize(|| {
        rounds += 1;
        match rounds {
            // A reader that begins now stays inside until the end.
            1 => *after.borrow_mut() = Some(srcu.read_lock()),
            2 => drop(before.borrow_mut().take()),
            _ => panic!("waited for a reader that began after it"),
        }
    });
    assert_eq!((period.readers_found, period.waits), (1, 2));
    assert!(before.borrow().is_none() && after.borrow().is_some());
    // The one that began after is a reader from before for the next.
    let mut rounds = 0;
    let period = srcu.synchronize(|| {
        rounds += 1;
        assert!(rounds == 1, "waited for nobody");
        drop(after.borrow_mut().take());
    });
    assert_eq!((period.readers_found, period.waits), (1, 1));
}

#[test]
fn guards_nest_and_an_empty_domain_is_not_waited_for() {
    let srcu = Srcu::new();
    let outer = srcu.read_lock();
    drop(srcu.read_lock());
    drop(outer);
    for _ in 0..3 {
        assert_eq!(srcu.synchronize(|| panic!("nobody is inside")).readers_found, 0);
    }
}

/// What the loom model proves for a few steps, at full speed for many: readers look at the generation that a
/// writer announces and at the slot that it reuses after each grace period.
#[test]
fn readers_and_synchronizers_at_full_speed() {
    const READERS: usize = 3;
    const GENERATIONS: u64 = 2_000;
    let srcu = Srcu::new();
    // Slot n holds n while it may be used; 0 once it has been torn down.
    let slots: Vec<AtomicU64> = (0..=GENERATIONS).map(AtomicU64::new).collect();
    let current = AtomicU64::new(1);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..READERS {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let _guard = srcu.read_lock();
                    let mine = current.load(Ordering::Relaxed);
                    assert_eq!(slots[mine as usize].load(Ordering::Relaxed), mine, "used after it was freed");
                }
            });
        }
        // A second synchronizer that takes nothing away, so that the two have to take turns.
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                srcu.synchronize(thread::yield_now);
            }
        });
        for generation in 1..GENERATIONS {
            current.store(generation + 1, Ordering::Relaxed);
            srcu.synchronize(thread::yield_now);
            slots[generation as usize].store(0, Ordering::Relaxed);
        }
        done.store(true, Ordering::Relaxed);
    });
}
