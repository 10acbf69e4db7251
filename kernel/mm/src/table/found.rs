//! What a walk finds, and what an install meets.

use crate::addr::{PAGE_SHIFT, PageSize, Pfn, VirtAddr};
use crate::entry::Entry;

/// Why an install did not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstallError {
    /// No frame for a table page.
    OutOfMemory,
    /// A leaf is there already (another CPU was faster, or a larger leaf covers the address).
    Occupied(Entry, PageSize),
    /// A table page stands where this large a leaf would go: use a smaller one.
    TableInTheWay,
}

/// What a walk found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The leaf.
    pub entry: Entry,
    /// Its size.
    pub size: PageSize,
}

impl Found {
    /// The frame of the base page at `va`, inside the leaf.
    pub fn pfn_at(&self, va: VirtAddr) -> Pfn {
        self.entry.pfn().add((va.as_u64() & (self.size.bytes() - 1)) >> PAGE_SHIFT)
    }
}
