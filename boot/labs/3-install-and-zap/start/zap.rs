    /// Takes every translation of `range` out and puts it into `gather`. To be written. `window` contains `range`, and nothing
    /// outside `range` is mapped in it. The caller holds the address space's lock exclusively.
    ///
    /// What there is: `Traversal::new(range, gather)` is a pass over the range; `self.visit(&mut at, &mut Zap { window })`, with
    /// the window as two numbers, makes it, and has `clear` called for each leaf; `self.issue(&mut at)` announces what was noted
    /// for the flush. The gather's owner shoots down once this has returned, and frees after that.
    #[allow(unused_variables)]
    pub(crate) fn zap(&self, range: VirtRange, window: (VirtAddr, VirtAddr), gather: &mut Gather<M>) {
        todo!("lab 3: take out what the range maps")
    }
