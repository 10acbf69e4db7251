//! Registrations with two threads, small enough for Miri: see `miri_store.rs`. The pages of a registration are plain
//! memory here: Miri reports a use that is not ordered before they are given back.
#![cfg(not(any(loom, shuttle)))]

mod common;

use std::cell::UnsafeCell;
use std::sync::Arc;
use std::thread;

use common::{Device, machine_with, page, space_with, store_to};
use mm::addr::{PageSize, PfnRange};
use mm::gup::GupFlags;
use mm::region::gate::{By, Gate};
use mm::region::{MemoryRegion, Notice, RegionOwner, Terms};
use mm::space::Access;
use testkit::emu::Config;

const ROUNDS: usize = if cfg!(miri) { 12 } else { 2_000 };

struct Registration {
    gate: Gate,
    pages: UnsafeCell<u64>,
}

// SAFETY: the gate orders who reaches `pages`; that it does is what is tested.
unsafe impl Sync for Registration {}

impl Registration {
    fn new() -> Self {
        Self { gate: Gate::new(), pages: UnsafeCell::new(1) }
    }

    fn transfer(&self) -> Result<(), By> {
        let _entered = self.gate.enter()?;
        // SAFETY: the use keeps the pages.
        assert_eq!(unsafe { *self.pages.get() }, 1, "used after they were given back");
        Ok(())
    }

    fn close(&self, by: By) -> bool {
        if self.gate.close(by).is_none() {
            self.gate.wait_released(thread::yield_now);
            return false;
        }
        self.gate.wait_for_uses(thread::yield_now);
        // SAFETY: no use is left, and nobody else gives the pages back.
        unsafe { *self.pages.get() += 1 };
        self.gate.set_released();
        true
    }

    fn given_back(&self) -> u64 {
        // SAFETY: who looks here has returned from `close`.
        unsafe { *self.pages.get() - 1 }
    }
}

/// covers: L6
#[test]
fn a_use_against_a_revocation() {
    for _ in 0..ROUNDS {
        let registration = Registration::new();
        thread::scope(|scope| {
            scope.spawn(|| (0..2).for_each(|_| _ = registration.transfer()));
            assert!(registration.close(By::Kernel));
            assert_eq!(registration.given_back(), 1);
        });
    }
}

/// covers: L6
#[test]
fn the_owner_against_the_kernel() {
    for _ in 0..ROUNDS {
        let registration = Registration::new();
        let close = |by| {
            let won = registration.close(by);
            assert_eq!(registration.given_back(), 1, "returned before the pages were given back");
            won
        };
        thread::scope(|scope| {
            let owner = scope.spawn(|| close(By::Owner));
            let kernel = close(By::Kernel);
            assert!(owner.join().unwrap() != kernel, "exactly one gives the pages back");
        });
    }
}

/// A whole registration, with its pins and its place on the list, against a removal. covers: L6 R12
#[test]
fn a_registration_against_a_removal() {
    let rounds = if cfg!(miri) { 1 } else { 20 };
    for _ in 0..rounds {
        let (emu, mm) = machine_with(Config { cpus: 2, table_pages: 16, ..Config::default() });
        emu.on_cpu(0, || {
            let device = Device::dax_with(&mm, 16, PageSize::Size4K);
            let space = space_with(&mm, &device, 1, &[0, 1]);
            store_to(&space, &emu, page(0), 1).unwrap();
            let account = mm.pins.open_account("account", 16);
            let owner: Arc<dyn RegionOwner> = Arc::new(|_: &Notice| ());
            let owner = Arc::downgrade(&owner);
            let registrar = {
                let (emu, space, account) = (emu.clone(), space.clone(), account.clone());
                thread::spawn(move || {
                    emu.on_cpu(1, || {
                        let terms = Terms { flags: GupFlags::WRITE, grace_ns: 0, account: &account };
                        MemoryRegion::register(&space, page(0), 1, &terms, owner).ok()
                    })
                })
            };
            mm.meta.kill(&device.pages);
            let frames = [PfnRange::new(device.pfn(0), 16).unwrap()];
            mm.regions.ask(&device.pages, &frames, &mut |_| ());
            let region = registrar.join().unwrap();
            mm.regions.take_back(&mm.machine, &device.pages, &frames, &mut |_| ());
            let usable = region.as_ref().is_some_and(|region| region.reference().access(Access::Read).is_ok());
            assert!(!usable, "a registration outlives the removal");
            assert_eq!(mm.meta.totals().pins, 0);
        });
    }
}
