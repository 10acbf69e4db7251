//! What the table says of the devices behind the ranges.

use media::set::{Member, SetCookies};

use super::*;

fn device(handle: u32, range_index: u16, flags: DeviceFlags) -> DeviceRow {
    DeviceRow { handle, range_index, len_bytes: GIB, flags, ..DeviceRow::default() }
}

// covers: M4
#[test]
fn each_state_is_told_and_those_that_lose_data_make_the_range_read_only() {
    for flag in DeviceFlags::all().iter() {
        let nfit = read(&around(|table| table.device(7, 2, 0, GIB, flag | DeviceFlags::HEALTH_ENABLED)));
        assert_both_survive(&nfit);
        let (line, read_only) = match flag {
            DeviceFlags::SAVE_FAILED => ("failed to save its data", true),
            DeviceFlags::RESTORE_FAILED => ("failed to restore its data", true),
            DeviceFlags::FLUSH_FAILED => ("was not flushed", true),
            DeviceFlags::NOT_ARMED => ("is not armed", true),
            DeviceFlags::MAP_FAILED => ("was not mapped by the firmware", true),
            DeviceFlags::HEALTH_EVENT => ("has reported a health event", false),
            _ => ("", false),
        };
        if line.is_empty() {
            assert!(nfit.notices.is_empty(), "{flag:?}: {:?}", nfit.notices);
        } else {
            assert_eq!(only_line(&nfit), format!("range 2: memory device 0x7 {line}"));
            assert_eq!(nfit.notices[0].level(), Level::Serious);
        }
        assert_eq!(nfit.ranges[1].read_only(), read_only.then_some(flag), "{flag:?}");
        assert_eq!(nfit.ranges[0].read_only(), None, "{flag:?}");
    }
}

#[test]
fn several_states_are_one_line() {
    let flags = DeviceFlags::SAVE_FAILED | DeviceFlags::NOT_ARMED;
    let nfit = read(&around(|table| table.device(7, 2, 0, GIB, flags)));
    assert_eq!(only_line(&nfit), "range 2: memory device 0x7 failed to save its data, is not armed");
    assert_eq!(nfit.ranges[1].flags, flags);
}

/// A device that the firmware could not map has no range (ACPI 6.5 §5.2.26.3), and its line is what matters.
#[test]
fn a_state_is_told_wherever_the_device_stands() {
    let flags = DeviceFlags::MAP_FAILED | DeviceFlags::HEALTH_EVENT;
    // No range, a range that is not in the table, one that is refused, and one that is not persistent memory.
    for (range_index, before) in [(0, "behind no range: "), (99, "range 99: "), (5, "range 5: "), (6, "range 6: ")] {
        let nfit = read(&around(|table| {
            let registers = ByteRange { base: 12 * GIB, len_bytes: MIB };
            let table = table.persistent(5, RAM[1].range.base, MIB).range(6, RangeKind::ControlRegion, registers);
            table.device(7, range_index, 0, GIB, flags)
        }));
        assert_both_survive(&nfit);
        assert!(nfit.devices.is_empty() && nfit.ranges.iter().all(|range| range.flags.is_empty()));
        let lines: Vec<_> = nfit.notices.iter().filter(|n| n.key() == "device_state").map(Notice::to_string).collect();
        let state = "memory device 0x7 has reported a health event, was not mapped by the firmware";
        assert_eq!(lines, [format!("{before}{state}")]);
    }
}

/// One device is enough, whichever of those behind the range it is, and where there is no room to list it.
#[test]
fn a_range_is_read_only_for_a_device_that_is_not_listed() {
    let mut table = NfitBuilder::new().persistent(1, 8 * GIB, GIB);
    for handle in 0..=MAX_DEVICES as u32 {
        let last = handle == MAX_DEVICES as u32;
        let flags = if last { DeviceFlags::NOT_ARMED } else { DeviceFlags::empty() };
        table = table.device(handle, 1, 0, GIB, flags);
    }
    let nfit = read(&table.finish());
    assert_eq!(nfit.devices.len(), MAX_DEVICES);
    assert_eq!(nfit.ranges[0].read_only(), Some(DeviceFlags::NOT_ARMED));
    assert_eq!(nfit.ranges[0].nr_devices, MAX_DEVICES as u32 + 1);
    assert_eq!(keys(&nfit), ["device_state", "too_many_devices"]);
}

#[test]
fn a_part_that_does_not_fit_into_its_range_is_told() {
    for (offset_bytes, len_bytes, fits) in [
        (0, GIB, true),
        (GIB - 1, 1, true),
        (0, GIB + 1, false),
        (1, GIB, false),
        (u64::MAX, 2, false),
        (GIB, 1, false),
    ] {
        let row = DeviceRow { offset_bytes, len_bytes, ..device(7, 2, DeviceFlags::empty()) };
        let nfit = read(&around(|table| table.device_row(row)));
        assert_both_survive(&nfit);
        assert_eq!(keys(&nfit), if fits { vec![] } else { vec!["region_large"] }, "{offset_bytes:#x} {len_bytes:#x}");
    }
    let row = DeviceRow { len_bytes: 2 * GIB, ..device(7, 2, DeviceFlags::empty()) };
    assert_eq!(
        only_line(&read(&around(|table| table.device_row(row)))),
        "range 2: the part of memory device 0x7 (0x0 + 0x80000000 bytes) is larger than the range, 0x40000000 bytes"
    );
    // The range may have been cut to whole pages: the table has not.
    let table = NfitBuilder::new().persistent(1, 8 * GIB, 0x1800).device(7, 1, 0, 0x1800, DeviceFlags::empty());
    assert_eq!(keys(&read(&table.finish())), ["range_trimmed"]);
}

#[test]
fn ways_are_told_that_are_more_than_there_are_devices() {
    let with = |ways: &[u16]| {
        read(&around(|table| {
            (1..).zip(ways).fold(table, |table, (handle, &ways)| {
                table.device_row(DeviceRow { ways, ..device(handle, 2, DeviceFlags::empty()) })
            })
        }))
    };
    for fine in [&[0][..], &[1], &[2, 2], &[1, 1], &[4; 4], &[2, 2, 1]] {
        assert!(with(fine).notices.is_empty(), "{fine:?}");
    }
    for wrong in [&[2][..], &[3, 3], &[1, 0xffff], &[8; 4]] {
        let nfit = with(wrong);
        assert_both_survive(&nfit);
        let most = wrong.iter().max().unwrap();
        assert_eq!(
            only_line(&nfit),
            format!(
                "range 2: {most} memory devices are said to share it line by line, and {} lie behind it",
                wrong.len()
            )
        );
    }
}

#[test]
fn a_device_that_lies_behind_a_range_twice_is_listed_once() {
    let row = device(7, 2, DeviceFlags::empty());
    let again = DeviceRow { ways: 2, flags: DeviceFlags::NOT_ARMED, ..row };
    let nfit = read(&around(|table| table.device_row(row).device_row(again)));
    assert_both_survive(&nfit);
    assert_eq!(keys(&nfit), ["device_state", "device_twice"]);
    assert_eq!(nfit.notices[1].to_string(), "range 2: memory device 0x7 lies behind it twice; listed once");
    assert_eq!((nfit.devices.len(), nfit.ranges[1].nr_devices), (1, 1));
    assert_eq!(nfit.ranges[1].read_only(), Some(DeviceFlags::NOT_ARMED));
}

/// A device may have parts in several ranges: then its handle stands in the table several times.
#[test]
fn two_devices_with_one_handle_are_told() {
    let one = DeviceRow { physical_id: 5, control_index: 1, ..device(7, 1, DeviceFlags::empty()) };
    let same = DeviceRow { range_index: 2, ..one };
    let line = "ranges 1 and 2: two memory devices have the handle 0x7; which is meant is not known";
    for (second, wanted) in [
        (same, None),
        (DeviceRow { physical_id: 0, ..same }, None),
        (DeviceRow { physical_id: 6, ..same }, Some(line)),
        (DeviceRow { control_index: 2, ..same }, Some(line)),
        (DeviceRow { control_index: 3, ..same }, None),
    ] {
        // Two control regions of one device, and one of another.
        let nfit = read(&around(|table| {
            table.device_row(one).device_row(second).control(1, 0x1111).control(2, 0x2222).control(3, 0x1111)
        }));
        assert_both_survive(&nfit);
        assert_eq!(nfit.devices.len(), 2);
        assert_eq!(nfit.notices.first().map(Notice::to_string).as_deref(), wanted, "{second:?}");
    }
}

#[test]
fn a_handle_is_told_by_its_parts() {
    let place = DeviceHandle(0x0123_4567).place().to_string();
    assert_eq!(place, "node 291, socket 4, controller 5, channel 6, slot 7");
}

/// What labels name needs all that is behind the range: where it begins, and who it is.
// covers: M2
#[test]
fn an_interleave_set_is_known_where_all_of_its_devices_are() {
    let row = |handle, control_index, offset_bytes| DeviceRow {
        control_index,
        offset_bytes,
        len_bytes: GIB / 2,
        ..device(handle, 2, DeviceFlags::empty())
    };
    let set = |nfit: &Nfit| nfit.interleave_set(&nfit.ranges[1]);
    let member = |serial_number, region_offset_bytes| Member {
        serial_number,
        region_offset_bytes,
        vendor_id: 0x8086,
        ..Member::default()
    };
    let two = |table: NfitBuilder| table.device_row(row(7, 1, GIB / 2)).device_row(row(8, 2, 0));
    let nfit = read(&around(|table| two(table).control(1, 11).control(2, 12)));
    assert_eq!(set(&nfit), SetCookies::of(&[member(12, 0), member(11, GIB / 2)]));
    assert_ne!(set(&nfit), SetCookies::of(&[member(11, 0), member(12, GIB / 2)]));
    // Nothing behind it; one without a control region; one that is not listed.
    assert_eq!(nfit.interleave_set(&nfit.ranges[0]), None);
    assert_eq!(set(&read(&around(|table| two(table).control(1, 11)))), None);
    let many =
        |table: NfitBuilder| (0..=MAX_DEVICES as u32).fold(table, |table, handle| table.device_row(row(handle, 1, 0)));
    assert_eq!(set(&read(&around(|table| many(table).control(1, 11)))), None);
}

#[test]
fn attributes_and_capabilities_are_told_by_their_names() {
    let attributes =
        MemoryAttributes::WB | MemoryAttributes::MORE_RELIABLE | MemoryAttributes::from_bits_retain(1 << 40);
    assert_eq!(attributes.to_string(), "wb, more reliable, 0x10000000000");
    assert_eq!(PlatformCapabilities::MEMORY_FLUSH.to_string(), "memory flush");
    assert_eq!(PlatformCapabilities::from_bits_retain(8).to_string(), "0x8");
    assert_eq!(PlatformCapabilities::empty().to_string(), "none");
}

/// Every range and every device can have a line, with as much room again at most for whatever else is strange.
#[test]
fn there_is_room_for_a_line_about_each_range_and_each_device() {
    const LINES: usize = MAX_RANGES + MAX_DEVICES;
    assert!((LINES + 1..2 * LINES).contains(&MAX_NOTICES));
    let all = (0..2 * MAX_NOTICES).fold(NfitBuilder::new(), |table, _| table.raw(99, 4, &[]));
    assert_eq!(read(&all.finish()).notices.len(), MAX_NOTICES);
}

// covers: X1
#[test]
fn a_serious_notice_is_never_lost_to_ordinary_ones() {
    let ordinary = |table: NfitBuilder, many: usize| (0..many).fold(table, |table, _| table.raw(99, 4, &[]));
    let not_armed = |table: NfitBuilder| table.device(7, 2, 0, GIB, DeviceFlags::NOT_ARMED);
    let nfit = read(&around(|table| not_armed(ordinary(table, 2 * MAX_NOTICES))));
    assert_eq!(nfit.notices.len(), MAX_NOTICES);
    assert_eq!((nfit.notices_dropped, nfit.serious_dropped), (MAX_NOTICES as u32 + 1, 0));
    assert_eq!(keys(&nfit).iter().filter(|key| **key == "device_state").count(), 1);
    // A range that is not used is worth more than what is merely strange, and less than what is serious.
    let nfit = read(&around(|table| {
        let table = ordinary(table, MAX_NOTICES);
        not_armed((0..MAX_NOTICES as u64 - 1).fold(table, |table, at| table.persistent(9, (1 << 40) + at * MIB, MIB)))
    }));
    let mut wanted = vec!["range_above_limit"; MAX_NOTICES - 1];
    wanted.push("device_state");
    assert_eq!(keys(&nfit), wanted);
    // Of those of one level the first are kept, in their order.
    let table = around(|table| {
        (0..MAX_NOTICES as u32 + 3)
            .fold(table, |table, handle| table.device(handle, 0, 0, GIB, DeviceFlags::HEALTH_EVENT).raw(99, 4, &[]))
    });
    let nfit = read(&table);
    let line = |handle| format!("behind no range: memory device {handle:#x} has reported a health event");
    let lines: Vec<_> = nfit.notices.iter().map(Notice::to_string).collect();
    assert_eq!(lines, (0..MAX_NOTICES).map(line).collect::<Vec<_>>());
    assert_eq!((nfit.notices_dropped, nfit.serious_dropped), (MAX_NOTICES as u32 + 6, 3));
}
