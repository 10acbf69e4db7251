    /// Frees the nodes on the way to `pfn` that have nothing in use, from the bottom. To be written.
    ///
    /// What there is: `self.path(held, pfn)` are the slots on the way: `path.top`, `path.gib` and `path.mib`, the latter two
    /// only as far as there are tables. `is_bare(slot, held)` says whether a slot leads to a node none of whose slots is in
    /// use. `slot.detach(held)` takes the node out of its slot, as an orphan: [`AnyOrphan::Chunk`] from a `mib` slot,
    /// [`AnyOrphan::Mib`] from a `gib` slot, [`AnyOrphan::Gib`] from the top. Who takes one out counts the slot that it was
    /// in: `parent.set_used(held, parent.used(held) - 1)`, where the parent of `mib` is `gib`, that of `gib` is `top`.
    /// `orphan.free(held)` frees it and answers its bytes, which are taken off the ledger: `self.charge(-(bytes as i64))`.
    /// The path borrows `held`: free the orphans when it is gone.
    #[allow(unused_variables)]
    pub(super) fn prune(&self, held: &mut Held, pfn: Pfn) {
        todo!("lab 6: free what nothing hangs in any more")
    }
