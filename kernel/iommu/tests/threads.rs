//! Devices that store all the time, CPUs that map and revoke, and pages that change hands after each revocation.

mod common;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;

use common::{DEVICE, RW, Rig, run};
use mm::addr::{PAGE_SIZE, PhysAddr};
use testkit::iommu::Make;

// covers: D2, D3
#[test]
fn nothing_lands_in_a_page_after_its_revocation_has_returned() {
    for make in [Make::default(), Make { pieces: true, coherent: true, bits: 39, ..Make::default() }] {
        let rig = Rig::new(make);
        let (stop, target, landed) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
        thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Relaxed) {
                    // The address may be of a mapping that is over.
                    let at = target.load(Relaxed);
                    if at != 0 && rig.unit.device_writes(DEVICE, at, 0xdead).is_ok() {
                        landed.fetch_add(1, Relaxed);
                    }
                }
            });
            let cpus: Vec<_> = (1..3u64)
                .map(|cpu| {
                    let (rig, target) = (&rig, &target);
                    scope.spawn(move || {
                        for turn in 0..150u64 {
                            let (pfn, nr) = (cpu << 20 | (turn % 7) << 10, 1 + turn % 5);
                            let mapping = rig.domain.map(&[run(pfn, nr)], RW, cpu).unwrap();
                            target.store(mapping.address(), Relaxed);
                            (0..turn % 4).for_each(|_| thread::yield_now());
                            assert!(rig.domain.revoke(&mapping).first);
                            // The page is another's now.
                            let page = PhysAddr::new(pfn * PAGE_SIZE);
                            rig.unit.store(page, turn);
                            (0..3).for_each(|_| thread::yield_now());
                            assert_eq!(rig.unit.memory(page), turn, "a device stored into it");
                        }
                    })
                })
                .collect();
            let ended: Vec<_> = cpus.into_iter().map(|cpu| cpu.join()).collect();
            stop.store(true, Relaxed);
            ended.into_iter().for_each(|ended| ended.unwrap());
        });
        assert!(landed.load(Relaxed) > 0, "the device stored into what was mapped");
        assert_eq!(rig.domain.stats().mappings, 0);
    }
}
