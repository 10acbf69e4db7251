//! Machine-check banks (SDM vol. 3B chapter 16).

use core::arch::global_asm;

use raw_cpuid::{CpuId, Hypervisor};
use x86_64::registers::control::{Cr4, Cr4Flags};
use x86_64::registers::model_specific::Msr;

use crate::cpu::IrqSave;
use crate::trap::TrapFrame;

const MCG_CAP: u32 = 0x179;
const MCG_STATUS: u32 = 0x17a;
const MC0_CTL: u32 = 0x400;

/// MCG_STATUS: what was interrupted can be continued (RIPV), a machine check is in progress (MCIP).
const RIPV: u64 = 1 << 0;
const MCIP: u64 = 1 << 2;
/// MCi_STATUS of a memory error that scrubbing has found (SDM vol. 3B §16.3.2.2, §16.9.3.1): valid (bit 63), uncorrected
/// (61), enabled (60), with MISC (59) and address (58), signalled (56), error code of memory scrubbing (0xc0).
const SCRUBBED: u64 = 1 << 63 | 1 << 61 | 1 << 60 | 1 << 59 | 1 << 58 | 1 << 56 | 0xc0;
/// MCi_MISC bits 6 to 8: the address is physical (§16.3.2.4).
const PHYSICAL: u64 = 0b10 << 6;

/// One bank that held a valid error.
#[derive(Clone, Copy, Debug)]
pub struct BankError {
    /// Which bank.
    pub bank: u8,
    /// MCi_STATUS.
    pub status: u64,
    /// MCi_ADDR, a physical address, where the bank gave one.
    pub addr: Option<u64>,
    /// MCi_MISC, where the bank gave one.
    pub misc: Option<u64>,
    /// The program that was interrupted can be continued (MCG_STATUS.RIPV).
    pub is_restartable: bool,
}

impl BankError {
    /// The error was not corrected.
    pub fn is_uncorrected(&self) -> bool {
        self.status & (1 << 61) != 0
    }
    /// The processor's context may be corrupt: nothing can go on.
    pub fn is_context_corrupt(&self) -> bool {
        self.status & (1 << 57) != 0
    }
    /// log2 of the size of what was lost, in bytes, where the bank says so (MISC bits 0 to 5).
    pub fn lost_shift(&self) -> u32 {
        self.misc.map_or(6, |misc| (misc & 0x3f) as u32)
    }
}

fn nr_banks() -> u8 {
    // SAFETY: the caller checked that the CPU has MCA, and with it this register.
    unsafe { Msr::new(MCG_CAP).read() as u8 }
}

/// Lets every bank of this CPU report. Call on each CPU that has the machine-check architecture.
///
/// # Safety
/// CPUID reports MCA.
pub unsafe fn init() {
    for bank in 0..u32::from(nr_banks()) {
        // SAFETY: the bank exists; all ones enables every error that it can report, zero clears what the firmware
        // left.
        unsafe {
            Msr::new(MC0_CTL + 4 * bank).write(u64::MAX);
            Msr::new(MC0_CTL + 4 * bank + 1).write(0);
        }
    }
}

/// Calls `each` with every valid error of this CPU and clears it; then clears "machine check in progress", without
/// which a second machine check would be a shutdown.
///
/// # Safety
/// CPUID reports MCA; called from the machine-check handler.
pub unsafe fn drain(mut each: impl FnMut(BankError)) {
    // SAFETY: the register exists with MCA.
    let is_restartable = unsafe { Msr::new(MCG_STATUS).read() } & RIPV != 0;
    for bank in 0..nr_banks() {
        let base = MC0_CTL + 4 * u32::from(bank);
        // SAFETY: the bank exists; ADDR and MISC are read only where STATUS says that they are there.
        unsafe {
            let status = Msr::new(base + 1).read();
            if status & (1 << 63) == 0 {
                continue;
            }
            let addr = (status & (1 << 58) != 0).then(|| Msr::new(base + 2).read());
            let misc = (status & (1 << 59) != 0).then(|| Msr::new(base + 3).read());
            Msr::new(base + 1).write(0);
            each(BankError { bank, status, addr, misc, is_restartable });
        }
    }
    // SAFETY: the register exists with MCA; zero clears MCIP.
    unsafe { Msr::new(MCG_STATUS).write(0) };
}

global_asm!(
    r#"
    .section .text.arch_mce, "ax", @progbits
    .global arch_mce_raise
    .global arch_mce_raised
    .balign 16
arch_mce_raise:
    int 18
arch_mce_raised:
    ret
    .text
"#
);

unsafe extern "C" {
    fn arch_mce_raise();
    static arch_mce_raised: u8;
}

/// Can [`raise`] do what it says on this machine?
pub fn can_raise() -> bool {
    let cpuid = CpuId::new();
    let has_mca = cpuid.get_feature_info().is_some_and(|basic| basic.has_mca());
    let is_emulated = cpuid.get_hypervisor_info().is_some_and(|info| info.identify() == Hypervisor::QEMU);
    // The handler is there where machine checks are on: see `Features::enable`.
    has_mca && is_emulated && Cr4::read().contains(Cr4Flags::MACHINE_CHECK_EXCEPTION)
}

/// Raises a machine check on this CPU: the memory from `addr` on, 2^`lost_shift` bytes, is lost. Its handler has run when
/// this returns. Answers whether it could be done.
///
/// The way of Linux's `mce-inject`: write the registers of a bank, then `int 18`, which enters the handler through the
/// same gate, on the same stack. A CPU answers such a write by #GP, for software may only clear a bank (SDM vol. 3B
/// §16.3.2.2), and KVM does as a CPU does. QEMU's own emulation keeps what is written (`helper_wrmsr`): so only there.
///
/// Where somebody else raises one on this CPU between the last write and the handler's end, the machine shuts down, as
/// it does whenever two come at once.
pub fn raise(addr: u64, lost_shift: u32) -> bool {
    if !can_raise() {
        return false;
    }
    let Some(bank) = nr_banks().checked_sub(1) else { return false };
    let base = MC0_CTL + 4 * u32::from(bank);
    // Nobody else on this CPU comes between the registers and the exception.
    let _irq = IrqSave::new();
    // SAFETY: the bank exists, and the emulation takes every value. The gate of vector 18 has a handler, which keeps every
    // register.
    unsafe {
        Msr::new(base + 2).write(addr);
        Msr::new(base + 3).write(PHYSICAL | u64::from(lost_shift));
        Msr::new(base + 1).write(SCRUBBED);
        Msr::new(MCG_STATUS).write(RIPV | MCIP);
        arch_mce_raise();
    }
    true
}

/// Is the machine check that was taken with these registers one that [`raise`] has made?
pub fn is_raised_here(frame: &TrapFrame) -> bool {
    frame.rip == (&raw const arch_mce_raised) as u64
}
