//= part: zap
//= loses: the entries are cleared before any CPU flushes
    pub(crate) fn zap(&self, range: VirtRange, window: (VirtAddr, VirtAddr), gather: &mut Gather<M>) {
        // Nobody is to use the entries while they are cleared.
        gather.issue(self.tlb, FlushRange::All, true);
        gather.shoot_down();
        let mut at = Traversal::new(range, gather);
        _ = self.visit(&mut at, &mut Zap { window: (window.0.as_u64(), window.1.as_u64()) });
    }
