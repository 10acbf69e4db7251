//= part: prune
//= loses: no table is left above what has gone
    pub(super) fn prune(&self, held: &mut Held, pfn: Pfn) {
        let mut orphan = None;
        {
            let path = self.path(held, pfn);
            if let (Some(gib), Some(mib)) = (path.gib, path.mib)
                && is_bare(mib, held)
            {
                orphan = mib.detach(held).map(AnyOrphan::Chunk);
                gib.set_used(held, gib.used(held) - 1);
            }
        }
        if let Some(orphan) = orphan {
            self.charge(-(orphan.free(held) as i64));
        }
    }
