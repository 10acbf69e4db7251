//! Page metadata in proportion to use (Linux: `struct page`, `struct folio`, the memory map).
//!
//! # Protocol
//! A *folio* is a naturally aligned run of 1, 512 or 262,144 frames with one count. Its metadata comes into being
//! when a mapping, a pin or a transfer first needs it, and goes with the last reference. A device that nobody uses
//! has none, whatever its size.
//!
//! - Making and retiring folios, and registering page maps, happen under one lock.
//! - Finding a folio is lock-free: [`MetaStore::lookup`]. It is for those who know that a reference exists that
//!   cannot go meanwhile.
//! - Taking a further reference is a compare-and-swap that never starts from zero: [`Page::try_get`].
//! - The one who drops the last reference retires the folio:
//!
//! | the last holder | another CPU under the lock |
//! |---|---|
//! | 1. subtracts; the count is zero | |
//! | 2. | may find the dead folio, bury it, and plant another in its place |
//! | 3. takes the lock, looks *again from the root* | |
//! | 4. large folio: buries what it finds only if the size fits and the count is still zero | |
//! | 4'. order-0 page: takes one from its chunk's number of lives | |
//!
//! Step 4' needs no second look: each time that an order-0 page comes to life the number grows by one, and each
//! time that its count reaches zero the one who did it takes one away, so the chunk outlives everybody who is
//! between steps 1 and 3 (see `tree.rs`).
//!
//! # The tree
//! Four dependent loads lead from the root's pointer to the page: top table (512 GiB a slot) → 1 GiB slots →
//! 2 MiB slots → chunk of 512 pages. A folio of 1 GiB or 2 MiB hangs in the slot of its block, in the place of
//! further tables. See `raw/mod.rs` for the slots' values.
//!
//! # What is simplified
//! - Folios never merge or split: the size is chosen when the first reference is taken, and holds until the last
//!   is dropped.
//! - One lock for all devices. It is held for a few loads and stores, or for four chunks of 512 pages, never for a whole
//!   device or file: what lists folios takes it anew for each 512 places that it looks at.
//! - A put without a get is found by the count or by the empty slot. Where it races with the folio's last
//!   legitimate put, what is found may be memory that was just freed: the kernel was lost by then.

mod leaf_run;
mod leaves;
mod life;
mod maps;
mod page;
mod raw;
mod runs;
mod tree;

use core::fmt;

use arrayvec::ArrayVec;

use self::maps::Maps;
use self::page::{Dropped, Nature};
use self::raw::Held;
use self::tree::{Spot, Tree};
use crate::addr::{PageSize, Pfn, PfnRange};
use crate::ledger::{Kind, Ledger, Snapshot};
use crate::mutant::Mutant;
use crate::pagemap::{DevPagemap, MapId, MapState};
use crate::sync::{Arc, Mutex, Ordering, fence};

pub use self::leaf_run::Leaves;
pub use self::maps::{RegisterError, UnregisterError};
pub use self::page::{Counts, GetError, MAX_REFS, Owner, Page};
pub use self::raw::{Covering, Folio, Near, Recent};
pub(crate) use self::raw::{Far, FarFound, Looked};
pub use self::runs::Run;

/// Why there is no metadata for a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetaError {
    /// The frame belongs to no registered page map.
    NoPageMap,
    /// Its page map is being removed.
    Dying,
    /// Memory for the metadata is exhausted.
    OutOfMemory,
    /// The folio's count would pass [`MAX_REFS`].
    Overflow,
}

impl fmt::Display for MetaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoPageMap => "the frame belongs to no page map",
            Self::Dying => "the page map is being removed",
            Self::OutOfMemory => "no memory for page metadata",
            Self::Overflow => "too many references on one folio",
        })
    }
}

impl core::error::Error for MetaError {}

/// Sums over all live folios.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Totals {
    /// Folios with at least one reference.
    pub folios: u64,
    /// References on them, pins included.
    pub refs: u64,
    /// Pins on them.
    pub pins: u64,
}

/// Most places that a listing looks at under one hold of the store's lock: a quarter of the longest other hold, which
/// is for four chunks.
pub const LOOKS_AT_ONCE: u64 = raw::FAN_OUT as u64;
/// Folios that are listed under one hold of it.
const LISTED_AT_ONCE: usize = 16;

/// What a listing of live folios has cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Looks {
    /// Places looked at.
    pub total: u64,
    /// Most places under one hold of the store's lock.
    pub at_once: u64,
    /// Holds of it.
    pub holds: u64,
}

impl Looks {
    fn count(&mut self, looks: u64) {
        self.total += looks;
        self.at_once = self.at_once.max(looks);
        self.holds += 1;
    }
}

/// A live folio at the moment of a look, for reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveFolio {
    /// First frame.
    pub head: Pfn,
    /// Size.
    pub size: PageSize,
    /// References and pins.
    pub counts: Counts,
    /// Owner; the offset is that of the head.
    pub owner: Owner,
    /// Page map.
    pub map: MapId,
    /// Has it lost data?
    pub poisoned: bool,
}

impl LiveFolio {
    fn of(page: &Page) -> Self {
        Self {
            head: page.head(),
            size: page.size(),
            counts: page.counts(),
            owner: page.owner(),
            map: page.map_id(),
            poisoned: page.is_poisoned(),
        }
    }
}

impl fmt::Display for LiveFolio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts { refs, pins } = self.counts;
        let Owner { mapping, offset } = self.owner;
        write!(f, "page {} {} refs={refs} pins={pins} mapping={mapping} offset={offset:#x}", self.head, self.size)
    }
}

/// All page metadata of one machine.
///
/// ```
/// use mm::addr::{PageSize, Pfn};
/// use testkit::emu::{self, Frames};
/// use mm::meta::{MetaError, Owner};
///
/// let mm = emu::context(1);
/// let device = Frames::new(&mm, Pfn::new(0x10_0000), 512);
/// let pfn = Pfn::new(0x10_0007);
/// assert!(mm.meta.inspect(pfn).is_none(), "nobody uses it: there is no metadata");
///
/// // A reference on the folio of 2 MiB around it, which comes into being with it.
/// let owner = Owner { mapping: 1, offset: 7 };
/// let (head, size) = mm.meta.get_or_create(pfn, PageSize::Size2M, owner, 1).unwrap();
/// assert_eq!((head, size), (Pfn::new(0x10_0000), PageSize::Size2M));
/// mm.meta.put(pfn, 1);
/// assert!(mm.meta.inspect(pfn).is_none(), "and it goes with the last one");
///
/// mm.meta.kill(&device.map);
/// assert_eq!(mm.meta.get_or_create(pfn, PageSize::Size2M, owner, 1), Err(MetaError::Dying));
/// ```
pub struct MetaStore {
    tree: Tree,
    inner: Mutex<Inner>,
    ledger: Arc<Ledger>,
    /// What each CPU has looked up last.
    recents: Arc<[Recent]>,
}

/// What the lock protects.
struct Inner {
    held: Held,
    maps: Maps,
}

/// A folio that was found or made, with references on it, and where it lies.
struct Lent {
    head: Pfn,
    size: PageSize,
    map: Arc<DevPagemap>,
    /// The range of the page map that holds it.
    range: PfnRange,
}

impl MetaStore {
    /// An empty store that charges `ledger` for metadata, folios and page maps. No CPU pins through it.
    pub fn new(ledger: Arc<Ledger>) -> Self {
        Self::for_cpus(ledger, 0)
    }
    /// The same, where so many CPUs pin.
    pub fn for_cpus(ledger: Arc<Ledger>, nr_cpus: usize) -> Self {
        let recents = (0..nr_cpus).map(|_| Recent::new()).collect();
        let inner = Mutex::new(Inner { held: Held::new(&recents), maps: Maps::default() });
        Self { tree: Tree::new(Arc::clone(&ledger)), inner, ledger, recents }
    }

    /// Bytes that the store takes while nothing is in use (the top table, and a line for each CPU). Not in the ledger.
    pub fn idle_bytes(&self) -> usize {
        self.tree.top.bytes() + size_of_val(self.recents.as_ref())
    }

    // ---- page maps ----

    /// From now on the frames of `map` can have metadata.
    ///
    /// # Errors
    /// It is registered already, or shares a frame with a registered one, or there are too many.
    pub fn register(&self, map: &Arc<DevPagemap>) -> Result<MapId, RegisterError> {
        let id = self.inner.lock().maps.add(map)?;
        self.ledger.charge(Kind::PageMaps, 1);
        Ok(id)
    }
    /// From now on no folio of `map` is made and the store lends no reference on one: once this has returned,
    /// [`DevPagemap::live_folios`] only falls. Says whether the map was live until now.
    pub fn kill(&self, map: &DevPagemap) -> bool {
        // The lock waits for those who have seen the map alive and are about to make a folio.
        let inner = self.inner.lock();
        let was_live = inner.maps.number_of(map).is_some() && map.state() == MapState::Live;
        if was_live {
            map.set_dying();
        }
        was_live
    }
    /// Forgets `map`.
    ///
    /// # Errors
    /// The store does not know it, or some of its folios are live (wait for [`DevPagemap::is_drained`]).
    pub fn unregister(&self, map: &DevPagemap) -> Result<(), UnregisterError> {
        self.inner.lock().maps.remove(map)?;
        self.ledger.charge(Kind::PageMaps, -1);
        Ok(())
    }
    /// The page map of `pfn`.
    pub fn find_map(&self, pfn: Pfn) -> Option<Arc<DevPagemap>> {
        self.inner.lock().maps.find(pfn).map(|(map, _)| Arc::clone(map))
    }
    /// Calls `visit` with each registered page map, with no lock held.
    pub fn for_each_map(&self, visit: &mut dyn FnMut(&DevPagemap)) {
        let mut from = 0;
        let next = |from| self.inner.lock().maps.at_or_after(from).map(|(nr, map)| (nr, Arc::clone(map)));
        while let Some((nr, map)) = next(from) {
            visit(&map);
            from = nr + 1;
        }
    }

    // ---- making ----

    /// Finds the live folio that covers `pfn`, of whatever size, or makes one: the largest, up to `want`, that
    /// meets no metadata in use, stays inside its page map's range, and begins at an offset of the owner that is
    /// not negative. Takes `refs` (≥ 1) references on it. `owner` is who owns `pfn`, with `pfn`'s own offset; a
    /// folio that is live already keeps the owner that it has.
    ///
    /// # Errors
    /// See [`MetaError`]; nothing has changed then.
    pub fn get_or_create(
        &self,
        pfn: Pfn,
        want: PageSize,
        owner: Owner,
        refs: u32,
    ) -> Result<(Pfn, PageSize), MetaError> {
        self.find_or_make(&mut self.inner.lock(), pfn, want, owner, refs).map(|found| (found.head, found.size))
    }

    /// [`get_or_create`](Self::get_or_create), under the lock.
    fn find_or_make(
        &self,
        inner: &mut Inner,
        pfn: Pfn,
        want: PageSize,
        owner: Owner,
        refs: u32,
    ) -> Result<Lent, MetaError> {
        let (map, range) = inner.maps.find(pfn).ok_or(MetaError::NoPageMap)?;
        if map.state() != MapState::Live {
            return Err(MetaError::Dying);
        }
        let map = Arc::clone(map);
        let free = loop {
            let page = match self.tree.find(&inner.held, pfn) {
                Spot::Free(size) => break size,
                Spot::Folio(page) => page,
                Spot::Chunk(chunk) => chunk.page(pfn),
            };
            match page.try_get(refs) {
                Ok(()) => return Ok(Lent { head: page.head(), size: page.size(), map, range }),
                Err(GetError::Overflow) => return Err(MetaError::Overflow),
                Err(GetError::Zero) => match self.tree.find(&inner.held, pfn) {
                    Spot::Folio(dead) => {
                        let (head, size) = (dead.head(), dead.size());
                        self.bury(&mut inner.held, &map, head, size);
                    }
                    _ => break PageSize::Size4K,
                },
            }
        };
        let size = fitting(pfn, free.min(want), range, owner);
        let nature = nature(pfn.align_down(size), size, &map, range);
        self.plant(&mut inner.held, &map, nature, owner, pfn, refs)?;
        Ok(Lent { head: nature.head, size, map, range })
    }

    /// Makes a folio where there is none. `owner` is that of `pfn`.
    fn plant(
        &self,
        held: &mut Held,
        map: &DevPagemap,
        nature: Nature,
        owner: Owner,
        pfn: Pfn,
        refs: u32,
    ) -> Result<(), MetaError> {
        let inside = pfn.as_u64() - nature.head.as_u64();
        let owner = Owner { mapping: owner.mapping, offset: owner.offset - inside };
        if nature.size == PageSize::Size4K {
            let chunk = self.tree.chunk(held, pfn).map_err(|_| MetaError::OutOfMemory)?;
            chunk.page(pfn).make(nature, owner, refs);
            self.tree.pages_came(held, pfn, 1);
        } else {
            self.tree.plant(held, nature, owner, refs).map_err(|_| MetaError::OutOfMemory)?;
        }
        self.came(map, 1);
        Ok(())
    }

    fn came(&self, map: &DevPagemap, folios: u64) {
        map.folios_came(folios);
        self.ledger.charge(Kind::Folios, folios as i64);
    }

    fn gone(&self, map: &DevPagemap, folios: u64) {
        self.ledger.charge(Kind::Folios, -(folios as i64));
        map.folios_gone(folios);
    }

    /// Frees the metadata of a large folio whose count is zero.
    fn bury(&self, held: &mut Held, map: &DevPagemap, head: Pfn, size: PageSize) {
        // Pairs with the Release of `Page::sub`: what its holders did is over.
        fence(Ordering::Acquire);
        self.tree.uproot(held, head, size);
        self.gone(map, 1);
    }

    // ---- one folio's references ----

    /// Takes `nr` further references on the folio that covers `pfn`, on behalf of one who owns a reference on it
    /// (such as a huge entry that is about to become many small ones).
    ///
    /// # Errors
    /// [`MetaError::Overflow`]; none was taken then.
    ///
    /// # Panics
    /// Nobody holds the folio (G8).
    #[inline]
    pub fn get_mapped(&self, pfn: Pfn, nr: u32) -> Result<(), MetaError> {
        let folio = self.owned(pfn, "get without a reference");
        folio.page.try_get(nr).map_err(|error| refused(pfn, error))
    }
    /// Drops `nr` references on the folio that covers `pfn`. The caller owns them. With the last one the metadata
    /// goes.
    ///
    /// # Panics
    /// There are fewer than `nr` (G8).
    #[inline(always)]
    pub fn put(&self, pfn: Pfn, nr: u32) {
        self.drop_some::<false>(pfn, nr, "put without a get");
    }
    /// Drops `nr` pins, each with its reference, on the folio that covers `pfn`. The caller owns them.
    ///
    /// # Panics
    /// There are fewer than `nr` (G8).
    #[inline(always)]
    pub fn unpin(&self, pfn: Pfn, nr: u32) {
        let nr = if Mutant::UnpinTwice.is_on() { 2 * nr } else { nr };
        self.drop_some::<true>(pfn, nr, "unpin without a pin");
    }
    #[inline(always)]
    fn drop_some<const PINS: bool>(&self, pfn: Pfn, nr: u32, what: &str) {
        let Folio { page, size, .. } = self.owned(pfn, what);
        if let Err(dropped) = page.sub::<PINS>(nr) {
            self.dropped(pfn, size, dropped);
        }
    }
    /// The folio of `size` around `pfn` has lost its last reference, or one too many. Its metadata is not ours to look
    /// at any more.
    #[cold]
    #[inline(never)]
    fn dropped(&self, pfn: Pfn, size: PageSize, dropped: Dropped) {
        dropped.assert_last(pfn, size);
        self.retire(pfn, size);
    }

    // lab 6 begin: retire
    /// The folio of `size` around `pfn` has lost its last reference: step 3 of the protocol.
    fn retire(&self, pfn: Pfn, size: PageSize) {
        if size == PageSize::Size4K {
            return self.retire_pages(pfn, 1);
        }
        let inner = &mut *self.inner.lock();
        let Spot::Folio(page) = self.tree.find(&inner.held, pfn) else {
            return;
        };
        let still_dead = page.refs() == 0 || Mutant::RetireNoRecheck.is_on();
        if page.size() != size || !still_dead {
            return;
        }
        let head = page.head();
        let (map, _) = inner.maps.find(pfn).expect("a live folio keeps its page map registered");
        self.bury(&mut inner.held, map, head, size);
    }
    // lab 6 end
    /// `nr` order-0 pages of one page map, all in the chunk of `pfn`, have lost their last reference.
    #[cold]
    #[inline(never)]
    fn retire_pages(&self, pfn: Pfn, nr: u64) {
        let inner = &mut *self.inner.lock();
        // Pairs with the Release of `Page::sub` and `Page::put_each`.
        fence(Ordering::Acquire);
        let (map, _) = inner.maps.find(pfn).expect("a live folio keeps its page map registered");
        self.tree.pages_gone(&mut inner.held, pfn, nr as usize);
        self.gone(map, nr);
    }

    // ---- reports ----

    /// The live folio that covers `pfn`, at this moment.
    pub fn inspect(&self, pfn: Pfn) -> Option<LiveFolio> {
        self.with_page(pfn, LiveFolio::of)
    }
    /// Calls `look` with the metadata of the live folio that covers `pfn`, under the store's lock (so `look` must
    /// not call the store); `None` where no folio is live.
    pub fn with_page<R>(&self, pfn: Pfn, look: impl FnOnce(&Page) -> R) -> Option<R> {
        let inner = &*self.inner.lock();
        let page = self.tree.page(&inner.held, pfn)?;
        (page.refs() != 0 || Mutant::ReferenceFromZero.is_on()).then(|| look(page))
    }
    /// Calls `visit` with every live folio, in rising order, with no lock held. Work is proportional to the live
    /// metadata; the lock is taken for [`LOOKS_AT_ONCE`] looks at a time and let go of in between, so a folio that comes
    /// or goes meanwhile is met or not, and one that is there all the time is met.
    pub fn for_each_live(&self, visit: &mut dyn FnMut(LiveFolio)) -> Looks {
        self.list(Pfn::new(0), &mut |inner, at| inner.maps.range_at_or_after(at), visit)
    }
    /// The same for the live folios that share a frame with `frames`. It looks at one place for each empty block of 512
    /// GiB or 1 GiB, and where something of that is in use at one for each 2 MiB and for each page of a block that is in
    /// use.
    pub fn for_each_live_in(&self, frames: PfnRange, visit: &mut dyn FnMut(LiveFolio)) -> Looks {
        self.list(frames.start(), &mut |_, at| Some(frames).filter(|frames| at < frames.end()), visit)
    }
    /// Lists the ranges that `range` says, by the place that the list has come to: the first that ends behind it.
    fn list(
        &self,
        from: Pfn,
        range: &mut dyn FnMut(&Inner, Pfn) -> Option<PfnRange>,
        visit: &mut dyn FnMut(LiveFolio),
    ) -> Looks {
        let (mut at, mut looks) = (from, Looks::default());
        let most = if Mutant::ListedAtOnce.is_on() { u64::MAX } else { LOOKS_AT_ONCE };
        loop {
            let mut batch = ArrayVec::<LiveFolio, LISTED_AT_ONCE>::new();
            {
                let inner = &*self.inner.lock();
                let Some(frames) = range(inner, at) else { return looks };
                let part = (at.max(frames.start()), frames.end());
                let nr;
                (at, nr) =
                    self.tree.look(&inner.held, part, most, &mut |page| batch.try_push(LiveFolio::of(page)).is_ok());
                looks.count(nr);
            }
            batch.into_iter().for_each(&mut *visit);
        }
    }
    /// References and pins summed over all live folios. Work is proportional to the live metadata.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        self.for_each_live(&mut |folio| {
            totals.folios += 1;
            totals.refs += u64::from(folio.counts.refs);
            totals.pins += u64::from(folio.counts.pins);
        });
        totals
    }
    /// The ledger at this moment, with the references and pins of [`totals`](Self::totals).
    pub fn ledger_snapshot(&self) -> Snapshot {
        let totals = self.totals();
        let snapshot = self.ledger.snapshot();
        snapshot.with(Kind::References, totals.refs as i64).with(Kind::Pins, totals.pins as i64)
    }
}

/// The largest size up to `most` whose block around `pfn` stays inside `range` and, in its owner, begins at an
/// offset that is not negative.
fn fitting(pfn: Pfn, most: PageSize, range: PfnRange, owner: Owner) -> PageSize {
    let mut size = most;
    while let Some(smaller) = size.smaller() {
        let head = pfn.align_down(size);
        let fits = head >= range.start()
            && head.add(size.nr_pages()) <= range.end()
            && owner.offset >= pfn.as_u64() - head.as_u64();
        if fits {
            break;
        }
        size = smaller;
    }
    size
}

fn nature(head: Pfn, size: PageSize, map: &DevPagemap, range: PfnRange) -> Nature {
    let block = head.align_down(PageSize::Size2M);
    let edge = block < range.start() || block.add(PageSize::Size2M.nr_pages()) > range.end();
    let map_id = map.id().expect("the map is in the store");
    let poisoned = map.any_poisoned(head, size.nr_pages());
    Nature { head, size, map: map_id, kind: map.kind(), poisoned, edge }
}

/// A further reference was refused to one who holds the page. If he does not, that is the end: names the page (G8).
#[cold]
#[inline(never)]
fn refused(pfn: Pfn, error: GetError) -> MetaError {
    match error {
        GetError::Zero => panic!("page {pfn}: get without a reference (references 0)"),
        GetError::Overflow => MetaError::Overflow,
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
