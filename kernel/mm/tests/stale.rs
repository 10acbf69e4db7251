//! Shootdown on the emulated machine: no translation outlives the call that took it away, nothing is freed before
//! every CPU has forgotten it, and no CPU is disturbed without need. Interleavings are forced by hooks.
#![cfg(not(loom))]

mod common;

use std::sync::Mutex;

use common::cached::{assert_gone, shoot_at_each_other, small_pages, unmap};
use common::{Device, EmuContext, Space, go_idle, load, load_from, machine, page, space_with, store_to, wake};
use mm::addr::{PAGE_SIZE, PageSize};
use mm::entry::Prot;
use mm::failure::{FailureKind, memory_failure};
use mm::gather::Gather;
use mm::ledger::Kind;
use mm::machine::{Machine, Point};
use mm::mapping::{unmap_leftovers, unmap_mapping_range};
use mm::space::{AddressSpace, FaultError, VmOps};
use mm::sync::Arc;
use mm::tlb::{FULL_FLUSH_ABOVE, RING};
use testkit::emu::{EmuMachine, Event};

// covers: G3
#[test]
fn no_cpu_reaches_a_page_after_its_unmap() {
    let (emu, _mm, space) = small_pages(4, 3);
    unmap(&space, 1, 1);
    assert_gone(&emu, &space, 1);
    assert_eq!(emu.stats().ipis_sent, 3, "one interrupt for each other CPU");
    assert_eq!(emu.on_cpu(3, || load_from(&space, &emu, page(2))), Ok(2));
}

// covers: G3
#[test]
fn every_page_of_a_range_is_flushed() {
    for nr_pages in [1, 2, 7, FULL_FLUSH_ABOVE, FULL_FLUSH_ABOVE + 1] {
        let (emu, _mm, space) = small_pages(2, nr_pages + 2);
        unmap(&space, 1, nr_pages);
        (1..=nr_pages).for_each(|nr| assert_gone(&emu, &space, nr));
        let full = nr_pages > FULL_FLUSH_ABOVE;
        assert_eq!(emu.stats().full_flushes, if full { 2 } else { 0 });
        assert_eq!(emu.stats().page_flushes, if full { 0 } else { 2 * nr_pages });
    }
}

/// It is in no page table any more, and in the TLBs still: whoever takes it away next answers no earlier than its shootdown.
// covers: G3 R11
#[test]
fn a_page_that_somebody_else_has_taken_out_is_waited_for() {
    type TakeAway = fn(&Arc<EmuContext>, &Arc<Device>);
    let ways: [TakeAway; 3] = [
        |mm, device| assert!(memory_failure(mm, device.pfn(1), FailureKind::Media).unwrap().users.len() == 1),
        |mm, device| {
            let mut gather = Gather::new(mm);
            unmap_mapping_range(device.mapping(), 0, 3, &mut gather);
            _ = gather.finish();
        },
        |mm, device| {
            let mut gather = Gather::new(mm);
            unmap_leftovers(device.mapping(), &mut gather, &mut |_, _| ());
            _ = gather.finish();
        },
    ];
    for take_away in ways {
        let (emu, mm) = machine(2);
        let device = Device::dax_with(&mm, 512, PageSize::Size4K);
        let space = space_with(&mm, &device, 3, &[0, 1]);
        (0..2).for_each(|cpu| emu.on_cpu(cpu, || store_to(&space, &emu, page(1), 7).unwrap()));
        let mut taken = Gather::new(&mm);
        unmap_mapping_range(device.mapping(), 1, 1, &mut taken);
        emu.on_cpu(0, || take_away(&mm, &device));
        (0..2).for_each(|cpu| assert!(emu.on_cpu(cpu, || emu.read(page(1), true)).is_err(), "CPU {cpu} reaches it"));
        emu.on_cpu(0, || _ = taken.finish());
        emu.assert_no_stale();
    }
}

// covers: G3
#[test]
fn the_number_of_single_flushes_can_be_set() {
    for (above, nr_pages) in [(0, 1), (2, 2), (2, 3), (100, 100), (100, 101)] {
        let (emu, mm, space) = small_pages(2, nr_pages);
        mm.shootdown.set_full_flush_above(above);
        unmap(&space, 0, nr_pages);
        let stats = emu.stats();
        let expected = if nr_pages <= above { (2 * nr_pages, 0) } else { (0, 2) };
        assert_eq!((stats.page_flushes, stats.full_flushes), expected, "{nr_pages} pages, full above {above}");
        emu.assert_no_stale();
    }
}

// covers: G3
#[test]
fn a_cpu_that_has_something_else_loaded_is_not_disturbed() {
    let (emu, mm, space) = small_pages(4, 2);
    let other = AddressSpace::new(&mm, "other").unwrap();
    emu.on_cpu(1, || load(&mm, Some(&other)));
    emu.on_cpu(2, || load(&mm, None));
    emu.reset_stats();
    unmap(&space, 0, 1);
    assert_eq!(emu.stats().ipis_sent, 1, "CPU 3 alone");
    assert_eq!(emu.stats().page_flushes, 2, "CPUs 0 and 3");
    emu.assert_no_stale();
}

// covers: G7
#[test]
fn a_right_that_was_taken_away_cannot_be_used() {
    let (emu, _mm, space) = small_pages(2, 2);
    space.protect(page(0), PAGE_SIZE, Prot::USER_READ).unwrap();
    for cpu in 0..2 {
        let result = emu.on_cpu(cpu, || store_to(&space, &emu, page(0), 9));
        assert_eq!(result, Err(FaultError::AccessDenied(page(0))), "CPU {cpu}");
        assert_eq!(emu.on_cpu(cpu, || load_from(&space, &emu, page(0))), Ok(0));
    }
    emu.assert_no_stale();
}

// covers: G3
#[test]
fn table_pages_are_freed_after_every_cpu_has_forgotten_them() {
    let (emu, mm, space) = small_pages(3, 1024);
    let before = emu.live_tables();
    // The emulated machine itself panics where a table page is freed while a CPU's caches lead to it.
    unmap(&space, 0, 1024);
    assert_eq!(emu.live_tables(), 1, "the root alone is left of {before}");
    assert_eq!(mm.ledger.count(Kind::TablePages), 1);
    emu.assert_no_stale();
}

// covers: G3
#[test]
fn an_idle_cpu_is_left_alone_and_catches_up() {
    let (emu, mm, space) = small_pages(2, 3);
    emu.on_cpu(1, || go_idle(&mm));
    unmap(&space, 1, 1);
    assert_eq!(emu.stats().ipis_sent, 0);
    assert_eq!(emu.stale(1).len(), 1, "nothing was flushed there so far");
    emu.on_cpu(1, || wake(&mm));
    assert_gone(&emu, &space, 1);
}

// covers: G3
#[test]
fn an_idle_cpu_must_answer_when_table_pages_are_freed() {
    let (emu, mm, space) = small_pages(2, 3);
    emu.on_cpu(1, || go_idle(&mm));
    unmap(&space, 0, 3);
    assert_eq!(emu.stats().ipis_sent, 1);
    emu.assert_paths_live();
    emu.on_cpu(1, || wake(&mm));
    assert_gone(&emu, &space, 1);
}

// covers: G3
#[test]
fn a_cpu_that_missed_more_rounds_than_the_ring_remembers_forgets_everything() {
    let rounds = RING as u64 + 3;
    let (emu, mm, space) = small_pages(2, 2 * rounds + 1);
    emu.on_cpu(1, || go_idle(&mm));
    // Far apart and from the top down, so that no range happens to cover an earlier one.
    for nr in (0..rounds).rev() {
        unmap(&space, 2 * nr, 1);
    }
    emu.on_cpu(1, || wake(&mm));
    for nr in 0..rounds {
        assert_gone(&emu, &space, 2 * nr);
    }
    // As many as it remembers are caught up with one by one, without a full flush.
    let (emu, mm, space) = small_pages(2, 2 * RING as u64 + 1);
    emu.on_cpu(1, || go_idle(&mm));
    (0..RING as u64).for_each(|nr| unmap(&space, 2 * nr, 1));
    emu.reset_stats();
    emu.on_cpu(1, || wake(&mm));
    assert_eq!(emu.stats().full_flushes, 0);
    (0..RING as u64).for_each(|nr| assert_gone(&emu, &space, 2 * nr));
}

// covers: G2, G3
#[test]
fn the_acknowledgement_comes_after_the_flush() {
    let (emu, _mm, space) = small_pages(2, 3);
    emu.on_cpu(1, || {
        emu.irq_disable();
        let (sender, running) = (space.clone(), Arc::new(Mutex::new(None)));
        *running.lock().unwrap() = Some(emu.start(0, move || unmap(&sender, 1, 1)));
        let (at, watched) = (emu.clone(), running.clone());
        emu.at(1, Event::Flush, 1, move || {
            let watched = watched.lock().unwrap();
            let done = at.let_run(0, watched.as_ref().unwrap());
            assert!(!done, "the sender goes on before this CPU has flushed");
        });
        emu.irq_enable();
        emu.assert_hooks_ran();
        emu.finish(running.lock().unwrap().take().unwrap());
    });
    assert_gone(&emu, &space, 1);
}

// covers: G3
#[test]
fn the_entries_are_cleared_before_any_cpu_flushes() {
    let (emu, _mm, space) = small_pages(2, 3);
    // CPU 1 walks there again as soon as it has flushed, as it may: it finds the entry cleared, or has the translation back.
    let user = emu.clone();
    emu.at(1, Event::Flushed, 1, move || user.prefetch(page(1)));
    let sender = space.clone();
    emu.on_cpu(0, || unmap(&sender, 1, 1));
    emu.assert_hooks_ran();
    assert_gone(&emu, &space, 1);
}

// covers: G2, G3
#[test]
fn a_request_that_comes_during_the_flush_is_not_acknowledged_with_it() {
    let (emu, mm) = machine(3);
    let device = Device::dax_with(&mm, 64, PageSize::Size4K);
    let space = space_with(&mm, &device, 4, &[0, 1, 2]);
    for cpu in 0..3 {
        emu.on_cpu(cpu, || (0..4).for_each(|nr| store_to(&space, &emu, page(nr), nr).unwrap()));
    }
    device.kill();
    // Zaps from outside, which do not wait with the space locked.
    let (machine, file) = (mm.clone(), device.clone());
    let zap = move |nr| {
        let mut gather = Gather::new(&machine);
        unmap_mapping_range(&file.mapping, nr, 1, &mut gather);
        gather.finish();
    };
    emu.on_cpu(1, || {
        emu.irq_disable();
        let first = zap.clone();
        let first = emu.start(0, move || first(0));
        // After CPU 1 has flushed for the first round a second one is issued; after the first interrupt's handler
        // has ended that one must still be waiting.
        let second = Arc::new(Mutex::new(None));
        let (at, started) = (emu.clone(), second.clone());
        emu.at(1, Event::Flushed, 1, move || *started.lock().unwrap() = Some(at.start(2, move || zap(2))));
        let (at, watched) = (emu.clone(), second.clone());
        emu.at(1, Event::IpiTaken, 2, move || {
            let watched = watched.lock().unwrap();
            let done = at.let_run(2, watched.as_ref().unwrap());
            assert!(!done, "the second round is over, but this CPU has not flushed for it");
        });
        emu.irq_enable();
        emu.finish(first);
        let second = second.lock().unwrap().take().unwrap();
        emu.finish(second);
        emu.assert_hooks_ran();
    });
    emu.assert_no_stale();
}

// covers: G2, R12
#[test]
fn two_cpus_that_shoot_at_each_other_both_get_through() {
    shoot_at_each_other();
}

/// CPU 1 loads `space` and, between the load of the root and the end of the switch, fetches the translation of page
/// 1, which CPU 0 takes away at that moment. Answers whether CPU 0 had to wait.
fn load_while_unmapped(emu: &EmuMachine, mm: &Arc<EmuContext>, space: &Arc<Space>) -> bool {
    emu.on_cpu(1, || {
        let sender = Arc::new(Mutex::new(None));
        let (at, started, ours) = (emu.clone(), sender.clone(), space.clone());
        emu.at(1, Event::At(Point::SwitchLoaded), 1, move || {
            at.prefetch(page(1));
            *started.lock().unwrap() = Some(at.start(0, move || unmap(&ours, 1, 1)));
        });
        load(mm, Some(space));
        emu.assert_hooks_ran();
        let sender = sender.lock().unwrap().take().unwrap();
        emu.finish(sender);
        !emu.stale(1).is_empty()
    })
}

// covers: G3
#[test]
fn a_cpu_that_loads_the_space_during_a_round_takes_part_in_it() {
    let (emu, mm, space) = small_pages(2, 3);
    emu.on_cpu(1, || load(&mm, None));
    assert!(!load_while_unmapped(&emu, &mm, &space), "CPU 1 has kept the old translation");
    assert_gone(&emu, &space, 1);
}

// covers: G3
#[test]
fn an_idle_cpu_that_loads_the_space_does_not_pass_for_idle() {
    let (emu, mm, space) = small_pages(2, 3);
    let other = AddressSpace::new(&mm, "other").unwrap();
    emu.on_cpu(1, || {
        load(&mm, Some(&other));
        go_idle(&mm);
    });
    assert!(!load_while_unmapped(&emu, &mm, &space), "CPU 1 has kept the old translation");
    assert_gone(&emu, &space, 1);
}

// covers: G3
#[test]
fn a_cpu_that_leaves_the_space_during_a_round_answers_all_the_same() {
    let (emu, mm, space) = small_pages(2, 3);
    let other = AddressSpace::new(&mm, "other").unwrap();
    emu.on_cpu(0, || {
        let (at, machine, other) = (emu.clone(), mm.clone(), other.clone());
        emu.at(0, Event::IpiSent, 1, move || at.on_cpu(1, || load(&machine, Some(&other))));
        unmap(&space, 1, 1);
        emu.assert_hooks_ran();
    });
    emu.on_cpu(1, || load(&mm, Some(&space)));
    assert_gone(&emu, &space, 1);
}

// covers: R12
#[test]
fn addresses_are_not_used_again_while_a_round_from_outside_is_open() {
    let (emu, mm) = machine(2);
    let device = Device::dax_with(&mm, 64, PageSize::Size4K);
    let space = space_with(&mm, &device, 4, &[0, 1]);
    for cpu in 0..2 {
        emu.on_cpu(cpu, || store_to(&space, &emu, page(1), 11).unwrap());
    }
    emu.on_cpu(0, || {
        // Page 1 is cleared, but nothing is flushed yet: that is done when the gather is finished.
        let mut gather = Gather::new(&mm);
        unmap_mapping_range(&device.mapping, 1, 1, &mut gather);
        unmap(&space, 1, 1);
        // The same address maps another page now.
        space.map(page(1), PAGE_SIZE, Prot::USER_WRITE, &device.ops(), 40).unwrap();
        emu.set_stamp(device.pfn(40), 40);
        assert_eq!(load_from(&space, &emu, page(1)), Ok(40));
        assert_eq!(emu.on_cpu(1, || load_from(&space, &emu, page(1))), Ok(40));
        gather.finish();
    });
    emu.assert_no_stale();
}

// covers: G7, R12
#[test]
fn rights_are_narrowed_even_while_a_round_from_outside_is_open() {
    let (emu, mm) = machine(2);
    let device = Device::dax_with(&mm, 64, PageSize::Size4K);
    let space = space_with(&mm, &device, 4, &[0, 1]);
    emu.on_cpu(1, || store_to(&space, &emu, page(1), 11).unwrap());
    emu.on_cpu(0, || {
        // Page 1 is out of the table but still in the TLB of CPU 1, with the right to store.
        let mut gather = Gather::new(&mm);
        unmap_mapping_range(&device.mapping, 1, 1, &mut gather);
        space.protect(page(1), PAGE_SIZE, Prot::USER_READ).unwrap();
        assert!(emu.on_cpu(1, || store_to(&space, &emu, page(1), 12)).is_err());
        gather.finish();
    });
    emu.assert_no_stale();
}

// covers: R2, R12
#[test]
fn one_round_serves_all_address_spaces() {
    let (emu, mm) = machine(4);
    let device = Device::dax_with(&mm, 64, PageSize::Size4K);
    let spaces: Vec<_> = (0..4).map(|cpu| space_with(&mm, &device, 8, &[cpu])).collect();
    for (cpu, space) in spaces.iter().enumerate() {
        emu.on_cpu(cpu, || (0..8).for_each(|nr| store_to(space, &emu, page(nr), nr).unwrap()));
    }
    emu.reset_stats();
    let mut gather = Gather::new(&mm);
    device.kill();
    assert_eq!(unmap_mapping_range(&device.mapping, 0, u64::MAX, &mut gather).len(), 4);
    assert_eq!(emu.stats().ipis_sent, 0);
    let stats = gather.finish();
    assert_eq!((stats.rounds, stats.ipis, emu.stats().ipi_broadcasts, emu.stats().ipis_sent), (1, 3, 1, 3));
    emu.assert_no_stale();
    assert_eq!(device.pages.live_folios(), 0, "no reference is left");
    for (cpu, space) in spaces.iter().enumerate() {
        let result = emu.on_cpu(cpu, || load_from(space, &emu, page(3)));
        assert!(matches!(result, Err(FaultError::SigBus { .. })), "CPU {cpu}: {result:?}");
    }
}

// covers: R12
#[test]
fn a_mapping_that_is_cut_while_its_users_are_listed_is_unmapped_whole() {
    for front in [false, true] {
        let (emu, mm) = machine(2);
        let device = Device::dax_with(&mm, 64, PageSize::Size4K);
        let space = space_with(&mm, &device, 8, &[0, 1]);
        emu.on_cpu(1, || (0..8).for_each(|nr| store_to(&space, &emu, page(nr), nr).unwrap()));
        device.kill();
        let (at, ours) = (emu.clone(), space.clone());
        emu.at(0, Event::At(Point::UsersListed), 1, move || {
            // The first page goes, or a hole in the middle.
            at.on_cpu(1, || unmap(&ours, if front { 0 } else { 3 }, 1));
        });
        emu.on_cpu(0, || {
            let mut gather = Gather::new(&mm);
            unmap_mapping_range(&device.mapping, 0, u64::MAX, &mut gather);
            gather.finish();
        });
        emu.assert_hooks_ran();
        assert!(emu.leaves(space.tlb().root()).is_empty(), "{:?}", emu.leaves(space.tlb().root()));
        assert_eq!(device.pages.live_folios(), 0);
        emu.assert_no_stale();
    }
}
