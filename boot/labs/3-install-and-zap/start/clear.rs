    /// Takes a leaf out. To be written.
    ///
    /// What there is: `leaf.slot` is the entry's place, an atomic; `leaf.start`, `leaf.end()` and `leaf.size` are what it spans.
    /// `self.gather.leaf(entry, size)` takes over the reference of the entry that was there, which it gives back after the
    /// shootdown. `self.flush(start, end, size)` notes what is to be flushed.
    ///
    /// The CPU may set accessed and dirty bits in the entry until the moment at which it is gone, and what is handed on is the
    /// entry as it was at that moment.
    #[inline(always)]
    fn clear(&mut self, leaf: &Leaf<'_>) {
        todo!("lab 3: clear the leaf at {:#x}", leaf.start)
    }
