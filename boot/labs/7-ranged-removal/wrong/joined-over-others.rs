//= part: unmap each
//= loses: what others map in between stays
pub fn unmap_each<M: Machine>(
    mapping: &Mapping<M>,
    first: u64,
    nr_pages: u64,
    gather: &mut Gather<M>,
    each: &mut dyn FnMut(&Arc<AddressSpace<M>>, VirtRange),
) {
    for_each_space(mapping, first, nr_pages, |space, vmas, listed| {
        let mut all: Option<VirtRange> = None;
        vmas.for_each_part(mapping.id(), (first, nr_pages), listed, |part| {
            each(space, part.range);
            all = Some(all.map_or(part.range, |all| all.hull(part.range)));
        });
        // From the first to the last: one pass.
        if let Some(all) = all {
            take_out(space, vmas, (all, false), gather);
        }
    });
}
