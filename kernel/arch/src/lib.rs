//! What the compiler cannot write: x86-64 registers, descriptor tables, the local APIC, TLB flushes, cache-line
//! write-back, user access, context switches and the start-up code of the other CPUs.
//!
//! Everything here is small and has one reader: the package `kernel`. Policy (what to do on a fault, whom to
//! interrupt, when to switch) is the kernel's; this package only knows how. References are to the Intel 64 and
//! IA-32 Architectures Software Developer's Manual ("SDM").
#![no_std]

pub mod apic;
pub mod backtrace;
pub mod cache;
pub mod context;
pub mod cpu;
pub mod features;
pub mod mce;
pub mod percpu;
pub mod pit;
pub mod port;
pub mod probe;
pub mod tables;
pub mod tlb;
pub mod trampoline;
pub mod trap;
pub mod user;
