//= part: walk
//= loses: addresses far apart lead to pages of their own
    pub(crate) fn walk(&self, va: VirtAddr) -> Option<Found> {
        let mut table = self.tlb.root();
        let mut level = self.mm.machine.levels();
        loop {
            let slots = (0..ENTRIES).map(|index| self.entry(table, index));
            // The way down is the first table that there is; the last level has the address.
            let mut tables = slots.map(|slot| Entry::from_bits(slot.load(Ordering::Acquire)));
            let entry = Entry::from_bits(self.entry(table, va.index(level)).load(Ordering::Acquire));
            match PageSize::from_level(level) {
                Some(size) if entry.is_leaf(level) => return Some(Found { entry, size }),
                _ if entry.is_table(level) => {
                    table = tables.find(|entry| entry.is_table(level))?.pfn();
                    level -= 1;
                }
                _ => return None,
            }
        }
    }
