//= part: install
//= loses: who comes second leaves the first one's entry as it is
    pub(crate) fn install(&self, va: VirtAddr, pfn: Pfn, size: PageSize, prot: Prot) -> Result<(), InstallError> {
        let level = size.level();
        let table = self.table_at(va, level)?;
        let slot = self.entry(table, va.index(level));
        let there = Entry::from_bits(slot.load(Ordering::Acquire));
        if there.is_table(level) {
            return Err(InstallError::TableInTheWay);
        }
        if there.is_present() {
            return Err(InstallError::Occupied(there, size));
        }
        self.mm.machine.reached(Point::InstallReady);
        slot.store(Entry::leaf(pfn, size, prot).bits(), Ordering::Release);
        Ok(())
    }
