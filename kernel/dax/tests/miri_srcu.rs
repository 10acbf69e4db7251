//! The SRCU with two threads, small enough for Miri: what a writer takes away is plain memory, and Miri reports a reader
//! that is not ordered before that. `cargo +nightly miri test -p dax --test miri_srcu`; see `docs/testing.md`.
#![cfg(not(any(loom, shuttle)))]

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use dax::srcu::Srcu;

const ROUNDS: usize = if cfg!(miri) { 12 } else { 1_000 };

struct Device {
    srcu: Srcu,
    /// Relaxed everywhere: the SRCU alone must order it.
    alive: AtomicBool,
    memory: UnsafeCell<u64>,
}

// SAFETY: the SRCU orders who reaches `memory`; that it does is what is tested.
unsafe impl Sync for Device {}

impl Device {
    fn new() -> Self {
        Self { srcu: Srcu::new(), alive: AtomicBool::new(true), memory: UnsafeCell::new(1) }
    }

    fn read(&self) {
        let _guard = self.srcu.read_lock();
        if self.alive.load(Ordering::Relaxed) {
            // SAFETY: the guard keeps the writer from its write.
            assert_eq!(unsafe { *self.memory.get() }, 1, "used after it was freed");
        }
    }

    fn kill(&self) {
        self.alive.store(false, Ordering::Relaxed);
        self.srcu.synchronize(thread::yield_now);
        // SAFETY: every reader that saw it alive has gone.
        unsafe { *self.memory.get() = 0 };
    }
}

/// covers: N1 (the wait for readers in flight)
#[test]
fn a_reader_against_a_kill() {
    for _ in 0..ROUNDS {
        let device = Device::new();
        thread::scope(|scope| {
            scope.spawn(|| (0..2).for_each(|_| device.read()));
            device.kill();
            device.read();
        });
    }
}

/// The index has moved since the reader read it. covers: N1
#[test]
fn a_reader_against_an_earlier_grace_period_and_a_kill() {
    for _ in 0..ROUNDS {
        let device = Device::new();
        thread::scope(|scope| {
            scope.spawn(|| (0..2).for_each(|_| device.read()));
            device.srcu.synchronize(thread::yield_now);
            device.kill();
        });
    }
}

/// Two synchronizers take turns.
#[test]
fn a_kill_against_another_synchronizer() {
    for _ in 0..ROUNDS {
        let device = Device::new();
        thread::scope(|scope| {
            scope.spawn(|| {
                device.read();
                device.srcu.synchronize(thread::yield_now);
            });
            device.kill();
        });
    }
}
