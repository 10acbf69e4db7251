//! Namespaces: labels and info blocks together.

use media::info::{DAX, Map};
use media::label::ABSTRACTION_BTT;
use media::namespace::{Listing, Mode, Notice, Region, Why, list, list_read};
use media::set::{Member, SetCookies};
use media::{Medium, Uuid, label};
use testkit::media::{LabelArea, LabelOf, PagesOf, Sparse, arena};

const MIB: u64 = 1 << 20;

fn uuid(byte: u8) -> Uuid {
    Uuid([byte; 16])
}

fn listed(range: &Sparse, area: &LabelArea) -> Listing {
    list(range, Some(&&area.bytes[..]), 0)
}

/// The notices as lines.
fn lines(listing: &Listing) -> Vec<String> {
    listing.notices.iter().map(ToString::to_string).collect()
}

/// Labels over a range in the order of their slots, all of them in use.
fn area(minor: u16, labels: &[LabelOf]) -> LabelArea {
    let area = (0..).zip(labels).fold(LabelArea::new(128 << 10, minor), |area, (slot, label)| area.label(slot, label));
    area.index(0, 1, &(0..labels.len() as u32).collect::<Vec<_>>())
}

// covers: M3
#[test]
fn each_namespace_has_its_mode_its_data_and_its_alignment() {
    let mut range = Sparse::new(256 * MIB);
    let at = |nth: u64| nth * 64 * MIB;
    let label =
        |nth: u64| LabelOf { uuid: uuid(10 + nth as u8), dpa: at(nth), len_bytes: 64 * MIB, ..LabelOf::default() };
    // Not in the order of their addresses.
    let area = area(1, &[label(3), LabelOf { name: "first", ..label(0) }, label(2), label(1)]);
    range.put(at(1) + 4096, &PagesOf { parent: uuid(11), mode: 2, ..PagesOf::default() }.block());
    let dax = PagesOf { magic: DAX, parent: uuid(12), align: 4096, data_offset: 12288, ..PagesOf::default() };
    range.put(at(2) + 4096, &dax.block());
    range.put(at(3) + 4096, &arena(uuid(13), (1, 1), 16000, 64 * MIB - 4096, 0));
    let listing = listed(&range, &area);
    assert_eq!(lines(&listing), Vec::<String>::new());
    let all = &listing.namespaces;
    let modes: Vec<_> = all.iter().map(|namespace| (namespace.start, namespace.mode(), namespace.size())).collect();
    let expected = [
        (at(0), Mode::Raw, 64 * MIB),
        (at(1), Mode::FsDax, 62 * MIB),
        (at(2), Mode::DevDax, 64 * MIB - 12288),
        (at(3), Mode::Sector, 16000 * 4096),
    ];
    assert_eq!(modes, expected);
    let data: Vec<_> = all.iter().map(|namespace| namespace.data()).collect();
    let expected =
        [Some((0, 64 * MIB)), Some((at(1) + 2 * MIB, 62 * MIB)), Some((at(2) + 12288, 64 * MIB - 12288)), None];
    assert_eq!(data, expected);
    assert_eq!((all[0].name(), all[0].uuid(), all[1].uuid()), ("first", Some(uuid(10)), Some(uuid(2))));
    assert_eq!((all[3].sector_bytes(), all[3].uuid(), all[3].raw_uuid()), (4096, Some(uuid(3)), Some(uuid(13))));
    let Some(media::info::Info::Pages(pages)) = all[1].info else { panic!("{:?}", all[1]) };
    assert_eq!((pages.map, pages.align, pages.version), (Map::Dev, 2 * MIB, (1, 4)));
}

/// Each way in which an info block is not to be believed: the namespace is listed, and has no data to be used.
// covers: M3
#[test]
fn an_info_block_that_is_not_understood_leaves_the_namespace_alone() {
    let good = PagesOf { parent: uuid(1), ..PagesOf::default() };
    let ways: [(PagesOf, &str); 9] = [
        (PagesOf { parent: uuid(7), ..good }, "it belongs to another namespace"),
        (PagesOf { mode: 3, ..good }, "its mode is neither 1 nor 2"),
        (PagesOf { align: 3 << 20, ..good }, "its alignment is impossible"),
        (PagesOf { align: 512, ..good }, "its alignment is impossible"),
        (PagesOf { data_offset: 2 * MIB + 4096, ..good }, "its alignment is impossible"),
        (PagesOf { data_offset: 4096, align: 4096, ..good }, "its data begin at an impossible place"),
        (PagesOf { data_offset: 16 * MIB, ..good }, "its data would lie outside the namespace"),
        (PagesOf { data_offset: u64::MAX << 21, ..good }, "its data would lie outside the namespace"),
        (PagesOf { end_trunc: 14 << 20, ..good }, "its data would lie outside the namespace"),
    ];
    let one = area(1, &[LabelOf::default()]);
    for (info, why) in ways {
        let mut range = Sparse::new(32 * MIB);
        range.put(4096, &info.block());
        let listing = listed(&range, &one);
        assert_eq!(lines(&listing), [format!("namespace 0: PFN info block: {why}; it is left alone")]);
        assert!(listing.namespaces[0].fault.is_some() && listing.namespaces[0].data().is_none());
    }
    for at in [0x10, 0x38, 0xff8, 0xfff] {
        let mut range = Sparse::new(32 * MIB);
        let mut block = good.block();
        block[at] ^= 1;
        range.put(4096, &block);
        assert!(lines(&listed(&range, &one))[0].contains("its checksum is wrong"), "{at:#x}");
    }
    // A page that is lost is not one without an info block.
    let mut range = Sparse::new(32 * MIB);
    range.lose(4096);
    assert!(lines(&listed(&range, &one))[0].contains("it cannot be read"));
}

// covers: M3
#[test]
fn older_info_blocks_mean_what_they_meant() {
    for (minor, expected) in [(0, 14 * MIB), (1, 12 * MIB - 4096), (4, 12 * MIB - 4096)] {
        let mut range = Sparse::new(16 * MIB);
        let info = PagesOf { minor, start_pad: 2 << 20, end_trunc: 4096, ..PagesOf::default() };
        range.put(4096, &info.block());
        let namespace = &list(&range, None, 0).namespaces[0];
        assert_eq!((namespace.mode(), namespace.size()), (Mode::FsDax, expected), "1.{minor}");
        let begin = 2 * MIB + if minor == 0 { 0 } else { 2 * MIB };
        assert_eq!(namespace.data(), Some((begin, expected)), "1.{minor}");
    }
}

// covers: M3
#[test]
fn a_btt_is_found_by_its_copy_over_its_arenas_and_in_version_2() {
    let size = 64 * MIB;
    let mut copy = Sparse::new(size);
    copy.put(size - 4096, &arena(Uuid::NIL, (1, 1), 100, size - 4096, 0));
    copy.put(4096, b"BTT_ARENA_INFO\0\0 damaged");
    let namespace = &list(&copy, None, 0).namespaces[0];
    assert_eq!((namespace.mode(), namespace.size()), (Mode::Sector, 100 * 4096));
    let mut two = Sparse::new(size);
    two.put(4096, &arena(Uuid::NIL, (1, 1), 100, 32 * MIB, 32 * MIB));
    two.put(4096 + 32 * MIB, &arena(Uuid::NIL, (1, 1), 50, 31 * MIB, 0));
    assert_eq!(list(&two, None, 0).namespaces[0].size(), 150 * 4096);
    // The copy of the last one's block is in the last page, and is not the whole BTT where the first block is damaged.
    let mut last = two.clone();
    last.put(size - 4096, &arena(Uuid::NIL, (1, 1), 50, 32 * MIB - 4096, 0));
    last.put(4096, b"BTT_ARENA_INFO\0\0 damaged");
    let listing = list(&last, None, 0);
    assert!(lines(&listing)[0].contains("its checksum is wrong") && listing.namespaces[0].data().is_none());
    // The second one is gone.
    two.put(4096 + 32 * MIB, &[0; 16]);
    assert!(lines(&list(&two, None, 0))[0].contains("an arena has no info block"));
    let mut at_once = Sparse::new(size);
    at_once.put(0, &arena(uuid(1), (2, 0), 100, size, 0));
    let label = LabelOf { len_bytes: size, abstraction: ABSTRACTION_BTT, ..LabelOf::default() };
    assert_eq!(listed(&at_once, &area(2, core::slice::from_ref(&label))).namespaces[0].mode(), Mode::Sector);
    // A label that says sector where there is no BTT: whatever lies there is not bytes in a row.
    let listing = listed(&Sparse::new(size), &area(2, &[label]));
    assert!(lines(&listing)[0].contains("its label says sector") && listing.namespaces[0].data().is_none());
}

/// An arena that points at itself or in a circle comes to an end.
#[test]
fn arenas_without_an_end_are_not_followed_for_ever() {
    let size = 64 * MIB;
    let mut range = Sparse::new(size);
    range.put(4096, &arena(Uuid::NIL, (1, 1), 100, size - 4096, u64::MAX - 4095));
    assert!(lines(&list(&range, None, 0))[0].contains("BTT info block"));
    // The sum of two offsets wraps to the first one.
    let mut wrap = Sparse::new(size);
    wrap.put(4096, &arena(Uuid::NIL, (1, 1), 100, size - 4096, 8192));
    wrap.put(4096 + 8192, &arena(Uuid::NIL, (1, 1), 100, 4 * MIB, 0_u64.wrapping_sub(8192)));
    assert!(lines(&list(&wrap, None, 0))[0].contains("an arena lies outside the namespace"));
}

// covers: M2
#[test]
fn labels_that_cannot_be_are_left_alone() {
    let good = LabelOf { uuid: uuid(50), dpa: 64 * MIB, ..LabelOf::default() };
    let odd = [
        (LabelOf { dpa: 96 * MIB, len_bytes: 64 * MIB, ..good.clone() }, "it lies beyond the range"),
        (LabelOf { dpa: u64::MAX - 4095, ..good.clone() }, "it lies beyond the range"),
        (LabelOf { len_bytes: 0, ..good.clone() }, "it is empty"),
        (LabelOf { dpa: 512, ..good.clone() }, "it is not made of whole pages"),
        (LabelOf { nr_labels: 2, ..good.clone() }, "it is a part of an interleave set"),
    ];
    let range = Sparse::new(128 * MIB);
    for (label, why) in odd {
        let label = LabelOf { uuid: uuid(51), ..label };
        let listing = listed(&range, &area(1, &[label, good.clone()]));
        assert_eq!(listing.notices, [Notice::Slot(0, Why::Label(why))]);
        assert_eq!(listing.namespaces.iter().map(|of| of.start).collect::<Vec<_>>(), [64 * MIB]);
    }
    // Two with the same bytes, or the same name, and one that has nothing to do with them.
    let third = LabelOf { uuid: uuid(52), dpa: 0, ..good.clone() };
    for other in [LabelOf { uuid: uuid(53), dpa: 72 * MIB, ..good.clone() }, LabelOf { dpa: 96 * MIB, ..good.clone() }]
    {
        let listing = listed(&range, &area(1, &[good.clone(), other, third.clone()]));
        assert_eq!(listing.notices.len(), 2, "{:?}", listing.notices);
        assert_eq!(listing.namespaces.iter().map(|of| of.start).collect::<Vec<_>>(), [0]);
    }
}

/// The range may begin somewhere in the NVDIMM.
#[test]
fn a_label_counts_from_the_beginning_of_its_nvdimm() {
    let range = Sparse::new(64 * MIB);
    let one = area(1, &[LabelOf { dpa: 1 << 30, ..LabelOf::default() }]);
    assert_eq!(list(&range, Some(&&one.bytes[..]), 1 << 30).namespaces[0].start, 0);
    let before = list(&range, Some(&&one.bytes[..]), 2 << 30);
    assert!(lines(&before)[0].contains("it lies before the range") && before.namespaces[0].data().is_none());
}

/// A label moves with its NVDIMM. One that names other NVDIMMs gives out bytes that lie elsewhere.
// covers: M2
#[test]
fn labels_of_another_interleave_set_are_left_alone() {
    let range = Sparse::new(128 * MIB);
    let set = SetCookies::of(&[Member { serial_number: 7, vendor_id: 0x8086, ..Member::default() }]);
    let read =
        |area: &LabelArea, set| list_read(&range, label::read(&&area.bytes[..]), Region { set, ..Region::default() });
    for minor in [1, 2] {
        let set_cookie = set.unwrap().expected((1, minor));
        let ours = LabelOf { set_cookie, ..LabelOf::default() };
        let strange = LabelOf { uuid: uuid(2), set_cookie: 0x1234, dpa: 64 * MIB, ..LabelOf::default() };
        // All of the set, some, none.
        let listing = read(&area(minor, std::slice::from_ref(&ours)), set);
        assert_eq!((listing.namespaces.len(), listing.notices.len()), (1, 0), "{listing:?}");
        assert_eq!(listing.namespaces[0].data(), Some((0, 16 * MIB)));
        let listing = read(&area(minor, &[ours, strange.clone()]), set);
        let why = Why::Set { found: 0x1234, expected: set_cookie };
        assert_eq!((listing.namespaces.len(), &listing.notices[..]), (1, &[Notice::Slot(1, why)][..]));
        let listing = read(&area(minor, &[strange.clone(), LabelOf { uuid: uuid(3), dpa: 0, ..strange.clone() }]), set);
        let says = format!("it names the interleave set 0x1234, and this is {set_cookie:#x}; it is left alone");
        assert!(matches!(&lines(&listing)[..], [line] if line.ends_with(&says)), "{listing:?}");
        let [whole] = &listing.namespaces[..] else { panic!("{listing:?}") };
        assert_eq!((whole.len_bytes, whole.data()), (128 * MIB, None));
        // Nobody knows what is behind a file.
        assert_eq!(read(&area(minor, &[strange]), None).notices, []);
    }
}

/// Where somebody has made labels and none of them can be used, the range is not free.
// covers: M2
#[test]
fn a_range_of_whose_labels_none_can_be_believed_is_left_alone() {
    let range = Sparse::new(64 * MIB);
    let mut damaged = area(2, &[LabelOf::default()]);
    let place = damaged.slot_at(0) + 105;
    damaged.bytes[place] ^= 1;
    let same = LabelOf { dpa: 8 * MIB, ..LabelOf::default() };
    let many = (0..1025).fold(LabelArea::new(1 << 20, 1), |area, slot| area.label(slot, &LabelOf::default()));
    let all: Vec<u32> = (0..1025).collect();
    for (area, why) in [
        (area(1, &[LabelOf { len_bytes: 0, ..LabelOf::default() }]), "slot 0: it is empty"),
        (damaged, "slot 0: its label's checksum is wrong"),
        (area(1, &[LabelOf::default(), same]), "slot 0: another label has some of its bytes, or its UUID"),
        (many.index(0, 1, &all), "1025 slots are in use, more than 1024, so no label is read"),
    ] {
        let listing = listed(&range, &area);
        let [first, .., last] = &lines(&listing)[..] else { panic!("{listing:?}") };
        assert!(first.contains(why), "{first}");
        assert_eq!(last, "namespace 0: none of its labels can be believed; it is left alone");
        let [whole] = &listing.namespaces[..] else { panic!("{listing:?}") };
        assert_eq!((whole.start, whole.len_bytes, whole.data()), (0, 64 * MIB, None));
    }
}

// covers: M2
#[test]
fn without_labels_the_range_is_one_namespace_and_with_bad_ones_it_is_left_alone() {
    let range = Sparse::new(64 * MIB);
    let listing = list(&range, Some(&&vec![0_u8; 128 << 10][..]), 0);
    assert!(!listing.is_labelled && listing.notices.is_empty());
    assert_eq!(listing.namespaces[0].data(), Some((0, range.len_bytes())));
    let mut bad = area(1, &[LabelOf::default()]);
    bad.bytes[30] ^= 1;
    let listing = listed(&range, &bad);
    assert!(listing.is_labelled && listing.namespaces[0].data().is_none(), "{listing:?}");
    // Labels of which none is in use leave nothing to list.
    assert!(listed(&range, &area(1, &[])).namespaces.is_empty());
}

/// The block that can be trusted counts, also where it says that no slot is in use.
// covers: M2
#[test]
fn a_damaged_index_block_beside_a_good_one_without_labels_leaves_the_range_free() {
    let range = Sparse::new(64 * MIB);
    let mut torn = area(1, &[]).index(1, 2, &[0]);
    let place = torn.index_at(1) + 80;
    torn.bytes[place] ^= 1;
    let listing = listed(&range, &torn);
    assert_eq!(lines(&listing), ["label area: index block 1: its checksum is wrong"]);
    assert!(listing.is_labelled && listing.namespaces.is_empty(), "{listing:?}");
}

/// As Linux holds it (`nd_pfn_validate`): what is aligned is where the data are, and not how far that is from the beginning.
// covers: M3
#[test]
fn data_are_aligned_by_their_place_in_memory() {
    let mut range = Sparse::new(2048 * MIB);
    let half = LabelOf { dpa: 512 * MIB, len_bytes: 1536 * MIB, ..LabelOf::default() };
    let one = area(1, &[half]);
    let huge = PagesOf { parent: uuid(1), data_offset: 512 * MIB, align: 1 << 30, ..PagesOf::default() };
    range.put(512 * MIB + 4096, &huge.block());
    let at = |base| {
        let region = Region { base, ..Region::default() };
        list_read(&range, label::read(&&one.bytes[..]), region).namespaces[0].data()
    };
    assert_eq!([0, 4 << 30, (4 << 30) + 512 * MIB].map(at), [Some((1 << 30, 1 << 30)), Some((1 << 30, 1 << 30)), None]);
    // What is left out at the beginning counts, too.
    range.put(512 * MIB + 4096, &PagesOf { start_pad: 2 << 20, data_offset: 510 * MIB, ..huge }.block());
    assert_eq!(listed(&range, &one).namespaces[0].data(), Some((1 << 30, 1 << 30)));
    range.put(512 * MIB + 4096, &PagesOf { start_pad: 2 << 20, ..huge }.block());
    assert!(lines(&listed(&range, &one))[0].contains("its alignment is impossible"));
}

/// `ndctl` zeroes the first 8 KiB of a namespace that is made anew, and gives it another UUID; Linux never reads a copy.
// covers: M3
#[test]
fn a_copy_that_another_namespace_has_left_is_no_btt() {
    let size = 64 * MIB;
    let one = area(1, &[LabelOf { len_bytes: size, ..LabelOf::default() }]);
    let mut range = Sparse::new(size);
    range.put(size - 4096, &arena(uuid(9), (1, 1), 100, size - 4096, 0));
    let listing = listed(&range, &one);
    assert_eq!((lines(&listing), listing.namespaces[0].mode()), (vec![], Mode::Raw));
    assert_eq!(listing.namespaces[0].data(), Some((0, size)));
    // Nothing is written over it unasked.
    assert!(!media::probe::probe(&range).is_empty());
    // A first block that is damaged is there, whatever the copy says.
    range.put(4096, b"BTT_ARENA_INFO\0\0 damaged");
    let listing = listed(&range, &one);
    assert!(lines(&listing)[0].contains("its checksum is wrong") && listing.namespaces[0].data().is_none());
}
