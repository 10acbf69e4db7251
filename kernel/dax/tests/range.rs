//! Clipping of notified ranges against arithmetic in 128 bits, which cannot wrap.
#![cfg(not(loom))]

use dax::holder::NotifyError;
use dax::range::{ByteSpan, WHOLE, clip};
use proptest::prelude::*;

/// Bytes `first ..= last` that a correct answer covers.
fn model(offset: u64, len: u64, part: ByteSpan) -> Option<(u64, u64)> {
    let (part_first, part_last) = (u128::from(part.first()), u128::from(part.last()));
    if offset == 0 && len == u64::MAX {
        return Some((part.first(), part.last()));
    }
    let (start, end) = (u128::from(offset), u128::from(offset) + u128::from(len));
    let first = start.max(part_first);
    let end = end.min(part_last + 1);
    (first < end).then(|| (first as u64, (end - 1) as u64))
}

/// Offsets and lengths that sit on the edges more often than chance would have it.
fn edgy() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        0..0x3000_u64,
        (0..3_u64).prop_map(|back| u64::MAX - back),
        Just(1 << 63),
        (0..64_u32).prop_map(|bit| (1_u64 << bit) - 1),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(20_000) })]

    /// covers: N3 N4
    #[test]
    fn clips_as_wide_arithmetic_does(offset in edgy(), len in edgy(), a in edgy(), b in edgy()) {
        let part = ByteSpan::new(a.min(b), a.max(b)).unwrap();
        let got = clip(offset, len, part);
        match model(offset, len, part) {
            Some((first, last)) => prop_assert_eq!(got, Ok(ByteSpan::new(first, last).unwrap())),
            None => prop_assert_eq!(got, Err(NotifyError::NoSuchAddress)),
        }
        if let Ok(span) = got {
            let inner = span.relative_to(part).unwrap();
            prop_assert_eq!(inner.first() + part.first(), span.first());
            prop_assert_eq!(inner.last() - inner.first(), span.last() - span.first());
        }
    }
}

/// covers: N3
#[test]
fn the_whole_device_is_recognised_before_any_addition() {
    let part = ByteSpan::from_len(0x10_0000, 0x20_0000).unwrap();
    assert_eq!(clip(0, WHOLE, part), Ok(part));
    // A part that does not begin at zero would lose everything if 0 + u64::MAX were clipped like any other sum
    // and the part ended at the last offset.
    let top = ByteSpan::new(1, u64::MAX).unwrap();
    assert_eq!(clip(0, WHOLE, top), Ok(top));
    // The same length from another offset is an ordinary range that runs to the end.
    assert_eq!(clip(0x18_0000, WHOLE, part), Ok(ByteSpan::new(0x18_0000, 0x2f_ffff).unwrap()));
}

/// covers: N4
#[test]
fn ends_are_inclusive_and_the_last_byte_counts() {
    let part = ByteSpan::from_len(0x1000, 0x1000).unwrap();
    assert_eq!((part.first(), part.last(), part.len_bytes()), (0x1000, 0x1fff, Some(0x1000)));
    assert_eq!(clip(0x1fff, 1, part), Ok(ByteSpan::new(0x1fff, 0x1fff).unwrap()));
    assert_eq!(clip(0, 0x1001, part), Ok(ByteSpan::new(0x1000, 0x1000).unwrap()));
    assert_eq!(clip(0x2000, 1, part), Err(NotifyError::NoSuchAddress));
    assert_eq!(clip(0, 0x1000, part), Err(NotifyError::NoSuchAddress));
    assert_eq!(clip(0x1000, 0, part), Err(NotifyError::NoSuchAddress));
    assert_eq!(ByteSpan::new(0, u64::MAX).unwrap().len_bytes(), None);
}
