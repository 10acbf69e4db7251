//= part: clear
//= loses: no CPU reaches a page after its unmap
    #[inline(always)]
    fn clear(&mut self, leaf: &Leaf<'_>) {
        // The entry is gone: nobody can use it.
        let entry = Entry::from_bits(leaf.slot.swap(0, Ordering::AcqRel));
        self.gather.leaf(entry, leaf.size);
    }
