//! The firmware's memory map as it is shown: in few lines, each a run of addresses of one use.

use alloc::vec::Vec;
use core::fmt;

use bootloader_api::info::{MemoryRegion, MemoryRegionKind};

use crate::console::report;

/// What a run of physical addresses is for. The numbers are UEFI's memory types (UEFI 2.10, table 7.6); what boot
/// services used is free once they have been left, and the loader says so.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Use {
    /// RAM for whoever asks.
    Usable,
    /// RAM that holds the kernel, and what the loader passed on.
    Kernel,
    /// RAM that holds ACPI tables (9), or that the firmware keeps to itself across sleep (10).
    Acpi,
    /// RAM that run-time services use (5, 6).
    Runtime,
    /// Device registers (11, 12).
    Registers,
    /// Persistent memory that the firmware knows of (14).
    Persistent,
    /// Not to be touched, whatever it is.
    Reserved,
}

impl Use {
    /// What the loader's word for a region means.
    fn of(kind: MemoryRegionKind) -> Self {
        match kind {
            MemoryRegionKind::Usable => Self::Usable,
            MemoryRegionKind::Bootloader => Self::Kernel,
            MemoryRegionKind::UnknownUefi(9 | 10) => Self::Acpi,
            MemoryRegionKind::UnknownUefi(5 | 6) => Self::Runtime,
            MemoryRegionKind::UnknownUefi(11 | 12) => Self::Registers,
            MemoryRegionKind::UnknownUefi(14) => Self::Persistent,
            _ => Self::Reserved,
        }
    }

    /// One word, for people and for programs.
    fn word(self) -> &'static str {
        match self {
            Self::Usable => "usable",
            Self::Kernel => "kernel",
            Self::Acpi => "acpi",
            Self::Runtime => "runtime",
            Self::Registers => "registers",
            Self::Persistent => "persistent",
            Self::Reserved => "reserved",
        }
    }
}

/// A run of addresses: `start..end` in bytes, and what it is for.
pub type Run = (u64, u64, Use);

/// `regions` in rising order, with neighbours of the same use joined.
pub fn joined(regions: &[MemoryRegion]) -> Vec<Run> {
    let mut all: Vec<Run> = regions.iter().map(|region| (region.start, region.end, Use::of(region.kind))).collect();
    all.sort_unstable_by_key(|(start, ..)| *start);
    let mut runs: Vec<Run> = Vec::new();
    for (start, end, what) in all {
        match runs.last_mut() {
            Some(last) if last.1 == start && last.2 == what => last.1 = end,
            _ => runs.push((start, end, what)),
        }
    }
    runs
}

/// A number of bytes in the largest unit that leaves a whole number.
struct Size(u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.trailing_zeros() {
            30.. => write!(f, "{} GiB", self.0 >> 30),
            20.. => write!(f, "{} MiB", self.0 >> 20),
            10.. => write!(f, "{} KiB", self.0 >> 10),
            _ => write!(f, "{} bytes", self.0),
        }
    }
}

/// Prints the map.
pub fn print(regions: &[MemoryRegion]) {
    for (start, end, what) in joined(regions) {
        log::info!(target: "memory", "{start:#014x}..{end:#014x} {:<10} {}", what.word(), Size(end - start));
        report!("range start={start:#x} end={end:#x} use={}", what.word());
    }
}
