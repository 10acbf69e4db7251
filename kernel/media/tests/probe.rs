//! The probe: what it knows, where it looks, and that it never does more for a larger device.

use std::cell::Cell;

use media::probe::{What, first_data, probe};
use media::{Medium, Unreadable};
use testkit::media::{PagesOf, Sparse, arena};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 64 * MIB;

fn with(patches: &[(u64, &[u8])]) -> Sparse {
    let mut medium = Sparse::new(SIZE);
    patches.iter().for_each(|(at, bytes)| medium.put(*at, bytes));
    medium
}

fn found(medium: &dyn Medium) -> Vec<(What, u64)> {
    probe(medium).iter().map(|found| (found.what, found.at)).collect()
}

/// The superblock of ext2, ext3 or ext4, by its features.
fn ext(compat: u32, incompat: u32, ro_compat: u32) -> Vec<u8> {
    let mut bytes = vec![0; 128];
    bytes[56..58].copy_from_slice(&[0x53, 0xef]);
    for (at, features) in [(92, compat), (96, incompat), (100, ro_compat)] {
        bytes[at..at + 4].copy_from_slice(&u32::to_le_bytes(features));
    }
    bytes
}

// covers: M1
#[test]
fn what_others_make_is_known() {
    let btt = arena(media::Uuid::NIL, (1, 1), 100, SIZE - 4096, 0);
    for (patches, expected) in [
        (vec![], vec![]),
        (vec![(0, &b"UPSB"[..])], vec![(What::OurFileSystem, 0)]),
        (vec![(SIZE - 4096, &b"UPSB"[..])], vec![(What::OurFileSystem, SIZE - 4096)]),
        (vec![(SIZE - 65536, &b"UNPLGBAD"[..])], vec![(What::OurList, SIZE - 65536)]),
        (vec![(SIZE - 32768, &b"UNPLGBAD"[..])], vec![(What::OurList, SIZE - 32768)]),
        (vec![(0, &b"XFSB"[..])], vec![(What::Xfs, 0)]),
        (vec![(1024, &*ext(0, 2, 1))], vec![(What::Ext(2), 1024)]),
        (vec![(1024, &*ext(4, 2, 1))], vec![(What::Ext(3), 1024)]),
        (vec![(1024, &*ext(4, 0x42, 1))], vec![(What::Ext(4), 1024)]),
        (vec![(1024, &*ext(0, 2, 0x400))], vec![(What::Ext(4), 1024)]),
        (vec![(510, &[0x55, 0xaa][..])], vec![(What::Mbr, 0)]),
        (vec![(510, &[0x55, 0xaa][..]), (512, b"EFI PART")], vec![(What::Gpt, 512)]),
        (vec![(4096, &b"EFI PART"[..])], vec![(What::Gpt, 4096)]),
        (vec![(SIZE - 512, &b"EFI PART"[..])], vec![(What::Gpt, SIZE - 512)]),
        (vec![(SIZE - 4096, &b"EFI PART"[..])], vec![(What::Gpt, SIZE - 4096)]),
        (vec![(0, &b"LUKS\xba\xbe\0\x02"[..])], vec![(What::Luks, 0)]),
        (vec![(0, &b"LABELONE"[..])], vec![(What::Lvm, 0)]),
        (vec![(512, &b"LABELONE"[..])], vec![(What::Lvm, 512)]),
        (vec![(1536, &b"LABELONE"[..])], vec![(What::Lvm, 1536)]),
        (vec![(4086, &b"SWAPSPACE2"[..])], vec![(What::Swap, 0)]),
        (vec![(4096, &*btt)], vec![(What::Info("BTT", true), 4096)]),
        (vec![(4096, &btt[..64])], vec![(What::Info("BTT", false), 4096)]),
        (vec![(SIZE - 4096, &*btt)], vec![(What::Info("BTT", true), SIZE - 4096)]),
        (vec![(0x10040, &b"_BHRfS_M"[..])], vec![(What::Btrfs, 0x10000)]),
        (vec![(0, &*btt)], vec![(What::Info("BTT", true), 0)]),
        (vec![(100, &[1][..])], vec![(What::Data, 96)]),
        (vec![(SIZE / 2, &[1][..])], vec![(What::Data, SIZE / 2)]),
        (vec![(SIZE - 1, &[1][..])], vec![]),
    ] {
        assert_eq!(found(&with(&patches)), expected, "{patches:x?}");
    }
}

/// What lies in a namespace is found where the info block says that its data are.
// covers: M1
#[test]
fn a_namespace_is_looked_into() {
    let info = PagesOf { data_offset: 6 * MIB, ..PagesOf::default() }.block();
    let medium = with(&[(4096, &*info), (6 * MIB, b"XFSB")]);
    assert_eq!(found(&medium), [(What::Info("PFN", true), 4096), (What::Xfs, 6 * MIB)]);
    assert_eq!(probe(&medium).to_string(), "an fsdax namespace at 0x1000, XFS at 0x600000");
    assert!(probe(&medium).has_foreign());
    let empty = with(&[(4096, &*info)]);
    assert_eq!(probe(&empty).to_string(), "an fsdax namespace at 0x1000");
    let ours = with(&[(0, b"UPSB")]);
    assert!(!probe(&ours).has_foreign() && !probe(&ours).is_empty());
}

// covers: M1
#[test]
fn what_cannot_be_read_is_not_taken_for_nothing() {
    for at in [0, 4096, SIZE - 4096, SIZE - 65536] {
        let mut medium = Sparse::new(SIZE);
        medium.lose(at);
        assert!(probe(&medium).iter().any(|found| found.what == What::Lost), "{at:#x}");
    }
    // A page says what it has to say, whatever became of the one beside it.
    let mut medium = with(&[(4096, &*PagesOf::default().block())]);
    medium.lose(0);
    assert_eq!(found(&medium), [(What::Lost, 0), (What::Info("PFN", true), 4096)]);
    let mut medium = with(&[(4086, b"SWAPSPACE2")]);
    medium.lose(4096);
    assert_eq!(found(&medium), [(What::Lost, 4096), (What::Swap, 0)]);
    // In the middle it says nothing about what the device is for.
    let mut medium = Sparse::new(SIZE);
    medium.lose(SIZE / 2);
    assert!(probe(&medium).is_empty());
}

/// Counts what it is asked for.
struct Counting<'a> {
    medium: &'a Sparse,
    reads: Cell<u64>,
    bytes: Cell<u64>,
}

impl Medium for Counting<'_> {
    fn len_bytes(&self) -> u64 {
        self.medium.len_bytes()
    }
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Unreadable> {
        self.reads.set(self.reads.get() + 1);
        self.bytes.set(self.bytes.get() + into.len() as u64);
        self.medium.read(offset, into)
    }
}

#[test]
fn the_work_is_the_same_for_every_size() {
    let count = |len_bytes| {
        let medium = Sparse::new(len_bytes);
        let counting = Counting { medium: &medium, reads: Cell::new(0), bytes: Cell::new(0) };
        assert!(probe(&counting).is_empty());
        (counting.reads.get(), counting.bytes.get())
    };
    let small = count(SIZE);
    assert_eq!(small, count(6 << 40));
    assert!(small.0 <= 24 && small.1 <= 1024, "{small:?}");
    // The smallest there are, and less.
    for len in [0, 1, 7, 512, 2048, 4095, 4096, 8192, 65536, 65537] {
        count(len);
    }
}

#[test]
fn who_looks_at_everything_finds_a_single_byte() {
    let medium = with(&[(33 * MIB + 5, &[1])]);
    assert!(probe(&medium).is_empty());
    assert_eq!(first_data(&medium, 0, SIZE).map(|found| (found.what, found.at)), Some((What::Data, 33 * MIB)));
    assert_eq!(first_data(&medium, 0, 33 * MIB), None);
    assert_eq!(first_data(&medium, 33 * MIB + 3, SIZE).map(|found| found.at), Some(33 * MIB + 3));
}
