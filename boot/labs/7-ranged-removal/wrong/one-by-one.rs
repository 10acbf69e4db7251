//= part: unmap each
//= loses: what lies side by side goes with its tables at once
pub fn unmap_each<M: Machine>(
    mapping: &Mapping<M>,
    first: u64,
    nr_pages: u64,
    gather: &mut Gather<M>,
    each: &mut dyn FnMut(&Arc<AddressSpace<M>>, VirtRange),
) {
    for_each_space(mapping, first, nr_pages, |space, vmas, listed| {
        vmas.for_each_part(mapping.id(), (first, nr_pages), listed, |part| {
            each(space, part.range);
            take_out(space, vmas, (part.range, part.whole), gather);
        });
    });
}
