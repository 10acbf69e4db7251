//! Entries that the unit's walker reads (VT-d §9.1, §9.3, §9.8).

use core::fmt;

use bitflags::bitflags;
use mm::addr::Pfn;

use crate::caps::Levels;

bitflags! {
    /// What a device may do.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct Rights: u8 {
        /// The device reads memory.
        const READ = 1;
        /// The device writes memory.
        const WRITE = 2;
    }
}

/// `r`, `w` or `rw`; `-` for none.
impl fmt::Display for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.contains(Self::READ), self.contains(Self::WRITE)) {
            (true, true) => "rw",
            (true, false) => "r",
            (false, true) => "w",
            (false, false) => "-",
        })
    }
}

/// Present, in root and context entries.
const P: u64 = 1;
/// Bits 12 to 51: a frame.
const FRAME: u64 = ((1 << 52) - 1) & !0xfff;
/// Page size: a leaf, in a table of level 2 or 3.
const PS: u64 = 1 << 7;
/// Read and write.
const RW: u64 = 3;

/// A second-level entry: what one of the tables under a domain's root holds. With neither right it is not present,
/// whatever else it says. Rights are in the leaf alone: entries that lead to tables have both.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct Entry(u64);

impl Entry {
    /// Nothing is mapped.
    pub const EMPTY: Self = Self(0);

    /// Wraps the raw bits.
    #[inline]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }
    /// The raw bits.
    #[inline]
    pub const fn bits(self) -> u64 {
        self.0
    }
    /// An entry that leads to `table`.
    #[inline]
    pub const fn table(table: Pfn) -> Self {
        Self(table.addr().as_u64() | RW)
    }
    /// A leaf in a table of `level` (1 to 3).
    #[inline]
    pub const fn leaf(pfn: Pfn, level: u8, rights: Rights) -> Self {
        Self(pfn.addr().as_u64() | rights.bits() as u64 | if level > 1 { PS } else { 0 })
    }
    /// Does it map anything, or lead anywhere?
    #[inline]
    pub const fn is_present(self) -> bool {
        self.0 & RW != 0
    }
    /// Is it a leaf, in a table of `level`?
    #[inline]
    pub const fn is_leaf(self, level: u8) -> bool {
        self.is_present() && (level == 1 || self.0 & PS != 0)
    }
    /// Does it lead to a table, in a table of `level`?
    #[inline]
    pub const fn is_table(self, level: u8) -> bool {
        self.is_present() && level > 1 && self.0 & PS == 0
    }
    /// The frame: the first of a leaf, or the table.
    #[inline]
    pub const fn pfn(self) -> Pfn {
        Pfn::new((self.0 & FRAME) >> 12)
    }
    /// What it allows.
    #[inline]
    pub const fn rights(self) -> Rights {
        Rights::from_bits_truncate((self.0 & RW) as u8)
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.is_present() {
            return write!(f, "Entry(empty {:#x})", self.0);
        }
        write!(f, "Entry({} {}{})", self.pfn(), self.rights(), if self.0 & PS != 0 { " huge" } else { "" })
    }
}

/// An entry of the root table: one for each bus, 16 bytes, which leads to the bus's context table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct RootEntry {
    /// Bits 0 to 63.
    pub low: u64,
    /// Bits 64 to 127: zero.
    pub high: u64,
}

impl RootEntry {
    /// Leads to the context table in frame `table`.
    pub const fn new(table: Pfn) -> Self {
        Self { low: table.addr().as_u64() | P, high: 0 }
    }
    /// The context table, if there is one.
    pub const fn table(self) -> Option<Pfn> {
        if self.low & P == 0 { None } else { Some(Pfn::new((self.low & FRAME) >> 12)) }
    }
}

/// An entry of a context table: one for each device and function, 16 bytes, which leads to a domain's root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ContextEntry {
    /// Bits 0 to 63: present, faults are recorded, translation through second-level tables alone, their root.
    pub low: u64,
    /// Bits 64 to 127: address width in bits 0 to 2, the domain's number in bits 8 to 23.
    pub high: u64,
}

impl ContextEntry {
    /// The device is in `domain`, whose root table is `root`.
    pub const fn new(domain: u16, root: Pfn, levels: Levels) -> Self {
        Self { low: root.addr().as_u64() | P, high: levels.width_code() as u64 | (domain as u64) << 8 }
    }
    /// Is the device in any domain?
    pub const fn is_present(self) -> bool {
        self.low & P != 0
    }
    /// The root table of its domain.
    pub const fn root(self) -> Pfn {
        Pfn::new((self.low & FRAME) >> 12)
    }
    /// The number of its domain.
    pub const fn domain(self) -> u16 {
        (self.high >> 8) as u16
    }
    /// How many levels its tables have; `None` for a width that does not exist.
    pub const fn levels(self) -> Option<Levels> {
        Levels::from_width_code(self.high as u8 & 7)
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;

    #[test]
    fn entries_are_the_bits_of_the_specification() {
        assert_eq!(Entry::table(Pfn::new(0x1234)).bits(), 0x123_4003);
        let leaf = Entry::leaf(Pfn::new(0x4_0000), 3, Rights::READ);
        assert_eq!(leaf.bits(), 0x4000_0081);
        assert!(leaf.is_leaf(3) && leaf.is_leaf(2) && !leaf.is_table(3) && leaf.rights() == Rights::READ);
        assert!(Entry::leaf(Pfn::new(7), 1, Rights::WRITE).is_leaf(1));
        assert!(!Entry::from_bits(0xffff_f080).is_present(), "neither right: not present, whatever else is set");
        assert_eq!(RootEntry::new(Pfn::new(5)), RootEntry { low: 0x5001, high: 0 });
        let context = ContextEntry::new(0x1234, Pfn::new(6), Levels::Four);
        assert_eq!(context, ContextEntry { low: 0x6001, high: 0x12_3402 });
        assert_eq!((context.domain(), context.levels(), context.root()), (0x1234, Some(Levels::Four), Pfn::new(6)));
        assert!(!ContextEntry::default().is_present() && RootEntry::default().table().is_none());
    }
}
