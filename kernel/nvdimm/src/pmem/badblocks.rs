//! Which sectors of a device are known to be lost: a set of runs (Linux: `block/badblocks.c`).

use alloc::collections::BTreeMap;
use core::fmt;

/// A run of sectors, never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SectorRun {
    /// First sector.
    pub first: u64,
    /// How many.
    pub nr_sectors: u64,
}

impl SectorRun {
    /// The sector after the last one.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.first.saturating_add(self.nr_sectors)
    }
}

impl fmt::Display for SectorRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.first, self.nr_sectors)
    }
}

/// The set. Its size is in proportion to the damage, not to the device.
#[derive(Clone, Debug, Default)]
pub struct BadBlocks {
    /// First sector → sector after the last one. Runs do not touch.
    runs: BTreeMap<u64, u64>,
}

impl BadBlocks {
    /// Adds sectors, which may be in the set already.
    pub fn add(&mut self, first: u64, nr_sectors: u64) {
        let (mut first, mut end) = (first, first.saturating_add(nr_sectors));
        if first >= end {
            return;
        }
        // Runs do not touch, so those that meet the new one lie in a row, the last of them first here.
        while let Some((&other, &other_end)) = self.runs.range(..=end).next_back() {
            if other_end < first {
                break;
            }
            (first, end) = (first.min(other), end.max(other_end));
            self.runs.remove(&other);
        }
        self.runs.insert(first, end);
    }

    /// Takes sectors out, whether they are in the set or not. Answers how many were.
    pub fn clear(&mut self, first: u64, nr_sectors: u64) -> u64 {
        let end = first.saturating_add(nr_sectors);
        let mut cleared = 0;
        while let Some((&other, &other_end)) = self.runs.range(..end).next_back() {
            if other_end <= first || first >= end {
                break;
            }
            self.runs.remove(&other);
            if other < first {
                self.runs.insert(other, first);
            }
            if end < other_end {
                self.runs.insert(end, other_end);
            }
            cleared += other_end.min(end) - other.max(first);
        }
        cleared
    }

    /// The first sector of the set among those given.
    #[must_use]
    pub fn first_bad(&self, first: u64, nr_sectors: u64) -> Option<u64> {
        let end = first.saturating_add(nr_sectors);
        if first >= end {
            return None;
        }
        match self.runs.range(..=first).next_back() {
            Some((_, &other_end)) if other_end > first => Some(first),
            _ => self.runs.range(first..end).next().map(|(&other, _)| other),
        }
    }

    /// The runs, rising.
    pub fn iter(&self) -> impl Iterator<Item = SectorRun> + '_ {
        self.runs.iter().map(|(&first, &end)| SectorRun { first, nr_sectors: end - first })
    }

    /// How many sectors are in the set.
    #[must_use]
    pub fn nr_sectors(&self) -> u64 {
        self.iter().map(|run| run.nr_sectors).sum()
    }

    /// Whether no sector is in the set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use alloc::collections::BTreeSet;
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn runs_that_touch_become_one_and_a_hole_makes_two() {
        let mut bad = BadBlocks::default();
        bad.add(10, 5);
        bad.add(20, 5);
        bad.add(15, 5);
        bad.add(0, 0);
        assert_eq!(bad.iter().collect::<Vec<_>>(), [SectorRun { first: 10, nr_sectors: 15 }]);
        assert_eq!(bad.clear(12, 2), 2);
        let runs = [SectorRun { first: 10, nr_sectors: 2 }, SectorRun { first: 14, nr_sectors: 11 }];
        assert_eq!(bad.iter().collect::<Vec<_>>(), runs);
        assert_eq!((bad.first_bad(12, 2), bad.first_bad(12, 3), bad.first_bad(11, 9)), (None, Some(14), Some(11)));
        assert_eq!(bad.clear(0, u64::MAX), 13);
        assert!(bad.is_empty());
    }

    proptest! {
        /// The same as a plain set of numbers, after each step.
        #[test]
        fn a_plain_set_agrees(
            steps in prop::collection::vec((any::<bool>(), 0..64_u64, 0..16_u64), 1..40)
        ) {
            let (mut bad, mut plain) = (BadBlocks::default(), BTreeSet::new());
            for (add, first, nr) in steps {
                if add {
                    bad.add(first, nr);
                    plain.extend(first..first + nr);
                } else {
                    let gone = (first..first + nr).filter(|sector| plain.remove(sector)).count();
                    prop_assert_eq!(bad.clear(first, nr), gone as u64);
                }
                let listed: Vec<u64> = bad.iter().flat_map(|run| run.first..run.end()).collect();
                prop_assert_eq!(listed, plain.iter().copied().collect::<Vec<_>>());
                let runs: Vec<_> = bad.iter().collect();
                prop_assert!(runs.windows(2).all(|pair| pair[0].end() < pair[1].first));
                for first in 0..80 {
                    let wanted = plain.range(first..first + 3).next().copied();
                    prop_assert_eq!(bad.first_bad(first, 3), wanted);
                }
            }
        }
    }
}
