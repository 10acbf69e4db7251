//! Pins as values: given back when dropped, and, while the pin ledger is switched on, listed with owner, place and age.
//!
//! [`pin_user_pages_fast`] is the bare act; a caller of it gives back what it got by itself, and nothing is recorded.
//! Whoever keeps pins for longer than a function call takes a [`PinnedPages`]: it cannot be forgotten or put twice, and
//! it is what a removal or an eviction that waits can name (*who holds this page, since when, and from where?*).
//!
//! The ledger costs gup-fast nothing, on or off: it is charged by this type alone, once for each value.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::panic::Location;

use crate::addr::{PAGE_SHIFT, PfnRange, VirtAddr};
use crate::gup::{GupError, GupFlags, PinSink, pin_user_pages_fast, unpin};
use crate::machine::Machine;
use crate::space::AddressSpace;
use crate::sync::{Arc, AtomicU32, AtomicU64, Mutex, Ordering};
use crate::world::Mm;

/// One [`PinnedPages`] that is alive.
#[derive(Clone, Debug)]
pub struct PinRecord {
    /// Name of the address space through which the pages were pinned.
    pub owner: String,
    /// Where in the code.
    pub place: &'static Location<'static>,
    /// When, in nanoseconds since boot.
    pub since_ns: u64,
    /// May it be held without bound?
    pub long_term: bool,
    /// The frames.
    pub frames: Vec<PfnRange>,
}

impl PinRecord {
    /// How many pages.
    pub fn nr_pages(&self) -> u64 {
        self.frames.iter().map(|range| range.nr_pages()).sum()
    }
    /// Does it hold a frame of `range`?
    pub fn holds_any(&self, range: PfnRange) -> bool {
        self.frames.iter().any(|frames| frames.overlaps(range))
    }
    /// The record in words, at the time `now_ns`.
    pub fn describe(&self, now_ns: u64) -> impl fmt::Display + '_ {
        Described { record: self, age_ms: now_ns.saturating_sub(self.since_ns) / 1_000_000 }
    }
}

struct Described<'r> {
    record: &'r PinRecord,
    age_ms: u64,
}

impl fmt::Display for Described<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PinRecord { owner, place, long_term, frames, .. } = self.record;
        let first = frames.first().map_or(0, |range| range.start().as_u64());
        write!(
            f,
            "{} pages from frame {first:#x} pinned{} by {owner} at {}:{} {} ms ago",
            self.record.nr_pages(),
            if *long_term { " long-term" } else { "" },
            place.file(),
            place.line(),
            self.age_ms
        )
    }
}

/// Who holds which pins. One for each machine.
#[derive(Debug)]
pub struct PinLedger {
    on: AtomicU32,
    next: AtomicU64,
    records: Mutex<BTreeMap<u64, PinRecord>>,
}

impl Default for PinLedger {
    fn default() -> Self {
        Self::new()
    }
}

impl PinLedger {
    /// Switched off, empty.
    pub fn new() -> Self {
        Self { on: AtomicU32::new(0), next: AtomicU64::new(1), records: Mutex::new(BTreeMap::new()) }
    }
    /// Switches it. Pins that were taken while it was off stay unlisted.
    pub fn switch(&self, on: bool) {
        self.on.store(u32::from(on), Ordering::Relaxed);
    }
    /// Is it switched on?
    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed) != 0
    }
    /// Calls `each` with every record, oldest first, under the ledger's lock.
    pub fn for_each(&self, each: &mut dyn FnMut(&PinRecord)) {
        self.records.lock().values().for_each(each);
    }
    fn add(&self, record: PinRecord) -> u64 {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.records.lock().insert(id, record);
        id
    }
    fn remove(&self, id: u64) {
        self.records.lock().remove(&id);
    }
}

/// Collects runs of frames in a vector, which grows as it must.
#[derive(Debug, Default)]
struct Runs(Vec<PfnRange>);

impl PinSink for Runs {
    fn room(&self) -> u64 {
        u64::MAX
    }
    fn push(&mut self, first: crate::addr::Pfn, nr_pages: u64) {
        if let Some(last) = self.0.last_mut()
            && last.end() == first
            && let Some(longer) = PfnRange::new(last.start(), last.nr_pages() + nr_pages)
        {
            *last = longer;
            return;
        }
        self.0.extend(PfnRange::new(first, nr_pages));
    }
    fn for_each(&self, each: &mut dyn FnMut(crate::addr::Pfn, u64)) {
        self.0.iter().for_each(|range| each(range.start(), range.nr_pages()));
    }
    fn clear(&mut self) {
        self.0.clear();
    }
}

/// Pinned pages, given back when dropped.
#[must_use = "the pages are given back when this is dropped"]
pub struct PinnedPages<M: Machine> {
    mm: Arc<Mm<M>>,
    frames: Vec<PfnRange>,
    record: Option<u64>,
}

impl<M: Machine> PinnedPages<M> {
    /// Pins all of `nr_pages` pages from `start` on, or none.
    ///
    /// # Errors
    /// As [`pin_user_pages_fast`]; where only a part could be pinned, the error is that of the first page missing.
    #[track_caller]
    pub fn pin(space: &AddressSpace<M>, start: VirtAddr, nr_pages: u64, flags: GupFlags) -> Result<Self, GupError> {
        let mm = space.mm();
        let mut runs = Runs::default();
        let mut pinned = Self { mm: Arc::clone(mm), frames: Vec::new(), record: None };
        let mut done = 0;
        while done < nr_pages {
            let at = start.checked_add(done << PAGE_SHIFT).ok_or(GupError::BadRange)?;
            let result = pin_user_pages_fast(space, at, nr_pages - done, flags, &mut runs);
            pinned.frames.append(&mut runs.0);
            done += result?;
        }
        if nr_pages == 0 {
            return Err(GupError::NoPages);
        }
        if mm.pins.is_on() {
            pinned.record = Some(mm.pins.add(PinRecord {
                owner: space.name().into(),
                place: Location::caller(),
                since_ns: mm.machine.now_ns(),
                long_term: flags.contains(GupFlags::LONGTERM),
                frames: pinned.frames.clone(),
            }));
        }
        Ok(pinned)
    }
    /// The frames, in the order of the addresses.
    pub fn frames(&self) -> &[PfnRange] {
        &self.frames
    }
}

impl<M: Machine> Drop for PinnedPages<M> {
    fn drop(&mut self) {
        // First off the list: a waiter that sees the pin gone must not find it named.
        if let Some(id) = self.record {
            self.mm.pins.remove(id);
        }
        for range in &self.frames {
            unpin(&self.mm, range.start(), range.nr_pages());
        }
    }
}
