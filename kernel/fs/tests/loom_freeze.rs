//! The freeze under the model checker. Run with
//! `RUSTFLAGS="--cfg loom" cargo test -p fs --release --test loom_freeze`.
//!
//! Property: while a file system is frozen nobody changes it, and what a change did before comes before what is done while it
//! is frozen; and where it is shut down before it is thawed, nobody changes it ever after.
use fs::error::{FsError, ShutdownReason};
use fs::freeze::{Freeze, FreezeHolder};
use fs::mutant::Faults;
use mm::sync::Arc;
use mm::sync::model::{Bound, UnsafeCell, explore, thread};

/// What is on the medium, seen from the gate of changes alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Medium {
    changes: u32,
    /// Everything is in its place, and says so: a change would make that wrong.
    at_rest: bool,
}

struct Frozen {
    freeze: Freeze,
    /// Only the freeze orders who reaches it; loom reports a data race between a change and who has frozen it.
    medium: UnsafeCell<Medium>,
}

// SAFETY: `medium` is what the model checks: loom fails the test where two threads reach it without order.
unsafe impl Sync for Frozen {}

impl Frozen {
    fn new() -> Arc<Self> {
        Arc::new(Self { freeze: Freeze::new(Faults::default()), medium: UnsafeCell::new(Medium::default()) })
    }

    /// One try to change it. Says how it ended: changed, turned away, or shut down.
    fn change(&self) -> Result<bool, FsError> {
        let Some(_write) = self.freeze.try_write()? else { return Ok(false) };
        self.medium.with_mut(|medium| {
            // SAFETY: there is one writer in each model, and no freeze while it has the guard; loom checks exactly that.
            let medium = unsafe { &mut *medium };
            assert!(!medium.at_rest, "changed while it is frozen, or after its end");
            medium.changes += 1;
        });
        Ok(true)
    }

    /// Freezes it and brings it to rest.
    fn freeze(&self) {
        assert!(self.freeze.begin(FreezeHolder::Kernel), "the first freeze");
        while self.freeze.has_writers() {
            thread::yield_now();
        }
        self.set_at_rest(true);
    }

    fn set_at_rest(&self, at_rest: bool) {
        // SAFETY: as in `change`.
        self.medium.with_mut(|medium| unsafe { (*medium).at_rest = at_rest });
    }

    fn changes(&self) -> u32 {
        // SAFETY: as in `change`.
        self.medium.with(|medium| unsafe { (*medium).changes })
    }
}

/// A change against a freeze; `end` is what follows, with the number of changes that came before.
fn against_a_freeze(end: fn(&Frozen, u32, thread::JoinHandle<Result<bool, FsError>>)) {
    explore(Bound::None, move || {
        let frozen = Frozen::new();
        let changing = frozen.clone();
        let writer = thread::spawn(move || changing.change());
        frozen.freeze();
        end(&frozen, frozen.changes(), writer);
    });
}

/// covers: N5
#[test]
fn a_change_against_a_freeze_that_ends_in_a_shutdown() {
    against_a_freeze(|frozen, before, writer| {
        assert!(frozen.freeze.shut_down(ShutdownReason::ForcedUnmount));
        assert_eq!(frozen.freeze.thaw(FreezeHolder::Kernel), Ok(true));
        let end = writer.join().unwrap();
        // It came before the freeze, or not at all.
        match end {
            Ok(changed) => assert_eq!(u32::from(changed), before),
            Err(error) => assert_eq!((error, before), (FsError::ShutDown(ShutdownReason::ForcedUnmount), 0)),
        }
        assert_eq!(frozen.changes(), before);
        assert_eq!(frozen.change(), Err(FsError::ShutDown(ShutdownReason::ForcedUnmount)));
    });
}

/// covers: N5
#[test]
fn a_change_against_a_freeze_and_a_thaw() {
    against_a_freeze(|frozen, before, writer| {
        frozen.set_at_rest(false);
        assert_eq!(frozen.freeze.thaw(FreezeHolder::Kernel), Ok(true));
        let changed = writer.join().unwrap().expect("nothing shuts it down");
        assert_eq!(frozen.changes(), u32::from(changed));
        assert!(before <= frozen.changes());
        assert_eq!(frozen.change(), Ok(true), "nobody holds it any more");
    });
}
