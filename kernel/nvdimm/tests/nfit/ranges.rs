//! Faults of what the structures say: ranges, devices, capabilities.

use super::*;

/// The table of QEMU 7.2 with OVMF for NVDIMMs of 1 GiB (slot 0, with a label area) and 64 MiB (slot 1), read out of
/// the guest's memory. It lists slot 1 first.
#[test]
fn the_table_of_a_real_machine_is_read_without_a_word() {
    let table = include_bytes!("qemu-7.2-two-nvdimms.bin");
    let ram = [ram(0, 256 * MIB)];
    let nfit = check(&[table], Limits { phys_bits: 40, taken: &ram });
    assert!(nfit.notices.is_empty(), "{:?}", nfit.notices);
    let mut found = nfit.ranges.iter().map(|range| {
        assert_eq!(range.attributes, MemoryAttributes::WB | MemoryAttributes::NV);
        assert_eq!(range.proximity_domain, Some(0));
        let device = nfit.devices_of(range).next().unwrap();
        assert_eq!(device.region_len_bytes, range.len_bytes);
        (range.base, range.len_bytes, range.range_index, device.handle.0, device.serial_number)
    });
    assert_eq!(found.next(), Some((4 * GIB, GIB, 2, 1, Some(0x123456))));
    assert_eq!(found.next(), Some((5 * GIB, 64 * MIB, 4, 2, Some(0x123457))));
    assert_eq!(found.next(), None);
    assert_eq!(nfit.others, OtherStructures { control_regions: 2, ..OtherStructures::default() });
    // What Linux writes into the labels of the first one.
    let names = |at: usize| nfit.interleave_set(&nfit.ranges[at]).unwrap().expected((1, 1));
    assert_eq!((names(0), names(1)), (0x0024_68ac_0012_3456, 0x0024_68ae_0012_3457));
}

#[test]
fn an_empty_range_overlaps_nothing() {
    let (range, inside) = (ByteRange { base: 0x1000, len_bytes: 0x1000 }, ByteRange { base: 0x1800, len_bytes: 0 });
    assert!(!range.overlaps(&inside) && !inside.overlaps(&range));
    let last = ByteRange { base: 0x1fff, len_bytes: 1 };
    assert!(range.overlaps(&last) && last.overlaps(&range));
}

#[test]
fn a_range_of_no_bytes_is_refused() {
    let nfit = read(&around(|table| table.persistent(5, 12 * GIB, 0)));
    assert_both_survive(&nfit);
    assert_eq!(only_line(&nfit), "range 5 at 0x300000000 has a length of zero; not used");
}

#[test]
fn a_range_that_wraps_is_refused() {
    for len_bytes in [0x1000, u64::MAX] {
        let nfit = read(&around(|table| table.persistent(5, u64::MAX - 0xfff, len_bytes)));
        assert_both_survive(&nfit);
        assert_eq!(keys(&nfit), ["range_wraps"]);
    }
}

#[test]
fn a_range_above_the_physical_limit_is_refused() {
    let limit = 1 << 40;
    let nfit = read(&around(|table| table.persistent(5, limit - 0x1000, 0x2000).persistent(6, limit, 1)));
    assert_both_survive(&nfit);
    assert_eq!(
        nfit.notices[0].to_string(),
        "range 5 (0xfffffff000 + 0x2000 bytes) goes above the CPU's last physical address 0xffffffffff; not used"
    );
    assert_eq!(keys(&nfit), ["range_above_limit"; 2]);
    // The last page below the limit is fine.
    assert_eq!(read(&NfitBuilder::new().persistent(5, limit - 0x1000, 0x1000).finish()).ranges.len(), 1);
}

#[test]
fn the_physical_limit_is_never_above_52_bits() {
    let table = NfitBuilder::new().persistent(1, 1 << 52, 0x1000).finish();
    let nfit = check(&[&table], Limits { phys_bits: u8::MAX, taken: &[] });
    assert_eq!(keys(&nfit), ["range_above_limit"]);
}

#[test]
fn a_range_that_overlaps_ram_is_refused() {
    // In front, behind, inside, around, and the same.
    let ByteRange { base, len_bytes: len } = RAM[1].range;
    for (start, end) in [
        (base - MIB, base + 1),
        (base + len - 1, base + len + MIB),
        (base + MIB, base + 2 * MIB),
        (base - MIB, base + len + MIB),
        (base, base + len),
    ] {
        let nfit = read(&around(|table| table.persistent(5, start, end - start)));
        assert_both_survive(&nfit);
        assert_eq!(keys(&nfit), ["range_taken"], "{start:#x}..{end:#x}");
    }
    let nfit = read(&around(|table| table.persistent(5, base - MIB, MIB).persistent(6, base + len, MIB)));
    assert_eq!(nfit.ranges.len(), 4, "ranges that only touch RAM are fine: {:?}", nfit.notices);
}

#[test]
fn a_range_that_overlaps_an_earlier_one_is_refused_across_tables_too() {
    let nfit = read(&around(|table| table.persistent(5, 9 * GIB - 1, GIB)));
    assert_both_survive(&nfit);
    assert_eq!(only_line(&nfit), "range 5 (0x23fffffff + 0x40000000 bytes) overlaps range 1; not used");
    let table = NfitBuilder::new().persistent(1, 8 * GIB, GIB).finish();
    let nfit = check(&[&table, &table], LIMITS);
    assert_eq!(bases(&nfit), [8 * GIB]);
    assert_eq!(keys(&nfit), ["range_overlaps_range"]);
}

#[test]
fn parts_of_pages_are_cut_off() {
    let nfit = read(&around(|table| table.persistent(5, 12 * GIB + 1, 0x3000)));
    assert_eq!(
        only_line(&nfit),
        "range 5 (0x300000001 + 0x3000 bytes) is cut to whole pages: 0x300001000 + 0x2000 bytes"
    );
    assert_eq!(nfit.ranges[1].bytes(), ByteRange { base: 12 * GIB + 0x1000, len_bytes: 0x2000 });
}

#[test]
fn a_range_without_a_whole_page_is_refused() {
    for (base, len_bytes) in [(12 * GIB, 0xfff), (12 * GIB + 1, 0x1ffe), (12 * GIB + 0xfff, 1)] {
        let nfit = read(&around(|table| table.persistent(5, base, len_bytes)));
        assert_both_survive(&nfit);
        assert_eq!(keys(&nfit), ["range_small"]);
    }
}

// covers: X2
#[test]
fn a_range_that_is_no_memory_is_refused_with_the_right_word() {
    let taken = |base, by| Taken { range: ByteRange { base, len_bytes: MIB }, by };
    for (by, word) in [
        (Owner::Apic, "overlaps the interrupt controllers' registers ("),
        (Owner::Pci, "overlaps a PCI window ("),
        (Owner::Ram, "overlaps RAM ("),
        (Owner::Reserved, "overlaps memory that the firmware has reserved ("),
        (Owner::Registers, "overlaps device registers ("),
        (Owner::Hole, "overlaps device addresses: below 4 GiB the memory map has nothing there ("),
    ] {
        let taken = [taken(12 * GIB, by), taken(12 * GIB, Owner::Hole)];
        let table = around(|table| table.persistent(5, 12 * GIB + MIB - 1, MIB));
        let nfit = check(&[&table], Limits { phys_bits: 40, taken: &taken });
        assert_both_survive(&nfit);
        assert!(only_line(&nfit).contains(word), "{}", only_line(&nfit));
        assert_eq!(nfit.notices[0].level(), Level::Refused);
    }
}

// covers: X1
#[test]
fn of_ranges_beyond_our_room_the_lowest_are_kept_and_the_others_each_reported() {
    let at = |index: u16| 8 * GIB + u64::from(index) * MIB;
    let nr_ranges = MAX_RANGES as u16 + 3;
    let rising: Vec<_> = (1..=nr_ranges).collect();
    let falling: Vec<_> = rising.iter().rev().copied().collect();
    // 8 has no factor in common with the number of ranges.
    let mixed: Vec<_> = (0..nr_ranges).map(|step| step * 8 % nr_ranges + 1).collect();
    for order in [rising, falling, mixed] {
        let table = order.iter().fold(NfitBuilder::new(), |table, &index| {
            table.device(index.into(), index, 0, MIB, DeviceFlags::empty()).persistent(index, at(index), MIB)
        });
        let nfit = read(&table.finish());
        let kept: Vec<_> = nfit.ranges.iter().map(|range| range.range_index).collect();
        assert_eq!(kept, (1..=MAX_RANGES as u16).collect::<Vec<_>>(), "{order:?}");
        assert!(nfit.ranges.iter().all(|range| range.nr_devices == 1), "{order:?}");
        let mut lines: Vec<_> = nfit.notices.iter().map(Notice::to_string).collect();
        lines.sort_unstable();
        let line = |index| {
            format!(
                "range {index} ({:#x} + 0x100000 bytes) is not used: there is room for the lowest 32 ranges",
                at(index)
            )
        };
        assert_eq!(lines, [line(33), line(34), line(35)], "{order:?}");
    }
}

#[test]
fn ranges_of_other_kinds_are_named_and_left_alone() {
    for (kind, guid) in RangeKind::GUIDS {
        assert_eq!(RangeKind::from_guid(&guid), Some(kind));
        let nfit = read(&around(|table| table.range(5, kind, ByteRange { base: 12 * GIB, len_bytes: MIB })));
        if kind == RangeKind::Persistent {
            assert_eq!(nfit.ranges.len(), 3);
        } else {
            assert_both_survive(&nfit);
            assert_eq!(only_line(&nfit), format!("range 5 (0x300000000 + 0x100000 bytes) is {kind}; left alone"));
            // Registers, windows and volatile memory stand in the tables of machines in order.
            let images = [RangeKind::PersistentDisk, RangeKind::PersistentCd];
            let wanted = if images.contains(&kind) { Level::Strange } else { Level::Normal };
            assert_eq!(nfit.notices[0].level(), wanted, "{kind}");
        }
    }
    let range = ByteRange { base: 12 * GIB, len_bytes: MIB };
    let guid = core::array::from_fn(|i| i as u8);
    let nfit = read(&around(|table| table.range_with(5, guid, range, MemoryAttributes::WB, None)));
    assert_both_survive(&nfit);
    assert_eq!(only_line(&nfit), "range 5 has unknown kind 03020100-0504-0706-0809-0a0b0c0d0e0f; left alone");
}

#[test]
fn a_guid_reads_as_it_is_written() {
    let text = Guid(RangeKind::GUIDS[0].1).to_string();
    assert_eq!(text, "66f0d379-b4f3-4074-ac43-0d3318b78cdb");
}

#[test]
fn a_range_with_a_firmware_image_in_it_is_refused() {
    // The image may be named before or after the range that it lies in, and in another table.
    let image = ByteRange { base: 8 * GIB + MIB, len_bytes: MIB };
    let before = NfitBuilder::new().range(9, RangeKind::PersistentDisk, image).persistent(1, 8 * GIB, GIB);
    let after = NfitBuilder::new().persistent(1, 8 * GIB, GIB).range(9, RangeKind::PersistentCd, image);
    for builder in [before, after] {
        let nfit = read(&builder.persistent(2, 16 * GIB, GIB).finish());
        assert_eq!(bases(&nfit), [16 * GIB]);
        assert!(keys(&nfit).contains(&"range_other") && keys(&nfit).contains(&"range_holds_image"));
    }
    let images = NfitBuilder::new().range(9, RangeKind::PersistentDisk, image).finish();
    for tables in [[&around(|t| t)[..], &images], [&images, &around(|t| t)[..]]] {
        assert_eq!(bases(&check(&tables, LIMITS)), [16 * GIB]);
    }
}

/// A range that is refused for its image takes no room: it is refused before the highest ones are cut off.
#[test]
fn a_range_with_a_firmware_image_in_it_costs_no_other_range_its_place() {
    let at = |index: u16| 8 * GIB + u64::from(index) * MIB;
    let table = (1..=MAX_RANGES as u16 + 1).fold(NfitBuilder::new(), |table, i| table.persistent(i, at(i), MIB));
    let image = ByteRange { base: at(1), len_bytes: MIB };
    let nfit = read(&table.range(99, RangeKind::PersistentDisk, image).finish());
    assert_eq!(bases(&nfit), (2..=MAX_RANGES as u16 + 1).map(at).collect::<Vec<_>>());
}

#[test]
fn strange_names_of_ranges_are_reported_and_the_ranges_used() {
    let nfit = read(&around(|table| table.persistent(1, 12 * GIB, GIB).persistent(0, 14 * GIB, GIB)));
    assert_eq!(nfit.ranges.len(), 4);
    assert_eq!(keys(&nfit), ["range_index_taken", "range_index_zero"]);
}

#[test]
fn a_range_without_write_back_is_reported_and_used() {
    let range = ByteRange { base: 12 * GIB, len_bytes: GIB };
    let guid = RangeKind::GUIDS[0].1;
    let nfit = read(&around(|table| table.range_with(5, guid, range, MemoryAttributes::UC, None)));
    assert_eq!(nfit.ranges.len(), 3);
    assert_eq!(nfit.ranges[1].proximity_domain, None);
    assert_eq!(keys(&nfit), ["range_not_write_back"]);
}

#[test]
fn capability_bits_above_the_highest_valid_one_do_not_count() {
    for (highest, bits) in [(0, 1), (1, 3), (2, 7), (31, u32::MAX), (255, u32::MAX)] {
        let nfit = read(&NfitBuilder::new().platform(highest, PlatformCapabilities::all()).finish());
        assert_eq!(nfit.platform.bits(), bits);
    }
}
