//! Taking mappings away while memory is short: fewer at a time, more shootdowns, and nothing is left out.
//!
//! The emulated machine lets a number of lists grow and then no more. It stops where a translation outlives what it
//! translates, so that a place that frees before its shootdown is found too.
#![cfg(not(loom))]

mod common;

use common::*;
use mm::addr::{PAGE_SIZE, PageSize, VirtAddr};
use mm::entry::Prot;
use mm::failure::{FailureKind, memory_failure};
use mm::gather::Gather;
use mm::ledger::Kind;
use mm::mapping::unmap_each;
use mm::space::{Access, AddressSpace, FaultError};
use mm::sync::Arc;

/// VMAs in each space: with three spaces more than two batches of the listing.
const VMAS: u64 = 14;
const SPACES: u64 = 3;

fn va(vma: u64) -> VirtAddr {
    VirtAddr::new(BASE.as_u64() + vma * PageSize::Size2M.bytes())
}

/// Three spaces that map scattered pages of a device, and a second VMA over the same pages in every other place.
fn spaces(mm: &Arc<EmuContext>, device: &Arc<Device>) -> Vec<Arc<Space>> {
    let space = |nr| {
        let space = AddressSpace::new(mm, &format!("space {nr}")).expect("an address space");
        for vma in 0..VMAS {
            let offset = if vma % 2 == 0 { 5 * vma } else { 5 * (vma - 1) };
            space.map(va(vma), 2 * PAGE_SIZE, Prot::USER_WRITE, &device.ops(), offset).expect("mapped");
            space.populate(va(vma), PAGE_SIZE, Access::Write).expect("populated");
        }
        space
    };
    (0..SPACES).map(space).collect()
}

/// covers: A6 R5
#[test]
fn without_memory_everything_goes_all_the_same() {
    let mut rounds = Vec::new();
    for growths in 0..64 {
        let (emu, mm) = machine(2);
        let device = Device::dax_with(&mm, 512, PageSize::Size4K);
        let before = mm.ledger_snapshot();
        let spaces = spaces(&mm, &device);
        device.kill();
        emu.limit_growth(growths);
        let mut gather = Gather::new(&mm);
        let mut found = 0;
        unmap_each(&device.mapping, 0, u64::MAX, &mut gather, &mut |_, _| found += 1);
        let stats = gather.finish();
        let short = !mm::machine::Machine::may_grow(&emu);
        emu.limit_growth(u64::MAX);
        assert_eq!((found, stats.leaves), (SPACES * VMAS, SPACES * VMAS), "with {growths} growths");
        for vma in 0..VMAS {
            assert!(spaces.iter().all(|space| space.translate(va(vma)).is_none()), "VMA {vma} with {growths} growths");
        }
        drop(spaces);
        let after = mm.ledger_snapshot();
        let leaks: Vec<_> = after.diff(&before).collect();
        assert!(leaks.is_empty(), "{leaks:?} with {growths} growths");
        assert_eq!(after.count(Kind::Folios), 0);
        rounds.push(stats.rounds);
        if !short {
            break;
        }
    }
    println!("rounds of shootdown by the number of lists that could grow: {rounds:?}");
    assert_eq!(rounds.last(), Some(&1), "with enough memory one round serves all");
    assert!(rounds.len() > 5 && rounds[0] > 1, "memory was never short: {rounds:?}");
}

/// A VMA that is cut while the batches are listed is found with both of its halves. covers: R12
#[test]
fn a_cut_between_two_batches_hides_nothing() {
    let (emu, mm) = machine(2);
    let device = Device::dax_with(&mm, 512, PageSize::Size4K);
    let spaces = spaces(&mm, &device);
    let late = AddressSpace::new(&mm, "late").expect("an address space");
    late.map(BASE, 3 * PAGE_SIZE, Prot::USER_WRITE, &device.ops(), 300).expect("mapped");
    late.populate(BASE, 3 * PAGE_SIZE, Access::Write).expect("populated");
    device.kill();
    emu.limit_growth(0);
    let mut gather = Gather::new(&mm);
    let mut found = 0;
    unmap_each(&device.mapping, 0, u64::MAX, &mut gather, &mut |_, _| {
        found += 1;
        if found == 1 {
            emu.limit_growth(u64::MAX);
            late.unmap(page(1), PAGE_SIZE).expect("unmapped");
            emu.limit_growth(0);
        }
    });
    let _ = gather.finish();
    emu.limit_growth(u64::MAX);
    assert_eq!(found, SPACES * VMAS + 2);
    assert!((0..3).all(|nr| late.translate(page(nr)).is_none()));
    drop(spaces);
}

/// A page that nobody uses needs metadata: where memory is short the fault is refused. One that is in use does not, and is mapped.
/// covers: A6
#[test]
fn a_fault_for_a_new_folio_is_refused() {
    let (emu, mm) = machine(1);
    let device = Device::dax_with(&mm, 512, PageSize::Size4K);
    let [one, other] = ["one", "other"].map(|name| AddressSpace::new(&mm, name).unwrap());
    for space in [&one, &other] {
        space.map(BASE, 4 * PAGE_SIZE, Prot::USER_WRITE, &device.ops(), 0).unwrap();
        space.populate(BASE, PAGE_SIZE, Access::Write).unwrap();
    }
    one.populate(page(1), PAGE_SIZE, Access::Write).unwrap();
    let before = mm.ledger_snapshot();
    emu.limit_growth(0);
    assert_eq!(one.handle_fault(page(2), Access::Write), Err(FaultError::OutOfMemory));
    assert_eq!(mm.ledger_snapshot().count(Kind::Folios), before.count(Kind::Folios));
    assert_eq!(other.handle_fault(page(1), Access::Write), Ok(()));
    emu.limit_growth(u64::MAX);
    assert_eq!(one.handle_fault(page(2), Access::Write), Ok(()));
}

/// Who unmapped what is named as long as there is memory for that; it is taken away in any case. covers: P1
#[test]
fn a_failure_is_dealt_with_where_nobody_can_be_named() {
    let (emu, mm) = machine(1);
    let device = Device::dax_with(&mm, 512, PageSize::Size4K);
    let spaces = spaces(&mm, &device);
    let pfn = spaces[0].translate(va(0)).unwrap().pfn_at(va(0));
    emu.limit_growth(0);
    let failure = memory_failure(&mm, pfn, FailureKind::Media).unwrap();
    emu.limit_growth(u64::MAX);
    assert!(failure.users.is_empty() && failure.stats.leaves > 0, "{:?}", failure.stats);
    drop(failure);
    assert!(spaces.iter().all(|space| space.translate(va(0)).is_none()));
}
