//! Devices on PCI that do DMA: configuration space and registers, their drivers, and what a device may reach of memory.
//! May import: cpu, console, mem, task, trap, bringup.

pub mod dma;
pub mod edu;
pub mod nvme;
pub mod pci;
pub mod vtd;
