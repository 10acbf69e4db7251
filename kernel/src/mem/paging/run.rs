//! Neighbouring leaves of one table, which come and go together.

use core::sync::atomic::{AtomicU64, Ordering};

use mm::addr::{ENTRIES, PageSize, Pfn, VirtAddr};
use mm::entry::{Entry, Prot};

use super::{IN_USE, KERNEL_ROOT, MapError, all, count_in_use, has_gib_leaves};

/// Clears the entries of these numbers, one store for each. A loop is not unrolled so far, and a device of 6 TiB has 6,144 leaves
/// of 1 GiB.
macro_rules! clear_each {
    ($group:ident; $($nth:literal)*) => { $($group[$nth].store(0, Ordering::Release);)* };
}

/// Neighbouring leaves of one table.
pub struct Run {
    /// Address of the first.
    pub va: VirtAddr,
    /// Frame of the first.
    pub pfn: Pfn,
    /// Size of each.
    pub size: PageSize,
    /// How many.
    pub nr_leaves: usize,
}

impl Run {
    /// The first leaves of a range: the largest that fit, up to the end of their table. What is mapped is the same whenever
    /// it is asked for, so that an unmap finds it without reading the entries.
    pub fn first_of(va: VirtAddr, pfn: Pfn, nr_pages: u64) -> Self {
        let fits = |size: &&PageSize| {
            (**size != PageSize::Size1G || has_gib_leaves())
                && nr_pages >= size.nr_pages()
                && pfn.is_aligned(**size)
                && va.is_aligned(size.bytes())
        };
        let size = PageSize::ALL.iter().rev().find(fits).copied().unwrap_or(PageSize::Size4K);
        let room = ENTRIES - va.index(size.level());
        Self { va, pfn, size, nr_leaves: room.min((nr_pages / size.nr_pages()) as usize) }
    }

    /// Pages of all of them.
    pub fn nr_pages(&self) -> u64 {
        self.nr_leaves as u64 * self.size.nr_pages()
    }

    /// Its entries in `table`.
    fn entries(&self, table: Pfn) -> &'static [AtomicU64] {
        let first = self.va.index(self.size.level());
        &all(table)[first..first + self.nr_leaves]
    }

    /// Maps them in `table`.
    ///
    /// # Errors
    /// Something is mapped there; nothing has changed then.
    pub fn fill(&self, table: Pfn, prot: Prot, extra_bits: u64) -> Result<(), MapError> {
        let (entries, level) = (self.entries(table), self.size.level());
        let empty = level == 3 && IN_USE[self.va.index(4) - KERNEL_ROOT.start].load(Ordering::Relaxed) == 0;
        if !empty && entries.iter().any(|entry| entry.load(Ordering::Relaxed) != 0) {
            return Err(MapError::Occupied);
        }
        let (step, mut bits) = (self.size.bytes(), Entry::leaf(self.pfn, self.size, prot).bits() | extra_bits);
        // Release; pairs with the Acquire of every walk: what is mapped is complete. By sixteen, so that a leaf costs a store
        // and an addition.
        let (groups, rest) = entries.as_chunks::<16>();
        let mut store = |entry: &AtomicU64| {
            entry.store(bits, Ordering::Release);
            bits = bits.wrapping_add(step);
        };
        for group in groups {
            group.iter().for_each(&mut store);
        }
        rest.iter().for_each(store);
        count_in_use(self.va, level, self.nr_leaves as i64);
        Ok(())
    }

    /// Takes them out of `table`.
    ///
    /// # Panics
    /// The first or the last of its leaves is not there: what is unmapped here was mapped as a whole.
    pub fn clear(&self, table: Pfn) {
        let (entries, level) = (self.entries(table), self.size.level());
        let last = self.nr_leaves - 1;
        for nth in [0, last] {
            let (found, pfn) = (
                Entry::from_bits(entries[nth].load(Ordering::Relaxed)),
                self.pfn.add(nth as u64 * self.size.nr_pages()),
            );
            assert!(found.is_leaf(level) && found.pfn() == pfn, "the leaf at {} is not mapped as a whole", self.va);
        }
        let (groups, rest) = entries.as_chunks::<64>();
        for group in groups {
            clear_each!(group; 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31);
            clear_each!(group; 32 33 34 35 36 37 38 39 40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57 58 59 60 61
                62 63);
        }
        rest.iter().for_each(|entry| entry.store(0, Ordering::Release));
        count_in_use(self.va, level, -(self.nr_leaves as i64));
    }
}
