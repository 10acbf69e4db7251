//= part: walk
//= loses: machines with five levels are walked, too
    pub(crate) fn walk(&self, va: VirtAddr) -> Option<Found> {
        let mut table = self.tlb.root();
        for level in (1..=4).rev() {
            let entry = Entry::from_bits(self.entry(table, va.index(level)).load(Ordering::Acquire));
            match PageSize::from_level(level) {
                Some(size) if entry.is_leaf(level) => return Some(Found { entry, size }),
                _ if entry.is_table(level) => table = entry.pfn(),
                _ => return None,
            }
        }
        None
    }
