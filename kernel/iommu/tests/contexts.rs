//! Devices that come into domains and leave them.

mod common;

use common::{DEVICE, OTHER, RW, Rig, run};
use iommu::contexts::AttachError;
use iommu::domain::Domain;
use iommu::fault::Reason;
use iommu::queue::QueueError;
use mm::sync::Arc;
use testkit::iommu::{Make, Point};

// covers: D1
#[test]
fn a_device_reaches_what_its_own_domain_maps_and_no_other_does() {
    let rig = Rig::usual();
    let limits = Make::default().capabilities();
    let other = Domain::new(rig.unit.clone(), 6, rig.domain.levels(), &limits).unwrap();
    let reason = |source, at| rig.unit.device_writes(source, at, 1).map_err(|fault| fault.reason);
    let ours = rig.one(0x1000);
    assert_eq!(reason(OTHER, ours.address()), Err(Reason::NoRoot), "nothing is on its bus");
    rig.contexts.attach(OTHER, &other).unwrap();
    assert_eq!(reason(OTHER, ours.address()), Err(Reason::NotWritable));
    let neighbour = common::DEVICE;
    let neighbour = iommu::source::SourceId { function: 1, ..neighbour };
    assert_eq!(reason(neighbour, ours.address()), Err(Reason::NoContext));
    // The same address, other memory.
    let theirs = other.map(&[run(0x2000, 1)], RW, 2).unwrap();
    assert_eq!(theirs.address(), ours.address());
    assert_eq!(reason(OTHER, theirs.address()).map(|at| at.pfn().as_u64()), Ok(0x2000));
    rig.assert_reaches(&ours, 0, 0x1000);
    let _ = rig.domain.revoke(&ours);
    rig.assert_blocked(&ours, 0);
    assert!(reason(OTHER, theirs.address()).is_ok());
    assert_eq!(rig.contexts.attach(OTHER, &rig.domain), Err(AttachError::Attached { domain: 6 }));
    assert_eq!(rig.contexts.domain_of(OTHER).map(|domain| domain.id()), Some(6));
}

// covers: D1, D2
#[test]
fn a_device_that_has_left_reaches_nothing() {
    for caching_mode in [false, true] {
        let make = Make { caching_mode, ..Make::default() };
        let rig = Rig::new(make);
        let mapping = rig.domain.map(&[run(0x1000, 3)], RW, 1).unwrap();
        rig.assert_reaches(&mapping, 2, 0x1002);
        assert_eq!(rig.contexts.detach(DEVICE), Ok(true));
        rig.assert_blocked(&mapping, 2);
        assert_eq!(rig.contexts.detach(DEVICE), Ok(false));
        // Its domain is ours alone now, and its tables go with it, the mapping in it or not.
        assert_eq!(Arc::strong_count(&rig.domain), 1);
        let unit = rig.unit.clone();
        drop(rig.domain);
        assert_eq!(unit.tables_in_use(), 2);
        // It comes into another.
        let next = Domain::new(unit.clone(), 9, iommu::caps::Levels::Three, &make.capabilities()).unwrap();
        rig.contexts.attach(DEVICE, &next).unwrap();
        let mapping = next.map(&[run(0x3000, 1)], RW, 1).unwrap();
        let at = unit.device_writes(DEVICE, mapping.address(), 1).unwrap();
        assert_eq!(at.pfn().as_u64(), 0x3000);
    }
}

// covers: D2
#[test]
fn the_tables_of_a_domain_stay_until_its_last_device_is_forgotten() {
    let rig = Rig::usual();
    let mapping = rig.one(0x1000);
    rig.assert_reaches(&mapping, 0, 0x1000);
    let before = rig.unit.tables_in_use();
    drop(rig.domain);
    rig.unit.watch(move |unit, point| {
        if point == Point::Commands {
            assert_eq!(unit.tables_in_use(), before);
        }
    });
    assert_eq!(rig.contexts.detach(DEVICE), Ok(true));
    assert_eq!(rig.unit.tables_in_use(), 2);
}

#[test]
fn a_device_that_the_unit_did_not_forget_keeps_its_domain() {
    let rig = Rig::usual();
    let mapping = rig.one(0x1000);
    rig.assert_reaches(&mapping, 0, 0x1000);
    let before = rig.unit.tables_in_use();
    rig.unit.fail(true);
    assert_eq!(rig.contexts.detach(DEVICE), Err(QueueError::NoAnswer));
    rig.unit.fail(false);
    rig.assert_reaches(&mapping, 0, 0x1000);
    drop(rig.domain);
    assert_eq!(rig.unit.tables_in_use(), before, "no table is freed");
    assert_eq!(rig.contexts.detach(DEVICE), Err(QueueError::NoAnswer), "who asks again hears of it too");
}
