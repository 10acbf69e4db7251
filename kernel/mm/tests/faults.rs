//! Faults go on beside each other: while a provider looks for the data of one, another CPU's is served.
#![cfg(not(loom))]

mod common;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, Weak};

use common::{BASE, Device, Space, machine, page};
use mm::addr::{PAGE_SIZE, PageSize};
use mm::entry::Prot;
use mm::mapping::Mapping;
use mm::pagemap::MemoryKind;
use mm::space::{Access, AddressSpace, FaultError, FaultRequest, FaultTarget, MapError, VmOps};
use mm::sync::Arc;
use testkit::emu::EmuMachine;

/// A provider that is slow: while it serves the fault at offset 0, CPU 1 faults at the pages [`Slow::meanwhile`].
struct Slow {
    device: Arc<Device>,
    emu: EmuMachine,
    space: Mutex<Weak<Space>>,
    meanwhile: [u64; 2],
    served_meanwhile: AtomicU64,
}

impl VmOps<EmuMachine> for Slow {
    fn fault(
        &self,
        request: &FaultRequest,
        install: &mut dyn FnMut(FaultTarget) -> Result<(), FaultError>,
    ) -> Result<(), FaultError> {
        if request.offset_pages == 0 {
            let space = self.space.lock().unwrap().upgrade().unwrap();
            for nr in self.meanwhile {
                // A lock that let one fault in at a time would make this wait for ever, which ends the machine.
                self.emu.on_cpu(1, || space.handle_fault(page(nr), Access::Write))?;
                self.served_meanwhile.fetch_add(1, Ordering::SeqCst);
            }
        }
        self.device.fault(request, install)
    }

    fn mmap(&self, offset_pages: u64, nr_pages: u64, insert: &mut dyn FnMut()) -> Result<(), MapError> {
        self.device.mmap(offset_pages, nr_pages, insert)
    }

    fn mapping(&self) -> &Arc<Mapping<EmuMachine>> {
        self.device.mapping()
    }

    fn kind(&self) -> MemoryKind {
        self.device.kind()
    }
}

// covers: G4
#[test]
fn faults_in_different_areas_and_in_one_go_on_in_parallel() {
    let (emu, mm) = machine(2);
    let device = Device::dax_with(&mm, 64, PageSize::Size4K);
    let slow = Arc::new(Slow {
        device: device.clone(),
        emu: emu.clone(),
        space: Mutex::default(),
        // One in another area, one in the same.
        meanwhile: [16, 1],
        served_meanwhile: AtomicU64::new(0),
    });
    let space = AddressSpace::new(&mm, "test").unwrap();
    *slow.space.lock().unwrap() = Arc::downgrade(&space);
    let ops: Arc<dyn VmOps<EmuMachine>> = slow.clone();
    space.map(BASE, 8 * PAGE_SIZE, Prot::USER_WRITE, &ops, 0).unwrap();
    space.map(page(16), 8 * PAGE_SIZE, Prot::USER_WRITE, &ops, 32).unwrap();
    assert_eq!(emu.on_cpu(0, || space.handle_fault(BASE, Access::Write)), Ok(()));
    assert_eq!(slow.served_meanwhile.load(Ordering::SeqCst), 2);
    for (nr, offset) in [(0, 0), (1, 1), (16, 32)] {
        assert_eq!(space.translate(page(nr)).unwrap().entry.pfn(), device.pfn(offset), "page {nr}");
    }
}
