//! The SRCU under the model checker. Run with
//! `RUSTFLAGS="--cfg loom" cargo test -p dax --release --test loom_srcu`.
//!
//! Property: what a reader saw alive is not torn down before the reader has gone; and a reader that begins
//! after the tear-down sees it dead.
//!
//! With one of `DAX_MUTANT=srcu_plain_read`, `srcu_no_recheck` or `srcu_relaxed_unlock` the same
//! tests fail; `srcu_no_flip` is caught by `tests/srcu.rs`.
use dax::srcu::Srcu;
use mm::sync::model::{AtomicBool, Bound, UnsafeCell, explore, sized, thread};
use mm::sync::{Arc, Ordering};

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

/// Threads that read: one for loom; three, each three times, for shuttle.
fn readers(device: &Arc<Device>) -> Vec<thread::JoinHandle<()>> {
    let reader = |_| {
        let device = device.clone();
        thread::spawn(move || (0..sized(1, 3)).for_each(|_| device.reader()))
    };
    (0..sized(1, 3)).map(reader).collect()
}

/// covers: N1 (the wait for readers in flight)
#[test]
fn a_reader_keeps_the_device_from_being_torn_down() {
    explore(Bound::None, || {
        let device = Device::new();
        let readers = readers(&device);
        device.kill();
        readers.into_iter().for_each(|reader| reader.join().unwrap());
        device.reader();
    });
}

/// An earlier grace period (of another writer, which took nothing away) has moved the index while the reader
/// stood between reading it and counting itself: the reader must not end up on a counter that nobody waits for.
#[test]
fn a_reader_that_read_an_old_index_is_waited_for() {
    explore(Bound::None, || {
        let device = Device::new();
        let readers = readers(&device);
        device.srcu.synchronize(thread::yield_now);
        device.kill();
        readers.into_iter().for_each(|reader| reader.join().unwrap());
    });
}

/// Two synchronizers at once take turns, and both wait for the reader.
#[test]
fn synchronizers_serialise() {
    explore(Bound::None, || {
        let device = Device::new();
        let readers = readers(&device);
        let other = {
            let device = device.clone();
            thread::spawn(move || {
                device.srcu.synchronize(thread::yield_now);
            })
        };
        device.kill();
        readers.into_iter().for_each(|reader| reader.join().unwrap());
        other.join().unwrap();
    });
}
