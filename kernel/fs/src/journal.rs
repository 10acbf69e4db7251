//! The journal: a redo log that makes several changes one.
//!
//! # Protocol
//! The journal is an area that is filled with records from the front. A record holds the new bytes of everything
//! that an operation changes, and a checksum over all of it, so that one fence makes it all or nothing.
//!
//! | step of an operation | after it, a power cut leaves |
//! |---|---|
//! | 1. new data, and new metadata blocks, go to free blocks; write-back | the old state |
//! | 2. **fence** | the old state |
//! | 3. the record; write-back | the old state, or the new one if all of the record's lines got there |
//! | 4. **fence**: the operation is done | the new state, by replaying the record |
//! | 5. the changes go to their places; write-back, no fence | the new state |
//!
//! An area that is full is emptied: a fence makes all changes in place durable (5), then the *epoch*, one atomic
//! word in front of the area, grows by one, which makes every record in it void, and that is fenced too. Records
//! carry their epoch and their number, and recovery replays the unbroken run from the front.
//!
//! **A freed metadata block** must not hold data while a record still has changes to it: a replay would put them
//! over the data. An operation that frees one which this epoch has changed empties the journal at its end.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use mm::sync::Arc;
use zerocopy::IntoBytes;

use crate::error::FsError;
use crate::format::{BLOCK_SIZE, RECORD_MAGIC, RawChange, RawRecord, crc_of, is_sealed, seal, view};
use crate::mutant::{Faults, Mutant};
use crate::pmem::{Dirty, Durable, LINE, Pmem, WrittenBack, store};

/// Bytes before the first record: the epoch's word has a block of its own.
const FIRST: u64 = BLOCK_SIZE;
const HEAD: usize = size_of::<RawRecord>();
const CHANGE: usize = size_of::<RawChange>();

/// New bytes for a place in the file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) offset: u64,
    pub(crate) bytes: Vec<u8>,
}

/// Where a journal lies.
#[derive(Clone)]
pub(crate) struct Area {
    pub(crate) pmem: Arc<dyn Pmem>,
    /// First byte.
    pub(crate) base: u64,
    pub(crate) len: u64,
    /// Mixed into every checksum, so that the records of an older file system are none.
    pub(crate) salt: u64,
}

impl Area {
    fn epoch_word(&self, epoch: u32) -> u64 {
        u64::from(epoch) | u64::from(crc_of(&epoch.to_le_bytes(), self.salt)) << 32
    }

    /// Makes the area an empty journal of `epoch`: durable at once.
    pub(crate) fn set_epoch(&self, epoch: u32) -> Result<Durable, FsError> {
        // Eight aligned bytes: the old epoch or the new one, never a mixture.
        let word = store(&*self.pmem, self.base, &self.epoch_word(epoch).to_le_bytes())?;
        word.write_back(&*self.pmem).fence(&*self.pmem)
    }

    /// Makes the area the empty journal of a new file system. The records of an older one with the same UUID would be
    /// taken for its own, so that they go first: at most 4 MiB of zeroes.
    pub(crate) fn make(&self) -> Result<Durable, FsError> {
        let mut void = Dirty::default();
        for at in (FIRST..self.len).step_by(BLOCK_SIZE as usize) {
            void = void.and(store(&*self.pmem, self.base + at, &[0; BLOCK_SIZE as usize])?);
        }
        let _void = void.write_back(&*self.pmem).fence(&*self.pmem)?;
        self.set_epoch(1)
    }

    fn epoch(&self) -> Result<u32, FsError> {
        let mut word = [0; 8];
        self.pmem.read(self.base, &mut word)?;
        let word = u64::from_le_bytes(word);
        let epoch = word as u32;
        if self.epoch_word(epoch) == word { Ok(epoch) } else { Err(FsError::damaged("journal epoch", 0)) }
    }

    /// The record at `at`, if there is a whole one of this epoch and number there. Answers its changes and its end.
    fn record(
        &self,
        at: u64,
        epoch: u32,
        sequence: u32,
        faults: Faults,
    ) -> Result<Option<(Vec<Change>, u64)>, FsError> {
        let mut head = [0; HEAD];
        if self.len < at + HEAD as u64 {
            return Ok(None);
        }
        self.pmem.read(self.base + at, &mut head)?;
        let head: RawRecord = view(&head, "journal record", at)?;
        let len = u64::from(head.len_bytes.get());
        let is_ours = head.epoch.get() == epoch && head.sequence.get() == sequence;
        if head.magic.get() != RECORD_MAGIC
            || !(is_ours || faults.has(Mutant::EpochIgnored))
            || len < HEAD as u64
            || len > self.len - at
        {
            return Ok(None);
        }
        let mut bytes = alloc::vec![0; len as usize];
        self.pmem.read(self.base + at, &mut bytes)?;
        if !is_sealed(&bytes, RECORD_MAGIC, self.salt ^ at) && !faults.has(Mutant::ChecksumSkipped) {
            return Ok(None);
        }
        match parse(&bytes[HEAD..], head.changes.get()) {
            Some(changes) => Ok(Some((changes, (at + len).next_multiple_of(LINE)))),
            None => Err(FsError::damaged("journal record with a good checksum and bad contents", at)),
        }
    }
}

fn parse(mut bytes: &[u8], nr: u32) -> Option<Vec<Change>> {
    let mut changes = Vec::new();
    for _ in 0..nr {
        let (head, rest) = bytes.split_at_checked(CHANGE)?;
        let head: RawChange = view(head, "", 0).ok()?;
        let len = head.len_bytes.get() as usize;
        let (body, rest) = rest.split_at_checked(len.checked_next_multiple_of(8)?)?;
        changes.push(Change { offset: head.offset.get(), bytes: body[..len].to_vec() });
        bytes = rest;
    }
    Some(changes)
}

/// The journal of a mounted file system.
pub(crate) struct Journal {
    area: Area,
    epoch: u32,
    sequence: u32,
    /// Where the next record goes.
    at: u64,
    /// Blocks that records of this epoch change.
    logged: BTreeSet<u64>,
    /// Changes in place since the last fence that followed them.
    homes: WrittenBack,
    faults: Faults,
}

impl Journal {
    /// Reads a journal: the changes that are to be replayed, in their order.
    pub(crate) fn open(area: Area, faults: Faults) -> Result<(Self, Vec<Change>), FsError> {
        let epoch = area.epoch()?;
        let (mut at, mut sequence, mut replay) = (FIRST, 0, Vec::new());
        while let Some((changes, end)) = area.record(at, epoch, sequence, faults)? {
            replay.extend(changes);
            (at, sequence) = (end, sequence + 1);
        }
        let logged = BTreeSet::new();
        Ok((Self { area, epoch, sequence, at, logged, homes: WrittenBack::default(), faults }, replay))
    }

    /// Most bytes that the changes of one operation may take in it.
    pub(crate) fn capacity(&self) -> usize {
        (self.area.len.saturating_sub(FIRST) as usize).saturating_sub(HEAD)
    }

    /// Bytes that `changes` take.
    pub(crate) fn size_of(changes: &[Change]) -> usize {
        changes.iter().map(|change| CHANGE + change.bytes.len().next_multiple_of(8)).sum()
    }

    /// Makes `changes` durable as one, after `data`, and puts them in their places.
    pub(crate) fn commit(&mut self, home: &dyn Pmem, changes: &[Change], data: WrittenBack) -> Result<(), FsError> {
        let record = self.record_of(changes)?;
        if self.faults.has(Mutant::HomeBeforeCommit) {
            self.put_home(home, changes)?;
        }
        if self.faults.has(Mutant::CommitBeforeData) {
            let _late = self.append(record, WrittenBack::default().fence(home)?)?;
            let _data = data.fence(home)?;
        } else {
            let data = data.fence_unless(self.faults, Mutant::DataNotFenced, home)?;
            let _committed = self.append(record, data)?;
        }
        self.logged.extend(changes.iter().map(|change| change.offset / BLOCK_SIZE));
        self.put_home(home, changes)
    }

    /// The bytes of a record of `changes`, but for its head's place. Empties the area first where it does not fit.
    fn record_of(&mut self, changes: &[Change]) -> Result<Vec<u8>, FsError> {
        let len = HEAD + Self::size_of(changes);
        if Self::size_of(changes) > self.capacity() {
            return Err(FsError::JournalTooSmall);
        }
        let mut bytes = alloc::vec![0; HEAD];
        for change in changes {
            let head = RawChange {
                offset: change.offset.into(),
                len_bytes: (change.bytes.len() as u32).into(),
                reserved: 0.into(),
            };
            bytes.extend_from_slice(head.as_bytes());
            bytes.extend_from_slice(&change.bytes);
            bytes.resize(bytes.len().next_multiple_of(8), 0);
        }
        let head = RawRecord {
            magic: RECORD_MAGIC.into(),
            crc: 0.into(),
            epoch: 0.into(),
            sequence: 0.into(),
            len_bytes: (len as u32).into(),
            changes: (changes.len() as u32).into(),
            reserved: 0.into(),
        };
        bytes[..HEAD].copy_from_slice(head.as_bytes());
        Ok(bytes)
    }

    /// Is there room for a record of `len` bytes without emptying the area?
    fn has_room(&self, len: usize) -> bool {
        self.at + len as u64 <= self.area.len
    }

    /// Steps 3 and 4. `_data`: what the record makes part of a file is on the medium.
    fn append(&mut self, mut record: Vec<u8>, _data: Durable) -> Result<Durable, FsError> {
        debug_assert!(self.has_room(record.len()), "the journal is emptied before an operation begins to write");
        record[8..12].copy_from_slice(&self.epoch.to_le_bytes());
        record[12..16].copy_from_slice(&self.sequence.to_le_bytes());
        seal(&mut record, self.area.salt ^ self.at);
        let pmem = &*self.area.pmem;
        let stored = store(pmem, self.area.base + self.at, &record)?;
        self.at = (self.at + record.len() as u64).next_multiple_of(LINE);
        self.sequence += 1;
        if self.faults.has(Mutant::CommitNotWrittenBack) {
            pmem.fence()?;
            drop(stored);
            return WrittenBack::default().fence(pmem);
        }
        stored.write_back(pmem).fence_unless(self.faults, Mutant::CommitNotFenced, pmem)
    }

    /// Step 5.
    fn put_home(&mut self, home: &dyn Pmem, changes: &[Change]) -> Result<(), FsError> {
        for change in changes {
            let stored = store(home, change.offset, &change.bytes)?;
            if self.faults.has(Mutant::HomeNotWrittenBack) {
                drop(stored);
                continue;
            }
            let homes = core::mem::take(&mut self.homes);
            self.homes = homes.and(stored.write_back(home));
        }
        Ok(())
    }

    /// Makes room for a record of `changes`: before the operation's data are fenced.
    pub(crate) fn make_room(&mut self, home: &dyn Pmem, changes: &[Change]) -> Result<(), FsError> {
        if self.has_room(HEAD + Self::size_of(changes)) { Ok(()) } else { self.empty(home) }
    }

    /// Has a record of this epoch changes to a block of this run?
    pub(crate) fn has_logged(&self, first: u64, nr: u64) -> bool {
        self.logged.range(first..first + nr).next().is_some()
    }

    /// Replays what [`open`](Self::open) found.
    pub(crate) fn replay(&mut self, home: &dyn Pmem, changes: &[Change]) -> Result<(), FsError> {
        self.put_home(home, changes)?;
        if changes.is_empty() { Ok(()) } else { self.empty(home) }
    }

    /// Empties the area: everything is in its place.
    pub(crate) fn empty(&mut self, home: &dyn Pmem) -> Result<(), FsError> {
        let homes = core::mem::take(&mut self.homes);
        self.at = FIRST;
        self.sequence = 0;
        self.logged.clear();
        self.epoch = self.epoch.wrapping_add(1);
        let homes = homes.fence_unless(self.faults, Mutant::CheckpointNotFenced, home)?;
        self.void_records(homes)
    }

    /// `_homes`: everything that the records say is in its place.
    fn void_records(&mut self, _homes: Durable) -> Result<(), FsError> {
        self.area.set_epoch(self.epoch).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use std::vec;

    struct Memory(Mutex<Vec<u8>>);

    impl Pmem for Memory {
        fn len_bytes(&self) -> u64 {
            self.0.lock().unwrap().len() as u64
        }
        fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), FsError> {
            buf.copy_from_slice(&self.0.lock().unwrap()[offset as usize..][..buf.len()]);
            Ok(())
        }
        fn store(&self, offset: u64, bytes: &[u8]) -> Result<(), FsError> {
            self.0.lock().unwrap()[offset as usize..][..bytes.len()].copy_from_slice(bytes);
            Ok(())
        }
        fn write_back(&self, _offset: u64, _len: u64) {}
        fn fence(&self) -> Result<(), FsError> {
            Ok(())
        }
    }

    /// Whoever asks before he writes anything is told the same as who commits.
    #[test]
    fn what_is_as_large_as_the_journal_is_committed_and_no_byte_more() {
        let len = 2 * BLOCK_SIZE;
        let pmem: Arc<dyn Pmem> = Arc::new(Memory(Mutex::new(vec![0; 4 * len as usize])));
        let area = Area { pmem: pmem.clone(), base: 0, len, salt: 7 };
        area.make().unwrap();
        let (mut journal, _) = Journal::open(area.clone(), Faults::default()).unwrap();
        let of = |bytes: usize| [Change { offset: len, bytes: vec![9; bytes - CHANGE] }];
        let capacity = journal.capacity();
        for (bytes, fits) in [(capacity + 8, false), (capacity, true)] {
            let changes = of(bytes);
            assert_eq!(Journal::size_of(&changes) <= capacity, fits);
            let committed = journal
                .make_room(&*pmem, &changes)
                .and_then(|()| journal.commit(&*pmem, &changes, WrittenBack::default()));
            assert_eq!(committed, if fits { Ok(()) } else { Err(FsError::JournalTooSmall) }, "{bytes} of {capacity}");
        }
        let (_, replay) = Journal::open(area, Faults::default()).unwrap();
        assert_eq!(replay, of(capacity));
    }
}
