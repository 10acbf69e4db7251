//= part: zap
//= loses: no CPU reaches a page after its unmap
    pub(crate) fn zap(&self, range: VirtRange, window: (VirtAddr, VirtAddr), gather: &mut Gather<M>) {
        let mut at = Traversal::new(range, gather);
        _ = self.visit(&mut at, &mut Zap { window: (window.0.as_u64(), window.1.as_u64()) });
    }
