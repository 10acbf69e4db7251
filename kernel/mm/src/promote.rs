//! Promotion: a table full of small leaves becomes one huge leaf.
//!
//! ```text
//!  promote (address space exclusive)              another CPU (walker, gup-fast)
//!  1 check: all leaves present, side by side,
//!    same rights, frames in one folio
//!  2 take the huge leaf's reference
//!  3 swap: table entry -> huge leaf               may still walk the old table, and finds the same frames there
//!  4 shoot down                                   ends its walk, forgets the old table
//!  5 drop the old leaves' references, free the table
//! ```
//!
//! gup-fast that walks the old table meanwhile sees in its re-check that the entry above has changed, and goes slow.
//! A CPU may set dirty in the old table between 1 and 4; so a writable huge leaf is made dirty from the start.
//!
//! Linux: `mm/khugepaged.c`, `collapse_pte_mapped_thp`.

use crate::addr::{ENTRIES, PageSize, Pfn, VirtAddr};
use crate::entry::Entry;
use crate::gather::{Detached, Gather};
use crate::machine::Machine;
use crate::sync::Ordering;
use crate::table::Table;

impl<M: Machine> Table<'_, M> {
    /// Promotes the table whose span is the page of `size` at `va`. The caller holds the address space exclusively.
    pub(crate) fn promote(&self, va: VirtAddr, size: PageSize, gather: &mut Gather<M>) -> bool {
        let level = size.level();
        let Some((table, entry)) = self.find_table(va, level) else { return false };
        gather.visited(ENTRIES as u64);
        let Some(huge) = self.as_one_leaf(entry.pfn(), size) else { return false };
        if self.mm.meta.get_mapped(huge.pfn(), 1).is_err() {
            return false;
        }
        // The reference comes before the leaf that owns it.
        let slot = self.mm.machine.entry(table, va.index(level));
        let (start, end) = (va.as_u64(), va.as_u64() + size.bytes());
        gather.subtree(Detached::unlink(slot, huge, level, start, (start, end)));
        gather.issue_page(self.tlb, va, size);
        true
    }

    /// The table of `level` that spans `va`, and its entry there if that points to a further table.
    fn find_table(&self, va: VirtAddr, level: u8) -> Option<(Pfn, Entry)> {
        let mut table = self.tlb.root();
        let mut at = self.mm.machine.levels();
        loop {
            let entry = Entry::from_bits(self.mm.machine.entry(table, va.index(at)).load(Ordering::Acquire));
            if !entry.is_table(at) {
                return None;
            }
            if at == level {
                return Some((table, entry));
            }
            table = entry.pfn();
            at -= 1;
        }
    }

    /// The huge leaf of `size` that says the same as all leaves of `table` together.
    fn as_one_leaf(&self, table: Pfn, size: PageSize) -> Option<Entry> {
        let smaller = size.smaller()?;
        let at = |index: usize| Entry::from_bits(self.mm.machine.entry(table, index).load(Ordering::Acquire));
        let first = at(0);
        let huge = Entry::leaf(first.pfn().align_down(size), size, first.prot());
        let fits = |index: usize| {
            let entry = at(index);
            entry.is_leaf(smaller.level()) && entry.same_translation(huge.split(size, index as u64))
        };
        if !first.is_leaf(smaller.level()) || !(0..ENTRIES).all(fits) {
            return None;
        }
        // One reference serves the huge leaf only if one folio holds all its frames.
        let folio = self.mm.meta.owned(first.pfn(), "promote");
        let clean = !folio.page.is_poisoned();
        (folio.size >= size && clean).then(|| huge.with_accessed(first.is_writable()))
    }
}
