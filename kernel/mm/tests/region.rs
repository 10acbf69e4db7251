//! Registrations: long-term pins that can be taken back, and what becomes of who does not give them back.
#![cfg(not(loom))]

mod common;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use common::{BASE, DEVICE_START, Device, EmuContext, Space, machine, page, space_with, store_to};
use mm::account::{OverLimit, PinAccount};
use mm::addr::{PAGE_SIZE, PageSize, PfnRange};
use mm::entry::Prot;
use mm::gup::{GupError, GupFlags};
use mm::machine::{Machine, Point};
use mm::pagemap::MemoryKind;
use mm::region::device::{CutOff, DeviceAccess};
use mm::region::gate::{By, Gate};
use mm::region::{MAX_GRACE_NS, MemoryRegion, Notice, RegionError, RegionOwner, TakeBack, Terms, UseError};
use mm::space::{Access, SigBusCause};
use testkit::emu::{EmuMachine, Event};

type Region = MemoryRegion<EmuMachine>;

const GRACE_NS: u64 = 20_000;

/// An owner that only listens.
#[derive(Default)]
struct Listener {
    notices: Mutex<Vec<Notice>>,
}

impl RegionOwner for Listener {
    fn asked(&self, notice: &Notice) {
        self.notices.lock().unwrap().push(*notice);
    }
}

struct Rig {
    emu: EmuMachine,
    mm: Arc<EmuContext>,
    device: Arc<Device>,
    space: Arc<Space>,
    account: Arc<PinAccount>,
    owner: Arc<Listener>,
    /// Somebody was told that a use takes long.
    slow: AtomicBool,
    /// How long the owner of the last one that was revoked had.
    after_ns: AtomicU64,
}

/// A device-dax of which 1024 pages are mapped and loaded on CPU 0.
fn rig() -> Rig {
    let (emu, mm) = machine(3);
    let device = Device::dax_with(&mm, 4 << 18, PageSize::Size2M);
    let space = space_with(&mm, &device, 1024, &[0]);
    let account = mm.pins.open_account("account", 2048);
    Rig {
        emu,
        mm,
        device,
        space,
        account,
        owner: Arc::default(),
        slow: AtomicBool::new(false),
        after_ns: AtomicU64::new(0),
    }
}

impl Rig {
    fn terms(&self) -> Terms<'_> {
        Terms { flags: GupFlags::WRITE, grace_ns: GRACE_NS, account: &self.account }
    }
    fn owner(&self) -> Weak<dyn RegionOwner> {
        let owner: Arc<dyn RegionOwner> = self.owner.clone();
        Arc::downgrade(&owner)
    }
    fn register(&self, nr: u64, nr_pages: u64) -> Result<Region, RegionError> {
        MemoryRegion::register(&self.space, page(nr), nr_pages, &self.terms(), self.owner())
    }
    fn frames(&self, nr: u64, nr_pages: u64) -> [PfnRange; 1] {
        [PfnRange::new(self.device.pfn(nr), nr_pages).unwrap()]
    }
    fn ask(&self, nr: u64, nr_pages: u64) -> u64 {
        self.mm.regions.ask(&self.device.pages, &self.frames(nr, nr_pages), &mut |_| ()).asked
    }
    /// Takes back; answers the keys of those that were revoked, and the uses that were waited for.
    fn take_back(&self, nr: u64, nr_pages: u64) -> Vec<(u64, u64)> {
        let mut revoked = Vec::new();
        let frames = self.frames(nr, nr_pages);
        self.mm.regions.take_back(&self.emu, &self.device.pages, &frames, &mut |told| match told {
            TakeBack::Waits(_) => self.slow.store(true, Ordering::SeqCst),
            TakeBack::Revoked(one) => {
                self.after_ns.store(one.after_ns, Ordering::SeqCst);
                revoked.push((one.region.key, one.uses));
            }
        });
        revoked
    }
    fn notices(&self) -> Vec<Notice> {
        self.owner.notices.lock().unwrap().clone()
    }
    fn pins(&self) -> u64 {
        self.mm.meta.totals().pins
    }
    fn listed(&self) -> Vec<u64> {
        let mut keys = Vec::new();
        self.mm.regions.for_each(&mut |region| keys.push(region.key));
        keys
    }
}

/// covers: L2 L6
#[test]
fn a_registration_holds_its_pages_until_its_owner_gives_it_back() {
    let rig = rig();
    rig.emu.on_cpu(0, || {
        let region = rig.register(500, 24).unwrap();
        let engine = region.reference();
        assert_eq!((rig.pins(), rig.account.exempt_pages()), (24, 24));
        let transfer = engine.access(Access::Write).unwrap();
        assert_eq!(transfer.frame(0), Some(rig.device.pfn(500)));
        assert_eq!(transfer.frame(23), Some(rig.device.pfn(523)));
        assert_eq!((transfer.frame(24), transfer.frame(u64::MAX), transfer.nr_pages()), (None, None, 24));
        drop(transfer);
        // Neither the mapping nor the space has to stay.
        rig.space.unmap(BASE, 1024 * PAGE_SIZE).unwrap();
        assert_eq!(engine.access(Access::Read).unwrap().frame(1), Some(rig.device.pfn(501)));
        let key = region.key();
        region.deregister();
        let error = engine.access(Access::Read).err();
        assert_eq!(error, Some(UseError::GivenBack { key }));
        assert!(error.unwrap().to_string().contains("given back by its owner"));
        assert_eq!((rig.pins(), rig.account.exempt_pages(), rig.listed()), (0, 0, vec![]));
    });
}

/// covers: L6
#[test]
fn who_registered_for_reading_cannot_write() {
    let rig = rig();
    rig.emu.on_cpu(0, || {
        rig.space.protect(BASE, 1024 * PAGE_SIZE, Prot::USER_READ).unwrap();
        let error = rig.register(0, 4).err();
        assert_eq!(error, Some(RegionError::Pin(GupError::AccessDenied(page(0)))));
        let terms = Terms { flags: GupFlags::empty(), ..rig.terms() };
        let region = MemoryRegion::register(&rig.space, page(0), 4, &terms, rig.owner()).unwrap();
        let engine = region.reference();
        assert_eq!(engine.access(Access::Write).err(), Some(UseError::ReadOnly { key: region.key() }));
        assert_eq!(engine.check(Access::Write), Err(UseError::ReadOnly { key: region.key() }));
        assert_eq!(engine.check(Access::Read), Ok(()));
        assert!(engine.access(Access::Read).is_ok());
    });
}

/// covers: L1 L2 L3
#[test]
fn a_long_term_request_gives_back_everything_where_it_meets_a_file_system() {
    let rig = rig();
    let file = Device::new(&rig.mm, DEVICE_START.add(4 << 18), 64, MemoryKind::FsDax, PageSize::Size4K);
    rig.space.map(page(1024), 8 * PAGE_SIZE, Prot::USER_WRITE, &file.ops(), 0).unwrap();
    rig.emu.on_cpu(0, || {
        // Present, so that the fast path gets as far as the file; then not, so that the slow one does.
        (1000..1032).for_each(|nr| store_to(&rig.space, &rig.emu, page(nr), nr).unwrap());
        for (nr, nr_pages) in [(1000, 32), (1023, 2), (1024, 1), (400, 630)] {
            let error = rig.register(nr, nr_pages).err();
            assert_eq!(error, Some(RegionError::Pin(GupError::NotSupported(page(1024)))), "page {nr}");
            assert_eq!((rig.pins(), rig.listed().len()), (0, 0), "also what was pinned before");
        }
        let text = RegionError::Pin(GupError::NotSupported(page(1024))).to_string();
        assert!(text.starts_with("not supported: the memory at 0x"), "{text}");
        rig.space.unmap(page(1000), 24 * PAGE_SIZE).unwrap();
        rig.space.map(page(1000), 24 * PAGE_SIZE, Prot::USER_WRITE, &rig.device.ops(), 1000).unwrap();
        assert_eq!(rig.register(1000, 32).err(), Some(RegionError::Pin(GupError::NotSupported(page(1024)))));
        assert_eq!((rig.pins(), rig.account.used_pages(), rig.account.exempt_pages()), (0, 0, 0));
        // Nor is anything else meant by a flag that a registration sets anyway.
        let terms = Terms { flags: GupFlags::WRITE | GupFlags::LONGTERM, ..rig.terms() };
        let register = |nr| MemoryRegion::register(&rig.space, page(nr), 1, &terms, rig.owner());
        assert_eq!(register(1024).err(), Some(RegionError::Pin(GupError::NotSupported(page(1024)))));
        assert!(register(1000).is_ok());
        assert!(rig.register(1000, 24).is_ok(), "what is device-dax may");
    });
}

/// covers: L4
#[test]
fn what_does_not_fit_is_refused_and_leaves_nothing() {
    let rig = rig();
    rig.emu.on_cpu(0, || {
        let refused = |nr, nr_pages| rig.register(nr, nr_pages).err();
        assert_eq!(refused(0, 0), Some(RegionError::Pin(GupError::NoPages)));
        assert_eq!(refused(0, u64::MAX), Some(RegionError::Pin(GupError::BadRange)));
        assert_eq!(refused(1020, 8), Some(RegionError::Pin(GupError::NotMapped(page(1024)))));
        let terms = Terms { grace_ns: MAX_GRACE_NS + 1, ..rig.terms() };
        let error = MemoryRegion::register(&rig.space, page(0), 1, &terms, rig.owner()).err().unwrap();
        assert_eq!(error, RegionError::Grace { wanted_ns: 1_000_000_001 });
        assert_eq!(error.to_string(), "a grace period of 1000000001 ns; expected at most 1000000000");
        rig.mm.pins.exempt_reserved(false);
        rig.account.set_limit_pages(7);
        let over = OverLimit { limit_pages: 7, used_pages: 0, wanted_pages: 8 };
        assert_eq!(refused(0, 8), Some(RegionError::Pin(GupError::OverLimit(over))));
        // Every list that has to grow: of the runs, their copies, and the registrations.
        rig.account.set_limit_pages(8);
        let mut failures = 0;
        loop {
            rig.emu.limit_growth(failures);
            let result = rig.register(0, 8);
            rig.emu.limit_growth(u64::MAX);
            if let Err(error) = result {
                assert_eq!(error, RegionError::Pin(GupError::OutOfMemory));
                assert_eq!((rig.pins(), rig.account.used_pages(), rig.listed().len()), (0, 0, 0));
                failures += 1;
            } else {
                break;
            }
        }
        assert!(failures >= 3, "{failures} failures");
        assert_eq!((rig.pins(), rig.account.used_pages()), (0, 0));
    });
}

/// covers: L6
#[test]
fn an_owner_that_gives_back_in_time_is_not_revoked() {
    let rig = rig();
    // It lets go where it is told: in the kernel's task, with no lock in its way.
    let kept: Arc<Mutex<Option<Region>>> = Arc::default();
    let inside = kept.clone();
    let owner: Arc<dyn RegionOwner> = Arc::new(move |_: &Notice| drop(inside.lock().unwrap().take()));
    rig.emu.on_cpu(0, || {
        let region = MemoryRegion::register(&rig.space, page(0), 8, &rig.terms(), Arc::downgrade(&owner)).unwrap();
        let (key, engine) = (region.key(), region.reference());
        *kept.lock().unwrap() = Some(region);
        let began = rig.emu.now_ns();
        assert_eq!(rig.ask(4, 1), 1);
        assert_eq!(rig.take_back(4, 1), []);
        assert!(rig.emu.now_ns() - began < 100, "nobody is waited for");
        assert_eq!(engine.access(Access::Read).err(), Some(UseError::GivenBack { key }));
        assert_eq!(rig.pins(), 0);
    });
}

/// covers: L6
#[test]
fn an_owner_that_does_nothing_has_its_grace_period_and_no_more() {
    let rig = rig();
    rig.emu.on_cpu(0, || {
        let region = rig.register(0, 8).unwrap();
        let elsewhere = rig.register(600, 8).unwrap();
        let engine = region.reference();
        let began = rig.emu.now_ns();
        assert_eq!(rig.ask(7, 2), 1);
        assert_eq!(rig.ask(0, 1024), 1, "the other one; who was asked is not asked again");
        let notices = rig.notices();
        assert_eq!(notices.iter().map(|notice| notice.key).collect::<Vec<_>>(), [region.key(), elsewhere.key()]);
        // Until the deadline it works as ever.
        assert!(engine.access(Access::Write).is_ok());
        assert_eq!(rig.take_back(7, 2), [(region.key(), 0)]);
        let now = rig.emu.now_ns();
        assert!(now >= notices[0].deadline_ns && notices[0].deadline_ns >= began + GRACE_NS, "{now} {notices:?}");
        assert!(now < began + GRACE_NS + 1000, "no longer than the grace period: {} ns", now - began);
        let error = engine.access(Access::Read).err();
        assert_eq!(error, Some(UseError::Revoked { key: region.key() }));
        assert!(error.unwrap().to_string().contains("taken back by the kernel"));
        assert_eq!((rig.pins(), rig.listed()), (8, vec![elsewhere.key()]), "by range: the other one stays");
        assert!(elsewhere.reference().access(Access::Write).is_ok());
        // The owner's handle is worth nothing any more, and harmless.
        drop(region);
        assert_eq!(rig.pins(), 8);
    });
}

/// covers: L6
#[test]
fn an_owner_that_died_and_left_its_registration_behind_is_not_waited_for() {
    let rig = rig();
    rig.emu.on_cpu(0, || {
        let owner: Arc<dyn RegionOwner> = Arc::new(Listener::default());
        let region = MemoryRegion::register(&rig.space, page(0), 8, &rig.terms(), Arc::downgrade(&owner)).unwrap();
        let (key, engine) = (region.key(), region.reference());
        drop(owner);
        let began = rig.emu.now_ns();
        assert_eq!((rig.ask(0, 8), rig.take_back(0, 8)), (1, vec![(key, 0)]));
        assert!(rig.emu.now_ns() - began < 100);
        assert_eq!(engine.access(Access::Read).err(), Some(UseError::Revoked { key }));
        // One that died in order has given it back.
        drop(region);
        let region = rig.register(0, 8).unwrap();
        drop(region);
        assert_eq!((rig.ask(0, 8), rig.take_back(0, 8), rig.pins()), (0, vec![], 0));
    });
}

/// What a device has been given: at its end it notes how many pages are still pinned.
struct Translations {
    mm: Arc<EmuContext>,
    pins_at_revoke: Arc<Mutex<Vec<u64>>>,
    ended_by: Arc<Mutex<Vec<By>>>,
}

impl DeviceAccess for Translations {
    fn revoke(self: Box<Self>, by: By) -> CutOff {
        self.ended_by.lock().unwrap().push(by);
        self.pins_at_revoke.lock().unwrap().push(self.mm.meta.totals().pins);
        CutOff { ranges: 1, leaves: 8, commands: 2, ns: 3 }
    }
}

/// covers: D2
#[test]
fn a_device_is_cut_off_before_the_pages_are_given_back() {
    let rig = rig();
    rig.emu.on_cpu(0, || {
        let (pins_at_revoke, ended_by) = (Arc::default(), Arc::<Mutex<Vec<By>>>::default());
        let map = |frames: &[PfnRange], writable| -> Result<Box<dyn DeviceAccess>, UseError> {
            assert_eq!((frames.len(), frames[0].start(), writable), (1, rig.device.pfn(0), true));
            Ok(Box::new(Translations {
                mm: rig.mm.clone(),
                pins_at_revoke: Arc::clone(&pins_at_revoke),
                ended_by: Arc::clone(&ended_by),
            }))
        };
        // By the kernel, which hears what it has cost.
        let region = rig.register(0, 8).unwrap();
        region.admit(map).unwrap();
        rig.ask(0, 8);
        let mut cut_off = None;
        let ranges = rig.device.pages.ranges();
        rig.mm.regions.take_back(&rig.emu, &rig.device.pages, ranges, &mut |told| {
            if let TakeBack::Revoked(revoked) = told {
                cut_off = revoked.cut_off;
            }
        });
        assert_eq!(cut_off, Some(CutOff { ranges: 1, leaves: 8, commands: 2, ns: 3 }));
        assert_eq!((rig.pins(), pins_at_revoke.lock().unwrap().drain(..).collect::<Vec<_>>()), (0, vec![8]));
        // By its owner.
        let region = rig.register(0, 4).unwrap();
        region.admit(map).unwrap();
        region.deregister();
        assert_eq!((rig.pins(), pins_at_revoke.lock().unwrap().drain(..).collect::<Vec<_>>()), (0, vec![4]));
        assert_eq!(*ended_by.lock().unwrap(), [By::Kernel, By::Owner], "and hears who ends it");
    });
}

/// covers: D1
#[test]
fn a_registration_that_is_closed_lets_no_device_in() {
    let rig = rig();
    rig.emu.on_cpu(0, || {
        let (pins_at_revoke, maps) = (Arc::<Mutex<Vec<u64>>>::default(), AtomicU64::new(0));
        let ended_by = Arc::<Mutex<Vec<By>>>::default();
        let map = |_: &[PfnRange], _| -> Result<Box<dyn DeviceAccess>, UseError> {
            maps.fetch_add(1, Ordering::Relaxed);
            Ok(Box::new(Translations {
                mm: rig.mm.clone(),
                pins_at_revoke: Arc::clone(&pins_at_revoke),
                ended_by: Arc::clone(&ended_by),
            }))
        };
        let region = rig.register(0, 8).unwrap();
        let key = region.key();
        rig.ask(0, 8);
        rig.take_back(0, 8);
        assert_eq!(region.admit(map), Err(UseError::Revoked { key }));
        assert_eq!(maps.load(Ordering::Relaxed), 0, "nothing is mapped for a registration that is closed");
        // Nor does one that has a device.
        let region = rig.register(0, 8).unwrap();
        region.admit(map).unwrap();
        let refused = region.admit(map).unwrap_err();
        assert_eq!(refused, UseError::Occupied { key: region.key() });
        assert!(refused.to_string().contains("has a device already"), "{refused}");
        assert_eq!(pins_at_revoke.lock().unwrap().drain(..).count(), 1, "what was mapped for the second is taken away");
        drop(region);
        assert_eq!((rig.pins(), pins_at_revoke.lock().unwrap().len()), (0, 1));
        // One that cannot be mapped leaves nothing.
        let region = rig.register(0, 8).unwrap();
        assert_eq!(region.admit(|_, _| Err(UseError::ReadOnly { key: 7 })), Err(UseError::ReadOnly { key: 7 }));
        drop(region);
        assert_eq!((rig.pins(), pins_at_revoke.lock().unwrap().len()), (0, 1));
    });
}

/// covers: L6
#[test]
fn a_use_in_flight_is_waited_for() {
    let rig = rig();
    let rig = Arc::new(rig);
    rig.emu.clone().on_cpu(0, || {
        let region = rig.register(0, 8).unwrap();
        let engine = region.reference();
        let transfer = engine.access(Access::Write).unwrap();
        rig.ask(0, 8);
        let inner = rig.clone();
        let remover = rig.emu.start(1, move || inner.take_back(0, 8));
        // Well after the deadline: it is closed to others, and the pages are there.
        rig.emu.advance_clock(10 * GRACE_NS);
        assert!(!rig.emu.let_run(1, &remover));
        assert_eq!(engine.access(Access::Read).err(), Some(UseError::Revoked { key: region.key() }));
        // The question is no use: nobody waits for who asks it.
        assert_eq!(engine.check(Access::Read), Err(UseError::Revoked { key: region.key() }));
        assert_eq!((rig.pins(), transfer.frame(7)), (8, Some(rig.device.pfn(7))));
        // One that takes long is spoken of.
        assert!(!rig.slow.load(Ordering::SeqCst));
        rig.emu.advance_clock(10_000_000);
        assert!(!rig.emu.let_run(1, &remover) && rig.slow.load(Ordering::SeqCst));
        drop(transfer);
        assert_eq!(rig.emu.finish(remover), [(region.key(), 1)]);
        assert_eq!(rig.pins(), 0);
        // What a transfer took longer is not its owner's time.
        let after_ns = rig.after_ns.load(Ordering::SeqCst);
        assert!((10 * GRACE_NS..10_000_000).contains(&after_ns), "{after_ns}");
    });
}

/// Who closes is told of the uses that there were then: not of one that ends before he waits, nor of a latecomer.
///
/// covers: L6
#[test]
fn closing_counts_the_uses_of_that_moment() {
    let gate = Gate::new();
    let uses = [gate.enter().unwrap(), gate.enter().unwrap()];
    assert_eq!(gate.close(By::Kernel), Some(2));
    drop(uses);
    assert_eq!(gate.enter().err(), Some(By::Kernel));
    gate.wait_for_uses(|| panic!("nobody is left to wait for"));
    assert_eq!((gate.close(By::Owner), gate.closed()), (None, Some(By::Kernel)), "once, for ever");
}

/// covers: L6
#[test]
fn an_owner_that_lets_go_while_it_is_revoked_comes_second() {
    let rig = Arc::new(rig());
    rig.emu.clone().on_cpu(0, || {
        let region = rig.register(0, 8).unwrap();
        let (key, engine) = (region.key(), region.reference());
        let transfer = engine.access(Access::Write).unwrap();
        rig.ask(0, 8);
        rig.emu.advance_clock(GRACE_NS);
        let inner = rig.clone();
        let remover = rig.emu.start(1, move || inner.take_back(0, 8));
        let gone = Arc::new(AtomicBool::new(false));
        let (flag, inner) = (gone.clone(), rig.clone());
        let owner = rig.emu.start(2, move || {
            region.deregister();
            flag.store(true, Ordering::SeqCst);
            inner.pins()
        });
        assert!(!rig.emu.let_run(2, &owner) && !gone.load(Ordering::SeqCst), "its pages are in use still");
        drop(transfer);
        assert_eq!(rig.emu.finish(remover), [(key, 1)]);
        assert_eq!(rig.emu.finish(owner), 0, "when it returns the pages are given back, by whomever");
    });
}

/// covers: L6
#[test]
fn the_kernel_comes_second_where_the_owner_is_giving_it_back() {
    let rig = Arc::new(rig());
    rig.emu.clone().on_cpu(0, || {
        let region = rig.register(0, 8).unwrap();
        let engine = region.reference();
        let transfer = engine.access(Access::Write).unwrap();
        let owner = rig.emu.start(2, move || region.deregister());
        rig.ask(0, 8);
        rig.emu.advance_clock(GRACE_NS);
        let inner = rig.clone();
        let remover = rig.emu.start(1, move || (inner.take_back(0, 8), inner.pins()));
        assert!(!rig.emu.let_run(1, &remover) && !rig.emu.let_run(2, &owner));
        drop(transfer);
        assert_eq!(rig.emu.finish(remover), (vec![], 0), "nothing was revoked, nothing is pinned");
        rig.emu.finish(owner);
    });
}

/// covers: L6 R12
#[test]
fn a_registration_that_a_removal_could_not_ask_for_is_refused() {
    let rig = Arc::new(rig());
    let asked = Arc::new(AtomicU64::new(u64::MAX));
    // The pages are pinned, and the registration is not on the list yet: now the device begins to go.
    rig.emu.at(0, Event::At(Point::RegionPinned), 1, {
        let (rig, asked) = (rig.clone(), asked.clone());
        move || {
            rig.mm.meta.kill(&rig.device.pages);
            asked.store(rig.ask(0, 1024), Ordering::SeqCst);
        }
    });
    let result = rig.emu.on_cpu(0, || rig.register(0, 8).err());
    rig.emu.assert_hooks_ran();
    assert_eq!(asked.load(Ordering::SeqCst), 0);
    assert_eq!(result, Some(RegionError::Pin(GupError::SigBus(page(0), SigBusCause::DeviceGone))));
    assert_eq!((rig.pins(), rig.listed().len(), rig.account.exempt_pages()), (0, 0, 0));
}

/// covers: L7
#[test]
fn the_lists_say_who_has_registered_what() {
    let rig = rig();
    rig.mm.pins.switch(true);
    rig.emu.on_cpu(0, || {
        let region = rig.register(500, 24).unwrap();
        let engine = region.reference();
        let transfer = engine.access(Access::Read).unwrap();
        rig.ask(500, 1);
        let mut lines = Vec::new();
        rig.mm.regions.for_each(&mut |info| {
            assert_eq!((info.uses, info.nr_pages, info.grace_ns), (1, 24, GRACE_NS));
            assert_eq!(info.deadline_ns, Some(rig.notices()[0].deadline_ns));
            lines.push(info.to_string());
        });
        rig.mm.pins.for_each(&mut |record| lines.push(record.describe(record.since_ns).to_string()));
        let key = region.key();
        let first = format!("registration {key} of test (24 pages from frame 0x1001f4, made at mm/tests/region.rs:");
        let first = first.replace("mm/tests", "tests");
        assert!(lines[0].replace("kernel/mm/", "").starts_with(&first), "{}", lines[0]);
        assert!(lines[1].contains(&format!("pinned long-term (registration {key}) by test")), "{}", lines[1]);
        assert!(lines[1].ends_with("; account account: 0 pages count, 24 are exempt"), "{}", lines[1]);
        drop(transfer);
    });
}

/// covers: P1
#[test]
fn who_holds_a_page_that_is_lost_is_found_with_its_address() {
    let rig = rig();
    let (low, high) = (rig.register(0, 10).unwrap(), rig.register(5, 600).unwrap());
    let over = |nr: u64| {
        let mut found = Vec::new();
        rig.mm.regions.for_each_over(&rig.device.pages, rig.device.pfn(nr), &mut |info, addr| {
            assert_eq!((info.space, info.owner), (rig.space.id(), "test"));
            found.push((info.key, addr));
        });
        found
    };
    assert_eq!(over(4), [(low.key(), page(4))]);
    assert_eq!(over(9), [(low.key(), page(9)), (high.key(), page(9))]);
    assert_eq!(over(604), [(high.key(), page(604))]);
    assert_eq!(over(605), []);
    drop(high);
    assert_eq!(over(604), []);
}

/// covers: M5
#[test]
fn what_is_lost_is_not_registered_be_it_one_sector() {
    let rig = rig();
    let sectors = mm::pagemap::sectors_of(rig.device.pfn(20), 1).unwrap();
    rig.device.pages.lose(mm::run_set::Run::with_len(sectors.first() + 7, 1).unwrap());
    let lost = RegionError::Pin(GupError::SigBus(page(20), SigBusCause::Poisoned));
    assert_eq!(rig.register(20, 1).err(), Some(lost));
    assert_eq!(rig.register(18, 4).err(), Some(lost));
    assert!(rig.register(21, 4).is_ok());
}
