//! Breaking layouts: ending all access to blocks before they are freed.
//!
//! # Protocol
//! A DAX page is the storage: who can reach the page can reach the block. Before blocks are freed:
//!
//! 1. close the pages to faults, and wait for those inside (they are short, and wait for nobody);
//! 2. unmap them everywhere, and shoot down: no CPU reaches them, and no gup-fast walk finds them;
//! 3. are folios of them still in use? Then somebody has them pinned: open the pages again, wait until each of them is
//!    let go of, and start again;
//! 4. free the blocks, and open the pages.
//!
//! Between 3 and 1 nothing is held: neither the inode nor the right to change anything, so that the holder of the pin
//! can do what it must to let go, and a freeze need not wait for a pin. What the pages of a file that is cut off
//! beyond the new size is gone for faults from the start, so that new pins cannot keep coming.
//!
//! It does not matter who pins, or whether the pinner still has the file open: the question is asked of the frames.
//! That is what an orphan pin needs (a task pins, starts I/O, closes, exits).
//!
//! Where the range cuts through a huge folio, the whole folio is unmapped and waited for: its count does not say
//! which of its pages are pinned.
//!
//! Linux: `fs/dax.c`, `dax_break_layout`; `fs/xfs/xfs_file.c`, `xfs_break_dax_layouts`.

use alloc::format;
use alloc::vec::Vec;

use mm::addr::PfnRange;
use mm::gather::Gather;
use mm::machine::Machine;
use mm::mapping::unmap_each;
use mm::meta::LiveFolio;
use mm::sync::Ordering;

use crate::error::FsError;
use crate::freeze::WriteGuard;
use crate::gate::Closed;
use crate::inode::Inode;
use crate::lock_order::Context;
use crate::mounted::Mounted;
use crate::mutant::Mutant;

/// The pages are closed, nobody reaches them, and the right to change the file system is held.
#[must_use = "the pages are open again when this is dropped"]
pub(crate) struct Broken<'m> {
    _write: WriteGuard<'m>,
    _closed: Closed<'m>,
}

impl<M: Machine> Mounted<M> {
    /// The folios in use that share a frame with `rows` (rising, disjoint). The work grows with the rows and with what
    /// is in use of them, not with their pages.
    pub(crate) fn held_folios(&self, rows: &[PfnRange]) -> Vec<LiveFolio> {
        let mut held: Vec<LiveFolio> = Vec::new();
        if self.source.device.pagemap().is_drained() {
            return held;
        }
        for &row in rows {
            let looks = self.mm.meta.for_each_live_in(row, &mut |folio| {
                // One that reaches from row to row is met twice.
                if held.last().is_none_or(|last| last.head != folio.head) {
                    held.push(folio);
                }
            });
            self.folio_looks.fetch_add(looks.total, Ordering::Relaxed);
        }
        held
    }

    /// `first..end` widened to the folios that reach across its ends.
    fn widen(&self, context: &Context, inode: &Inode<M>, first: u64, end: u64) -> Result<(u64, u64), FsError> {
        let live = self.live()?;
        let mut wide = (first, end);
        for page in [first, end.saturating_sub(1)] {
            let piece = self.volume(context)?.run_around(inode.ino, page);
            let Some(physical) = piece.physical else { continue };
            let pfn = self.frames(&live, physical + (page - piece.logical), 1)?.start();
            if let Some(folio) = self.mm.meta.inspect(pfn) {
                let before = pfn.as_u64() - folio.head.as_u64();
                wide.0 = wide.0.min(page.saturating_sub(before));
                wide.1 = wide.1.max((page - before.min(page)).saturating_add(folio.size.nr_pages()));
            }
        }
        Ok(wide)
    }

    /// Ends all access to the pages `first..end` of a file. Waits for those who hold them.
    ///
    /// # Errors
    /// [`FsError::ShutDown`] or [`FsError::DeviceGone`]: also when that happens while it waits.
    pub(crate) fn break_layouts<'m>(
        &'m self,
        context: &Context,
        inode: &'m Inode<M>,
        first: u64,
        end: u64,
    ) -> Result<Broken<'m>, FsError> {
        let began = self.mm.machine.now_ns();
        let mut complaint = self.source.first_complaint_ns;
        loop {
            context.may_wait("pins");
            let write = self.begin_write(context)?;
            let (first, end) = self.widen(context, inode, first, end)?;
            let closed = inode.close(&self.mm.machine, first, end);
            let mut gather = Gather::new(&self.mm);
            if !self.faults.has(Mutant::NotUnmapped) {
                unmap_each(&inode.mapping, first, end.saturating_sub(first), &mut gather, &mut |_, _| ());
            }
            gather.finish();
            let rows = {
                let live = self.live()?;
                let runs = self.volume(context)?.runs(inode.ino, first, end);
                let runs = self.noted(runs)?;
                self.rows(&live, &runs)?
            };
            let held = self.held_folios(&rows);
            let careless = self.faults.has(Mutant::PinsNotWaitedFor) || self.faults.has(Mutant::NotUnmapped);
            if held.is_empty() || careless {
                return Ok(Broken { _write: write, _closed: closed });
            }
            drop((closed, write));
            // For all of them, so that they are looked for anew once and not once for each.
            for (nr, folio) in held.iter().enumerate() {
                self.wait_for_pins(inode, folio, held.len() - nr, (began, &mut complaint))?;
            }
        }
    }

    /// Waits while the folio is pinned: one that is only mapped again is taken away in the next round. `nr`: it, and those
    /// that are waited for after it.
    fn wait_for_pins(
        &self,
        inode: &Inode<M>,
        folio: &LiveFolio,
        nr: usize,
        (began, complaint): (u64, &mut u64),
    ) -> Result<(), FsError> {
        loop {
            self.freeze.check()?;
            self.mm.machine.relax();
            let ns = self.mm.machine.now_ns() - began;
            if ns >= *complaint {
                *complaint = complaint.saturating_mul(2);
                self.complain(inode, folio, nr, ns);
            }
            if self.mm.meta.inspect(folio.head).is_none_or(|folio| folio.counts.pins == 0) {
                return Ok(());
            }
        }
    }

    /// Says who is waited for.
    fn complain(&self, inode: &Inode<M>, folio: &LiveFolio, nr: usize, ns: u64) {
        let by = self.source.host.pinned_by(folio.head);
        let by = by.as_deref().unwrap_or("unknown (the pin ledger is off)");
        let (name, ino, counts) = (self.name(), inode.ino, folio.counts);
        let line = format!(
            "fs {name}: inode {ino} has waited {} us for a pin on page {} ({}, file page {:#x}, refs={} pins={}), \
             held by {by}; {nr} folios are held",
            ns / 1000,
            folio.head,
            folio.size,
            folio.owner.offset,
            counts.refs,
            counts.pins,
        );
        self.source.host.line(format_args!("{line}"));
        *self.last_complaint.lock() = Some(line);
    }
}
