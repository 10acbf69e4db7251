//! Faults of what the structures say: ranges, devices, capabilities.

use super::*;

/// The table of QEMU 7.2 with OVMF for NVDIMMs of 1 GiB (slot 0, with a label area) and 64 MiB (slot 1), read out of
/// the guest's memory. It lists slot 1 first.
#[test]
fn the_table_of_a_real_machine_is_read_without_a_word() {
    let table = include_bytes!("qemu-7.2-two-nvdimms.bin");
    let ram = [ByteRange { base: 0, len_bytes: 256 * MIB }];
    let nfit = check(&[table], Limits { phys_bits: 40, ram: &ram });
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
    let nfit = check(&[&table], Limits { phys_bits: u8::MAX, ram: &[] });
    assert_eq!(keys(&nfit), ["range_above_limit"]);
}

#[test]
fn a_range_that_overlaps_ram_is_refused() {
    // In front, behind, inside, around, and the same.
    let (base, len) = (RAM[1].base, RAM[1].len_bytes);
    for (start, end) in [
        (base - MIB, base + 1),
        (base + len - 1, base + len + MIB),
        (base + MIB, base + 2 * MIB),
        (base - MIB, base + len + MIB),
        (base, base + len),
    ] {
        let nfit = read(&around(|table| table.persistent(5, start, end - start)));
        assert_both_survive(&nfit);
        assert_eq!(keys(&nfit), ["range_overlaps_ram"], "{start:#x}..{end:#x}");
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

#[test]
fn ranges_beyond_our_room_are_each_reported() {
    let mut builder = NfitBuilder::new();
    for index in 0..MAX_RANGES as u16 + 2 {
        builder = builder.persistent(index + 1, 8 * GIB + u64::from(index) * MIB, MIB);
    }
    let nfit = read(&builder.finish());
    assert_eq!(nfit.ranges.len(), MAX_RANGES);
    assert_eq!(keys(&nfit), ["too_many_ranges"; 2]);
    assert_eq!(
        nfit.notices[0].to_string(),
        "range 33 (0x202000000 + 0x100000 bytes) is not used: there is room for 32 ranges"
    );
}

#[test]
fn devices_and_notices_beyond_our_room_are_counted() {
    let mut builder = NfitBuilder::new().persistent(1, 8 * GIB, GIB);
    for handle in 0..=MAX_DEVICES as u32 {
        builder = builder.device(handle, 1, 0, GIB, DeviceFlags::empty());
    }
    for _ in 0..MAX_NOTICES {
        builder = builder.raw(99, 4, &[]);
    }
    let nfit = read(&builder.finish());
    assert_eq!(nfit.devices.len(), MAX_DEVICES);
    assert_eq!((nfit.notices.len(), nfit.notices_dropped), (MAX_NOTICES, 1));
    let nfit =
        read(&NfitBuilder::new().persistent(1, 8 * GIB, GIB).device(1, 1, 0, 1, DeviceFlags::NOT_ARMED).finish());
    assert!(!nfit.is_armed(&nfit.ranges[0]));
    assert_eq!(only_line(&nfit), "range 1: memory device 0x1 is not armed: writes may not survive a power loss");
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
    // The image may be named before or after the range that it lies in.
    let image = ByteRange { base: 8 * GIB + MIB, len_bytes: MIB };
    let before = NfitBuilder::new().range(9, RangeKind::PersistentDisk, image).persistent(1, 8 * GIB, GIB);
    let after = NfitBuilder::new().persistent(1, 8 * GIB, GIB).range(9, RangeKind::PersistentCd, image);
    for builder in [before, after] {
        let nfit = read(&builder.persistent(2, 16 * GIB, GIB).finish());
        assert_eq!(bases(&nfit), [16 * GIB]);
        assert_eq!(keys(&nfit), ["range_other", "range_holds_image"]);
    }
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
fn a_range_whose_device_is_not_mapped_is_refused() {
    let nfit = read(&around(|table| table.device(7, 1, 0, GIB, DeviceFlags::MAP_FAILED)));
    assert_eq!(bases(&nfit), [16 * GIB]);
    assert_eq!(only_line(&nfit), "range 1: the firmware did not map memory device 0x7 into it; range not used");
}

#[test]
fn a_device_that_lost_data_is_reported() {
    let flags = DeviceFlags::SAVE_FAILED | DeviceFlags::NOT_ARMED;
    let nfit = read(&around(|table| table.device(7, 2, 0, GIB, flags)));
    assert_both_survive(&nfit);
    assert_eq!(
        only_line(&nfit),
        "range 2: memory device 0x7 failed to save its data, is not armed: writes may not survive a power loss"
    );
}

#[test]
fn each_flag_that_says_that_data_may_be_lost_is_reported_and_no_other() {
    for flag in DeviceFlags::all().iter() {
        let nfit = read(&around(|table| table.device(7, 2, 0, GIB, flag)));
        let wanted: &[&str] = match flag {
            DeviceFlags::MAP_FAILED => &["device_not_mapped"],
            DeviceFlags::SAVE_FAILED
            | DeviceFlags::RESTORE_FAILED
            | DeviceFlags::FLUSH_FAILED
            | DeviceFlags::NOT_ARMED => &["device_unsafe"],
            _ => &[],
        };
        assert_eq!(keys(&nfit), wanted, "{flag:?}");
    }
}

#[test]
fn capability_bits_above_the_highest_valid_one_do_not_count() {
    for (highest, bits) in [(0, 1), (1, 3), (2, 7), (31, u32::MAX), (255, u32::MAX)] {
        let nfit = read(&NfitBuilder::new().platform(highest, PlatformCapabilities::all()).finish());
        assert_eq!(nfit.platform.bits(), bits);
    }
}
