//! Interrupts to CPUs: the vectors that this kernel uses, and how one CPU interrupts others.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arch::{apic, percpu as area};
use mm::machine::{CpuId, CpuMask};

use crate::cpu::percpu;

/// Another CPU asks us to flush translations.
pub const VECTOR_SHOOTDOWN: u8 = 0xf1;
/// Another CPU has given us a task.
pub const VECTOR_RESCHEDULE: u8 = 0xf0;
/// The machine-check handler has noted an error.
pub const VECTOR_MEMORY_ERROR: u8 = 0xf2;
/// A test: the handler counts.
pub const VECTOR_TEST: u8 = 0xf3;
/// The IOMMU has recorded a fault.
pub const VECTOR_IOMMU: u8 = 0xd0;
/// The local timer.
pub const VECTOR_TIMER: u8 = 0xe0;
/// The local APIC reports an error.
pub const VECTOR_APIC_ERROR: u8 = 0xe1;
/// The machine tells of its hardware: memory that was plugged in, say.
pub const VECTOR_EVENTS: u8 = 0xe2;
/// Spurious interrupt; the low four bits are ones, as old APICs want it.
pub const VECTOR_SPURIOUS: u8 = 0xff;

static UP: AtomicBool = AtomicBool::new(false);
/// The CPUs that are online, by number: as [`percpu::online`], in one load.
static ONLINE: AtomicU64 = AtomicU64::new(0);

/// Do interrupts between CPUs work yet?
pub fn is_up() -> bool {
    UP.load(Ordering::Acquire)
}

/// Interrupts between CPUs work from now on.
pub fn set_up() {
    UP.store(true, Ordering::Release);
}

/// The CPU that calls takes interrupts and runs tasks from now on.
pub fn go_online() {
    // Release; pairs with the Acquire in `percpu::online`.
    percpu::this().online.store(true, Ordering::Release);
    ONLINE.fetch_or(1 << area::cpu(), Ordering::Relaxed);
}

/// Interrupts CPU `cpu` at `vector`.
pub fn send(cpu: CpuId, vector: u8) {
    if let Some(target) = percpu::get(cpu) {
        apic::send(target.apic_id.load(Ordering::Relaxed), vector);
    }
}

/// Interrupts all of `cpus`, none of which is this one, at `vector`.
pub fn send_to(cpus: CpuMask, vector: u8) {
    // One command where they are all there are: each costs about as much as all else that a shootdown's sender does.
    let others = ONLINE.load(Ordering::Relaxed) & !(1 << area::cpu());
    let several = cpus.bits() & cpus.bits().wrapping_sub(1) != 0;
    if several && cpus.bits() == others {
        apic::send_to_all_others(vector);
        return;
    }
    cpus.iter().for_each(|cpu| send(cpu, vector));
}
