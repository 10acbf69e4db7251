//! Reaching user pages from ring 0: the only instructions that may, and that may fail.
//!
//! Each function brackets its accesses with `stac` and `clac` where SMAP is on. The few instructions that touch user
//! memory stand in a table of (instruction, where to go on): when the page-fault handler cannot resolve a fault at
//! one of them it continues at its fix-up, and the function answers that it failed. Nothing is killed.

use core::arch::global_asm;
use core::sync::atomic::Ordering;

use crate::features::SMAP_ON;

/// First address beyond the user half (4-level paging).
pub const USER_END: u64 = 1 << 47;

/// The access could not be completed: a fault in it could not be resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unresolved {
    /// Bytes at the end of the range that were not reached.
    pub remaining: usize,
}

global_asm!(
    r#"
    .section .text.arch_user, "ax", @progbits
    # rdi: to, rsi: from, rdx: bytes, ecx: is SMAP on? Answer in rax: bytes that were not copied.
    .global arch_user_copy
    .balign 16
arch_user_copy:
    mov r8d, ecx
    mov rcx, rdx
    shr rcx, 3
    and edx, 7
    test r8d, r8d
    jz 20f
    stac
20: rep movsq
    mov ecx, edx
21: rep movsb
    xor eax, eax
22: test r8d, r8d
    jz 23f
    clac
23: ret
24: # Fault in the eight-byte part: rcx words and rdx bytes are left.
    lea rax, [rcx * 8 + rdx]
    jmp 22b
25: # Fault in the last bytes.
    mov rax, rcx
    jmp 22b

    # rdi: address, esi: is SMAP on? Answer: rax the value, rdx 0 or 1 for failed.
    .global arch_user_read
    .balign 16
arch_user_read:
    test esi, esi
    jz 30f
    stac
30: mov rax, [rdi]
    xor edx, edx
31: test esi, esi
    jz 32f
    clac
32: ret
33: xor eax, eax
    mov edx, 1
    jmp 31b

    # rdi: address, rsi: value, edx: is SMAP on? Answer: rax 0 or 1 for failed.
    .global arch_user_write
    .balign 16
arch_user_write:
    test edx, edx
    jz 40f
    stac
40: mov [rdi], rsi
    xor eax, eax
41: test edx, edx
    jz 42f
    clac
42: ret
43: mov eax, 1
    jmp 41b

    # The table, relative to itself so that no relocation is needed.
    .section .rodata.arch_user, "a", @progbits
    .balign 8
    .global arch_user_fixups
arch_user_fixups:
    .quad 20b - arch_user_fixups, 24b - arch_user_fixups
    .quad 21b - arch_user_fixups, 25b - arch_user_fixups
    .quad 30b - arch_user_fixups, 33b - arch_user_fixups
    .quad 40b - arch_user_fixups, 43b - arch_user_fixups
    .text
"#
);

/// Entries in the table of fix-ups.
const NR_FIXUPS: usize = 4;

#[repr(C)]
struct ReadResult {
    value: u64,
    failed: u64,
}

unsafe extern "C" {
    fn arch_user_copy(to: *mut u8, from: *const u8, len: usize, smap: u32) -> usize;
    fn arch_user_read(from: *const u64, smap: u32) -> ReadResult;
    fn arch_user_write(to: *mut u64, value: u64, smap: u32) -> u64;
    static arch_user_fixups: [[u64; 2]; NR_FIXUPS];
}

/// Where to continue when the instruction at `rip` faulted and the fault cannot be resolved; `None` where `rip` is no
/// instruction that may fault.
pub fn fixup(rip: u64) -> Option<u64> {
    // SAFETY: the table is assembled above and never written.
    let table = unsafe { &arch_user_fixups };
    let base = (&raw const arch_user_fixups) as u64;
    table.iter().find(|entry| base.wrapping_add(entry[0]) == rip).map(|entry| base.wrapping_add(entry[1]))
}

/// Does `start .. start + len` lie in the user half? An empty range does wherever it starts in the user half.
#[inline]
pub fn is_user_range(start: u64, len: usize) -> bool {
    start < USER_END && len as u64 <= USER_END - start
}

fn smap() -> u32 {
    u32::from(SMAP_ON.load(Ordering::Relaxed))
}

/// Copies from the user range that starts at `from`.
///
/// # Errors
/// [`Unresolved`]: a part is outside the user half, or a fault could not be resolved. The first bytes of `to` may
/// have been written.
#[inline]
pub fn copy_from(to: &mut [u8], from: u64) -> Result<(), Unresolved> {
    if !is_user_range(from, to.len()) {
        return Err(Unresolved { remaining: to.len() });
    }
    // SAFETY: the destination is an exclusive slice; the source is in the user half, where a fault is caught by the
    // table of fix-ups. User memory is never a Rust object.
    match unsafe { arch_user_copy(to.as_mut_ptr(), from as *const u8, to.len(), smap()) } {
        0 => Ok(()),
        remaining => Err(Unresolved { remaining }),
    }
}

/// Copies to the user range that starts at `to`.
///
/// # Errors
/// As for [`copy_from`]; the first bytes of the range may have been written.
#[inline]
pub fn copy_to(to: u64, from: &[u8]) -> Result<(), Unresolved> {
    if !is_user_range(to, from.len()) {
        return Err(Unresolved { remaining: from.len() });
    }
    // SAFETY: as in `copy_from`, with the roles exchanged.
    match unsafe { arch_user_copy(to as *mut u8, from.as_ptr(), from.len(), smap()) } {
        0 => Ok(()),
        remaining => Err(Unresolved { remaining }),
    }
}

/// Reads eight bytes at `from` with one load.
///
/// # Errors
/// As for [`copy_from`].
#[inline]
pub fn read_u64(from: u64) -> Result<u64, Unresolved> {
    if !is_user_range(from, 8) {
        return Err(Unresolved { remaining: 8 });
    }
    // SAFETY: as in `copy_from`.
    match unsafe { arch_user_read(from as *const u64, smap()) } {
        ReadResult { value, failed: 0 } => Ok(value),
        _ => Err(Unresolved { remaining: 8 }),
    }
}

/// Writes eight bytes at `to` with one store.
///
/// # Errors
/// As for [`copy_from`].
#[inline]
pub fn write_u64(to: u64, value: u64) -> Result<(), Unresolved> {
    if !is_user_range(to, 8) {
        return Err(Unresolved { remaining: 8 });
    }
    // SAFETY: as in `copy_to`.
    match unsafe { arch_user_write(to as *mut u64, value, smap()) } {
        0 => Ok(()),
        _ => Err(Unresolved { remaining: 8 }),
    }
}
