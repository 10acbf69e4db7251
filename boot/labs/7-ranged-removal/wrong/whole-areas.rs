//= part: unmap each
//= loses: the range goes from everybody and nothing else does
pub fn unmap_each<M: Machine>(
    mapping: &Mapping<M>,
    first: u64,
    nr_pages: u64,
    gather: &mut Gather<M>,
    each: &mut dyn FnMut(&Arc<AddressSpace<M>>, VirtRange),
) {
    for_each_space(mapping, first, nr_pages, |space, vmas, listed| {
        // Whoever maps a part of it loses the whole area.
        vmas.for_each_part(mapping.id(), (0, u64::MAX), listed, |part| {
            each(space, part.range);
            take_out(space, vmas, (part.range, part.whole), gather);
        });
    });
}
