//! A holder that takes its time to get ready, as a mount does, against the kill of its device, under the model checker. Run with
//! `RUSTFLAGS="--cfg loom" cargo test -p dax --release --test loom_holder`.
//!
//! Property: a holder that is ready was ready when it was told; one that was told before hears that it is too late, and is
//! never ready.
//!
//! With one of `DAX_MUTANT=ready_not_rechecked` or `ready_unlocked` the tests fail.
#![cfg(any(loom, shuttle))]

use dax::device::{DataCache, DaxError, Live, alloc_dax};
use dax::holder::{Holder, NotifyError, NotifyFlags, Role};
use dax::kill::kill_dax;
use mm::addr::{Pfn, PfnRange};
use mm::ledger::Ledger;
use mm::pagemap::{DevPagemap, MemoryKind};
use mm::sync::model::{AtomicBool, Bound, explore, thread};
use mm::sync::{Arc, Ordering};

/// Relaxed everywhere: the device's lock alone must order it.
#[derive(Default)]
struct Mount {
    born: AtomicBool,
}

impl Holder for Mount {
    fn name(&self) -> &str {
        "mount"
    }
    fn notify_failure(&self, _: u64, _: u64, _: NotifyFlags) -> Result<(), NotifyError> {
        if self.born.load(Ordering::Relaxed) { Ok(()) } else { Err(NotifyError::Io) }
    }
}

fn device() -> Live {
    let range = PfnRange::new(Pfn::new(0), 1).unwrap();
    let map = DevPagemap::new(MemoryKind::FsDax, [range]).unwrap();
    alloc_dax("pmem0", &map, DataCache::Coherent, &Arc::new(Ledger::new())).unwrap()
}

/// covers: N1 N14
#[test]
fn a_holder_that_gets_ready_against_a_kill() {
    explore(Bound::None, || {
        let live = device();
        let mount = Arc::new(Mount::default());
        let registration = live.device().register_holder(Role::Owner, mount.clone()).unwrap();
        let mounter = {
            let mount = mount.clone();
            thread::spawn(move || {
                let confirmed = registration.confirm(|| mount.born.store(true, Ordering::Relaxed));
                (confirmed, registration)
            })
        };
        let (_dead, report) = kill_dax(live, &mut thread::yield_now, &mut |_, _| ());
        let (confirmed, _registration) = mounter.join().unwrap();
        assert_eq!(report.answers.len(), 1);
        let ready = mount.born.load(Ordering::Relaxed);
        match report.answers[0].result {
            Ok(()) => assert!(ready && confirmed == Ok(()), "told, and yet it hears that it is too late"),
            Err(_) => assert!(!ready && confirmed == Err(DaxError::NoSuchDevice), "ready after it was told"),
        }
    });
}

/// The registration comes while the kill is under way, too: on the list or refused.
/// covers: N1 N14
#[test]
fn a_holder_that_registers_and_gets_ready_against_a_kill() {
    explore(Bound::Preemptions(3), || {
        let live = device();
        let mount = Arc::new(Mount::default());
        let mounter = {
            let (device, mount) = (live.device().clone(), mount.clone());
            thread::spawn(move || {
                let registration = device.register_holder(Role::Owner, mount.clone())?;
                registration.confirm(|| mount.born.store(true, Ordering::Relaxed))?;
                Ok::<_, DaxError>(registration)
            })
        };
        let (_dead, report) = kill_dax(live, &mut thread::yield_now, &mut |_, _| ());
        let held = mounter.join().unwrap();
        let told = report.answers.iter().any(|answer| answer.result.is_ok());
        assert_eq!(mount.born.load(Ordering::Relaxed), told, "{:?}", report.answers);
        assert_eq!(held.is_ok(), told);
    });
}
