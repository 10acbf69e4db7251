    /// The leaf that maps `va`, by a walk from the root. To be written. The caller holds the address space's lock, or has
    /// interrupts off.
    ///
    /// What there is: `self.tlb.root()` is the frame of the root, and `self.mm.machine.levels()` its level. `self.entry(table,
    /// index)` is the slot of an entry, an atomic: the CPU writes there, too. `va.index(level)` is the entry's number in a table
    /// of that level. An [`Entry`] knows whether it `is_leaf(level)` or `is_table(level)`, and its `pfn()`; to neither belongs
    /// one that is not present. `PageSize::from_level(level)` is the size of a leaf of that level, where it can have one.
    ///
    /// What is wanted: the leaf's entry as it was read, and its size; `None` where nothing is mapped. Load with Acquire: that
    /// pairs with the Release of who has linked the table.
    pub(crate) fn walk(&self, va: VirtAddr) -> Option<Found> {
        todo!("lab 2: walk from the root to {va}")
    }
