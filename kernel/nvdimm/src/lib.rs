//! Non-volatile memory: from the firmware's description of it to an attached device.
//!
//! | module | what it does | Linux |
//! |---|---|---|
//! | [`acpi`] | follows the firmware's root pointer to the tables: NFIT, MADT, FADT | `drivers/acpi/tables.c` |
//! | [`nfit`] | reads the NVDIMM Firmware Interface Table | `drivers/acpi/nfit/core.c` |
//! | [`claim`] | says who uses which frames | `kernel/resource.c` |
//! | [`pmem`] | attaches a range as a device: block path, page map, DAX device | `drivers/nvdimm/pmem.c` |
//! | [`virtio_pmem`] | the same for memory that a hypervisor lends | `drivers/nvdimm/virtio_pmem.c` |
//! | [`hotplug`] | the same for memory modules that come and go | `drivers/acpi/acpi_memhotplug.c` |
//!
//! The first two are functions over bytes that firmware supplies, and those may be wrong: each fault gives one
//! line (a [`nfit::Notice`], say) and costs nothing but what it describes.
//!
//! # What is not here: labels
//!
//! An NVDIMM may keep a label area, which divides it into namespaces. That area is no part of the range that
//! the NFIT reports: QEMU takes it off the end of the backing memory before it computes the range, and it is
//! reached only by calling the device's `_DSM` method (ACPI 6.5 §9.19.8), or as the kernel does it. Labels and the
//! info blocks of namespaces are read by the package `media`; what is attached here is a range of frames, a whole one or
//! the data of a namespace.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod acpi;
pub mod claim;
pub mod hotplug;
pub mod mutant;
pub mod nfit;
pub mod pmem;
pub mod virtio_pmem;
