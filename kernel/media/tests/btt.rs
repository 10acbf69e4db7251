//! Sectors through a block translation table: what Linux would show of them, wherever the last writer has ended.

use media::btt::{ReadError, Table, TableFault};
use media::info::Parent;
use media::{Medium, Uuid};
use proptest::prelude::*;
use std::collections::BTreeMap;
use testkit::btt::{TableOf, Until, Writer};

fn open(writer: &Writer) -> Table {
    Table::open(&writer.namespace, Parent::Unlabelled).unwrap()
}

fn sector(table: &Table, namespace: &dyn Medium, sector: u64, len: u64) -> Result<Vec<u8>, ReadError> {
    let mut bytes = vec![0xee; len as usize];
    table.read(namespace, sector * len, &mut bytes).map(|()| bytes)
}

fn why(namespace: &dyn Medium) -> String {
    match Table::open(namespace, Parent::Unlabelled) {
        Ok(_) => "it is read".into(),
        Err(fault) => fault.to_string(),
    }
}

/// The two bits above the block, in each of their four states.
// covers: M3
#[test]
fn the_flags_of_a_map_entry_are_those_of_linux() {
    let mut writer = Writer::new(TableOf::default());
    let mut put = |sector: u32, entry: u32| writer.namespace.put(writer.map(sector), &entry.to_le_bytes());
    [(1, 7), (2, 1 << 30 | 2), (3, 1 << 31 | 3), (4, 3 << 30 | 9), (5, 3 << 30 | 296), (39, 3 << 30 | 295)]
        .into_iter()
        .for_each(|(sector, entry)| put(sector, entry));
    for (block, byte) in [(1, 1), (2, 2), (3, 3), (9, 9), (295, 39)] {
        let place = writer.block(0, block);
        writer.namespace.put(place, &[byte; 4096]);
    }
    let table = open(&writer);
    let read = |nr| sector(&table, &writer.namespace, nr, 4096);
    // Both clear: never written, and whatever else the entry says, the sector is where it was at first.
    assert_eq!((read(0), read(1)), (Ok(vec![0; 4096]), Ok(vec![1; 4096])));
    assert_eq!(read(2), Err(ReadError::Marked(2)), "error");
    assert_eq!(read(3), Ok(vec![0; 4096]), "zero, whatever is in the block");
    assert_eq!((read(4), read(39)), (Ok(vec![9; 4096]), Ok(vec![39; 4096])), "normal");
    assert_eq!(read(5), Err(ReadError::Map(5)), "beyond the last block");
    assert_eq!(read(40), Err(ReadError::Beyond(40 * 4096)));
    assert_eq!(table.read(&writer.namespace, u64::MAX, &mut [0; 2]), Err(ReadError::Beyond(40 * 4096)));
    // Across sectors, and from the middle of one.
    let mut bytes = [0; 4097];
    table.read(&writer.namespace, 3 * 4096 + 4095, &mut bytes).unwrap();
    assert!(bytes[0] == 0 && bytes[1..4097] == [9; 4096]);
}

/// A write counts from the moment that its entry in the log is whole.
#[test]
fn a_write_that_came_to_the_log_counts() {
    for (until, byte) in [(Until::Data, 1), (Until::HalfLog, 1), (Until::Log, 2), (Until::Map, 2)] {
        let mut writer = Writer::new(TableOf::default());
        writer.write(0, 7, &[1; 4096], Until::Map);
        writer.write(3, 7, &[2; 4096], until);
        let table = open(&writer);
        assert_eq!(sector(&table, &writer.namespace, 7, 4096), Ok(vec![byte; 4096]), "{until:?}");
        assert_eq!(sector(&table, &writer.namespace, 6, 4096), Ok(vec![0; 4096]));
    }
}

/// Of 520 bytes the block has 576 and the reader gets 512.
#[test]
fn what_stands_behind_a_sector_is_not_read() {
    for (sector_bytes, payload) in [(512, 512), (520, 512), (528, 512), (4096, 4096), (4104, 4096), (4224, 4096)] {
        let mut writer = Writer::new(TableOf { sector_bytes, ..TableOf::default() });
        writer.write(0, 1, &vec![5; sector_bytes as usize], Until::Map);
        let table = open(&writer);
        assert_eq!(table.len_bytes(), 40 * payload);
        assert_eq!(sector(&table, &writer.namespace, 1, payload), Ok(vec![5; payload as usize]));
        assert_eq!(sector(&table, &writer.namespace, 2, payload), Ok(vec![0; payload as usize]));
    }
}

#[test]
fn what_cannot_be_read_costs_the_sectors_that_are_there() {
    let mut writer = Writer::new(TableOf::default());
    writer.write(0, 1, &[1; 4096], Until::Map);
    let (mut block, mut map) = (writer.clone(), writer.clone());
    block.namespace.lose(writer.block(1, 40));
    let table = open(&block);
    assert_eq!(sector(&table, &block.namespace, 1, 4096), Err(ReadError::Lost(1)));
    assert_eq!(sector(&table, &block.namespace, 2, 4096), Ok(vec![0; 4096]));
    map.namespace.lose(writer.map(1));
    // The log's last entry has to be compared with it.
    assert_eq!(why(&map.namespace), "BTT: its map cannot be read");
}

/// Linux makes no device of these either.
#[test]
fn a_log_that_is_not_understood_refuses_the_table() {
    let writer = Writer::new(TableOf::default());
    let log = writer.map(0) + 4096;
    let with = |at: u64, words: &[u32]| {
        let mut namespace = writer.namespace.clone();
        namespace.put(log + at, &words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>());
        why(&namespace)
    };
    assert_eq!(with(0, &[0, 1, 2, 1, 0, 1, 2, 1]), "BTT: the sequence of its log is impossible");
    assert_eq!(with(0, &[0, 1, 2, 3, 0, 1, 2, 3]), "BTT: the sequence of its log is impossible");
    assert_eq!(with(0, &[0, 1, 2, u32::MAX, 0, 1, 2, 3]), "BTT: the sequence of its log is impossible");
    assert_eq!(with(48, &[0, 1, 2, 1]), "BTT: the places of its log's entries are not known");
    assert_eq!(with(64, &[0, 0, 0, 0]), "BTT: the places of its log's entries are not known");
    assert_eq!(with(16, &[40, 1, 2, 2]), "BTT: its log names a sector that there is not");
    assert_eq!(with(16, &[39, 1, 2, 2]), "it is read");
    let mut lost = writer.namespace.clone();
    lost.lose(log);
    assert_eq!(why(&lost), "BTT: its log cannot be read");
    let empty = testkit::media::Sparse::new(1 << 20);
    assert_eq!(Table::open(&empty, Parent::Unlabelled).unwrap_err(), TableFault::None);
    let other = Table::open(&writer.namespace, Parent::Label(Uuid([9; 16]))).unwrap_err();
    assert_eq!(other.to_string(), "BTT info block: it belongs to another namespace");
}

/// Numbers of an info block with the right checksum that no arena can have.
#[test]
fn impossible_arenas_are_refused() {
    let writer = Writer::new(TableOf::default());
    let with = |at: u64, word: u32| {
        let mut page = vec![0; 4096];
        let mut namespace = writer.namespace.clone();
        namespace.read(4096, &mut page).unwrap();
        page[at as usize..at as usize + 4].copy_from_slice(&word.to_le_bytes());
        media::fletcher::seal(&mut page, 4088);
        namespace.put(4096, &page);
        why(&namespace)
    };
    let outside = "BTT: an arena's blocks, map or log end outside the namespace";
    assert_eq!(
        (with(68, u32::MAX), with(64, u32::MAX), with(60, u32::MAX)),
        (outside.into(), outside.into(), outside.into())
    );
    let lanes = "BTT: its log has more lanes than there can be";
    assert_eq!((with(72, u32::MAX), with(72, (1 << 12) + 1)), (lanes.into(), lanes.into()));
    assert_eq!(with(72, 1 << 12), outside);
    assert_eq!(with(64, 512), "BTT: an arena has too few blocks, or too small ones");
    assert_eq!(with(68, 39), "BTT: an arena has too few blocks, or too small ones");
}

fn writes() -> impl Strategy<Value = Vec<(u32, u32, u8)>> {
    prop::collection::vec((0..8_u32, 0..120_u32, any::<u8>()), 0..60)
}

proptest! {
    /// Whatever was written, in whatever order, and wherever the last writes of some lanes were cut off: a sector has
    /// what the last write that counts has put there, and never a part of it.
    #[test]
    fn every_sector_is_what_was_last_written(
        writes in writes(),
        cut in prop::collection::vec((0..120_u32, any::<u8>(), 0..4_u8), 0..6),
        at in prop_oneof![Just(0), Just(4096_u64)],
        second in 1..3_u64,
        nr_arenas in 1..4_u32,
        sector_bytes in prop_oneof![Just(512_u32), Just(520), Just(4096), Just(4160)],
    ) {
        let of = TableOf { at, second, nr_arenas, sector_bytes, ..TableOf::default() };
        let mut writer = Writer::new(of);
        let nr_sectors = 40 * nr_arenas;
        let mut model = BTreeMap::new();
        for (lane, sector, byte) in writes {
            let sector = sector % nr_sectors;
            writer.write(lane, sector, &vec![byte; sector_bytes as usize], Until::Map);
            model.insert(sector, byte);
        }
        let mut interrupted = BTreeMap::new();
        for (lane, (sector, byte, until)) in cut.into_iter().enumerate() {
            // A lane is busy until it is done, and so is a sector.
            if interrupted.insert(sector % nr_sectors, ()).is_some() {
                continue;
            }
            let until = [Until::Data, Until::HalfLog, Until::Log, Until::Map][usize::from(until)];
            writer.write(lane as u32, sector % nr_sectors, &vec![byte; sector_bytes as usize], until);
            if until >= Until::Log {
                model.insert(sector % nr_sectors, byte);
            }
        }
        let (table, payload) = (open(&writer), if sector_bytes >= 4096 { 4096 } else { 512 });
        prop_assert_eq!(table.len_bytes(), u64::from(nr_sectors) * payload);
        for nr in 0..nr_sectors {
            let want = vec![model.get(&nr).copied().unwrap_or(0); payload as usize];
            prop_assert_eq!(sector(&table, &writer.namespace, nr.into(), payload), Ok(want));
        }
    }
}
