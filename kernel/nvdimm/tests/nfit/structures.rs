//! Faults of the table and of its structures.

use super::*;

#[test]
fn a_sound_table_gives_ranges_devices_and_no_notice() {
    // The order of the structures is free: the control region and the device come before the range here.
    let table = NfitBuilder::new()
        .control(2, 0x123456)
        .device(0x21, 7, 2, GIB, DeviceFlags::empty())
        .persistent(7, 8 * GIB, GIB)
        .platform(1, PlatformCapabilities::CACHE_FLUSH)
        .persistent(8, 16 * GIB, 6 << 40)
        .finish();
    let nfit = check(&[&table], Limits { phys_bits: 46, taken: &RAM });
    assert!(nfit.notices.is_empty(), "{:?}", nfit.notices);
    assert_eq!(nfit.ranges.len(), 2);
    let range = nfit.ranges[0];
    assert_eq!((range.base, range.len_bytes, range.range_index), (8 * GIB, GIB, 7));
    assert_eq!(range.proximity_domain, Some(0));
    assert_eq!(range.attributes, MemoryAttributes::WB | MemoryAttributes::NV);
    let devices: Vec<_> = nfit.devices_of(&range).collect();
    assert_eq!(devices.len(), 1);
    assert_eq!((devices[0].handle, devices[0].serial_number), (DeviceHandle(0x21), Some(0x123456)));
    assert_eq!(nfit.devices_of(&nfit.ranges[1]).count(), 0);
    assert_eq!(nfit.ranges[1].len_bytes, 6 << 40);
    assert_eq!((range.flags, range.nr_devices, range.read_only()), (DeviceFlags::empty(), 1, None));
    assert_eq!(nfit.platform, PlatformCapabilities::CACHE_FLUSH);
    assert_eq!(nfit.others.control_regions, 1);
}

#[test]
fn no_table_gives_nothing() {
    let nfit = check(&[], LIMITS);
    assert!(nfit.ranges.is_empty() && nfit.notices.is_empty());
}

#[test]
fn a_table_with_a_bad_checksum_is_refused_and_the_next_one_read() {
    let mut bad = NfitBuilder::new().persistent(1, 8 * GIB, GIB).finish();
    spoil(&mut bad);
    assert_eq!(only_line(&read(&bad)), "table has a bad checksum: its bytes add up to 0x01, not to 0; table not used");
    let good = NfitBuilder::new().persistent(1, 16 * GIB, GIB).finish();
    let nfit = check(&[&bad, &good], LIMITS);
    assert_eq!(bases(&nfit), [16 * GIB]);
    assert_eq!(keys(&nfit), ["bad_checksum"]);
}

#[test]
fn a_table_cut_off_or_of_another_kind_is_refused() {
    let table = NfitBuilder::new().persistent(1, 8 * GIB, GIB).finish();
    for length in 0..table.len() {
        let nfit = read(&table[..length]);
        assert!(nfit.ranges.is_empty());
        assert_eq!(keys(&nfit), [if length < 36 { "table_short" } else { "bad_length" }]);
    }
    let mut other = table.clone();
    other[..4].copy_from_slice(b"\0\xffP\n");
    seal(&mut other);
    assert_eq!(only_line(&read(&other)), r#"table signature is "\x00\xffP\n", not "NFIT"; table not used"#);
    let mut short = table.clone();
    short[4..8].copy_from_slice(&39_u32.to_le_bytes());
    seal(&mut short);
    assert_eq!(keys(&read(&short)), ["bad_length"]);
}

#[test]
fn bytes_after_the_claimed_length_are_ignored() {
    let mut table = NfitBuilder::new().persistent(1, 8 * GIB, GIB).finish();
    table.extend_from_slice(&[0xff; 100]);
    let nfit = read(&table);
    assert_eq!(bases(&nfit), [8 * GIB]);
    assert!(nfit.notices.is_empty());
}

#[test]
fn a_structure_of_length_zero_ends_the_walk() {
    let nfit = read(&around(|table| table.raw(0, 0, &[])));
    assert_eq!(bases(&nfit), [8 * GIB]);
    assert_eq!(only_line(&nfit), "structure at 0x60 (type 0) has a length of zero; rest of table not read");
}

#[test]
fn a_structure_beyond_the_end_ends_the_walk() {
    let nfit = read(&around(|table| table.raw(0, 500, &[])));
    assert_eq!(bases(&nfit), [8 * GIB]);
    assert_eq!(only_line(&nfit), "structure at 0x60 claims 500 bytes where 60 are left; rest of table not read");
}

#[test]
fn a_structure_shorter_than_its_header_ends_the_walk() {
    for length in 1..4 {
        let nfit = read(&around(|table| table.raw(0, length, &[])));
        assert_eq!(bases(&nfit), [8 * GIB]);
        assert_eq!(keys(&nfit), ["structure_truncated"]);
    }
}

#[test]
fn a_tail_shorter_than_a_header_is_reported() {
    let nfit = read(&NfitBuilder::new().persistent(1, 8 * GIB, GIB).bytes(&[0; 3]).finish());
    assert_eq!(bases(&nfit), [8 * GIB]);
    assert_eq!(only_line(&nfit), "structure at 0x60 is cut off: 3 bytes are left, less than a structure's header");
}

#[test]
fn a_structure_too_short_for_its_type_is_skipped() {
    for (kind, need) in [(0, 56), (1, 48), (2, 16), (3, 8), (4, 32), (5, 40), (6, 16), (7, 16)] {
        let body = vec![0; need - 5];
        let nfit = read(&around(|table| table.raw(kind, need as u16 - 1, &body)));
        assert_both_survive(&nfit);
        let line = format!("structure at 0x60 (type {kind}) has {} bytes and needs {need}; skipped", need - 1);
        assert_eq!(only_line(&nfit), line);
    }
}

#[test]
fn a_structure_that_counts_more_than_it_holds_is_skipped() {
    // An interleave structure that claims 2^32 - 1 lines, and a flush hint structure that claims 3 addresses.
    let mut interleave = [0; 12];
    interleave[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    let mut hints = [0; 28];
    hints[4] = 3;
    let nfit = read(&around(|table| table.raw(2, 16, &interleave).raw(6, 32, &hints)));
    assert_both_survive(&nfit);
    assert_eq!(nfit.notices[0].to_string(), "structure at 0x60 (type 2) has 16 bytes and needs 17179869196; skipped");
    assert_eq!(nfit.notices[1].to_string(), "structure at 0x70 (type 6) has 32 bytes and needs 40; skipped");
    assert_eq!((nfit.others.interleaves, nfit.others.flush_hints), (0, 0));
}

#[test]
fn structures_of_other_types_are_counted() {
    let nfit = read(&around(|table| {
        let table = table.raw(2, 16, &[0; 12]).raw(3, 8, &[0; 4]).raw(5, 40, &[0; 36]);
        table.raw(6, 16, &[0; 12]).control(1, 1)
    }));
    assert_both_survive(&nfit);
    assert!(nfit.notices.is_empty(), "{:?}", nfit.notices);
    let once = OtherStructures { interleaves: 1, smbios: 1, control_regions: 1, block_windows: 1, flush_hints: 1 };
    assert_eq!(nfit.others, once);
}

#[test]
fn a_structure_of_unknown_type_is_skipped() {
    let nfit = read(&around(|table| table.raw(9, 12, &[0xaa; 8])));
    assert_both_survive(&nfit);
    assert_eq!(only_line(&nfit), "structure at 0x60 has unknown type 9; skipped");
}

#[test]
fn a_longer_range_structure_of_a_later_revision_is_read() {
    // ACPI 6.4 appended a location cookie to the range structure.
    let whole = NfitBuilder::new().persistent(3, 8 * GIB, GIB).finish();
    let mut body = whole[FIRST_STRUCTURE + 4..].to_vec();
    body.extend_from_slice(&[0x55; 8]);
    let nfit = read(&around(|table| table.raw(0, 64, &body)));
    // It lies on top of the first range, which shows that it was read.
    assert_both_survive(&nfit);
    assert_eq!(keys(&nfit), ["range_overlaps_range"]);
}
