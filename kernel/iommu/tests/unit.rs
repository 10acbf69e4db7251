//! The emulated unit itself: that what it remembers persists, and that each of its rules bites.

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};

use common::{DEVICE, GIB, RW, Rig, run};
use iommu::command::{Command, Context, Iotlb};
use iommu::domain::Mapping;
use iommu::entry::Entry;
use iommu::hardware::Hardware;
use mm::addr::{PAGE_SIZE, Pfn};
use mm::sync::Ordering;
use testkit::iommu::Make;

/// Clears the entry of a mapping behind the back of its domain, in the table of `level`.
fn clear(rig: &Rig, mapping: &Mapping, level: u8) -> Entry {
    let walk = rig.domain.walk(mapping.address());
    let step = walk.steps.iter().find(|step| step.level == level).unwrap();
    rig.unit.entry(step.table, step.index).store(0, Ordering::Release);
    rig.unit.write_back(step.table, step.index, 1);
    step.entry
}

fn pages(mapping: &Mapping, mask: u8, leaf_only: bool) -> Command {
    let address = mapping.address() & !((PAGE_SIZE << mask) - 1);
    Command::Iotlb(Iotlb::Pages { domain: 5, address, mask, leaf_only })
}

#[test]
fn a_translation_stays_until_a_command_names_it() {
    let rig = Rig::usual();
    let mapping = rig.one(0x1000);
    rig.assert_reaches(&mapping, 0, 0x1000);
    clear(&rig, &mapping, 1);
    rig.assert_reaches(&mapping, 0, 0x1000);
    let others = [
        Command::Iotlb(Iotlb::Pages { domain: 5, address: mapping.address() + PAGE_SIZE, mask: 0, leaf_only: false }),
        Command::Iotlb(Iotlb::Domain { domain: 4 }),
        Command::Context(Context::Global),
        pages(&mapping, 19, false),
    ];
    for command in others {
        rig.unit.invalidate(&[command]).unwrap();
        rig.assert_reaches(&mapping, 0, 0x1000);
    }
    assert_eq!(rig.unit.counts().ignored, 1, "its range is too large");
    rig.unit.invalidate(&[pages(&mapping, 0, true)]).unwrap();
    rig.assert_blocked(&mapping, 0);
}

#[test]
fn a_large_leaf_stays_whole_or_in_pieces() {
    for pieces in [false, true] {
        let rig = Rig::new(Make { pieces, ..Make::default() });
        let mapping = rig.domain.map(&[run(GIB, GIB)], RW, 1).unwrap();
        rig.assert_reaches(&mapping, 7, GIB + 7);
        clear(&rig, &mapping, 3);
        rig.assert_reaches(&mapping, 7, GIB + 7);
        let other = rig.reaches(mapping.address() + 8 * PAGE_SIZE);
        assert_eq!(other.is_some(), !pieces, "what was not touched is not remembered by itself");
        rig.unit.invalidate(&[pages(&mapping, 0, false)]).unwrap();
        assert_eq!(
            rig.reaches(mapping.address() + 7 * PAGE_SIZE).is_some(),
            pieces,
            "the command names the first page"
        );
    }
}

#[test]
fn a_table_stays_until_a_command_says_that_tables_changed() {
    let rig = Rig::usual();
    let mapping = rig.one(0x1000);
    rig.assert_blocked(&mapping, 1);
    let table = clear(&rig, &mapping, 2).pfn();
    // The way to the table is remembered: what is in it is found.
    rig.assert_reaches(&mapping, 0, 0x1000);
    rig.unit.invalidate(&[pages(&mapping, 0, true)]).unwrap();
    rig.assert_reaches(&mapping, 0, 0x1000);
    let freed = catch_unwind(AssertUnwindSafe(|| rig.unit.free_table(table)));
    assert!(freed.is_err(), "it is freed while the unit remembers it");
    rig.unit.invalidate(&[pages(&mapping, 0, false)]).unwrap();
    rig.assert_blocked(&mapping, 0);
    rig.unit.free_table(table);
    for _ in 0..2 {
        let again = catch_unwind(AssertUnwindSafe(|| rig.unit.free_table(table)));
        assert!(again.is_err(), "it is freed twice");
        let used = catch_unwind(AssertUnwindSafe(|| rig.unit.entry(table, 0).load(Ordering::Relaxed)));
        assert!(used.is_err(), "a free table is read");
    }
}

#[test]
fn the_walker_sees_what_was_written_back() {
    for coherent in [false, true] {
        let rig = Rig::new(Make { coherent, ..Make::default() });
        let mapping = rig.one(0x1000);
        let walk = rig.domain.walk(mapping.address());
        let step = walk.steps.last().unwrap();
        let slot = rig.unit.entry(step.table, step.index + 1);
        slot.store(Entry::leaf(Pfn::new(0x2000), 1, RW).bits(), Ordering::Release);
        let next = mapping.address() + PAGE_SIZE;
        assert_eq!(rig.reaches(next).is_some(), coherent);
        rig.unit.write_back(step.table, step.index + 1, 1);
        assert!(rig.reaches(next).is_some());
    }
}

#[test]
fn a_context_stays_until_a_command_names_its_device() {
    let rig = Rig::usual();
    let mapping = rig.domain.map(&[run(0x1000, 2)], RW, 1).unwrap();
    rig.assert_reaches(&mapping, 0, 0x1000);
    // Found without a look at the context entry, which is gone: one page that is remembered, and one that is not.
    assert_eq!(rig.contexts.detach(DEVICE), Ok(true));
    rig.contexts.attach(DEVICE, &rig.domain).unwrap();
    rig.assert_reaches(&mapping, 0, 0x1000);
    let context = Pfn::new(rig.unit.entry(rig.contexts.root(), 0).load(Ordering::Relaxed) >> 12);
    let at = 2 * usize::from(DEVICE.devfn());
    rig.unit.entry(context, at).store(0, Ordering::Release);
    rig.unit.write_back(context, at, 1);
    rig.assert_reaches(&mapping, 1, 0x1001);
    rig.unit.invalidate(&[Command::Context(Context::Device { domain: 5, source: DEVICE })]).unwrap();
    rig.assert_reaches(&mapping, 0, 0x1000);
    rig.unit.invalidate(&[Command::Iotlb(Iotlb::Domain { domain: 5 })]).unwrap();
    rig.assert_blocked(&mapping, 0);
}
