//! How a translation dies: clear, invalidate, wait, free.

use alloc::vec::Vec;
use core::mem;

use arrayvec::ArrayVec;
use mm::addr::{ENTRIES, PAGE_SHIFT, Pfn};
use mm::sync::Ordering;

use super::{Books, Domain, Mapping, Record, Revocation, State, span};
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
    /// The highest table that led to the block and to no other, where it was unlinked, and its level. All of the above is
    /// below it, and perhaps tables that others have left.
    unlinked: Option<(Pfn, u8)>,
    /// What it spans, where nothing is mapped meanwhile.
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
        if Mutant::InvalidatedFirst.is_on() {
            let _ = self.invalidate(&[Command::Iotlb(Iotlb::Domain { domain: self.id })]);
        }
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
            } else if over || Mutant::CloseDoesNotWait.is_on() {
                return sum;
            } else {
                self.hw.relax();
            }
        }
    }

    /// The one command by which the unit forgets a block, and what led there and is unlinked.
    fn command_for(&self, ended: &Ended) -> Command {
        let id = if Mutant::WrongDomain.is_on() { self.id ^ 1 } else { self.id };
        let span = ended.barred.filter(|_| !Mutant::UnlinkedNotTold.is_on());
        let (first, order) = span.map_or((ended.block, ended.order), |(first, end)| (first, (end - first).ilog2()));
        Command::block(id, first, order.saturating_sub(u32::from(Mutant::RangeTooShort.is_on())), self.limit)
    }

    /// Clears the entries of a mapping, where it is live.
    fn begin(&self, books: &mut Books, block: u64, serial: u64) -> Turn {
        let is_it = |record: &&Record| record.serial == serial || Mutant::StaleHandle.is_on();
        match books.blocks.get(&block).filter(is_it).map(|record| record.state) {
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
            unlinked: None,
            barred: None,
        };
        let (mut first, mut end) = (record.first, record.first + record.pages);
        let mut way = self.way(block, record.level());
        let mut level = self.levels.count() + 1 - way.len() as u8;
        let mut table = way.pop().expect("a way begins with the root");
        while let Some(above) = way.pop() {
            let span = span(block, level);
            let uses = |(at, record): (&u64, &Record)| *at != block && record.state.has_tables();
            let others = || !Mutant::SharedTableUnlinked.is_on() && blocks.range(span.0..span.1).any(uses);
            if level >= STAYS || !places.can_bar() || places.is_next(span) || others() {
                break;
            }
            ended.unlinked = Some((table, level));
            ended.barred = Some(span);
            (table, level) = (above, level + 1);
            (first, end) = span;
        }
        if let Some(span) = ended.barred.filter(|_| !Mutant::SpanNotBarred.is_on()) {
            places.bar(span);
        }
        let (at, last) = (index(first, level), index(end - 1, level));
        for nth in at..=last {
            self.hw.entry(table, nth).store(0, Ordering::Release);
        }
        if !Mutant::NotWrittenBack.is_on() {
            self.hw.write_back(table, at, last - at + 1);
        }
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
        let none = Mutant::NoInvalidation.is_on() || Mutant::InvalidatedFirst.is_on();
        let told = if none { Ok(()) } else { self.invalidate(commands) };
        done.commands = commands.len() as u64;
        done.failed = told.err();
        if done.failed.is_none() || Mutant::LostFreed.is_on() {
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

    /// Unlinks what others have left below the entries of a block that is about to be filled: empty tables, which stayed when
    /// the last mapping below them went. The unit may remember them.
    pub(super) fn sweep(
        &self,
        table: Pfn,
        level: u8,
        first: usize,
        count: usize,
        command: Command,
    ) -> Result<u64, QueueError> {
        let (mut freed, mut at) = (0, first);
        while level > 1 && at < first + count {
            let mut left = ArrayVec::<Pfn, BATCH>::new();
            while at < first + count && !left.is_full() {
                let slot = self.hw.entry(table, at);
                let entry = Entry::from_bits(slot.load(Ordering::Relaxed));
                if entry.is_table(level) && !Mutant::LeftTablesStay.is_on() {
                    slot.store(0, Ordering::Release);
                    self.hw.write_back(table, at, 1);
                    left.push(entry.pfn());
                }
                at += 1;
            }
            if !left.is_empty() {
                self.invalidate(&[command])?;
                freed += left.into_iter().map(|left| self.free_tree(left, level - 1, 1)).sum::<u64>();
            }
        }
        Ok(freed)
    }

    fn free_unlinked(&self, ended: &mut Ended) -> u64 {
        let tops = mem::take(&mut ended.tops);
        match ended.unlinked.take() {
            Some((table, level)) => self.free_tree(table, level, 1),
            None => tops.into_iter().map(|top| self.free_tree(top, ended.top_level, ended.lowest)).sum(),
        }
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
