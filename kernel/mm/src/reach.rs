//! Does any page table lead to a device? The question at the end of a removal's shootdown, for debug builds.
//!
//! Exhaustive: every page table of every address space is walked, whether or not the reverse map knows of what is there.
//! Work is proportional to the page tables of all spaces, and not to the frames of the device. Spaces that are on their way
//! out are left out: nobody has one of those, so that no CPU can load it, and what it maps is being given back.

use alloc::string::{String, ToString};
use core::fmt;

use crate::addr::{ENTRIES, PageSize, Pfn, VirtAddr};
use crate::context::MmContext;
use crate::entry::Entry;
use crate::machine::Machine;
use crate::pagemap::DevPagemap;
use crate::space::AddressSpace;
use crate::table::span_bytes;

/// A leaf that leads to a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reached {
    /// Number of the address space.
    pub space_id: u64,
    /// Its name.
    pub space: String,
    /// First address that the leaf maps.
    pub va: VirtAddr,
    /// First frame that it maps.
    pub pfn: Pfn,
    /// Its size.
    pub size: PageSize,
}

impl fmt::Display for Reached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { space_id, space, va, pfn, size } = self;
        write!(f, "{space} (space {space_id}) maps frame {pfn} at {va}, {size}")
    }
}

/// A leaf that maps a frame of `map`, in whatever address space. A release build does not keep a list of its spaces, and
/// finds none.
pub fn find_leaf<M: Machine>(mm: &MmContext<M>, map: &DevPagemap) -> Option<Reached> {
    #[cfg(all(debug_assertions, not(loom)))]
    {
        let mut after = 0;
        while let Some(space) = mm.next_space(after) {
            after = space.id();
            let found = leaf_in(&space, map);
            if found.is_some() {
                return found;
            }
        }
    }
    let _ = (mm, map);
    None
}

/// The same in one address space.
pub fn leaf_in<M: Machine>(space: &AddressSpace<M>, map: &DevPagemap) -> Option<Reached> {
    // So that nobody frees a table meanwhile.
    let _vmas = space.read();
    let (va, pfn, size) = below(space, space.root().pfn(), space.mm().machine.levels(), 0, map)?;
    Some(Reached { space_id: space.id(), space: space.name().to_string(), va, pfn, size })
}

fn below<M: Machine>(
    space: &AddressSpace<M>,
    table: Pfn,
    level: u8,
    base: u64,
    map: &DevPagemap,
) -> Option<(VirtAddr, Pfn, PageSize)> {
    let machine = &space.mm().machine;
    let (span, end) = (span_bytes(level), space.half_end().as_u64());
    for index in 0..ENTRIES {
        let va = base + index as u64 * span;
        if va >= end {
            break;
        }
        let entry = Entry::from_bits(machine.peek(table, index));
        let found = match PageSize::from_level(level) {
            Some(size) if entry.is_leaf(level) => {
                let hits = |range: &crate::addr::PfnRange| {
                    entry.pfn() < range.end() && range.start() < entry.pfn().add(size.nr_pages())
                };
                map.ranges().iter().any(hits).then(|| (VirtAddr::new(va), entry.pfn(), size))
            }
            _ if entry.is_table(level) => below(space, entry.pfn(), level - 1, va, map),
            _ => None,
        };
        if found.is_some() {
            return found;
        }
    }
    None
}
