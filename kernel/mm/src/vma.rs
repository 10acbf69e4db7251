//! VMAs, and what their providers (device-dax, file systems) answer to faults.

use alloc::collections::BTreeMap;

pub use crate::access::{Access, FaultError, FaultRequest, FaultTarget, MapError, SigBusCause};
use crate::addr::{PAGE_SHIFT, PageSize, VirtAddr, VirtRange};
use crate::entry::Prot;
use crate::machine::Machine;
use crate::mapping::{Found, Mapping, RmapId};
use crate::mutant::Mutant;
use crate::pagemap::MemoryKind;
use crate::sync::Arc;

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
    /// May it be mapped for writing? The answer never changes.
    fn takes_writes(&self) -> bool {
        true
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
    /// Number of the mapping that `ops` serves.
    pub(crate) mapping: u64,
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

/// The part of a VMA that maps some offsets.
#[derive(Clone, Copy)]
pub(crate) struct Part {
    pub(crate) range: VirtRange,
    /// It is all of its VMA.
    pub(crate) whole: bool,
    /// No other VMA lies between it and the part that came before it.
    pub(crate) follows: bool,
}

/// Parts that lie side by side and go as one: nothing else is mapped from the first to the last.
#[derive(Clone, Copy)]
pub(crate) struct Together {
    pub(crate) range: VirtRange,
    pub(crate) whole: bool,
    last: VirtRange,
}

impl Together {
    #[inline]
    pub(crate) fn one(part: Part) -> Self {
        Self { range: part.range, whole: part.whole, last: part.range }
    }
    /// Takes the next part in, if nothing else is mapped in between; answers whether it has.
    #[inline]
    pub(crate) fn take_in(&mut self, next: Part) -> bool {
        let joins = self.whole && next.whole && next.follows && are_near(self.last, next.range);
        if joins || Mutant::JoinedOverOthers.is_on() {
            (self.range, self.last) = (self.range.hull(next.range), next.range);
            return true;
        }
        false
    }
}

/// How far apart two VMAs may be that are taken as one, in lengths of both.
const NEAR: u64 = 16;

/// Does `next` come after `range`, and not far after it? Then there are not many more entries in the gap than in the two
/// themselves, where a table is shared with others and goes entry by entry; nor VMAs of others.
#[inline]
pub(crate) fn are_near(range: VirtRange, next: VirtRange) -> bool {
    let gap = next.start().as_u64().wrapping_sub(range.end().as_u64());
    range.end() <= next.start() && gap / NEAR <= range.len_bytes().saturating_add(next.len_bytes())
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
    /// Each part of a VMA that maps one of the offsets `first .. first + nr_pages` of the mapping `id` and shares a page with
    /// one of the ranges `listed`, which begin ever higher; in the order of the addresses, each once. One search, and one
    /// more for each of the ranges before which something else is mapped.
    pub(crate) fn for_each_part(
        &self,
        id: u64,
        (first, nr_pages): (u64, u64),
        listed: &[Found<M>],
        mut visit: impl FnMut(Part),
    ) {
        let most = if Mutant::CutAreaMissed.is_on() { 1 } else { usize::MAX };
        let end = first.saturating_add(nr_pages);
        let Some((_, lowest)) = listed.first() else { return };
        let mut vmas = self.overlapping_from(lowest.start());
        let mut next = vmas.next();
        let mut follows = false;
        for (_, range) in listed {
            if next.is_some_and(|vma| vma.range.end() <= range.start()) {
                vmas = self.overlapping_from(range.start());
                next = vmas.next();
                follows = false;
            }
            let mut found = 0;
            while let Some(vma) = next.filter(|vma| vma.range.start() < range.end()) {
                let ours = vma.mapping == id && found < most;
                let whole = first <= vma.offset_pages && vma.offset_pages + vma.range.nr_pages() <= end;
                let part = if whole { Some(vma.range) } else { vma.part_of(first, nr_pages) };
                follows = match part.filter(|_| ours) {
                    Some(range) => {
                        visit(Part { range, whole, follows });
                        found += 1;
                        true
                    }
                    None => false,
                };
                next = vmas.next();
            }
        }
    }
    /// The VMAs from the one that holds `va` on, rising.
    fn overlapping_from(&self, va: VirtAddr) -> impl Iterator<Item = &Vma<M>> {
        let first = self.find(va).map_or(va, |vma| vma.range.start());
        self.0.range(first..).map(|(_, vma)| vma)
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
