//! One page's (one folio's) metadata, and the arithmetic of its count word.
//!
//! # The word
//! One `AtomicU64`: references in the low half, pins in the high half. A pin is a reference too, so one atomic
//! operation moves both and no moment exists at which they disagree.
//!
//! | references | pins | meaning |
//! |---|---|---|
//! | 0 | 0 | nobody holds it: not yet made, or its last holder is on the way to retire it |
//! | 1 ..= 2³¹−1 | 0 ..= references | live; `references - pins` are mappings and short looks |
//! | 2³¹ ..= 2³²−1 | any | broken: a put too many has wrapped it; whoever sees this stops the kernel |
//! | any | more than references | broken: a pin's reference was put as if it were a plain one |
//!
//! Who may do what:
//! - 0 → n: only [`MetaStore::get_or_create`](super::MetaStore::get_or_create) and its run form, under the lock.
//! - n → n + k: whoever holds a reference, and speculatively whoever found the page (a compare-and-swap that
//!   refuses 0 and refuses to pass 2³¹−1).
//! - n → n − k: whoever owns k references. The one that reaches 0 retires the folio, under the lock.

use core::fmt;

use super::life::Watched;
use crate::addr::{PageSize, Pfn};
use crate::mutant::Mutant;
use crate::pagemap::{LongTermPin, MapId, MemoryKind};
use crate::sync::{AtomicU64, Ordering, fence};

/// Most references on one folio.
pub const MAX_REFS: u32 = i32::MAX as u32;

/// One reference in the word.
pub(super) const REF: u64 = 1;
/// One pin in the word (without the reference that comes with it).
const PIN: u64 = 1 << 32;

/// Why a reference was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GetError {
    /// The count is zero: the folio is not there, or is about to go.
    Zero,
    /// The count would pass [`MAX_REFS`].
    Overflow,
}

/// Which file offset a folio is the storage of (Linux: `folio->mapping` and `folio->index`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Owner {
    /// Number of the mapping (device or inode); 0 for none.
    pub mapping: u64,
    /// Offset in that mapping, in base pages.
    pub offset: u64,
}

/// Metadata of one live folio: 32 bytes.
///
/// Everything is atomic, because a speculative taker may look at a page that is dying or being made. What a look
/// shows is to be trusted only by a holder of a reference.
#[repr(transparent)]
pub struct Page(Watched<Cells>);

#[repr(C)]
struct Cells {
    /// References and pins; see the table above.
    word: AtomicU64,
    /// Frame of the head (bits 0..40), page map (40..56), order/9 (56..58), flags (58..64).
    info: AtomicU64,
    mapping: AtomicU64,
    offset: AtomicU64,
}

const PFN_BITS: u32 = 40;
const PFN_MASK: u64 = (1 << PFN_BITS) - 1;
const MAP_SHIFT: u32 = PFN_BITS;
const SIZE_SHIFT: u32 = 56;
const POISONED: u64 = 1 << 58;
const NO_LONG_TERM: u64 = 1 << 59;
const RESERVED: u64 = 1 << 60;
const EDGE: u64 = 1 << 61;

/// A count after references were dropped that must be looked at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dropped {
    now: u64,
    delta: u64,
}

impl Dropped {
    /// That was the last reference, or it is the end of the kernel: judged by what the subtraction has answered. The
    /// message names the folio of `size` around `pfn` (G8).
    pub(super) fn assert_last(self, pfn: Pfn, size: PageSize) {
        let Self { now, delta } = self;
        if now != 0 {
            let what = if delta >> 32 == 0 { "put without a get" } else { "unpin without a pin" };
            stop(pfn.align_down(size), size, what, now.wrapping_add(delta));
        }
    }
}

/// What a new folio is: all that its `info` word is made from.
#[derive(Clone, Copy)]
pub(super) struct Nature {
    pub head: Pfn,
    pub size: PageSize,
    pub map: MapId,
    pub kind: MemoryKind,
    /// A frame in it has lost data.
    pub poisoned: bool,
    /// The 2 MiB block around it is not wholly inside one range of the map: neighbours may be another map's.
    pub edge: bool,
}

impl Nature {
    fn info(self) -> u64 {
        let mut info = self.head.as_u64() & PFN_MASK;
        info |= u64::from(self.map.as_u16()) << MAP_SHIFT;
        info |= u64::from(self.size.level() - 1) << SIZE_SHIFT;
        if self.kind.long_term() == LongTermPin::Refused {
            info |= NO_LONG_TERM;
        }
        if self.kind.is_reserved() {
            info |= RESERVED;
        }
        if self.poisoned {
            info |= POISONED;
        }
        if self.edge {
            info |= EDGE;
        }
        info
    }
}

/// The two halves of a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// References, pins included.
    pub refs: u32,
    /// Pins.
    pub pins: u32,
}

impl Counts {
    const fn of(word: u64) -> Self {
        Self { refs: word as u32, pins: (word >> 32) as u32 }
    }
    const fn is_sane(self) -> bool {
        self.refs <= MAX_REFS && self.pins <= self.refs
    }
}

impl Page {
    /// All zero: no holder, no nature. The kernel gets the same from zeroed memory.
    #[cfg(any(loom, shuttle))]
    pub(super) fn blank() -> Self {
        let zero = || AtomicU64::new(0);
        Self(Watched::new(Cells { word: zero(), info: zero(), mapping: zero(), offset: zero() }))
    }
    /// For the models: it is freed.
    #[cfg(any(loom, shuttle))]
    pub(super) fn end(&self) {
        self.0.end();
    }

    /// Takes `nr` references, never the first.
    ///
    /// # Errors
    /// [`GetError::Zero`]: nobody holds the page, so it may be on its way out. [`GetError::Overflow`].
    #[inline(always)]
    pub fn try_get(&self, nr: u32) -> Result<(), GetError> {
        self.try_add(nr, u64::from(nr) * REF)
    }
    /// Takes `nr` pins, each with its reference, never the first reference.
    ///
    /// # Errors
    /// As [`try_get`](Self::try_get).
    #[inline(always)]
    pub fn try_pin(&self, nr: u32) -> Result<(), GetError> {
        self.try_add(nr, u64::from(nr) * (REF + PIN))
    }
    #[inline(always)]
    fn try_add(&self, nr: u32, delta: u64) -> Result<(), GetError> {
        let room = MAX_REFS.saturating_sub(nr);
        // Relaxed: the compare-and-swap below orders what matters.
        let mut old = self.0.word.load(Ordering::Relaxed);
        loop {
            // One comparison for both: zero wraps to the largest number.
            if (old as u32).wrapping_sub(1) >= room {
                let refused = refuse(self, old);
                if refused != GetError::Zero || !Mutant::ReferenceFromZero.is_on() {
                    return Err(refused);
                }
            }
            // Acquire: pairs with the Release store in `make`, so that the holder reads this folio's owner and
            // not an earlier one's.
            match self.0.word.compare_exchange_weak(old, old.wrapping_add(delta), Ordering::Acquire, Ordering::Relaxed)
            {
                Ok(_) => return Ok(()),
                Err(now) => old = now,
            }
        }
    }

    /// Takes `nr` references, or where `PINS` pins, as [`try_get`](Self::try_get) and [`try_pin`](Self::try_pin) do, if
    /// that goes at the first attempt; for one who will otherwise come again by those, and does not ask why. No loop and
    /// no call, so nothing is put aside for them. `nr` is at most [`MAX_REFS`].
    #[inline(always)]
    pub(crate) fn try_take_at_once<const PINS: bool>(&self, nr: u32) -> bool {
        let old = self.0.word.load(Ordering::Relaxed);
        let new = old.wrapping_add(u64::from(nr).wrapping_mul(if PINS { REF + PIN } else { REF }));
        const { assert!(MAX_REFS == i32::MAX as u32) };
        // One comparison for both: it was not zero, so there are more than `nr` now; and there are no more than MAX_REFS, so
        // the number is not negative.
        if (new as u32 as i32) <= nr as i32 && !(old as u32 == 0 && Mutant::ReferenceFromZero.is_on()) {
            return false;
        }
        // Orders: as in `try_add`.
        self.0.word.compare_exchange(old, new, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    /// What to expect of neighbours of this page, which mostly are held as it is.
    #[inline(always)]
    pub(crate) fn like<const PINS: bool>(&self) -> Like<PINS> {
        let old = self.0.word.load(Ordering::Relaxed);
        // A page that nobody holds, or that has no room, is like none that can be had.
        let old = if (old as u32).wrapping_sub(1) < MAX_REFS - 1 { old } else { REF };
        Like { old, new: old.wrapping_add(if PINS { REF + PIN } else { REF }) }
    }
    /// Takes one reference, or where `PINS` one pin, as [`try_get`](Self::try_get) and [`try_pin`](Self::try_pin) do, if this
    /// page is held as is expected: an exchange of that word for the next, and the test whether it was, are all. (That there
    /// is a reference, and room for one more, was seen when `like` was made.)
    #[inline(always)]
    pub(crate) fn try_take_like<const PINS: bool>(&self, like: &mut Like<PINS>) -> bool {
        // Orders: as in `try_add`.
        match self.0.word.compare_exchange(like.old, like.new, Ordering::Acquire, Ordering::Relaxed) {
            // What was found is what was expected, and need not be fetched anew.
            Ok(found) => {
                like.old = found;
                true
            }
            Err(_) => false,
        }
    }

    /// Drops `nr` references; where `PINS`, they are pins. An error says that what was there must be judged: that was
    /// the last reference, or one too many (see [`Dropped::assert_last`]). The page is not ours any more: another CPU
    /// may have freed it since.
    #[inline(always)]
    pub(super) fn sub<const PINS: bool>(&self, nr: u32) -> Result<(), Dropped> {
        let delta = u64::from(nr) * if PINS { REF + PIN } else { REF };
        // Release: pairs with the Acquire fence of the one who ends the life (`MetaStore::bury`, `retire_pages`) or
        // begins the next one (`make`): all that was done under this reference is over by then.
        let order = if Mutant::RelaxedPut.is_on() { Ordering::Relaxed } else { Ordering::Release };
        let now = self.0.word.fetch_sub(delta, order).wrapping_sub(delta);
        // A put too many wraps the references past `MAX_REFS`, an unpin too many the pins. Pins that are dropped
        // with their references cannot come to outnumber them; references that are dropped alone can.
        let broken = if PINS { (now as i64) < 0 } else { (now >> 32) as u32 > now as u32 };
        if broken || now as u32 as i32 <= 0 || nr > MAX_REFS {
            return Err(Dropped { now, delta });
        }
        Ok(())
    }
    /// Drops one reference of each page, the first of which is that of frame `first`; answers how many reached zero.
    ///
    /// A page that nobody else holds, as most are, takes two instructions: the exchange that ends its life, which is
    /// an exchange of the one value that says so, and the test whether it was. (What it has found is at once what the
    /// next one expects, so that it is not made anew.) Where it was not, the subtraction answers what was there before
    /// it, and that is judged. Nobody looks behind either: the page may be gone by then.
    #[inline]
    pub(super) fn put_each(pages: &[Self], first: Pfn) -> usize {
        let mut puts = Puts { pages, first, last: REF, alive: 0 };
        let (groups, rest) = pages.as_chunks::<8>();
        for [a, b, c, d, e, f, g, h] in groups {
            // One after the other without a loop, which the compiler does not do by itself.
            puts.put(a);
            puts.put(b);
            puts.put(c);
            puts.put(d);
            puts.put(e);
            puts.put(f);
            puts.put(g);
            puts.put(h);
        }
        for page in rest {
            puts.put(page);
        }
        pages.len() - puts.alive
    }
    /// Has none of them more than one reference, and none a pin? Two instructions a page.
    pub(super) fn have_one_at_most<const N: usize>(pages: &[Self; N]) -> bool {
        let mut any = 0;
        let (groups, rest) = pages.as_chunks::<32>();
        let mut see = |page: &Self| {
            // Relaxed: the caller makes sure that what it sees stays so.
            any |= page.0.word.load(Ordering::Relaxed);
        };
        groups.iter().for_each(|group| group.iter().for_each(&mut see));
        rest.iter().for_each(see);
        any <= REF
    }
    /// Brings the page to life with `refs` references. Only under the store's lock, and only from zero.
    pub(super) fn make(&self, nature: Nature, owner: Owner, refs: u32) {
        assert!(refs != 0 && refs <= MAX_REFS, "page {}: made with {refs} references", nature.head);
        assert_eq!(self.0.word.load(Ordering::Relaxed), 0, "page {}: made while somebody holds it", nature.head);
        // Acquire: pairs with the Release of the `sub` that ended the page's last life, whose zero was just read.
        fence(Ordering::Acquire);
        self.0.info.store(nature.info(), Ordering::Relaxed);
        self.0.mapping.store(owner.mapping, Ordering::Relaxed);
        self.0.offset.store(owner.offset, Ordering::Relaxed);
        // Release: pairs with the Acquire of `try_add`.
        self.0.word.store(u64::from(refs), Ordering::Release);
    }

    /// References and pins at this moment, from one load.
    #[inline]
    pub fn counts(&self) -> Counts {
        Counts::of(self.0.word.load(Ordering::Acquire))
    }
    /// References at this moment, pins included.
    #[inline]
    pub fn refs(&self) -> u32 {
        self.counts().refs
    }
    /// Pins at this moment.
    #[inline]
    pub fn pins(&self) -> u32 {
        self.counts().pins
    }
    #[inline]
    fn info(&self) -> u64 {
        self.0.info.load(Ordering::Relaxed)
    }
    /// First frame of the folio.
    #[inline]
    pub fn head(&self) -> Pfn {
        Pfn::new(self.info() & PFN_MASK)
    }
    /// Size of the folio.
    #[inline]
    pub fn size(&self) -> PageSize {
        match self.info() >> SIZE_SHIFT & 3 {
            0 => PageSize::Size4K,
            1 => PageSize::Size2M,
            _ => PageSize::Size1G,
        }
    }
    /// The page map that it belongs to.
    #[inline]
    pub fn map_id(&self) -> MapId {
        MapId((self.info() >> MAP_SHIFT) as u16)
    }
    /// Owner of the folio; the offset is that of the head.
    #[inline]
    pub fn owner(&self) -> Owner {
        Owner { mapping: self.0.mapping.load(Ordering::Relaxed), offset: self.0.offset.load(Ordering::Relaxed) }
    }
    /// Has it lost data?
    #[inline]
    pub fn is_poisoned(&self) -> bool {
        // Acquire: pairs with the Release in `set_poisoned`.
        self.0.info.load(Ordering::Acquire) & POISONED != 0
    }
    /// Marks (or clears) lost data; answers what was. It lasts as long as the folio's metadata; the page map is
    /// what remembers ([`DevPagemap::poison`](crate::pagemap::DevPagemap::poison)).
    pub fn set_poisoned(&self, poisoned: bool) -> bool {
        let old = if poisoned {
            self.0.info.fetch_or(POISONED, Ordering::Release)
        } else {
            self.0.info.fetch_and(!POISONED, Ordering::Release)
        };
        old & POISONED != 0
    }
    /// May it be pinned for an unbounded time? The page map's policy, copied here so that gup-fast needs no
    /// further load.
    #[inline]
    pub fn long_term(&self) -> LongTermPin {
        if self.info() & NO_LONG_TERM != 0 { LongTermPin::Refused } else { LongTermPin::Revocable }
    }
    /// Was its memory reserved as a whole?
    #[inline]
    pub fn is_reserved(&self) -> bool {
        self.info() & RESERVED != 0
    }
    /// May its neighbours in the same 2 MiB block belong to another page map?
    #[inline]
    pub(super) fn is_edge(&self) -> bool {
        self.info() & EDGE != 0
    }

    /// A broken count: our own bug, and memory is no longer safe. Names the page (G8).
    #[cold]
    #[inline(never)]
    fn stop(&self, what: &str, word: u64) -> ! {
        stop(self.head(), self.size(), what, word);
    }
}

/// A broken count of the folio of `size` at `head`.
#[cold]
#[inline(never)]
fn stop(head: Pfn, size: PageSize, what: &str, word: u64) -> ! {
    let Counts { refs, pins } = Counts::of(word);
    panic!("page {head} ({size}): {what} (references {refs}, pins {pins})");
}

/// The word of a page, and what it becomes when a reference is taken, or where `PINS` a pin: see [`Page::try_take_like`].
pub(crate) struct Like<const PINS: bool> {
    old: u64,
    new: u64,
}

/// The drops of one reference of each of some pages: see [`Page::put_each`].
struct Puts<'a> {
    pages: &'a [Page],
    /// The frame of the first.
    first: Pfn,
    /// The word of a page that nobody else holds: what is expected of the next.
    last: u64,
    /// How many pages somebody else holds.
    alive: usize,
}

impl Puts<'_> {
    #[inline(always)]
    fn put(&mut self, page: &Page) {
        // Release: as in `sub`.
        let order = if Mutant::RelaxedPut.is_on() { Ordering::Relaxed } else { Ordering::Release };
        match page.0.word.compare_exchange(self.last, 0, order, Ordering::Relaxed) {
            Ok(found) => self.last = found,
            Err(_) => {
                self.last = REF;
                let old = page.0.word.fetch_sub(REF, order);
                // One comparison for what is common: others hold it, and nobody has it pinned.
                let lives =
                    old.wrapping_sub(2 * REF) <= u64::from(MAX_REFS) - 2 || lives(old, page, self.pages, self.first);
                // Nothing can wrap: there are no more of them than pages.
                self.alive = self.alive.wrapping_add(usize::from(lives));
                if Mutant::PutLookedAtAgain.is_on() && !page.counts().is_sane() {
                    page.stop("put without a get", 0);
                }
            }
        }
    }
}

/// One reference was dropped of `page`, whose word was `old`: does somebody else hold it? It is one of `pages`, the first
/// of which is that of frame `first`, and it is not looked at.
#[cold]
#[inline(never)]
fn lives(old: u64, page: &Page, pages: &[Page], first: Pfn) -> bool {
    let Counts { refs, pins } = Counts::of(old);
    // The reference must have been there, and must not have been a pin's.
    if refs > MAX_REFS || refs <= pins {
        let bytes = core::ptr::from_ref(page).addr() - pages.as_ptr().addr();
        stop(first.add((bytes / size_of::<Page>()) as u64), PageSize::Size4K, "put without a get", old);
    }
    old != REF
}

/// Why a reference is refused.
#[cold]
#[inline(never)]
fn refuse(page: &Page, word: u64) -> GetError {
    match Counts::of(word) {
        Counts { refs: 0, .. } => GetError::Zero,
        counts if counts.is_sane() => GetError::Overflow,
        _ => page.stop("a get found a broken count", word),
    }
}

impl fmt::Debug for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts { refs, pins } = self.counts();
        write!(f, "Page({} {} refs={refs} pins={pins} {:?}", self.head(), self.size(), self.owner())?;
        f.write_str(if self.is_poisoned() { " poisoned)" } else { ")" })
    }
}
