//! Accesses that are expected to fault: how tests ask the CPU whether a protection is real.
//!
//! Unlike a user access, a probe's fault is never served: it ends the probe, which answers with the page fault's error
//! code. Nothing but tests uses this.

use core::arch::global_asm;

use crate::trap::TrapFrame;

/// Bits of a page fault's error code (SDM vol. 3A, figure 4-12).
pub mod error_code {
    /// The translation was there, the rights were not.
    pub const PROTECTION: u64 = 1 << 0;
    /// The access was a store.
    pub const WRITE: u64 = 1 << 1;
    /// The access was an instruction fetch.
    pub const FETCH: u64 = 1 << 4;
}

global_asm!(
    r#"
    .section .text.arch_probe, "ax", @progbits
    # Each answers all ones where nothing faulted, or the error code.
    .global arch_probe_read
    .global arch_probe_read_at
    .balign 16
arch_probe_read:
    mov rax, -1
arch_probe_read_at:
    mov rcx, [rdi]
    ret

    # Stores what is there already.
    .global arch_probe_write
    .global arch_probe_write_load
    .global arch_probe_write_at
    .balign 16
arch_probe_write:
    mov rax, -1
arch_probe_write_load:
    mov cl, [rdi]
arch_probe_write_at:
    mov [rdi], cl
    ret

    .global arch_probe_fetch
    .global arch_probe_fetch_after
    .balign 16
arch_probe_fetch:
    push rbp
    mov rbp, rsp
    call rdi
arch_probe_fetch_after:
    pop rbp
    ret

    .global arch_probe_end
arch_probe_end:
    ret
    .text
"#
);

unsafe extern "C" {
    fn arch_probe_read(addr: u64) -> u64;
    fn arch_probe_write(addr: u64) -> u64;
    fn arch_probe_fetch(addr: u64) -> u64;
    static arch_probe_read_at: u8;
    static arch_probe_write_load: u8;
    static arch_probe_write_at: u8;
    static arch_probe_fetch_after: u8;
    static arch_probe_end: u8;
}

fn result(raw: u64) -> Result<(), u64> {
    if raw == u64::MAX { Ok(()) } else { Err(raw) }
}

/// Loads a word at `addr`.
///
/// # Errors
/// The page fault's error code.
///
/// # Safety
/// The address is canonical, and a load there has no effect.
pub unsafe fn read(addr: u64) -> Result<(), u64> {
    // SAFETY: passed on to the caller; a fault ends the probe.
    result(unsafe { arch_probe_read(addr) })
}

/// Loads the byte at `addr` and stores it there again.
///
/// # Errors
/// The error code of the load or of the store.
///
/// # Safety
/// The address is canonical, a load there has no effect, and nobody else changes the byte meanwhile.
pub unsafe fn write(addr: u64) -> Result<(), u64> {
    // SAFETY: passed on to the caller; a fault ends the probe.
    result(unsafe { arch_probe_write(addr) })
}

/// Calls `addr`, which must not be executable.
///
/// # Errors
/// The fetch's error code.
///
/// # Safety
/// Where the fetch succeeds after all, what is at `addr` is a function that answers `u64::MAX`.
pub unsafe fn fetch(addr: u64) -> Result<(), u64> {
    // SAFETY: passed on to the caller; a fault ends the probe.
    result(unsafe { arch_probe_fetch(addr) })
}

/// Ends the probe that faulted with these registers, if it was one: the handler returns to its caller.
pub fn finish(frame: &mut TrapFrame) -> bool {
    let is_fetch = frame.error & error_code::FETCH != 0;
    if is_fetch {
        // The call has pushed its return address.
        // SAFETY: the stack pointer of interrupted kernel code points to its stack.
        let return_address = unsafe { (frame.rsp as *const u64).read_volatile() };
        if return_address != (&raw const arch_probe_fetch_after) as u64 {
            return false;
        }
        frame.rsp += 8;
        frame.rip = return_address;
    } else if [&raw const arch_probe_read_at, &raw const arch_probe_write_load, &raw const arch_probe_write_at]
        .contains(&(frame.rip as *const u8))
    {
        frame.rip = (&raw const arch_probe_end) as u64;
    } else {
        return false;
    }
    frame.rax = frame.error;
    true
}
