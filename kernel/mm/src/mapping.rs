//! Mappings: from an offset of a device or file to every address space that maps it (Linux: `struct
//! address_space` with its `i_mmap` tree), and taking a range of offsets away from all of them.

use alloc::vec::Vec;
use core::cell::Cell;

use arrayvec::ArrayVec;

use crate::addr::{PAGE_SHIFT, PAGE_SIZE, VirtAddr, VirtRange};
use crate::context::MmContext;
use crate::gather::Gather;
use crate::ledger::Kind;
use crate::machine::{self, Machine, Point};
use crate::mutant::Mutant;
use crate::pagemap::DevPagemap;
use crate::rmap::{IntervalId, IntervalTree};
use crate::space::AddressSpace;
use crate::sync::{Arc, Mutex, SleepLock, Weak};
use crate::vma::{Part, Together, Vmas, are_near};

/// Names one VMA's entry in a reverse map.
pub(crate) type RmapId = IntervalId;

/// VMAs that are listed at a time where memory for the whole list is missing.
const BATCH: usize = 16;

/// A VMA that maps a range: its space, and where.
pub(crate) type Found<M> = (Arc<AddressSpace<M>>, VirtRange);

/// One VMA, seen from the file.
struct Mapped<M: Machine> {
    space: Weak<AddressSpace<M>>,
    start: VirtAddr,
    /// The last listing in batches that has had it. Under the reverse map's lock.
    listed: Cell<u64>,
}

/// A device or file as the mapped side sees it: offsets in base pages → who maps them.
pub struct Mapping<M: Machine> {
    mm: Arc<MmContext<M>>,
    id: u64,
    map: Arc<DevPagemap>,
    rmap: Mutex<IntervalTree<Mapped<M>>>,
    /// Listings in batches so far. Held by the one that goes on.
    listings: SleepLock<u64>,
}

impl<M: Machine> Mapping<M> {
    /// A mapping that nobody maps. All frames that are ever installed through it are `map`'s: by that a removal finds
    /// it, whoever made it ([`MmContext::for_each_mapping`]).
    pub fn new(mm: &Arc<MmContext<M>>, map: &Arc<DevPagemap>) -> Arc<Self> {
        let id = mm.new_id();
        let rmap = Mutex::new(IntervalTree::new());
        let mapping =
            Arc::new(Self { mm: Arc::clone(mm), id, map: Arc::clone(map), rmap, listings: SleepLock::new(0) });
        mm.add_mapping(&mapping);
        mapping
    }
    /// Its number, which page metadata names as the owner. Not 0, not used twice.
    pub fn id(&self) -> u64 {
        self.id
    }
    /// The context it belongs to.
    pub fn mm(&self) -> &Arc<MmContext<M>> {
        &self.mm
    }
    /// The page map whose frames it maps.
    pub fn pagemap(&self) -> &Arc<DevPagemap> {
        &self.map
    }
    /// How many VMAs map a part of it.
    pub fn nr_vmas(&self) -> usize {
        self.rmap.lock().len()
    }

    /// `None`: no memory.
    pub(crate) fn insert(&self, space: &Arc<AddressSpace<M>>, offset_pages: u64, range: VirtRange) -> Option<RmapId> {
        let mapped = Mapped { space: Arc::downgrade(space), start: range.start(), listed: Cell::new(0) };
        let mut rmap = self.rmap.lock();
        rmap.make_room(1).ok()?;
        self.mm.ledger.charge(Kind::ReverseMap, 1);
        Some(rmap.insert(offset_pages, offset_pages + range.nr_pages(), mapped))
    }

    /// Makes room for so many more VMAs, or answers that there is no memory for them. Somebody else may take it before the
    /// caller does, who then has to ask for memory where it cannot be refused: in a space that is locked only a VMA of
    /// another space comes in between.
    pub(crate) fn make_room(&self, more: usize) -> bool {
        self.rmap.lock().make_room(more).is_ok()
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
        // A part has been listed if the whole was: who has it on the list looks again at all of its old range.
        let listed = rmap.take(id).map_or(0, |whole| whole.listed.get());
        parts.map(|(offset_pages, range)| {
            let mapped = Mapped { space: Arc::downgrade(space), start: range.start(), listed: Cell::new(listed) };
            rmap.insert(offset_pages, offset_pages + range.nr_pages(), mapped)
        })
    }

    /// Every address space that maps one of `nr_pages` offsets from `first` on, with the first address of the VMA.
    /// Logarithmic in what is mapped elsewhere, linear in what is found.
    pub fn users(&self, first: u64, nr_pages: u64) -> Vec<(Arc<AddressSpace<M>>, VirtAddr)> {
        let mut users = Vec::new();
        self.rmap.lock().for_each_overlap(first, first.saturating_add(nr_pages), |_, _, mapped| {
            users.extend(mapped.space.upgrade().map(|space| (space, mapped.start)));
        });
        users
    }

    /// Every address at which the page at offset `page` is mapped, whether or not a leaf is installed there; where memory is
    /// short, some of them.
    pub fn places(&self, page: u64) -> Vec<(Arc<AddressSpace<M>>, VirtAddr)> {
        let mut places = Vec::new();
        self.rmap.lock().for_each_overlap(page, page.saturating_add(1), |from, _, mapped| {
            let addr = mapped.start.checked_add(page.saturating_sub(from) << PAGE_SHIFT);
            if machine::has_room(&self.mm.machine, &mut places) {
                places.extend(mapped.space.upgrade().zip(addr));
            }
        });
        places
    }

    /// The first VMAs that map one of `nr_pages` offsets from `first` on, as many as the answer has room for, each with the
    /// first offset that it maps; and how many there are in all, those of spaces on the way out among them. Linear in these.
    pub fn some_users<const N: usize>(&self, first: u64, nr_pages: u64) -> (ArrayVec<(Found<M>, u64), N>, usize) {
        let (mut users, mut nr) = (ArrayVec::new(), 0);
        self.rmap.lock().for_each_overlap(first, first.saturating_add(nr_pages), |from, to, mapped| {
            nr += 1;
            // Whoever is let go of under this lock may be the last one's, who needs it.
            if !users.is_full() {
                users.extend(found(from, to, mapped).map(|found| (found, from)));
            }
        });
        (users, nr)
    }

    /// Every VMA that maps one of the offsets, with its whole range; `None` where memory for the list is missing. Those of
    /// one space that are mapped one after the other, and not far apart, are one entry: from the first to the last.
    fn list(&self, first: u64, nr_pages: u64) -> Option<Vec<Found<M>>> {
        let mut users = Vec::<Found<M>>::new();
        let mut complete = true;
        // The space of the last one, and where in it that is.
        let mut last: (*const AddressSpace<M>, VirtRange);
        let nowhere = VirtRange::new(VirtAddr::new(0), PAGE_SIZE)?;
        last = (core::ptr::null(), nowhere);
        self.rmap.lock().for_each_overlap(first, first.saturating_add(nr_pages), |from, to, mapped| {
            let Some(range) = VirtRange::new(mapped.start, (to - from) << PAGE_SHIFT) else { return };
            let before = core::mem::replace(&mut last, (mapped.space.as_ptr(), range));
            if before.0 == last.0
                && are_near(before.1, range)
                && let Some((_, all)) = users.last_mut()
            {
                *all = all.hull(range);
                return;
            }
            complete = complete && machine::has_room(&self.mm.machine, &mut users);
            if complete && let Some(space) = mapped.space.upgrade() {
                users.push((space, range));
            } else {
                last.0 = core::ptr::null();
            }
        });
        complete.then_some(users)
    }

    /// The same in batches, without memory: each goes to `look`, outside the lock. A VMA that is there from beginning
    /// to end is in one of them. Work grows with the number of VMAs times the number of batches.
    fn list_in_batches(&self, first: u64, nr_pages: u64, look: &mut dyn FnMut(&mut [Found<M>])) {
        // One at a time, so that a mark says whose it is.
        let mut listings = self.listings.take(|| self.mm.machine.relax());
        *listings += 1;
        loop {
            let mut batch = ArrayVec::<_, BATCH>::new();
            let mut more = false;
            self.rmap.lock().for_each_overlap(first, first.saturating_add(nr_pages), |from, to, mapped| {
                if mapped.listed.get() == *listings {
                    return;
                }
                more |= batch.is_full();
                if !batch.is_full() {
                    mapped.listed.set(*listings);
                    batch.extend(found(from, to, mapped));
                }
            });
            look(&mut batch);
            if !more {
                return;
            }
        }
    }
}

/// A VMA of the reverse map; `None` where its space is on the way out.
fn found<M: Machine>(from: u64, to: u64, mapped: &Mapped<M>) -> Option<Found<M>> {
    mapped.space.upgrade().zip(VirtRange::new(mapped.start, (to - from) << PAGE_SHIFT))
}

impl<M: Machine> Drop for Mapping<M> {
    fn drop(&mut self) {
        self.mm.remove_mapping(self);
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
/// Each space is locked once. VMAs with nothing else between them go as one, and with them the tables that they alone use,
/// at the highest level.
///
/// Linux: `mm/memory.c`, `unmap_mapping_range`.
pub fn unmap_mapping_range<M: Machine>(
    mapping: &Mapping<M>,
    first: u64,
    nr_pages: u64,
    gather: &mut Gather<M>,
) -> Vec<Unmapped<M>> {
    let mut done = Vec::new();
    unmap_each(mapping, first, nr_pages, gather, &mut |space, range| {
        done.push(Unmapped { space: Arc::clone(space), range });
    });
    done
}

/// As [`unmap_mapping_range`], which tells `each` who mapped the range: it needs no memory. Where there is none for
/// a list of the VMAs, they are taken in small batches, and where there is none for what was removed, there are more
/// shootdowns than one.
// lab 7 begin: unmap each
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
            each(space, part.range);
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
// lab 7 end

/// Takes what is installed in `range` out of the space's page table, and tables with it: where these are whole VMAs, also those
/// that reach beyond them and are nobody else's. What is not installed any more may be in TLBs all the same: of what somebody else
/// has taken out and not yet shot down `gather` takes care, too.
#[inline]
fn take_out<M: Machine>(
    space: &AddressSpace<M>,
    vmas: &Vmas<M>,
    (range, whole): (VirtRange, bool),
    gather: &mut Gather<M>,
) {
    let window = if whole { vmas.window(range, space.half_end()) } else { (range.start(), range.end()) };
    let issued = gather.nr_issued();
    space.table().zap(range, window, gather);
    // What was issued just now covers everything that was taken out before it.
    if gather.nr_issued() == issued && !Mutant::OpenRoundLeft.is_on() {
        space.close_open_rounds_again(gather);
    }
}

/// Takes what is installed through `mapping` out of every page table, and tells `each` where that was: a VMA in which
/// nothing is installed costs a look, and is not told. For what others should have taken apart. As for [`unmap_each`] it
/// needs no memory, and nothing new is installed.
pub fn unmap_leftovers<M: Machine>(
    mapping: &Mapping<M>,
    gather: &mut Gather<M>,
    each: &mut dyn FnMut(&Arc<AddressSpace<M>>, VirtRange),
) {
    for_each_space(mapping, 0, u64::MAX, |space, vmas, listed| {
        vmas.for_each_part(mapping.id(), (0, u64::MAX), listed, |Part { range, whole, .. }| {
            if space.table().has_leaf(range, gather) {
                take_out(space, vmas, (range, whole), gather);
                each(space, range);
            }
        });
        // Of what others have taken apart, but have not yet shot down.
        space.close_open_rounds_again(gather);
    });
}

/// Makes the offsets `first .. first + nr_pages` of `mapping` write-protected and clean in every page table; the flush
/// goes into `gather`, so that one shootdown serves all address spaces and all ranges. Once it is done the next store to
/// one of them faults, and [`VmOps::stores_begin`](crate::vma::VmOps::stores_begin) is called. What is stored before
/// that was stored to a page that the provider has been told of earlier: it takes its notes before it calls this, and
/// writes back after the shootdown.
///
/// Linux: `fs/dax.c`, `dax_writeback_one`; `mm/rmap.c`, `pfn_mkclean_range`.
pub fn clean_mapping_range<M: Machine>(mapping: &Mapping<M>, first: u64, nr_pages: u64, gather: &mut Gather<M>) {
    for_each_space(mapping, first, nr_pages, |space, vmas, listed| {
        vmas.for_each_part(mapping.id(), (first, nr_pages), listed, |part| space.table().clean(part.range, gather));
        // What somebody else has taken out and not yet shot down may still be stored to. The gather may have been here before,
        // for another range.
        space.close_open_rounds_again(gather);
    });
}

/// Each space with VMAs that map one of the offsets, locked exclusively and once; its VMAs; and the ranges of those that
/// map one of the offsets, rising, as they were listed.
fn for_each_space<M: Machine>(
    mapping: &Mapping<M>,
    first: u64,
    nr_pages: u64,
    mut visit: impl FnMut(&Arc<AddressSpace<M>>, &Vmas<M>, &[Found<M>]),
) {
    // The reverse map's lock ranks below the spaces': list first, then look again under each space's lock. A VMA may
    // have been cut in between, and so whatever now lies in its old range is taken.
    let mut look = |users: &mut [Found<M>]| {
        // Mostly they are in this order: who maps a device maps it from the front.
        users.sort_unstable_by_key(|(space, range)| (space.id(), range.start()));
        for listed in users.chunk_by(|(one, _), (next, _)| Arc::ptr_eq(one, next)) {
            if let Some((space, _)) = listed.first() {
                visit(space, &space.write(), listed);
            }
        }
    };
    match mapping.list(first, nr_pages) {
        Some(mut users) => {
            mapping.mm.machine.reached(Point::UsersListed);
            look(&mut users);
        }
        None => mapping.list_in_batches(first, nr_pages, &mut look),
    }
}
