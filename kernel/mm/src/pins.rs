//! Pins as values: given back when dropped, and, while the pin ledger is switched on, listed with owner, place and age.
//!
//! [`pin_user_pages_fast`] is the bare act; a caller of it gives back what it got by itself, and nothing is recorded.
//! Whoever keeps pins for longer than a function call takes a [`PinnedPages`]: it cannot be forgotten or put twice, and
//! it is what a removal or an eviction that waits can name (*who holds this page, since when, and from where?*). Who
//! wants to keep them for as long as he likes takes a [`MemoryRegion`](crate::region::MemoryRegion), which is made of
//! one of these and can be taken back.
//!
//! The ledger costs gup-fast nothing, on or off: it is charged by this type alone, once for each value. Nor do the
//! accounts ([`account`](crate::account)): each value is charged to one, to that of the address space where no other is
//! given, whatever flags it was pinned with.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::panic::Location;

use crate::account::{Charge, PinAccount};
use crate::addr::{PAGE_SHIFT, PAGE_SIZE, Pfn, PfnRange, VirtAddr, VirtRange};
use crate::context::MmContext;
use crate::gup::{GupError, GupFlags, PinSink, pin_user_pages_fast, pin_user_pages_longterm, unpin};
use crate::machine::{Machine, has_room};
use crate::mutant::Mutant;
use crate::pagemap::MemoryKind;
use crate::space::AddressSpace;
use crate::sync::{Arc, AtomicU32, AtomicU64, Mutex, Ordering, Weak};

/// One [`PinnedPages`] that is alive.
#[derive(Clone, Debug)]
pub struct PinRecord {
    /// Name of the address space through which the pages were pinned.
    pub owner: String,
    /// Where in the code.
    pub place: &'static Location<'static>,
    /// When, in nanoseconds since boot.
    pub since_ns: u64,
    /// The number of the registration, where they may be held until the kernel wants them back.
    pub registration: Option<u64>,
    /// What is charged for them, where they have an account.
    pub charged: Option<Charged>,
    /// The frames.
    pub frames: Vec<PfnRange>,
}

/// What a [`PinRecord`] costs its account.
#[derive(Clone, Debug)]
pub struct Charged {
    /// Whose account.
    pub account: String,
    /// Pages charged against its limit.
    pub counted_pages: u64,
    /// Pages left out of the limit by policy.
    pub exempt_pages: u64,
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
        Described { record: self, age_ns: now_ns.saturating_sub(self.since_ns) }
    }
    /// The same as `key=value` pairs without spaces inside, at the time `now_ns`.
    pub fn fields(&self, now_ns: u64) -> impl fmt::Display + '_ {
        Fields { record: self, age_ns: now_ns.saturating_sub(self.since_ns) }
    }
    fn first(&self) -> u64 {
        self.frames.first().map_or(0, |range| range.start().as_u64())
    }
}

struct Described<'r> {
    record: &'r PinRecord,
    age_ns: u64,
}

impl fmt::Display for Described<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PinRecord { owner, place, registration, charged, .. } = self.record;
        write!(f, "{} pages from frame {:#x} pinned", self.record.nr_pages(), self.record.first())?;
        if let Some(key) = registration {
            write!(f, " long-term (registration {key})")?;
        }
        write!(f, " by {owner} at {}:{} {} ms ago", place.file(), place.line(), self.age_ns / 1_000_000)?;
        if let Some(Charged { account, counted_pages, exempt_pages }) = charged {
            write!(f, "; account {account}: {counted_pages} pages count, {exempt_pages} are exempt")?;
        }
        Ok(())
    }
}

struct Fields<'r> {
    record: &'r PinRecord,
    age_ns: u64,
}

impl fmt::Display for Fields<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PinRecord { owner, place, registration, charged, .. } = self.record;
        let (pages, first, age_ns) = (self.record.nr_pages(), self.record.first(), self.age_ns);
        write!(f, "owner={} place={}:{} age_ns={age_ns}", Word(owner), place.file(), place.line())?;
        write!(f, " pages={pages} first={first:#x} runs={}", self.record.frames.len())?;
        match registration {
            Some(key) => write!(f, " term=long registration={key}")?,
            None => f.write_str(" term=transient")?,
        }
        match charged {
            Some(Charged { account, counted_pages, exempt_pages }) => {
                write!(f, " account={} counted={counted_pages} exempt={exempt_pages}", Word(account))
            }
            None => Ok(()),
        }
    }
}

/// A name as one word of a machine-readable line.
pub struct Word<'a>(
    /// The name.
    pub &'a str,
);

impl fmt::Display for Word<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .chars()
            .try_for_each(|letter| fmt::Write::write_char(f, if letter.is_whitespace() { '-' } else { letter }))
    }
}

/// Who holds which pins, who may hold how many, and by which policy. One for each machine.
#[derive(Debug)]
pub struct PinLedger {
    on: AtomicU32,
    /// Reserved memory counts too.
    reserved_counts: AtomicU32,
    next: AtomicU64,
    records: Mutex<BTreeMap<u64, PinRecord>>,
    accounts: Mutex<Vec<Weak<PinAccount>>>,
}

impl Default for PinLedger {
    fn default() -> Self {
        Self::new()
    }
}

impl PinLedger {
    /// Switched off, empty.
    pub fn new() -> Self {
        Self {
            on: AtomicU32::new(0),
            reserved_counts: AtomicU32::new(0),
            next: AtomicU64::new(1),
            records: Mutex::new(BTreeMap::new()),
            accounts: Mutex::new(Vec::new()),
        }
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

    /// A new account. It is listed until its last handle goes.
    pub fn open_account(&self, owner: &str, limit_pages: u64) -> Arc<PinAccount> {
        let account = PinAccount::new(owner, limit_pages);
        let mut accounts = self.accounts.lock();
        accounts.retain(|account| account.strong_count() != 0);
        accounts.push(Arc::downgrade(&account));
        account
    }
    /// Calls `each` with every account, oldest first, under the ledger's lock.
    pub fn for_each_account(&self, each: &mut dyn FnMut(&PinAccount)) {
        self.accounts.lock().iter().filter_map(Weak::upgrade).for_each(|account| each(&account));
    }
    /// Is memory that was reserved as a whole left out of the owners' limits? At first it is. What is charged stays
    /// charged as it is.
    pub fn exempt_reserved(&self, exempt: bool) {
        self.reserved_counts.store(u32::from(!exempt), Ordering::Relaxed);
    }
    /// Are pins of such memory left out of their owner's limit (L5)?
    pub fn is_exempt(&self, kind: MemoryKind) -> bool {
        kind.is_reserved() && self.reserved_counts.load(Ordering::Relaxed) == 0
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

/// Collects runs of frames in a vector, as many as there is room for.
struct Runs<'a>(&'a mut Vec<PfnRange>);

impl PinSink for Runs<'_> {
    const BY_PAGE: bool = false;
    fn room(&self) -> u64 {
        if self.0.len() < self.0.capacity() { u64::MAX } else { 0 }
    }
    fn push(&mut self, first: Pfn, nr_pages: u64) {
        if let Some(last) = self.0.last_mut()
            && last.end() == first
            && let Some(longer) = PfnRange::new(last.start(), last.nr_pages() + nr_pages)
        {
            *last = longer;
            return;
        }
        self.0.extend(PfnRange::new(first, nr_pages));
    }
}

/// How pages are pinned.
pub(crate) struct How<'a> {
    pub(crate) flags: GupFlags,
    /// Who pays.
    pub(crate) account: &'a Arc<PinAccount>,
    /// Long-term, for the registration of this number.
    pub(crate) registration: Option<u64>,
    /// Where in the code.
    pub(crate) place: &'static Location<'static>,
}

/// Pinned pages, given back when dropped.
///
/// ```
/// use mm::addr::{PAGE_SIZE, Pfn, VirtAddr};
/// use testkit::emu::{self, Frames, Task};
/// use mm::entry::Prot;
/// use mm::gup::GupFlags;
/// use mm::pins::PinnedPages;
/// use mm::space::AddressSpace;
///
/// let mm = emu::context(1);
/// let device = Frames::new(&mm, Pfn::new(0x10_0000), 8);
/// let (space, va) = (AddressSpace::new(&mm, "task").unwrap(), VirtAddr::new(0x40_0000_0000));
/// space.map(va, 8 * PAGE_SIZE, Prot::USER_WRITE, &device.ops(), 0).unwrap();
/// let _task = Task::start(&space, 0);
///
/// mm.pins.switch(true);
/// let pins = PinnedPages::pin(&space, va, 3, GupFlags::WRITE).unwrap();
/// // Who holds them, where in the code and since when is on record, as long as they are held.
/// mm.pins.for_each(&mut |record| assert_eq!(record.nr_pages(), 3));
/// drop(pins);
/// mm.pins.for_each(&mut |_| unreachable!("nobody holds a pin"));
/// ```
#[must_use = "the pages are given back when this is dropped"]
pub struct PinnedPages<M: Machine> {
    mm: Arc<MmContext<M>>,
    frames: Vec<PfnRange>,
    record: Option<u64>,
    charge: Option<Charge>,
}

impl<M: Machine> PinnedPages<M> {
    /// Pins all of `nr_pages` pages from `start` on, or none, for the account of the address space: charged before the
    /// first page is pinned.
    ///
    /// # Errors
    /// As [`pin_user_pages_fast`]; where only a part could be pinned, the error is that of the first page missing.
    /// [`GupError::OverLimit`]: the account does not allow it. [`GupError::OutOfMemory`] also where there is no memory for the list of frames.
    #[track_caller]
    pub fn pin(space: &AddressSpace<M>, start: VirtAddr, nr_pages: u64, flags: GupFlags) -> Result<Self, GupError> {
        let account = space.account();
        let how = How { flags, account: &account, registration: None, place: Location::caller() };
        Self::pin_as(space, start, nr_pages, &how)
    }

    /// As [`pin`](Self::pin), for the account of somebody else.
    ///
    /// # Errors
    /// As [`pin`](Self::pin).
    #[track_caller]
    pub fn pin_charged(
        account: &Arc<PinAccount>,
        space: &AddressSpace<M>,
        start: VirtAddr,
        nr_pages: u64,
        flags: GupFlags,
    ) -> Result<Self, GupError> {
        let how = How { flags, account, registration: None, place: Location::caller() };
        Self::pin_as(space, start, nr_pages, &how)
    }

    pub(crate) fn pin_as(
        space: &AddressSpace<M>,
        start: VirtAddr,
        nr_pages: u64,
        how: &How<'_>,
    ) -> Result<Self, GupError> {
        let mm = space.mm();
        if nr_pages == 0 {
            return Err(GupError::NoPages);
        }
        let bytes = nr_pages.checked_mul(PAGE_SIZE);
        let range = bytes.and_then(|bytes| VirtRange::new(start.align_down(PAGE_SIZE), bytes));
        let range = range.ok_or(GupError::BadRange)?;
        // Whatever goes wrong from here on: what this holds is given back as it is dropped.
        let mut pinned = Self { mm: Arc::clone(mm), frames: Vec::new(), record: None, charge: None };
        let exempt = space.count_pages(range, &|kind| mm.pins.is_exempt(kind));
        pinned.charge = Some(how.account.charge(nr_pages - exempt, exempt)?);
        let all = pinned.pin_all(space, start, nr_pages, how);
        if all.is_err() && Mutant::PartKept.is_on() {
            pinned.frames.clear();
        }
        all?;
        pinned.settle(nr_pages)?;
        if mm.pins.is_on() {
            pinned.record = Some(mm.pins.add(pinned.new_record(space, how)?));
        }
        Ok(pinned)
    }

    /// Run by run, each with a place in the list before it is pinned.
    fn pin_all(
        &mut self,
        space: &AddressSpace<M>,
        start: VirtAddr,
        nr_pages: u64,
        how: &How<'_>,
    ) -> Result<(), GupError> {
        let mut done = 0;
        while done < nr_pages {
            if !has_room(&self.mm.machine, &mut self.frames) {
                return Err(GupError::OutOfMemory);
            }
            let at = start.checked_add(done << PAGE_SHIFT).ok_or(GupError::BadRange)?;
            let (left, mut runs) = (nr_pages - done, Runs(&mut self.frames));
            done += match how.registration {
                Some(_) => pin_user_pages_longterm(space, at, left, how.flags, &mut runs)?,
                None => pin_user_pages_fast(space, at, left, how.flags, &mut runs)?,
            };
        }
        Ok(())
    }

    /// The mappings may have changed since they were asked for what they map: what counts is what was pinned.
    fn settle(&mut self, nr_pages: u64) -> Result<(), GupError> {
        let Some(charge) = &mut self.charge else { return Ok(()) };
        let mm = &self.mm;
        let exempt = self.frames.iter().map(|&run| exempt_pages(mm, run)).sum();
        if exempt != charge.exempt() {
            charge.settle(nr_pages.saturating_sub(exempt), exempt)?;
        }
        Ok(())
    }

    fn new_record(&self, space: &AddressSpace<M>, how: &How<'_>) -> Result<PinRecord, GupError> {
        let mut frames = Vec::new();
        if !self.mm.machine.may_grow() || frames.try_reserve_exact(self.frames.len()).is_err() {
            return Err(GupError::OutOfMemory);
        }
        frames.extend_from_slice(&self.frames);
        let charged = self.charge.as_ref().map(|charge| Charged {
            account: charge.account().owner().into(),
            counted_pages: charge.counted(),
            exempt_pages: charge.exempt(),
        });
        Ok(PinRecord {
            owner: space.name().into(),
            place: how.place,
            since_ns: self.mm.machine.now_ns(),
            registration: how.registration,
            charged,
            frames,
        })
    }

    /// The frames, in the order of the addresses.
    pub fn frames(&self) -> &[PfnRange] {
        &self.frames
    }
}

/// How many pages of a run are left out of pin limits.
fn exempt_pages<M: Machine>(mm: &MmContext<M>, run: PfnRange) -> u64 {
    let (mut at, mut pages) = (run.start(), 0);
    while at < run.end() {
        let found = mm.meta.find_map(at).and_then(|map| Some((map.kind(), map.range_of(at)?.end())));
        // A pinned frame has a page map.
        let Some((kind, end)) = found else { break };
        let end = end.min(run.end());
        if mm.pins.is_exempt(kind) {
            pages += end.as_u64() - at.as_u64();
        }
        at = end;
    }
    pages
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
        // The charge goes last: what is pinned is charged.
    }
}
