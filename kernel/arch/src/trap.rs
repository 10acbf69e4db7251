//! Entry from an exception or interrupt: one stub for each vector, one frame with every register.
//!
//! The stubs save all general registers, so that a handler can print them, and change the one that matters (the
//! instruction pointer, to continue after a user access that failed). The kernel provides `kernel_trap`.

use core::arch::global_asm;

use x86_64::VirtAddr;

use crate::features::SMAP_ON;

/// The interrupted registers, in the order in which the stub and the CPU pushed them.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
#[allow(missing_docs, reason = "the names are the registers'")]
pub struct TrapFrame {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rbp: u64,
    pub rdx: u64,
    pub rcx: u64,
    pub rbx: u64,
    pub rax: u64,
    /// Which vector it is, 0 to 255.
    pub vector: u64,
    /// The error code that the CPU pushed, or 0 for a vector without one.
    pub error: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

impl TrapFrame {
    /// Were maskable interrupts on where it happened?
    pub fn irqs_were_on(&self) -> bool {
        self.rflags & crate::cpu::RFLAGS_IF != 0
    }
}

/// Vectors of the exceptions that the kernel names (SDM vol. 3A, table 6-1).
pub mod vector {
    /// #DB.
    pub const DEBUG: u64 = 1;
    /// NMI.
    pub const NMI: u64 = 2;
    /// #BP.
    pub const BREAKPOINT: u64 = 3;
    /// #DF.
    pub const DOUBLE_FAULT: u64 = 8;
    /// #GP.
    pub const GENERAL_PROTECTION: u64 = 13;
    /// #PF.
    pub const PAGE_FAULT: u64 = 14;
    /// #MC.
    pub const MACHINE_CHECK: u64 = 18;
    /// First vector that is not an exception.
    pub const FIRST_INTERRUPT: u64 = 32;
}

/// The name of an exception, for an epitaph.
pub fn exception_name(vector: u64) -> &'static str {
    match vector {
        0 => "divide error",
        1 => "debug exception",
        2 => "non-maskable interrupt",
        3 => "breakpoint",
        4 => "overflow",
        5 => "bound range exceeded",
        6 => "invalid opcode",
        7 => "device not available",
        8 => "double fault",
        10 => "invalid TSS",
        11 => "segment not present",
        12 => "stack-segment fault",
        13 => "general protection fault",
        14 => "page fault",
        16 => "x87 floating-point error",
        17 => "alignment check",
        18 => "machine check",
        19 => "SIMD floating-point exception",
        20 => "virtualization exception",
        21 => "control protection exception",
        28 => "hypervisor injection exception",
        29 => "VMM communication exception",
        30 => "security exception",
        _ => "unexpected interrupt",
    }
}

/// Bytes between two stubs.
const STUB_SIZE: u64 = 16;

/// Address of the stub for `vector`.
pub(crate) fn stub(vector: u8) -> VirtAddr {
    unsafe extern "C" {
        static arch_trap_stubs: u8;
    }
    VirtAddr::from_ptr(&raw const arch_trap_stubs) + u64::from(vector) * STUB_SIZE
}

// AT&T syntax for the stubs alone: there `$i` is the value of an assembler symbol beyond doubt.
global_asm!(
    r#"
    .section .text.arch_trap, "ax", @progbits
    .balign 16
    .global arch_trap_stubs
arch_trap_stubs:
    .set i, 0
    .rept 256
    .balign 16
    # The vectors for which the CPU pushes an error code (SDM vol. 3A, table 6-1, and AMD's 29 and 30).
    .if (i == 8) || ((i >= 10) && (i <= 14)) || (i == 17) || (i == 21) || (i == 29) || (i == 30)
    .else
    pushq $0
    .endif
    pushq $i
    jmp arch_trap_common
    .set i, i + 1
    .endr

    .balign 16
arch_trap_common:
    pushq %rax
    pushq %rbx
    pushq %rcx
    pushq %rdx
    pushq %rbp
    pushq %rsi
    pushq %rdi
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %r11
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    cld
    # A trap taken inside a user access arrives with AC set; the handler must not inherit the right. IRET restores it.
    testb $1, {smap}(%rip)
    jz 2f
    clac
2:  movq %rsp, %rdi
    call kernel_trap
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %r11
    popq %r10
    popq %r9
    popq %r8
    popq %rdi
    popq %rsi
    popq %rbp
    popq %rdx
    popq %rcx
    popq %rbx
    popq %rax
    addq $16, %rsp
    iretq
    .text
"#,
    smap = sym SMAP_ON,
    options(att_syntax)
);
