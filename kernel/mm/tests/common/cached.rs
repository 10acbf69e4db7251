//! What the tests of shootdowns share: spaces that every CPU has in its TLB.

use std::sync::Mutex;

use mm::addr::{PAGE_SIZE, PageSize};
use mm::pagemap::MemoryKind;
use mm::space::FaultError;
use mm::sync::Arc;
use testkit::emu::{EmuMachine, Event};

use super::{Device, EmuContext, Space, load_from, machine, page, space_with, store_to};

/// Pages that the device of these tests has.
pub const DEVICE_PAGES: u64 = 4 << 18;

/// A space of `nr_pages`, in 4 KiB leaves and loaded on every CPU, each of which has all pages in its TLB.
pub fn small_pages(cpus: usize, nr_pages: u64) -> (EmuMachine, Arc<EmuContext>, Arc<Space>) {
    mapped(cpus, nr_pages, PageSize::Size4K)
}

/// The same in leaves of at most `leaf`.
pub fn mapped(cpus: usize, nr_pages: u64, leaf: PageSize) -> (EmuMachine, Arc<EmuContext>, Arc<Space>) {
    let (emu, mm) = machine(cpus);
    let device = Device::dax_with(&mm, DEVICE_PAGES, leaf);
    let all: Vec<_> = (0..cpus).collect();
    let space = space_with(&mm, &device, nr_pages, &all);
    for cpu in all {
        emu.on_cpu(cpu, || (0..nr_pages).for_each(|nr| store_to(&space, &emu, page(nr), nr).unwrap()));
    }
    emu.reset_stats();
    (emu, mm, space)
}

/// Ends the mapping of `nr_pages` from page `first` on.
pub fn unmap(space: &Arc<Space>, first: u64, nr_pages: u64) {
    space.unmap(page(first), nr_pages * PAGE_SIZE).unwrap();
}

/// Every CPU faults where nothing is mapped any more.
pub fn assert_gone(emu: &EmuMachine, space: &Space, nr: u64) {
    for cpu in 0..emu.cpu_count() {
        let result = emu.on_cpu(cpu, || load_from(space, emu, page(nr)));
        assert_eq!(result, Err(FaultError::NotMapped(page(nr))), "CPU {cpu}, page {nr}");
    }
    emu.assert_no_stale();
}

/// Two CPUs send a shootdown to each other at once, each while its own interrupts are off; both get through, and nothing stale
/// is left.
pub fn shoot_at_each_other() {
    let (emu, mm, one) = small_pages(2, 4);
    let elsewhere = super::DEVICE_START.add(DEVICE_PAGES);
    let device = Device::new(&mm, elsewhere, 64, MemoryKind::DevDax, PageSize::Size4K);
    // Each CPU takes from the space that the other one has loaded.
    let two = space_with(&mm, &device, 4, &[0]);
    emu.on_cpu(0, || {
        store_to(&two, &emu, page(0), 2).expect("it is mapped");
        let second = Arc::new(Mutex::new(None));
        let (at, started, theirs) = (emu.clone(), second.clone(), two.clone());
        emu.at(0, Event::IpiSent, 1, move || {
            // This CPU's interrupts are off; the other one sends its own round and has to wait.
            *started.lock().unwrap() = Some(at.start(1, move || unmap(&theirs, 0, 1)));
        });
        unmap(&one, 0, 1);
        emu.finish(second.lock().unwrap().take().unwrap());
        emu.assert_hooks_ran();
    });
    assert!(one.translate(page(0)).is_none() && two.translate(page(0)).is_none());
    emu.assert_no_stale();
}
