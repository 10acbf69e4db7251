//! Page tables: walk, install, zap, split, protect, promote.
//!
//! # Protocol
//! A live table is reached only through atomics, because the CPU's walker reads it and writes accessed and dirty
//! bits into it at any time. There is never a `&mut` to it.
//!
//! | operation | address-space lock | entry changes by | shootdown |
//! |---|---|---|---|
//! | walk | none (interrupts off), or shared | - | - |
//! | install | shared | compare-and-swap from empty | none: nothing was cached |
//! | zap | exclusive | swap to empty | before anything is freed |
//! | split | exclusive | compare-and-swap leaf → table | with the zap or protect that asked for it |
//! | protect | exclusive | compare-and-swap | before it returns |
//! | widen | shared | compare-and-swap | none: more is allowed than before |
//! | clean | exclusive | compare-and-swap | before what was stored is written back |
//!
//! Two faults may install at the same time; the loser of the swap gives its page back. A zap excludes installs by
//! the exclusive lock, but not the CPU's walker and not gup-fast, against which it has the shootdown.
//!
//! **The window.** A zap is given, besides the range, the *window* around it in which nothing else is mapped (up
//! to the neighbouring VMAs). A table whose whole span lies inside the window is unlinked with one store, at the
//! highest level possible, and walked only afterwards, when it is being freed. So the cost under the lock does not
//! depend on how much was mapped, and no empty table stays behind.
//!
//! Linux: `mm/memory.c` (`zap_page_range`, `free_pgd_range` with its floor and ceiling), `mm/huge_memory.c`.

mod found;

use core::ops::ControlFlow;

pub use self::found::{Found, InstallError};
use crate::addr::{ENTRIES, PageSize, Pfn, VirtAddr, VirtRange};
use crate::context::MmContext;
use crate::entry::{Entry, Prot};
use crate::gather::{Detached, Gather};
use crate::machine::{Machine, Point};
use crate::mutant::Mutant;
use crate::shootdown::{FlushRange, TlbState};
use crate::sync::{Arc, AtomicU64, Ordering};
use crate::trace::{Kind, Mark, mark};

/// Bytes that one entry of a table of `level` spans.
#[inline]
pub(crate) const fn span_bytes(level: u8) -> u64 {
    1 << (12 + 9 * (level as u32 - 1))
}

/// The page table of one address space.
pub(crate) struct Table<'a, M: Machine> {
    pub(crate) mm: &'a MmContext<M>,
    pub(crate) tlb: &'a Arc<TlbState>,
}

/// A traversal of the entries of a range that is under way, and what must be flushed because of it.
struct Traversal<'g, M: Machine> {
    start: u64,
    end: u64,
    gather: &'g mut Gather<M>,
    /// What must be flushed so far.
    flushed: Option<(u64, u64, PageSize)>,
    frees_tables: bool,
}

/// A leaf that a traversal has come to: its slot, what was read there, its size and first address.
struct Leaf<'a> {
    slot: &'a AtomicU64,
    entry: Entry,
    size: PageSize,
    start: u64,
}

impl Leaf<'_> {
    #[inline(always)]
    fn end(&self) -> u64 {
        self.start + self.size.bytes()
    }
}

/// What a [traversal](Table::traverse) is for: what it does to the entries that it comes to.
trait Visitor<M: Machine> {
    /// Are entries cleared? Then there is room for each in the gather before.
    const CLEARS: bool = false;
    /// Is a leaf that reaches out of the range split, where there is memory for that? Where there is none it is
    /// visited as a whole. Not for one who [ends](Self::ENDS) the traversal.
    const SPLITS: bool = false;
    /// May a leaf end the traversal? Known beforehand, so that the others do not ask on each level.
    const ENDS: bool = false;

    /// Is a table that spans this unlinked with all below it, unvisited?
    #[inline(always)]
    fn unlinks(&self, _start: u64, _end: u64) -> bool {
        false
    }

    /// A leaf that shares an address with the range. Answers whether to go on.
    fn leaf(&mut self, leaf: &Leaf<'_>, at: &mut Traversal<'_, M>) -> ControlFlow<()>;
}

/// Everything in the range is taken out. In the window nothing else is mapped.
struct Zap {
    window: (u64, u64),
}

impl<M: Machine> Visitor<M> for Zap {
    const CLEARS: bool = true;
    const SPLITS: bool = true;

    #[inline(always)]
    fn unlinks(&self, start: u64, end: u64) -> bool {
        self.window.0 <= start && end <= self.window.1
    }

    #[inline(always)]
    fn leaf(&mut self, leaf: &Leaf<'_>, at: &mut Traversal<'_, M>) -> ControlFlow<()> {
        // Where there was no memory for a split the whole leaf goes. That is legal: what was not to be removed faults in
        // again.
        at.clear(leaf);
        ControlFlow::Continue(())
    }
}

/// Is a leaf in the range? The first one ends the traversal.
struct AnyLeaf;

impl<M: Machine> Visitor<M> for AnyLeaf {
    const ENDS: bool = true;

    fn leaf(&mut self, _: &Leaf<'_>, _: &mut Traversal<'_, M>) -> ControlFlow<()> {
        ControlFlow::Break(())
    }
}

/// All leaves get other rights. `narrow`: none becomes writable.
struct Protect {
    prot: Prot,
    narrow: bool,
}

impl<M: Machine> Visitor<M> for Protect {
    const SPLITS: bool = true;

    #[inline(always)]
    fn leaf(&mut self, leaf: &Leaf<'_>, at: &mut Traversal<'_, M>) -> ControlFlow<()> {
        if !at.contains(leaf.start, leaf.end()) {
            // Out of memory for the split: the leaf goes as a whole and faults in again with the VMA's rights, old and
            // new, as they are. There is room for it: a range has two ends.
            at.clear(leaf);
            return ControlFlow::Continue(());
        }
        let mut old = leaf.entry;
        loop {
            let write = self.prot.write && (old.is_writable() || !self.narrow);
            let new = old.with_prot(Prot { write, ..self.prot }).bits();
            match leaf.slot.compare_exchange(old.bits(), new, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => break,
                Err(now) => old = Entry::from_bits(now),
            }
        }
        if !Mutant::ProtectNoFlush.is_on() {
            at.flush(leaf.start, leaf.end(), leaf.size);
        }
        ControlFlow::Continue(())
    }
}

/// Every writable leaf becomes write-protected and clean.
struct Clean;

impl<M: Machine> Visitor<M> for Clean {
    #[inline(always)]
    fn leaf(&mut self, leaf: &Leaf<'_>, at: &mut Traversal<'_, M>) -> ControlFlow<()> {
        let mut old = leaf.entry;
        // The CPU may set accessed or dirty at any moment.
        while old.is_writable() {
            match leaf.slot.compare_exchange(old.bits(), old.cleaned().bits(), Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => {
                    at.flush(leaf.start, leaf.end(), leaf.size);
                    break;
                }
                Err(now) => old = Entry::from_bits(now),
            }
        }
        ControlFlow::Continue(())
    }
}

impl<'g, M: Machine> Traversal<'g, M> {
    fn new(range: VirtRange, gather: &'g mut Gather<M>) -> Self {
        let (start, end) = (range.start().as_u64(), range.end().as_u64());
        Self { start, end, gather, flushed: None, frees_tables: false }
    }

    /// Is all of this in the range?
    #[inline(always)]
    fn contains(&self, start: u64, end: u64) -> bool {
        self.start <= start && end <= self.end
    }

    // lab 3 begin: clear
    /// Takes a leaf out.
    #[inline(always)]
    fn clear(&mut self, leaf: &Leaf<'_>) {
        // AcqRel: orders the clearing before the generation that announces it.
        let entry = Entry::from_bits(leaf.slot.swap(0, Ordering::AcqRel));
        self.gather.leaf(entry, leaf.size);
        self.flush(leaf.start, leaf.end(), leaf.size);
    }
    // lab 3 end

    /// Counts the entries, of `span` bytes each, that share an address with the range, in a table whose first address is
    /// `base`; answers which they are.
    #[inline(always)]
    fn visit(&mut self, base: u64, span: u64) -> core::ops::RangeInclusive<u64> {
        let first = (self.start.max(base) - base) / span;
        let last = ((self.end - 1 - base) / span).min(ENTRIES as u64 - 1);
        self.gather.visited(last - first + 1);
        first..=last
    }

    #[inline(always)]
    fn flush(&mut self, start: u64, end: u64, stride: PageSize) {
        self.flushed = Some(match self.flushed {
            None => (start, end, stride),
            Some((s, e, old)) => (s.min(start), e.max(end), old.min(stride)),
        });
    }

    /// What must be flushed and was not issued yet.
    fn what(&mut self) -> Option<FlushRange> {
        let (start, end, stride) = self.flushed.take()?;
        Some(match VirtRange::new(VirtAddr::new(start), end - start) {
            Some(range) => FlushRange::Pages { range, stride },
            None => FlushRange::All,
        })
    }
}

impl<'a, M: Machine> Table<'a, M> {
    #[inline]
    fn entry(&self, table: Pfn, index: usize) -> &'a AtomicU64 {
        self.mm.machine.entry(table, index)
    }

    // lab 2 begin: walk
    /// The leaf that maps `va`. The caller holds the address space's lock, or has interrupts off.
    pub(crate) fn walk(&self, va: VirtAddr) -> Option<Found> {
        let mut table = self.tlb.root();
        let mut level = self.mm.machine.levels();
        loop {
            // Acquire; pairs with the Release half of the install's swap: the table below is zeroed or filled.
            let entry = Entry::from_bits(self.entry(table, va.index(level)).load(Ordering::Acquire));
            match PageSize::from_level(level) {
                Some(size) if entry.is_leaf(level) => return Some(Found { entry, size }),
                _ if entry.is_table(level) => {
                    table = entry.pfn();
                    level -= 1;
                }
                _ => return None,
            }
        }
    }
    // lab 2 end

    /// The table of `level` on the way to `va`, made where it is missing.
    fn table_at(&self, va: VirtAddr, level: u8) -> Result<Pfn, InstallError> {
        let mut table = self.tlb.root();
        let mut at = self.mm.machine.levels();
        while at > level {
            let slot = self.entry(table, va.index(at));
            let entry = Entry::from_bits(slot.load(Ordering::Acquire));
            if entry.is_table(at) {
                table = entry.pfn();
            } else if let (true, Some(size)) = (entry.is_present(), PageSize::from_level(at)) {
                return Err(InstallError::Occupied(entry, size));
            } else {
                let new = self.mm.alloc_table().ok_or(InstallError::OutOfMemory)?;
                // Release: the zeroes of the new table come before its address. Acquire: the other CPU's table.
                let link = Entry::table(new, true).bits();
                match slot.compare_exchange(0, link, Ordering::AcqRel, Ordering::Acquire) {
                    Ok(_) => table = new,
                    Err(_) => {
                        // Never linked, so nobody has seen it: no shootdown. Look at the slot again.
                        self.mm.free_table(new);
                        continue;
                    }
                }
            }
            at -= 1;
        }
        Ok(table)
    }

    // lab 3 begin: install
    /// Maps one leaf. The caller holds the address space's lock shared and owns a reference on the folio, which
    /// belongs to the entry from here on if this succeeds.
    pub(crate) fn install(&self, va: VirtAddr, pfn: Pfn, size: PageSize, prot: Prot) -> Result<(), InstallError> {
        let level = size.level();
        let table = self.table_at(va, level)?;
        let slot = self.entry(table, va.index(level));
        self.mm.machine.reached(Point::InstallReady);
        match slot.compare_exchange(0, Entry::leaf(pfn, size, prot).bits(), Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => Ok(()),
            Err(bits) if Entry::from_bits(bits).is_table(level) => Err(InstallError::TableInTheWay),
            Err(bits) => Err(InstallError::Occupied(Entry::from_bits(bits), size)),
        }
    }
    // lab 3 end

    /// The largest leaf for which there is a place at `va`: no table stands in its way at this moment.
    pub(crate) fn room(&self, va: VirtAddr) -> PageSize {
        let mut table = self.tlb.root();
        let mut level = self.mm.machine.levels();
        loop {
            let entry = Entry::from_bits(self.entry(table, va.index(level)).load(Ordering::Acquire));
            if !entry.is_table(level) {
                return PageSize::from_level(level).unwrap_or(PageSize::Size1G);
            }
            table = entry.pfn();
            level -= 1;
        }
    }

    /// Gives the leaf at `va`, if it is there and not writable, the rights `prot`; `before` is told its size first. The
    /// caller holds the address space's lock shared, so that nobody narrows them meanwhile.
    pub(crate) fn widen(&self, va: VirtAddr, prot: Prot, before: &mut dyn FnMut(PageSize)) {
        let mut table = self.tlb.root();
        let mut level = self.mm.machine.levels();
        loop {
            let slot = self.entry(table, va.index(level));
            let mut old = Entry::from_bits(slot.load(Ordering::Acquire));
            if let (true, Some(size)) = (old.is_leaf(level), PageSize::from_level(level)) {
                if !old.is_writable() {
                    before(size);
                }
                while old.is_leaf(level) && !old.is_writable() {
                    // AcqRel: what `before` has noted comes before the first store.
                    let new = old.with_prot(prot).bits();
                    match slot.compare_exchange(old.bits(), new, Ordering::AcqRel, Ordering::Acquire) {
                        Ok(_) => return,
                        Err(now) => old = Entry::from_bits(now),
                    }
                }
                return;
            }
            if !old.is_table(level) {
                return;
            }
            table = old.pfn();
            level -= 1;
        }
    }

    // lab 3 begin: zap
    /// Takes every translation of `range` out and puts it into `gather`. `window` contains `range`, and nothing
    /// outside `range` is mapped in it. The caller holds the address space's lock exclusively.
    pub(crate) fn zap(&self, range: VirtRange, window: (VirtAddr, VirtAddr), gather: &mut Gather<M>) {
        mark!(self.mm.machine, Mark::range(Kind::ZapBegun, range));
        let mut at = Traversal::new(range, gather);
        _ = self.visit(&mut at, &mut Zap { window: (window.0.as_u64(), window.1.as_u64()) });
        if !Mutant::FlushBeforeClear.is_on() {
            self.issue(&mut at);
        }
        mark!(self.mm.machine, Mark::range(Kind::ZapDone, range));
    }
    // lab 3 end

    /// Is a leaf in the range? The looks are counted in `gather`. The caller holds the address space's lock exclusively.
    pub(crate) fn has_leaf(&self, range: VirtRange, gather: &mut Gather<M>) -> bool {
        self.visit(&mut Traversal::new(range, gather), &mut AnyLeaf).is_break()
    }

    /// Visits all entries that share an address with the range, in their order.
    fn visit<V: Visitor<M>>(&self, at: &mut Traversal<'_, M>, visitor: &mut V) -> ControlFlow<()> {
        self.traverse(self.tlb.root(), self.mm.machine.levels(), 0, at, visitor)
    }

    fn issue(&self, at: &mut Traversal<'_, M>) {
        if let Some(what) = at.what() {
            at.gather.issue(self.tlb, what, at.frees_tables);
        }
    }

    /// Visits those below `table`, whose first address is `base`. (Not a struct: that would go through memory.)
    fn traverse<V: Visitor<M>>(
        &self,
        table: Pfn,
        level: u8,
        base: u64,
        at: &mut Traversal<'_, M>,
        visitor: &mut V,
    ) -> ControlFlow<()> {
        let bytes = span_bytes(level);
        for index in at.visit(base, bytes) {
            let slot = self.entry(table, index as usize);
            let entry = Entry::from_bits(slot.load(Ordering::Acquire));
            let (start, end) = (base + index * bytes, base + (index + 1) * bytes);
            if V::CLEARS && entry.is_present() && !at.gather.has_room() {
                // Memory is short: what was cleared so far is shot down and freed now. The exclusive lock keeps everybody
                // from installing anew what has not been reported yet.
                self.issue(at);
                at.gather.make_room();
            }
            if entry.is_table(level) {
                if visitor.unlinks(start, end) {
                    let part = (start.max(at.start), end.min(at.end));
                    at.gather.subtree(Detached::unlink(slot, Entry::EMPTY, level, start, part));
                    at.frees_tables = true;
                    at.flush(part.0, part.1, PageSize::Size4K);
                } else {
                    let flow = self.traverse(entry.pfn(), level - 1, start, at, visitor);
                    if V::ENDS && flow.is_break() {
                        return flow;
                    }
                }
            } else if let (true, Some(size)) = (entry.is_leaf(level), PageSize::from_level(level)) {
                if V::SPLITS
                    && !at.contains(start, end)
                    && let Some(below) = self.split(slot, size)
                {
                    // Stale copies of the large translation are harmless for what stays as it is, for they say the same;
                    // what goes or changes is flushed page by page, and that drops the large translation too.
                    let before = at.flushed;
                    _ = self.traverse(below, level - 1, start, at, visitor);
                    if V::CLEARS && Mutant::SplitNoFlush.is_on() {
                        at.flushed = before;
                    }
                } else {
                    let flow = visitor.leaf(&Leaf { slot, entry, size, start }, at);
                    if V::ENDS && flow.is_break() {
                        return flow;
                    }
                }
            }
        }
        ControlFlow::Continue(())
    }

    /// Replaces a huge leaf by a table of the next smaller leaves. `None` when memory is exhausted, or the count of the
    /// folio behind it.
    fn split(&self, slot: &AtomicU64, size: PageSize) -> Option<Pfn> {
        let smaller = size.smaller()?;
        let below = self.mm.alloc_table()?;
        let mut old = slot.load(Ordering::Acquire);
        let huge = Entry::from_bits(old);
        // One reference for each new leaf; the old leaf's own serves the first. Where the count has no room for them it
        // is as if there were no memory for the table, which nobody has seen yet.
        if self.mm.meta.get_mapped(huge.pfn(), ENTRIES as u32 - 1).is_err() {
            self.mm.free_table(below);
            return None;
        }
        debug_assert!(smaller < size);
        loop {
            let huge = Entry::from_bits(old);
            for index in 0..ENTRIES {
                // Relaxed: not linked yet; the swap below releases it.
                self.entry(below, index).store(huge.split(size, index as u64).bits(), Ordering::Relaxed);
            }
            // The CPU may set accessed or dirty in the old leaf at any moment: then fill again.
            match slot.compare_exchange(old, Entry::table(below, true).bits(), Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Some(below),
                Err(now) => old = now,
            }
        }
    }

    /// Changes the rights of all leaves in `range`; the flush goes into `gather`. The caller holds the address
    /// space's lock exclusively. `narrow`: no leaf becomes writable, for its first store is to fault.
    pub(crate) fn protect(&self, range: VirtRange, prot: Prot, narrow: bool, gather: &mut Gather<M>) {
        let mut at = Traversal::new(range, gather);
        _ = self.visit(&mut at, &mut Protect { prot, narrow });
        self.issue(&mut at);
    }

    /// Makes every writable leaf that shares a page with `range` write-protected and clean; the flush goes into `gather`.
    /// It takes no memory: a leaf that reaches out of the range is cleaned as a whole. The caller holds the address
    /// space's lock exclusively.
    pub(crate) fn clean(&self, range: VirtRange, gather: &mut Gather<M>) {
        let mut at = Traversal::new(range, gather);
        _ = self.visit(&mut at, &mut Clean);
        if !Mutant::CleanNoFlush.is_on() {
            self.issue(&mut at);
        }
    }
}
