//! What can be seen of spaces, mappings and TLBs is what was done to them.
#![cfg(not(loom))]

mod common;

use common::{BASE, Device, go_idle, machine, page, space_with, store_to, wake};
use mm::addr::{PAGE_SIZE, PageSize, VirtAddr, VirtRange};
use mm::entry::Prot;
use mm::machine::IrqOff;

fn range(first: u64, nr_pages: u64) -> VirtRange {
    VirtRange::new(page(first), nr_pages * PAGE_SIZE).unwrap()
}

#[test]
fn a_walk_ends_at_the_leaf_or_at_the_entry_that_is_empty() {
    let (emu, mm) = machine(1);
    let device = Device::dax_with(&mm, 1024, PageSize::Size2M);
    let space = space_with(&mm, &device, 1024, &[0]);
    store_to(&space, &emu, page(7), 1).unwrap();
    let walk = space.walk(page(7));
    let levels: Vec<_> = walk.iter().map(|step| (step.level, step.index)).collect();
    assert_eq!(levels, [(4, BASE.index(4)), (3, BASE.index(3)), (2, 0)]);
    assert_eq!(walk[0].table, space.tlb().root());
    assert_eq!(walk[1].table, walk[0].entry.pfn());
    assert!(walk[2].entry.is_leaf(2) && walk[2].entry.is_dirty());
    assert_eq!(walk[2].entry.pfn(), device.pfn(0));
    let empty = space.walk(page(512));
    assert_eq!(empty.len(), 3);
    assert!(!empty[2].entry.is_present());
    // Nothing of the other half, nor of what is no address at all.
    for va in [1 << 47, 1 << 63, 0xffff_8000_0000_0000, u64::MAX] {
        assert!(space.walk(VirtAddr::new(va)).is_empty(), "{va:#x}");
    }
    assert_eq!(space.walk(VirtAddr::new((1 << 47) - 1)).len(), 1);
}

#[test]
fn mappings_are_listed_by_address_as_many_as_fit() {
    let (_emu, mm) = machine(1);
    let device = Device::dax(&mm, 16);
    let space = space_with(&mm, &device, 4, &[]);
    space.map(page(8), 2 * PAGE_SIZE, Prot::USER_READ, &device.ops(), 3).unwrap();
    assert_eq!(space.nr_vmas(), 2);
    let all = space.vmas_from::<4>(VirtAddr::new(0));
    assert_eq!(all.iter().map(|vma| vma.range).collect::<Vec<_>>(), [range(0, 4), range(8, 2)]);
    assert_eq!((all[1].prot, all[1].offset_pages, all[1].mapping.id()), (Prot::USER_READ, 3, device.mapping.id()));
    // From the middle of one on, from behind it, and behind all.
    assert_eq!(space.vmas_from::<1>(page(3))[0].range, range(0, 4));
    assert_eq!(space.vmas_from::<1>(page(4))[0].range, range(8, 2));
    assert!(space.vmas_from::<1>(page(10)).is_empty());
    assert!(space.vmas_from::<1>(VirtAddr::new(u64::MAX)).is_empty());
}

#[test]
fn users_of_offsets_are_listed_and_all_are_counted() {
    let (_emu, mm) = machine(1);
    let device = Device::dax(&mm, 16);
    let one = space_with(&mm, &device, 8, &[]);
    let other = space_with(&mm, &device, 2, &[]);
    let two = device.mapping.some_users::<4>(1, 1);
    assert_eq!((two.0.len(), two.1), (2, 2));
    assert!(two.0.iter().all(|((_, range), from)| range.start() == BASE && *from == 0));
    let short = device.mapping.some_users::<1>(0, u64::MAX);
    assert_eq!((short.0.len(), short.1), (1, 2));
    let rest = device.mapping.some_users::<4>(2, 6);
    assert_eq!((rest.0[0].0.0.id(), rest.1), (one.id(), 1));
    assert_eq!(device.mapping.some_users::<4>(8, u64::MAX).1, 0);
    drop((two, short, rest, other));
    assert_eq!(device.mapping.some_users::<4>(1, 1).1, 1);
}

#[test]
fn leaves_are_counted_by_size_until_there_were_too_many_looks() {
    let (emu, mm) = machine(1);
    let device = Device::dax_with(&mm, 1024 + 3, PageSize::Size2M);
    let space = space_with(&mm, &device, 1024 + 3, &[0]);
    for nr in [0, 512, 1024, 1026] {
        store_to(&space, &emu, page(nr), nr).unwrap();
    }
    let count = space.count_leaves(range(0, 1027), u64::MAX);
    assert_eq!((count.by_size, count.cut_short), ([2, 2, 0], false));
    assert_eq!(space.count_leaves(range(1, 511), u64::MAX).by_size, [0, 1, 0], "a leaf that reaches out counts");
    assert_eq!(space.count_leaves(range(1025, 1), u64::MAX).by_size, [0, 0, 0]);
    let most = count.looks - 1;
    let short = space.count_leaves(range(0, 1027), most);
    assert_eq!((short.looks, short.cut_short), (most, true));
}

#[test]
fn a_cpu_that_idles_falls_behind_and_catches_up() {
    let (emu, mm) = machine(2);
    let device = Device::dax_with(&mm, 8, PageSize::Size4K);
    let space = space_with(&mm, &device, 8, &[0, 1]);
    let look = |cpu| mm.shootdown.look(&IrqOff::new(&mm.machine), cpu).unwrap();
    for cpu in 0..2 {
        emu.on_cpu(cpu, || (0..8).for_each(|nr| store_to(&space, &emu, page(nr), nr).unwrap()));
    }
    let before = look(1);
    assert_eq!((before.space, before.lazy, before.is_up_to_date()), (Some(space.id()), false, true));
    space.unmap(page(0), PAGE_SIZE).unwrap();
    let asked = look(1);
    assert_eq!(
        (asked.requests - before.requests, asked.answered, asked.generation),
        (1, asked.requests, before.generation + 1)
    );
    assert!(asked.is_up_to_date());
    emu.on_cpu(1, || go_idle(&mm));
    // One page of several, so that no table goes and the idle CPU is left alone.
    space.unmap(page(3), PAGE_SIZE).unwrap();
    let idle = look(1);
    assert!(idle.lazy && !idle.is_up_to_date() && idle.requests == asked.requests, "{idle:?}");
    assert_eq!(idle.generation, idle.flushed + 1);
    emu.on_cpu(1, || wake(&mm));
    let awake = look(1);
    assert!(!awake.lazy && awake.is_up_to_date(), "{awake:?}");
    assert!(look(0).is_up_to_date() && look(0).requests == 0);
    assert_eq!(mm.shootdown.look(&IrqOff::new(&mm.machine), usize::MAX), None);
}
