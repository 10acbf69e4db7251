//! The beginning and the end of a mount: who holds the device, and when.
//!
//! # Against a removal
//! ```text
//!  mount                                       removal (dax::kill)
//!  1 register as the device's holder           a the device is dying: no holder is let in any more
//!  2 read the medium                           b tell the holders: not born, an I/O error
//!  3 confirm: is the device dying? give up     c the device is dead
//! ```
//! 3 and a are decided under the lock of the device's holders: the mount is born before a, and then b finds it, or it is
//! not born at all. Were it born after b, its tasks could map pages until c, and its holder would have been told already.
//! Model: `dax/tests/loom_holder.rs`.
//!
//! An unmount looks whether a file is open, and ends the metadata, with the table of inodes locked: who opens a file is seen
//! or fails.

use alloc::collections::BTreeMap;
use alloc::string::ToString;
use alloc::vec::Vec;

use dax::device::LiveGuard;
use dax::holder::{Holder, Role};
use dax::range::ByteSpan;
use mm::addr::PAGE_SIZE;
use mm::context::MmContext;
use mm::machine::Machine;
use mm::sync::{Arc, AtomicU32, AtomicU64, Mutex, Ordering, Weak};

use crate::error::{FsError, ShutdownReason};
use crate::format::BLOCK_SIZE;
use crate::freeze::Freeze;
use crate::lock_order::{Context, LockOrder, OrderedLock};
use crate::mount::{MountOptions, mount};
use crate::mounted::{Mounted, Source, from_dax};
use crate::mutant::{Faults, Mutant};
use crate::node::Piece;
use crate::notify::{DataHolder, LogHolder};

impl<M: Machine> Mounted<M> {
    /// Mounts the file system and becomes the device's holder.
    ///
    /// # Errors
    /// [`FsError::Busy`] where the device has an owner, or pages of it are mapped or pinned; [`FsError::DeviceGone`], also where the removal of the device, or
    /// of the journal's, begins before the mount is done; and those of [`mount`].
    pub fn mount(mm: &Arc<MmContext<M>>, source: Source<M>) -> Result<Arc<Self>, FsError> {
        let whole = ByteSpan::from_len(0, source.device.size_bytes()).ok_or(FsError::TooSmall)?;
        let part = source.part.unwrap_or(whole);
        let fits = part.first().is_multiple_of(PAGE_SIZE) && part.last() <= whole.last();
        if !fits || part.len_bytes().is_none_or(|len| source.pmem.len_bytes() > len) {
            return Err(FsError::Invalid);
        }
        let mounted = Arc::new(Self {
            mm: Arc::clone(mm),
            part,
            freeze: Freeze::new(Faults::default()),
            volume: OrderedLock::new(None),
            born: AtomicU32::new(0),
            inodes: OrderedLock::new(BTreeMap::new()),
            let_go: Mutex::new(Vec::new()),
            registrations: Mutex::new(Vec::new()),
            folio_looks: AtomicU64::new(0),
            last_notification: Mutex::new(None),
            last_complaint: Mutex::new(None),
            faults: Faults::default(),
            source,
        });
        // First the hold, so that two do not mount one device; a notification that comes now finds nobody at home. Whether
        // one has come is asked at the end, by `confirm`.
        mounted.register()?;
        if let Err(error) = mounted.check_unused() {
            mounted.give_up();
            return Err(error);
        }
        let log = mounted.source.log.as_ref().map(|(_, pmem)| Arc::clone(pmem));
        let options = MountOptions { log, ..MountOptions::default() };
        let volume = mounted.live_both().and_then(|_live| mount(&mounted.source.pmem, &options));
        let born = volume.and_then(|volume| {
            if let Some(renewed) = volume.renewed() {
                mounted.source.host.line(format_args!("fs {}: {renewed}", mounted.source.name));
            }
            mounted.volume.set(Some(volume));
            mounted.confirm()
        });
        match born {
            Ok(()) => Ok(mounted),
            Err(error) => {
                mounted.give_up();
                Err(error)
            }
        }
    }

    /// Tasks can still map, or have pinned, blocks of a file system that was shut down and let go of. They would store to files
    /// of this one.
    fn check_unused(&self) -> Result<(), FsError> {
        let live = self.live_both()?;
        if self.is_held(&live.0)? { Err(FsError::Busy) } else { Ok(()) }
    }

    /// Is any page of the file system's part of the device mapped or pinned?
    fn is_held(&self, live: &LiveGuard<'_>) -> Result<bool, FsError> {
        let blocks = self.source.pmem.len_bytes() / BLOCK_SIZE;
        let all = Piece { logical: 0, len: blocks, physical: Some(0) };
        Ok(!self.held_folios(&self.rows(live, &[all])?).is_empty())
    }

    /// The mount is done, unless one of its devices leaves: that one's holder may have been told when it was too early for
    /// an answer, and is not told again.
    fn confirm(&self) -> Result<(), FsError> {
        if self.faults.has(Mutant::BornUnasked) {
            self.born.store(1, Ordering::Release);
            return Ok(());
        }
        // The device of the data first, whose holder takes mappings apart; told from here on, it finds the file system.
        let ready = || self.born.store(1, Ordering::Release);
        self.registrations.lock().iter().try_for_each(|registration| registration.confirm(ready).map_err(from_dax))
    }

    /// A mount that came to nothing.
    fn give_up(&self) {
        self.freeze.shut_down(ShutdownReason::ForcedUnmount);
        let volume = Context::new().lock(&self.mm.machine, LockOrder::Volume, &self.volume).take();
        if let (Some(mut volume), Ok(_live)) = (volume, self.live_both()) {
            // As after an unmount, as long as the device takes it. Where that fails, the next mount recovers.
            let _ = volume.quiesce();
        }
        self.born.store(0, Ordering::Release);
        self.unregister();
    }

    fn register(self: &Arc<Self>) -> Result<(), FsError> {
        let weak: Weak<Self> = Arc::downgrade(self);
        let data: Arc<dyn Holder> = Arc::new(DataHolder { name: self.source.name.clone(), mounted: weak.clone() });
        let mut registrations = Vec::new();
        registrations.push(self.source.device.register_holder(Role::Owner, data).map_err(from_dax)?);
        if let Some((device, _)) = &self.source.log {
            let log: Arc<dyn Holder> =
                Arc::new(LogHolder { name: self.source.name.to_string() + "-log", mounted: weak });
            registrations.push(device.register_holder(Role::Owner, log).map_err(from_dax)?);
        }
        *self.registrations.lock() = registrations;
        Ok(())
    }

    fn unregister(&self) {
        // Dropped after the lock is free again.
        let registrations = core::mem::take(&mut *self.registrations.lock());
        drop(registrations);
    }

    /// Unmounts: lets go of the device. One that was shut down, or whose device has gone, is given up as it is.
    ///
    /// # Errors
    /// [`FsError::Busy`]: a file is open, a page of it is held, or a user has frozen it. It goes on being mounted then.
    /// Any other: it is unmounted, and the next mount recovers.
    pub fn unmount(&self, context: &Context) -> Result<(), FsError> {
        // Who is let go of would wait for the thaw.
        if self.freeze.shutdown().is_none() && self.freeze_holders().1 > 0 {
            return Err(FsError::Busy);
        }
        self.reap(context);
        let ended = match self.come_to_rest(context) {
            Err(FsError::Busy) => return Err(FsError::Busy),
            Err(FsError::ShutDown(_) | FsError::DeviceGone) => Ok(()),
            ended => ended,
        };
        self.freeze.shut_down(ShutdownReason::ForcedUnmount);
        drop(context.lock(&self.mm.machine, LockOrder::Volume, &self.volume).take());
        self.born.store(0, Ordering::Release);
        self.unregister();
        ended
    }

    /// Nobody uses it any more: brings the medium to rest, and ends the metadata.
    fn come_to_rest(&self, context: &Context) -> Result<(), FsError> {
        self.freeze.check()?;
        if self.freeze_holders().1 > 0 {
            return Err(FsError::Busy);
        }
        let _write = self.begin_write(context)?;
        // From the look at the table to the end of the metadata, so that nobody opens a file in between: it could be mapped,
        // and nobody would take that apart when the device leaves.
        let inodes = context.lock(&self.mm.machine, LockOrder::Table, &self.inodes);
        // One that was closed just now is not written back yet.
        if inodes.values().any(|inode| inode.handles.is_open() || !inode.is_unsaved()) {
            return Err(FsError::Busy);
        }
        // Nobody has them open: what tasks had stored cannot be written back.
        if !inodes.is_empty() {
            return Err(FsError::NotDurable);
        }
        let live = self.live_both()?;
        if self.is_held(&live.0)? {
            return Err(FsError::Busy);
        }
        if self.faults.has(Mutant::UnmountLetsIn) {
            drop(inodes);
            return self.volume(context)?.quiesce();
        }
        let mut volume = context.lock(&self.mm.machine, LockOrder::Volume, &self.volume);
        let Some(mut last) = volume.take() else { return Err(FsError::ShutDown(ShutdownReason::ForcedUnmount)) };
        last.set_time(self.mm.machine.now_ns());
        last.quiesce()
    }
}
