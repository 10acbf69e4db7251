//! Persistent memory: slots and their devices, modules that come and go, virtio-pmem and PCI, mounts, what the console says.
//! May import: cpu, console, mem, task, trap, bringup.

pub mod bytes;
pub mod contents;
pub mod departure;
pub mod devices;
pub mod dimms;
pub mod fs_device;
pub mod host;
pub mod labels;
mod last_removal;
pub mod lost;
pub mod mounts;
pub mod namespaces;
pub mod nvdimms;
pub mod pci;
pub mod registrations;
pub mod removal_log;
pub mod slots;
pub mod virtio;
