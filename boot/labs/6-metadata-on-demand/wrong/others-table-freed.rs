//= part: prune
//= loses: a table that others use stays
    pub(super) fn prune(&self, held: &mut Held, pfn: Pfn) {
        let mut orphans = ArrayVec::<AnyOrphan, 3>::new();
        {
            let path = self.path(held, pfn);
            if let (Some(gib), Some(mib)) = (path.gib, path.mib)
                && is_bare(mib, held)
            {
                orphans.extend(mib.detach(held).map(AnyOrphan::Chunk));
                gib.set_used(held, gib.used(held) - 1);
            }
            // What hung in them has gone.
            if let Some(gib) = path.gib
                && matches!(gib.view(held), View::Node(_))
            {
                orphans.extend(gib.detach(held).map(AnyOrphan::Mib));
                path.top.set_used(held, path.top.used(held) - 1);
            }
            if is_bare(path.top, held) {
                orphans.extend(path.top.detach(held).map(AnyOrphan::Gib));
            }
        }
        for orphan in orphans {
            self.charge(-(orphan.free(held) as i64));
        }
    }
