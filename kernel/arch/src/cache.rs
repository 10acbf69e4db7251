//! Cache-line write-back and the fence that orders it: what makes a store to persistent memory durable.
//!
//! A store is durable once its line has been written back and a fence after that has completed (SDM
//! vol. 2A, CLWB; the platform's power-fail-safe domain begins at the memory controller).

use core::arch::asm;
use core::sync::atomic::{AtomicU8, Ordering};

use crate::features::Features;

/// Bytes in a cache line on every x86-64 CPU.
pub const LINE: usize = 64;

const CLFLUSH: u8 = 0;
const CLFLUSHOPT: u8 = 1;
const CLWB: u8 = 2;

/// Which instruction is used; the oldest one until [`choose`] has run.
static METHOD: AtomicU8 = AtomicU8::new(CLFLUSH);

/// Picks the best instruction that the CPU has; answers its name.
pub fn choose(features: &Features) -> &'static str {
    let (method, name) = match features {
        Features { clwb: true, .. } => (CLWB, "clwb"),
        Features { clflushopt: true, .. } => (CLFLUSHOPT, "clflushopt"),
        _ => (CLFLUSH, "clflush"),
    };
    METHOD.store(method, Ordering::Relaxed);
    name
}

/// Writes back every cache line that holds a byte of `range`. Not ordered before later stores: call [`fence`].
pub fn write_back(range: &[u8]) {
    if range.is_empty() {
        return;
    }
    let start = range.as_ptr() as usize & !(LINE - 1);
    let end = range.as_ptr() as usize + range.len();
    let method = METHOD.load(Ordering::Relaxed);
    for line in (start..end).step_by(LINE) {
        // SAFETY: the line holds a byte of a live slice, so it is mapped; no instruction here changes memory.
        unsafe {
            match method {
                CLWB => asm!("clwb [{}]", in(reg) line, options(nostack, preserves_flags)),
                CLFLUSHOPT => asm!("clflushopt [{}]", in(reg) line, options(nostack, preserves_flags)),
                _ => asm!("clflush [{}]", in(reg) line, options(nostack, preserves_flags)),
            }
        }
    }
}

/// Orders all earlier write-backs before all later stores (`sfence`).
#[inline]
pub fn fence() {
    // SAFETY: SSE is architectural on x86-64; SFENCE touches no vector register.
    unsafe { asm!("sfence", options(nostack, preserves_flags)) };
}
