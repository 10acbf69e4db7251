//! The SRCU under the model checker. Run with
//! `RUSTFLAGS="--cfg loom" cargo test -p dax --release --test loom_srcu`.
//!
//! Property: what a reader saw alive is not torn down before the reader has gone; and a reader that begins
//! after the tear-down sees it dead.
//!
//! With `--features mutants` and one of `DAX_MUTANT=srcu_plain_read`, `srcu_no_recheck` or `srcu_relaxed_unlock` the
//! same tests fail; `srcu_no_flip` is caught by `tests/srcu.rs`.
#![cfg(loom)]

use dax::srcu::Srcu;
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;

/// What the writer takes away.
struct Device {
    srcu: Srcu,
    /// Relaxed everywhere: the SRCU alone must order it.
    alive: AtomicBool,
    /// Read by readers that saw `alive`, written by the writer after the grace period; loom reports a data race
    /// between the two.
    memory: UnsafeCell<u64>,
}

// SAFETY: `memory` is what the model checks: loom fails the test where two threads reach it without order.
unsafe impl Sync for Device {}

impl Device {
    fn new() -> Arc<Self> {
        Arc::new(Self { srcu: Srcu::new(), alive: AtomicBool::new(true), memory: UnsafeCell::new(1) })
    }

    fn reader(&self) {
        let _guard = self.srcu.read_lock();
        if self.alive.load(Ordering::Relaxed) {
            // SAFETY: the guard keeps the writer from its write; loom checks exactly that.
            self.memory.with(|memory| assert_eq!(unsafe { *memory }, 1, "used after it was freed"));
        }
    }

    fn kill(&self) {
        self.alive.store(false, Ordering::Relaxed);
        self.srcu.synchronize(thread::yield_now);
        // SAFETY: as in `reader`.
        self.memory.with_mut(|memory| unsafe { *memory = 0 });
    }
}

/// covers: N1 (the wait for readers in flight)
#[test]
fn a_reader_keeps_the_device_from_being_torn_down() {
    loom::model(|| {
        let device = Device::new();
        let reader = {
            let device = device.clone();
            thread::spawn(move || device.reader())
        };
        device.kill();
        reader.join().unwrap();
        device.reader();
    });
}

/// An earlier grace period (of another writer, which took nothing away) has moved the index while the reader
/// stood between reading it and counting itself: the reader must not end up on a counter that nobody waits for.
#[test]
fn a_reader_that_read_an_old_index_is_waited_for() {
    loom::model(|| {
        let device = Device::new();
        let reader = {
            let device = device.clone();
            thread::spawn(move || device.reader())
        };
        device.srcu.synchronize(thread::yield_now);
        device.kill();
        reader.join().unwrap();
    });
}

/// Two synchronizers at once take turns, and both wait for the reader.
#[test]
fn synchronizers_serialise() {
    let mut model = loom::model::Builder::new();
    // Three threads, two of which wait in loops: some schedules are long, all of them are explored.
    model.max_branches = 20_000;
    model.check(|| {
        let device = Device::new();
        let reader = {
            let device = device.clone();
            thread::spawn(move || device.reader())
        };
        let other = {
            let device = device.clone();
            thread::spawn(move || {
                device.srcu.synchronize(thread::yield_now);
            })
        };
        device.kill();
        reader.join().unwrap();
        other.join().unwrap();
    });
}
