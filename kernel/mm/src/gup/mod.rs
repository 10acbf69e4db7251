//! Get user pages: from an address range of a task to pinned frames, without a lock where possible.
//!
//! # Protocol (gup-fast)
//! Interrupts are off from the first load of a table entry to the last re-check, and a shootdown completes only
//! when every CPU that has the address space loaded has handled its interrupt. So nothing that this walk can reach
//! is freed while it walks: not the table pages, not the page metadata (G2, G3). What may change is *what the entry
//! says*, and for that the walk looks twice (G1):
//!
//! ```text
//!  gup-fast (interrupts off)                     zap (address space locked)
//!  1 read the entry above, and the entry         a clear the entry (or the entry above)
//!  2 page = lookup(pfn)                          b shoot down: waits for 1-5
//!  3 take a reference, never from zero           c drop the mapping's reference
//!  4 re-read the entry and the entry above       d wait until the device has no references
//!  5 changed? drop the reference, go slow        e free the metadata
//! ```
//!
//! What makes this safe is *b*: *c* comes after it, so the mapping's own reference keeps the page alive from 1 to 5,
//! and a reference that 5 keeps is counted before *d* looks. What 4 adds is that a page which was unmapped before it is
//! not handed out: if it sees no change, leaf and table were still linked at 3. (A table unlinked two or more levels
//! up it cannot see; then *b* alone protects.) The walk takes **no** reference on the device's page map: the page's own
//! count is what the removal waits for.
//!
//! The slow path holds the address space's lock, faults in what is missing and is where the liveness of the device
//! is checked (G4).
//!
//! # Who owns a pin
//! A pin counts base pages: 512 pages pinned through one 2 MiB leaf are 512 pins, taken by one atomic addition and
//! given back by one [`unpin`] of the same run, or page by page. Every page got is put exactly once (G8). A folio's count
//! has room for 2³¹−1 references; who asks for more is refused ([`GupError::TooManyRefs`]), and takes none.
//!
//! # How long interrupts are off
//! A shootdown waits for this CPU until they are on again. So a walk takes at most [`IRQS_OFF_STEPS`] steps (leaves, and
//! frames that are written into an array) before it turns them on, lets in what waits, and begins anew from the root. Nothing
//! is carried over but the address: what was pinned so far is held by its references.
//!
//! Linux: `mm/gup.c`.

mod error;
mod far;
mod fast;
mod flags;
mod recheck;
mod sink;

pub use self::error::GupError;
pub use self::flags::GupFlags;
pub use self::sink::{PageArray, PinSink, RangeArray};
use crate::addr::{ENTRIES, PAGE_SHIFT, PAGE_SIZE, PageSize, Pfn, VirtAddr};
use crate::context::MmContext;
use crate::entry::Entry;
use crate::machine::Machine;
use crate::meta::{GetError, Page};
use crate::mutant::Mutant;
use crate::pagemap::LongTermPin;
use crate::space::AddressSpace;
use crate::table::Found;
use crate::trace::{Kind, Mark, mark};
use crate::vma::{Access, FaultError, Vmas};

/// Most steps that a lockless walk takes with interrupts off: a leaf is one, whatever its size, and where results are
/// frames one by one each frame is one. As many as a page table has entries.
pub const IRQS_OFF_STEPS: u64 = ENTRIES as u64;

/// What the lockless walk needs to know.
///
/// `PIN`: pins, not plain references. Known when it is built, so that the walk does not ask for each page.
struct Walk<'s, M: Machine, const PIN: bool> {
    space: &'s AddressSpace<M>,
    request: PinRequest,
}

/// What the fast path has left over is pinned with the lock.
struct SlowPath<'s, M: Machine, const PIN: bool> {
    walk: Walk<'s, M, PIN>,
    end: u64,
    flags: GupFlags,
}

/// What the fast path asks of a page: the flags as it needs them. One number, so that it takes one register: the lowest
/// byte is the flags that the entry must have.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct PinRequest(u32);

impl PinRequest {
    /// A pin without bound.
    const LONG_TERM: u32 = Self::above_rights(GupFlags::LONGTERM);
    /// … that is given back when it is asked for.
    const REVOCABLE: u32 = Self::above_rights(GupFlags::REVOCABLE);

    /// These flags, where the entry's rights leave room.
    #[inline(always)]
    const fn above_rights(flags: GupFlags) -> u32 {
        flags.bits() << 8
    }

    #[inline(always)]
    fn new(flags: GupFlags) -> Self {
        let write = flags.contains(GupFlags::WRITE) && !Mutant::WriteThroughReadOnly.is_on();
        // Both at once, without a branch.
        Self(
            u32::from(Entry::user_rights(write)) | Self::above_rights(flags.intersection(GupFlags::LONGTERM_REVOCABLE)),
        )
    }
    #[inline(always)]
    fn rights(self) -> u8 {
        self.0 as u8
    }
    #[inline(always)]
    fn long_term(self) -> bool {
        self.0 & Self::LONG_TERM != 0
    }
    #[inline(always)]
    fn revocable(self) -> bool {
        self.0 & Self::REVOCABLE != 0
    }
}

/// What a lockless walk for pages in a row came to.
enum FastResult {
    /// They are pinned, from this frame on.
    Pinned(Pfn),
    /// They cannot be had so.
    Miss,
    /// The same, and the references on them are still to be given back: their entry has changed. They are ours, so
    /// that can be done with interrupts on.
    Changed(Pfn),
}

impl FastResult {
    /// The first frame, where the pages are pinned. References that are not to be kept are given back.
    #[inline(always)]
    fn pinned_or_give_back<M: Machine>(self, space: &AddressSpace<M>, pin: bool, nr_pages: u64) -> Option<Pfn> {
        match self {
            Self::Pinned(pfn) => Some(pfn),
            Self::Miss => None,
            Self::Changed(pfn) => {
                give_back(space.mm(), pin, pfn, nr_pages);
                None
            }
        }
    }
}

/// Takes a plain reference on each page, for a short look (Linux: `get_user_pages_fast`). Otherwise as
/// [`pin_user_pages_fast`]; give the pages back with [`put_page`].
///
/// # Errors
/// As [`pin_user_pages_fast`].
#[inline(always)]
pub fn get_user_pages_fast<M: Machine, S: PinSink>(
    space: &AddressSpace<M>,
    start: VirtAddr,
    nr_pages: u64,
    flags: GupFlags,
    sink: &mut S,
) -> Result<u64, GupError> {
    gup::<M, S, false>(space, start, nr_pages, flags, sink)
}

/// Pins `nr_pages` pages from `start` (rounded down to a page) on, for access to their data (DMA). Answers how many
/// were pinned, at least one. An error after a part was pinned gives that part (G5). Who wants all or nothing takes
/// [`PinnedPages`](crate::pins::PinnedPages).
///
/// May be called with the address space loaded or not; only where it is loaded on this CPU is there a fast path.
///
/// ```
/// use mm::addr::{PAGE_SIZE, Pfn, VirtAddr};
/// use testkit::emu::{self, Frames, Task};
/// use mm::entry::Prot;
/// use mm::gup::{GupFlags, PageArray, pin_user_pages_fast, unpin};
/// use mm::space::AddressSpace;
///
/// let mm = emu::context(1);
/// let device = Frames::new(&mm, Pfn::new(0x10_0000), 8);
/// let (space, va) = (AddressSpace::new(&mm, "task").unwrap(), VirtAddr::new(0x40_0000_0000));
/// space.map(va, 8 * PAGE_SIZE, Prot::USER_WRITE, &device.ops(), 0).unwrap();
/// let _task = Task::start(&space, 0);
///
/// let mut frames = [Pfn::new(0); 2];
/// let mut sink = PageArray::new(&mut frames);
/// assert_eq!(pin_user_pages_fast(&space, va, 2, GupFlags::WRITE, &mut sink), Ok(2));
/// assert_eq!(sink.as_slice(), [Pfn::new(0x10_0000), Pfn::new(0x10_0001)]);
///
/// // The pins outlive the mapping: a removal waits for them.
/// space.unmap(va, 8 * PAGE_SIZE).unwrap();
/// assert!(!device.map.is_drained());
/// unpin(&mm, frames[0], 2);
/// assert!(device.map.is_drained());
/// ```
///
/// # Errors
/// See [`GupError`]; nothing is pinned then.
///
/// Linux: `mm/gup.c`, `pin_user_pages_fast`.
#[inline(always)]
pub fn pin_user_pages_fast<M: Machine, S: PinSink>(
    space: &AddressSpace<M>,
    start: VirtAddr,
    nr_pages: u64,
    flags: GupFlags,
    sink: &mut S,
) -> Result<u64, GupError> {
    gup::<M, S, true>(space, start, nr_pages, flags, sink)
}

/// As [`pin_user_pages_fast`], for pins that are held without bound by somebody who gives them back when it is asked
/// to. Memory that does not tolerate even that is [`GupError::NotSupported`].
pub(crate) fn pin_user_pages_longterm<M: Machine, S: PinSink>(
    space: &AddressSpace<M>,
    start: VirtAddr,
    nr_pages: u64,
    flags: GupFlags,
    sink: &mut S,
) -> Result<u64, GupError> {
    gup::<M, S, true>(space, start, nr_pages, flags | GupFlags::LONGTERM_REVOCABLE, sink)
}

/// Gives back pins: `nr_pages` pages in a row from `first` on, however they were pinned.
///
/// # Panics
/// A page that is not pinned (G8).
#[inline]
pub fn unpin<M: Machine>(mm: &MmContext<M>, first: Pfn, nr_pages: u64) {
    mark!(mm.machine, Mark::pages(Kind::Unpinned, first, nr_pages));
    mm.meta.unpin_run(first, nr_pages);
}

/// Gives back plain references of [`get_user_pages_fast`].
///
/// # Panics
/// A page without a reference (G8).
#[inline]
pub fn put_page<M: Machine>(mm: &MmContext<M>, first: Pfn, nr_pages: u64) {
    mark!(mm.machine, Mark::pages(Kind::Unpinned, first, nr_pages));
    if nr_pages == 1 { mm.meta.put(first, 1) } else { mm.meta.put_run(first, nr_pages, PageSize::Size4K) }
}

/// Part of its caller, who mostly knows the flags and whether it is about one page; a lockless walk is all it costs then.
#[inline(always)]
fn gup<M: Machine, S: PinSink, const PIN: bool>(
    space: &AddressSpace<M>,
    start: VirtAddr,
    nr_pages: u64,
    flags: GupFlags,
    sink: &mut S,
) -> Result<u64, GupError> {
    let machine = &space.mm().machine;
    mark!(machine, Mark::new(Kind::GupBegun, start.as_u64(), nr_pages));
    let done = gup_untold::<M, S, PIN>(space, start, nr_pages, flags, sink);
    mark!(machine, Mark::new(Kind::GupDone, *done.as_ref().unwrap_or(&0), 0));
    done
}

/// [`gup`] itself.
#[inline(always)]
fn gup_untold<M: Machine, S: PinSink, const PIN: bool>(
    space: &AddressSpace<M>,
    start: VirtAddr,
    nr_pages: u64,
    flags: GupFlags,
    sink: &mut S,
) -> Result<u64, GupError> {
    let request = PinRequest::new(flags);
    if nr_pages == 1 {
        let walk = Walk::<M, PIN> { space, request };
        let irq = walk.enter();
        // The walk does not ask where in the page the address is: who goes slow rounds it down. Interrupts come back on in
        // each way by itself, so that nobody need remember meanwhile which one it was.
        return match walk.page(&irq, start.as_u64()) {
            FastResult::Pinned(pfn) => {
                drop(irq);
                // Whether there is room is asked when the page is there: who asks for a page has room for it.
                if sink.push_one(pfn) {
                    return Ok(1);
                }
                give_back_and_fall_back::<M, S, PIN>(space, pfn, start, flags, sink)
            }
            FastResult::Changed(pfn) => {
                drop(irq);
                give_back_and_fall_back::<M, S, PIN>(space, pfn, start, flags, sink)
            }
            FastResult::Miss => {
                drop(irq);
                fall_back::<M, S, PIN>(space, start, flags, sink)
            }
        };
    }
    let start = start.align_down(PAGE_SIZE).as_u64();
    if nr_pages <= sink.room()
        && let Some(pfn) =
            fast_leaf::<M, PIN>(space, start, nr_pages, request).pinned_or_give_back(space, PIN, nr_pages)
    {
        sink.push(pfn, nr_pages);
        return Ok(nr_pages);
    }
    gup_many::<M, S, PIN>(space, start, nr_pages, flags, sink)
}

/// One page that could not be had at once. Apart, and marked as rare, so that what it needs is put aside only here.
#[cold]
#[inline(never)]
fn fall_back<M: Machine, S: PinSink, const PIN: bool>(
    space: &AddressSpace<M>,
    start: VirtAddr,
    flags: GupFlags,
    sink: &mut S,
) -> Result<u64, GupError> {
    gup_many::<M, S, PIN>(space, start.align_down(PAGE_SIZE).as_u64(), 1, flags, sink)
}

/// The same after a reference was taken on `pfn` that is not to be kept: the entry has changed, or there is no room for the
/// answer.
#[cold]
#[inline(never)]
fn give_back_and_fall_back<M: Machine, S: PinSink, const PIN: bool>(
    space: &AddressSpace<M>,
    pfn: Pfn,
    start: VirtAddr,
    flags: GupFlags,
    sink: &mut S,
) -> Result<u64, GupError> {
    give_back(space.mm(), PIN, pfn, 1);
    gup_many::<M, S, PIN>(space, start.align_down(PAGE_SIZE).as_u64(), 1, flags, sink)
}

/// All of `nr_pages` pages from `start` on without a lock, where one huge leaf maps them.
#[inline(never)]
fn fast_leaf<M: Machine, const PIN: bool>(
    space: &AddressSpace<M>,
    start: u64,
    nr_pages: u64,
    request: PinRequest,
) -> FastResult {
    Walk::<M, PIN> { space, request }.huge_leaf(start, nr_pages)
}

/// Any number of pages.
#[inline(never)]
fn gup_many<M: Machine, S: PinSink, const PIN: bool>(
    space: &AddressSpace<M>,
    start: u64,
    nr_pages: u64,
    flags: GupFlags,
    sink: &mut S,
) -> Result<u64, GupError> {
    if nr_pages == 0 || sink.room() == 0 {
        return Err(if nr_pages == 0 { GupError::NoPages } else { GupError::NoRoom });
    }
    let Some(end) = end_of(start, nr_pages, space.user_end().as_u64()) else {
        return Err(GupError::BadRange);
    };
    let walk = Walk::<M, PIN> { space, request: PinRequest::new(flags) };
    let at = walk.pages(start, end, sink);
    let slow = SlowPath { walk, end, flags };
    if at == end { Ok(nr_pages) } else { slow.pin_rest(start, at, sink) }
}

/// Are `nr_pages` pages from `start` on below `user_end`? Nothing can wrap here.
#[inline(always)]
fn is_below(start: u64, nr_pages: u64, user_end: u64) -> bool {
    start <= user_end && nr_pages <= (user_end - start) >> PAGE_SHIFT
}

/// One past the last byte of `nr_pages` pages from `start` on, where all of them are below `user_end`.
fn end_of(start: u64, nr_pages: u64, user_end: u64) -> Option<u64> {
    if Mutant::WrappedRange.is_on() {
        return Some(start.wrapping_add(nr_pages << PAGE_SHIFT)).filter(|&end| end <= user_end);
    }
    is_below(start, nr_pages, user_end).then(|| start + (nr_pages << PAGE_SHIFT))
}

impl<M: Machine, const PIN: bool> Walk<'_, M, PIN> {
    #[inline(always)]
    fn mm(&self) -> &MmContext<M> {
        self.space.mm()
    }

    #[inline(always)]
    fn give_back(&self, pfn: Pfn, nr_pages: u64) {
        give_back(self.mm(), PIN, pfn, nr_pages);
    }

    /// Takes references on a page that was found.
    #[inline(always)]
    fn take(&self, page: &Page, nr_pages: u32) -> Result<(), GetError> {
        if PIN { page.try_pin(nr_pages) } else { page.try_get(nr_pages) }
    }
}

impl<M: Machine, const PIN: bool> SlowPath<'_, M, PIN> {
    /// What the fast path has left over, from `at` on. Kept apart, so that what is rare costs the fast path nothing.
    #[cold]
    #[inline(never)]
    fn pin_rest<S: PinSink>(&self, start: u64, at: u64, sink: &mut S) -> Result<u64, GupError> {
        let mut at = at;
        let done = |at: u64| (at - start) >> PAGE_SHIFT;
        if self.flags.contains(GupFlags::FAST_ONLY) || sink.room() == 0 {
            return if at > start { Ok(done(at)) } else { Err(GupError::NotPresent(VirtAddr::new(start))) };
        }
        match self.pin(&mut at, sink) {
            Err(error) if at == start || Mutant::PartialSuccessLost.is_on() => Err(error),
            _ => Ok(done(at)),
        }
    }

    /// The path with the lock. `at` moves past what was pinned. Waits where a fault is turned away, as the task would
    /// that runs into it again and again: for the end of a freeze, or of a layout's breaking.
    fn pin<S: PinSink>(&self, at: &mut u64, sink: &mut S) -> Result<(), GupError> {
        while *at < self.end && sink.room() > 0 {
            if !self.pin_locked(at, sink)? {
                // The address space is not locked meanwhile: whoever takes its pages away needs it.
                self.walk.mm().machine.relax();
            }
        }
        Ok(())
    }

    /// `false` where a fault was turned away.
    fn pin_locked<S: PinSink>(&self, at: &mut u64, sink: &mut S) -> Result<bool, GupError> {
        let vmas = self.walk.space.read();
        while *at < self.end && sink.room() > 0 {
            let va = VirtAddr::new(*at);
            let Some(found) = self.fault_in(&vmas, va)? else { return Ok(false) };
            let left_in_leaf = found.size.bytes() - (*at & (found.size.bytes() - 1));
            let nr_pages = (left_in_leaf.min(self.end - *at) >> PAGE_SHIFT).min(sink.room());
            let pfn = found.pfn_at(va);
            // The address space is locked, so the leaf stays and with it the mapping's reference.
            let folio = self.walk.mm().meta.owned(pfn, "pin");
            match self.walk.take(folio.page, nr_pages as u32) {
                Ok(()) => {
                    mark!(self.walk.mm().machine, Mark::pages(Kind::PinnedSlow, pfn, nr_pages));
                }
                Err(GetError::Overflow) => return Err(GupError::TooManyRefs(va)),
                Err(GetError::Zero) => panic!("page {pfn}: mapped at {va} with a reference count of zero"),
            }
            sink.push(pfn, nr_pages);
            *at += nr_pages << PAGE_SHIFT;
        }
        Ok(true)
    }

    /// The leaf at `va`, with the rights that are wanted; `None` where the fault was turned away.
    fn fault_in(&self, vmas: &Vmas<M>, va: VirtAddr) -> Result<Option<Found>, GupError> {
        let vma = vmas.find(va).ok_or(GupError::NotMapped(va))?;
        let write = self.flags.contains(GupFlags::WRITE);
        let access = if write { Access::Write } else { Access::Read };
        if !vma.allows(access) {
            return Err(GupError::AccessDenied(va));
        }
        if self.flags.contains(GupFlags::LONGTERM) {
            match vma.ops.kind().long_term() {
                LongTermPin::Refused => return Err(GupError::NotSupported(va)),
                LongTermPin::Revocable if !self.flags.contains(GupFlags::REVOCABLE) => {
                    return Err(GupError::RevocableOnly(va));
                }
                LongTermPin::Revocable => {}
            }
        }
        let usable = |found: &Found| found.entry.is_user() && (!write || found.entry.is_writable());
        if let Some(found) = self.walk.space.table().walk(va).filter(usable) {
            return Ok(Some(found));
        }
        if self.flags.contains(GupFlags::NO_FAULT) {
            return Err(GupError::NotPresent(va));
        }
        self.walk.space.fault_locked(vmas, va, access).map_err(|error| match error {
            FaultError::NotMapped(va) => GupError::NotMapped(va),
            FaultError::AccessDenied(va) => GupError::AccessDenied(va),
            FaultError::SigBus { addr, cause, .. } => GupError::SigBus(addr, cause),
            FaultError::TooManyRefs(va) => GupError::TooManyRefs(va),
            FaultError::OutOfMemory => GupError::OutOfMemory,
        })?;
        // The lock is held shared since before the fault; and yet, whoever takes a file's pages away may have come since.
        Ok(self.walk.space.table().walk(va).filter(usable))
    }
}

/// Apart, and with what it needs as numbers: so that no [`SlowPath`] has to be in memory.
#[cold]
#[inline(never)]
fn give_back<M: Machine>(mm: &MmContext<M>, pin: bool, pfn: Pfn, nr_pages: u64) {
    if pin { unpin(mm, pfn, nr_pages) } else { put_page(mm, pfn, nr_pages) }
}
