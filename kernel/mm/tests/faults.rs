//! Faults go on beside each other: while a provider looks for the data of one, another CPU's is served.
#![cfg(not(loom))]

mod common;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, Weak};

use common::{BASE, Device, Space, machine, page, through};
use mm::addr::{PAGE_SIZE, PageSize};
use mm::entry::Prot;
use mm::space::{Access, AddressSpace, VmOps};
use mm::sync::Arc;

// covers: G4
#[test]
fn faults_in_different_areas_and_in_one_go_on_in_parallel() {
    let (emu, mm) = machine(2);
    let device = Device::dax_with(&mm, 64, PageSize::Size4K);
    let (shared, served) = (Arc::new(Mutex::new(Weak::<Space>::new())), Arc::new(AtomicU64::new(0)));
    // A provider that is slow: while it serves the fault at offset 0, CPU 1 faults, once in another area, once in the same.
    let (space, seen, other) = (shared.clone(), served.clone(), emu.clone());
    let ops = through(&device, move |device, request, install| {
        if request.offset_pages == 0 {
            let space = space.lock().unwrap().upgrade().unwrap();
            for nr in [16, 1] {
                // A lock that let one fault in at a time would make this wait for ever, which ends the machine.
                other.on_cpu(1, || space.handle_fault(page(nr), Access::Write))?;
                seen.fetch_add(1, Ordering::SeqCst);
            }
        }
        device.fault(request, install)
    });
    let space = AddressSpace::new(&mm, "test").unwrap();
    *shared.lock().unwrap() = Arc::downgrade(&space);
    space.map(BASE, 8 * PAGE_SIZE, Prot::USER_WRITE, &ops, 0).unwrap();
    space.map(page(16), 8 * PAGE_SIZE, Prot::USER_WRITE, &ops, 32).unwrap();
    assert_eq!(emu.on_cpu(0, || space.handle_fault(BASE, Access::Write)), Ok(()));
    assert_eq!(served.load(Ordering::SeqCst), 2);
    for (nr, offset) in [(0, 0), (1, 1), (16, 32)] {
        assert_eq!(space.translate(page(nr)).unwrap().entry.pfn(), device.pfn(offset), "page {nr}");
    }
}
