//! Start-up code of the other CPUs: from real mode below 1 MiB to 64-bit mode in the kernel, in one step.
//!
//! A start-up interrupt begins a CPU in real mode at a page below 1 MiB. The code here is copied there together with
//! what it needs to know: a root table below 4 GiB that maps that page at its own address and the kernel where it is,
//! a stack, and a function. It switches paging, long mode and protection on with one write of CR0 (SDM vol. 3A
//! §10.8.5), jumps to 64-bit code and calls the function.

use core::arch::global_asm;

global_asm!(
    r#"
    .section .rodata.arch_ap, "a", @progbits
    .balign 16
    .code16
    .global arch_ap_start
arch_ap_start:
    cli
    cld
    movw %cs, %ax
    movw %ax, %ds
    lgdtl arch_ap_gdtr - arch_ap_start
    movl %cr4, %eax
    orl $0x20, %eax                 # PAE
    movl %eax, %cr4
    movl arch_ap_root - arch_ap_start, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx          # EFER
    rdmsr
    orl $0x900, %eax                # LME, NXE
    wrmsr
    movl $0x80010011, %eax          # PG, WP, ET, PE
    movl %eax, %cr0
    ljmpl *(arch_ap_far - arch_ap_start)
    .code64
arch_ap_64:
    xorl %eax, %eax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movw %ax, %fs
    movw %ax, %gs
    xorl %ebp, %ebp
    movq arch_ap_stack(%rip), %rsp
    movq arch_ap_argument(%rip), %rdi
    movq arch_ap_entry(%rip), %rax
    pushq $0                        # no return address: the end of a backtrace
    jmpq *%rax
    .balign 8
arch_ap_gdt:
    .quad 0
    .quad 0x00af9b000000ffff        # code: present, ring 0, 64-bit
arch_ap_gdtr:
    .word 15
arch_ap_gdt_base:
    .long 0
    .word 0
arch_ap_far:
    .long arch_ap_64 - arch_ap_start
    .word 8
    .balign 8
    .global arch_ap_root
arch_ap_root:
    .quad 0
arch_ap_stack:
    .quad 0
arch_ap_argument:
    .quad 0
arch_ap_entry:
    .quad 0
    .global arch_ap_end
arch_ap_end:
    .global arch_ap_offsets
    .balign 8
arch_ap_offsets:
    .quad arch_ap_gdt - arch_ap_start, arch_ap_gdt_base - arch_ap_start, arch_ap_far - arch_ap_start
    .quad arch_ap_root - arch_ap_start, arch_ap_stack - arch_ap_start, arch_ap_argument - arch_ap_start
    .quad arch_ap_entry - arch_ap_start
    .text
"#,
    options(att_syntax)
);

unsafe extern "C" {
    static arch_ap_start: u8;
    static arch_ap_end: u8;
    static arch_ap_offsets: [u64; 7];
}

/// What a starting CPU is told.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    /// Physical address of a root table, below 4 GiB, that maps the trampoline's page at its own address and the
    /// kernel.
    pub root: u32,
    /// Top of a stack, 16-byte aligned.
    pub stack_top: u64,
    /// The function to call, with interrupts off.
    pub entry: extern "C" fn(usize) -> !,
    /// Its argument.
    pub argument: usize,
}

/// Copies the trampoline to the page at physical address `page` (below 1 MiB), which the kernel sees at `window`, and
/// fills in `start`. One CPU at a time: the next call overwrites what the last one wrote.
///
/// # Safety
/// `window` maps that page, writable, and nothing else uses it.
pub unsafe fn install(page: u32, window: *mut u8, start: &Start) {
    // SAFETY: the code is assembled above and much shorter than a page, the page is ours; the offsets are assembled
    // with it.
    unsafe {
        let code = &raw const arch_ap_start;
        let len = (&raw const arch_ap_end) as usize - code as usize;
        core::ptr::copy_nonoverlapping(code, window, len);
        let [gdt, gdt_base, far, root, stack, argument, entry] = arch_ap_offsets.map(|offset| offset as usize);
        window.add(gdt_base).cast::<u32>().write_unaligned(page + gdt as u32);
        let far = window.add(far).cast::<u32>();
        far.write_unaligned(far.read_unaligned() + page);
        window.add(root).cast::<u64>().write_unaligned(u64::from(start.root));
        window.add(stack).cast::<u64>().write_unaligned(start.stack_top);
        window.add(argument).cast::<u64>().write_unaligned(start.argument as u64);
        window.add(entry).cast::<u64>().write_unaligned(start.entry as usize as u64);
    }
}
