//! A DAX device and its life: alive, dying, dead.
//!
//! # Types for states
//! The driver that made the device owns it through a [`Live`], which [`kill_dax`](crate::kill::kill_dax) turns
//! into a [`Dead`]. Questions that only make sense afterwards ([`Dead::is_idle`]) exist only there, and nobody
//! can kill a device twice. Everybody else has an `Arc<DaxDevice>`, for whom death comes as a surprise; they ask
//! for a [`LiveGuard`] before each use, and while one lives the device is not torn down. What needs the device
//! to be alive ([`LiveGuard::direct_access`]) exists only on the guard.
//!
//! | state | new users and holders | access under a guard | holders |
//! |---|---|---|---|
//! | alive | yes | yes | registered |
//! | dying | refused | yes | being told |
//! | dead | refused | refused | forgotten |
//!
//! Linux: `drivers/dax/super.c`.

use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Deref;

use mm::addr::{PAGE_SHIFT, PAGE_SIZE, PageSize, Pfn, PfnRange};
use mm::ledger::{Kind, Ledger};
use mm::pagemap::{DevPagemap, MemoryKind};
use mm::sync::{AtomicU32, AtomicU64, Mutex, Ordering};

use crate::holder::{Answer, Holder, HolderId, Holders, NotifyError, NotifyFlags, Role};
use crate::kill;
use crate::mutant::Mutant;
use crate::srcu::{ReadGuard, Srcu};

/// Does the data cache keep one line for one physical address, whatever virtual address names it?
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum DataCache {
    /// Yes, as on every x86-64 CPU.
    #[default]
    Coherent,
    /// No: a store through one mapping may stay invisible through another (some ARM, MIPS and PA-RISC CPUs).
    Aliasing,
}

/// Why something could not be done with a DAX device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DaxError {
    /// This CPU's data cache aliases, and the kernel would reach user data through an alias of its own.
    NotSupported,
    /// The device is dead, or dying where something new was asked of it.
    NoSuchDevice,
    /// It has an owner already.
    Busy,
    /// An offset or a length is not a multiple of this many bytes.
    Misaligned {
        /// What it has to be a multiple of.
        required: u64,
    },
    /// The range is empty, or not wholly inside the device.
    OutOfRange {
        /// Size of the device in bytes.
        size: u64,
    },
}

impl fmt::Display for DaxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotSupported => f.write_str("not supported: the data cache of this CPU aliases"),
            Self::NoSuchDevice => f.write_str("no such device: it has been removed or is about to be"),
            Self::Busy => f.write_str("busy: the device has an owner already"),
            Self::Misaligned { required } => write!(f, "misaligned: a multiple of {required} bytes is required"),
            Self::OutOfRange { size } => write!(f, "out of range: the device has {size} bytes"),
        }
    }
}

impl core::error::Error for DaxError {}

/// Would [`alloc_dax`] refuse such memory on such a CPU? A cheap question, to be asked before anything expensive
/// is built.
///
/// # Errors
/// [`DaxError::NotSupported`] where the kernel itself reads and writes user data through its direct map (file
/// systems) and the data cache aliases. Device-dax never does, so that it is always supported.
pub fn check_supported(kind: MemoryKind, cache: DataCache) -> Result<(), DaxError> {
    match (kind, cache) {
        (MemoryKind::DevDax, _) | (_, DataCache::Coherent) => Ok(()),
        (_, DataCache::Aliasing) => Err(DaxError::NotSupported),
    }
}

/// Makes a DAX device over the frames of `map`, alive at once. Offsets run through the page map's ranges in rising
/// order, without gaps.
///
/// ```
/// use dax::device::{DataCache, DaxError, alloc_dax};
/// use dax::kill::kill_dax;
/// use mm::addr::Pfn;
/// use testkit::emu::{self, Frames};
///
/// let mm = emu::context(1);
/// let frames = Frames::new(&mm, Pfn::new(0x10_0000), 512);
/// let live = alloc_dax("dax0.0", &frames.map, DataCache::Coherent, &mm.ledger).unwrap();
/// let device = live.device().clone();
/// let user = device.open().unwrap();
///
/// // It is killed once, for its owner's handle is used up; the other one can be asked what this one could not.
/// let (dead, _) = kill_dax(live, &mut core::hint::spin_loop, &mut |_, _| ());
/// assert_eq!(device.open().err(), Some(DaxError::NoSuchDevice));
/// assert!(!dead.is_idle());
/// drop(user);
/// assert!(dead.is_idle(), "nobody can open it again, so this is final");
/// ```
///
/// # Errors
/// [`DaxError::NotSupported`]: see [`check_supported`]. For a driver that has another way to reach the memory
/// that is not fatal: the device comes up without DAX.
pub fn alloc_dax(name: &str, map: &Arc<DevPagemap>, cache: DataCache, ledger: &Arc<Ledger>) -> Result<Live, DaxError> {
    check_supported(map.kind(), cache)?;
    ledger.charge(Kind::DaxDevices, 1);
    Ok(Live { device: Some(Arc::new(DaxDevice::new(name, map, ledger))) })
}

/// What [`DaxDevice::state`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// In use.
    Alive,
    /// Works as before, but its holders are being told that it goes away.
    Dying,
    /// Gone for everybody.
    Dead,
}

const ALIVE: u32 = 0;
const DYING: u32 = 1;
const DEAD: u32 = 2;

/// A DAX device, as all but its owner see it.
pub struct DaxDevice {
    name: String,
    map: Arc<DevPagemap>,
    /// First offset of each range, in pages, and the range.
    runs: Box<[(u64, PfnRange)]>,
    size_bytes: u64,
    srcu: Srcu,
    state: AtomicU32,
    /// Live [`DaxUse`]s.
    users: AtomicU64,
    holders: Mutex<Holders>,
    ledger: Arc<Ledger>,
}

impl fmt::Debug for DaxDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DaxDevice").field("name", &self.name).field("state", &self.state()).finish_non_exhaustive()
    }
}

impl DaxDevice {
    fn new(name: &str, map: &Arc<DevPagemap>, ledger: &Arc<Ledger>) -> Self {
        let mut nr_pages = 0;
        let runs = map.ranges().iter().map(|&range| {
            let first = nr_pages;
            nr_pages += range.nr_pages();
            (first, range)
        });
        let runs = runs.collect();
        Self {
            name: name.to_string(),
            map: Arc::clone(map),
            runs,
            size_bytes: nr_pages << PAGE_SHIFT,
            srcu: Srcu::new(),
            state: AtomicU32::new(ALIVE),
            users: AtomicU64::new(0),
            holders: Mutex::new(Holders::default()),
            ledger: Arc::clone(ledger),
        }
    }

    /// The name that the driver gave it.
    pub fn name(&self) -> &str {
        &self.name
    }
    /// What its memory is used for.
    pub fn kind(&self) -> MemoryKind {
        self.map.kind()
    }
    /// The page map that it lies over.
    pub fn pagemap(&self) -> &Arc<DevPagemap> {
        &self.map
    }
    /// Size in bytes, over all ranges.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }
    /// Where it is in its life. Only a [`LiveGuard`] makes the answer last.
    pub fn state(&self) -> State {
        match self.state.load(Ordering::Acquire) {
            ALIVE => State::Alive,
            DYING => State::Dying,
            _ => State::Dead,
        }
    }
    /// Users at this moment: see [`open`](Self::open). Each holder counts as one.
    pub fn nr_users(&self) -> u64 {
        self.users.load(Ordering::Acquire)
    }

    /// Begins a use of the device. While the guard lives the device is not torn down; do not wait for its removal
    /// with a guard in hand.
    ///
    /// # Errors
    /// [`DaxError::NoSuchDevice`] once it is dead.
    #[inline]
    pub fn read_lock(&self) -> Result<LiveGuard<'_>, DaxError> {
        let guard = self.srcu.read_lock();
        // Relaxed: the domain's counter orders this load against the store in `set_dead` (see `srcu`).
        if self.state.load(Ordering::Relaxed) == DEAD && !Mutant::DeadLetsReadersIn.is_on() {
            return Err(DaxError::NoSuchDevice);
        }
        Ok(LiveGuard { device: self, _guard: guard })
    }

    /// Opens the device: it counts as in use until the handle is dropped.
    ///
    /// # Errors
    /// [`DaxError::NoSuchDevice`] once its removal has begun.
    pub fn open(self: &Arc<Self>) -> Result<DaxUse, DaxError> {
        let _live = self.read_lock()?;
        if self.state.load(Ordering::Acquire) != ALIVE && !Mutant::DyingLetsUsersIn.is_on() {
            return Err(DaxError::NoSuchDevice);
        }
        // Relaxed: ordered before the owner's question by the guard.
        self.users.fetch_add(1, Ordering::Relaxed);
        Ok(DaxUse { device: Arc::clone(self) })
    }

    /// Registers a holder, which hears of failures and of the removal until the registration is dropped.
    ///
    /// # Errors
    /// [`DaxError::NoSuchDevice`] once the device's removal has begun: the holder would not be told.
    /// [`DaxError::Busy`] for a second [`Role::Owner`].
    pub fn register_holder(self: &Arc<Self>, role: Role, holder: Arc<dyn Holder>) -> Result<Registration, DaxError> {
        let user = self.open()?;
        let mut holders = self.holders.lock();
        // Once more, under the lock under which the killer makes its list: a holder is on the list or refused.
        if self.state.load(Ordering::Acquire) != ALIVE {
            return Err(DaxError::NoSuchDevice);
        }
        let id = holders.add(role, holder).ok_or(DaxError::Busy)?;
        self.ledger.charge(Kind::Holders, 1);
        Ok(Registration { user, id })
    }

    /// How many holders are registered.
    pub fn nr_holders(&self) -> usize {
        self.holders.lock().len()
    }

    /// Tells every holder, oldest first, that `len` bytes from `offset` fail or go away, and gives their answers.
    /// No holder is fine: no answers.
    ///
    /// # Errors
    /// [`NotifyError::NoSuchDevice`] when the device is dead.
    pub fn notify_failure(&self, offset: u64, len: u64, flags: NotifyFlags) -> Result<Vec<Answer>, NotifyError> {
        let _live = self.read_lock().map_err(|_| NotifyError::NoSuchDevice)?;
        // Called without the lock: a holder may let go of the device while it is told.
        let holders = self.holders.lock().snapshot();
        let tell = |holder: &Arc<dyn Holder>| Answer {
            holder: holder.name().to_string(),
            result: holder.notify_failure(offset, len, flags),
        };
        Ok(holders.iter().map(tell).collect())
    }

    /// From now on nobody new: the holders are about to be told.
    pub(crate) fn set_dying(&self) {
        let _list = self.holders.lock();
        self.state.store(DYING, Ordering::Release);
    }
    /// From now on no new guard.
    pub(crate) fn set_dead(&self) {
        self.state.store(DEAD, Ordering::Release);
    }
    pub(crate) fn srcu(&self) -> &Srcu {
        &self.srcu
    }
    /// Forgets all holders; answers how many there were.
    pub(crate) fn clear_holders(&self) -> usize {
        // Dropped after the lock is free again.
        let gone = self.holders.lock().take_all();
        self.ledger.charge(Kind::Holders, -(gone.len() as i64));
        gone.len()
    }
}

/// Proof that the device is alive, and stays so until this is dropped.
///
/// ```
/// use dax::device::{DataCache, DaxError, alloc_dax};
/// use mm::addr::{PAGE_SIZE, Pfn, PfnRange};
/// use mm::pagemap::{DevPagemap, MemoryKind};
///
/// let mm = testkit::emu::context(1);
/// // A device in two pieces: its offsets run through both.
/// let frames = |start, nr| PfnRange::new(Pfn::new(start), nr).unwrap();
/// let map = DevPagemap::new(MemoryKind::DevDax, [frames(0x10_0000, 2), frames(0x20_0000, 6)]).unwrap();
/// let live = alloc_dax("dax0.0", &map, DataCache::Coherent, &mm.ledger).unwrap();
///
/// let guard = live.device().read_lock().unwrap();
/// assert_eq!(guard.direct_access(PAGE_SIZE, 4 * PAGE_SIZE), Ok(frames(0x10_0001, 1)), "what lies in a row");
/// assert_eq!(guard.direct_access(2 * PAGE_SIZE, 4 * PAGE_SIZE), Ok(frames(0x20_0000, 4)));
/// assert_eq!(guard.direct_access(8 * PAGE_SIZE, PAGE_SIZE), Err(DaxError::OutOfRange { size: 8 * PAGE_SIZE }));
/// ```
#[derive(Debug)]
#[must_use = "the device may go away once this is dropped"]
pub struct LiveGuard<'d> {
    device: &'d DaxDevice,
    _guard: ReadGuard<'d>,
}

impl<'d> LiveGuard<'d> {
    /// The device.
    pub fn device(&self) -> &'d DaxDevice {
        self.device
    }

    /// The frames behind the bytes from `offset` on: as many of the `len` bytes as lie in a row. At least one page;
    /// fewer than asked for only where the page map's next range begins.
    ///
    /// # Errors
    /// [`DaxError::Misaligned`] unless both are multiples of 4096; [`DaxError::OutOfRange`] where `len` is zero or
    /// a byte lies outside the device.
    pub fn direct_access(&self, offset: u64, len: u64) -> Result<PfnRange, DaxError> {
        if (offset | len) & (PAGE_SIZE - 1) != 0 {
            return Err(DaxError::Misaligned { required: PAGE_SIZE });
        }
        let size = self.device.size_bytes;
        let out = DaxError::OutOfRange { size };
        let end = offset.checked_add(len).ok_or(out)?;
        if len == 0 || end > size {
            return Err(out);
        }
        let (first, range) = self.run_at(offset >> PAGE_SHIFT).ok_or(out)?;
        let skip = (offset >> PAGE_SHIFT) - first;
        let nr_pages = (len >> PAGE_SHIFT).min(range.nr_pages() - skip);
        PfnRange::new(range.start().add(skip), nr_pages).ok_or(out)
    }

    /// The range that holds the page at `offset_pages`, after the first offset of that range.
    fn run_at(&self, offset_pages: u64) -> Option<(u64, PfnRange)> {
        let after = self.device.runs.partition_point(|&(first, _)| first <= offset_pages);
        let &(first, range) = self.device.runs.get(after.checked_sub(1)?)?;
        (offset_pages - first < range.nr_pages()).then_some((first, range))
    }

    /// The frame at `offset_pages`, and the largest leaf around it that lies inside the device, whose frames and
    /// offsets run in parallel, and which contains no poisoned frame (but for that frame itself).
    ///
    /// # Errors
    /// [`DaxError::OutOfRange`].
    pub fn leaf_at(&self, offset_pages: u64) -> Result<(Pfn, PageSize), DaxError> {
        let out = DaxError::OutOfRange { size: self.device.size_bytes };
        let (first, range) = self.run_at(offset_pages).ok_or(out)?;
        let pfn = range.start().add(offset_pages - first);
        let fits = |size: PageSize| {
            let head = pfn.align_down(size);
            (pfn.as_u64() ^ offset_pages) & (size.nr_pages() - 1) == 0
                && head >= range.start()
                && head.add(size.nr_pages()) <= range.end()
                && !self.device.map.any_poisoned(head, size.nr_pages())
        };
        let size = PageSize::ALL.into_iter().rev().find(|&size| fits(size));
        Ok((pfn, size.unwrap_or(PageSize::Size4K)))
    }

    /// The offset in bytes of the first byte of `pfn`, or `None` where the device does not have the frame.
    pub fn offset_of(&self, pfn: Pfn) -> Option<u64> {
        let (first, range) = self.device.runs.iter().find(|(_, range)| range.contains(pfn))?;
        Some((first + (pfn.as_u64() - range.start().as_u64())) << PAGE_SHIFT)
    }
}

/// One user of the device: it has it open. Says nothing about whether it is alive.
#[derive(Debug)]
pub struct DaxUse {
    device: Arc<DaxDevice>,
}

impl Deref for DaxUse {
    type Target = Arc<DaxDevice>;
    fn deref(&self) -> &Self::Target {
        &self.device
    }
}

impl Drop for DaxUse {
    fn drop(&mut self) {
        // Release; pairs with the Acquire load in `nr_users`.
        let before = self.device.users.fetch_sub(1, Ordering::Release);
        assert!(before > 0, "DAX device {}: closed more often than it was opened", self.device.name);
    }
}

/// A holder's registration. Dropping it lets go of the device; after the device was killed that is legal and does
/// nothing more.
#[derive(Debug)]
#[must_use = "the holder is forgotten when this is dropped"]
pub struct Registration {
    user: DaxUse,
    id: HolderId,
}

impl Registration {
    /// The device that is held.
    pub fn device(&self) -> &Arc<DaxDevice> {
        &self.user
    }

    /// For a holder that registers first and gets ready then, as a mount does: calls `ready`, by which the holder says to
    /// itself that it is ready to be told, unless the device's removal has begun. Both are decided under the lock under
    /// which a removal begins. So either the holder is ready when it is told, or it hears here that it is too late: none
    /// answers "not ready", for good, and gets ready afterwards. `ready` must not call the device.
    ///
    /// # Errors
    /// [`DaxError::NoSuchDevice`] once the removal has begun; `ready` has not been called then.
    pub fn confirm(&self, ready: impl FnOnce()) -> Result<(), DaxError> {
        let list = self.user.holders.lock();
        let alive = self.user.state.load(Ordering::Acquire) == ALIVE || Mutant::ReadyNotRechecked.is_on();
        let _list = (!Mutant::ReadyUnlocked.is_on()).then_some(list);
        if alive {
            ready();
            return Ok(());
        }
        Err(DaxError::NoSuchDevice)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // Taken out first and dropped after the lock is free again.
        let holder = self.user.holders.lock().remove(self.id);
        if holder.is_some() {
            self.user.ledger.charge(Kind::Holders, -1);
        }
    }
}

/// The owner's handle on a device that has not been killed. Dropping it kills the device.
#[derive(Debug)]
pub struct Live {
    /// `None` once it has been killed.
    device: Option<Arc<DaxDevice>>,
}

impl Live {
    /// The device.
    ///
    /// # Panics
    /// Never: only the killer, which takes the handle away, leaves it empty.
    pub fn device(&self) -> &Arc<DaxDevice> {
        self.device.as_ref().expect("a live handle has its device")
    }
    pub(crate) fn take(mut self) -> Option<Arc<DaxDevice>> {
        self.device.take()
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        if let Some(device) = self.device.take() {
            drop(kill::kill(device, NotifyFlags::PRE_REMOVE, &mut core::hint::spin_loop, &mut |_, _| ()));
        }
    }
}

/// The owner's handle on a device that has been killed. The device's name and range are free again when it is
/// dropped; users that still have it open see a dead device.
#[derive(Debug)]
pub struct Dead {
    device: Arc<DaxDevice>,
}

impl Dead {
    pub(crate) fn new(device: Arc<DaxDevice>) -> Self {
        Self { device }
    }
    /// The device.
    pub fn device(&self) -> &Arc<DaxDevice> {
        &self.device
    }
    /// Has nobody opened it, or has everybody closed it again? Nobody can open it any more, so a yes is final.
    /// The question does not exist for a live device, where the answer would be worth nothing.
    pub fn is_idle(&self) -> bool {
        self.device.nr_users() == 0
    }
}

impl Drop for Dead {
    fn drop(&mut self) {
        self.device.ledger.charge(Kind::DaxDevices, -1);
    }
}

/// Is there nothing to fail? No DAX device at all counts as idle.
pub fn is_idle(dead: Option<&Dead>) -> bool {
    dead.is_none_or(Dead::is_idle)
}
