//! The per-CPU area, reached through the GS base.
//!
//! The kernel never runs ring 3 code, so GS holds this CPU's area at all times, in NMIs and machine checks too: no
//! `swapgs` and none of its races.

use core::arch::asm;

use x86_64::VirtAddr;
use x86_64::registers::model_specific::GsBase;

/// The first words of each CPU's area. The kernel's own structure begins with one.
#[derive(Debug)]
#[repr(C)]
pub struct Head {
    /// Address of this very structure, so that it can be had with one load.
    this: *const Head,
    /// Number of this CPU, dense from 0.
    cpu: u64,
    /// Not zero: the running task must not be switched away by an interrupt.
    preempt_off: u64,
    /// Physical address of the root of the address space that is loaded and in use, 0 for none.
    loaded: u64,
    /// What [`set_recent`] was given.
    recent: *const (),
}

impl Head {
    /// The head of the area of `cpu`; [`install`] completes it.
    pub const fn new(cpu: usize) -> Self {
        Self { this: core::ptr::null(), cpu: cpu as u64, preempt_off: 0, loaded: 0, recent: core::ptr::null() }
    }

    /// The CPU's number.
    pub const fn cpu(&self) -> usize {
        self.cpu as usize
    }
}

/// Makes `area` this CPU's per-CPU area.
///
/// # Safety
/// `area` points to a [`Head`] at the start of a structure that lives for ever and is no other CPU's.
pub unsafe fn install(area: *mut Head) {
    // SAFETY: the caller gives a valid, unshared area.
    unsafe { (*area).this = area };
    GsBase::write(VirtAddr::from_ptr(area));
}

/// This CPU's number. Stable while the caller cannot migrate: tasks are pinned, so always.
#[inline(always)]
pub fn cpu() -> usize {
    let cpu: usize;
    // SAFETY: the area is installed before anything else runs on a CPU; offset 8 is `Head::cpu`.
    unsafe { asm!("mov {}, gs:[8]", out(reg) cpu, options(nostack, preserves_flags, readonly)) };
    cpu
}

/// Address of this CPU's area.
#[inline(always)]
pub fn this() -> *const Head {
    let this;
    // SAFETY: as in `cpu`; offset 0 is `Head::this`.
    unsafe { asm!("mov {}, gs:[0]", out(reg) this, options(nostack, preserves_flags, readonly)) };
    this
}

/// Is there an area yet, on this CPU? For the panic path, which may run before.
pub fn is_installed() -> bool {
    !GsBase::read().is_null()
}

/// Nested "do not preempt": one instruction, so that an interrupt sees either value.
#[inline(always)]
pub fn preempt_disable() {
    // SAFETY: offset 16 is `Head::preempt_off`, which only this CPU writes. The default memory clobber keeps the
    // compiler from moving accesses over it.
    unsafe { asm!("add qword ptr gs:[16], 1", options(nostack)) };
}

/// Undoes one [`preempt_disable`].
#[inline(always)]
pub fn preempt_enable() {
    // SAFETY: as in `preempt_disable`.
    unsafe { asm!("sub qword ptr gs:[16], 1", options(nostack)) };
}

/// How many times preemption is off, on this CPU.
#[inline(always)]
pub fn preempt_count() -> u64 {
    let count;
    // SAFETY: as in `preempt_disable`.
    unsafe { asm!("mov {}, gs:[16]", out(reg) count, options(nostack, preserves_flags, readonly)) };
    count
}

/// The root of the address space that is loaded and in use on this CPU, as [`set_loaded`] left it; 0 at first.
#[inline(always)]
pub fn loaded() -> u64 {
    let root;
    // SAFETY: as in `cpu`; offset 24 is `Head::loaded`, which only this CPU touches.
    unsafe { asm!("mov {}, gs:[24]", out(reg) root, options(nostack, preserves_flags, readonly)) };
    root
}

/// Keeps the root (its physical address) of the address space that is loaded and in use on this CPU.
#[inline(always)]
pub fn set_loaded(root: u64) {
    // SAFETY: as in `loaded`.
    unsafe { asm!("mov gs:[24], {}", in(reg) root, options(nostack, preserves_flags)) };
}

/// Where this CPU keeps what it has looked up last, as [`set_recent`] left it; null at first.
#[inline(always)]
pub fn recent() -> *const () {
    let at;
    // SAFETY: as in `cpu`; offset 32 is `Head::recent`, which only this CPU touches.
    unsafe { asm!("mov {}, gs:[32]", out(reg) at, options(nostack, preserves_flags, readonly)) };
    at
}

/// Sets where this CPU keeps what it has looked up last.
#[inline(always)]
pub fn set_recent(at: *const ()) {
    // SAFETY: as in `recent`.
    unsafe { asm!("mov gs:[32], {}", in(reg) at, options(nostack, preserves_flags)) };
}
