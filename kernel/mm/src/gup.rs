//! Get user pages: from an address range of a task to pinned frames, without a lock where possible.
//!
//! # Protocol (gup-fast)
//! Interrupts are off from the first load of a table entry to the last re-check, and a shootdown completes only
//! when every CPU that has the address space loaded has handled its interrupt. So nothing that this walk can reach
//! is freed while it walks: not the table pages, not the page metadata (G2, G3). What may change is *what the entry
//! says*, and for that the walk looks twice (G1):
//!
//! ```text
//!  gup-fast (interrupts off)                     zap (address space locked)
//!  1 read the entry above, and the entry         a clear the entry (or the entry above)
//!  2 page = lookup(pfn)                          b shoot down: waits for 1-5
//!  3 take a reference, never from zero           c drop the mapping's reference
//!  4 re-read the entry and the entry above       d wait until the device has no references
//!  5 changed? drop the reference, go slow        e free the metadata
//! ```
//!
//! If 4 sees no change then *a* had not happened at 3, so the mapping's own reference kept the page alive, and *d*
//! waits for ours. If *a* lies between 1 and 4 the reference is dropped before *b* returns, so *d* sees no stray
//! count. The walk takes **no** reference on the device's page map: the page's own count is what the removal waits
//! for.
//!
//! The slow path holds the address space's lock, faults in what is missing and is where the liveness of the device
//! is checked (G4).
//!
//! # Who owns a pin
//! A pin counts base pages: 512 pages pinned through one 2 MiB leaf are 512 pins, taken by one atomic addition and
//! given back by one [`unpin`] of the same run, or page by page. Every page got is put exactly once (G8).
//!
//! Linux: `mm/gup.c`.

use core::fmt;

use bitflags::bitflags;

use crate::addr::{ENTRIES, PAGE_SHIFT, PAGE_SIZE, PageSize, Pfn, PfnRange, VirtAddr};
use crate::entry::Entry;
use crate::machine::{IrqOff, Machine, Point};
use crate::meta::{Folio, GetError};
use crate::mutant::Mutant;
use crate::pagemap::LongTermPin;
use crate::space::AddressSpace;
use crate::sync::{AtomicU64, Ordering};
use crate::table::Found;
use crate::vma::{Access, FaultError, SigBusCause, Vmas};
use crate::world::Mm;

bitflags! {
    /// How to pin (Linux: `FOLL_*`).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct GupFlags: u32 {
        /// The pages will be written to: mappings must allow it (`FOLL_WRITE`).
        const WRITE = 1 << 0;
        /// The pin may be held without bound (`FOLL_LONGTERM`).
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

/// Why nothing was pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GupError {
    /// Zero pages were asked for, or there is no room for a single result.
    NoPages,
    /// `start + len` wraps, or leaves the user half.
    BadRange,
    /// Nothing is mapped here.
    NotMapped(VirtAddr),
    /// The mapping here does not allow the access.
    AccessDenied(VirtAddr),
    /// The memory behind the mapping is gone.
    SigBus(VirtAddr, SigBusCause),
    /// The page is not present, and faulting was not allowed.
    NotPresent(VirtAddr),
    /// A long-term pin on memory that does not tolerate one.
    NotSupported(VirtAddr),
    /// No memory for what a fault needs.
    OutOfMemory,
}

impl fmt::Display for GupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPages => f.write_str("no pages asked for, or no room for a result"),
            Self::BadRange => f.write_str("the range wraps or leaves the user half"),
            Self::NotMapped(va) => write!(f, "nothing is mapped at {va}"),
            Self::AccessDenied(va) => write!(f, "the mapping at {va} does not allow this access"),
            Self::SigBus(va, cause) => write!(f, "the memory at {va} is gone: {cause}"),
            Self::NotPresent(va) => write!(f, "the page at {va} is not present and may not be faulted in"),
            Self::NotSupported(va) => {
                write!(f, "the memory at {va} does not tolerate a long-term pin")
            }
            Self::OutOfMemory => f.write_str("out of memory"),
        }
    }
}

/// Where results go: frames one by one, or runs of frames.
pub trait PinSink {
    /// Room for at least this many more pages.
    fn room(&self) -> u64;
    /// Stores a run of pinned frames; the caller has asked for the room.
    fn push(&mut self, first: Pfn, nr_pages: u64);
    /// Everything stored so far, so that it can be given back.
    fn for_each(&self, each: &mut dyn FnMut(Pfn, u64));
    /// Forgets everything.
    fn clear(&mut self);
}

/// Results as an array of frames.
#[derive(Debug)]
pub struct PageArray<'a> {
    pages: &'a mut [Pfn],
    len: usize,
}

impl<'a> PageArray<'a> {
    /// Fills `pages` from the front.
    pub fn new(pages: &'a mut [Pfn]) -> Self {
        Self { pages, len: 0 }
    }
    /// The frames pinned.
    pub fn as_slice(&self) -> &[Pfn] {
        &self.pages[..self.len]
    }
}

impl PinSink for PageArray<'_> {
    #[inline]
    fn room(&self) -> u64 {
        (self.pages.len() - self.len) as u64
    }
    #[inline]
    fn push(&mut self, first: Pfn, nr_pages: u64) {
        for (page, pfn) in self.pages[self.len..][..nr_pages as usize].iter_mut().zip(first.as_u64()..) {
            *page = Pfn::new(pfn);
        }
        self.len += nr_pages as usize;
    }
    fn for_each(&self, each: &mut dyn FnMut(Pfn, u64)) {
        self.as_slice().iter().for_each(|&pfn| each(pfn, 1));
    }
    fn clear(&mut self) {
        self.len = 0;
    }
}

/// Results as runs of frames: the cost does not grow with the pages inside a huge leaf (G6). Frames that follow
/// each other melt into one run.
#[derive(Debug)]
pub struct RangeArray<'a> {
    ranges: &'a mut [Option<PfnRange>],
    len: usize,
}

impl<'a> RangeArray<'a> {
    /// Fills `ranges` from the front.
    pub fn new(ranges: &'a mut [Option<PfnRange>]) -> Self {
        Self { ranges, len: 0 }
    }
    /// The runs pinned.
    pub fn iter(&self) -> impl Iterator<Item = PfnRange> + '_ {
        self.ranges[..self.len].iter().flatten().copied()
    }
}

impl PinSink for RangeArray<'_> {
    #[inline]
    fn room(&self) -> u64 {
        if self.len < self.ranges.len() { u64::MAX } else { 0 }
    }
    #[inline]
    fn push(&mut self, first: Pfn, nr_pages: u64) {
        if let Some(Some(last)) = self.len.checked_sub(1).and_then(|last| self.ranges.get_mut(last))
            && last.end() == first
            && let Some(longer) = PfnRange::new(last.start(), last.nr_pages() + nr_pages)
        {
            *last = longer;
            return;
        }
        self.ranges[self.len] = PfnRange::new(first, nr_pages);
        self.len += 1;
    }
    fn for_each(&self, each: &mut dyn FnMut(Pfn, u64)) {
        self.iter().for_each(|range| each(range.start(), range.nr_pages()));
    }
    fn clear(&mut self) {
        self.len = 0;
    }
}

/// What is being pinned.
struct Request<'s, M: Machine> {
    space: &'s AddressSpace<M>,
    end: u64,
    flags: GupFlags,
    pin: bool,
}

/// Takes a plain reference on each page, for a short look (Linux: `get_user_pages_fast`). Otherwise as
/// [`pin_user_pages_fast`]; give the pages back with [`put_page`].
///
/// # Errors
/// As [`pin_user_pages_fast`].
pub fn get_user_pages_fast<M: Machine, S: PinSink>(
    space: &AddressSpace<M>,
    start: VirtAddr,
    nr_pages: u64,
    flags: GupFlags,
    sink: &mut S,
) -> Result<u64, GupError> {
    gup(space, start, nr_pages, flags, false, sink)
}

/// Pins `nr_pages` pages from `start` (rounded down to a page) on, for access to their data (DMA). Answers how many
/// were pinned, at least one. An error after a part was pinned gives that part (G5), but for a long-term request
/// that meets memory which does not tolerate it: that gives back everything (L1).
///
/// May be called with the address space loaded or not; only where it is loaded on this CPU is there a fast path.
///
/// # Errors
/// See [`GupError`]; nothing is pinned then.
///
/// Linux: `mm/gup.c`, `pin_user_pages_fast`.
pub fn pin_user_pages_fast<M: Machine, S: PinSink>(
    space: &AddressSpace<M>,
    start: VirtAddr,
    nr_pages: u64,
    flags: GupFlags,
    sink: &mut S,
) -> Result<u64, GupError> {
    gup(space, start, nr_pages, flags, true, sink)
}

/// Gives back pins: `nr_pages` pages in a row from `first` on, however they were pinned.
///
/// # Panics
/// A page that is not pinned (G8).
#[inline]
pub fn unpin<M: Machine>(mm: &Mm<M>, first: Pfn, nr_pages: u64) {
    mm.meta.unpin_run(first, nr_pages);
}

/// Gives back plain references of [`get_user_pages_fast`].
///
/// # Panics
/// A page without a reference (G8).
#[inline]
pub fn put_page<M: Machine>(mm: &Mm<M>, first: Pfn, nr_pages: u64) {
    mm.meta.put_run(first, nr_pages, PageSize::Size4K);
}

fn gup<M: Machine, S: PinSink>(
    space: &AddressSpace<M>,
    start: VirtAddr,
    nr_pages: u64,
    flags: GupFlags,
    pin: bool,
    sink: &mut S,
) -> Result<u64, GupError> {
    let start = start.align_down(PAGE_SIZE);
    if nr_pages == 0 || sink.room() == 0 {
        return Err(GupError::NoPages);
    }
    let end = nr_pages
        .checked_mul(PAGE_SIZE)
        .and_then(|len| match start.checked_add(len) {
            None if Mutant::WrappedRange.is_on() => Some(VirtAddr::new(start.as_u64().wrapping_add(len))),
            end => end,
        })
        .filter(|&end| end <= space.user_end())
        .ok_or(GupError::BadRange)?;
    let request = Request { space, end: end.as_u64(), flags, pin };
    let mut at = start.as_u64();
    request.fast(&mut at, sink);
    let done = (at - start.as_u64()) >> PAGE_SHIFT;
    if at == end.as_u64() || flags.contains(GupFlags::FAST_ONLY) || sink.room() == 0 {
        return if done > 0 { Ok(done) } else { Err(GupError::NotPresent(start)) };
    }
    match request.slow(&mut at, sink) {
        Err(GupError::NotSupported(va)) => {
            sink.for_each(&mut |pfn, nr| request.give_back(pfn, nr));
            sink.clear();
            Err(GupError::NotSupported(va))
        }
        Err(error) if at == start.as_u64() || Mutant::PartialSuccessLost.is_on() => Err(error),
        _ => Ok((at - start.as_u64()) >> PAGE_SHIFT),
    }
}

impl<M: Machine> Request<'_, M> {
    fn mm(&self) -> &Mm<M> {
        self.space.mm()
    }

    fn give_back(&self, pfn: Pfn, nr_pages: u64) {
        if self.pin { unpin(self.mm(), pfn, nr_pages) } else { put_page(self.mm(), pfn, nr_pages) }
    }

    /// The lockless walk. `at` moves past what was pinned.
    fn fast<S: PinSink>(&self, at: &mut u64, sink: &mut S) {
        let mm = self.mm();
        let irq = IrqOff::new(&mm.machine);
        if Mutant::GupIrqsOn.is_on() {
            mm.machine.irq_enable();
        }
        if !mm.shootdown.is_loaded(&irq, self.space.id()) {
            return;
        }
        while *at < self.end && sink.room() > 0 {
            if !self.fast_table(&irq, at, sink) {
                return;
            }
        }
    }

    /// Pins the leaves of one table page, from `at` on. `false`: go slow.
    #[inline]
    fn fast_table<S: PinSink>(&self, irq: &IrqOff<'_, M>, at: &mut u64, sink: &mut S) -> bool {
        let machine = irq.machine();
        let mut level = machine.levels();
        let mut slot = machine.entry(self.space.tlb().root(), VirtAddr::new(*at).index(level));
        let mut above = slot;
        let mut above_was = Entry::from_bits(slot.load(Ordering::Acquire));
        let mut entry = above_was;
        while entry.is_table(level) {
            level -= 1;
            above = slot;
            above_was = entry;
            slot = machine.entry(entry.pfn(), VirtAddr::new(*at).index(level));
            // Acquire; pairs with the Release half of the install.
            entry = Entry::from_bits(slot.load(Ordering::Acquire));
        }
        let above = (above, above_was);
        match PageSize::from_level(level) {
            Some(PageSize::Size4K) => self.fast_small(irq, above, at, sink),
            Some(size) if entry.is_leaf(level) => self.fast_huge(irq, above, (slot, entry), size, at, sink),
            _ => false,
        }
    }

    #[inline]
    fn allows(&self, entry: Entry) -> bool {
        let writable = entry.is_writable() || Mutant::WriteThroughReadOnly.is_on();
        entry.is_user() && (!self.flags.contains(GupFlags::WRITE) || writable)
    }

    /// Every 4 KiB leaf of the page table that `above` points to, from `at` on.
    #[inline]
    fn fast_small<S: PinSink>(
        &self,
        irq: &IrqOff<'_, M>,
        above: (&AtomicU64, Entry),
        at: &mut u64,
        sink: &mut S,
    ) -> bool {
        let table = above.1.pfn();
        let mut index = VirtAddr::new(*at).index(1);
        while index < ENTRIES && *at < self.end && sink.room() > 0 {
            let slot = irq.machine().entry(table, index);
            let entry = Entry::from_bits(slot.load(Ordering::Acquire));
            if !entry.is_present() || !self.allows(entry) {
                return false;
            }
            // SAFETY: interrupts are off, and the frame was read from a present entry in this walk.
            let Some(folio) = (unsafe { self.mm().meta.lookup(entry.pfn()) }) else {
                return false;
            };
            if !self.take_checked(&folio, 1, above, (slot, entry)) {
                return false;
            }
            sink.push(entry.pfn(), 1);
            *at += PAGE_SIZE;
            index += 1;
        }
        true
    }

    /// The pages of one huge leaf, from `at` on, as one run.
    #[inline]
    fn fast_huge<S: PinSink>(
        &self,
        _irq: &IrqOff<'_, M>,
        above: (&AtomicU64, Entry),
        leaf: (&AtomicU64, Entry),
        size: PageSize,
        at: &mut u64,
        sink: &mut S,
    ) -> bool {
        if !self.allows(leaf.1) {
            return false;
        }
        let inside = *at & (size.bytes() - 1);
        let nr_pages = ((size.bytes() - inside).min(self.end - *at) >> PAGE_SHIFT).min(sink.room());
        let pfn = leaf.1.pfn().add(inside >> PAGE_SHIFT);
        // SAFETY: interrupts are off, and the frame was read from a present entry in this walk.
        let Some(folio) = (unsafe { self.mm().meta.lookup(pfn) }) else {
            return false;
        };
        if !self.take_checked(&folio, nr_pages as u32, above, leaf) {
            return false;
        }
        sink.push(pfn, nr_pages);
        *at += nr_pages << PAGE_SHIFT;
        true
    }

    /// Takes the references, then looks again at both entries (G1).
    #[inline]
    fn take_checked(
        &self,
        folio: &Folio<'_>,
        nr_pages: u32,
        above: (&AtomicU64, Entry),
        leaf: (&AtomicU64, Entry),
    ) -> bool {
        if self.flags.contains(GupFlags::LONGTERM) && folio.page.long_term() != LongTermPin::Allowed {
            return false;
        }
        let machine = &self.mm().machine;
        machine.reached(Point::GupLeafRead);
        if !self.take(folio, nr_pages) {
            return false;
        }
        machine.reached(Point::GupPinned);
        // SeqCst, as the taking above: neither may pass the other, or a zap in between would go unnoticed.
        let unchanged =
            |(slot, was): (&AtomicU64, Entry)| Entry::from_bits(slot.load(Ordering::SeqCst)).same_translation(was);
        let leaf_is = unchanged(leaf) || Mutant::NoEntryRecheck.is_on();
        if leaf_is && (unchanged(above) || Mutant::NoUpperRecheck.is_on()) {
            return true;
        }
        self.give_back(folio.head, u64::from(nr_pages));
        false
    }

    #[inline]
    fn take(&self, folio: &Folio<'_>, nr_pages: u32) -> bool {
        let page = folio.page;
        let taken = if self.pin { page.try_pin(nr_pages) } else { page.try_get(nr_pages) };
        match taken {
            Ok(()) => true,
            Err(GetError::Zero) => false,
            Err(GetError::Overflow) => panic!("page {}: too many references to count", folio.head),
        }
    }

    /// The path with the lock. `at` moves past what was pinned.
    fn slow<S: PinSink>(&self, at: &mut u64, sink: &mut S) -> Result<(), GupError> {
        let vmas = self.space.read();
        while *at < self.end && sink.room() > 0 {
            let va = VirtAddr::new(*at);
            let found = self.fault_in(&vmas, va)?;
            let left_in_leaf = found.size.bytes() - (*at & (found.size.bytes() - 1));
            let nr_pages = (left_in_leaf.min(self.end - *at) >> PAGE_SHIFT).min(sink.room());
            let pfn = found.pfn_at(va);
            // The address space is locked, so the leaf stays and with it the mapping's reference.
            let folio = self.mm().meta.owned(pfn, "pin");
            if !self.take(&folio, nr_pages as u32) {
                panic!("page {pfn}: mapped at {va} with a reference count of zero");
            }
            sink.push(pfn, nr_pages);
            *at += nr_pages << PAGE_SHIFT;
        }
        Ok(())
    }

    /// The leaf at `va`, with the rights that are wanted.
    fn fault_in(&self, vmas: &Vmas<M>, va: VirtAddr) -> Result<Found, GupError> {
        let vma = vmas.find(va).ok_or(GupError::NotMapped(va))?;
        let write = self.flags.contains(GupFlags::WRITE);
        let access = if write { Access::Write } else { Access::Read };
        if !vma.allows(access) {
            return Err(GupError::AccessDenied(va));
        }
        if self.flags.contains(GupFlags::LONGTERM) && vma.ops.kind().long_term() != LongTermPin::Allowed {
            return Err(GupError::NotSupported(va));
        }
        let usable = |found: &Found| found.entry.is_user() && (!write || found.entry.is_writable());
        if let Some(found) = self.space.table().walk(va).filter(usable) {
            return Ok(found);
        }
        if self.flags.contains(GupFlags::NO_FAULT) {
            return Err(GupError::NotPresent(va));
        }
        self.space.fault_locked(vmas, va, access).map_err(|error| match error {
            FaultError::NotMapped(va) => GupError::NotMapped(va),
            FaultError::AccessDenied(va) => GupError::AccessDenied(va),
            FaultError::SigBus { addr, cause, .. } => GupError::SigBus(addr, cause),
            FaultError::OutOfMemory => GupError::OutOfMemory,
        })?;
        // The lock is held shared since before the fault: what was installed is still there.
        self.space.table().walk(va).filter(usable).ok_or(GupError::NotPresent(va))
    }
}
