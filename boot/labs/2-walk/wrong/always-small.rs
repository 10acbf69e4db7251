//= part: walk
//= loses: large leaves are found at their level
    pub(crate) fn walk(&self, va: VirtAddr) -> Option<Found> {
        let mut table = self.tlb.root();
        let mut level = self.mm.machine.levels();
        loop {
            let entry = Entry::from_bits(self.entry(table, va.index(level)).load(Ordering::Acquire));
            if entry.is_leaf(level) {
                // A page has 4 KiB.
                return Some(Found { entry, size: PageSize::Size4K });
            }
            if !entry.is_table(level) {
                return None;
            }
            table = entry.pfn();
            level -= 1;
        }
    }
