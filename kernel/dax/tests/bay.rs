//! The place of a device: attached once, removed once.
#![cfg(not(loom))]

use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use dax::bay::{Bay, BayError};

/// covers: R12
#[test]
fn a_second_removal_is_refused_or_waits() {
    let bay = Bay::new();
    assert_eq!(bay.begin_removal().err(), Some(BayError::Empty));
    bay.attach("pmem0").unwrap();
    assert_eq!(bay.attach("pmem1"), Err((BayError::Occupied, "pmem1")));
    assert_eq!(bay.with(|device| device.len()), Ok(5));
    let (device, removing) = bay.begin_removal().unwrap();
    assert_eq!(device, "pmem0");
    assert_eq!(bay.begin_removal().err(), Some(BayError::Removing));
    assert_eq!(bay.attach("pmem1"), Err((BayError::Removing, "pmem1")));
    assert_eq!(bay.with(|_| ()), Err(BayError::Removing));
    let mut removing = Some(removing);
    let mut rounds = 0;
    bay.wait(|| {
        rounds += 1;
        removing.take();
    });
    assert_eq!(rounds, 1, "did not wait for the removal");
    bay.attach("pmem0").unwrap();
    bay.wait(|| panic!("no removal is under way"));
}

/// covers: R12
#[test]
fn of_many_removals_at_once_one_runs() {
    let bay = Bay::new();
    for _ in 0..200 {
        bay.attach(()).unwrap();
        let ran = AtomicU32::new(0);
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| match bay.begin_removal() {
                    Ok(_) => {
                        ran.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(error) => assert!(matches!(error, BayError::Removing | BayError::Empty)),
                });
            }
        });
        assert_eq!(ran.into_inner(), 1);
    }
}
