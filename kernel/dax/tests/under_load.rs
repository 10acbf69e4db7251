//! Removal while other CPUs fault, pin, open, map, unmap and remove too: each CPU is a thread.
#![cfg(not(loom))]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use common::*;
use dax::devdax::{DevDax, OpenOptions};
use dax::removal::{Method, RemovalReport, remove};
use dax::slot::{DeviceSlot, SlotError};
use mm::addr::{PAGE_SIZE, PageSize};
use mm::entry::Prot;
use mm::gup::{GupError, GupFlags};
use mm::ledger::Kind;
use mm::machine::Machine;
use mm::space::{FaultError, MapError, SigBusCause};
use testkit::emu::EmuMachine;

const PAGES: u64 = 1024;
/// Rounds that each task has done before the device is pulled out.
const WARM: u64 = 20;

/// What a task on `cpu` does until the device is gone: returns when it has been told so.
fn work(mm: &Arc<EmuContext>, cpu: usize, dev: &Arc<DevDax<EmuMachine>>, rounds: &AtomicU64) {
    let emu = mm.machine.clone();
    let size = [PageSize::Size4K, PageSize::Size2M][cpu % 2];
    let file: Arc<dyn mm::space::VmOps<_>> = dev.open(OpenOptions::exactly(size)).unwrap();
    let task = Loaded::new(mm, cpu, &file, PAGES);
    drop(file);
    for round in 1.. {
        let va = page(round * 37 % PAGES);
        let stamp = (cpu as u64) << 32 | round;
        match task.store(va, stamp) {
            Ok(()) => {}
            Err(FaultError::SigBus { cause: SigBusCause::DeviceGone, .. }) => return,
            Err(other) => panic!("CPU {cpu}: {other}"),
        }
        match task.pin(va, 3.min(PAGES - (round * 37 % PAGES)), GupFlags::WRITE) {
            Ok(runs) => task.unpin(&runs),
            Err(GupError::SigBus(_, SigBusCause::DeviceGone)) => return,
            Err(other) => panic!("CPU {cpu}: {other}"),
        }
        emu.on_cpu(cpu, || {
            let Ok(file) = dev.open(OpenOptions::default()) else { return };
            let file: Arc<dyn mm::space::VmOps<_>> = file;
            match task.space().map(page(4096), 512 * PAGE_SIZE, Prot::USER_WRITE, &file, 512) {
                Ok(()) => {}
                Err(MapError::Refused(SigBusCause::DeviceGone)) => return,
                Err(other) => panic!("CPU {cpu}: {other}"),
            }
            // A store there may already meet the dead device.
            let _ = store(&emu, task.space(), page(4097), stamp);
            task.space().unmap(page(4096), 512 * PAGE_SIZE).unwrap();
        });
        rounds.fetch_max(round, Ordering::Relaxed);
    }
}

/// One removal among several: the report, or `None` for who came second and waited.
fn try_remove(mm: &Arc<EmuContext>, slot: &DeviceSlot<Attached>, method: Method) -> Option<RemovalReport> {
    match slot.begin_removal() {
        Ok((attached, _removing)) => {
            let report = remove(mm, attached.target(), method, &mut Env::default());
            // Before anybody who waits may attach the device again.
            for kind in [Kind::Folios, Kind::Pins, Kind::PageMaps, Kind::DaxDevices, Kind::MetadataBytes] {
                assert_eq!(mm.ledger_snapshot().count(kind), 0, "{kind}");
            }
            Some(report)
        }
        Err(SlotError::Removing | SlotError::Empty) => {
            slot.wait(|| mm.machine.relax());
            None
        }
        Err(SlotError::Occupied) => panic!("taking out found no room"),
    }
}

fn pull_out_under_load(method: Method) {
    let (emu, mm) = machine(6);
    let before = mm.ledger_snapshot();
    let slot = DeviceSlot::new();
    let mut under_load = 0;
    for _ in 0..10 {
        let attached = attach_one(&mm, 2 * PAGES);
        let dev = attached.dev.clone();
        assert!(slot.attach(attached).is_ok());
        let rounds: Vec<_> = (0..4).map(|_| AtomicU64::new(0)).collect();
        let reports = thread::scope(|scope| {
            for (cpu, rounds) in (1..5).zip(&rounds) {
                let (mm, dev) = (&mm, &dev);
                scope.spawn(move || work(mm, cpu, dev, rounds));
            }
            let removers = [0, 5].map(|cpu| {
                let (emu, mm, slot, rounds) = (&emu, &mm, &slot, &rounds);
                scope.spawn(move || {
                    emu.on_cpu(cpu, || {
                        while rounds.iter().any(|rounds| rounds.load(Ordering::Relaxed) < WARM) {
                            emu.relax();
                        }
                        try_remove(mm, slot, method)
                    })
                })
            });
            removers.map(|remover| remover.join().unwrap())
        });
        let done: Vec<_> = reports.into_iter().flatten().collect();
        assert_eq!(done.len(), 1, "the removal ran once");
        assert_eq!(done[0].problems().count(), 0);
        // Idle where every task met the dead device, and left, before the removal asked.
        under_load += u32::from(!done[0].idle);
        drop(dev);
        emu.assert_no_stale();
    }
    assert!(under_load > 0, "no removal met a user");
    assert_eq!(mm.ledger_snapshot().diff(&before).collect::<Vec<_>>(), []);
}

/// covers: R7 R10 R12
#[test]
fn by_range() {
    pull_out_under_load(Method::Ranged);
}

/// covers: R3 R10 R12
#[test]
fn by_frame() {
    pull_out_under_load(Method::PerFrame(frames(START + 256, 512)));
}

/// Three devices that one task maps; two are removed at once, on two CPUs, and the third does not notice.
///
/// covers: R2 R7 R8 R12
#[test]
fn two_devices_at_once_and_a_third_stays() {
    let (emu, mm) = machine(4);
    let before = mm.ledger_snapshot();
    for _ in 0..10 {
        // Two ranges each, between one another's.
        let devices = [0, 1, 2].map(|nr| {
            let ranges = [frames(START + nr * 512, 512), frames(START + (8 + nr) * 512, 512)];
            attach(&mm, &ranges, PageSize::Size4K).unwrap()
        });
        let task = Loaded::new(&mm, 3, &devices[0].file(OpenOptions::default()), PAGES);
        emu.on_cpu(3, || {
            for (nr, device) in [(1, &devices[1]), (2, &devices[2])] {
                let file = device.file(OpenOptions::default());
                task.space().map(page(nr * PAGES), PAGES * PAGE_SIZE, Prot::USER_WRITE, &file, 0).unwrap();
            }
        });
        let addresses = [0, 1, 2].map(|nr| [page(nr * PAGES + 3), page(nr * PAGES + 700)]);
        addresses.as_flattened().iter().for_each(|va| task.store(*va, va.as_u64()).unwrap());
        let [first, second, third] = devices;
        let reports = thread::scope(|scope| {
            let removers = [(0, first), (1, second)].map(|(cpu, device)| {
                let (emu, mm) = (&emu, &mm);
                scope
                    .spawn(move || emu.on_cpu(cpu, || remove(mm, device.target(), Method::Ranged, &mut Env::default())))
            });
            // Meanwhile.
            for _ in 0..WARM {
                assert_eq!(task.fetch(addresses[2][1]), Ok(addresses[2][1].as_u64()));
            }
            removers.map(|remover| remover.join().unwrap())
        });
        for report in &reports {
            assert_eq!((report.problems().count(), report.users.len(), report.cost.zap.nr_pages), (0, 1, PAGES));
        }
        for va in addresses[..2].as_flattened() {
            assert!(matches!(task.fetch(*va), Err(FaultError::SigBus { cause: SigBusCause::DeviceGone, .. })));
        }
        for va in &addresses[2] {
            assert_eq!(task.fetch(*va), Ok(va.as_u64()));
        }
        emu.assert_no_stale();
        drop(task);
        let _ = emu.on_cpu(0, || remove(&mm, third.target(), Method::Ranged, &mut Env::default()));
    }
    assert_eq!(mm.ledger_snapshot().diff(&before).collect::<Vec<_>>(), []);
}
