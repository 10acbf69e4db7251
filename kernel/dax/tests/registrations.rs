//! Removal against long-term pins: whatever their owners do, it comes to its end, and in time.
#![cfg(not(loom))]

mod common;

use std::sync::{Arc, Mutex};

use common::*;
use dax::devdax::OpenOptions;
use dax::removal::{Cause, Method, RemovalReport, Step, StepRecord, remove};
use mm::account::PinAccount;
use mm::addr::{PAGE_SIZE, PageSize};
use mm::entry::Prot;
use mm::gup::{GupError, GupFlags};
use mm::ledger::Kind;
use mm::machine::Machine;
use mm::region::{MemoryRegion, Notice, RegionError, RegionOwner, Terms, UseError};
use mm::space::{Access, SigBusCause};
use testkit::emu::EmuMachine;

type Region = MemoryRegion<EmuMachine>;

const GRACE_NS: u64 = 50_000;

/// A device, a task that maps it on CPU 1, and an owner that does what `act` says when it is asked.
struct Rig {
    emu: EmuMachine,
    mm: Arc<EmuContext>,
    attached: Option<Attached>,
    task: Option<Loaded>,
    account: Arc<PinAccount>,
}

fn rig() -> Rig {
    let (emu, mm) = machine(3);
    let attached = attach_one(&mm, 1024);
    let task = Loaded::new(&mm, 1, &attached.file(OpenOptions::exactly(PageSize::Size4K)), 1024);
    let account = mm.pins.open_account("task", 16);
    Rig { emu, mm, attached: Some(attached), task: Some(task), account }
}

impl Rig {
    fn register(&self, nr: u64, nr_pages: u64, owner: &Arc<dyn RegionOwner>) -> Result<Region, RegionError> {
        let terms = Terms { flags: GupFlags::WRITE, grace_ns: GRACE_NS, account: &self.account };
        let space = self.task.as_ref().unwrap().space();
        let owner = Arc::downgrade(owner);
        self.emu.on_cpu(1, || MemoryRegion::register(space, page(nr), nr_pages, &terms, owner))
    }

    /// Removes the device on CPU 0; the report, the log, and how long it took.
    fn remove(&mut self) -> (RemovalReport, Vec<String>, u64) {
        self.remove_with(Env::default())
    }

    fn remove_with(&mut self, mut env: Env<'_>) -> (RemovalReport, Vec<String>, u64) {
        let (mm, target) = (self.mm.clone(), self.attached.take().unwrap().target());
        let began = self.emu.now_ns();
        let report = self.emu.on_cpu(0, || remove(&mm, target, Method::Ranged, &mut env));
        assert_eq!(report.problems().count(), 0, "{report}");
        (report, env.log, self.emu.now_ns() - began)
    }

    /// Nothing is left, and the device can be attached again.
    fn assert_clean(mut self) {
        self.task = None;
        let ledger = self.mm.ledger_snapshot();
        for &kind in Kind::ALL {
            assert_eq!(ledger.count(kind), 0, "{kind} left behind");
        }
        assert_eq!((self.account.used_pages(), self.account.exempt_pages()), (0, 0));
        self.mm.regions.for_each(&mut |region| panic!("{region} is left"));
        let again = attach_one(&self.mm, 1024);
        let task = Loaded::new(&self.mm, 1, &again.file(OpenOptions::default()), 8);
        task.store(page(0), 1).unwrap();
    }
}

/// An owner that does nothing.
fn idle() -> Arc<dyn RegionOwner> {
    Arc::new(|_: &Notice| ())
}

fn fact(report: &RemovalReport, step: Step, name: &str) -> u64 {
    report.step(step).unwrap().facts.get(name).unwrap_or_else(|| panic!("{step} does not say {name}"))
}

/// covers: L6 R1 R10
#[test]
fn an_owner_that_does_nothing_cannot_hold_a_removal_up() {
    let mut rig = rig();
    let owner = idle();
    let region = rig.register(4, 8, &owner).unwrap();
    let engine = region.reference();
    assert!(engine.access(Access::Write).is_ok());
    let (report, log, ns) = rig.remove();
    assert!((GRACE_NS..GRACE_NS + 10_000).contains(&ns), "{ns} ns");
    assert_eq!(fact(&report, Step::KillDax, "registrations_asked"), 1);
    let drain = |name| fact(&report, Step::Drain, name);
    assert_eq!((drain("registrations_revoked"), drain("uses_waited_for"), drain("pins_waited_for")), (1, 0, 0));
    assert!(drain("grace_ns") < ns);
    // Asked as soon as nothing new can come; revoked when no walk can pin any more.
    let at = |line: &str| log.iter().position(|known| known == line).unwrap_or_else(|| panic!("no {line}: {log:?}"));
    assert!(at("stop_io: done") < at("asked task1") && at("asked task1") < at("kill_dax: done"));
    assert!(at("shootdown: done") < at("revoked task1") && at("revoked task1") < at("drain: done"));
    let [registration] = &report.registrations[..] else { panic!("{report}") };
    assert!(registration.revoked && registration.grace_ns >= GRACE_NS);
    let text = report.to_string();
    let line = format!("registration {} of task1 (8 pages): revoked after {} ns", region.key(), registration.grace_ns);
    assert!(text.contains(&line), "{text}");
    assert_eq!(engine.access(Access::Read).err(), Some(UseError::Revoked { key: region.key() }));
    // What the owner still has in its hands is harmless, also once the device is there again.
    drop(region);
    rig.assert_clean();
}

/// covers: S1 L6
#[test]
fn nobody_is_waited_for_where_the_device_has_gone() {
    let mut rig = rig();
    let told = Arc::new(Mutex::new(0));
    let count = told.clone();
    let owner: Arc<dyn RegionOwner> = Arc::new(move |_: &Notice| *count.lock().unwrap() += 1);
    let region = rig.register(4, 8, &owner).unwrap();
    // One that has been asked for before, by somebody else, and has its time still.
    let (engine, asked) = (region.reference(), rig.register(0, 4, &owner).unwrap());
    let map = rig.attached.as_ref().unwrap().map.clone();
    rig.mm.regions.ask(&map, &[mm::addr::PfnRange::new(map.ranges()[0].start(), 4).unwrap()], &mut |_| ());
    assert_eq!(*told.lock().unwrap(), 1);
    let (report, log, ns) = rig.remove_with(Env { cause: Cause::Gone, ..Env::default() });
    assert!(ns < GRACE_NS / 2, "{ns} ns");
    assert_eq!((report.cause, *told.lock().unwrap()), (Cause::Gone, 1), "nobody is told of memory that is not there");
    let drain = |name| fact(&report, Step::Drain, name);
    assert_eq!((drain("registrations_revoked"), drain("pins_waited_for")), (2, 0));
    // In the same order as ever: no walk can pin any more.
    let at = |line: &str| log.iter().position(|known| known == line).unwrap_or_else(|| panic!("no {line}: {log:?}"));
    assert!(at("shootdown: done") < at("revoked task1") && at("revoked task1") < at("drain: done"));
    assert!(report.to_string().starts_with("removal of dax0.0, which has gone"), "{report}");
    assert_eq!(engine.access(Access::Read).err(), Some(UseError::Revoked { key: region.key() }));
    drop((region, asked));
    rig.assert_clean();
}

/// covers: L6
#[test]
fn an_owner_that_gives_back_in_time_costs_the_removal_nothing() {
    let mut rig = rig();
    let kept: Arc<Mutex<Option<Region>>> = Arc::default();
    let inside = kept.clone();
    let owner: Arc<dyn RegionOwner> = Arc::new(move |_: &Notice| drop(inside.lock().unwrap().take()));
    *kept.lock().unwrap() = Some(rig.register(4, 8, &owner).unwrap());
    let (report, log, ns) = rig.remove();
    assert!(ns < GRACE_NS, "{ns} ns");
    assert_eq!(fact(&report, Step::KillDax, "registrations_asked"), 1);
    assert_eq!(fact(&report, Step::Drain, "registrations_revoked"), 0);
    assert!(!log.iter().any(|line| line.starts_with("revoked")), "{log:?}");
    assert!(report.to_string().contains("(8 pages): given back in time"), "{report}");
    rig.assert_clean();
}

/// covers: L6
#[test]
fn an_owner_can_give_back_at_any_time_before_the_end() {
    let mut rig = rig();
    let owner = idle();
    let kept = Arc::new(Mutex::new(Some(rig.register(4, 8, &owner).unwrap())));
    // It takes until after the shootdown.
    let env = Env {
        on_step: Some(Box::new(|record: &StepRecord| {
            if record.step == Step::Shootdown {
                drop(kept.lock().unwrap().take());
            }
        })),
        ..Env::default()
    };
    let (report, _, ns) = rig.remove_with(env);
    assert!(ns < GRACE_NS, "{ns} ns");
    assert_eq!(fact(&report, Step::Drain, "registrations_revoked"), 0);
    rig.assert_clean();
}

/// covers: L6
#[test]
fn an_owner_that_died_in_order_or_not_is_not_waited_for() {
    let mut rig = rig();
    let owner = idle();
    drop(rig.register(4, 8, &owner).unwrap());
    // This one leaves its registration behind: its space and its account go, and so does the owner.
    let left = rig.register(20, 8, &owner).unwrap();
    drop(owner);
    rig.task = None;
    let (report, _, ns) = rig.remove();
    assert!(ns < GRACE_NS, "{ns} ns");
    assert_eq!(fact(&report, Step::KillDax, "registrations_asked"), 1);
    assert_eq!(fact(&report, Step::Drain, "registrations_revoked"), 1);
    assert!(!report.idle, "a registration is a use of the device");
    drop(left);
    rig.assert_clean();
}

/// covers: L6
#[test]
fn many_owners_have_their_grace_at_the_same_time() {
    let mut rig = rig();
    let owner = idle();
    let regions: Vec<_> = (0..20).map(|nr| rig.register(nr * 8, 8, &owner).unwrap()).collect();
    let (report, _, ns) = rig.remove();
    assert!((GRACE_NS..GRACE_NS + 20_000).contains(&ns), "{ns} ns");
    assert_eq!(fact(&report, Step::Drain, "registrations_revoked"), 20);
    assert_eq!(report.registrations.len(), 20);
    drop(regions);
    rig.assert_clean();
}

/// However many another device has, a removal does not look at them, and not at one of a device that has gone.
/// covers: L6 R2
#[test]
fn a_removal_looks_at_the_registrations_of_its_own_device_and_no_others() {
    let mut rig = rig();
    let other = attach(&rig.mm, &[frames(START + 4 * GIB, 512)], PageSize::Size4K).unwrap();
    let elsewhere = Loaded::new(&rig.mm, 2, &other.file(OpenOptions::default()), 512);
    let owner = idle();
    let terms = Terms { flags: GupFlags::WRITE, grace_ns: GRACE_NS, account: &rig.account };
    let register = |nr| MemoryRegion::register(elsewhere.space(), page(nr), 1, &terms, Arc::downgrade(&owner)).unwrap();
    let stay: Vec<_> = (0..100).map(register).collect();
    let go: Vec<_> = (0..3).map(|nr| rig.register(nr, 1, &owner).unwrap()).collect();
    // One over two devices that a task maps side by side is on the list of both, and found by who looks at all once.
    let bridge = space(&rig.mm, "bridge");
    let mine = rig.attached.as_ref().unwrap().file(OpenOptions::exactly(PageSize::Size4K));
    let theirs = other.file(OpenOptions::exactly(PageSize::Size4K));
    bridge.map(page(0), PAGE_SIZE, Prot::USER_WRITE, &mine, 100).unwrap();
    bridge.map(page(1), PAGE_SIZE, Prot::USER_WRITE, &theirs, 100).unwrap();
    drop((mine, theirs));
    let both = MemoryRegion::register(&bridge, page(0), 2, &terms, Arc::downgrade(&owner)).unwrap();
    let mut listed = 0;
    rig.mm.regions.for_each(&mut |_| listed += 1);
    assert_eq!(listed, 104);
    let (report, _, _) = rig.remove();
    let looked_at = |report: &RemovalReport| fact(report, Step::KillDax, "registrations_looked_at");
    assert_eq!((fact(&report, Step::KillDax, "registrations_asked"), looked_at(&report)), (4, 4));
    drop((go, both, bridge));
    drop((stay, elsewhere));
    let report = rig.emu.on_cpu(0, || remove(&rig.mm, other.target(), Method::Ranged, &mut Env::default()));
    assert_eq!(looked_at(&report), 0);
    rig.assert_clean();
}

/// covers: L6
#[test]
fn another_device_keeps_its_registrations() {
    let mut rig = rig();
    let other = attach(&rig.mm, &[frames(START + 4 * GIB, 512)], PageSize::Size4K).unwrap();
    let elsewhere = Loaded::new(&rig.mm, 2, &other.file(OpenOptions::default()), 512);
    let owner = idle();
    let terms = Terms { flags: GupFlags::WRITE, grace_ns: GRACE_NS, account: &rig.account };
    let stays = MemoryRegion::register(elsewhere.space(), page(0), 512, &terms, Arc::downgrade(&owner)).unwrap();
    let goes = rig.register(0, 8, &owner).unwrap();
    let (report, _, _) = rig.remove();
    assert_eq!(fact(&report, Step::Drain, "registrations_revoked"), 1);
    assert!(goes.reference().access(Access::Read).is_err());
    assert!(stays.reference().access(Access::Write).is_ok());
    drop((stays, goes, elsewhere));
    let report = rig.emu.on_cpu(0, || remove(&rig.mm, other.target(), Method::Ranged, &mut Env::default()));
    assert_eq!(fact(&report, Step::KillDax, "registrations_asked"), 0);
    rig.assert_clean();
}

/// covers: L6 R12
#[test]
fn no_registration_is_made_once_its_device_is_going() {
    let mut rig = rig();
    rig.task.as_ref().unwrap().store(page(4), 1).unwrap();
    let owner = idle();
    // While it is being asked for another, and its pages are mapped still.
    let (mm, space) = (rig.mm.clone(), rig.task.as_ref().unwrap().space().clone());
    let (account, emu, second) = (rig.account.clone(), rig.emu.clone(), Arc::new(Mutex::new(None)));
    let result = second.clone();
    let asked: Arc<dyn RegionOwner> = Arc::new(move |_: &Notice| {
        let terms = Terms { flags: GupFlags::WRITE, grace_ns: GRACE_NS, account: &account };
        let other = idle();
        let error = emu.on_cpu(1, || MemoryRegion::register(&space, page(4), 1, &terms, Arc::downgrade(&other)).err());
        *result.lock().unwrap() = error;
        assert_eq!(mm.meta.totals().pins, 8, "and nothing is pinned by it");
    });
    let region = rig.register(40, 8, &asked).unwrap();
    let (report, _, _) = rig.remove();
    assert_eq!(*second.lock().unwrap(), Some(RegionError::Pin(GupError::SigBus(page(4), SigBusCause::DeviceGone))));
    assert_eq!(fact(&report, Step::KillDax, "registrations_asked"), 1);
    drop((region, owner, asked));
    rig.assert_clean();
}

/// covers: L6 R5
#[test]
fn without_memory_for_their_names_they_are_taken_back_all_the_same() {
    let mut rig = rig();
    let owner = idle();
    let regions: Vec<_> = (0..3).map(|nr| rig.register(nr * 8, 8, &owner).unwrap()).collect();
    rig.emu.limit_growth(0);
    let (report, _, _) = rig.remove();
    rig.emu.limit_growth(u64::MAX);
    assert_eq!(fact(&report, Step::KillDax, "registrations_asked"), 3);
    assert_eq!(fact(&report, Step::Drain, "registrations_revoked"), 3);
    assert_eq!(report.registrations, []);
    drop(regions);
    rig.assert_clean();
}

/// covers: D4 R5
#[test]
fn blocked_transfers_are_counted_whether_or_not_a_registration_is_on_the_report() {
    for (room, asked_before) in [(u64::MAX, false), (0, false), (u64::MAX, true)] {
        let mut rig = rig();
        let owner = idle();
        let region = rig.register(0, 8, &owner).unwrap();
        if asked_before {
            let map = rig.attached.as_ref().unwrap().map.clone();
            rig.mm.regions.ask(&map, map.ranges(), &mut |_| ());
        }
        rig.emu.limit_growth(room);
        let (report, _, _) = rig.remove();
        rig.emu.limit_growth(u64::MAX);
        assert_eq!(report.registrations.len(), usize::from(room > 0 && !asked_before));
        let drain = |name| fact(&report, Step::Drain, name);
        assert_eq!((drain("registrations_revoked"), drain("blocked_transfers")), (1, 1), "{room} {asked_before}");
        drop(region);
        rig.assert_clean();
    }
    // Where there is none the hardware is not asked.
    let (mut rig, mut env) = (rig(), Env::default());
    let (mm, target) = (rig.mm.clone(), rig.attached.take().unwrap().target());
    let report = rig.emu.on_cpu(0, || remove(&mm, target, Method::Ranged, &mut env));
    assert_eq!((fact(&report, Step::Drain, "blocked_transfers"), env.blocked_asked), (0, 0));
    rig.assert_clean();
}
