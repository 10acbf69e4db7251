//! Lab 4: what a shootdown's sender waits for, one fault for each test (`docs/labs/4-wait.md`). All of the shootdown is in
//! `stale.rs`.
#![cfg(not(loom))]

mod common;

use std::sync::Mutex;

use common::cached::{assert_gone, shoot_at_each_other, small_pages, unmap};
use common::{Device, EmuContext, machine, page, space_with, store_to};
use mm::addr::PageSize;
use mm::gather::Gather;
use mm::machine::Machine;
use mm::mapping::unmap_mapping_range;
use mm::sync::Arc;
use testkit::emu::{EmuMachine, Event};

// covers: G2, G3, T5
#[test]
fn a_cpu_that_has_not_answered_is_waited_for() {
    let (emu, _mm, space) = small_pages(2, 3);
    emu.on_cpu(1, || {
        emu.irq_disable();
        let sender = space.clone();
        let running = emu.start(0, move || unmap(&sender, 1, 1));
        assert!(!running.is_finished(), "CPU 1 has its interrupts off, and was not waited for");
        emu.irq_enable();
        emu.finish(running);
    });
    assert_gone(&emu, &space, 1);
}

// covers: G2, G3, T5
#[test]
fn every_cpu_is_waited_for() {
    let (emu, _mm, space) = small_pages(4, 3);
    emu.on_cpu(3, || {
        emu.irq_disable();
        let sender = space.clone();
        let running = emu.start(0, move || unmap(&sender, 1, 1));
        // Nobody runs on the two others, so their interrupts are taken at once.
        (1..3).for_each(|cpu| _ = emu.deliver(cpu));
        assert!(!emu.let_run(0, &running), "CPU 3 has its interrupts off, and only the others were waited for");
        emu.irq_enable();
        emu.finish(running);
    });
    assert_gone(&emu, &space, 1);
}

/// Three CPUs with a file mapped, and what takes one page of it away from outside.
fn zapper() -> (EmuMachine, impl Fn(u64) + Clone + Send + 'static) {
    let (emu, mm) = machine(3);
    let device = Device::dax_with(&mm, 64, PageSize::Size4K);
    let space = space_with(&mm, &device, 4, &[0, 1, 2]);
    for cpu in 0..3 {
        emu.on_cpu(cpu, || (0..4).for_each(|nr| store_to(&space, &emu, page(nr), nr).expect("it is mapped")));
    }
    device.kill();
    let mm: Arc<EmuContext> = mm;
    let zap = move |nr| {
        // It stays mapped for as long as somebody zaps it.
        let _space = &space;
        let mut gather = Gather::new(&mm);
        unmap_mapping_range(&device.mapping, nr, 1, &mut gather);
        gather.finish();
    };
    (emu, zap)
}

// covers: G3, T5
#[test]
fn a_later_answer_is_an_answer_too() {
    let (emu, zap) = zapper();
    emu.on_cpu(1, || {
        emu.irq_disable();
        let (one, two) = (zap.clone(), zap.clone());
        let first = emu.start(0, move || one(0));
        let second = emu.start(2, move || two(2));
        // One run of the handler answers both.
        emu.irq_enable();
        emu.finish(first);
        emu.finish(second);
    });
    emu.assert_no_stale();
}

// covers: R12, T5
#[test]
fn nobody_waits_for_what_others_ask_later() {
    let (emu, zap) = zapper();
    emu.on_cpu(1, || {
        emu.irq_disable();
        let (one, two) = (zap.clone(), zap.clone());
        let first = emu.start(0, move || one(0));
        let second = Arc::new(Mutex::new(None));
        let (at, started) = (emu.clone(), second.clone());
        // While CPU 1 flushes for the first, the next is asked for.
        emu.at(1, Event::Flush, 1, move || *started.lock().unwrap() = Some(at.start(2, move || two(2))));
        let (at, first) = (emu.clone(), Arc::new(Mutex::new(Some(first))));
        let watched = first.clone();
        // At the second interrupt CPU 1 has answered the first round, and not yet the second.
        emu.at(1, Event::IpiTaken, 2, move || {
            let first = watched.lock().unwrap();
            assert!(at.let_run(0, first.as_ref().unwrap()), "the first round was answered, and its sender waits on");
        });
        emu.irq_enable();
        emu.finish(first.lock().unwrap().take().unwrap());
        emu.finish(second.lock().unwrap().take().unwrap());
        emu.assert_hooks_ran();
    });
    emu.assert_no_stale();
}

// covers: G2, R12, T5
#[test]
fn two_cpus_that_shoot_at_each_other_both_get_through() {
    shoot_at_each_other();
}
