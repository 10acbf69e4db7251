//! The local APIC: inter-processor interrupts, end of interrupt, timer (SDM vol. 3A chapter 11).
//!
//! xAPIC (registers in memory) unless CPUID offers x2APIC (registers are MSRs). QEMU's TCG offers only the first, so
//! only that one is tested.
//!
//! The `x2apic` crate covers the same ground; it is not used because it neither waits for the delivery of the
//! previous interrupt command nor masks the local pins, and its handle cannot be used from an NMI.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use x86_64::registers::model_specific::Msr;

use crate::cpu::{self, IrqSave};

const APIC_BASE_MSR: u32 = 0x1b;
const BASE_ENABLE: u64 = 1 << 11;
const BASE_X2APIC: u64 = 1 << 10;
/// First MSR of the x2APIC registers; register offset / 16 is added.
const X2APIC_MSR: u32 = 0x800;

/// Register offsets.
mod reg {
    pub const ID: u32 = 0x20;
    pub const TASK_PRIORITY: u32 = 0x80;
    pub const EOI: u32 = 0xb0;
    pub const SPURIOUS: u32 = 0xf0;
    pub const ERROR_STATUS: u32 = 0x280;
    pub const ICR_LOW: u32 = 0x300;
    pub const ICR_HIGH: u32 = 0x310;
    pub const LVT_TIMER: u32 = 0x320;
    pub const LVT_LINT0: u32 = 0x350;
    pub const LVT_LINT1: u32 = 0x360;
    pub const LVT_ERROR: u32 = 0x370;
    pub const TIMER_INITIAL: u32 = 0x380;
    pub const TIMER_CURRENT: u32 = 0x390;
    pub const TIMER_DIVIDE: u32 = 0x3e0;
}

const LVT_MASKED: u32 = 1 << 16;
const LVT_PERIODIC: u32 = 1 << 17;
const ICR_PENDING: u32 = 1 << 12;
const ICR_ASSERT: u32 = 1 << 14;
const ICR_SELF: u32 = 0b01 << 18;
const ICR_ALL_BUT_SELF: u32 = 0b11 << 18;
const DELIVER_NMI: u32 = 0b100 << 8;
const DELIVER_INIT: u32 = 0b101 << 8;
const DELIVER_STARTUP: u32 = 0b110 << 8;

/// Kernel address of the memory-mapped registers; the same on every CPU, each of which sees its own.
static MMIO: AtomicU64 = AtomicU64::new(0);
static X2APIC: AtomicBool = AtomicBool::new(false);

/// Physical address of the xAPIC registers, as the firmware left it.
pub fn physical_base() -> u64 {
    // SAFETY: the register exists on every CPU with a local APIC, which x86-64 long mode implies in practice.
    unsafe { Msr::new(APIC_BASE_MSR).read() & 0x000f_ffff_ffff_f000 }
}

/// Says how the registers are reached: by MSR where `x2apic` (found by CPUID), else at the kernel address `mmio`.
///
/// # Safety
/// `mmio` maps the page at [`physical_base`], uncached, for ever. Called once, before [`init_cpu`].
pub unsafe fn init(x2apic: bool, mmio: u64) {
    X2APIC.store(x2apic, Ordering::Relaxed);
    MMIO.store(mmio, Ordering::Relaxed);
}

/// Are the registers reached by MSR?
#[inline]
pub fn is_x2apic() -> bool {
    X2APIC.load(Ordering::Relaxed)
}

fn read(register: u32) -> u32 {
    if is_x2apic() {
        // SAFETY: x2APIC mode is on, and the register exists in both modes.
        return unsafe { Msr::new(X2APIC_MSR + (register >> 4)).read() as u32 };
    }
    // SAFETY: `init` was given the mapped registers.
    unsafe { ((MMIO.load(Ordering::Relaxed) + u64::from(register)) as *const u32).read_volatile() }
}

fn write(register: u32, value: u32) {
    if is_x2apic() {
        // SAFETY: as in `read`.
        return unsafe { Msr::new(X2APIC_MSR + (register >> 4)).write(u64::from(value)) };
    }
    // SAFETY: as in `read`.
    unsafe { ((MMIO.load(Ordering::Relaxed) + u64::from(register)) as *mut u32).write_volatile(value) }
}

/// Switches this CPU's APIC on: all vectors let through, local pins masked, timer stopped on `timer_vector`, errors
/// on `error_vector`, spurious interrupts on `spurious_vector`.
pub fn init_cpu(timer_vector: u8, error_vector: u8, spurious_vector: u8) {
    let mode = if is_x2apic() { BASE_ENABLE | BASE_X2APIC } else { BASE_ENABLE };
    // SAFETY: enables the APIC where the firmware left it, in the mode that CPUID offers.
    unsafe {
        let mut base = Msr::new(APIC_BASE_MSR);
        let old = base.read();
        base.write(old | mode);
    }
    write(reg::TASK_PRIORITY, 0);
    write(reg::LVT_LINT0, LVT_MASKED);
    write(reg::LVT_LINT1, LVT_MASKED);
    write(reg::LVT_ERROR, u32::from(error_vector));
    write(reg::LVT_TIMER, u32::from(timer_vector));
    write(reg::TIMER_INITIAL, 0);
    // Divide by 16: 0b0011.
    write(reg::TIMER_DIVIDE, 0b0011);
    write(reg::SPURIOUS, 0x100 | u32::from(spurious_vector));
    write(reg::ERROR_STATUS, 0);
}

/// This CPU's APIC id.
pub fn id() -> u32 {
    let raw = read(reg::ID);
    if is_x2apic() { raw } else { raw >> 24 }
}

/// Ends the interrupt in service.
#[inline]
pub fn end_of_interrupt() {
    write(reg::EOI, 0);
}

/// Errors since the last call (SDM vol. 3A §11.5.3), as the raw register.
pub fn take_errors() -> u32 {
    write(reg::ERROR_STATUS, 0);
    read(reg::ERROR_STATUS)
}

/// Writes the interrupt command register, after the previous command has left.
fn command(destination: u32, low: u32) {
    if is_x2apic() {
        // SAFETY: x2APIC mode is on; one 64-bit write, no pending bit.
        return unsafe {
            Msr::new(X2APIC_MSR + (reg::ICR_LOW >> 4)).write(u64::from(destination) << 32 | u64::from(low));
        };
    }
    // The two halves belong together: an interrupt handler that sends between them would change the destination.
    let _irqs_off = IrqSave::new();
    while read(reg::ICR_LOW) & ICR_PENDING != 0 {
        cpu::pause();
    }
    write(reg::ICR_HIGH, destination << 24);
    write(reg::ICR_LOW, low);
}

/// Interrupts the CPU with APIC id `destination` at `vector`. Usable from any context.
///
/// The stores that the receiver is to see are made visible first: the x2APIC write is not serialising, so a fence
/// stands before it; the memory-mapped write is uncached and strongly ordered.
pub fn send(destination: u32, vector: u8) {
    if is_x2apic() {
        core::sync::atomic::fence(Ordering::SeqCst);
    }
    command(destination, ICR_ASSERT | u32::from(vector));
}

/// Interrupts every other CPU at `vector`: one command, however many there are. Otherwise as [`send`].
pub fn send_to_all_others(vector: u8) {
    if is_x2apic() {
        core::sync::atomic::fence(Ordering::SeqCst);
    }
    command(0, ICR_ASSERT | ICR_ALL_BUT_SELF | u32::from(vector));
}

/// Interrupts this CPU at `vector` as soon as interrupts are on. Usable in an NMI or machine check: where that came
/// between the two halves of another command, the first half stays as it was.
pub fn send_to_self(vector: u8) {
    let low = ICR_ASSERT | ICR_SELF | u32::from(vector);
    if is_x2apic() {
        return command(0, low);
    }
    write(reg::ICR_LOW, low);
}

/// Sends an NMI to every other CPU.
pub fn send_nmi_to_all_others() {
    command(0, ICR_ASSERT | ICR_ALL_BUT_SELF | DELIVER_NMI);
}

/// Sends an NMI to one CPU.
pub fn send_nmi(destination: u32) {
    command(destination, ICR_ASSERT | DELIVER_NMI);
}

/// Sends INIT: the CPU stops and waits for a start-up interrupt.
pub fn send_init(destination: u32) {
    command(destination, ICR_ASSERT | DELIVER_INIT);
}

/// Sends INIT to every other CPU: what the firmware left them doing ends.
pub fn send_init_to_all_others() {
    command(0, ICR_ASSERT | ICR_ALL_BUT_SELF | DELIVER_INIT);
}

/// Sends a start-up interrupt: the CPU begins in real mode at physical address `page << 12`.
pub fn send_startup(destination: u32, page: u8) {
    command(destination, ICR_ASSERT | DELIVER_STARTUP | u32::from(page));
}

/// Starts the timer once, to interrupt after `ticks` of its own clock (divided by 16); 0 stops it.
#[inline]
pub fn timer_arm(ticks: u32) {
    write(reg::TIMER_INITIAL, ticks);
}

/// Chooses whether the timer counts once, or begins anew by itself until it is stopped; it is stopped by this. `vector`
/// is where it interrupts.
pub fn timer_mode(vector: u8, periodic: bool) {
    write(reg::TIMER_INITIAL, 0);
    write(reg::LVT_TIMER, u32::from(vector) | if periodic { LVT_PERIODIC } else { 0 });
}

/// What is left of the count.
pub fn timer_current() -> u32 {
    read(reg::TIMER_CURRENT)
}
