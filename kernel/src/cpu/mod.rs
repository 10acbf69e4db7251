//! One CPU, and what all the rest stands on: its area, the innermost lock, the clock, interrupts to other CPUs, the end.
//! May import: no other room.

pub mod exit;
pub mod ipi;
pub mod lock;
pub mod percpu;
pub mod time;
pub mod trace;
