//! Persistent memory: slots and their devices, virtio-pmem and PCI, mounts, what the console says of a removal.
//! May import: cpu, console, mem, task, bringup.

pub mod bytes;
pub mod contents;
pub mod devices;
pub mod fs_device;
pub mod host;
pub mod labels;
pub mod lost;
pub mod mounts;
pub mod namespaces;
pub mod nvdimms;
pub mod pci;
pub mod registrations;
pub mod removal_log;
pub mod virtio;
