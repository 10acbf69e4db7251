//! Two CPUs serve a fault at the same place: who comes second finds the first one's work, and keeps nothing of its own.
#![cfg(not(loom))]

mod common;

use common::{BASE, Device, EmuContext, Space, counts, machine, machine_with, page, space_with, through};
use mm::addr::{PAGE_SIZE, PageSize, VirtAddr};
use mm::entry::Prot;
use mm::ledger::Kind;
use mm::machine::{Machine, Point};
use mm::space::{Access, AddressSpace, FaultTarget, VmOps};
use mm::sync::Arc;
use testkit::emu::{Config, EmuMachine, Event};

/// While CPU 0 is at the `nth` `event` of a fault at `first`, CPU 1 serves one at `second`. Both succeed.
fn race(
    emu: &EmuMachine,
    space: &Arc<Space>,
    (event, nth): (Event, u32),
    first: (VirtAddr, Access),
    second: (VirtAddr, Access),
) {
    let (at, ours) = (emu.clone(), space.clone());
    emu.at(0, event, nth, move || {
        assert_eq!(at.on_cpu(1, || ours.handle_fault(second.0, second.1)), Ok(()));
    });
    assert_eq!(emu.on_cpu(0, || space.handle_fault(first.0, first.1)), Ok(()));
    emu.assert_hooks_ran();
}

/// One reference for each leaf, and no other; as many table pages as `nr`, and the ledger says the same.
fn assert_nothing_lost(emu: &EmuMachine, mm: &EmuContext, space: &Space, tables: usize) {
    let leaves = emu.leaves(space.tlb().root()).len() as u64;
    assert_eq!(mm.meta.totals().refs, leaves, "one reference for each leaf");
    assert_eq!((emu.live_tables(), mm.ledger.count(Kind::TablePages)), (tables, tables as i64), "tables");
}

const READY: (Event, u32) = (Event::At(Point::InstallReady), 1);

// covers: G4
#[test]
fn who_comes_second_with_a_leaf_gives_its_reference_back() {
    for size in [PageSize::Size4K, PageSize::Size2M, PageSize::Size1G] {
        for accesses in [Access::Read, Access::Write].map(|a| [Access::Read, Access::Write].map(|b| (a, b))).concat() {
            let (emu, mm) = machine(2);
            let device = Device::dax_with(&mm, 1 << 18, size);
            let space = space_with(&mm, &device, 1 << 18, &[0, 1]);
            race(&emu, &space, READY, (page(3), accesses.0), (page(3), accesses.1));
            let found = space.translate(page(3)).expect("mapped");
            assert_eq!((found.size, found.pfn_at(page(3))), (size, device.pfn(3)));
            assert_eq!(counts(&mm.meta, device.pfn(3)), (1, 0), "{size:?}, {accesses:?}");
            assert_nothing_lost(&emu, &mm, &space, 1 + 3 - (size.level() as usize - 1));
        }
    }
}

// covers: G4
#[test]
fn who_comes_second_leaves_the_leaf_as_it_is() {
    let (emu, mm) = machine(2);
    let device = Device::dax_with(&mm, 8, PageSize::Size4K);
    let space = space_with(&mm, &device, 8, &[0, 1]);
    let (at, ours) = (emu.clone(), space.clone());
    emu.at(0, READY.0, READY.1, move || at.on_cpu(1, || common::store_to(&ours, &at, page(3), 33).unwrap()));
    assert_eq!(emu.on_cpu(0, || space.handle_fault(page(3), Access::Read)), Ok(()));
    emu.assert_hooks_ran();
    let entry = space.translate(page(3)).expect("mapped").entry;
    assert!(entry.is_dirty() && entry.is_accessed(), "what CPU 1 stored is not forgotten: {entry:?}");
    assert_nothing_lost(&emu, &mm, &space, 4);
}

/// Where stores are noted, a store that comes second to a load makes the load's leaf writable, and it is noted.
// covers: G4, G7
#[test]
fn a_store_that_comes_second_to_a_load_is_noted_and_allowed() {
    let (emu, mm) = machine(2);
    let device = Device::dax_with(&mm, 8, PageSize::Size4K);
    device.note_stores();
    let space = space_with(&mm, &device, 8, &[0, 1]);
    race(&emu, &space, READY, (page(3), Access::Write), (page(3), Access::Read));
    assert!(space.translate(page(3)).expect("mapped").entry.is_writable());
    let noted = device.take_noted();
    assert!(!noted.is_empty() && noted.iter().all(|&pages| pages == (3, 1)), "{noted:?}");
    assert_nothing_lost(&emu, &mm, &space, 4);
}

// covers: G4
#[test]
fn who_comes_second_with_a_table_frees_it_and_goes_on_below_the_other() {
    for levels in [4, 5] {
        for nth in 1..u32::from(levels) {
            let (emu, mm) = machine_with(Config { cpus: 2, levels, ..Config::default() });
            let device = Device::dax_with(&mm, 8, PageSize::Size4K);
            let space = space_with(&mm, &device, 8, &[0, 1]);
            // It is freed before the leaf is there, and no other is: CPU 1 finds none of its tables taken.
            let (at, ours) = (emu.clone(), space.clone());
            emu.at(0, Event::FreeTable, 1, move || {
                assert_eq!(ours.translate(page(0)), None);
                assert_eq!(at.live_tables(), usize::from(levels) + 1, "the one too many");
            });
            race(&emu, &space, (Event::AllocTable, nth), (page(0), Access::Write), (page(1), Access::Write));
            for nr in 0..2 {
                assert_eq!(space.translate(page(nr)).expect("mapped").entry.pfn(), device.pfn(nr), "page {nr}");
            }
            assert_nothing_lost(&emu, &mm, &space, levels.into());
        }
    }
}

/// A space over 2 MiB whose CPUs get leaves of at most `sizes`.
fn per_cpu(sizes: [PageSize; 2]) -> (EmuMachine, Arc<EmuContext>, Arc<Space>, Arc<dyn VmOps<EmuMachine>>) {
    let (emu, mm) = machine(2);
    let device = Device::dax_with(&mm, 512, PageSize::Size2M);
    let at = emu.clone();
    let ops = through(&device, move |device, request, install| {
        let limit = sizes[at.cpu()];
        device.fault(request, &mut |target| install(FaultTarget { size: target.size.min(limit), ..target }))
    });
    let space = AddressSpace::new(&mm, "test").expect("memory for a root");
    space.map(BASE, 512 * PAGE_SIZE, Prot::USER_WRITE, &ops, 0).expect("mapped");
    (emu, mm, space, ops)
}

// covers: G4, G6
#[test]
fn a_table_that_stands_where_a_huge_leaf_was_to_go_is_made_use_of() {
    // The same page, and another one.
    for (second, leaves) in [(3, 1), (9, 2)] {
        let (emu, mm, space, _) = per_cpu([PageSize::Size2M, PageSize::Size4K]);
        race(&emu, &space, READY, (page(3), Access::Write), (page(second), Access::Write));
        assert_eq!(emu.leaves(space.tlb().root()).len(), leaves);
        assert_eq!(space.translate(page(3)).expect("mapped").size, PageSize::Size4K);
        assert_nothing_lost(&emu, &mm, &space, 4);
    }
}

// covers: G4, G6
#[test]
fn a_huge_leaf_that_stands_where_a_table_was_to_go_serves_the_fault() {
    let (emu, mm, space, ops) = per_cpu([PageSize::Size4K, PageSize::Size2M]);
    // Another space keeps the large folio, over which CPU 0 would lay a small leaf.
    let other = AddressSpace::new(&mm, "other").expect("memory for a root");
    other.map(BASE, 512 * PAGE_SIZE, Prot::USER_WRITE, &ops, 0).expect("mapped");
    assert_eq!(emu.on_cpu(1, || other.handle_fault(page(0), Access::Read)), Ok(()));
    race(&emu, &space, (Event::AllocTable, 3), (page(3), Access::Write), (page(9), Access::Write));
    assert_eq!(space.translate(page(3)).expect("mapped").size, PageSize::Size2M);
    assert_eq!(mm.meta.totals().refs, 2, "one for each space");
    assert_eq!(emu.live_tables(), 3 + 3);
}
