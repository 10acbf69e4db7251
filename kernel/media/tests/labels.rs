//! The label area: which index block counts, and which slots are labels.

use media::label::{Fault, MAX_LABELS, UPDATING, read};
use testkit::media::{LabelArea, LabelOf};

const AREA: usize = 128 << 10;
const MIB: u64 = 1 << 20;

fn faults(area: &LabelArea) -> Vec<Fault> {
    read(&&area.bytes[..]).expect("an area").faults
}

fn slots(area: &LabelArea) -> Vec<u32> {
    read(&&area.bytes[..]).expect("an area").labels.iter().map(|label| label.slot).collect()
}

/// Two namespaces, each of which was written twice: the slots of the first versions are free by now.
fn two(minor: u16) -> LabelArea {
    let first = LabelOf { name: "first", ..LabelOf::default() };
    let second = LabelOf { uuid: media::Uuid([9; 16]), dpa: 16 * MIB, ..LabelOf::default() };
    let updating = |of: &LabelOf| LabelOf { flags: UPDATING, ..of.clone() };
    LabelArea::new(AREA, minor)
        .label(0, &updating(&first))
        .label(1, &first)
        .label(2, &updating(&second))
        .label(3, &second)
        .index(0, 2, &[1, 3])
        .index(1, 1, &[1, 2])
}

// covers: M2
#[test]
fn both_versions_are_read_and_slots_that_are_free_are_not() {
    for minor in [1, 2] {
        let area = two(minor);
        let found = read(&&area.bytes[..]).expect("an area");
        assert_eq!(found.faults, [], "{minor}");
        let index = found.index.expect("one of them counts");
        assert_eq!((index.number, index.version), (0, (1, minor)));
        let read: Vec<_> = found.labels.iter().map(|of| (of.slot, &*of.name, of.dpa, of.len_bytes)).collect();
        assert_eq!(read, [(1, "first", 0, 16 * MIB), (3, "", 16 * MIB, 16 * MIB)], "{minor}");
    }
    // What ndctl makes of QEMU's 128 KiB.
    assert_eq!(LabelArea::new(AREA, 1).nr_slots(), 1020);
}

// covers: M2
#[test]
fn the_index_block_that_comes_after_the_other_one_counts() {
    for (first, second, expected) in
        [(1, 2, 1), (2, 3, 1), (3, 1, 1), (2, 1, 0), (3, 2, 0), (1, 3, 0), (1, 1, 1), (3, 3, 1)]
    {
        let area = LabelArea::new(AREA, 1)
            .label(0, &LabelOf::default())
            .label(1, &LabelOf::default())
            .index(0, first, &[0])
            .index(1, second, &[1]);
        assert_eq!(slots(&area), [expected], "{first} {second}");
    }
}

/// An index block that was being written when the power failed: the other one counts.
// covers: M2
#[test]
fn a_damaged_index_block_leaves_the_other_one() {
    for (number, left) in [(0, [1, 2]), (1, [1, 3])] {
        for at in [0, 20, 40, 72, 255] {
            let mut area = two(1);
            let place = area.index_at(number) + at;
            area.bytes[place] ^= 1;
            let found = read(&&area.bytes[..]).expect("an area");
            // A signature that is damaged is none, and the other block alone is no reason for a line.
            let expected = if at == 0 { vec![] } else { vec![Fault::Index(number as u64, "its checksum is wrong")] };
            assert_eq!(found.index.map(|index| index.number), Some(1 - number as u64), "{number} {at}");
            let index_faults: Vec<_> =
                found.faults.into_iter().filter(|fault| matches!(fault, Fault::Index(..))).collect();
            assert_eq!(index_faults, expected, "{number} {at}");
            // The second one still lists a slot whose label was not written to its end.
            let whole = if number == 0 { &left[..1] } else { &left[..] };
            assert_eq!(slots(&area), whole, "{number} {at}");
        }
    }
}

// covers: M2
#[test]
fn without_an_index_block_no_slot_is_a_label() {
    let mut area = two(1);
    for number in [0, 1] {
        let place = area.index_at(number) + 64;
        area.bytes[place] ^= 1;
    }
    assert!(slots(&area).is_empty());
    assert_eq!(faults(&area).last(), Some(&Fault::NoIndex));
    // No area at all is no fault: the range is one namespace.
    assert!(read(&&vec![0_u8; AREA][..]).is_none() && read(&&[0_u8; 0][..]).is_none());
    assert!(read(&&vec![0xff_u8; AREA][..]).is_none());
}

// covers: M2
#[test]
fn a_slot_that_is_in_use_and_holds_no_label_is_left_alone() {
    let half = LabelOf { flags: UPDATING, ..LabelOf::default() };
    let elsewhere = LabelOf { says_slot: Some(7), ..LabelOf::default() };
    for minor in [1, 2] {
        let mut area = LabelArea::new(AREA, minor)
            .label(2, &half)
            .label(3, &elsewhere)
            .label(4, &LabelOf::default())
            .label(5, &LabelOf::default())
            .index(0, 1, &[2, 3, 4, 5]);
        let place = area.slot_at(5) + 105;
        area.bytes[place] ^= 1;
        let mut expected = vec![
            Fault::Slot(2, "its label was not written to its end"),
            Fault::Slot(3, "its label says that it belongs to another slot"),
        ];
        // Version 1.1 has no checksum of labels: a byte that is wrong there is not seen.
        if minor == 2 {
            expected.push(Fault::Slot(5, "its label's checksum is wrong"));
        }
        assert_eq!((faults(&area), slots(&area)), (expected, if minor == 2 { vec![4] } else { vec![4, 5] }));
    }
}

/// How many labels are kept, and how many lines about them there are, does not come from the medium.
// covers: M2
#[test]
fn more_labels_than_are_kept_are_none() {
    let with = |used: u32| {
        let used: Vec<u32> = (0..used).collect();
        let area = used.iter().fold(LabelArea::new(1 << 20, 1), |area, &slot| area.label(slot, &LabelOf::default()));
        area.index(0, 1, &used)
    };
    let (most, more) = (with(MAX_LABELS), with(MAX_LABELS + 1));
    assert_eq!((slots(&most).len(), faults(&most)), (MAX_LABELS as usize, vec![]));
    assert_eq!((slots(&more), faults(&more)), (vec![], vec![Fault::TooMany(MAX_LABELS + 1)]));
}

// covers: M2
#[test]
fn an_index_block_that_says_impossible_things_is_not_believed() {
    for (at, bytes, why) in [
        (20, &[4, 0][..], "its sequence number is not 1, 2 or 3"),
        (20, &[0], "its sequence number is not 1, 2 or 3"),
        (24, &[1], "it says that it is somewhere else"),
        (40, &[0, 3], "it says that it is somewhere else"),
        (32, &[0, 0, 0, 0, 1], "its size is impossible"),
        (32, &[1], "its size is impossible"),
        (56, &[0xff, 0xff, 0xff, 0xff], "it has more slots than there is room for"),
        (56, &[0xfd, 3], "it has more slots than there is room for"),
        (62, &[3], "its version is not known"),
        (60, &[2], "its version is not known"),
        (62, &[2], "its labels have an unknown size"),
    ] {
        let mut area = LabelArea::new(AREA, 1).index(0, 1, &[]);
        area.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        media::fletcher::seal(&mut area.bytes[..256], 64);
        assert_eq!(faults(&area), [Fault::Index(0, why), Fault::NoIndex], "{at}");
    }
}
