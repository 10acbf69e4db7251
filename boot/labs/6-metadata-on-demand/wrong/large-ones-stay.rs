//= part: retire
//= loses: a large folio's metadata goes, too
    fn retire(&self, pfn: Pfn, size: PageSize) {
        if size == PageSize::Size4K {
            self.retire_pages(pfn, 1);
        }
    }
