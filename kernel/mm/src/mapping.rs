//! Mappings: from an offset of a device or file to every address space that maps it (Linux: `struct
//! address_space` with its `i_mmap` tree), and taking a range of offsets away from all of them.

use alloc::vec::Vec;

use crate::addr::{PAGE_SHIFT, VirtAddr, VirtRange};
use crate::gather::Gather;
use crate::ledger::Kind;
use crate::machine::{Machine, Point};
use crate::mutant::Mutant;
use crate::rmap::{IntervalId, IntervalTree};
use crate::space::AddressSpace;
use crate::sync::{Arc, Mutex, Weak};
use crate::world::Mm;

/// Names one VMA's entry in a reverse map.
pub(crate) type RmapId = IntervalId;

/// One VMA, seen from the file.
struct Mapped<M: Machine> {
    space: Weak<AddressSpace<M>>,
    start: VirtAddr,
}

/// A device or file as the mapped side sees it: offsets in base pages → who maps them.
pub struct Mapping<M: Machine> {
    mm: Arc<Mm<M>>,
    id: u64,
    rmap: Mutex<IntervalTree<Mapped<M>>>,
}

impl<M: Machine> Mapping<M> {
    /// A mapping that nobody maps.
    pub fn new(mm: &Arc<Mm<M>>) -> Arc<Self> {
        let id = mm.new_id();
        let mapping = Arc::new(Self { mm: Arc::clone(mm), id, rmap: Mutex::new(IntervalTree::new()) });
        mm.add_mapping(&mapping);
        mapping
    }
    /// Its number, which page metadata names as the owner. Not 0, not used twice.
    pub fn id(&self) -> u64 {
        self.id
    }
    /// The world it belongs to.
    pub fn mm(&self) -> &Arc<Mm<M>> {
        &self.mm
    }
    /// How many VMAs map a part of it.
    pub fn nr_vmas(&self) -> usize {
        self.rmap.lock().len()
    }

    pub(crate) fn insert(&self, space: &Arc<AddressSpace<M>>, offset_pages: u64, range: VirtRange) -> RmapId {
        self.mm.ledger.charge(Kind::ReverseMap, 1);
        let mapped = Mapped { space: Arc::downgrade(space), start: range.start() };
        self.rmap.lock().insert(offset_pages, offset_pages + range.nr_pages(), mapped)
    }

    pub(crate) fn remove(&self, id: RmapId) {
        self.rmap.lock().remove(id);
        self.mm.ledger.charge(Kind::ReverseMap, -1);
    }

    /// Replaces the entry of a VMA that is cut in two, in one step: whoever lists the users at any moment finds all of
    /// it.
    pub(crate) fn replace(
        &self,
        id: RmapId,
        space: &Arc<AddressSpace<M>>,
        parts: [(u64, VirtRange); 2],
    ) -> [RmapId; 2] {
        self.mm.ledger.charge(Kind::ReverseMap, 1);
        let mut rmap = self.rmap.lock();
        rmap.remove(id);
        parts.map(|(offset_pages, range)| {
            let mapped = Mapped { space: Arc::downgrade(space), start: range.start() };
            rmap.insert(offset_pages, offset_pages + range.nr_pages(), mapped)
        })
    }

    /// Every address space that maps one of `nr_pages` offsets from `first` on, with the first address of the VMA.
    /// Logarithmic in what is mapped elsewhere, linear in what is found.
    pub fn users(&self, first: u64, nr_pages: u64) -> Vec<(Arc<AddressSpace<M>>, VirtAddr)> {
        self.ranges(first, nr_pages).into_iter().map(|(space, range)| (space, range.start())).collect()
    }

    /// As [`users`](Self::users), with the whole range of the VMA.
    fn ranges(&self, first: u64, nr_pages: u64) -> Vec<(Arc<AddressSpace<M>>, VirtRange)> {
        let mut users = Vec::new();
        self.rmap.lock().for_each_overlap(first, first.saturating_add(nr_pages), |from, to, mapped| {
            let range = VirtRange::new(mapped.start, (to - from) << PAGE_SHIFT);
            users.extend(mapped.space.upgrade().zip(range));
        });
        users
    }
}

impl<M: Machine> Drop for Mapping<M> {
    fn drop(&mut self) {
        self.mm.remove_mapping(self.id);
    }
}

/// One address space from which something was taken away.
pub struct Unmapped<M: Machine> {
    /// The space.
    pub space: Arc<AddressSpace<M>>,
    /// The part of it that maps the offsets.
    pub range: VirtRange,
}

/// Takes the offsets `first .. first + nr_pages` of `mapping` out of every page table. The VMAs stay, and later
/// accesses fault. Everything goes into `gather`: one shootdown serves all address spaces. The caller has made sure
/// that no new page is installed (the device is dying, or the file's layout is locked).
///
/// Answers who mapped the range, whether or not a page was installed there.
///
/// Linux: `mm/memory.c`, `unmap_mapping_range`.
pub fn unmap_mapping_range<M: Machine>(
    mapping: &Mapping<M>,
    first: u64,
    nr_pages: u64,
    gather: &mut Gather<M>,
) -> Vec<Unmapped<M>> {
    let mut done = Vec::new();
    // The reverse map's lock ranks below the spaces': list first, then look again under each space's lock. A VMA may
    // have been cut in between, and so whatever now lies in its old range is taken.
    let users = mapping.ranges(first, nr_pages);
    mapping.mm.machine.reached(Point::UsersListed);
    for (space, range) in users {
        let vmas = space.write();
        let most = if Mutant::CutAreaMissed.is_on() { 1 } else { usize::MAX };
        for vma in vmas.overlapping(range).filter(|vma| vma.ops.mapping().id() == mapping.id()).take(most) {
            let Some(part) = vma.part_of(first, nr_pages) else { continue };
            let whole = part == vma.range;
            let window = if whole { vmas.window(part, space.half_end()) } else { (part.start(), part.end()) };
            space.table().zap(part, window, gather);
            done.push(Unmapped { space: Arc::clone(&space), range: part });
        }
    }
    done
}
