//! Machine-check banks (SDM vol. 3B chapter 16).

use x86_64::registers::model_specific::Msr;

const MCG_CAP: u32 = 0x179;
const MCG_STATUS: u32 = 0x17a;
const MC0_CTL: u32 = 0x400;

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
    let is_restartable = unsafe { Msr::new(MCG_STATUS).read() } & 1 != 0;
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
