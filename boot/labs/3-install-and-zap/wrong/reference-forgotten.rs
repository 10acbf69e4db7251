//= part: clear
//= loses: each reference of a leaf is given back once
    #[inline(always)]
    fn clear(&mut self, leaf: &Leaf<'_>) {
        leaf.slot.store(0, Ordering::Release);
        self.flush(leaf.start, leaf.end(), leaf.size);
    }
