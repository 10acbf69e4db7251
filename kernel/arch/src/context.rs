//! Switching from one kernel stack to another.

use core::arch::global_asm;

global_asm!(
    r#"
    .section .text.arch_context, "ax", @progbits
    .global arch_switch
    .balign 16
    # rdi: where to save this stack pointer; rsi: the stack pointer to continue with.
arch_switch:
    push rbp
    push rbx
    push r12
    push r13
    push r14
    push r15
    mov [rdi], rsp
    mov rsp, rsi
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbx
    pop rbp
    ret

    .balign 16
    .global arch_first_entry
arch_first_entry:
    # The first time a task runs: r12 is the argument, r13 the function. rbp is zero: the end of a backtrace.
    mov rdi, r12
    call r13
    ud2
    .text
"#
);

unsafe extern "C" {
    fn arch_switch(save: *mut u64, next: u64);
    fn arch_first_entry();
}

/// Saves the callee-saved registers and the stack pointer in `*save` and continues on the stack `next`. Returns when
/// another switch continues with what was saved.
///
/// # Safety
/// Interrupts are off. `next` was saved by this function or made by [`prepare_stack`], and is used once.
#[inline]
pub unsafe fn switch(save: *mut u64, next: u64) {
    // SAFETY: by this function's contract.
    unsafe { arch_switch(save, next) }
}

/// Lays out the stack that ends at `top` (16-byte aligned) so that the first [`switch`] to the answer calls
/// `entry(argument)` with interrupts off.
///
/// # Safety
/// The 128 bytes below `top` are mapped, writable and unused.
pub unsafe fn prepare_stack(top: u64, entry: extern "C" fn(usize) -> !, argument: usize) -> u64 {
    // From the lowest address on: r15, r14, r13, r12, rbx, rbp, return address. After the `ret` the stack pointer is
    // `top - 16`, aligned as the ABI wants it before a call.
    let words = [0, 0, entry as usize as u64, argument as u64, 0, 0, arch_first_entry as *const () as usize as u64];
    let rsp = top - 16 - size_of_val(&words) as u64;
    // SAFETY: by this function's contract the area is ours.
    unsafe { (rsp as *mut [u64; 7]).write(words) };
    rsp
}
