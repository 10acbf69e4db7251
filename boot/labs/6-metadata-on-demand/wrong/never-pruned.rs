//= part: prune
//= loses: a page's metadata comes with the first reference and goes with the last
    pub(super) fn prune(&self, _held: &mut Held, _pfn: Pfn) {
        // It will be needed again.
    }
