//! Registrations: long-term pins that the kernel can take back (Linux and RDMA: memory regions, `ib_umem_get`; *what the
//! thread on `get_user_pages_longterm` asks for and does not have*).
//!
//! # Protocol
//! The owner registers a range of addresses. Its pages are pinned until one of these: the owner gives them back, the
//! owner's handle goes (for it has ended), or the kernel takes them back. The last is done by range, in two steps:
//!
//! 1. [`Regions::ask`]: each registration that holds a frame of the range gets a deadline, and its owner is told, once.
//!    What it has registered stays as it is until then.
//! 2. [`Regions::take_back`]: waits until the owner has given it back or the deadline has passed, and then revokes it:
//!    no use begins any more, the uses in flight are waited for, the pins are given back.
//!
//! The grace period is bounded by [`MAX_GRACE_NS`], and nobody waits for an owner's answer: so the second step ends,
//! whatever the owner does. All registrations of a range have their grace at the same time. A registration goes as a
//! whole, as a memory region does: half of one is no use to a device that has the key to all of it.
//!
//! # Who uses a registration
//! Not the owner but what works for it: a DMA engine, or a task in its place. It has a [`RegionRef`], and each
//! transfer is a use: [`RegionRef::access`] opens it, and answers an error once the registration is closed. A use is
//! waited for, so it must end by itself: it is one transfer of an engine, no longer, and waits for no owner.
//! The gate through which uses come, and its proof, are in [`gate`]. A real device asks nobody: what it reaches is cut off
//! before the pages are given back, see [`device`].
//!
//! # Against a removal
//! ```text
//!  register                                   removal
//!  1 pin the pages                            a the page map is dying: no new folio
//!  2 put the registration on the lists        b ask: walk the list of this page map
//!  3 is a page map of it dying? undo          c take back, once no walk can pin any more
//! ```
//! The lists have a lock. If 2 comes before b, the registration is asked for. Otherwise a comes before 3, which sees it.
//! So no registration stays that was not asked for.

mod ask;
pub mod device;
pub mod gate;
mod info;
mod list;

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::panic::Location;

use self::device::{CutOff, DeviceAccess, DevicePlace, NotAdmitted};
use self::gate::{By, Entered, Gate};
pub use self::info::{
    Asked, MAX_GRACE_NS, Notice, RegionError, RegionInfo, RegionOwner, Revoked, TakeBack, Terms, UseError,
};
use self::list::{Lists, maps_of};
use crate::addr::{PAGE_SHIFT, Pfn, PfnRange, VirtAddr};
use crate::context::MmContext;
use crate::gup::{GupError, GupFlags};
use crate::ledger::Kind;
use crate::lock_check;
use crate::machine::{Machine, Point};
use crate::mutant::Mutant;
use crate::pagemap::{DevPagemap, MapId, MapState};
use crate::pins::{How, PinnedPages};
use crate::space::{Access, AddressSpace, SigBusCause};
use crate::sync::{Arc, AtomicU64, Mutex, Ordering, Weak};

/// A use in flight that is waited for longer than this is worth a word, in nanoseconds; the next after twice as long.
const SLOW_USE_NS: u64 = 10_000_000;
/// The deadline of a registration for which nobody has asked.
const NOT_ASKED: u64 = u64::MAX;

/// One registration. On the lists from its making until its pins are given back.
struct Region<M: Machine> {
    key: u64,
    /// The address space through which it was made, and where in it.
    space: u64,
    start: VirtAddr,
    name: String,
    place: &'static Location<'static>,
    since_ns: u64,
    grace_ns: u64,
    nr_pages: u64,
    writable: bool,
    /// Runs with the number of the page at which each begins. What a use reads: it never changes, and means something
    /// only while the gate is open.
    runs: Box<[PfnRange]>,
    starts: Box<[u64]>,
    /// The page maps that have its pages.
    maps: Box<[MapId]>,
    gate: Gate,
    device: DevicePlace,
    /// When the owner's grace is over, or [`NOT_ASKED`]. Whoever sets it tells the owner.
    deadline_ns: AtomicU64,
    /// When its owner was asked, or [`NOT_ASKED`]; set before the deadline.
    asked_ns: AtomicU64,
    owner: Weak<dyn RegionOwner>,
    mm: Arc<MmContext<M>>,
    /// Taken by who closes the gate.
    pins: Mutex<Option<PinnedPages<M>>>,
}

impl<M: Machine> Region<M> {
    fn info(&self) -> RegionInfo<'_> {
        let deadline_ns = Some(self.deadline_ns.load(Ordering::Relaxed)).filter(|&at| at != NOT_ASKED);
        RegionInfo {
            key: self.key,
            space: self.space,
            owner: &self.name,
            place: self.place,
            since_ns: self.since_ns,
            nr_pages: self.nr_pages,
            frames: &self.runs,
            grace_ns: self.grace_ns,
            deadline_ns,
            uses: self.gate.uses(),
        }
    }

    /// Where its owner registered this frame.
    fn address_of(&self, pfn: Pfn) -> Option<VirtAddr> {
        let (run, first) = self.runs.iter().zip(&self.starts).find(|(run, _)| run.contains(pfn))?;
        let page = first + (pfn.as_u64() - run.start().as_u64());
        self.start.checked_add(page << PAGE_SHIFT)
    }

    fn holds_any(&self, ranges: &[PfnRange]) -> bool {
        self.runs.iter().any(|&run| ranges.iter().any(|&range| range.overlaps(run)))
    }

    // lab 8 begin: close
    /// Ends it. `None` where somebody else does; it is ended then, too, when this returns. Otherwise, the uses that were
    /// in flight when it was closed, all of which have been waited for, and what cutting its device off has cost. `slow` is
    /// called, ever more seldom, while that takes long.
    fn close(&self, by: By, slow: &mut dyn FnMut(RegionInfo<'_>)) -> Option<(u64, Option<CutOff>)> {
        lock_check::might_sleep("the uses of a registration");
        let machine = &self.mm.machine;
        let (began, mut notice_ns) = (machine.now_ns(), SLOW_USE_NS);
        let relax = || {
            machine.relax();
            if machine.now_ns().saturating_sub(began) >= notice_ns {
                notice_ns = notice_ns.saturating_mul(2);
                slow(self.info());
            }
        };
        let Some(uses) = self.gate.close(by) else {
            self.gate.wait_released(relax);
            return None;
        };
        self.gate.wait_for_uses(relax);
        let cut_off = self.device.cut_off(by);
        let pins = self.pins.lock().take();
        drop(pins);
        self.mm.regions.take_off(self);
        self.gate.set_released();
        Some((uses, cut_off))
    }
    // lab 8 end
}

/// The registrations of one machine.
pub struct Regions<M: Machine> {
    next: AtomicU64,
    lists: Mutex<Lists<M>>,
}

/// What there is to do about the registrations of a range.
enum Next<M: Machine> {
    Nothing,
    Wait,
    Revoke(Arc<Region<M>>),
}

impl<M: Machine> Regions<M> {
    pub(crate) fn new() -> Self {
        Self { next: AtomicU64::new(1), lists: Mutex::new(Lists::new()) }
    }

    /// Calls `each` with every registration, those of a device together and oldest first, under the lists' lock.
    pub fn for_each(&self, each: &mut dyn FnMut(&RegionInfo<'_>)) {
        self.lists.lock().iter().for_each(|region| each(&region.info()));
    }

    /// Calls `each` with every registration that holds `pfn`, which is `map`'s, and the address at which its owner has
    /// registered that frame: the first, where there are several. For a page that is lost: what works for the owner does
    /// not fault, and would never hear of it. Work is proportional to the registrations of `map`, and their runs. Called
    /// with no lock held, and needs no memory.
    pub fn for_each_over(&self, map: &DevPagemap, pfn: Pfn, each: &mut dyn FnMut(&RegionInfo<'_>, VirtAddr)) {
        let Some(frame) = PfnRange::new(pfn, 1) else { return };
        let mut after = 0;
        while let Some(region) = self.first_after(after, map, &[frame], &mut 0) {
            after = region.key;
            if let Some(addr) = region.address_of(pfn) {
                each(&region.info(), addr);
            }
        }
    }

    /// Waits until no registration holds a frame of `ranges`, whose owners were asked for them: given back, or revoked
    /// once its deadline has passed, of which `told` hears. Bounded by the longest grace period and the uses in flight.
    ///
    /// Not with interrupts off, nor from inside a use.
    pub fn take_back(&self, machine: &M, map: &DevPagemap, ranges: &[PfnRange], told: &mut dyn FnMut(&TakeBack<'_>)) {
        lock_check::might_sleep("registrations");
        loop {
            match self.next_of(map, ranges, machine.now_ns()) {
                Next::Nothing => return,
                Next::Wait => machine.relax(),
                Next::Revoke(region) => {
                    let info = region.info();
                    let after_ns = region.had_ns();
                    let mut slow = |info: RegionInfo<'_>| told(&TakeBack::Waits(info));
                    let Some((uses, cut_off)) = region.close(By::Kernel, &mut slow) else { continue };
                    told(&TakeBack::Revoked(Revoked { region: info, uses, cut_off, after_ns }));
                }
            }
        }
    }

    /// The next one that holds a frame of `ranges`, and how many were looked at to find it.
    fn first_after(
        &self,
        key: u64,
        map: &DevPagemap,
        ranges: &[PfnRange],
        looked_at: &mut u64,
    ) -> Option<Arc<Region<M>>> {
        let lists = self.lists.lock();
        let list = lists.of(map.id());
        let behind = list.partition_point(|region| region.key <= key);
        let found = list[behind..].iter().inspect(|_| *looked_at += 1).find(|region| region.holds_any(ranges));
        found.cloned()
    }

    fn next_of(&self, map: &DevPagemap, ranges: &[PfnRange], now_ns: u64) -> Next<M> {
        let lists = self.lists.lock();
        let mut next = Next::Nothing;
        for region in lists.of(map.id()).iter().filter(|region| region.holds_any(ranges)) {
            // Acquire; pairs with the Release in `ask`: when it was asked for is known, too.
            let deadline_ns = region.deadline_ns.load(Ordering::Acquire);
            // One that nobody was asked for came too late, and is about to be undone.
            if deadline_ns != NOT_ASKED && now_ns >= deadline_ns {
                return Next::Revoke(Arc::clone(region));
            }
            next = Next::Wait;
        }
        next
    }

    fn put_on(&self, machine: &M, region: &Arc<Region<M>>) -> Result<(), GupError> {
        if !self.lists.lock().put(machine, region) {
            return Err(GupError::OutOfMemory);
        }
        region.mm.ledger.charge(Kind::Registrations, 1);
        Ok(())
    }

    fn take_off(&self, region: &Region<M>) {
        if self.lists.lock().take(region) {
            region.mm.ledger.charge(Kind::Registrations, -1);
        }
    }
}

/// A registration, in its owner's hands. Dropping it gives the pages back, if the kernel has not taken them.
///
/// The kernel takes one back whose owner does not give it back:
/// ```
/// use std::sync::{Arc, Weak};
/// use mm::addr::{PAGE_SIZE, Pfn, VirtAddr};
/// use testkit::emu::{self, Frames, Task};
/// use mm::entry::Prot;
/// use mm::gup::GupFlags;
/// use mm::region::{MemoryRegion, Notice, RegionOwner, Terms, UseError};
/// use mm::space::{Access, AddressSpace};
///
/// let mm = emu::context(1);
/// let device = Frames::new(&mm, Pfn::new(0x10_0000), 8);
/// let (space, va) = (AddressSpace::new(&mm, "task").unwrap(), VirtAddr::new(0x40_0000_0000));
/// space.map(va, 8 * PAGE_SIZE, Prot::USER_WRITE, &device.ops(), 0).unwrap();
/// let _task = Task::start(&space, 0);
///
/// let owner: Arc<dyn RegionOwner> = Arc::new(|_: &Notice| println!("I would rather keep it"));
/// let account = mm.pins.open_account("task", 64);
/// let terms = Terms { flags: GupFlags::WRITE, grace_ns: 1_000, account: &account };
/// let region = MemoryRegion::register(&space, va, 4, &terms, Arc::downgrade(&owner)).unwrap();
/// let engine = region.reference();
/// assert_eq!(engine.access(Access::Write).unwrap().frame(0), Some(Pfn::new(0x10_0000)));
///
/// let ranges = device.map.ranges();
/// assert_eq!(mm.regions.ask(&device.map, ranges, &mut |_| ()).asked, 1);
/// mm.regions.take_back(&mm.machine, &device.map, ranges, &mut |_| ());
/// assert_eq!(engine.check(Access::Write), Err(UseError::Revoked { key: region.key() }));
/// ```
#[must_use = "the registration is given back when this is dropped"]
pub struct MemoryRegion<M: Machine> {
    region: Arc<Region<M>>,
}

impl<M: Machine> MemoryRegion<M> {
    /// Registers `nr_pages` pages from `start` on: all of them, or none. The kernel asks `owner` for them when it wants
    /// them back; an owner that is gone by then is not waited for.
    ///
    /// # Errors
    /// See [`RegionError`] and [`GupError`]; nothing is pinned or charged then. A range that touches memory of a file
    /// system is [`GupError::NotSupported`] (L1), one over the account's limit [`GupError::OverLimit`] (L5), and one
    /// whose device is being removed [`GupError::SigBus`].
    #[track_caller]
    pub fn register(
        space: &AddressSpace<M>,
        start: VirtAddr,
        nr_pages: u64,
        terms: &Terms<'_>,
        owner: Weak<dyn RegionOwner>,
    ) -> Result<Self, RegionError> {
        if terms.grace_ns > MAX_GRACE_NS {
            return Err(RegionError::Grace { wanted_ns: terms.grace_ns });
        }
        let mm = space.mm();
        let key = mm.regions.next.fetch_add(1, Ordering::Relaxed);
        let place = Location::caller();
        let how = How { flags: terms.flags, account: terms.account, registration: Some(key), place };
        let pins = PinnedPages::pin_as(space, start, nr_pages, &how)?;
        mm.machine.reached(Point::RegionPinned);
        let (runs, starts) = tables(&mm.machine, pins.frames()).ok_or(GupError::OutOfMemory)?;
        let maps = maps_of(mm, &runs).ok_or(GupError::OutOfMemory)?;
        let region = Arc::new(Region {
            key,
            space: space.id(),
            start,
            name: space.name().into(),
            place,
            since_ns: mm.machine.now_ns(),
            grace_ns: terms.grace_ns,
            nr_pages,
            writable: terms.flags.contains(GupFlags::WRITE),
            runs,
            starts,
            maps,
            gate: Gate::new(),
            device: DevicePlace::new(),
            deadline_ns: AtomicU64::new(NOT_ASKED),
            asked_ns: AtomicU64::new(NOT_ASKED),
            owner,
            mm: Arc::clone(mm),
            pins: Mutex::new(Some(pins)),
        });
        mm.regions.put_on(&mm.machine, &region)?;
        // From here on it is given back as any other.
        let this = Self { region };
        if this.is_going() && !Mutant::RegistrationNotRechecked.is_on() {
            return Err(GupError::SigBus(start, SigBusCause::DeviceGone).into());
        }
        Ok(this)
    }

    /// Is a device that it holds pages of being removed?
    fn is_going(&self) -> bool {
        let meta = &self.region.mm.meta;
        self.region.runs.iter().any(|&run| {
            let mut at = run.start();
            while at < run.end() {
                let found = meta.find_map(at).filter(|map| map.state() == MapState::Live);
                let Some(range) = found.and_then(|map| map.range_of(at)) else { return true };
                at = range.end();
            }
            false
        })
    }

    /// Its number.
    pub fn key(&self) -> u64 {
        self.region.key
    }
    /// For what works on the owner's behalf.
    pub fn reference(&self) -> RegionRef<M> {
        RegionRef { region: Arc::clone(&self.region) }
    }
    /// Lets a device in: `map` is shown the frames, in the order of the addresses, and whether they may be
    /// written to; it maps them for the device, and answers what takes that back
    /// before the pages are given back, by whomever.
    ///
    /// # Errors
    /// Those of `map`. [`UseError`]: the registration is closed, or has a device; nothing is mapped for this one then.
    pub fn admit<E: From<UseError>>(
        &self,
        map: impl FnOnce(&[PfnRange], bool) -> Result<Box<dyn DeviceAccess>, E>,
    ) -> Result<(), E> {
        let Region { key, gate, device, runs, writable, .. } = &*self.region;
        device.admit(gate, || map(runs, *writable)).map_err(|error| match error {
            NotAdmitted::Closed(by) => refused(*key, by).into(),
            NotAdmitted::Occupied => UseError::Occupied { key: *key }.into(),
            NotAdmitted::Made(error) => error,
        })
    }
    /// Gives it back, which is what dropping it does. When this returns the pages are given back, by whomever.
    ///
    /// Not with interrupts off, nor from inside a use.
    pub fn deregister(self) {
        drop(self);
    }
}

impl<M: Machine> Drop for MemoryRegion<M> {
    fn drop(&mut self) {
        _ = self.region.close(By::Owner, &mut |_| ());
    }
}

/// The runs, and the number of the page at which each begins.
type Tables = (Box<[PfnRange]>, Box<[u64]>);

/// `None` where memory is short.
fn tables<M: Machine>(machine: &M, frames: &[PfnRange]) -> Option<Tables> {
    let (mut runs, mut starts) = (Vec::new(), Vec::new());
    if !machine.may_grow() {
        return None;
    }
    runs.try_reserve_exact(frames.len()).ok()?;
    starts.try_reserve_exact(frames.len()).ok()?;
    let mut start = 0;
    for &run in frames {
        runs.push(run);
        starts.push(start);
        start += run.nr_pages();
    }
    Some((runs.into_boxed_slice(), starts.into_boxed_slice()))
}

/// The right to use a registration while it lasts, as an engine holds the key to a memory region.
pub struct RegionRef<M: Machine> {
    region: Arc<Region<M>>,
}

impl<M: Machine> Clone for RegionRef<M> {
    fn clone(&self) -> Self {
        Self { region: Arc::clone(&self.region) }
    }
}

impl<M: Machine> RegionRef<M> {
    /// The registration's number.
    pub fn key(&self) -> u64 {
        self.region.key
    }

    /// The frames that it was made of, in the order of the addresses. They are its own only while it is not closed.
    pub fn frames(&self) -> &[PfnRange] {
        &self.region.runs
    }

    /// Could a use begin now? Begins none, so nobody waits for the question; the answer can be old when it is read.
    ///
    /// # Errors
    /// As for [`access`](Self::access).
    pub fn check(&self, access: Access) -> Result<(), UseError> {
        if access == Access::Write && !self.region.writable {
            return Err(UseError::ReadOnly { key: self.region.key });
        }
        self.region.gate.closed().map_or(Ok(()), |by| Err(refused(self.region.key, by)))
    }

    /// Begins a use. Never waits.
    ///
    /// # Errors
    /// See [`UseError`].
    pub fn access(&self, access: Access) -> Result<RegionUse<'_, M>, UseError> {
        if access == Access::Write && !self.region.writable {
            return Err(UseError::ReadOnly { key: self.region.key });
        }
        match self.region.gate.enter() {
            Ok(entered) => Ok(RegionUse { region: &self.region, _entered: entered }),
            Err(by) => Err(refused(self.region.key, by)),
        }
    }
}

/// Why registration `key`, closed by `by`, cannot be used.
fn refused(key: u64, by: By) -> UseError {
    match by {
        By::Kernel => UseError::Revoked { key },
        By::Owner => UseError::GivenBack { key },
    }
}

/// A use in flight: while this lives the pages stay. Short: who takes the registration back waits for it.
#[must_use = "the use ends when this is dropped"]
pub struct RegionUse<'r, M: Machine> {
    region: &'r Region<M>,
    _entered: Entered<'r>,
}

impl<M: Machine> RegionUse<'_, M> {
    /// The frame of the registration's page `page`; `None` beyond its end.
    pub fn frame(&self, page: u64) -> Option<Pfn> {
        let at = self.region.starts.partition_point(|&start| start <= page).checked_sub(1)?;
        let run = self.region.runs[at];
        let inside = page - self.region.starts[at];
        (inside < run.nr_pages()).then(|| run.start().add(inside))
    }
    /// How many pages there are.
    pub fn nr_pages(&self) -> u64 {
        self.region.nr_pages
    }
}
