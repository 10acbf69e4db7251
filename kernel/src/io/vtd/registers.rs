//! A unit's registers (Intel VT-d specification 4.0, chapter 11).

use iommu::fault::RECORDED;
use mm::addr::Pfn;

use crate::io::pci::Registers;

const VERSION: u64 = 0x00;
const CAPABILITY: u64 = 0x08;
const EXTENDED_CAPABILITY: u64 = 0x10;
const GLOBAL_COMMAND: u64 = 0x18;
const GLOBAL_STATUS: u64 = 0x1c;
const ROOT_TABLE: u64 = 0x20;
const FAULT_STATUS: u64 = 0x34;
const FAULT_CONTROL: u64 = 0x38;
const FAULT_DATA: u64 = 0x3c;
const FAULT_ADDRESS: u64 = 0x40;
const FAULT_ADDRESS_UPPER: u64 = 0x44;
const QUEUE_HEAD: u64 = 0x80;
const QUEUE_TAIL: u64 = 0x88;
const QUEUE_ADDRESS: u64 = 0x90;

/// As many bytes of registers every unit has; fault records and the IOTLB's own lie further behind where the capability
/// register says so.
pub const REGISTER_BYTES: u64 = 4096;

/// What is commanded one at a time, and acknowledged in the status register at the same bit.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub enum Command {
    /// Translate what devices ask for.
    Translate = 1 << 31,
    /// Take the new root table.
    SetRoot = 1 << 30,
    /// Take invalidations from the queue. From then on those by registers do nothing.
    Queue = 1 << 26,
}

/// Of the status register, what is on and stays on when another command is given (§11.4.4).
const STAYS: u32 = 0x96ff_ffff;
/// In so many looks a command is acknowledged, or never.
const LOOKS: u32 = 1 << 20;

/// Of the fault status: the queue has stopped at a descriptor that it does not take, or that no device has answered.
pub const QUEUE_ERRORS: u32 = 0b111 << 4;
/// Of the fault control: no interrupts.
const FAULT_MASKED: u32 = 1 << 31;
/// Where messages for local APICs are written to (SDM vol. 3A §11.11.1).
const MESSAGE_BASE: u32 = 0xfee0_0000;

/// A unit's registers.
#[derive(Clone, Copy, Debug)]
pub struct UnitRegisters(Registers);

impl UnitRegisters {
    /// Around those that were mapped, at least [`REGISTER_BYTES`] of them.
    pub fn new(registers: Registers) -> Self {
        Self(registers)
    }
    /// Version, capabilities, extended capabilities.
    pub fn capabilities(&self) -> (u32, u64, u64) {
        (self.0.read_u32(VERSION), self.0.read_u64(CAPABILITY), self.0.read_u64(EXTENDED_CAPABILITY))
    }
    /// Switches one thing on; `false` where the unit does not acknowledge it.
    #[must_use]
    pub fn command(&self, command: Command) -> bool {
        let bit = command as u32;
        self.0.write_u32(GLOBAL_COMMAND, self.0.read_u32(GLOBAL_STATUS) & STAYS | bit);
        self.acknowledged(|status| status & bit != 0)
    }
    /// Switches translation and the queue off, as firmware or an earlier kernel may have left them on.
    #[must_use]
    pub fn quiesce(&self) -> bool {
        for command in [Command::Translate, Command::Queue] {
            let bit = command as u32;
            let status = self.0.read_u32(GLOBAL_STATUS);
            if status & bit != 0 {
                self.0.write_u32(GLOBAL_COMMAND, status & STAYS & !bit);
                if !self.acknowledged(|status| status & bit == 0) {
                    return false;
                }
            }
        }
        true
    }
    fn acknowledged(&self, is_done: impl Fn(u32) -> bool) -> bool {
        (0..LOOKS).any(|_| {
            arch::cpu::pause();
            is_done(self.0.read_u32(GLOBAL_STATUS))
        })
    }
    /// Where the root table is; it is taken with [`Command::SetRoot`].
    pub fn set_root(&self, table: Pfn) {
        self.0.write_u64(ROOT_TABLE, table.addr().as_u64());
    }
    /// A queue of one page, of 256 descriptors of 16 bytes.
    pub fn set_queue(&self, page: Pfn) {
        self.0.write_u64(QUEUE_TAIL, 0);
        self.0.write_u64(QUEUE_ADDRESS, page.addr().as_u64());
    }
    /// Where the descriptor is that is taken next, in bytes.
    pub fn queue_head(&self) -> u64 {
        self.0.read_u64(QUEUE_HEAD)
    }
    /// Descriptors up to this one are there, in bytes.
    pub fn set_queue_tail(&self, tail: u64) {
        self.0.write_u64(QUEUE_TAIL, tail);
    }
    /// The fault status.
    pub fn fault_status(&self) -> u32 {
        self.0.read_u32(FAULT_STATUS)
    }
    /// Forgets these bits of it.
    pub fn clear_fault_status(&self, bits: u32) {
        self.0.write_u32(FAULT_STATUS, bits);
    }
    /// Faults are told by this vector of the CPU with this APIC id, once they are unmasked.
    pub fn route_faults(&self, apic_id: u32, vector: u8) {
        self.0.write_u32(FAULT_DATA, u32::from(vector));
        self.0.write_u32(FAULT_ADDRESS, MESSAGE_BASE | (apic_id & 0xff) << 12);
        self.0.write_u32(FAULT_ADDRESS_UPPER, apic_id & !0xff);
    }
    /// Switches the interrupt for faults; one that was due meanwhile comes when it is switched on.
    pub fn mask_faults(&self, masked: bool) {
        self.0.write_u32(FAULT_CONTROL, if masked { FAULT_MASKED } else { 0 });
    }
    /// Takes the record at this offset of the registers, if it holds one: its two halves. It is free for the next then.
    pub fn take_fault(&self, offset: u64) -> Option<[u64; 2]> {
        let upper = self.0.read_u64(offset + 8);
        if upper & RECORDED == 0 {
            return None;
        }
        let lower = self.0.read_u64(offset);
        self.0.write_u32(offset + 12, (RECORDED >> 32) as u32);
        Some([lower, upper])
    }
}
