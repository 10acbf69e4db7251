//! Persistent memory: slots and their devices, virtio-pmem, mounts, what the console says of a removal.
//! May import: cpu, console, mem, task, bringup, io.

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
pub mod registrations;
pub mod removal_log;
pub mod virtio;
