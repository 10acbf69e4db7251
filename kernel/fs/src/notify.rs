//! The file system as the holder of its device: what it does when the device fails or leaves.
//!
//! ```text
//!  PRE_REMOVE                                   a real failure
//!  1 freeze (an error is recorded, and 6        -
//!    is done before 2 then)
//!  2 walk the reverse map over the range        load every inode, then walk
//!      metadata: skipped                          metadata: asks for a shutdown
//!      a file: unmap everywhere                   a file: mark the pages, unmap everywhere
//!  3 one shootdown                              one shootdown
//!  4 write back what tasks had stored           -
//!  5 SIGBUS to all who mapped it                SIGBUS to the task that met it
//!  6 shut down as a forced unmount              shut down as corrupt, where metadata was hit
//!  7 thaw (also what a user had frozen)         -
//! ```
//!
//! Of a device that has gone already (`GONE`) nothing can be read or written: no freeze, for it would bring a medium to rest
//! that is not there; 6 first, so that no fault comes in behind the walk; then 2, 3 and 5 as before a removal. What tasks
//! have stored since their last `fsync` is lost, and nobody was told otherwise.
//!
//! Nothing in the walk ends it: an inode that is not in memory is passed over, an error is recorded. It is a part of a
//! removal, which cannot fail.
//!
//! Linux: `fs/xfs/xfs_notify_failure.c`; `mm/memory-failure.c`, `mf_dax_kill_procs`.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use dax::holder::{Holder, NotifyError, NotifyFlags};
use dax::range::{ByteSpan, clip};
use mm::addr::Pfn;
use mm::gather::Gather;
use mm::machine::Machine;
use mm::mapping::{Unmapped, unmap_each};
use mm::space::SigBusCause;
use mm::sync::{Arc, Weak};

use crate::batch::Batch;
use crate::error::{FsError, ShutdownReason};
use crate::format::BLOCK_SIZE;
use crate::freeze::FreezeHolder;
use crate::inode::Inode;
use crate::lock_order::{Context, LockOrder};
use crate::mounted::Mounted;
use crate::mutant::Mutant;
use crate::owner::{Owned, Owner};

/// What a notification met.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NotifyReport {
    /// Is the device about to leave?
    pub pre_remove: bool,
    /// Has it gone already? Where neither is so it has failed.
    pub gone: bool,
    /// Was the file system frozen for the walk?
    pub frozen: bool,
    /// Owned runs of blocks that were found.
    pub extents: u64,
    /// Of these, the file system's own.
    pub metadata: u64,
    /// Runs of files that are not in memory: nobody maps them.
    pub not_in_memory: u64,
    /// Runs of files that are not mapped by DAX: nobody is killed for them.
    pub not_dax: u64,
    /// Runs whose cached state was dropped.
    pub invalidated: u64,
    /// Pages marked as poisoned.
    pub poisoned: u64,
    /// Mappings that lost something.
    pub mappings: u64,
    /// Of these, those whose tasks were told: all when a device leaves, as long as there is memory for a list of them.
    pub told: u64,
    /// Leaves taken out of page tables.
    pub leaves: u64,
    /// Rounds of shootdown.
    pub rounds: u64,
    /// What went wrong, by step; none of it ended the walk.
    pub errors: Vec<(&'static str, FsError)>,
    /// Why the file system is shut down after it.
    pub shutdown: Option<ShutdownReason>,
}

impl NotifyReport {
    /// Does the device leave, or has it left? It is whole then.
    fn leaves(&self) -> bool {
        self.pre_remove || self.gone
    }
}

impl fmt::Display for NotifyReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "pre_remove={} gone={} frozen={} extents={} metadata={} not_in_memory={} not_dax={} poisoned={} mappings={} told={} \
             leaves={} rounds={} errors={}",
            u8::from(self.pre_remove),
            u8::from(self.gone),
            u8::from(self.frozen),
            self.extents,
            self.metadata,
            self.not_in_memory,
            self.not_dax,
            self.poisoned,
            self.mappings,
            self.told,
            self.leaves,
            self.rounds,
            self.errors.len(),
        )
    }
}

/// Holds the device of the data.
pub(crate) struct DataHolder<M: Machine> {
    pub(crate) name: String,
    pub(crate) mounted: Weak<Mounted<M>>,
}

impl<M: Machine> Holder for DataHolder<M> {
    fn name(&self) -> &str {
        &self.name
    }
    fn notify_failure(&self, offset: u64, len: u64, flags: NotifyFlags) -> Result<(), NotifyError> {
        match self.mounted.upgrade() {
            Some(mounted) => mounted.notify_failure(offset, len, flags),
            // It is being let go of: there is nothing that could be lost.
            None => Ok(()),
        }
    }
}

/// Holds the device of the journal.
pub(crate) struct LogHolder<M: Machine> {
    pub(crate) name: String,
    pub(crate) mounted: Weak<Mounted<M>>,
}

impl<M: Machine> Holder for LogHolder<M> {
    fn name(&self) -> &str {
        &self.name
    }
    fn notify_failure(&self, _offset: u64, _len: u64, flags: NotifyFlags) -> Result<(), NotifyError> {
        let Some(mounted) = self.mounted.upgrade() else { return Ok(()) };
        if !mounted.is_born() {
            return Err(NotifyError::Io);
        }
        if flags.contains(NotifyFlags::PRE_REMOVE) {
            return Ok(());
        }
        if flags.contains(NotifyFlags::GONE) {
            mounted.shut_down(ShutdownReason::DeviceGone);
            return Ok(());
        }
        mounted.source.host.line(format_args!("fs {}: the journal's device fails", mounted.name()));
        mounted.shut_down(ShutdownReason::Corrupt);
        Err(NotifyError::Corrupted)
    }
}

/// A run of a file in memory that is hit.
struct Hit<M: Machine> {
    inode: Arc<Inode<M>>,
    /// Pages of the file.
    first: u64,
    end: u64,
}

impl<M: Machine> Mounted<M> {
    /// See [`Holder::notify_failure`].
    pub(crate) fn notify_failure(&self, offset: u64, len: u64, flags: NotifyFlags) -> Result<(), NotifyError> {
        let context = Context::new();
        if !self.is_born() {
            return Err(NotifyError::Io);
        }
        let gone = flags.contains(NotifyFlags::GONE);
        // Before anything that waits: whoever has begun ends with an error, and nobody begins. It is said when nothing is
        // mapped any more, for a line takes longer than all that is done until then.
        let ends = gone && self.end(ShutdownReason::DeviceGone);
        let span = match self.notified_of(&context, offset, len) {
            Ok(span) => span,
            Err(error) => {
                self.say_gone(gone, ends);
                return Err(error);
            }
        };
        let pre_remove = flags.contains(NotifyFlags::PRE_REMOVE);
        let mut report = NotifyReport { pre_remove, gone, ..NotifyReport::default() };
        // Dropped on every way out of this function, after the shutdown.
        let mut frozen = None;
        if pre_remove {
            self.source.host.line(format_args!("fs {}: the device is about to be removed", self.name()));
        }
        if pre_remove && !self.faults.has(Mutant::RemovalNotFrozen) {
            let (guard, error) = self.freeze_for_removal();
            report.frozen = guard.is_some();
            report.errors.extend(error.map(|error| ("freeze", error)));
            frozen = guard;
        }
        if pre_remove
            && frozen.is_none()
            && !self.faults.has(Mutant::RemovalNotShutDown)
            && !self.faults.has(Mutant::UnfrozenWalk)
        {
            // Nothing holds faults back: one that came in behind the walk would leave a mapping that nobody takes away.
            // Shut down, they are refused; those under way have their address space locked, and the walk waits for them.
            // What tasks have stored is written back all the same: calls are refused, and not this.
            self.shut_down(ShutdownReason::ForcedUnmount);
        }
        self.walk(&context, span, &mut report);
        self.say_gone(gone, ends);
        // There is no device any more on which a user could ask for a thaw.
        while gone && self.freeze_holders().1 > 0 && self.thaw(FreezeHolder::User).is_ok() {}
        let hit = report.metadata > 0 && (!report.leaves() || self.faults.has(Mutant::MetadataEndsRemoval));
        if pre_remove && !self.faults.has(Mutant::RemovalNotShutDown) {
            self.shut_down(ShutdownReason::ForcedUnmount);
        } else if hit {
            self.shut_down(ShutdownReason::Corrupt);
        }
        report.shutdown = self.shutdown_reason();
        self.say(&report);
        for (step, error) in &report.errors {
            self.source.host.line(format_args!("fs {}: notified: {step}: {error}", self.name()));
        }
        *self.last_notification.lock() = Some(report);
        drop(frozen);
        if hit { Err(NotifyError::Corrupted) } else { Ok(()) }
    }

    /// What of the part that this file system has is meant.
    fn notified_of(&self, context: &Context, offset: u64, len: u64) -> Result<ByteSpan, NotifyError> {
        let has_map = self.volume(context).map(|volume| volume.layout().has_reverse_map());
        if !has_map.map_err(|_| NotifyError::Io)? {
            return Err(NotifyError::NotSupported);
        }
        clip(offset, len, self.part)?.relative_to(self.part).ok_or(NotifyError::NoSuchAddress)
    }

    /// Says that the device has `gone`, and whether that `ends` the file system: something else may have before.
    fn say_gone(&self, gone: bool, ends: bool) {
        if gone {
            self.source.host.line(format_args!("fs {}: the device has gone", self.name()));
        }
        if ends {
            self.say_end(ShutdownReason::DeviceGone);
        }
    }

    /// Says what was done, step by step.
    fn say(&self, report: &NotifyReport) {
        let say = |step: u32, words: fmt::Arguments<'_>| {
            self.source.host.line(format_args!("fs {}: notified: {step}/7 {words}", self.name()));
        };
        if report.pre_remove {
            say(1, format_args!("freeze: {}", if report.frozen { "no change is under way" } else { "failed" }));
        }
        say(
            2,
            format_args!(
                "walk: {} runs of blocks in the range ({} its own, {} of files not in memory, {} not DAX), {} pages \
                 marked",
                report.extents, report.metadata, report.not_in_memory, report.not_dax, report.poisoned
            ),
        );
        say(3, format_args!("unmap: {} leaves taken away, {} shootdowns", report.leaves, report.rounds));
        if report.pre_remove {
            say(4, format_args!("write back: what tasks had stored in {} runs", report.invalidated));
        }
        say(5, format_args!("SIGBUS: to the tasks of {} of {} mappings", report.told, report.mappings));
        match report.shutdown {
            Some(reason) => say(6, format_args!("shut down: {reason}")),
            None => say(6, format_args!("goes on")),
        }
        if report.frozen {
            say(7, format_args!("thaw: who waits for the freeze gets an error"));
        }
    }

    /// Steps 2 to 5. Where memory is short the runs are taken some at a time, each with a shootdown of its own.
    fn walk(&self, context: &Context, span: ByteSpan, report: &mut NotifyReport) {
        let (first, end) = (span.first() / BLOCK_SIZE, span.last() / BLOCK_SIZE + 1);
        if !report.leaves() {
            // Whatever owns the block, it may be the file system itself: look at every inode.
            let bad = self.volume(context).map(|mut volume| volume.load_all());
            match bad {
                Ok(0) => {}
                Ok(bad) => {
                    report.errors.push(("inodes that cannot be loaded", FsError::damaged("inodes", bad)));
                }
                Err(error) => return report.errors.push(("reverse map", error)),
            }
        }
        let mut gather = Gather::new(&self.mm);
        let mut done = None;
        loop {
            let (owned, more) = match self.owned(context, (first, end), done) {
                Ok(owned) => owned,
                Err(error) => {
                    report.errors.push(("reverse map", error));
                    break;
                }
            };
            let mut left = owned.iter().peekable();
            while left.peek().is_some() {
                let mut hits = Batch::new();
                while hits.has_room(&self.mm.machine)
                    && let Some(&run) = left.next()
                {
                    report.extents += 1;
                    report.metadata += u64::from(run.2.is_metadata());
                    if let Some(hit) = self.hit(context, run, (first, end), report) {
                        hits.push(hit);
                    }
                }
                self.take_away(context, &hits, &mut gather, report);
            }
            done = owned.last().map(|&(start, ..)| start);
            if !more {
                break;
            }
        }
        if report.leaves() {
            self.take_unknown_away(context, &mut gather, report);
        }
        let stats = gather.finish();
        (report.leaves, report.rounds) = (stats.leaves, stats.rounds);
    }

    /// The same for files that are open and whose blocks are not known: they were not in memory any more after a change that
    /// failed, and could not be read anew.
    fn take_unknown_away(&self, context: &Context, gather: &mut Gather<M>, report: &mut NotifyReport) {
        let mut from = 0;
        loop {
            let (mut hits, mut next) = (Batch::<Hit<M>>::new(), None);
            {
                let inodes = context.lock(&self.mm.machine, LockOrder::Table, &self.inodes);
                let Ok(volume) = self.volume(context) else { return };
                for (&ino, inode) in inodes.range(from..).filter(|&(&ino, inode)| inode.dax && !volume.is_loaded(ino)) {
                    if !hits.has_room(&self.mm.machine) {
                        next = Some(ino);
                        break;
                    }
                    hits.push(Hit { inode: Arc::clone(inode), first: 0, end: u64::MAX });
                }
            }
            self.take_away(context, &hits, gather, report);
            let Some(next) = next else { return };
            from = next;
        }
    }

    /// Steps 3 to 5 for these.
    fn take_away(&self, context: &Context, hits: &Batch<Hit<M>>, gather: &mut Gather<M>, report: &mut NotifyReport) {
        let mut users = Batch::<Unmapped<M>>::new();
        for hit in hits.iter().filter(|hit| hit.inode.dax) {
            unmap_each(&hit.inode.mapping, hit.first, hit.end - hit.first, gather, &mut |space, range| {
                report.mappings += 1;
                // Who finds no room is not told; the next access tells.
                if users.has_room(&self.mm.machine) {
                    users.push(Unmapped { space: Arc::clone(space), range });
                }
            });
        }
        // One round for all files and all tasks.
        gather.shoot_down();
        for hit in hits.iter() {
            report.invalidated += 1;
            self.save_run(context, hit, report);
        }
        self.tell(&users, report);
    }

    /// Step 4 for a run: the device still works, and what tasks have stored and not synced is saved.
    fn save_run(&self, context: &Context, hit: &Hit<M>, report: &mut NotifyReport) {
        loop {
            let stored = hit.inode.untouch(hit.first, hit.end);
            if (report.pre_remove || Mutant::GoneWrittenBack.is_on())
                && let Err(error) = self.write_back_ranges(context, hit.inode.ino, &stored)
            {
                report.errors.push(("write back", error));
            }
            if !stored.is_full() {
                return;
            }
        }
    }

    /// The owned runs in the range that begin behind `done`, as many as there is room for; and whether there are more.
    fn owned(
        &self,
        context: &Context,
        (first, end): (u64, u64),
        done: Option<u64>,
    ) -> Result<(Batch<Owned>, bool), FsError> {
        let (mut owned, mut more) = (Batch::new(), false);
        let volume = self.volume(context)?;
        volume.owners_while(done.map_or(first, |done| done + 1), end, |run| {
            if done.is_some_and(|done| run.0 <= done) {
                return true;
            }
            more = !owned.has_room(&self.mm.machine);
            if !more {
                owned.push(run);
            }
            !more
        });
        Ok((owned, more))
    }

    /// What a run of a file's blocks is in the file, where that is in memory.
    fn hit(
        &self,
        context: &Context,
        (start, stop, owner): Owned,
        (first, end): (u64, u64),
        report: &mut NotifyReport,
    ) -> Option<Hit<M>> {
        let Owner::Data { ino, logical } = owner else { return None };
        let (from, to) = (start.max(first), stop.min(end));
        if !report.leaves() || self.faults.has(Mutant::PoisonedOnRemoval) {
            report.poisoned += self.poison(from, to - from, report);
        }
        let inode = context.lock(&self.mm.machine, LockOrder::Table, &self.inodes).get(&ino).cloned();
        let Some(inode) = inode else {
            report.not_in_memory += 1;
            return None;
        };
        report.not_dax += u64::from(!inode.dax);
        Some(Hit { inode, first: logical + (from - start), end: logical + (to - start) })
    }

    /// Marks the pages of these blocks; answers how many.
    fn poison(&self, first: u64, nr: u64, report: &mut NotifyReport) -> u64 {
        let mark = || -> Result<u64, FsError> {
            let live = self.live()?;
            let (mut at, mut marked) = (first, 0);
            while at < first + nr {
                let row = self.frames(&live, at, first + nr - at)?;
                for pfn in (row.start().as_u64()..row.end().as_u64()).map(Pfn::new) {
                    marked += u64::from(self.source.device.pagemap().poison(pfn));
                    self.mm.meta.with_page(pfn, |page| page.set_poisoned(true));
                }
                at += row.nr_pages();
            }
            Ok(marked)
        };
        mark().unwrap_or_else(|error| {
            report.errors.push(("poison", error));
            0
        })
    }

    /// Step 5: all tasks that mapped it, or the one that met the failure.
    fn tell(&self, users: &Batch<Unmapped<M>>, report: &mut NotifyReport) {
        let current = self.source.host.current_space();
        let cause = if report.leaves() { SigBusCause::DeviceGone } else { SigBusCause::Poisoned };
        for Unmapped { space, range } in users.iter() {
            let all = report.leaves() && !self.faults.has(Mutant::OnlyCurrentTold);
            if all || current == Some(space.id()) {
                report.told += 1;
                self.source.host.lost(space, *range, cause);
            }
        }
    }
}
