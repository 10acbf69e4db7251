//= part: install
//= loses: a table that stands in the way is told from a leaf
    pub(crate) fn install(&self, va: VirtAddr, pfn: Pfn, size: PageSize, prot: Prot) -> Result<(), InstallError> {
        let level = size.level();
        let slot = self.entry(self.table_at(va, level)?, va.index(level));
        self.mm.machine.reached(Point::InstallReady);
        let new = Entry::leaf(pfn, size, prot).bits();
        match slot.compare_exchange(0, new, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => Ok(()),
            Err(bits) => Err(InstallError::Occupied(Entry::from_bits(bits), size)),
        }
    }
