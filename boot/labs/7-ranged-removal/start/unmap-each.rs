// As [`unmap_mapping_range`], which tells `each` who mapped the range. To be written.
//
// What there is:
// - `for_each_space(mapping, first, nr_pages, |space, vmas, listed| ...)` locks each space that maps one of the offsets, once and
//   exclusively, and answers its VMAs and the ranges of those that map one, as they were listed before the lock was taken.
// - `vmas.for_each_part(mapping.id(), (first, nr_pages), listed, |part| ...)` looks again, under the lock: each part of a VMA that
//   maps one of the offsets, by its `part.range`, in the order of the addresses.
// - `Together::one(part)` begins a range that is taken out as one, and `before.take_in(part)` takes the next part in where
//   nothing else is mapped in between, and answers whether it has.
// - `take_out(space, vmas, (range, whole), gather)` takes what is installed in a range out of the space's page table, and
//   puts it into the gather; a [`Together`] has its `range` and whether these are `whole` VMAs.
//
// What is wanted: `each` hears of every part; everything is in `gather`, which the caller shoots down once for all spaces;
// VMAs side by side are taken out as one.
#[allow(unused_variables)]
pub fn unmap_each<M: Machine>(
    mapping: &Mapping<M>,
    first: u64,
    nr_pages: u64,
    gather: &mut Gather<M>,
    each: &mut dyn FnMut(&Arc<AddressSpace<M>>, VirtRange),
) {
    todo!("lab 7: take {nr_pages} pages from {first} on out of every page table")
}
