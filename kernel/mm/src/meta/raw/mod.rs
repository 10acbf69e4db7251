//! The one door to raw memory: the nodes of the tree, the tagged slots that lead to them, and the lock-free look.
//! All `unsafe` of the page metadata is in this module.
//!
//! # Who may look at a node
//! A node (table, chunk, or the metadata of one large folio) exists as long as something in it is in use. Two
//! rights let one look at it:
//! - **the lock**: [`Slot::view`] takes `&Held`, which only the holder of the store's lock has, and
//!   [`Orphan::free`] takes `&mut Held`, so that the borrow checker knows that no view is left;
//! - **a reference**: whoever owns a reference on a folio knows that its metadata and every table on the way to it
//!   exist. Entries of live page tables own one until the shootdown after their removal is done, and so a walk
//!   with interrupts off borrows that of the entry that it has just read. This is what [`lookup`](super::MetaStore::lookup)
//!   demands.
//!
//! # A slot's word
//! | value | meaning |
//! |---|---|
//! | null | nothing in this block is in use |
//! | pointer, bit 0 clear | the [`Page`] of one folio that fills this block |
//! | pointer, bit 0 set | the next node; bits 1..=10 say how many of its slots (lives of its pages) are in use |
//!
//! So a walk tests one bit at each level.

mod look;
#[cfg(not(any(loom, shuttle)))]
pub(super) mod pool;
mod recent;

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::marker::PhantomData;

use super::life::Watched;
use super::page::{Nature, Owner, Page};
use crate::addr::{PageSize, Pfn};
use crate::sync::{Arc, AtomicPtr, Ordering};

pub(super) use self::look::Found;
pub use self::look::{Covering, Folio, Near};
pub(crate) use self::look::{Far, FarFound, Looked};
#[cfg(not(any(loom, shuttle)))]
use self::pool::allocate_zeroed;
pub use self::recent::Recent;

/// Slots of a table, pages of a chunk.
#[cfg(not(any(loom, shuttle)))]
pub(super) const FAN_OUT: usize = 512;
/// Small enough for the model checker; frame numbers then use the lowest bit of each level alone.
#[cfg(any(loom, shuttle))]
pub(super) const FAN_OUT: usize = 2;

/// Slots of the top table: 52-bit physical addresses in steps of 512 GiB.
#[cfg(not(any(loom, shuttle, miri)))]
const TOP_SLOTS: usize = 1 << (52 - 39);
#[cfg(any(loom, shuttle))]
const TOP_SLOTS: usize = 2;
/// Under Miri a store of the full size takes two seconds to make and to drop, more than a test with it.
#[cfg(all(miri, not(any(loom, shuttle))))]
const TOP_SLOTS: usize = 16;

/// log2 of the frames of one of them.
const SLOT_ORDER: u32 = 27;

const NODE: usize = 1;
const USED_SHIFT: u32 = 1;
const USED_MASK: usize = 0x3ff << USED_SHIFT;
const TAGS: usize = NODE | USED_MASK;

/// Proof that the store's lock is held. There is one in each store, inside the lock.
pub(super) struct Held {
    /// What each CPU has looked up last, which is forgotten before it is freed.
    recents: Arc<[Recent]>,
    /// By the first frame of a chunk: lives of its pages that its slot has no room to count.
    pub(super) excess: BTreeMap<Pfn, usize>,
    /// The metadata of large folios.
    #[cfg(not(any(loom, shuttle)))]
    pool: pool::Pool,
}

impl Held {
    pub(super) fn new(recents: &Arc<[Recent]>) -> Self {
        Self {
            recents: Arc::clone(recents),
            excess: BTreeMap::new(),
            #[cfg(not(any(loom, shuttle)))]
            pool: pool::Pool::default(),
        }
    }
}

/// A table of one level.
#[repr(C, align(4096))]
pub(super) struct Table<C> {
    slots: Watched<[Slot<C>; FAN_OUT]>,
}

/// The metadata of the order-0 folios of one 2 MiB block.
#[repr(C, align(4096))]
pub struct Chunk {
    pages: Watched<[Page; FAN_OUT]>,
}

/// 2 MiB blocks of 1 GiB.
pub(super) type MibTable = Table<Chunk>;
/// 1 GiB blocks of 512 GiB.
pub(super) type GibTable = Table<MibTable>;

#[cfg(not(any(loom, shuttle)))]
const _: () = assert!(size_of::<Page>() == 32 && size_of::<Chunk>() == 16384 && size_of::<MibTable>() == 4096);

/// What a slot can lead to.
///
/// # Safety
/// All-zero bytes are a valid value, and the alignment is a multiple of 2048, which leaves room for the tags.
pub(super) unsafe trait Node: Sized + 'static {
    /// What a freed one is filled with where freed metadata is kept: see [`crate::sync::hosted`].
    #[cfg(all(feature = "hosted", not(any(loom, shuttle))))]
    const FREED: u8;
    /// An empty node, or `None` when memory is exhausted.
    fn allocate() -> Option<Box<Self>>;
    /// For the models: the node is freed.
    #[cfg(any(loom, shuttle))]
    fn end(&self);
}

/// Metadata of one large folio that is in no slot yet, and has no holder.
#[must_use = "it is planted or given back"]
pub(super) struct NewPage(*mut Page);

impl NewPage {
    /// `None` when memory is exhausted.
    pub(super) fn allocate(held: &mut Held) -> Option<Self> {
        #[cfg(any(loom, shuttle))]
        let page = {
            let _ = held;
            Box::into_raw(Box::new(Page::blank()))
        };
        #[cfg(not(any(loom, shuttle)))]
        let page = held.pool.take()?;
        Some(Self(page))
    }
    /// Brings it to life: see [`Page::make`].
    pub(super) fn make(&self, nature: Nature, owner: Owner, refs: u32) {
        // SAFETY: the page is ours until it is planted.
        unsafe { &*self.0 }.make(nature, owner, refs);
    }
    /// Gives it back as it came, without a holder.
    pub(super) fn give_back(self, held: &mut Held) {
        // SAFETY: it is in no slot, so that nobody has seen it.
        unsafe { free_page(self.0, held) };
    }
}

/// Frees the metadata of a large folio.
///
/// # Safety
/// It is from [`NewPage::allocate`] of the same store, is in no slot any more, and nobody looks at it.
unsafe fn free_page(page: *mut Page, held: &mut Held) {
    #[cfg(any(loom, shuttle))]
    {
        let _ = held;
        // SAFETY: the pointer is from `Box::into_raw`; the rest is the caller's word.
        free(unsafe { Box::from_raw(page) }, |page| page.end());
    }
    // SAFETY: the caller's word.
    #[cfg(not(any(loom, shuttle)))]
    unsafe {
        held.pool.put(page);
    }
}

// SAFETY: a table is slots, and a slot is an atomic pointer, for which zero (null) is valid; `align(4096)`.
unsafe impl<C: Node> Node for Table<C> {
    /// Empty slots: anything else would be followed.
    #[cfg(all(feature = "hosted", not(any(loom, shuttle))))]
    const FREED: u8 = 0;
    #[cfg(not(any(loom, shuttle)))]
    fn allocate() -> Option<Box<Self>> {
        // SAFETY: as said for the trait's implementation.
        unsafe { allocate_zeroed() }
    }
    #[cfg(any(loom, shuttle))]
    fn allocate() -> Option<Box<Self>> {
        Some(Box::new(Self { slots: Watched::new(core::array::from_fn(|_| Slot::empty())) }))
    }
    #[cfg(any(loom, shuttle))]
    fn end(&self) {
        self.slots.iter().for_each(|slot| slot.0.end());
        self.slots.end();
    }
}

// SAFETY: a chunk is pages, and a page is four atomic integers, for which zero is valid; `align(4096)`.
unsafe impl Node for Chunk {
    /// Counts that cannot be.
    #[cfg(all(feature = "hosted", not(any(loom, shuttle))))]
    const FREED: u8 = pool::FREED;
    #[cfg(not(any(loom, shuttle)))]
    fn allocate() -> Option<Box<Self>> {
        // SAFETY: as said for the trait's implementation.
        unsafe { allocate_zeroed() }
    }
    #[cfg(any(loom, shuttle))]
    fn allocate() -> Option<Box<Self>> {
        Some(Box::new(Self { pages: Watched::new(core::array::from_fn(|_| Page::blank())) }))
    }
    #[cfg(any(loom, shuttle))]
    fn end(&self) {
        self.pages.iter().for_each(Page::end);
        self.pages.end();
    }
}

impl<C> Table<C> {
    /// The slot of the block of `size` that holds `pfn`.
    #[inline]
    pub(super) fn slot(&self, pfn: Pfn, size: PageSize) -> &Slot<C> {
        &self.slots[(pfn.as_u64() >> size.order()) as usize % FAN_OUT]
    }
}

impl Chunk {
    /// The page of `pfn`.
    #[inline]
    pub(super) fn page(&self, pfn: Pfn) -> &Page {
        &self.pages[pfn.as_u64() as usize % FAN_OUT]
    }
    /// All of them.
    pub(super) fn pages(&self) -> &[Page; FAN_OUT] {
        &self.pages
    }
    /// The pages from that of `pfn` on, at most `most`.
    #[inline]
    pub(super) fn pages_from(&self, pfn: Pfn, most: u64) -> &[Page] {
        let rest = &self.pages[pfn.as_u64() as usize % FAN_OUT..];
        &rest[..rest.len().min(usize::try_from(most).unwrap_or(usize::MAX))]
    }
}

/// One word of a table; see the table of values above.
#[repr(transparent)]
pub(super) struct Slot<C>(Watched<AtomicPtr<()>>, PhantomData<Box<C>>);

/// What a slot leads to.
pub(super) enum View<'a, C> {
    /// Nothing is in use in this block.
    Empty,
    /// One folio fills the block.
    Folio(&'a Page),
    /// The block is divided.
    Node(&'a C),
}

impl<C: Node> Slot<C> {
    fn empty() -> Self {
        Self(Watched::new(AtomicPtr::new(core::ptr::null_mut())), PhantomData)
    }

    /// The node that the slot leads to, without the lock; or the one folio that fills the block, or nothing.
    ///
    /// # Safety
    /// What it leads to stays in existence for `'a`: the caller owns a reference on a folio in there.
    #[inline(always)]
    unsafe fn peek<'a>(&self) -> Result<&'a C, Option<&'a Page>> {
        // Acquire: pairs with the Release in `plant_*` and `set_used`: who sees the pointer sees what it points to.
        let word = self.0.load(Ordering::Acquire);
        if word.addr() & NODE != 0 {
            // SAFETY: bit 0 is set on pointers to a `C` alone, from `Box::into_raw`; it exists (the caller's word).
            Ok(unsafe { &*untagged(word).cast::<C>() })
        } else {
            // SAFETY: other pointers are to a `Page`, from `NewPage`; it exists (the caller's word).
            Err(unsafe { word.cast::<Page>().as_ref() })
        }
    }

    /// What the slot leads to, under the lock.
    pub(super) fn view<'a>(&'a self, _held: &'a Held) -> View<'a, C> {
        // SAFETY: nothing is freed without `&mut Held`, which cannot exist while `'a` lasts.
        match unsafe { self.peek() } {
            Ok(node) => View::Node(node),
            Err(Some(page)) => View::Folio(page),
            Err(None) => View::Empty,
        }
    }

    /// Puts the metadata of one folio into the empty slot.
    pub(super) fn plant_folio(&self, _held: &Held, page: NewPage) {
        debug_assert!(self.0.load(Ordering::Relaxed).is_null());
        // Release: pairs with the Acquire in `peek`.
        self.0.store(page.0.cast(), Ordering::Release);
    }
    /// Puts an empty node into the empty slot.
    pub(super) fn plant_node<'a>(&'a self, held: &'a Held, node: Box<C>) -> &'a C {
        debug_assert!(self.0.load(Ordering::Relaxed).is_null());
        let raw = Box::into_raw(node).cast::<()>();
        // Release: pairs with the Acquire in `peek`.
        self.0.store(raw.map_addr(|addr| addr | NODE), Ordering::Release);
        match self.view(held) {
            View::Node(node) => node,
            _ => unreachable!("the tag that was just stored"),
        }
    }
    /// How many slots (pages) of the node are in use; 0 where the slot leads to no node.
    pub(super) fn used(&self, _held: &Held) -> usize {
        let word = self.0.load(Ordering::Relaxed);
        if word.addr() & NODE == 0 { 0 } else { (word.addr() & USED_MASK) >> USED_SHIFT }
    }
    /// Changes that number.
    pub(super) fn set_used(&self, _held: &Held, used: usize) {
        assert!(used <= FAN_OUT, "a node of page metadata with {used} of {FAN_OUT} slots in use");
        let word = self.0.load(Ordering::Relaxed);
        // Release: the pointer is published again, and the last store is what a look may read.
        self.0.store(word.map_addr(|addr| addr & !USED_MASK | used << USED_SHIFT), Ordering::Release);
    }
    /// Empties the slot. What it led to is freed when nobody can look at it any more.
    pub(super) fn detach(&self, held: &Held) -> Option<Orphan<C>> {
        debug_assert_eq!(self.used(held), 0, "a node in use is not detached");
        let word = self.0.load(Ordering::Relaxed);
        if word.is_null() {
            return None;
        }
        // Relaxed: nobody without the lock has the right to look here, and the lock orders those who have it.
        self.0.store(core::ptr::null_mut(), Ordering::Relaxed);
        Some(Orphan(word, PhantomData))
    }
}

/// What a slot led to, on its way out.
#[must_use = "an orphan that is not freed is a leak"]
pub(super) struct Orphan<C>(*mut (), PhantomData<Box<C>>);

impl<C: Node> Orphan<C> {
    /// Frees it; answers its size in bytes.
    #[inline]
    pub(super) fn free(self, held: &mut Held) -> usize {
        let node = self.0.addr() & NODE != 0;
        recent::forget(&held.recents, if node { untagged(self.0) } else { self.0 });
        if !node {
            // SAFETY: the pointer is from a `NewPage`, which was planted; it is in no slot any more; no view is left,
            // since views borrow the lock's token, and nobody owns a reference on what is in there.
            unsafe { free_page(self.0.cast::<Page>(), held) };
            size_of::<Page>()
        } else {
            #[cfg(all(feature = "hosted", not(any(loom, shuttle))))]
            if crate::sync::hosted::is_watched() {
                // SAFETY: as above, for a `C`, from `Box::into_raw`.
                return keep(unsafe { Box::from_raw(untagged(self.0).cast::<C>()) });
            }
            // SAFETY: as above, for a `C`, from `Box::into_raw`.
            free(unsafe { Box::from_raw(untagged(self.0).cast::<C>()) }, |node| node.life_end())
        }
    }
}

/// The pointer to a node, without its tags.
#[inline]
fn untagged(word: *mut ()) -> *mut () {
    word.map_addr(|addr| addr & !TAGS)
}

/// Lets a node end at the end of its life, where the models watch.
trait Mortal {
    fn life_end(&self);
}
impl<C: Node> Mortal for C {
    fn life_end(&self) {
        #[cfg(any(loom, shuttle))]
        self.end();
    }
}

/// Frees a node. The models keep the memory, so that a late look is found and not undefined.
fn free<T: 'static>(node: Box<T>, end: impl FnOnce(&T)) -> usize {
    end(&node);
    #[cfg(any(loom, shuttle))]
    crate::sync::model::keep(node);
    size_of::<T>()
}

/// Overwrites a node that is freed, and keeps its memory.
#[cfg(all(feature = "hosted", not(any(loom, shuttle))))]
fn keep<C: Node>(node: Box<C>) -> usize {
    let raw = Box::into_raw(node).cast::<core::mem::MaybeUninit<C>>();
    // SAFETY: the memory was the box's own, and is again one's of the same layout; it may hold any bytes.
    crate::sync::hosted::keep(unsafe {
        raw.cast::<C>().cast::<u8>().write_bytes(C::FREED, size_of::<C>());
        Box::from_raw(raw)
    });
    size_of::<C>()
}

/// The root.
pub(super) struct Top(Box<[Slot<GibTable>; TOP_SLOTS]>);

impl Top {
    /// An empty tree.
    pub(super) fn new() -> Self {
        let slots: Box<[_]> = (0..TOP_SLOTS).map(|_| Slot::empty()).collect::<Vec<_>>().into_boxed_slice();
        match slots.try_into() {
            // An array, so that a look need not ask how long it is: frame numbers of entries have 40 bits.
            Ok(slots) => Self(slots),
            Err(_) => unreachable!("as many slots as were just made"),
        }
    }
    /// Bytes that it takes, whatever is in use.
    pub(super) fn bytes(&self) -> usize {
        size_of_val(self.0.as_ref())
    }
    /// The slot of the 512 GiB that hold `pfn`; `None` outside the physical address space.
    #[inline]
    pub(super) fn slot(&self, pfn: Pfn) -> Option<&Slot<GibTable>> {
        self.0.get((pfn.as_u64() >> SLOT_ORDER) as usize)
    }
    /// One past the 512 GiB that hold `pfn`.
    pub(super) fn end_of_slot(pfn: Pfn) -> Pfn {
        Pfn::new(((pfn.as_u64() >> SLOT_ORDER) + 1) << SLOT_ORDER)
    }
}
