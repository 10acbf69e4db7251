//! Neighbouring leaves of one table, which come and go together.

use core::sync::atomic::{AtomicU64, Ordering};

use mm::addr::{ENTRIES, PageSize, Pfn, VirtAddr};
use mm::entry::{Entry, Prot};

use super::{IN_USE, KERNEL_ROOT, MapError, all, count_in_use, has_gib_leaves, roots};

/// Accessed and dirty, which CPUs set by themselves (SDM vol. 3A §4.8).
const SET_BY_CPUS: u64 = 1 << 5 | 1 << 6;

/// How many leaves, in a row, the parked table below each root entry has. Changes under the writers' lock.
static PARKED: [AtomicU64; KERNEL_ROOT.end - KERNEL_ROOT.start] =
    [const { AtomicU64::new(0) }; KERNEL_ROOT.end - KERNEL_ROOT.start];

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

    /// Does the table have the first and the last of them, with these bits? Those that a CPU sets are no difference.
    fn has_ends(&self, table: Pfn, first: u64) -> bool {
        let (entries, last) = (self.entries(table), self.nr_leaves - 1);
        [0, last].into_iter().all(|nth| {
            let found = entries[nth].load(Ordering::Relaxed) & !SET_BY_CPUS;
            found == first.wrapping_add(nth as u64 * self.size.bytes()) & !SET_BY_CPUS
        })
    }

    /// Puts the table that has these leaves and nothing else back into the roots, if it is parked: the device was here before.
    pub fn put_back(&self, prot: Prot, extra_bits: u64) -> bool {
        if self.size != PageSize::Size1G {
            return false;
        }
        let Some((table, false)) = roots::table_of(self.va) else { return false };
        let first = Entry::leaf(self.pfn, self.size, prot).bits() | extra_bits;
        let parked = &PARKED[self.va.index(4) - KERNEL_ROOT.start];
        if parked.load(Ordering::Relaxed) != self.nr_leaves as u64 || !self.has_ends(table, first) {
            return false;
        }
        roots::put_in(self.va, table);
        count_in_use(self.va, 3, self.nr_leaves as i64);
        true
    }

    /// Takes these leaves of a GiB away from `table`: with a store for each root, if the table has no others, and else with one
    /// for each leaf.
    ///
    /// # Panics
    /// As for [`clear`](Self::clear).
    pub fn take_out(&self, table: Pfn) {
        let (slot, nr) = (self.va.index(4) - KERNEL_ROOT.start, self.nr_leaves as u64);
        if IN_USE[slot].load(Ordering::Relaxed) != nr {
            return self.clear(table);
        }
        self.check_ends(table);
        PARKED[slot].store(nr, Ordering::Relaxed);
        roots::park(self.va);
        count_in_use(self.va, 3, -(self.nr_leaves as i64));
    }

    /// Takes them out of `table`.
    ///
    /// # Panics
    /// The first or the last of its leaves is not there: what is unmapped here was mapped as a whole.
    pub fn clear(&self, table: Pfn) {
        self.check_ends(table);
        // By sixteen, as in `fill`.
        let (groups, rest) = self.entries(table).as_chunks::<16>();
        let clear = |entry: &AtomicU64| entry.store(0, Ordering::Release);
        groups.iter().for_each(|group| group.iter().for_each(clear));
        rest.iter().for_each(clear);
        count_in_use(self.va, self.size.level(), -(self.nr_leaves as i64));
    }

    fn check_ends(&self, table: Pfn) {
        let (entries, level) = (self.entries(table), self.size.level());
        for nth in [0, self.nr_leaves - 1] {
            let found = Entry::from_bits(entries[nth].load(Ordering::Relaxed));
            let pfn = self.pfn.add(nth as u64 * self.size.nr_pages());
            assert!(found.is_leaf(level) && found.pfn() == pfn, "the leaf at {} is not mapped as a whole", self.va);
        }
    }
}
