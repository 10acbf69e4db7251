//! Bring-up, whose order is in `main.rs`: boot options, the firmware's tables and memory map, the start of all CPUs.
//! May import: cpu, console, mem, task.

pub mod acpi;
pub mod fwcfg;
pub mod memory_map;
pub mod options;
pub mod smp;
#[cfg(feature = "zoo")]
pub mod zoo;
