//! Open files: handles that can be mapped, and the faults of their mappings.
//!
//! A fault is short and waits for nobody, because its address space is locked and whoever it would wait for may need
//! that lock to take pages away. Where the file system is frozen, or the page closed because its layout is being
//! broken, the fault is *turned away*: it installs nothing and reports success, so that the task runs into it again
//! (Linux: `VM_FAULT_NOPAGE`); gup comes again, too, with the address space unlocked in between.
//!
//! Linux: `fs/dax.c`, `dax_iomap_fault`; `fs/xfs/xfs_file.c`.

use dax::device::LiveGuard;
use mm::addr::{PAGE_SIZE, PageSize};
use mm::gather::Gather;
use mm::machine::Machine;
use mm::mapping::clean_mapping_range;
use mm::pagemap::MemoryKind;
use mm::space::{FaultError, FaultRequest, FaultTarget, MapError, Mapping, SigBusCause, VmOps};
use mm::sync::Arc;

use crate::error::{FsError, ShutdownReason};
use crate::inode::Inode;
use crate::lock_order::{Context, LockOrder};
use crate::mounted::Mounted;
use crate::mutant::Mutant;
use crate::node::Piece;

/// An open file. Mapping it keeps it open. After the last handle is dropped, whoever dropped it calls
/// [`Mounted::reap`] as soon as it holds no lock, as Linux does on the way out of a system call.
pub struct File<M: Machine> {
    pub(crate) mounted: Arc<Mounted<M>>,
    pub(crate) inode: Arc<Inode<M>>,
}

impl<M: Machine> File<M> {
    pub(crate) fn new(mounted: &Arc<Mounted<M>>, inode: &Arc<Inode<M>>) -> Arc<Self> {
        inode.handles.open();
        // What is stored from now on has not been tried yet.
        inode.set_unsaved(false);
        Arc::new(Self { mounted: Arc::clone(mounted), inode: Arc::clone(inode) })
    }
    /// The inode's number.
    pub fn ino(&self) -> u64 {
        self.inode.ino
    }
    /// Can it be mapped?
    pub fn is_dax(&self) -> bool {
        self.inode.dax
    }
    /// The file system.
    pub fn mounted(&self) -> &Arc<Mounted<M>> {
        &self.mounted
    }
    /// As address spaces see it.
    pub fn ops(self: &Arc<Self>) -> Arc<dyn VmOps<M>> {
        self.clone()
    }

    /// Fails the fault at `request` for good.
    fn sigbus(request: &FaultRequest, error: FsError) -> FaultError {
        let cause = match error {
            FsError::DeviceGone | FsError::ShutDown(ShutdownReason::DeviceGone) => SigBusCause::DeviceGone,
            FsError::Media(_) => SigBusCause::Poisoned,
            FsError::Invalid | FsError::NotFound => SigBusCause::BeyondEnd,
            // A store found a hole that cannot be filled (Linux: `VM_FAULT_SIGBUS` for ENOSPC).
            FsError::NoSpace | FsError::JournalTooSmall => SigBusCause::NoSpace,
            _ => SigBusCause::ShutDown,
        };
        FaultError::SigBus { addr: request.addr, len_bytes: PAGE_SIZE, cause }
    }

    fn serve(
        &self,
        request: &FaultRequest,
        install: &mut dyn FnMut(FaultTarget) -> Result<(), FaultError>,
    ) -> Result<Result<(), FaultError>, FsError> {
        let context = Context::fault();
        let (mounted, page) = (&*self.mounted, request.offset_pages);
        let Some(_write) = mounted.freeze.try_write()? else {
            return Ok(Ok(()));
        };
        let live = mounted.live()?;
        if self.inode.is_beyond_limit(page) {
            return Err(FsError::Invalid);
        }
        // As wide as any leaf that may come out of it: a gate that is closed for a part of the leaf is closed for it.
        let widest = request.max_size.nr_pages();
        let (first, end) = (page & !(widest - 1), (page | (widest - 1)).saturating_add(1));
        let Some(_inside) = self.inode.enter(first, end) else {
            return Ok(Ok(()));
        };
        let huge = request.max_size >= PageSize::Size2M;
        let piece = mounted.change_with(&context, |volume| volume.map_block(self.inode.ino, page, huge))?;
        let physical = piece.physical.ok_or(FsError::Invalid)?;
        let pfn = mounted.frames(&live, physical + (page - piece.logical), 1)?.start();
        let fits = |size: PageSize| {
            let head = page & !(size.nr_pages() - 1);
            size <= request.max_size
                && (page ^ pfn.as_u64()) & (size.nr_pages() - 1) == 0
                && self.in_one_row(&live, piece, head, size.nr_pages())
        };
        let size = PageSize::ALL.into_iter().rev().find(|&size| fits(size)).unwrap_or(PageSize::Size4K);
        Ok(install(FaultTarget { pfn, size }))
    }

    /// Are the `nr` pages from `head` on all of this run, and their frames in one row?
    fn in_one_row(&self, live: &LiveGuard<'_>, run: Piece, head: u64, nr: u64) -> bool {
        let inside = run.logical <= head && head + nr <= run.logical + run.len;
        let first = run.physical.map(|physical| physical.wrapping_add(head.wrapping_sub(run.logical)));
        let row = first.filter(|_| inside).map(|first| self.mounted.frames(live, first, nr));
        matches!(row, Some(Ok(row)) if row.nr_pages() == nr)
    }
}

impl<M: Machine> Drop for File<M> {
    fn drop(&mut self) {
        if self.inode.handles.close() {
            // Perhaps with an address space locked: the rest is for `reap`. A lock of its own, so that whatever the
            // dropping task holds does no harm.
            self.mounted.let_go.lock().push(self.inode.ino);
        }
    }
}

impl<M: Machine> VmOps<M> for File<M> {
    fn fault(
        &self,
        request: &FaultRequest,
        install: &mut dyn FnMut(FaultTarget) -> Result<(), FaultError>,
    ) -> Result<(), FaultError> {
        self.serve(request, install).map_err(|error| Self::sigbus(request, error))?
    }

    fn mmap(&self, _offset_pages: u64, _nr_pages: u64, insert: &mut dyn FnMut()) -> Result<(), MapError> {
        // Beyond the end may be mapped: the file can grow. What is not there then is a SIGBUS.
        if self.mounted.freeze.check().is_err() {
            return Err(MapError::Refused(SigBusCause::ShutDown));
        }
        if !self.inode.dax {
            return Err(MapError::Refused(SigBusCause::BeyondEnd));
        }
        let _live = self.mounted.live().map_err(|_| MapError::Refused(SigBusCause::DeviceGone))?;
        insert();
        Ok(())
    }

    fn mapping(&self) -> &Arc<Mapping<M>> {
        &self.inode.mapping
    }

    fn kind(&self) -> MemoryKind {
        MemoryKind::FsDax
    }

    fn notes_stores(&self) -> bool {
        true
    }

    fn stores_begin(&self, first: u64, nr_pages: u64) {
        self.inode.touch(first, first + nr_pages);
    }
}

/// What a `fsync` did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Synced {
    /// Ranges of pages that were written back because tasks may have stored to them since the last time.
    pub ranges: usize,
    /// Was there a fence?
    pub fenced: bool,
}

impl<M: Machine> Mounted<M> {
    /// Makes durable what tasks have stored through mappings of the file. Calls that write are durable by themselves.
    ///
    /// Costs what was stored to since the last time. The order is:
    ///
    /// 1. take the notes of what was stored to;
    /// 2. write-protect it wherever it is mapped, with one shootdown: the next store faults, and is noted anew;
    /// 3. note anew what is pinned, whose holder may store at any time without a fault;
    /// 4. write back, and fence.
    ///
    /// So a store comes before 4, or is noted for the next time.
    ///
    /// # Errors
    /// [`FsError::ShutDown`], [`FsError::DeviceGone`], the medium: the next one tries again.
    pub fn fsync(&self, context: &Context, file: &File<M>) -> Result<Synced, FsError> {
        self.freeze.check()?;
        let live = self.live()?;
        let inode = &*file.inode;
        // Who finds nothing to do has waited for the one who does it.
        let _turn = context.lock(&self.mm.machine, LockOrder::Sync, &inode.syncing);
        let ranges = inode.take_touched();
        let synced = self.sync_ranges(context, &live, inode, &ranges);
        if synced.is_err() {
            self.note_again(inode, &ranges);
        }
        synced
    }

    /// What was taken from the notes is not durable: it is for whoever syncs next.
    pub(crate) fn note_again(&self, inode: &Inode<M>, ranges: &[(u64, u64)]) {
        if !self.faults.has(Mutant::NotesLost) {
            ranges.iter().for_each(|&(first, end)| inode.touch(first, end));
        }
    }

    fn sync_ranges(
        &self,
        context: &Context,
        live: &LiveGuard<'_>,
        inode: &Inode<M>,
        ranges: &[(u64, u64)],
    ) -> Result<Synced, FsError> {
        let late = self.faults.has(Mutant::ProtectedLate);
        let early = late.then(|| self.write_back_ranges(context, inode.ino, ranges));
        let mut gather = Gather::new(&self.mm);
        for &(first, end) in ranges {
            clean_mapping_range(&inode.mapping, first, end - first, &mut gather);
        }
        gather.finish();
        if !self.faults.has(Mutant::PinnedForgotten) {
            self.note_pinned(context, live, inode, ranges)?;
        }
        early.unwrap_or_else(|| self.write_back_ranges(context, inode.ino, ranges))
    }

    /// Notes what of the ranges is pinned: whoever holds a pin, a device perhaps, stores without a fault. A pin does not
    /// say whether it is for stores, and a folio's count does not say which of its pages are pinned.
    fn note_pinned(
        &self,
        context: &Context,
        live: &LiveGuard<'_>,
        inode: &Inode<M>,
        ranges: &[(u64, u64)],
    ) -> Result<(), FsError> {
        for &(first, end) in ranges {
            let runs = self.volume(context)?.runs(inode.ino, first, end);
            let runs = self.noted(runs)?;
            for folio in self.held_folios(&self.rows(live, &runs)?) {
                let from = folio.owner.offset.max(first);
                let to = (folio.owner.offset + folio.size.nr_pages()).min(end);
                if folio.counts.pins != 0 && from < to {
                    inode.touch(from, to);
                }
            }
        }
        Ok(())
    }

    /// Writes back and fences.
    pub(crate) fn write_back_ranges(
        &self,
        context: &Context,
        ino: u64,
        ranges: &[(u64, u64)],
    ) -> Result<Synced, FsError> {
        if ranges.is_empty() {
            return Ok(Synced::default());
        }
        let written = self.volume(context)?.write_back(ino, ranges);
        let written = self.noted(written)?;
        let fenced = !written.is_empty();
        let _durable = written.fence(&*self.source.pmem)?;
        Ok(Synced { ranges: ranges.len(), fenced })
    }
}
