//! Several groups, the last of them short: what is taken from them, given back, and booked.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use mm::sync::{Arc, Mutex};

use super::super::*;
use crate::journal::Journal;
use crate::mutant::Faults;
use crate::pmem::{Pmem, Span};

/// Zeroes, but for the blocks that were stored as a whole; notes what was renewed.
#[derive(Default)]
struct Blocks {
    len: u64,
    there: Mutex<BTreeMap<u64, Box<Bytes>>>,
    renewed: Mutex<Vec<Span>>,
}

impl Pmem for Blocks {
    fn len_bytes(&self) -> u64 {
        self.len
    }
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), FsError> {
        match self.there.lock().get(&offset) {
            Some(block) => buf.copy_from_slice(&block[..buf.len()]),
            None => buf.fill(0),
        }
        Ok(())
    }
    fn store(&self, offset: u64, bytes: &[u8]) -> Result<(), FsError> {
        let block = Box::new(bytes.try_into().map_err(|_| FsError::Media(offset))?);
        self.there.lock().insert(offset, block);
        Ok(())
    }
    fn renew(&self, offset: u64, len: u64) -> Result<(), FsError> {
        self.renewed.lock().push((offset, len));
        Ok(())
    }
    fn write_back(&self, _offset: u64, _len: u64) {}
    fn fence(&self) -> Result<(), FsError> {
        Ok(())
    }
}

/// A new file system, and an operation on it that is under way.
struct Rig {
    pmem: Arc<Blocks>,
    store: Store,
    tx: Tx,
}

fn rig(nr_blocks: u64) -> Rig {
    let layout = Layout::plan(nr_blocks, None, 0).unwrap();
    let pmem = Arc::new(Blocks { len: nr_blocks * BLOCK_SIZE, ..Blocks::default() });
    let store = Store { pmem: pmem.clone(), layout, faults: Faults::default() };
    let mut tx = Tx::default();
    for group in 0..layout.nr_groups() {
        store.set_desc(&mut tx, group, first_desc(&layout, group)).unwrap();
    }
    Rig { pmem, store, tx }
}

impl Rig {
    /// Is each bit of the group's bitmap as `is_used` says of the block? Does the descriptor count the others?
    fn check(&mut self, group: u64, is_used: impl Fn(u64) -> bool) {
        let free = u64::from(self.store.desc(&mut self.tx, group).unwrap().free.get());
        let bits = Bits(self.store.bitmap(&mut self.tx, group).unwrap());
        let start = group * GROUP_BLOCKS;
        let wrong = (0..GROUP_BLOCKS).find(|&bit| bits.get(bit) != is_used(start + bit));
        assert_eq!(wrong, None, "group {group}");
        assert_eq!(
            free,
            (start..start + GROUP_BLOCKS).filter(|&block| !is_used(block)).count() as u64,
            "group {group}"
        );
    }
    /// Is in use what is fixed, and `runs`, and nothing else?
    fn check_all(&mut self, runs: &[Run]) {
        let layout = self.store.layout;
        for group in 0..layout.nr_groups() {
            let taken = |block| runs.iter().any(|run| (run.first..run.first + run.nr).contains(&block));
            self.check(group, |block| layout.is_fixed(block) || taken(block));
        }
    }
    fn take(&mut self, want: u64, hint: u64, aligned: bool) -> Result<Run, FsError> {
        self.store.take(&mut self.tx, want, hint, aligned)
    }
    fn take_at(&mut self, first: u64, want: u64) -> Option<Run> {
        self.store.take_at(&mut self.tx, first, want).unwrap()
    }
    fn take_areas_at(&mut self, first: u64, want: u64) -> Option<Run> {
        self.store.take_areas_at(&mut self.tx, first, want).unwrap()
    }
    fn take_whole(&mut self, hint: u64) -> Option<Run> {
        self.store.take_whole(&mut self.tx, hint).unwrap()
    }
    fn free_giant(&mut self) -> Option<u64> {
        self.store.free_giant(&mut self.tx).unwrap()
    }
    /// Gives blocks back: they are free when this returns.
    fn give_back(&mut self, first: u64, nr: u64) {
        self.tx.free(first, nr, false);
        self.store.settle_space(&mut self.tx).unwrap();
        self.tx.freed.clear();
    }
    /// All of it is in use then, in one group.
    fn take_all(&mut self) {
        let (first, end) = (self.store.layout.data_start, self.store.layout.copy_block());
        assert_eq!(self.take_at(first, end - first), Some(Run { first, nr: end - first }));
    }
    /// Ends the operation, as far as the medium is concerned, and begins another.
    fn next_operation(&mut self) {
        self.store.settle_space(&mut self.tx).unwrap();
        for (block, image) in core::mem::take(&mut self.tx).images {
            self.pmem.store(block * BLOCK_SIZE, &image.bytes[..]).unwrap();
        }
    }
}

#[test]
fn what_is_fixed_is_in_use_from_the_start() {
    for nr_blocks in [2000, GROUP_BLOCKS, GROUP_BLOCKS + 1, GROUP_BLOCKS + 2, 2 * GROUP_BLOCKS + 700, 3 * GROUP_BLOCKS]
    {
        rig(nr_blocks).check_all(&[]);
    }
    // 4 TiB: the bitmaps alone fill the first group.
    let mut rig = rig(1 << 30);
    let layout = rig.store.layout;
    assert!(layout.data_start > GROUP_BLOCKS);
    for group in [0, 1, 2, layout.nr_groups() - 1] {
        rig.check(group, |block| layout.is_fixed(block));
    }
}

#[test]
fn descriptors_lie_one_behind_the_other() {
    let layout = Layout::plan(300 * GROUP_BLOCKS, None, 0).unwrap();
    for group in 0..layout.nr_groups() {
        let (block, at) = layout.desc_place(group);
        assert_eq!(block * BLOCK_SIZE + at as u64, layout.desc_start * BLOCK_SIZE + group * 32);
        assert!(block < layout.bitmap_start && at + 32 <= BLOCK_SIZE as usize);
    }
}

#[test]
fn the_last_free_block_and_the_last_free_area_can_be_had() {
    let mut rig = rig(4096);
    rig.take_all();
    assert_eq!(rig.take(1, 0, false), Err(FsError::NoSpace));
    rig.give_back(1234, 1);
    assert_eq!(rig.take(1, 0, false), Ok(Run { first: 1234, nr: 1 }));
    rig.give_back(1024, HUGE_BLOCKS - 1);
    assert_eq!(rig.take_whole(0), None);
    rig.give_back(1024 + HUGE_BLOCKS - 1, 1);
    assert_eq!(rig.take(HUGE_BLOCKS, 0, true), Ok(Run { first: 1024, nr: HUGE_BLOCKS }));
    // A piece of an area that is free as a whole; and where there is none, any.
    rig.give_back(1024, HUGE_BLOCKS);
    assert_eq!(rig.take(3, 0, true), Ok(Run { first: 1024, nr: 3 }));
    assert_eq!(rig.take(3, 0, true), Ok(Run { first: 1027, nr: 3 }));
}

#[test]
fn a_search_begins_in_the_group_that_it_is_told() {
    let mut rig = rig(3 * GROUP_BLOCKS);
    let start_of = |group: u64| group * GROUP_BLOCKS;
    let mut taken = Vec::from([rig.take(5, 1, false).unwrap()]);
    assert_eq!(taken[0], Run { first: start_of(1), nr: 5 });
    taken.push(rig.take(700, 2, true).unwrap());
    assert_eq!(taken[1], Run { first: start_of(2), nr: 700 });
    taken.push(rig.take_whole(1).unwrap());
    assert_eq!(taken[2], Run { first: start_of(1) + HUGE_BLOCKS, nr: HUGE_BLOCKS });
    taken.push(rig.take_whole(2).unwrap());
    assert_eq!(taken[3], Run { first: start_of(2) + 2 * HUGE_BLOCKS, nr: HUGE_BLOCKS });
    rig.check_all(&taken);
    // Behind the last group comes the first.
    let behind = core::iter::from_fn(|| rig.take_whole(2)).find(|run| run.first < start_of(2));
    assert_eq!(behind, Some(Run { first: 3 * HUGE_BLOCKS, nr: HUGE_BLOCKS }));
}

#[test]
fn areas_are_taken_where_they_are_asked_for() {
    let mut rig = rig(3 * GROUP_BLOCKS);
    let first = GROUP_BLOCKS + 3 * HUGE_BLOCKS;
    assert_eq!(rig.take_areas_at(first, 700), Some(Run { first, nr: 700 }));
    assert_eq!(rig.take_areas_at(first, 1), None, "the first is in use");
    assert_eq!(rig.take_areas_at(first + HUGE_BLOCKS, 1), None, "the second is, in part");
    let before = first - 2 * HUGE_BLOCKS;
    assert_eq!(rig.take_areas_at(before, 5000), Some(Run { first: before, nr: 2 * HUGE_BLOCKS }));
    let last = 2 * GROUP_BLOCKS - HUGE_BLOCKS;
    assert_eq!(rig.take_areas_at(last, 5000), Some(Run { first: last, nr: HUGE_BLOCKS }), "to the group's end only");
    rig.check_all(&[Run { first: before, nr: 2 * HUGE_BLOCKS + 700 }, Run { first: last, nr: HUGE_BLOCKS }]);
    for nothing in [0, 3 * GROUP_BLOCKS - HUGE_BLOCKS, 3 * GROUP_BLOCKS, 1 << 40] {
        assert_eq!(rig.take_areas_at(nothing, 1), None, "{nothing}: not for data, in part or at all");
    }
}

#[test]
fn a_gibibyte_is_free_where_all_of_its_groups_are() {
    let mut rig = rig(4 * GIANT_BLOCKS + GROUP_BLOCKS + 9);
    assert_eq!(rig.free_giant(), Some(GIANT_BLOCKS), "in the first are the descriptors");
    rig.take_at(2 * GIANT_BLOCKS - 1, 1).unwrap();
    assert_eq!(rig.free_giant(), Some(2 * GIANT_BLOCKS), "of the second the last block is in use");
    rig.take_at(2 * GIANT_BLOCKS, 1).unwrap();
    assert_eq!(rig.free_giant(), Some(3 * GIANT_BLOCKS), "of the third the first block is");
    rig.take_at(3 * GIANT_BLOCKS + 5 * GROUP_BLOCKS, 1).unwrap();
    assert_eq!(rig.free_giant(), None, "the last one is not a whole one");
    rig.give_back(2 * GIANT_BLOCKS - 1, 1);
    assert_eq!(rig.free_giant(), Some(GIANT_BLOCKS));
}

#[test]
fn a_run_over_several_groups_is_given_back_to_each() {
    let mut rig = rig(3 * GROUP_BLOCKS + 100);
    let parts = [(GROUP_BLOCKS - 13, 13), (GROUP_BLOCKS, GROUP_BLOCKS), (2 * GROUP_BLOCKS, 21)];
    let parts = parts.map(|(first, nr)| {
        assert_eq!(rig.take_at(first, nr), Some(Run { first, nr }));
        Run { first, nr }
    });
    rig.check_all(&parts);
    // All of it but two blocks at each end.
    rig.give_back(GROUP_BLOCKS - 11, GROUP_BLOCKS + 30);
    rig.check_all(&[Run { first: GROUP_BLOCKS - 13, nr: 2 }, Run { first: 2 * GROUP_BLOCKS + 19, nr: 2 }]);
}

#[test]
fn what_is_taken_is_renewed_and_nothing_beside_it() {
    let mut rig = rig(2 * GROUP_BLOCKS);
    let first = GROUP_BLOCKS + 1000;
    rig.take_at(first, 7).unwrap();
    rig.take_areas_at(2048, 512).unwrap();
    assert_eq!(*rig.pmem.renewed.lock(), [(first * 4096, 7 * 4096), (2048 * 4096, 512 * 4096)]);
}

#[test]
fn the_journal_takes_about_what_was_estimated() {
    for nr in [1, 9, 64, 512, 5000, GROUP_BLOCKS - 8] {
        let mut rig = rig(3 * GROUP_BLOCKS);
        rig.take_at(GROUP_BLOCKS, 1).unwrap();
        rig.next_operation();
        rig.take_at(GROUP_BLOCKS + 8, nr).unwrap();
        rig.store.settle_space(&mut rig.tx).unwrap();
        let size = Journal::size_of(&rig.store.changes(&mut rig.tx).unwrap());
        assert!((size..size + 128).contains(&rig.tx.cost), "{nr} blocks: {size} bytes, {} estimated", rig.tx.cost);
        assert_eq!(rig.tx.taken, nr);
    }
}
