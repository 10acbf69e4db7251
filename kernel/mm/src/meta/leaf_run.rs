//! Leaves side by side, whose references go together.

use crate::addr::{PageSize, Pfn};

/// Leaves of one size that mapped frames in a row: one reference each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaves {
    /// First frame.
    pub first: Pfn,
    /// How many leaves.
    pub nr: u64,
    /// Size of each.
    pub size: PageSize,
}

impl Leaves {
    /// One leaf.
    #[inline]
    pub const fn one(first: Pfn, size: PageSize) -> Self {
        Self { first, nr: 1, size }
    }
    /// Takes the leaf at `pfn` in, if it follows; answers whether it does.
    #[inline]
    pub(crate) fn extend(&mut self, pfn: Pfn, size: PageSize) -> bool {
        let follows = self.size == size && self.first.as_u64() + (self.nr << size.order()) == pfn.as_u64();
        if follows {
            self.nr += 1;
        }
        follows
    }
}
