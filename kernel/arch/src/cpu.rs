//! Small verbs of one CPU: interrupt flag, halt, pause, time-stamp counter, control registers.

use core::arch::asm;

use x86_64::registers::control::{Cr2, Cr3};

/// Bit 9 of RFLAGS: maskable interrupts are on.
pub const RFLAGS_IF: u64 = 1 << 9;

/// Are maskable interrupts on, on this CPU?
#[inline]
pub fn irqs_on() -> bool {
    x86_64::instructions::interrupts::are_enabled()
}

/// Turns maskable interrupts off and answers whether they were on.
#[inline]
pub fn irq_disable() -> bool {
    let was_on = irqs_on();
    x86_64::instructions::interrupts::disable();
    was_on
}

/// Turns maskable interrupts on. The library's `sti` is followed by a `nop`, and needs it: where a jump follows, QEMU
/// 7.2 goes on to the next `cli` without a look at the interrupt that waits.
#[inline]
pub fn irq_enable() {
    x86_64::instructions::interrupts::enable();
}

/// Interrupts off for as long as the value lives; what was before is restored when it is dropped.
///
/// The kernel's own guard for its innermost locks. `mm::machine::IrqOff` is the one that `mm` asks for.
#[must_use = "interrupts come back on when this is dropped"]
pub struct IrqSave {
    was_on: bool,
    _not_send: core::marker::PhantomData<*const ()>,
}

impl IrqSave {
    /// Turns interrupts off on this CPU.
    #[inline]
    #[expect(clippy::new_without_default, reason = "turning interrupts off is not a default value of anything")]
    pub fn new() -> Self {
        Self { was_on: irq_disable(), _not_send: core::marker::PhantomData }
    }
}

impl Drop for IrqSave {
    #[inline]
    fn drop(&mut self) {
        if self.was_on {
            irq_enable();
        }
    }
}

/// `pause`: in every spin loop. Where CPUs take turns on one host thread it also hands the turn over.
#[inline]
pub fn pause() {
    core::hint::spin_loop();
}

/// Turns interrupts on and halts until one comes; `sti` delays interrupts by one instruction, so that none is lost
/// between the two (SDM vol. 2B, STI).
#[inline]
pub fn irq_enable_and_halt() {
    x86_64::instructions::interrupts::enable_and_hlt();
}

/// Stops this CPU for good: only an NMI could wake it, and then it halts again.
pub fn halt_forever() -> ! {
    loop {
        x86_64::instructions::interrupts::disable();
        x86_64::instructions::hlt();
    }
}

/// The time-stamp counter, in ticks. Not serialising.
#[inline]
pub fn rdtsc() -> u64 {
    // SAFETY: RDTSC exists on every x86-64 CPU and CR4.TSD is clear in ring 0's way only for ring 3.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// The linear address of the last page fault on this CPU. The raw value: it need not be canonical-checked again.
#[inline]
pub fn fault_address() -> u64 {
    Cr2::read_raw()
}

/// Physical address of the root table that this CPU has loaded, in bytes.
#[inline]
pub fn root_table() -> u64 {
    Cr3::read().0.start_address().as_u64()
}

/// The frame pointer of the caller, for a backtrace.
#[inline(always)]
pub fn frame_pointer() -> u64 {
    let rbp: u64;
    // SAFETY: reads one register.
    unsafe { asm!("mov {}, rbp", out(reg) rbp, options(nomem, nostack, preserves_flags)) };
    rbp
}

/// The stack pointer, roughly: that of the caller's frame after inlining.
#[inline(always)]
pub fn stack_pointer() -> u64 {
    let rsp: u64;
    // SAFETY: reads one register.
    unsafe { asm!("mov {}, rsp", out(reg) rsp, options(nomem, nostack, preserves_flags)) };
    rsp
}

/// Raises a breakpoint exception (vector 3), which a kernel that handles its traps survives.
pub fn breakpoint() {
    x86_64::instructions::interrupts::int3();
}
