//! What a shootdown does not do: nobody is asked, and nothing is flushed, but where it must be.
#![cfg(not(loom))]

mod common;

use common::cached::{assert_gone, small_pages, unmap};
use common::{Device, EmuContext, go_idle, load, machine, page, space_with, store_to, wake};
use mm::addr::{PAGE_SIZE, PageSize};
use mm::gather::Gather;
use mm::machine::IrqOff;
use mm::mapping::unmap_mapping_range;
use mm::shootdown::Round;
use mm::space::{Access, AddressSpace};
use testkit::emu::EmuMachine;

/// Loads of a root and flushes, single and full, since the figures were last reset.
fn done(emu: &EmuMachine) -> (u64, u64, u64) {
    let stats = emu.stats();
    (stats.root_loads, stats.page_flushes, stats.full_flushes)
}

// covers: G3
#[test]
fn what_is_loaded_already_is_not_loaded_again() {
    let (emu, mm, space) = small_pages(2, 5);
    emu.on_cpu(1, || load(&mm, Some(&space)));
    assert_eq!(done(&emu), (0, 0, 0));
    // Idle, it catches up instead.
    emu.on_cpu(1, || go_idle(&mm));
    unmap(&space, 1, 1);
    emu.reset_stats();
    emu.on_cpu(1, || load(&mm, Some(&space)));
    assert_eq!(done(&emu), (0, 1, 0));
    assert_gone(&emu, &space, 1);
    // The kernel's own tables too; and another space is loaded.
    emu.on_cpu(1, || load(&mm, None));
    emu.reset_stats();
    emu.on_cpu(1, || load(&mm, None));
    assert_eq!(done(&emu), (0, 0, 0));
    let other = AddressSpace::new(&mm, "other").unwrap();
    emu.on_cpu(1, || load(&mm, Some(&other)));
    assert_eq!(done(&emu).0, 1);
    emu.on_cpu(1, || load(&mm, Some(&space)));
    assert_eq!(done(&emu).0, 2);
}

// covers: G3
#[test]
fn who_catches_up_flushes_what_it_has_missed_and_no_more() {
    let (emu, mm, space) = small_pages(2, 40);
    // It was there for these.
    [30, 34, 38].into_iter().for_each(|nr| unmap(&space, nr, 1));
    for missed in [vec![2], vec![4, 6], vec![8, 12, 10], vec![20, 22, 24, 26]] {
        emu.on_cpu(1, || go_idle(&mm));
        missed.iter().for_each(|&nr| unmap(&space, nr, 1));
        emu.reset_stats();
        emu.on_cpu(1, || wake(&mm));
        let (first, last) = (missed.iter().min().unwrap(), missed.iter().max().unwrap());
        assert_eq!(done(&emu), (0, last - first + 1, 0), "{missed:?}");
        missed.iter().for_each(|&nr| assert_gone(&emu, &space, nr));
    }
}

/// A CPU that is not concerned by a round flushes nothing in it, not even what it could catch up with.
// covers: G3
#[test]
fn a_round_flushes_nothing_on_a_cpu_that_it_does_not_concern() {
    let (emu, mm) = machine(3);
    let device = Device::dax_with(&mm, 64, PageSize::Size4K);
    let (ours, theirs) = (space_with(&mm, &device, 8, &[0]), space_with(&mm, &device, 8, &[1, 2]));
    for (cpu, space) in [(0, &ours), (1, &theirs), (2, &theirs)] {
        emu.on_cpu(cpu, || (0..8).for_each(|nr| store_to(space, &emu, page(nr), nr).unwrap()));
    }
    emu.on_cpu(0, || go_idle(&mm));
    emu.on_cpu(1, || unmap(&ours, 3, 1));
    emu.reset_stats();
    // A task without a space of its own, on the CPU that idled.
    emu.on_cpu(0, || unmap(&theirs, 5, 1));
    assert_eq!(done(&emu), (0, 2, 0), "CPUs 1 and 2, one page each");
    assert_eq!(emu.stale(0).len(), 1, "nothing was flushed there so far");
    emu.on_cpu(0, || wake(&mm));
    emu.assert_no_stale();
}

/// Takes one page out of `nr` spaces at once; how many rounds that took.
fn rounds_for(nr: usize, growths: u64) -> u64 {
    let (emu, mm) = machine(1);
    let device = Device::dax_with(&mm, 64, PageSize::Size4K);
    let spaces: Vec<_> = (0..nr).map(|_| space_with(&mm, &device, 8, &[0])).collect();
    for space in &spaces {
        emu.on_cpu(0, || (0..3).for_each(|nr| space.populate(page(nr), PAGE_SIZE, Access::Write).unwrap()));
    }
    device.kill();
    emu.limit_growth(growths);
    let mut gather = Gather::new(&mm);
    unmap_mapping_range(&device.mapping, 1, 1, &mut gather);
    let stats = gather.finish();
    emu.limit_growth(u64::MAX);
    assert_eq!(stats.leaves, nr as u64);
    assert_eq!(mm.meta.totals().refs, 2 * nr as u64);
    stats.rounds
}

/// A round has a place for one space; the others need memory, or a round each.
// covers: A6, R2
#[test]
fn without_memory_each_address_space_has_a_round_of_its_own() {
    assert_eq!(rounds_for(3, u64::MAX), 1);
    assert_eq!(rounds_for(3, 0), 3);
    assert_eq!(rounds_for(1, 0), 1);
}

/// A round for the kernel half, from `cpu`; how many were interrupted.
fn shoot_kernel(mm: &EmuContext, cpu: usize) -> u32 {
    mm.machine.on_cpu(cpu, || {
        let mut round = Round::new();
        assert!(round.is_empty());
        round.issue_kernel(&mm.shootdown);
        assert!(!round.is_empty());
        let dispatched = round.dispatch(&mm.shootdown, &mm.machine);
        let nr = dispatched.nr_ipis();
        dispatched.sync();
        nr
    })
}

// covers: G3
#[test]
fn a_change_of_the_kernel_half_is_flushed_once_on_every_cpu_that_is_online() {
    let (emu, mm, space) = small_pages(3, 3);
    // Even an idle one, and one with nothing loaded.
    emu.on_cpu(1, || go_idle(&mm));
    emu.on_cpu(2, || load(&mm, None));
    emu.reset_stats();
    assert_eq!(shoot_kernel(&mm, 0), 2);
    assert_eq!(done(&emu), (0, 0, 3));
    assert_eq!(shoot_kernel(&mm, 1), 2);
    assert_eq!(done(&emu), (0, 0, 6));
    assert_eq!(mm.shootdown.stats().rounds, 2);
    // What has been flushed is not flushed again with the next round of a space.
    emu.on_cpu(1, || wake(&mm));
    emu.reset_stats();
    unmap(&space, 1, 1);
    assert_eq!(done(&emu), (0, 2, 0));
    // A CPU that comes online flushes by itself, and not once more when it is interrupted.
    emu.on_cpu(2, || mm.shootdown.cpu_online(&IrqOff::new(&mm.machine)));
    emu.on_cpu(2, || load(&mm, Some(&space)));
    emu.reset_stats();
    unmap(&space, 2, 1);
    assert_eq!(done(&emu).2, 0);
}

/// Before it is online, a CPU is not interrupted for the kernel half.
// covers: G3
#[test]
fn a_cpu_that_is_not_online_is_not_interrupted() {
    let emu = EmuMachine::with_cpus(3);
    let mm = mm::context::MmContext::new(emu.clone(), 3);
    let weak = mm::sync::Arc::downgrade(&mm);
    emu.set_ipi_handler(move || {
        let mm = weak.upgrade().expect("the machine lives");
        mm.shootdown.handle_ipi(&IrqOff::new(&mm.machine));
    });
    for (online, cpu) in [0, 2, 1].into_iter().enumerate() {
        emu.on_cpu(cpu, || mm.shootdown.cpu_online(&IrqOff::new(&mm.machine)));
        emu.reset_stats();
        assert_eq!(shoot_kernel(&mm, 0), online as u32, "after CPU {cpu}");
        assert_eq!(emu.stats().full_flushes, online as u64 + 1, "after CPU {cpu}");
    }
}
