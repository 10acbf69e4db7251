//! Nobody waits with a lock held, or with interrupts off: what tries stops a debug build, whether or not there is
//! something to wait for.
#![cfg(not(loom))]

mod common;

use common::gup_rig::{Rig, panic_of, rig};
use common::{EmuContext, Space, load, page};
use mm::addr::{PAGE_SIZE, PageSize};
use mm::gup::GupFlags;
use mm::lock_check;
use mm::machine::{IrqOff, Machine};
use mm::pins::PinnedPages;
use mm::region::{MemoryRegion, RegionOwner, Terms};
use mm::shootdown::Round;
use mm::space::Access;
use mm::sync::{Arc, Mutex, SleepLock, Weak};
use mm::tlb::FlushRange;

/// Everything that calls somebody under a lock of this package, by name.
type Visit = fn(&Rig, &mut dyn FnMut());

const VISITS: &[(&str, Visit)] = &[
    ("with_page", |rig, inside| rig.mm.meta.with_page(rig.device.pfn(0), |_| inside()).unwrap()),
    ("pins.for_each", |rig, inside| rig.mm.pins.for_each(&mut |_| inside())),
    ("pins.for_each_account", |rig, inside| rig.mm.pins.for_each_account(&mut |_| inside())),
    ("regions.for_each", |rig, inside| rig.mm.regions.for_each(&mut |_| inside())),
];

struct Nobody;

impl RegionOwner for Nobody {
    fn asked(&self, _: &mm::region::Notice) {}
}

/// On CPU 0 of a machine with a page mapped, a pin, an account and a registration, so that each visit finds something.
fn in_use(test: impl FnOnce(&Rig)) {
    let rig = rig(4, PageSize::Size4K);
    rig.mm.pins.switch(true);
    rig.emu.on_cpu(0, || {
        let account = rig.mm.pins.open_account("account", 16);
        let pinned = PinnedPages::pin(&rig.space, page(0), 1, GupFlags::WRITE).unwrap();
        let terms = Terms { flags: GupFlags::WRITE, grace_ns: 0, account: &account };
        let region = MemoryRegion::register(&rig.space, page(1), 1, &terms, Weak::<Nobody>::new()).unwrap();
        test(&rig);
        drop((pinned, region));
    });
    rig.emu.assert_no_stale();
}

/// A way to wait, by name.
type Wait = (&'static str, Box<dyn FnOnce()>);

/// Each way to wait.
fn waits(mm: &Arc<EmuContext>, space: &Arc<Space>) -> [Wait; 6] {
    let (zapped, faulted, looked, machine) = (space.clone(), space.clone(), space.clone(), mm.machine.clone());
    let (turn, all, tlb) = (SleepLock::new(()), mm.clone(), space.tlb().clone());
    [
        ("unmap", Box::new(move || _ = zapped.unmap(page(2), PAGE_SIZE))),
        ("fault", Box::new(move || _ = faulted.handle_fault(page(3), Access::Read))),
        ("look", Box::new(move || _ = looked.translate(page(3)))),
        ("relax", Box::new(move || machine.relax())),
        ("turn", Box::new(move || drop(turn.take(|| unreachable!("it is free"))))),
        (
            "shootdown",
            Box::new(move || {
                let mut round = Round::new();
                round.issue(&tlb, FlushRange::All, false);
                round.dispatch(&all.shootdown, &all.machine).sync();
            }),
        ),
    ]
}

// covers: G2
#[test]
fn who_waits_inside_a_visit_is_stopped() {
    in_use(|rig| {
        for &(name, visit) in VISITS {
            for nr in 0..waits(&rig.mm, &rig.space).len() {
                let mut visited = 0;
                let (wait, _) = waits(&rig.mm, &rig.space)[nr];
                let message = panic_of(|| {
                    visit(rig, &mut || {
                        visited += 1;
                        let (_, wait) = waits(&rig.mm, &rig.space).into_iter().nth(nr).unwrap();
                        wait();
                    });
                });
                assert!(message.contains("with a lock held (1 in all)"), "{wait} inside {name}: {message}");
                assert_eq!((visited, lock_check::locks_held()), (1, 0), "{wait} inside {name}");
            }
        }
    });
}

// covers: G2
#[test]
fn who_holds_nothing_may_wait() {
    in_use(|rig| {
        for (name, wait) in waits(&rig.mm, &rig.space) {
            wait();
            assert_eq!(lock_check::locks_held(), 0, "after {name}");
        }
    });
}

// covers: G2
#[test]
fn a_lock_counts_for_as_long_as_it_is_held() {
    let (one, two) = (Mutex::new(1), Mutex::new(2));
    let first = one.lock();
    let second = two.try_lock();
    assert!(second.is_some() && one.try_lock().is_none());
    assert_eq!(lock_check::locks_held(), 2);
    drop(first);
    assert_eq!(lock_check::locks_held(), 1);
    assert_eq!(std::thread::spawn(lock_check::locks_held).join().unwrap(), 0, "of another thread");
    drop(second);
    assert_eq!(lock_check::locks_held(), 0);
    // A turn is there to be held while waiting.
    let turn = SleepLock::new(());
    let taken = turn.take(|| unreachable!("it is free"));
    assert_eq!((lock_check::locks_held(), turn.try_take().is_none()), (0, true));
    drop(taken);
}

// covers: G2
#[test]
fn who_waits_with_interrupts_off_is_stopped() {
    in_use(|rig| {
        load(&rig.mm, Some(&rig.space));
        let sent = rig.emu.stats().ipis_sent;
        for (name, wait) in
            waits(&rig.mm, &rig.space).into_iter().filter(|(name, _)| !matches!(*name, "relax" | "turn"))
        {
            let message = panic_of(|| {
                let _irq = IrqOff::new(&rig.mm.machine);
                wait();
            });
            assert!(message.contains("with interrupts off"), "{name}: {message}");
        }
        assert_eq!(rig.emu.stats().ipis_sent, sent, "interrupts sent");
    });
}
