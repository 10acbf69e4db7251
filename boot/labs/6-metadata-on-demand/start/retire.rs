    /// The folio of `size` around `pfn` has lost its last reference: step 3 of the protocol at the head of this file. To be
    /// written.
    ///
    /// What there is: `self.retire_pages(pfn, 1)` does all of it for a page of 4 KiB. `self.inner.lock()` is the store's lock,
    /// with `held` and `maps` in what it protects. `self.tree.find(&inner.held, pfn)` is what covers a frame now: a
    /// [`Spot::Folio`] with a page that has `refs()`, `size()` and `head()`, or something else.
    /// `inner.maps.find(pfn)` is its page map and a range; `self.bury(&mut inner.held, map, head, size)` frees the metadata of
    /// a large folio.
    ///
    /// Whoever comes here holds nothing any more: before it has the lock somebody else may have buried the folio, and planted
    /// another in its place, of the same size or another.
    #[allow(unused_variables)]
    fn retire(&self, pfn: Pfn, size: PageSize) {
        todo!("lab 6: the metadata of {pfn} is needed no more")
    }
