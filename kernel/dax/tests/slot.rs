//! The place of a device: attached once, removed once.
#![cfg(not(loom))]

use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use dax::slot::{DeviceSlot, SlotError};

/// covers: R12
#[test]
fn a_second_removal_is_refused_or_waits() {
    let slot = DeviceSlot::new();
    assert_eq!(slot.begin_removal().err(), Some(SlotError::Empty));
    slot.attach("pmem0").unwrap();
    assert_eq!(slot.attach("pmem1"), Err((SlotError::Occupied, "pmem1")));
    assert_eq!(slot.with(|device| device.len()), Ok(5));
    let (device, removing) = slot.begin_removal().unwrap();
    assert_eq!(device, "pmem0");
    assert_eq!(slot.begin_removal().err(), Some(SlotError::Removing));
    assert_eq!(slot.attach("pmem1"), Err((SlotError::Removing, "pmem1")));
    assert_eq!(slot.with(|_| ()), Err(SlotError::Removing));
    let mut removing = Some(removing);
    let mut rounds = 0;
    slot.wait(|| {
        rounds += 1;
        removing.take();
    });
    assert_eq!(rounds, 1, "did not wait for the removal");
    slot.attach("pmem0").unwrap();
    slot.wait(|| panic!("no removal is under way"));
}

/// covers: R12
#[test]
fn a_removal_that_means_another_device_leaves_this_one_alone() {
    let slot = DeviceSlot::new();
    assert_eq!(slot.begin_removal_if(|_: &&str| panic!("there is none")).err(), Some(SlotError::Empty));
    slot.attach("pmem1").unwrap();
    assert_eq!(slot.begin_removal_if(|device| *device == "pmem0").err(), Some(SlotError::Empty));
    assert_eq!(slot.with(|device| device.len()), Ok(5), "it was taken away");
    let (device, removing) = slot.begin_removal_if(|device| *device == "pmem1").unwrap();
    assert_eq!((device, slot.begin_removal_if(|_| true).err()), ("pmem1", Some(SlotError::Removing)));
    drop(removing);
    assert_eq!(slot.with(|_| ()), Err(SlotError::Empty));
}

/// covers: R12
#[test]
fn of_many_removals_at_once_one_runs() {
    let slot = DeviceSlot::new();
    for _ in 0..200 {
        slot.attach(()).unwrap();
        let ran = AtomicU32::new(0);
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| match slot.begin_removal() {
                    Ok(_) => {
                        ran.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(error) => assert!(matches!(error, SlotError::Removing | SlotError::Empty)),
                });
            }
        });
        assert_eq!(ran.into_inner(), 1);
    }
}
