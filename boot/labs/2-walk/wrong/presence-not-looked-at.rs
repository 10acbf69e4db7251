//= part: walk
//= loses: what is not mapped is not found
    pub(crate) fn walk(&self, va: VirtAddr) -> Option<Found> {
        let mut table = self.tlb.root();
        let mut level = self.mm.machine.levels();
        loop {
            let entry = Entry::from_bits(self.entry(table, va.index(level)).load(Ordering::Acquire));
            match PageSize::from_level(level) {
                // Whatever is at the bottom is a leaf.
                Some(size) if level == 1 || entry.is_leaf(level) => return Some(Found { entry, size }),
                _ if entry.is_table(level) => {
                    table = entry.pfn();
                    level -= 1;
                }
                _ => return None,
            }
        }
    }
