//! Addresses, page frame numbers, page sizes and checked ranges.

use core::fmt;

/// log2 of the base page size.
pub const PAGE_SHIFT: u32 = 12;
/// Bytes in a base page (4096).
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;
/// Entries in one page-table page. Two under a checker, so that a model's tables stay small enough to explore.
pub const ENTRIES: usize = if cfg!(any(loom, shuttle)) { 2 } else { 512 };

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(u64);
        impl $name {
            /// Wraps a raw value. No check: what the value means is checked where it is used.
            #[inline]
            pub const fn new(raw: u64) -> Self {
                Self(raw)
            }
            /// The raw value.
            #[inline]
            pub const fn as_u64(self) -> u64 {
                self.0
            }
            /// Is this a multiple of `align_bytes` (a power of two)?
            #[inline]
            pub const fn is_aligned(self, align_bytes: u64) -> bool {
                self.0 & (align_bytes - 1) == 0
            }
            /// Rounds down to a multiple of `align_bytes` (a power of two).
            #[inline]
            pub const fn align_down(self, align_bytes: u64) -> Self {
                Self(self.0 & !(align_bytes - 1))
            }
            /// Adds, or `None` where the sum would wrap.
            #[inline]
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(sum) => Some(Self(sum)),
                    None => None,
                }
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

address! {
    /// A guest-physical byte address.
    PhysAddr
}
address! {
    /// A virtual byte address. Canonical form is not implied.
    VirtAddr
}

impl PhysAddr {
    /// The frame that holds this byte.
    #[inline]
    pub const fn pfn(self) -> Pfn {
        Pfn(self.0 >> PAGE_SHIFT)
    }
}

impl VirtAddr {
    /// Index into the table of `level` (1 = page table, 2 = page directory, … 5), Intel SDM vol. 3A §4.5.
    #[inline]
    pub const fn index(self, level: u8) -> usize {
        ((self.0 >> (PAGE_SHIFT + 9 * (level as u32 - 1))) & 0x1ff) as usize
    }
}

/// A page frame number: a physical address divided by [`PAGE_SIZE`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct Pfn(u64);

impl Pfn {
    /// Wraps a raw frame number.
    #[inline]
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }
    /// The raw frame number.
    #[inline]
    pub const fn as_u64(self) -> u64 {
        self.0
    }
    /// First byte of the frame.
    #[inline]
    pub const fn addr(self) -> PhysAddr {
        PhysAddr(self.0 << PAGE_SHIFT)
    }
    /// The frame `nr_pages` further on. The caller keeps the sum inside the physical address space.
    #[inline]
    pub const fn add(self, nr_pages: u64) -> Self {
        Self(self.0 + nr_pages)
    }
    /// First frame of the naturally aligned folio of `size` around this frame.
    #[inline]
    pub const fn align_down(self, size: PageSize) -> Self {
        Self(self.0 & !(size.nr_pages() - 1))
    }
    /// Is this the first frame of a naturally aligned folio of `size`?
    #[inline]
    pub const fn is_aligned(self, size: PageSize) -> bool {
        self.0 & (size.nr_pages() - 1) == 0
    }
}

impl fmt::Debug for Pfn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pfn({:#x})", self.0)
    }
}
impl fmt::Display for Pfn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// The three leaf sizes of x86-64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PageSize {
    /// 4 KiB: a leaf in a page table (level 1).
    Size4K,
    /// 2 MiB: a leaf in a page directory (level 2).
    Size2M,
    /// 1 GiB: a leaf in a page-directory-pointer table (level 3).
    Size1G,
}

impl PageSize {
    /// All sizes, smallest first.
    pub const ALL: [Self; 3] = [Self::Size4K, Self::Size2M, Self::Size1G];

    /// log2 of the number of base pages (0, 9, 18).
    #[inline]
    pub const fn order(self) -> u32 {
        9 * (self.level() as u32 - 1)
    }
    /// Level of the table whose entry is such a leaf (1, 2, 3).
    #[inline]
    pub const fn level(self) -> u8 {
        match self {
            Self::Size4K => 1,
            Self::Size2M => 2,
            Self::Size1G => 3,
        }
    }
    /// The size of a leaf in a table of `level`, or `None` where no leaf is possible.
    #[inline]
    pub const fn from_level(level: u8) -> Option<Self> {
        match level {
            1 => Some(Self::Size4K),
            2 => Some(Self::Size2M),
            3 => Some(Self::Size1G),
            _ => None,
        }
    }
    /// Bytes in a leaf.
    #[inline]
    pub const fn bytes(self) -> u64 {
        PAGE_SIZE << self.order()
    }
    /// Base pages in a leaf.
    #[inline]
    pub const fn nr_pages(self) -> u64 {
        1 << self.order()
    }
    /// The next smaller size.
    #[inline]
    pub const fn smaller(self) -> Option<Self> {
        Self::from_level(self.level() - 1)
    }
}

impl fmt::Display for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Size4K => "4KiB",
            Self::Size2M => "2MiB",
            Self::Size1G => "1GiB",
        })
    }
}

/// A run of page frames, `start .. start + nr_pages`. Never empty, never wraps.
///
/// ```
/// use mm::addr::{PageSize, Pfn, PfnRange};
///
/// let device = PfnRange::new(Pfn::new(0x10_0000), 1024).unwrap();
/// assert_eq!(device.start().addr().as_u64(), 4 << 30);
/// assert!(device.contains(Pfn::new(0x10_03ff)) && !device.contains(device.end()));
/// // The 2 MiB block around its tenth frame.
/// assert_eq!(device.start().add(10).align_down(PageSize::Size2M), device.start());
/// // Empty ranges and ranges beyond the 52 bits of a physical address do not exist.
/// assert!(PfnRange::new(Pfn::new(5), 0).is_none() && PfnRange::new(Pfn::new(1 << 40), 1).is_none());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PfnRange {
    start: Pfn,
    nr_pages: u64,
}

impl PfnRange {
    /// A range, or `None` where it is empty or leaves the 52-bit physical address space.
    #[inline]
    pub const fn new(start: Pfn, nr_pages: u64) -> Option<Self> {
        match start.0.checked_add(nr_pages) {
            Some(end) if nr_pages != 0 && end <= 1 << (52 - PAGE_SHIFT) => Some(Self { start, nr_pages }),
            _ => None,
        }
    }
    /// First frame.
    #[inline]
    pub const fn start(self) -> Pfn {
        self.start
    }
    /// One past the last frame.
    #[inline]
    pub const fn end(self) -> Pfn {
        Pfn(self.start.0 + self.nr_pages)
    }
    /// Number of frames, at least 1.
    #[inline]
    pub const fn nr_pages(self) -> u64 {
        self.nr_pages
    }
    /// Does the range hold `pfn`?
    #[inline]
    pub const fn contains(self, pfn: Pfn) -> bool {
        pfn.0 >= self.start.0 && pfn.0 < self.start.0 + self.nr_pages
    }
    /// Do the two ranges share a frame?
    #[inline]
    pub const fn overlaps(self, other: Self) -> bool {
        self.start.0 < other.end().0 && other.start.0 < self.end().0
    }
}

/// Page-aligned half-open range of virtual addresses. Never empty, never wraps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtRange {
    start: VirtAddr,
    end: VirtAddr,
}

impl VirtRange {
    /// `start .. start + len_bytes`; `None` where it is empty, not page-aligned, or wraps.
    #[inline]
    pub const fn new(start: VirtAddr, len_bytes: u64) -> Option<Self> {
        match start.checked_add(len_bytes) {
            Some(end) if len_bytes != 0 && start.is_aligned(PAGE_SIZE) && len_bytes & (PAGE_SIZE - 1) == 0 => {
                Some(Self { start, end })
            }
            _ => None,
        }
    }
    /// First byte.
    #[inline]
    pub const fn start(self) -> VirtAddr {
        self.start
    }
    /// One past the last byte.
    #[inline]
    pub const fn end(self) -> VirtAddr {
        self.end
    }
    /// Length in bytes, at least one page.
    #[inline]
    pub const fn len_bytes(self) -> u64 {
        self.end.0 - self.start.0
    }
    /// Length in base pages.
    #[inline]
    pub const fn nr_pages(self) -> u64 {
        self.len_bytes() >> PAGE_SHIFT
    }
    /// Does the range hold `va`?
    #[inline]
    pub const fn contains(self, va: VirtAddr) -> bool {
        va.0 >= self.start.0 && va.0 < self.end.0
    }
    /// Both, and what is between them.
    #[inline]
    #[must_use]
    pub fn hull(self, other: Self) -> Self {
        Self { start: self.start.min(other.start), end: self.end.max(other.end) }
    }
    /// The part that both ranges cover.
    #[inline]
    pub fn intersection(self, other: Self) -> Option<Self> {
        let (start, end) = (self.start.max(other.start), self.end.min(other.end));
        (start < end).then_some(Self { start, end })
    }
}
