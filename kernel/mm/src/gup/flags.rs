//! How a page is asked for.

use bitflags::bitflags;

bitflags! {
    /// How to pin (Linux: `FOLL_*`).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct GupFlags: u32 {
        /// The pages will be written to: mappings must allow it (`FOLL_WRITE`).
        const WRITE = 1 << 0;
        /// The pin may be held without bound (`FOLL_LONGTERM`). All memory of this kernel can be removed, so such a
        /// pin must be one that can be taken back: by itself this flag is refused, and
        /// [`MemoryRegion::register`](crate::region::MemoryRegion::register) sets it.
        const LONGTERM = 1 << 1;
        /// Pages that are not present are an error, not faulted in (`FOLL_NOFAULT`).
        const NO_FAULT = 1 << 2;
        /// Never go slow: answer what the lockless walk got (`FOLL_FAST_ONLY`).
        const FAST_ONLY = 1 << 3;
        /// Read through a mapping whatever its rights, as a debugger does (`FOLL_FORCE`). Never gives write
        /// access to a shared device mapping, for which there is no private copy to write to.
        const FORCE = 1 << 4;
    }
}

impl GupFlags {
    /// Whoever holds the pin gives it back when it is asked to. Not for callers from outside.
    pub(super) const REVOCABLE: Self = Self::from_bits_retain(1 << 23);
    /// A long-term pin that can be taken back.
    pub(super) const LONGTERM_REVOCABLE: Self = Self::LONGTERM.union(Self::REVOCABLE);
}
