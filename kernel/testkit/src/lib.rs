//! What the tests and the labs are made with, and nothing that runs in the guest has.
//!
//! | module | feature | what it is |
//! |---|---|---|
//! | `emu` | `emu` | a machine whose CPUs keep stale translations until they are flushed |
//! | `iommu` | `iommu` | an IOMMU that keeps stale translations until they are invalidated, and devices behind it |
//! | `hotplug` | `nfit` | slots for memory modules, which leave without a word and come back |
//! | `removal` | `sim` | what is around a device that has no driver |
//! | `sim` | `sim` | persistent memory that remembers stores, write-backs and fences, and what a power cut may leave |
//! | `damage` | `sim` | damaged file systems, and what must hold whatever the bytes say |
//! | `btt` | `media` | a block translation table that is written to as Linux writes to one, as far as it gets |
//! | `media` | `media` | label areas and info blocks of namespaces, and what must hold whatever they say |
//! | `nfit` | `nfit` | NFITs, and what must hold whatever a table says |
//!
//! Packages name this one as a dev-dependency, with the features that their tests need: so that the tests of `mm`, say, do
//! not wait for the file system to be built.
#![forbid(unsafe_code)]

#[cfg(feature = "media")]
pub mod btt;
#[cfg(feature = "sim")]
pub mod damage;
// A checker's atomics would make its threads the checker's: the models have a small machine of their own.
#[cfg(all(feature = "emu", not(any(loom, shuttle))))]
pub mod emu;
#[cfg(feature = "nfit")]
pub mod hotplug;
#[cfg(all(feature = "iommu", not(any(loom, shuttle))))]
pub mod iommu;
#[cfg(feature = "media")]
pub mod media;
#[cfg(feature = "nfit")]
pub mod nfit;
#[cfg(all(feature = "sim", not(any(loom, shuttle))))]
pub mod removal;
#[cfg(feature = "sim")]
pub mod sim;
