//! Descriptor tables of one CPU: GDT, TSS with interrupt stacks, and the shared IDT.

use spin::LazyLock;
use x86_64::PrivilegeLevel;
use x86_64::VirtAddr;
use x86_64::instructions::segmentation::{CS, DS, ES, SS, Segment};
use x86_64::instructions::tables::load_tss;
use x86_64::registers::segmentation::SegmentSelector;
use x86_64::structures::gdt::{Descriptor, GlobalDescriptorTable};
use x86_64::structures::idt::InterruptDescriptorTable;
use x86_64::structures::tss::TaskStateSegment;

use crate::trap;

/// The exceptions that get a stack of their own, because the current one may be broken or in any state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Ist {
    /// Double fault: the stack has most likely overflowed.
    DoubleFault = 0,
    /// Non-maskable interrupt: comes anywhere.
    Nmi = 1,
    /// Machine check: comes anywhere.
    MachineCheck = 2,
}

/// Number of interrupt stacks.
pub const NR_IST: usize = 3;

/// GDT and TSS of one CPU. Lives for ever once loaded.
#[derive(Debug)]
pub struct CpuTables {
    gdt: GlobalDescriptorTable,
    tss: TaskStateSegment,
}

impl CpuTables {
    /// Tables whose interrupt stacks end at `ist_tops` (highest address, 16-byte aligned), in the order of [`Ist`].
    pub fn new(ist_tops: [u64; NR_IST]) -> Self {
        let mut tss = TaskStateSegment::new();
        // The structure is packed: its table is replaced as a whole, never borrowed.
        let mut table = tss.interrupt_stack_table;
        for (slot, top) in table.iter_mut().zip(ist_tops) {
            *slot = VirtAddr::new(top);
        }
        tss.interrupt_stack_table = table;
        Self { gdt: GlobalDescriptorTable::new(), tss }
    }

    /// Loads the GDT, the segment registers, the TSS and the IDT on this CPU.
    ///
    /// # Safety
    /// The interrupt stacks are mapped and no other CPU's; interrupts are off.
    pub unsafe fn load(&'static mut self) {
        let Self { gdt, tss } = self;
        let tss: &'static TaskStateSegment = tss;
        let code = gdt.append(Descriptor::kernel_code_segment());
        let data = gdt.append(Descriptor::kernel_data_segment());
        let task = gdt.append(Descriptor::tss_segment(tss));
        let gdt: &'static GlobalDescriptorTable = gdt;
        gdt.load();
        // SAFETY: the three selectors were just appended to the GDT that is now loaded.
        unsafe {
            CS::set_reg(code);
            SS::set_reg(data);
            DS::set_reg(SegmentSelector::new(0, PrivilegeLevel::Ring0));
            ES::set_reg(SegmentSelector::new(0, PrivilegeLevel::Ring0));
            load_tss(task);
        }
        IDT.load();
    }
}

/// One IDT for all CPUs: every vector has a handler.
static IDT: LazyLock<InterruptDescriptorTable> = LazyLock::new(|| {
    let mut idt = InterruptDescriptorTable::new();
    // SAFETY: each stub is an interrupt entry for its vector (see `trap`), and the interrupt stacks are set up by
    // every CPU before it loads this table.
    unsafe {
        use trap::stub;
        idt.divide_error.set_handler_addr(stub(0));
        idt.debug.set_handler_addr(stub(1));
        idt.non_maskable_interrupt.set_handler_addr(stub(2)).set_stack_index(Ist::Nmi as u16);
        idt.breakpoint.set_handler_addr(stub(3));
        idt.overflow.set_handler_addr(stub(4));
        idt.bound_range_exceeded.set_handler_addr(stub(5));
        idt.invalid_opcode.set_handler_addr(stub(6));
        idt.device_not_available.set_handler_addr(stub(7));
        idt.double_fault.set_handler_addr(stub(8)).set_stack_index(Ist::DoubleFault as u16);
        idt.invalid_tss.set_handler_addr(stub(10));
        idt.segment_not_present.set_handler_addr(stub(11));
        idt.stack_segment_fault.set_handler_addr(stub(12));
        idt.general_protection_fault.set_handler_addr(stub(13));
        idt.page_fault.set_handler_addr(stub(14));
        idt.x87_floating_point.set_handler_addr(stub(16));
        idt.alignment_check.set_handler_addr(stub(17));
        idt.machine_check.set_handler_addr(stub(18)).set_stack_index(Ist::MachineCheck as u16);
        idt.simd_floating_point.set_handler_addr(stub(19));
        idt.virtualization.set_handler_addr(stub(20));
        idt.cp_protection_exception.set_handler_addr(stub(21));
        idt.hv_injection_exception.set_handler_addr(stub(28));
        idt.vmm_communication_exception.set_handler_addr(stub(29));
        idt.security_exception.set_handler_addr(stub(30));
        for vector in 32..=255u8 {
            idt[vector].set_handler_addr(stub(vector));
        }
    }
    idt
});
