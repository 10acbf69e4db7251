//! Page-table entries (Intel SDM vol. 3A §4.5, table 4-15 ff.).

use core::fmt;

use crate::addr::{PageSize, Pfn, PhysAddr};

/// Present.
const P: u64 = 1 << 0;
/// Writable.
const W: u64 = 1 << 1;
/// Reachable with user rights (and, under SMAP, only then from ring 0 with AC set).
const U: u64 = 1 << 2;
/// Accessed.
const A: u64 = 1 << 5;
/// Dirty (leaves only).
const D: u64 = 1 << 6;
/// Page size: a leaf, in a table of level 2 or 3.
const PS: u64 = 1 << 7;
/// Global (kernel leaves).
const G: u64 = 1 << 8;
/// No execute.
const NX: u64 = 1 << 63;
/// Bits 12..52: the frame.
const FRAME: u64 = ((1 << 52) - 1) & !0xfff;

/// What a mapping allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Prot {
    /// Stores are allowed.
    pub write: bool,
    /// Instruction fetches are allowed.
    pub exec: bool,
    /// The user half: reachable with user rights.
    pub user: bool,
}

impl Prot {
    /// User, read only.
    pub const USER_READ: Self = Self { write: false, exec: false, user: true };
    /// User, read and write.
    pub const USER_WRITE: Self = Self { write: true, exec: false, user: true };
}

/// The value of one entry, read once from the live table. Holding it says nothing about the table any more.
///
/// ```
/// use mm::addr::{PageSize, Pfn};
/// use mm::entry::{Entry, Prot};
///
/// let leaf = Entry::leaf(Pfn::new(0x10_0000), PageSize::Size4K, Prot::USER_WRITE);
/// // No execute; the frame, which begins at 4 GiB; user, writable, present.
/// assert_eq!(leaf.bits(), 1 << 63 | 0x1_0000_0000 | 0b111);
///
/// // What the CPU's walker makes of it when a task stores there: accessed and dirty.
/// let stored = leaf.with_accessed(true);
/// assert!(stored.is_dirty() && stored.pfn() == leaf.pfn());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct Entry(u64);

/// An entry that leads to a table page of the user half: what [`Entry::table`] makes, frame and
/// [`USER_TABLE`](Entry::USER_TABLE) and not a bit more. The CPU adds none: the accessed bit is set from the start, and
/// the dirty bit is for leaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct UserTable(Entry);

impl UserTable {
    /// The entry.
    #[inline(always)]
    pub const fn entry(self) -> Entry {
        self.0
    }
    /// Where the table is. By subtraction, which melts into the sum with the base of the direct map, and a mask would
    /// not.
    #[inline(always)]
    pub const fn addr(self) -> PhysAddr {
        PhysAddr::new(self.0.0.wrapping_sub(Entry::USER_TABLE))
    }
}

impl Entry {
    /// Nothing is mapped.
    pub const EMPTY: Self = Self(0);

    /// The flags of an entry of the user half that points to a table page: always these.
    pub const USER_TABLE: u64 = P | W | U | A;

    /// The flag of a huge leaf, in a table of level 2 or more.
    pub const HUGE: u8 = PS as u8;

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
    /// An entry that points to the table page `table`; rights are checked in the leaf alone.
    #[inline]
    pub const fn table(table: Pfn, user: bool) -> Self {
        Self(table.addr().as_u64() | if user { Self::USER_TABLE } else { Self::USER_TABLE & !U })
    }
    /// A leaf of `size` that maps the aligned frames from `pfn` on.
    #[inline]
    pub const fn leaf(pfn: Pfn, size: PageSize, prot: Prot) -> Self {
        debug_assert!(pfn.is_aligned(size));
        let mut bits = pfn.addr().as_u64() | P;
        if prot.write {
            bits |= W;
        }
        if prot.user {
            bits |= U;
        } else {
            bits |= G;
        }
        if !prot.exec {
            bits |= NX;
        }
        if size.level() > 1 {
            bits |= PS;
        }
        Self(bits)
    }
    /// Is anything mapped here?
    #[inline]
    pub const fn is_present(self) -> bool {
        self.0 & P != 0
    }
    /// Is it a leaf, in a table of `level`?
    #[inline]
    pub const fn is_leaf(self, level: u8) -> bool {
        self.0 & P != 0 && (level == 1 || self.0 & PS != 0)
    }
    /// Is it a pointer to a table page, in a table of `level`?
    #[inline]
    pub const fn is_table(self, level: u8) -> bool {
        self.0 & P != 0 && level > 1 && self.0 & PS == 0
    }
    /// Does it point to a table page of the user half, in a table of level 2 or more? One comparison: such an entry is
    /// made by [`table`](Self::table), and its lowest byte is unlike that of any leaf, which has the page size bit.
    #[inline]
    pub const fn is_user_table(self) -> bool {
        self.0 as u8 == Self::USER_TABLE as u8
    }
    /// The table page that this entry of the user half leads to, if it [does](Self::is_user_table).
    #[inline(always)]
    pub const fn user_table(self) -> Option<UserTable> {
        if self.is_user_table() { Some(UserTable(self)) } else { None }
    }
    /// The frame: of the leaf's first page, or of the table page.
    #[inline]
    pub const fn pfn(self) -> Pfn {
        Pfn::new((self.0 & FRAME) >> 12)
    }
    /// Stores are allowed (leaf).
    #[inline]
    pub const fn is_writable(self) -> bool {
        self.0 & W != 0
    }
    /// The user bit is set.
    #[inline]
    pub const fn is_user(self) -> bool {
        self.0 & U != 0
    }
    /// The flags that a present leaf has which user rights reach, for stores where `write`.
    #[inline]
    pub const fn user_rights(write: bool) -> u8 {
        (P | U | if write { W } else { 0 }) as u8
    }
    /// Are all of these flags set, of the lowest eight?
    #[inline]
    pub const fn has(self, flags: u8) -> bool {
        !(self.0 as u8) & flags == 0
    }
    /// The entry that maps the next 4 KiB page in the same way.
    #[inline]
    pub const fn next_page(self) -> Self {
        self.nth_page(1)
    }
    /// The entry that maps the page `nth` pages further on in the same way.
    #[inline]
    pub const fn nth_page(self, nth: usize) -> Self {
        Self(self.0.wrapping_add((nth as u64) << 12))
    }
    /// The CPU has used this entry.
    #[inline]
    pub const fn is_accessed(self) -> bool {
        self.0 & A != 0
    }
    /// The CPU has stored through this leaf.
    #[inline]
    pub const fn is_dirty(self) -> bool {
        self.0 & D != 0
    }
    /// The same leaf with the accessed and dirty bits set, as an emulated CPU or an eager install would.
    #[inline]
    pub const fn with_accessed(self, dirty: bool) -> Self {
        Self(self.0 | A | if dirty { D } else { 0 })
    }
    /// What the leaf allows.
    #[inline]
    pub const fn prot(self) -> Prot {
        Prot { write: self.0 & W != 0, exec: self.0 & NX == 0, user: self.0 & U != 0 }
    }
    /// The same leaf (frame, size, accessed, dirty) with other rights.
    #[inline]
    pub const fn with_prot(self, prot: Prot) -> Self {
        let keep = self.0 & !(W | U | NX | G);
        let set = if prot.write { W } else { 0 } | if prot.user { U } else { G } | if prot.exec { 0 } else { NX };
        Self(keep | set)
    }
    /// The same leaf, write-protected and clean: the next store through it faults.
    #[inline]
    pub const fn cleaned(self) -> Self {
        Self(self.0 & !(W | D))
    }
    /// Are the two the same translation with the same rights? Accessed and dirty, which the CPU sets by itself,
    /// do not count.
    #[inline]
    pub const fn same_translation(self, other: Self) -> bool {
        self.difference(other) == 0
    }
    /// The bits in which two entries differ, but for accessed and dirty.
    #[inline]
    pub const fn difference(self, other: Self) -> u64 {
        (self.0 ^ other.0) & !(A | D)
    }
    /// The `index`-th leaf of the next smaller size inside this huge leaf of `size` (splitting).
    #[inline]
    pub const fn split(self, size: PageSize, index: u64) -> Self {
        match size.smaller() {
            Some(smaller) => {
                let pfn = self.pfn().add(index << smaller.order());
                let flags = self.0 & !(FRAME | PS);
                Self(flags | pfn.addr().as_u64() | if smaller.level() > 1 { PS } else { 0 })
            }
            None => self,
        }
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.is_present() {
            return write!(f, "Entry(empty {:#x})", self.0);
        }
        let flag = |bit, c| if self.0 & bit != 0 { c } else { '-' };
        write!(
            f,
            "Entry({} {}{}{}{}{}{})",
            self.pfn(),
            flag(W, 'w'),
            flag(U, 'u'),
            flag(A, 'a'),
            flag(D, 'd'),
            flag(PS, 'h'),
            flag(NX, 'n')
        )
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn one_byte_tells_a_table_of_the_user_half_from_every_leaf() {
        let last = Pfn::new((1 << 40) - (1 << 18));
        for pfn in [Pfn::new(0), Pfn::new(0x1234), last] {
            assert!(Entry::table(pfn, true).is_user_table(), "{pfn}");
            assert!(!Entry::table(pfn, false).is_user_table(), "{pfn}");
            assert_eq!(Entry::table(pfn, true).user_table().map(UserTable::addr), Some(pfn.addr()));
        }
        assert!(!Entry::EMPTY.is_user_table());
        for size in [PageSize::Size2M, PageSize::Size1G] {
            for bits in 0..32 {
                let prot = Prot { write: bits & 1 != 0, exec: bits & 2 != 0, user: bits & 4 != 0 };
                let leaf = Entry::leaf(last.align_down(size), size, prot);
                let leaf = if bits & 8 != 0 { leaf.with_accessed(bits & 16 != 0) } else { leaf };
                assert!(!leaf.is_user_table() && leaf.has(Entry::HUGE), "{leaf:?}");
                assert_eq!(leaf.has(Entry::user_rights(true)), prot.user && prot.write, "{leaf:?}");
                assert_eq!(leaf.has(Entry::user_rights(false)), prot.user, "{leaf:?}");
            }
        }
    }
}
