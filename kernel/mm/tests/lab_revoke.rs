//! Lab 8: who comes second to end a registration, while its device is being cut off (`docs/labs/8-revoke-under-dma.md`). All of
//! registrations is in `region.rs`.
#![cfg(not(loom))]

mod common;

use std::sync::{Arc, Mutex, Weak};

use common::{Device, machine, page, space_with};
use mm::addr::{PageSize, PfnRange};
use mm::gup::GupFlags;
use mm::region::device::{CutOff, DeviceAccess};
use mm::region::gate::By;
use mm::region::{MemoryRegion, Notice, RegionOwner, Terms, UseError};
use testkit::emu::{Background, EmuMachine};

const GRACE_NS: u64 = 20_000;

type Slot<T> = Arc<Mutex<Option<T>>>;

/// A device. While it is cut off, the owner on another CPU gives the registration back.
struct Meanwhile {
    emu: EmuMachine,
    region: Slot<MemoryRegion<EmuMachine>>,
    owner: Slot<Background<()>>,
}

impl DeviceAccess for Meanwhile {
    fn revoke(self: Box<Self>, _: By) -> CutOff {
        let region = self.region.lock().unwrap().take();
        let owner = self.emu.start(2, move || drop(region));
        assert!(
            !owner.is_finished(),
            "the device still reaches the pages, and who came second was told that all is over"
        );
        *self.owner.lock().unwrap() = Some(owner);
        CutOff::default()
    }
}

// covers: D2, L6, T5
#[test]
fn it_is_said_to_be_over_only_when_it_is() {
    let (emu, mm) = machine(3);
    let device = Device::dax_with(&mm, 64, PageSize::Size4K);
    let space = space_with(&mm, &device, 8, &[0]);
    let account = mm.pins.open_account("account", 64);
    let nobody: Arc<dyn RegionOwner> = Arc::new(|_: &Notice| ());
    let asked: Weak<dyn RegionOwner> = Arc::downgrade(&nobody);
    emu.on_cpu(0, || {
        let terms = Terms { flags: GupFlags::WRITE, grace_ns: GRACE_NS, account: &account };
        let region = MemoryRegion::register(&space, page(0), 8, &terms, asked).expect("there are pages");
        let (slot, owner) = (Slot::default(), Slot::default());
        let access = Meanwhile { emu: emu.clone(), region: Arc::clone(&slot), owner: Arc::clone(&owner) };
        let map = |_: &[PfnRange], _| -> Result<Box<dyn DeviceAccess>, UseError> { Ok(Box::new(access)) };
        region.admit(map).expect("it has no other device");
        *slot.lock().unwrap() = Some(region);
        let ranges = device.pages.ranges();
        mm.regions.ask(&device.pages, ranges, &mut |_| ());
        emu.advance_clock(GRACE_NS);
        mm.regions.take_back(&emu, &device.pages, ranges, &mut |_| ());
        let owner = owner.lock().unwrap().take().expect("the device was cut off");
        emu.finish(owner);
        assert_eq!(mm.meta.totals().pins, 0, "all pins are given back");
    });
}
