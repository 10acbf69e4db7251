//= part: walk
//= loses: large leaves are found at their level
    pub(crate) fn walk(&self, va: VirtAddr) -> Option<Found> {
        let mut table = self.tlb.root();
        // Leaves are in the tables of level 1, and all the others lead there.
        for level in (2..=self.mm.machine.levels()).rev() {
            let entry = Entry::from_bits(self.entry(table, va.index(level)).load(Ordering::Acquire));
            if !entry.is_table(level) {
                return None;
            }
            table = entry.pfn();
        }
        let entry = Entry::from_bits(self.entry(table, va.index(1)).load(Ordering::Acquire));
        entry.is_leaf(1).then_some(Found { entry, size: PageSize::Size4K })
    }
