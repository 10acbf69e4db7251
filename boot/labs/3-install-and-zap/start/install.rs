    /// Maps one leaf. To be written. The caller holds the address space's lock shared and owns a reference on the folio, which
    /// belongs to the entry from here on if this succeeds.
    ///
    /// What there is: `self.table_at(va, level)?` is the table of that level on the way to `va`, made where it is missing;
    /// `size.level()`; `self.entry(table, va.index(level))`, an atomic; `Entry::leaf(pfn, size, prot)`.
    ///
    /// The lock is shared: another CPU may install at the same place at the same time, and the CPU's walker reads there and
    /// sets bits. Who comes second leaves the entry as it is: [`InstallError::TableInTheWay`] where a table is there,
    /// [`InstallError::Occupied`] with the entry and `size` where a leaf is.
    ///
    /// The tests let another CPU in where this says `self.mm.machine.reached(Point::InstallReady)`: just before the entry
    /// changes.
    #[allow(unused_variables)]
    pub(crate) fn install(&self, va: VirtAddr, pfn: Pfn, size: PageSize, prot: Prot) -> Result<(), InstallError> {
        todo!("lab 3: map {pfn} at {va}")
    }
