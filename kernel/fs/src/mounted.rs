//! A file system as the rest of the kernel meets it: a device that may go away, tasks that map its files, freezes, and
//! the end.
//!
//! [`Mounted`] is what the rest of the kernel sees. Each operation goes through the same doors, in this order:
//! not shut down → not frozen ([`WriteGuard`]) → the device is alive → the inode → the metadata. Waiting (for a thaw,
//! for pins) is done before the first of them, with nothing held; see [`lock_order`](crate::lock_order).
//!
//! Linux: `fs/super.c`, `fs/xfs/xfs_super.c`.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use dax::device::{DaxDevice, DaxError, LiveGuard, Registration};
use dax::range::ByteSpan;
use mm::addr::{Pfn, PfnRange, VirtRange};
use mm::context::MmContext;
use mm::machine::Machine;
use mm::space::{AddressSpace, SigBusCause};
use mm::sync::{Arc, AtomicU32, AtomicU64, Mutex, Ordering};

use crate::error::{FsError, ShutdownReason};
use crate::format::BLOCK_SIZE;
use crate::freeze::{Freeze, FreezeHolder, WriteGuard};
use crate::inode::Inode;
use crate::lock_order::{Context, LockOrder, OrderedGuard, OrderedLock};
use crate::mutant::{Faults, Mutant};
use crate::node::Piece;
use crate::notify::NotifyReport;
use crate::pmem::Pmem;
use crate::volume::{StatFs, Volume};

/// What the file system needs of the kernel around it.
pub trait Host<M: Machine>: Send + Sync {
    /// A line for the console, without its end.
    fn line(&self, line: fmt::Arguments<'_>);
    /// The tasks of `space` have lost `range` and get SIGBUS.
    fn lost(&self, space: &Arc<AddressSpace<M>>, range: VirtRange, cause: SigBusCause);
    /// The address space of the task in whose name this CPU runs, by number: the one that met a failure.
    fn current_space(&self) -> Option<u64> {
        None
    }
    /// Who has pinned the page, where and when, if that is known.
    fn pinned_by(&self, pfn: Pfn) -> Option<String> {
        let _ = pfn;
        None
    }
}

/// What is mounted, and how.
pub struct Source<M: Machine> {
    /// Its name in messages.
    pub name: String,
    /// The device.
    pub device: Arc<DaxDevice>,
    /// The file system's bytes of it; `None`: all.
    pub part: Option<ByteSpan>,
    /// The same bytes, as persistent memory. Fails with [`FsError::DeviceGone`] once the device is dead.
    pub pmem: Arc<dyn Pmem>,
    /// The journal's device and its bytes, if it is another one.
    pub log: Option<(Arc<DaxDevice>, Arc<dyn Pmem>)>,
    /// The kernel.
    pub host: Arc<dyn Host<M>>,
    /// A freeze gives up after waiting this long for changes under way.
    pub freeze_timeout_ns: u64,
    /// A first complaint comes after waiting this long for a pin; each further one after twice as long.
    pub first_complaint_ns: u64,
}

/// Usual value for [`Source::freeze_timeout_ns`]: ten seconds. A change ends by itself, so that only a host that does not
/// run one of the CPUs makes a freeze wait for long.
pub const FREEZE_TIMEOUT_NS: u64 = 10_000_000_000;
/// Usual value for [`Source::first_complaint_ns`]: ten milliseconds.
pub const FIRST_COMPLAINT_NS: u64 = 10_000_000;

/// A mounted file system.
pub struct Mounted<M: Machine> {
    pub(crate) mm: Arc<MmContext<M>>,
    pub(crate) source: Source<M>,
    pub(crate) part: ByteSpan,
    pub(crate) freeze: Freeze,
    /// `None` until it is mounted, and after it was unmounted.
    pub(crate) volume: OrderedLock<Option<Volume>>,
    /// 1 once it is mounted.
    pub(crate) born: AtomicU32,
    pub(crate) inodes: OrderedLock<BTreeMap<u64, Arc<Inode<M>>>>,
    /// Inodes whose last handle was dropped, perhaps with an address space locked: [`reap`](Self::reap) sees to them.
    pub(crate) let_go: Mutex<Vec<u64>>,
    pub(crate) registrations: Mutex<Vec<Registration>>,
    /// See [`folio_looks`](Self::folio_looks).
    pub(crate) folio_looks: AtomicU64,
    pub(crate) last_notification: Mutex<Option<NotifyReport>>,
    /// See [`last_complaint`](Self::last_complaint).
    pub(crate) last_complaint: Mutex<Option<String>>,
    pub(crate) faults: Faults,
}

/// The errors of a DAX device, as ours.
pub(crate) fn from_dax(error: DaxError) -> FsError {
    match error {
        DaxError::NotSupported => FsError::NotSupported,
        DaxError::NoSuchDevice => FsError::DeviceGone,
        DaxError::Busy => FsError::Busy,
        DaxError::Misaligned { .. } | DaxError::OutOfRange { .. } => FsError::Invalid,
    }
}

impl<M: Machine> Mounted<M> {
    /// Its name in messages.
    pub fn name(&self) -> &str {
        &self.source.name
    }
    /// The device.
    pub fn device(&self) -> &Arc<DaxDevice> {
        &self.source.device
    }
    /// The machine, page metadata and mappings that it works with.
    pub fn mm(&self) -> &Arc<MmContext<M>> {
        &self.mm
    }
    /// Is it mounted, all of it?
    pub(crate) fn is_born(&self) -> bool {
        self.born.load(Ordering::Acquire) == 1
    }
    /// Why it was shut down, if it was.
    pub fn shutdown_reason(&self) -> Option<ShutdownReason> {
        self.freeze.shutdown()
    }
    /// How often the kernel and the user have frozen it.
    pub fn freeze_holders(&self) -> (u32, u32) {
        self.freeze.holders()
    }
    /// At how many places of the page metadata it has looked so far, to find out who holds blocks that are to be freed.
    pub fn folio_looks(&self) -> u64 {
        self.folio_looks.load(Ordering::Relaxed)
    }
    /// The latest line about a pin that is waited for.
    pub fn last_complaint(&self) -> Option<String> {
        self.last_complaint.lock().clone()
    }
    /// What the latest failure notification met.
    pub fn last_notification(&self) -> Option<NotifyReport> {
        self.last_notification.lock().clone()
    }

    /// Proof that the device is alive.
    pub(crate) fn live(&self) -> Result<LiveGuard<'_>, FsError> {
        self.source.device.read_lock().map_err(from_dax)
    }

    /// The same for whoever writes: of the journal's device too, where it is another one. Where only that has gone
    /// nothing can be changed any more, and the file system is shut down.
    pub(crate) fn live_both(&self) -> Result<(LiveGuard<'_>, Option<LiveGuard<'_>>), FsError> {
        let data = self.live()?;
        let log = self.source.log.as_ref().map(|(device, _)| device.read_lock()).transpose();
        match log {
            Ok(log) => Ok((data, log)),
            Err(error) => {
                self.source.host.line(format_args!("fs {}: the journal's device: {error}", self.name()));
                self.shut_down(ShutdownReason::MetadataIo);
                Err(FsError::ShutDown(ShutdownReason::MetadataIo))
            }
        }
    }

    /// The metadata.
    pub(crate) fn volume<'l>(&'l self, context: &'l Context) -> Result<VolumeGuard<'l>, FsError> {
        let mut guard = context.lock(&self.mm.machine, LockOrder::Volume, &self.volume);
        match &mut *guard {
            Some(volume) => volume.set_time(self.mm.machine.now_ns()),
            None => return Err(FsError::ShutDown(ShutdownReason::ForcedUnmount)),
        }
        Ok(VolumeGuard(guard))
    }

    /// Reads under the doors.
    pub(crate) fn read_with<R>(
        &self,
        context: &Context,
        work: impl FnOnce(&mut Volume) -> Result<R, FsError>,
    ) -> Result<R, FsError> {
        self.freeze.check()?;
        let _live = self.live()?;
        let result = work(&mut *self.volume(context)?);
        self.noted(result)
    }

    /// Changes under the doors.
    pub(crate) fn write_with<R>(
        &self,
        context: &Context,
        work: impl FnOnce(&mut Volume) -> Result<R, FsError>,
    ) -> Result<R, FsError> {
        let _write = self.begin_write(context)?;
        self.change_with(context, work)
    }

    /// As [`write_with`](Self::write_with), for one who has begun to write.
    pub(crate) fn change_with<R>(
        &self,
        context: &Context,
        work: impl FnOnce(&mut Volume) -> Result<R, FsError>,
    ) -> Result<R, FsError> {
        let _live = self.live_both()?;
        let mut volume = self.volume(context)?;
        let result = work(&mut volume);
        let broken = volume.broken;
        drop(volume);
        if let Some(reason) = broken {
            self.shut_down(reason);
        }
        self.noted(result)
    }

    /// Damage that was found ends the file system.
    pub(crate) fn noted<R>(&self, result: Result<R, FsError>) -> Result<R, FsError> {
        if let Err(FsError::Damaged(damage)) = &result {
            self.source.host.line(format_args!("fs {}: damaged: {damage}", self.name()));
            self.shut_down(ShutdownReason::Corrupt);
        }
        result
    }

    /// Begins a change; no freeze completes until the guard is dropped. Waits for a thaw.
    ///
    /// # Errors
    /// [`FsError::ShutDown`].
    pub fn begin_write(&self, context: &Context) -> Result<WriteGuard<'_>, FsError> {
        self.freeze.write(context, &self.mm.machine)
    }

    /// Stops the file system for good: every later operation fails with the reason, every later fault is a SIGBUS.
    pub fn shut_down(&self, reason: ShutdownReason) {
        if self.end(reason) {
            self.say_end(reason);
        }
    }

    /// As [`shut_down`](Self::shut_down), and says nothing; `false` where it was shut down before.
    pub(crate) fn end(&self, reason: ShutdownReason) -> bool {
        self.freeze.shut_down(reason)
    }

    /// Says that it was shut down.
    pub(crate) fn say_end(&self, reason: ShutdownReason) {
        self.source.host.line(format_args!("fs {}: shut down: {reason}", self.name()));
    }

    // ---- freezing ----

    /// Freezes: when it returns no change is under way, and the medium is as after an unmount.
    ///
    /// # Errors
    /// [`FsError::Busy`] where a change under way did not end in time: it is not frozen then. Others come from bringing
    /// the medium to rest: it is frozen all the same, and to be thawed.
    pub fn freeze(&self, holder: FreezeHolder) -> Result<(), FreezeError> {
        let _turn = self.freeze.turn(&self.mm.machine);
        let first = self
            .freeze
            .freeze(holder, &self.mm.machine, self.source.freeze_timeout_ns)
            .map_err(FreezeError::NotFrozen)?;
        if first && self.freeze.shutdown().is_none() {
            let context = Context::new();
            let rest = self.live_both().and_then(|_live| self.volume(&context)?.quiesce());
            rest.map_err(FreezeError::NotAtRest)?;
        }
        Ok(())
    }

    /// Takes one freeze of `holder` back.
    ///
    /// # Errors
    /// [`FsError::Invalid`] where `holder` has not frozen it; those of the medium.
    pub fn thaw(&self, holder: FreezeHolder) -> Result<(), FsError> {
        let overlap = self.faults.has(Mutant::ThawsOverlap);
        let _turn = (!overlap).then(|| self.freeze.turn(&self.mm.machine));
        let mut resumed = Ok(());
        let is_last = self.freeze.is_last(holder);
        if overlap {
            self.mm.machine.relax();
        }
        if is_last && self.freeze.shutdown().is_none() {
            let context = Context::new();
            resumed = self.live_both().and_then(|_live| self.volume(&context)?.resume());
        }
        self.freeze.thaw(holder)?;
        resumed
    }

    /// Freezes for the time of the guard.
    ///
    /// # Errors
    /// As [`freeze`](Self::freeze); where it is frozen but not at rest, the guard comes with the error.
    pub(crate) fn freeze_for_removal(&self) -> (Option<FrozenForRemoval<'_, M>>, Option<FsError>) {
        match self.freeze(FreezeHolder::Kernel) {
            Ok(()) => (Some(FrozenForRemoval { mounted: self }), None),
            Err(FreezeError::NotAtRest(error)) => (Some(FrozenForRemoval { mounted: self }), Some(error)),
            Err(FreezeError::NotFrozen(error)) => (None, Some(error)),
        }
    }

    // ---- places ----

    /// The frames of a run of a file: as many as lie in a row.
    pub(crate) fn frames(&self, live: &LiveGuard<'_>, first: u64, nr: u64) -> Result<PfnRange, FsError> {
        live.direct_access(self.part.first() + first * BLOCK_SIZE, nr * BLOCK_SIZE).map_err(from_dax)
    }

    /// All frames of the runs, in rows, rising.
    pub(crate) fn rows(&self, live: &LiveGuard<'_>, runs: &[Piece]) -> Result<Vec<PfnRange>, FsError> {
        let mut rows = Vec::new();
        for run in runs {
            let (mut first, mut left) = (run.physical.ok_or(FsError::Invalid)?, run.len);
            while left > 0 {
                let row = self.frames(live, first, left)?;
                (first, left) = (first + row.nr_pages(), left - row.nr_pages());
                rows.push(row);
            }
        }
        rows.sort_unstable_by_key(|row| row.start());
        Ok(rows)
    }

    /// Sizes; see [`Volume::statfs`]. Damage that it meets shuts nothing down: it was no part of what was asked.
    ///
    /// # Errors
    /// [`FsError::ShutDown`], [`FsError::DeviceGone`].
    pub fn statfs(&self) -> Result<StatFs, FsError> {
        self.read_with(&Context::new(), Volume::statfs)
    }
}

/// How a freeze failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FreezeError {
    /// It is not frozen.
    NotFrozen(FsError),
    /// It is frozen, and what is on the medium is not at rest: the next mount recovers.
    NotAtRest(FsError),
}

/// The metadata, locked.
pub(crate) struct VolumeGuard<'l>(OrderedGuard<'l, Option<Volume>>);

impl core::ops::Deref for VolumeGuard<'_> {
    type Target = Volume;
    fn deref(&self) -> &Volume {
        match &*self.0 {
            Some(volume) => volume,
            None => unreachable!("looked at when the guard was made, and locked since"),
        }
    }
}

impl core::ops::DerefMut for VolumeGuard<'_> {
    fn deref_mut(&mut self) -> &mut Volume {
        match &mut *self.0 {
            Some(volume) => volume,
            None => unreachable!("looked at when the guard was made, and locked since"),
        }
    }
}

/// Frozen by the kernel because the device leaves. Dropping it thaws, and lifts what a user had frozen: there will be
/// no device on which a thaw could be asked for.
pub(crate) struct FrozenForRemoval<'m, M: Machine> {
    mounted: &'m Mounted<M>,
}

impl<M: Machine> Drop for FrozenForRemoval<'_, M> {
    fn drop(&mut self) {
        let mounted = self.mounted;
        if let Err(error) = mounted.thaw(FreezeHolder::Kernel) {
            let name = mounted.name();
            mounted.source.host.line(format_args!("fs {name}: EMERGENCY: still frozen after notification: {error}"));
        }
        let lifts = !mounted.faults.has(Mutant::UserFreezeStays);
        while lifts && mounted.freeze.holders().1 > 0 && mounted.thaw(FreezeHolder::User).is_ok() {}
    }
}
