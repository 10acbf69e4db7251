//! Models of registrations: the very code of `mm::region`.
//!
//! Run with `RUSTFLAGS="--cfg loom" cargo test -p mm --release --test loom_region`.
//!
//! | model | property |
//! |---|---|
//! | `a_use_against_a_revocation`, `two_uses_against_a_revocation` | The pages are given back after every use that was let in; one that begins later is refused |
//! | `the_owner_against_the_kernel` | Exactly one gives the pages back, and neither returns before that is done |
//! | `a_device_that_is_let_in_against_a_revocation` | A device is cut off before the pages are given back, or was never let in |
//! | `two_that_ask_and_take_back` | Who finds the deadline passed knows when the registration was asked for |
//! | `a_registration_against_a_removal` | No registration outlives a removal that could not ask for it |
#![cfg(any(loom, shuttle))]

mod loom_machine;

use loom_machine::{LoomMachine, be, bring_up, explore, va};
use mm::addr::{PAGE_SIZE, PageSize, Pfn, PfnRange};
use mm::context::MmContext;
use mm::entry::Prot;
use mm::gup::GupFlags;
use mm::machine::IrqOff;
use mm::mapping::Mapping;
use mm::pagemap::{DevPagemap, MemoryKind};
use mm::region::device::{CutOff, DeviceAccess, DevicePlace};
use mm::region::gate::{By, Gate};
use mm::region::{MemoryRegion, Notice, RegionOwner, Terms};
use mm::space::{Access, AddressSpace, FaultError, FaultRequest, FaultTarget, MapError, VmOps};
use mm::sync::model::{self, Bound, UnsafeCell, sized, thread};
use mm::sync::{Arc, AtomicU32, Ordering};

/// A registration without pages: a cell stands for them. Uses read it; who gives the pages back writes it.
struct Registration {
    gate: Gate,
    pages: UnsafeCell<u64>,
    /// A device reaches the pages.
    mapped: AtomicU32,
}

// SAFETY: `pages` is what the models check: loom ends a model where two threads reach it without order.
unsafe impl Sync for Registration {}
// SAFETY: as above.
unsafe impl Send for Registration {}

impl Registration {
    fn new() -> Arc<Self> {
        Arc::new(Self { gate: Gate::new(), pages: UnsafeCell::new(1), mapped: AtomicU32::new(0) })
    }

    fn transfer(&self) -> Result<(), By> {
        let _entered = self.gate.enter()?;
        // SAFETY: the use keeps the pages; loom checks exactly that.
        self.pages.with(|pages| assert_eq!(unsafe { *pages }, 1, "used after they were given back"));
        Ok(())
    }

    /// As `mm::region::Region::close`. Answers whether it was this one that gave the pages back.
    fn close(&self, by: By) -> bool {
        if self.gate.close(by).is_none() {
            self.gate.wait_released(thread::yield_now);
            return false;
        }
        self.gate.wait_for_uses(thread::yield_now);
        // SAFETY: as in `transfer`.
        self.pages.with_mut(|pages| unsafe { *pages += 1 });
        self.gate.set_released();
        true
    }

    fn given_back(&self) -> u64 {
        // SAFETY: nobody uses the pages once they are given back; loom checks that whoever looks comes after it.
        self.pages.with(|pages| unsafe { *pages } - 1)
    }
}

fn spawn<R: Send + 'static>(
    registration: &Arc<Registration>,
    f: impl FnOnce(&Registration) -> R + Send + 'static,
) -> thread::JoinHandle<R> {
    let registration = registration.clone();
    thread::spawn(move || f(&registration))
}

/// covers: L6
#[test]
fn a_use_against_a_revocation() {
    model::explore(Bound::None, || {
        let registration = Registration::new();
        let engine = spawn(&registration, |registration| (0..sized(1, 4)).for_each(|_| _ = registration.transfer()));
        assert!(registration.close(By::Kernel));
        assert_eq!(registration.transfer(), Err(By::Kernel), "a use that begins afterwards");
        engine.join().unwrap();
        assert_eq!(registration.given_back(), 1);
    });
}

/// covers: L6
#[test]
fn two_uses_against_a_revocation() {
    explore(3, || {
        let registration = Registration::new();
        let engine = |_| spawn(&registration, |registration| _ = registration.transfer());
        let engines: Vec<_> = (0..sized(2, 5)).map(engine).collect();
        assert!(registration.close(By::Kernel));
        assert_eq!(registration.given_back(), 1);
        engines.into_iter().for_each(|engine| engine.join().unwrap());
        assert_eq!(registration.gate.uses(), 0, "who was refused has taken back what it had added");
    });
}

/// covers: L6
#[test]
fn the_owner_against_the_kernel() {
    model::explore(Bound::None, || {
        let registration = Registration::new();
        // A use that is in flight when the owner closes, or has ended, or is refused.
        let owner = spawn(&registration, |registration| {
            let won = registration.close(By::Owner);
            assert_eq!(registration.given_back(), 1, "the owner returned first");
            won
        });
        _ = registration.transfer();
        let kernel = registration.close(By::Kernel);
        assert_eq!(registration.given_back(), 1, "the kernel returned first");
        assert!(owner.join().unwrap() != kernel, "exactly one gives the pages back");
        assert_eq!(registration.gate.closed(), Some(if kernel { By::Kernel } else { By::Owner }));
    });
}

/// The translations of a device: while they are there it reaches the pages.
struct Translations(Arc<Registration>);

impl DeviceAccess for Translations {
    fn revoke(self: Box<Self>, _: By) -> CutOff {
        self.0.mapped.store(0, Ordering::Relaxed);
        CutOff { ranges: 1, ..CutOff::default() }
    }
}

/// covers: D2 D3
#[test]
fn a_device_that_is_let_in_against_a_revocation() {
    model::explore(Bound::None, || {
        let (registration, place) = (Registration::new(), Arc::new(DevicePlace::new()));
        let driver = {
            let (registration, place) = (registration.clone(), place.clone());
            thread::spawn(move || {
                let map = || -> Result<Box<dyn DeviceAccess>, ()> {
                    registration.mapped.store(1, Ordering::Relaxed);
                    Ok(Box::new(Translations(registration.clone())))
                };
                place.admit(&registration.gate, map).is_ok()
            })
        };
        // As `mm::region::Region::close`.
        assert!(registration.gate.close(By::Kernel).is_some());
        registration.gate.wait_for_uses(thread::yield_now);
        let cut_off = place.cut_off(By::Kernel);
        // Relaxed: the uses that were waited for come before this.
        assert_eq!(registration.mapped.load(Ordering::Relaxed), 0, "given back while a device reaches the pages");
        registration.gate.set_released();
        let admitted = driver.join().unwrap();
        assert_eq!(cut_off.is_some(), admitted, "a device was let in, and not cut off");
    });
}

/// A file whose page n is frame n.
struct Identity(Arc<Mapping<LoomMachine>>);

impl VmOps<LoomMachine> for Identity {
    fn fault(
        &self,
        request: &FaultRequest,
        install: &mut dyn FnMut(FaultTarget) -> Result<(), FaultError>,
    ) -> Result<(), FaultError> {
        install(FaultTarget { pfn: Pfn::new(request.offset_pages), size: PageSize::Size4K })
    }
    fn mmap(&self, _offset_pages: u64, _nr_pages: u64, insert: &mut dyn FnMut()) -> Result<(), MapError> {
        insert();
        Ok(())
    }
    fn mapping(&self) -> &Arc<Mapping<LoomMachine>> {
        &self.0
    }
    fn kind(&self) -> MemoryKind {
        MemoryKind::DevDax
    }
}

/// A device, and a space that maps its first page, which is present.
struct Rig {
    mm: Arc<MmContext<LoomMachine>>,
    frames: [PfnRange; 1],
    map: Arc<DevPagemap>,
    file: Arc<dyn VmOps<LoomMachine>>,
    space: Arc<AddressSpace<LoomMachine>>,
}

/// Made by CPU 0.
fn rig() -> Rig {
    be(0);
    let mm = MmContext::new(LoomMachine::new(2, 2), 2);
    bring_up(&mm.machine, &mm.shootdown);
    let frames = [PfnRange::new(Pfn::new(0), 1024).unwrap()];
    let map = DevPagemap::new(MemoryKind::DevDax, frames).unwrap();
    mm.meta.register(&map).unwrap();
    let file: Arc<dyn VmOps<LoomMachine>> = Arc::new(Identity(Mapping::new(&mm, &map)));
    let space = AddressSpace::new(&mm, "model").unwrap();
    space.map(va(0, 0), PAGE_SIZE, Prot::USER_WRITE, &file, 0).unwrap();
    space.handle_fault(va(0, 0), Access::Write).unwrap();
    Rig { mm, frames, map, file, space }
}

/// Two that want the same registration back, as where it lies on two devices: whoever finds its deadline passed knows when it was
/// asked for.
///
/// covers: L6
#[test]
fn two_that_ask_and_take_back() {
    explore(3, || {
        let Rig { mm, frames, map, file: _file, space } = rig();
        let account = mm.pins.open_account("model", 1);
        // An owner that has ended: it has no grace.
        let owner: Arc<dyn RegionOwner> = Arc::new(|_: &Notice| ());
        let terms = Terms { flags: GupFlags::WRITE, grace_ns: 0, account: &account };
        let region = MemoryRegion::register(&space, va(0, 0), 1, &terms, Arc::downgrade(&owner)).unwrap();
        drop(owner);
        let take = |cpu: usize| {
            let (mm, map) = (mm.clone(), map.clone());
            move || {
                be(cpu);
                mm.regions.ask(&map, &frames, &mut |_| ());
                mm.regions.take_back(&mm.machine, &map, &frames, &mut |_| ());
            }
        };
        let other = thread::spawn(take(1));
        take(0)();
        other.join().unwrap();
        assert!(region.reference().access(Access::Read).is_err());
        assert_eq!(mm.meta.totals().pins, 0);
        drop((region, space));
    });
}

/// covers: L6 R12
#[test]
fn a_registration_against_a_removal() {
    explore(3, || {
        let Rig { mm, frames, map, file: _file, space } = rig();
        be(1);
        mm.shootdown.switch_to(&IrqOff::new(&mm.machine), Some(space.tlb()));
        be(0);
        let account = mm.pins.open_account("model", 1);
        let registrar = {
            let (space, account) = (space.clone(), account.clone());
            thread::spawn(move || {
                be(1);
                let owner: Arc<dyn RegionOwner> = Arc::new(|_: &Notice| ());
                let terms = Terms { flags: GupFlags::WRITE, grace_ns: 0, account: &account };
                let owner = Arc::downgrade(&owner);
                let region = MemoryRegion::register(&space, va(0, 0), 1, &terms, owner);
                region.ok()
            })
        };
        mm.meta.kill(&map);
        mm.regions.ask(&map, &frames, &mut |_| ());
        let region = registrar.join().unwrap();
        let mut unasked = 0;
        mm.regions.for_each(&mut |region| unasked += u64::from(region.deadline_ns.is_none()));
        if unasked != 0 {
            // Not dropped while this unwinds: that would wait, in a model that has ended.
            std::mem::forget((region, space, account));
            panic!("a registration is left for which nobody has asked");
        }
        mm.regions.take_back(&mm.machine, &map, &frames, &mut |_| ());
        let usable = region.as_ref().is_some_and(|region| region.reference().access(Access::Read).is_ok());
        assert!(!usable, "a registration outlives the removal");
        assert_eq!(mm.meta.totals().pins, 0);
        be(1);
        mm.shootdown.switch_to(&IrqOff::new(&mm.machine), None);
        be(0);
        drop((region, space));
    });
}
