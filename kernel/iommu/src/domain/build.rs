//! How a mapping is made.

use alloc::vec::Vec;

use mm::addr::{PAGE_SHIFT, Pfn, PfnRange};
use mm::sync::Ordering;

use super::{Books, Dma, Domain, MapError, Mapping, Record, State, level_of, slots};
use crate::command::Command;
use crate::entry::{Entry, Rights};
use crate::hardware::Hardware;
use crate::{INDEX_BITS, Mutant, index, order};

/// No memory for a table.
struct NoTable;

/// What a mapping needs.
#[derive(Debug)]
pub(super) struct Plan {
    pages: u64,
    /// log2 of the pages of its block.
    order: u32,
    /// Pages of the block before the mapping.
    offset: u64,
    /// Its entries are all leaves: no table hangs below them.
    flat: bool,
}

/// Runs that follow each other also in memory are one.
struct Frames<'r> {
    runs: &'r [PfnRange],
    /// What is left of the first.
    at: Pfn,
    left: u64,
}

impl<'r> Frames<'r> {
    fn new(runs: &'r [PfnRange]) -> Self {
        let mut frames = Self { runs, at: Pfn::new(0), left: 0 };
        frames.refill();
        frames
    }
    /// Takes the next run where the current one is used up, and those that continue it.
    #[inline]
    fn refill(&mut self) {
        if self.left > 0 {
            return;
        }
        let Some((run, mut rest)) = self.runs.split_first() else { return };
        (self.at, self.left) = (run.start(), run.nr_pages());
        while let Some((next, after)) = rest.split_first() {
            if next.start() != self.at.add(self.left) {
                break;
            }
            self.left += next.nr_pages();
            rest = after;
        }
        self.runs = rest;
    }
    #[inline]
    fn take(&mut self, pages: u64) {
        self.at = self.at.add(pages);
        self.left -= pages;
        self.refill();
    }
}

/// A mapping whose entries are being made.
struct Builder<'d, 'r, H: Hardware> {
    domain: &'d Domain<H>,
    frames: Frames<'r>,
    rights: Rights,
    leaves: [u64; 3],
    tables: u64,
    /// Tables of others that were freed.
    swept: u64,
    lowest: u8,
    /// Tables right below the entries of `top`.
    tops: Vec<Pfn>,
    top: u8,
}

impl<H: Hardware> Builder<'_, '_, H> {
    /// Fills the entries of a table of `level` for the pages from `page` to `end`. On failure what is there is linked all
    /// the same, for a revocation to find.
    fn fill(&mut self, table: Pfn, level: u8, page: u64, end: u64) -> Result<(), NoTable> {
        let first = index(page, level);
        let count = ((end - 1) >> order(level)) - (page >> order(level)) + 1;
        let result = if level == 1 {
            self.fill_leaves(table, first, count as usize);
            Ok(())
        } else {
            self.fill_upper(table, level, page, end)
        };
        self.domain.hw.write_back(table, first, count as usize);
        result
    }

    /// Page by page.
    fn fill_leaves(&mut self, table: Pfn, first: usize, count: usize) {
        let (hw, mut index, end) = (&*self.domain.hw, first, first + count);
        // What the CPU has put into the page before comes before a device's look at it.
        let order = if Mutant::RelaxedLeaf.is_on() { Ordering::Relaxed } else { Ordering::Release };
        while index < end {
            let here = self.frames.left.min((end - index) as u64);
            let mut bits = Entry::leaf(self.frames.at, 1, self.rights).bits();
            for _ in 0..here {
                hw.entry(table, index).store(bits, order);
                bits += 1 << PAGE_SHIFT;
                index += 1;
            }
            self.frames.take(here);
        }
        self.leaves[0] += count as u64;
    }

    fn fill_upper(&mut self, table: Pfn, level: u8, mut page: u64, end: u64) -> Result<(), NoTable> {
        let (span, hw) = (1u64 << order(level), &*self.domain.hw);
        let mut result = Ok(());
        while page < end && result.is_ok() {
            let slot = hw.entry(table, index(page, level));
            let (pfn, left) = (self.frames.at, self.frames.left);
            let aligned = (page | pfn.as_u64()) & (span - 1) == 0;
            if level <= self.domain.leaf_level && aligned && left >= span {
                slot.store(Entry::leaf(pfn, level, self.rights).bits(), Ordering::Release);
                self.leaves[usize::from(level - 1)] += 1;
                self.frames.take(span);
                page += span;
                continue;
            }
            let stop = end.min((page | (span - 1)) + 1);
            let child = hw.alloc_table().ok_or(NoTable)?;
            self.tables += 1;
            self.lowest = self.lowest.min(level - 1);
            if level == self.top {
                self.tops.push(child);
            }
            result = self.fill(child, level - 1, page, stop);
            // After what is below it: a walk that finds the table finds it filled.
            slot.store(Entry::table(child).bits(), Ordering::Release);
            page = stop;
        }
        result
    }
}

impl<H: Hardware> Domain<H> {
    /// Looks at what is to be mapped: where it may lie in its block, and how large that is.
    pub(super) fn plan(&self, runs: &[PfnRange], rights: Rights) -> Result<Plan, MapError> {
        if rights.is_empty() {
            return Err(MapError::NoRights);
        }
        let bits = self.host_bits;
        let most = 1u64 << (u32::from(bits).max(PAGE_SHIFT) - PAGE_SHIFT);
        // Of the runs with the largest leaves the longest says where in its block the mapping begins.
        let (mut pages, mut best, mut offset) = (0u64, (1, 0), 0);
        let mut frames = Frames::new(runs);
        while frames.left > 0 {
            let end = frames.at.add(frames.left);
            if end.as_u64() > most {
                return Err(MapError::TooHigh { end, bits });
            }
            let level = self.largest_leaf(frames.at, frames.left);
            if (level, frames.left) > best {
                best = (level, frames.left);
                offset = frames.at.as_u64().wrapping_sub(pages) & ((1 << order(level)) - 1);
            }
            // The sum of many runs, each of which may be all memory.
            pages = pages.checked_add(frames.left).filter(|sum| *sum < 1 << 52).ok_or(self.too_large(u64::MAX))?;
            frames.take(frames.left);
        }
        if pages == 0 {
            return Err(MapError::NoRuns);
        }
        // As large leaves as can be; but if the block is too large by that, smaller ones. A block that is all of the address
        // space has address 0 in it.
        let bits = u32::from(self.bits);
        let fits = |leaf: u8| {
            let offset = offset & ((1 << order(leaf)) - 1);
            let order = (pages + offset).next_power_of_two().trailing_zeros();
            // One run of leaves of the block's level.
            let level = level_of(order);
            let whole = (offset | pages) & ((1 << crate::order(level)) - 1) == 0;
            let flat = level == 1 || leaf == best.0 && level <= leaf && best.1 == pages && whole;
            (order + PAGE_SHIFT < bits).then_some(Plan { pages, order, offset, flat })
        };
        (1..=best.0).rev().find_map(fits).ok_or(self.too_large(pages << PAGE_SHIFT))
    }

    const fn too_large(&self, bytes: u64) -> MapError {
        MapError::TooLarge { bytes, bits: self.bits }
    }

    /// Level of the largest leaf that fits into a run wherever it may be mapped.
    #[inline]
    fn largest_leaf(&self, at: Pfn, pages: u64) -> u8 {
        let fits = |level: u8| {
            let span = 1 << order(level);
            let first = at.as_u64().next_multiple_of(span);
            first + span <= at.as_u64() + pages
        };
        if pages < 1 << INDEX_BITS {
            return 1;
        }
        (2..=self.leaf_level).rev().find(|level| fits(*level)).unwrap_or(1)
    }

    pub(super) fn build(&self, plan: &Plan, runs: &[PfnRange], rights: Rights, tag: u64) -> Result<Mapping, MapError> {
        let level = level_of(plan.order);
        let mut tops = Vec::new();
        if !plan.flat {
            let (_, count) = slots(0, plan.order);
            tops.try_reserve_exact(count.min((plan.pages >> order(level)) as usize + 2))
                .map_err(|_| MapError::NoMemory)?;
        }
        let (block, serial, table) = self.enter(plan, rights, tag)?;
        let given = if Mutant::RightsIgnored.is_on() { Rights::all() } else { rights };
        let mut builder = Builder {
            domain: self,
            frames: Frames::new(runs),
            rights: given,
            leaves: [0; 3],
            tables: 0,
            swept: 0,
            lowest: u8::MAX,
            tops,
            top: level,
        };
        let first = block + plan.offset;
        let command = Command::block(self.id, block, plan.order, self.limit);
        let result = match table {
            // The slots are ours alone, and the table stays while we are in the books: no lock is needed.
            Some(table) => self.fill_block(&mut builder, table, plan, block, command),
            None => Err(MapError::NoMemory),
        };
        let result = self.settle(block, builder, result);
        if let Err(error) = result {
            // What was made may have been looked at by the device: it dies like any other translation.
            // Where the unit does not answer then, that is worse than whatever it was.
            return Err(self.end(block, serial).failed.map_or(error, MapError::Queue));
        }
        let dma = Dma { address: first << PAGE_SHIFT, bytes: plan.pages << PAGE_SHIFT, rights };
        Ok(Mapping { dma, block, serial, domain: self.id })
    }

    /// Fills the entries that cover a block, in `table`.
    fn fill_block(
        &self,
        builder: &mut Builder<'_, '_, H>,
        table: Pfn,
        plan: &Plan,
        block: u64,
        command: Command,
    ) -> Result<(), MapError> {
        let (at, count) = slots(block, plan.order);
        builder.swept = self.sweep(table, builder.top, at, count, command).map_err(MapError::Queue)?;
        let first = block + plan.offset;
        builder.fill(table, builder.top, first, first + plan.pages).map_err(|NoTable| MapError::NoMemory)?;
        if self.tell_on_map && !Mutant::MapNotTold.is_on() {
            self.invalidate(&[command]).map_err(MapError::Queue)?;
        }
        Ok(())
    }

    /// Finds a block, enters the mapping in the books and makes the tables that lead to the block: the last of them is the
    /// answer, `None` where there is no memory.
    fn enter(&self, plan: &Plan, rights: Rights, tag: u64) -> Result<(u64, u64, Option<Pfn>), MapError> {
        let mut books = self.books.lock();
        let books = &mut *books;
        if books.closed {
            return Err(MapError::Closed);
        }
        let found = books.places.find(&books.blocks, plan.order);
        let block = found.ok_or(MapError::Full { bytes: 1 << (plan.order + PAGE_SHIFT) })?;
        books.serial += 1;
        let record = Record {
            serial: books.serial,
            state: State::Building,
            order: plan.order,
            first: block + plan.offset,
            pages: plan.pages,
            rights,
            tag,
            leaves: [0; 3],
            tops: Vec::new(),
            lowest: u8::MAX,
        };
        books.blocks.insert(block, record);
        Ok((block, books.serial, self.lead_to(books, block, level_of(plan.order))))
    }

    /// The table of `level` around `page`, made where it is missing with those above it.
    fn lead_to(&self, books: &mut Books, page: u64, level: u8) -> Option<Pfn> {
        let mut table = self.root;
        for above in (level + 1..=self.levels.count()).rev() {
            let slot = self.hw.entry(table, index(page, above));
            let entry = Entry::from_bits(slot.load(Ordering::Relaxed));
            table = if entry.is_table(above) {
                entry.pfn()
            } else {
                let child = self.hw.alloc_table()?;
                books.stats.tables += 1;
                slot.store(Entry::table(child).bits(), Ordering::Release);
                self.hw.write_back(table, index(page, above), 1);
                child
            };
        }
        Some(table)
    }

    /// The entries are made, or as many as could be.
    fn settle(&self, block: u64, builder: Builder<'_, '_, H>, result: Result<(), MapError>) -> Result<(), MapError> {
        let mut books = self.books.lock();
        let books = &mut *books;
        let record = books.blocks.get_mut(&block).expect("a block stays in the books while its mapping is made");
        (record.leaves, record.tops, record.lowest) = (builder.leaves, builder.tops, builder.lowest);
        record.state = State::Live;
        books.stats.tables = books.stats.tables + builder.tables - builder.swept;
        books.stats.mappings += 1;
        books.stats.bytes += record.pages << PAGE_SHIFT;
        books.stats.mapped += u64::from(result.is_ok());
        result.and(if books.closed { Err(MapError::Closed) } else { Ok(()) })
    }
}
