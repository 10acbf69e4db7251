//= part: unmap each
//= loses: a VMA that is cut meanwhile goes as a whole
pub fn unmap_each<M: Machine>(
    mapping: &Mapping<M>,
    first: u64,
    nr_pages: u64,
    gather: &mut Gather<M>,
    each: &mut dyn FnMut(&Arc<AddressSpace<M>>, VirtRange),
) {
    for_each_space(mapping, first, nr_pages, |space, vmas, listed| {
        // What was listed is what is there.
        for (_, range) in listed {
            let Some(vma) = vmas.find(range.start()).filter(|vma| vma.ops.mapping().id() == mapping.id()) else {
                continue;
            };
            let Some(range) = vma.part_of(first, nr_pages) else { continue };
            each(space, range);
            take_out(space, vmas, (range, false), gather);
        }
    });
}
