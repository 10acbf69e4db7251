//! What the devices have to do with a page that is lost: who maps it, whose records it held, the list that is stored.

use fs::lock_order::Context;
use mm::addr::{PAGE_SHIFT, Pfn, PfnRange, VirtAddr};

use crate::pmem::devices::{block, file, slots};
use crate::pmem::mounts;

/// Calls `each` with every address space that maps this frame of a device-dax file, or of a file of what is mounted, by its
/// number, and the address there.
pub fn for_each_place(pfn: Pfn, each: &mut dyn FnMut(u64, VirtAddr)) {
    let holding = slots().iter().enumerate().filter(|(_, slot)| slot.frames.contains(pfn));
    for file in holding.filter_map(|(at, _)| file(at).ok()) {
        for (space, addr) in file.places_of(pfn) {
            each(space.id(), addr);
        }
    }
    for (_, mounted) in mounts::all() {
        let Some(page) = mounted.device().pagemap().page_of(pfn) else { continue };
        // Of a file that nobody has open nobody maps anything, and of what is not a file's neither.
        if let Ok(Some(found)) = mounted.owner_of(&Context::new(), page << PAGE_SHIFT)
            && let Some(mapping) = found.mapping
        {
            mapping.places(found.page).iter().for_each(|(space, addr)| each(space.id(), *addr));
        }
    }
}

/// A frame of no page map has lost its contents. Is it in the area of an attached device? Then that deals with it.
pub fn lose_own(pfn: Pfn) -> bool {
    let holding = slots().iter().enumerate().filter(|(_, slot)| slot.frames.contains(pfn));
    holding.filter_map(|(at, _)| block(at).ok()).any(|block| block.lose_own(pfn))
}

/// A row of pages was poisoned: the lists of the devices that have some of it are stored, where a device stores its list.
pub fn keep_bad_blocks(row: PfnRange) {
    let holding = slots().iter().enumerate().filter(|(_, slot)| slot.frames.overlaps(row));
    holding.filter_map(|(at, _)| block(at).ok()).for_each(|block| block.keep_bad_blocks());
}
