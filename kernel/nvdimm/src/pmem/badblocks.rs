//! Runs of sectors: which ones of a device are known to be lost is told in these (Linux: `block/badblocks.c`). They are
//! kept in the device's page map ([`DevPagemap::lost`](mm::pagemap::DevPagemap::lost)), where everybody asks.

use core::fmt;

/// A run of sectors, never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SectorRun {
    /// First sector.
    pub first: u64,
    /// How many.
    pub nr_sectors: u64,
}

impl SectorRun {
    /// The sector after the last one.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.first.saturating_add(self.nr_sectors)
    }
}

impl fmt::Display for SectorRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.first, self.nr_sectors)
    }
}
