//! Translations of this CPU: loading a root and flushing (SDM vol. 3A §4.10.4.1).

use core::arch::asm;

use x86_64::registers::control::{Cr4, Cr4Flags};

/// Loads the root table at physical address `root` (page aligned), which drops every non-global translation.
///
/// # Safety
/// The running code, stack and data are mapped alike under the new root.
#[inline]
pub unsafe fn load_root(root: u64) {
    // SAFETY: by this function's contract. PCID is off, so bits 0 to 11 are zero.
    unsafe { asm!("mov cr3, {}", in(reg) root, options(nostack, preserves_flags)) };
}

/// Loads the root table at `root`, takes `stack_top` as the stack and calls `entry`, which never returns.
///
/// # Safety
/// The running code is mapped under both roots, the new stack under the new one; `stack_top` is 16-byte aligned.
/// Nothing on the old stack is used again.
pub unsafe fn load_root_and_stack(root: u64, stack_top: u64, entry: extern "C" fn() -> !) -> ! {
    // SAFETY: by this function's contract. The frame-pointer chain ends here.
    unsafe {
        asm!(
            "mov cr3, {root}",
            "mov rsp, {stack}",
            "xor ebp, ebp",
            // No return address: the end of a backtrace.
            "push 0",
            "jmp {entry}",
            root = in(reg) root,
            stack = in(reg) stack_top,
            entry = in(reg) entry,
            options(noreturn)
        )
    }
}

/// Drops the translation of the page at `va` (global or not) and this CPU's paging-structure caches.
#[inline]
pub fn flush_page(va: u64) {
    // SAFETY: dropping a translation is always allowed; it is loaded again from the tables.
    unsafe { asm!("invlpg [{}]", in(reg) va, options(nostack, preserves_flags)) };
}

/// Drops every non-global translation: reloads the root that is loaded.
#[inline]
pub fn flush_non_global() {
    // SAFETY: the root does not change.
    unsafe {
        asm!("mov {tmp}, cr3", "mov cr3, {tmp}", tmp = out(reg) _, options(nostack, preserves_flags));
    }
}

/// Drops every translation, the global ones too: turns CR4.PGE off and on.
pub fn flush_everything() {
    let cr4 = Cr4::read();
    if !cr4.contains(Cr4Flags::PAGE_GLOBAL) {
        flush_non_global();
        return;
    }
    // SAFETY: the same flags are restored; between the two writes only the caches of translations change.
    unsafe {
        Cr4::write(cr4 - Cr4Flags::PAGE_GLOBAL);
        Cr4::write(cr4);
    }
}
