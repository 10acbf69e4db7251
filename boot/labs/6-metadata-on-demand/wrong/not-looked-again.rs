//= part: retire
//= loses: who is dead is looked at again under the lock
    fn retire(&self, pfn: Pfn, size: PageSize) {
        if size == PageSize::Size4K {
            return self.retire_pages(pfn, 1);
        }
        let inner = &mut *self.inner.lock();
        // Its count was zero when it was put: it is dead.
        let Spot::Folio(page) = self.tree.find(&inner.held, pfn) else {
            return;
        };
        let head = page.head();
        let (map, _) = inner.maps.find(pfn).expect("a live folio keeps its page map registered");
        self.bury(&mut inner.held, map, head, size);
    }
