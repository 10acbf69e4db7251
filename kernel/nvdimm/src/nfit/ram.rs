//! Ranges of addresses as a short list: RAM, say, or images that the firmware keeps.

use arrayvec::ArrayVec;

use super::types::ByteRange;

/// How many separate ranges are kept apart.
pub const MAX_RAM_RANGES: usize = 64;

/// Ranges of one use, rising, each apart from the next.
///
/// A firmware's memory map has a hundred entries and more, most of which touch. Where more than [`MAX_RAM_RANGES`] do
/// not, the smallest gaps are closed: the list then covers more than it should, which can cost a persistent range but
/// never lets one overlap what was added.
#[derive(Clone, Debug, Default)]
pub struct RamMap {
    /// One place more than is kept, for the range that is just being added.
    ranges: ArrayVec<ByteRange, { MAX_RAM_RANGES + 1 }>,
}

impl RamMap {
    /// Adds a range, which may touch, overlap or repeat others.
    pub fn add(&mut self, range: ByteRange) {
        if range.len_bytes == 0 {
            return;
        }
        // The ranges rise and are apart, so what grows downwards by a merge cannot reach one that was passed over.
        let (mut base, mut end) = (range.base, range.end());
        self.ranges.retain(|other| {
            let touches = other.base <= end && base <= other.end();
            if touches {
                (base, end) = (base.min(other.base), end.max(other.end()));
            }
            !touches
        });
        let at = self.ranges.partition_point(|other| other.base < base);
        self.ranges.insert(at, ByteRange { base, len_bytes: end - base });
        if self.ranges.len() > MAX_RAM_RANGES {
            self.close_smallest_gap();
        }
    }

    /// The ranges, rising.
    #[must_use]
    pub fn as_slice(&self) -> &[ByteRange] {
        &self.ranges
    }

    /// How many bytes there are in all ranges together.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        self.ranges.iter().fold(0, |sum, range| sum.saturating_add(range.len_bytes))
    }

    fn close_smallest_gap(&mut self) {
        let gap = |at: &usize| self.ranges[at + 1].base - self.ranges[*at].end();
        if let Some(at) = (0..self.ranges.len().saturating_sub(1)).min_by_key(gap) {
            let upper = self.ranges.remove(at + 1);
            let lower = &mut self.ranges[at];
            lower.len_bytes = upper.end() - lower.base;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn map(ranges: impl IntoIterator<Item = (u64, u64)>) -> RamMap {
        let mut map = RamMap::default();
        for (base, len_bytes) in ranges {
            map.add(ByteRange { base, len_bytes });
        }
        map
    }

    #[test]
    fn ranges_that_touch_become_one() {
        let map = map([(0x3000, 0x1000), (0x1000, 0x1000), (0x9000, 0), (0x2000, 0x1000), (0x5000, 0x1000)]);
        let wanted = [(0x1000, 0x3000), (0x5000, 0x1000)];
        assert_eq!(map.as_slice(), wanted.map(|(base, len_bytes)| ByteRange { base, len_bytes }));
        assert_eq!(map.len_bytes(), 0x4000);
    }

    #[test]
    fn a_full_map_closes_its_smallest_gap() {
        let mut all: alloc::vec::Vec<_> = (0..MAX_RAM_RANGES as u64).map(|i| (i * 0x10000, 0x1000)).collect();
        all.push((20 * 0x10000 + 0x2000, 0x1000));
        let map = map(all);
        assert_eq!(map.as_slice().len(), MAX_RAM_RANGES);
        assert_eq!(map.as_slice()[20], ByteRange { base: 20 * 0x10000, len_bytes: 0x3000 });
    }

    proptest! {
        /// Nothing that was added is uncovered, and the ranges rise and are apart.
        #[test]
        fn covers_all(
            ranges in prop::collection::vec((0..0x4000_u64, prop_oneof![0..0x40_u64, any::<u64>()]), 0..200)
        ) {
            let map = map(ranges.iter().copied());
            for (base, len_bytes) in ranges {
                let range = ByteRange { base, len_bytes };
                let covered = |kept: &ByteRange| kept.base <= range.base && range.end() <= kept.end();
                prop_assert!(len_bytes == 0 || map.as_slice().iter().any(covered));
            }
            for pair in map.as_slice().windows(2) {
                prop_assert!(pair[0].end() < pair[1].base);
            }
        }

        /// Where there is room, nothing else is covered either.
        #[test]
        fn covers_nothing_else(ranges in prop::collection::vec((0..256_u64, 0..8_u64), 0..40)) {
            let map = map(ranges.iter().copied());
            for byte in 0..300 {
                let at = |(base, len): &(u64, u64)| (*base..base + len).contains(&byte);
                let kept = map.as_slice().iter().any(|kept| (kept.base..kept.end()).contains(&byte));
                prop_assert_eq!(ranges.iter().any(at), kept);
            }
        }
    }
}
