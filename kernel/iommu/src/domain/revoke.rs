//! How a translation dies: clear, invalidate, wait, free.

use alloc::vec::Vec;
use core::mem;

use arrayvec::ArrayVec;
use mm::addr::{ENTRIES, PAGE_SHIFT, Pfn};
use mm::sync::Ordering;

use super::{Books, Domain, Mapping, Revocation, State, span};
use crate::command::{Command, Iotlb};
use crate::entry::Entry;
use crate::hardware::Hardware;
use crate::queue::QueueError;
use crate::{Mutant, index};

/// Tables of this level and higher stay when the last block leaves them: there are few, each spans 512 GiB or more, and the
/// next mapping needs them again.
const STAYS: u8 = 3;

/// Mappings that are revoked with one wait.
const BATCH: usize = 16;

/// A mapping whose entries are cleared, and what is freed once the unit has forgotten it.
#[derive(Debug)]
struct Ended {
    block: u64,
    /// log2 of the pages of the block.
    order: u32,
    leaves: u64,
    /// Subtrees that hung below its entries, and the level of their roots.
    tops: Vec<Pfn>,
    top_level: u8,
    /// Level of the lowest table in them.
    lowest: u8,
    /// Tables that led to the block and to nothing else: each was the only one below the next.
    alone: ArrayVec<Pfn, 5>,
    /// Where nothing is mapped meanwhile.
    barred: Option<(u64, u64)>,
}

/// What somebody finds who wants to end a mapping.
enum Turn {
    /// It is ours to end.
    Ours(Ended),
    /// Another is at it.
    Others,
    /// It has ended.
    Over(Option<QueueError>),
}

impl<H: Hardware> Domain<H> {
    /// Ends the mapping `serial` in the block at page `block`.
    pub(super) fn end(&self, block: u64, serial: u64) -> Revocation {
        mm::lock_check::might_sleep("a revocation of DMA");
        loop {
            let turn = self.begin(&mut self.books.lock(), block, serial);
            match turn {
                Turn::Over(failed) => return Revocation { failed, ..Revocation::default() },
                Turn::Others if Mutant::SecondDoesNotWait.is_on() => return Revocation::default(),
                Turn::Others => self.hw.relax(),
                Turn::Ours(ended) => {
                    let command = self.command_for(&ended);
                    return self.finish(&mut [ended], &[command]);
                }
            }
        }
    }

    /// Ends several mappings with one wait for each sixteen. The same as revoking each, and cheaper.
    ///
    /// # Panics
    /// One of them is of another domain.
    pub fn revoke_all(&self, mappings: &[&Mapping]) -> Revocation {
        mm::lock_check::might_sleep("a revocation of DMA");
        let mut sum = Revocation::default();
        for batch in mappings.chunks(BATCH) {
            let (mut ended, mut commands) = (ArrayVec::<_, BATCH>::new(), ArrayVec::<_, BATCH>::new());
            let mut books = self.books.lock();
            for mapping in batch {
                assert_eq!(mapping.domain, self.id, "a mapping is revoked in another domain than its own");
                if let Turn::Ours(ours) = self.begin(&mut books, mapping.block, mapping.serial) {
                    commands.push(self.command_for(&ours));
                    ended.push(ours);
                }
            }
            drop(books);
            if !ended.is_empty() {
                sum = sum.and(self.finish(&mut ended, &commands));
            }
            // Those that others are at.
            sum = batch.iter().fold(sum, |sum, mapping| sum.and(self.end(mapping.block, mapping.serial)));
        }
        sum
    }

    pub(super) fn end_all(&self) -> Revocation {
        mm::lock_check::might_sleep("a domain that is closed");
        let mut sum = Revocation::default();
        loop {
            let mut ended = ArrayVec::<_, BATCH>::new();
            let mut books = self.books.lock();
            books.closed = true;
            let live = books.blocks.iter().filter(|(_, record)| record.state == State::Live);
            let batch: ArrayVec<_, BATCH> = live.map(|(block, record)| (*block, record.serial)).take(BATCH).collect();
            for (block, serial) in batch {
                if let Turn::Ours(ours) = self.begin(&mut books, block, serial) {
                    ended.push(ours);
                }
            }
            let mut others = books.blocks.values().filter(|record| !matches!(record.state, State::Lost(_)));
            let over = others.next().is_none();
            drop(books);
            if !ended.is_empty() {
                sum = sum.and(self.finish(&mut ended, &[Command::Iotlb(Iotlb::Domain { domain: self.id })]));
            } else if over {
                return sum;
            } else {
                self.hw.relax();
            }
        }
    }

    /// The one command by which the unit forgets a block, and what led there.
    fn command_for(&self, ended: &Ended) -> Command {
        let id = if Mutant::WrongDomain.is_on() { self.id ^ 1 } else { self.id };
        let order = ended.order.saturating_sub(u32::from(Mutant::RangeTooShort.is_on()));
        Command::block(id, ended.block, order, self.limit)
    }

    /// Clears the entries of a mapping, where it is live.
    fn begin(&self, books: &mut Books, block: u64, serial: u64) -> Turn {
        match books.blocks.get(&block).filter(|record| record.serial == serial).map(|record| record.state) {
            None => Turn::Over(None),
            Some(State::Lost(error)) => Turn::Over(Some(error)),
            Some(State::Building | State::Revoking) => Turn::Others,
            Some(State::Live) => Turn::Ours(self.clear(books, block)),
        }
    }

    /// Clears the entries that cover a block, or the one above them where nobody else is below that.
    fn clear(&self, books: &mut Books, block: u64) -> Ended {
        let Books { blocks, places, .. } = books;
        let record = blocks.get_mut(&block).expect("the caller has found it");
        record.state = State::Revoking;
        let mut ended = Ended {
            block,
            order: record.order,
            leaves: record.leaves.iter().sum(),
            tops: mem::take(&mut record.tops),
            top_level: record.level() - 1,
            lowest: record.lowest,
            alone: ArrayVec::new(),
            barred: None,
        };
        let (mut first, mut end) = (record.first, record.first + record.pages);
        let mut way = self.way(block, record.level());
        let mut level = self.levels.count() + 1 - way.len() as u8;
        let mut table = way.pop().expect("a way begins with the root");
        while let Some(above) = way.pop() {
            let span = span(block, level);
            let others = || blocks.range(span.0..span.1).any(|(at, record)| *at != block && record.state.has_tables());
            if level >= STAYS || !places.can_bar() || places.is_next(span) || others() {
                break;
            }
            ended.alone.push(table);
            ended.barred = Some(span);
            (table, level) = (above, level + 1);
            (first, end) = span;
        }
        if let Some(span) = ended.barred {
            places.bar(span);
        }
        let (at, last) = (index(first, level), index(end - 1, level));
        for nth in at..=last {
            self.hw.entry(table, nth).store(0, Ordering::Release);
        }
        self.hw.write_back(table, at, last - at + 1);
        ended
    }

    /// The tables that lead to the block, from the root down to that of `level`; fewer where memory ran out while they were
    /// made, and then nothing is mapped in the block.
    fn way(&self, block: u64, level: u8) -> ArrayVec<Pfn, 5> {
        let mut way = ArrayVec::from_iter([self.root]);
        for above in (level + 1..=self.levels.count()).rev() {
            let slot = self.hw.entry(way[way.len() - 1], index(block, above));
            let entry = Entry::from_bits(slot.load(Ordering::Relaxed));
            if !entry.is_table(above) {
                break;
            }
            way.push(entry.pfn());
        }
        way
    }

    /// Tells the unit, waits for it, and frees what was unlinked.
    fn finish(&self, ended: &mut [Ended], commands: &[Command]) -> Revocation {
        let mut done = Revocation { ranges: ended.len() as u64, first: true, ..Revocation::default() };
        done.leaves = ended.iter().map(|ended| ended.leaves).sum();
        if Mutant::FreedBeforeWait.is_on() {
            done.tables = ended.iter_mut().map(|ended| self.free_unlinked(ended)).sum();
        }
        if Mutant::AddressEarly.is_on() {
            ended.iter().for_each(|ended| self.strike_out(&mut self.books.lock(), ended, None));
        }
        let told = if Mutant::NoInvalidation.is_on() { Ok(()) } else { self.invalidate(commands) };
        done.commands = commands.len() as u64;
        done.failed = told.err();
        if done.failed.is_none() {
            done.tables += ended.iter_mut().map(|ended| self.free_unlinked(ended)).sum::<u64>();
        }
        let mut books = self.books.lock();
        for ended in ended.iter().filter(|_| !Mutant::AddressEarly.is_on()) {
            self.strike_out(&mut books, ended, done.failed);
        }
        books.stats.tables -= done.tables;
        done
    }

    /// The mapping is over in the books: its addresses are free, or lost.
    fn strike_out(&self, books: &mut Books, ended: &Ended, failed: Option<QueueError>) {
        let record = books.blocks.get_mut(&ended.block).expect("a block stays in the books until it is struck out");
        books.history.remember(record);
        books.stats.mappings -= 1;
        books.stats.bytes -= record.pages << PAGE_SHIFT;
        books.stats.revoked += 1;
        if let Some(error) = failed {
            // Barred for ever, and what was unlinked stays as it is: a device may be in there.
            record.state = State::Lost(error);
            books.stats.lost += 1;
            return;
        }
        books.blocks.remove(&ended.block);
        if let Some(span) = ended.barred {
            books.places.unbar(span);
        }
    }

    fn free_unlinked(&self, ended: &mut Ended) -> u64 {
        let alone = ended.alone.drain(..).map(|table| self.hw.free_table(table)).count() as u64;
        let (level, lowest) = (ended.top_level, ended.lowest);
        alone + mem::take(&mut ended.tops).into_iter().map(|top| self.free_tree(top, level, lowest)).sum::<u64>()
    }

    /// Frees a table of `level` and those below it, of which the lowest are of level `lowest`; says how many.
    pub(super) fn free_tree(&self, table: Pfn, level: u8, lowest: u8) -> u64 {
        let mut freed = 1;
        if level > lowest {
            for nth in 0..ENTRIES {
                let entry = Entry::from_bits(self.hw.entry(table, nth).load(Ordering::Relaxed));
                if entry.is_table(level) {
                    freed += self.free_tree(entry.pfn(), level - 1, lowest);
                }
            }
        }
        self.hw.free_table(table);
        freed
    }
}
