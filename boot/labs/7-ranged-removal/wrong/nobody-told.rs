//= part: unmap each
//= loses: everybody who maps it is told
pub fn unmap_each<M: Machine>(
    mapping: &Mapping<M>,
    first: u64,
    nr_pages: u64,
    gather: &mut Gather<M>,
    each: &mut dyn FnMut(&Arc<AddressSpace<M>>, VirtRange),
) {
    for_each_space(mapping, first, nr_pages, |space, vmas, listed| {
        let mut together: Option<Together> = None;
        vmas.for_each_part(mapping.id(), (first, nr_pages), listed, |part| {
            // Who has not touched it loses nothing.
            if space.table().has_leaf(part.range, gather) {
                each(space, part.range);
            }
            if !together.as_mut().is_some_and(|before| before.take_in(part))
                && let Some(before) = together.replace(Together::one(part))
            {
                take_out(space, vmas, (before.range, before.whole), gather);
            }
        });
        if let Some(last) = together {
            take_out(space, vmas, (last.range, last.whole), gather);
        }
    });
}
