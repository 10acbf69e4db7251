//! VMAs, and what their providers (device-dax, file systems) answer to faults.

use alloc::collections::BTreeMap;
use core::fmt;

use crate::addr::{PAGE_SHIFT, PageSize, Pfn, VirtAddr, VirtRange};
use crate::entry::Prot;
use crate::machine::Machine;
use crate::mapping::{Mapping, RmapId};
use crate::pagemap::MemoryKind;
use crate::sync::Arc;

/// What an access wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A load.
    Read,
    /// A store.
    Write,
    /// An instruction fetch.
    Exec,
}

/// Why the memory is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SigBusCause {
    /// The device has been removed, or is being removed.
    DeviceGone,
    /// The page has lost its contents (poison).
    Poisoned,
    /// The offset lies beyond the end of the file or device.
    BeyondEnd,
    /// The file system has been shut down.
    ShutDown,
}

impl fmt::Display for SigBusCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DeviceGone => "device-gone",
            Self::Poisoned => "poisoned",
            Self::BeyondEnd => "beyond-end",
            Self::ShutDown => "shut-down",
        })
    }
}

/// A fault that could not be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultError {
    /// Nothing is mapped there (SIGSEGV, `SEGV_MAPERR`), or the address is not in the user half.
    NotMapped(VirtAddr),
    /// The mapping does not allow it (SIGSEGV, `SEGV_ACCERR`).
    AccessDenied(VirtAddr),
    /// The memory behind the mapping is gone (SIGBUS).
    SigBus {
        /// First address that is lost.
        addr: VirtAddr,
        /// How many bytes are lost there, as far as this fault knows.
        len_bytes: u64,
        /// Why.
        cause: SigBusCause,
    },
    /// The count of references on the page has no room for one more.
    TooManyRefs(VirtAddr),
    /// No memory for a table page or for page metadata.
    OutOfMemory,
}

impl fmt::Display for FaultError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotMapped(addr) => write!(f, "nothing is mapped at {addr}"),
            Self::AccessDenied(addr) => {
                write!(f, "the mapping at {addr} does not allow this access")
            }
            Self::SigBus { addr, len_bytes, cause } => write!(f, "{len_bytes} bytes at {addr} are gone: {cause}"),
            Self::TooManyRefs(addr) => write!(f, "too many references on the page at {addr}: its count has no room"),
            Self::OutOfMemory => f.write_str("out of memory"),
        }
    }
}

/// Why a range could not be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// Empty, wrapping, not page-aligned, or not inside the user half.
    BadRange,
    /// Something is mapped in the range already.
    Occupied,
    /// Address, length and offset must all be multiples of this.
    Misaligned(PageSize),
    /// The provider refuses: the device is gone, or the range lies beyond its end.
    Refused(SigBusCause),
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadRange => f.write_str("the range is empty, wraps, is not page-aligned or leaves the user half"),
            Self::Occupied => f.write_str("something is mapped in the range already"),
            Self::Misaligned(size) => {
                write!(f, "address, length and offset must be multiples of {size}")
            }
            Self::Refused(cause) => write!(f, "refused: {cause}"),
        }
    }
}

/// What a fault asks of the provider of a VMA.
#[derive(Clone, Copy, Debug)]
pub struct FaultRequest {
    /// Faulting page.
    pub addr: VirtAddr,
    /// Its offset in the mapping, in base pages.
    pub offset_pages: u64,
    /// Is it a store?
    pub write: bool,
    /// The largest leaf that the VMA has room for around the address.
    pub max_size: PageSize,
}

/// The provider's answer: where the data is.
#[derive(Clone, Copy, Debug)]
pub struct FaultTarget {
    /// Frame of the faulting base page.
    pub pfn: Pfn,
    /// The largest leaf for which the frames around `pfn` run parallel to the offsets around the fault.
    pub size: PageSize,
}

/// Serves the faults of a VMA. Implemented by device-dax and by file systems.
pub trait VmOps<M: Machine>: Send + Sync {
    /// Finds the data of a faulting page and calls `install` with it, once, while holding whatever guarantees that
    /// the data stays there (an SRCU read side, a layout lock).
    ///
    /// # Errors
    /// What the task is to be told; the errors of `install` are handed through.
    fn fault(
        &self,
        request: &FaultRequest,
        install: &mut dyn FnMut(FaultTarget) -> Result<(), FaultError>,
    ) -> Result<(), FaultError>;
    /// Lets `nr_pages` from `offset_pages` on be mapped: calls `insert`, once, while holding whatever guarantees that
    /// the provider is alive. So a removal finds the mapping in [`mapping`](Self::mapping), or the mapping finds the
    /// removal and is refused; none comes in between. Called with the address space locked: it must not wait for anything
    /// that needs one.
    ///
    /// # Errors
    /// Why not; `insert` has not been called then.
    fn mmap(&self, offset_pages: u64, nr_pages: u64, insert: &mut dyn FnMut()) -> Result<(), MapError>;
    /// The reverse map in which the VMA is to be found.
    fn mapping(&self) -> &Arc<Mapping<M>>;
    /// What the memory is: decides on long-term pins.
    fn kind(&self) -> MemoryKind;
    /// Does it want to know to which pages tasks store? Then a leaf is writable only once a store has faulted on it, and
    /// [`stores_begin`](Self::stores_begin) has been called for it since the provider last
    /// [took that back](crate::mapping::clean_mapping_range).
    fn notes_stores(&self) -> bool {
        false
    }
    /// A leaf that maps `nr_pages` from `first` on is about to become writable. Called with the address space locked
    /// shared, during a fault, before any store can succeed; perhaps in vain. It must not wait.
    fn stores_begin(&self, first: u64, nr_pages: u64) {
        let _ = (first, nr_pages);
    }
    /// Address, length and offset of a mapping must be multiples of this.
    fn alignment(&self) -> PageSize {
        PageSize::Size4K
    }
}

/// A mapped range.
pub(crate) struct Vma<M: Machine> {
    pub(crate) range: VirtRange,
    pub(crate) prot: Prot,
    /// Offset of the first page in the mapping, in base pages.
    pub(crate) offset_pages: u64,
    pub(crate) ops: Arc<dyn VmOps<M>>,
    pub(crate) rmap: RmapId,
}

impl<M: Machine> Vma<M> {
    pub(crate) fn offset_at(&self, va: VirtAddr) -> u64 {
        self.offset_pages + ((va.as_u64() - self.range.start().as_u64()) >> PAGE_SHIFT)
    }
    /// The part that maps the offsets `first .. first + nr_pages` of its mapping.
    pub(crate) fn part_of(&self, first: u64, nr_pages: u64) -> Option<VirtRange> {
        let start = first.max(self.offset_pages);
        let end = first.saturating_add(nr_pages).min(self.offset_pages + self.range.nr_pages());
        let len = end.checked_sub(start)? << PAGE_SHIFT;
        VirtRange::new(VirtAddr::new(self.range.start().as_u64() + ((start - self.offset_pages) << PAGE_SHIFT)), len)
    }
    pub(crate) fn allows(&self, access: Access) -> bool {
        match access {
            Access::Read => true,
            Access::Write => self.prot.write,
            Access::Exec => self.prot.exec,
        }
    }
}

/// The VMAs of a space, by first address.
pub(crate) struct Vmas<M: Machine>(pub(crate) BTreeMap<VirtAddr, Vma<M>>);

impl<M: Machine> Vmas<M> {
    pub(crate) fn find(&self, va: VirtAddr) -> Option<&Vma<M>> {
        let (_, vma) = self.0.range(..=va).next_back()?;
        vma.range.contains(va).then_some(vma)
    }
    /// The VMAs that share a page with `range`, rising.
    pub(crate) fn overlapping(&self, range: VirtRange) -> impl Iterator<Item = &Vma<M>> {
        let first = self.find(range.start()).map_or(range.start(), |vma| vma.range.start());
        self.0.range(first..range.end()).map(|(_, vma)| vma)
    }
    /// First address of the lowest VMA that shares a page with `range`.
    pub(crate) fn first_in(&self, range: VirtRange) -> Option<VirtAddr> {
        self.overlapping(range).next().map(|vma| vma.range.start())
    }
    /// The window around `range` in which nothing else is mapped: `range` itself has no VMA any more, or exactly
    /// one that fills it.
    pub(crate) fn window(&self, range: VirtRange, half_end: VirtAddr) -> (VirtAddr, VirtAddr) {
        let before = self.0.range(..range.start()).next_back().map_or(VirtAddr::new(0), |(_, vma)| vma.range.end());
        let after = self.0.range(range.end()..).next().map_or(half_end, |(start, _)| *start);
        (before.min(range.start()), after.max(range.end()))
    }
}
