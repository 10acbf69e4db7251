//! What must hold for any input, as assertions: the property tests and the fuzz target share it.

use super::{Limits, MAX_DEVICES, MAX_NOTICES, Nfit, PAGE_BYTES, parse};

/// Parses the tables and checks what came out against what went in.
///
/// # Panics
/// If a range that was handed out is one that should have been refused, if a notice does not fit one line, or if
/// the parser itself panics.
pub fn check(tables: &[&[u8]], limits: Limits<'_>) -> Nfit {
    let nfit = parse(tables.iter().copied(), limits);
    for (number, range) in nfit.ranges.iter().enumerate() {
        assert!(range.len_bytes > 0 && range.len_bytes.is_multiple_of(PAGE_BYTES), "length of {range:x?}");
        assert!(range.base.is_multiple_of(PAGE_BYTES), "base of {range:x?}");
        let end = range.base.checked_add(range.len_bytes);
        assert!(end.is_some_and(|end| end <= limits.phys_end()), "end of {range:x?}");
        for ram in limits.ram {
            assert!(!ram.overlaps(&range.bytes()), "{range:x?} overlaps RAM {ram:x?}");
        }
        for earlier in &nfit.ranges[..number] {
            assert!(!earlier.bytes().overlaps(&range.bytes()), "{range:x?} overlaps {earlier:x?}");
        }
        assert!(nfit.devices_of(range).count() <= MAX_DEVICES);
    }
    assert!(nfit.ranges.is_sorted_by_key(|range| range.base), "ranges out of order");
    for device in &nfit.devices {
        assert!(nfit.ranges.iter().any(|range| device.is_behind(range)), "{device:x?} lies behind nothing");
    }
    assert!(nfit.notices_dropped == 0 || nfit.notices.len() == MAX_NOTICES, "a notice was dropped too early");
    for notice in &nfit.notices {
        let line = alloc::format!("{notice}");
        assert!(!line.is_empty() && line.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "line {line:?}");
        assert!(line.len() <= 200, "line of {} bytes: {line}", line.len());
        assert!(!notice.key().contains(' '));
    }
    nfit
}
