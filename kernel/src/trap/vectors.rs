//! Exceptions and interrupts: what each vector means here.

use core::sync::atomic::Ordering;

use arch::trap::{TrapFrame, exception_name, vector};
use arch::{apic, cpu, mce, probe};
use mm::addr::VirtAddr;
use mm::machine::IrqOff;
use spin::Once;

use crate::console::ring::{self, Note};
use crate::cpu::ipi::{
    VECTOR_APIC_ERROR, VECTOR_EVENTS, VECTOR_IOMMU, VECTOR_MEMORY_ERROR, VECTOR_RESCHEDULE, VECTOR_SHOOTDOWN,
    VECTOR_SPURIOUS, VECTOR_TEST, VECTOR_TIMER,
};
use crate::cpu::percpu::{self, InInterrupt};
use crate::mem::{kstack, machine};
use crate::task::tcb::Signal;
use crate::task::{sched, user};
use crate::trap::events;
use crate::trap::memory_error::{self, RaisedBy};
use crate::trap::panic::{self, Cause};

/// Who takes the records of the IOMMU.
static IOMMU_FAULTS: Once<fn()> = Once::new();

/// From now on `handler` is called, with interrupts off, when the IOMMU has recorded a fault. Called once.
pub fn handle_iommu_faults(handler: fn()) {
    IOMMU_FAULTS.call_once(|| handler);
}

/// Every exception and interrupt arrives here, with interrupts off.
#[unsafe(no_mangle)]
extern "C" fn kernel_trap(frame: &mut TrapFrame) {
    if frame.vector >= vector::FIRST_INTERRUPT {
        interrupt(frame.vector as u8);
        if matches!(frame.vector as u8, VECTOR_SHOOTDOWN | VECTOR_TEST) {
            // The sender waits for our answer. Where CPUs take turns on one host thread this passes the turn on, instead
            // of going on with our own work while it waits.
            cpu::pause();
        }
        if frame.vector as u8 == VECTOR_TIMER && sched::passes_turn() {
            cpu::pause();
        }
        sched::preempt_if_needed();
        return;
    }
    match frame.vector {
        vector::PAGE_FAULT => page_fault(frame),
        vector::BREAKPOINT => {
            percpu::this().breakpoints.fetch_add(1, Ordering::Relaxed);
        }
        vector::NMI => nmi(frame),
        vector::MACHINE_CHECK => machine_check(frame),
        vector::DOUBLE_FAULT => double_fault(frame),
        other => panic::die(Cause::Trap { frame, what: format_args!("{}", exception_name(other)) }),
    }
}

fn interrupt(vector: u8) {
    let _no_printing = InInterrupt::enter();
    match vector {
        VECTOR_SHOOTDOWN => {
            let mm = machine::mm();
            mm.shootdown.handle_ipi(&IrqOff::new(&mm.machine));
        }
        VECTOR_TIMER => sched::on_timer(),
        VECTOR_RESCHEDULE => sched::on_reschedule(),
        VECTOR_MEMORY_ERROR => memory_error::on_interrupt(),
        VECTOR_EVENTS => events::on_interrupt(),
        VECTOR_TEST => {
            percpu::this().test_ipis.fetch_add(1, Ordering::Release);
        }
        VECTOR_IOMMU => {
            if let Some(handler) = IOMMU_FAULTS.get() {
                handler();
            }
        }
        VECTOR_APIC_ERROR => ring::note(Note::ApicError, u64::from(apic::take_errors())),
        VECTOR_SPURIOUS => {
            ring::note(Note::Spurious, 0);
            // A spurious interrupt is not in service: no end of interrupt (SDM vol. 3A §11.9).
            return;
        }
        other => ring::note(Note::UnexpectedInterrupt, u64::from(other)),
    }
    apic::end_of_interrupt();
}

/// A fault in a user access is served by the task's address space, or makes the access fail; every other fault is a
/// bug of ours.
fn page_fault(frame: &mut TrapFrame) {
    let addr = cpu::fault_address();
    let fixup = arch::user::fixup(frame.rip).filter(|_| addr < arch::user::USER_END);
    let Some(fixup) = fixup else {
        if probe::finish(frame) {
            return;
        }
        let access = user::access_of(frame.error);
        if kstack::is_guard(addr) {
            panic::die(Cause::Trap { frame, what: format_args!("stack overflow: {access:?} at {addr:#x}") });
        }
        panic::die(Cause::Trap { frame, what: format_args!("page fault: {access:?} at {addr:#x}") });
    };
    assert!(frame.irqs_were_on(), "user memory was accessed with interrupts off, at {addr:#x}");
    let va = VirtAddr::new(addr);
    let Some(task) = sched::current() else {
        frame.rip = fixup;
        return;
    };
    let Some(space) = task.space() else {
        task.set_fault(Signal::SigSegv { addr: va });
        frame.rip = fixup;
        return;
    };
    // Serving the fault may take locks and wait for a shootdown.
    cpu::irq_enable();
    let served = space.handle_fault(va, user::access_of(frame.error));
    drop(space);
    cpu::irq_disable();
    match served {
        Ok(()) => {
            task.faults.fetch_add(1, Ordering::Relaxed);
        }
        Err(error) => {
            task.set_fault(error.into());
            frame.rip = fixup;
        }
    }
}

/// The CPU could not deliver an exception: most likely the stack has overflowed.
fn double_fault(frame: &TrapFrame) {
    let addr = cpu::fault_address();
    if kstack::is_guard(addr) {
        panic::die(Cause::Trap { frame, what: format_args!("stack overflow: the guard page at {addr:#x} was hit") });
    }
    panic::die(Cause::Trap { frame, what: format_args!("double fault, last page fault at {addr:#x}") });
}

fn nmi(frame: &TrapFrame) {
    if panic::is_panicking() {
        panic::stop_this_cpu(frame);
    }
    ring::note(Note::UnknownNmi, 0);
}

fn machine_check(frame: &TrapFrame) {
    let by = if mce::is_raised_here(frame) { RaisedBy::Kernel } else { RaisedBy::Host };
    let mut fatal = None;
    // SAFETY: a machine check arrives only where CR4.MCE is on, which `Features::enable` does by CPUID.
    unsafe {
        mce::drain(|error| {
            if let Err(reason) = memory_error::note(&error, by) {
                fatal = Some((error, reason));
            }
        });
    }
    if let Some((error, reason)) = fatal {
        let (bank, status, addr) = (error.bank, error.status, error.addr.unwrap_or(0));
        let what = format_args!("machine check: {reason}: bank {bank} status {status:#x} address {addr:#x}");
        panic::die(Cause::Trap { frame, what });
    }
}
