//! A set of numbers, kept as runs: its memory is in proportion to how many pieces it has, not to how many numbers.
//!
//! What is lost of a device is such a set. It comes from outside (a list on the medium, a machine check), so memory for it is
//! asked for before it is changed, and may be missing. A `BTreeMap`, on which the range sets of the registry are built,
//! cannot be asked: so this is a sorted `Vec`.

use alloc::vec::Vec;
use core::fmt;

/// The numbers `first .. end`. Never empty.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Run {
    first: u64,
    end: u64,
}

impl Run {
    /// The numbers `first .. end`; `None` where there are none.
    #[inline]
    pub const fn new(first: u64, end: u64) -> Option<Self> {
        if first < end { Some(Self { first, end }) } else { None }
    }
    /// `nr` numbers from `first` on; `None` where there are none, or where they would wrap.
    #[inline]
    pub const fn with_len(first: u64, nr: u64) -> Option<Self> {
        match first.checked_add(nr) {
            Some(end) => Self::new(first, end),
            None => None,
        }
    }
    /// The first number.
    #[inline]
    pub const fn first(self) -> u64 {
        self.first
    }
    /// One past the last number.
    #[inline]
    pub const fn end(self) -> u64 {
        self.end
    }
    /// How many there are, at least 1.
    #[inline]
    #[expect(clippy::len_without_is_empty, reason = "it never is")]
    pub const fn len(self) -> u64 {
        self.end - self.first
    }
    /// Those that both have.
    #[inline]
    pub fn intersection(self, other: Self) -> Option<Self> {
        Self::new(self.first.max(other.first), self.end.min(other.end))
    }
}

impl fmt::Debug for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.first, self.end)
    }
}

/// There is no memory for one more run; nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRoom;

impl fmt::Display for NoRoom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no memory for a longer list")
    }
}

impl core::error::Error for NoRoom {}

/// The set.
///
/// ```
/// use mm::run_set::{Run, RunSet};
///
/// let run = |first, end| Run::new(first, end).unwrap();
/// let mut set = RunSet::default();
/// assert_eq!(set.insert(run(10, 20)), Ok(10));
/// assert_eq!(set.insert(run(15, 30)), Ok(10), "ten of them are new");
/// assert_eq!(set.remove(run(12, 14)), Ok(2));
/// assert_eq!(set.runs(), [run(10, 12), run(14, 30)]);
/// assert_eq!(set.first_in(run(12, 100)), Some(14));
/// ```
#[derive(Debug, Default)]
pub struct RunSet {
    /// Rising. Two of them do not touch.
    runs: Vec<Run>,
    /// All that there is while memory for a list has never been had: the empty set takes none, and one run needs none.
    only: Option<Run>,
}

impl RunSet {
    /// Is no number in it?
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty() && self.only.is_none()
    }

    /// Its runs, rising. Two of them do not touch.
    pub fn runs(&self) -> &[Run] {
        if self.only.is_some() { self.only.as_slice() } else { &self.runs }
    }

    /// The lowest number of `run` that is in it.
    pub fn first_in(&self, run: Run) -> Option<u64> {
        let at = self.runs().partition_point(|there| there.end <= run.first);
        self.runs().get(at)?.intersection(run).map(Run::first)
    }

    /// Are all numbers of `run` in it?
    pub fn contains_all(&self, run: Run) -> bool {
        let at = self.runs().partition_point(|there| there.end <= run.first);
        self.runs().get(at).is_some_and(|there| there.first <= run.first && run.end <= there.end)
    }

    /// Makes room in the list for one more run than there are.
    fn reserve(&mut self) -> Result<(), NoRoom> {
        self.runs.try_reserve(1 + usize::from(self.only.is_some())).map_err(|_| NoRoom)?;
        self.runs.extend(self.only.take());
        Ok(())
    }

    /// Puts the numbers of `run` in. Answers how many of them were not there.
    ///
    /// # Errors
    /// [`NoRoom`].
    pub fn insert(&mut self, run: Run) -> Result<u64, NoRoom> {
        if self.is_empty() && self.runs.capacity() == 0 {
            self.only = Some(run);
            return Ok(run.len());
        }
        let (at, behind) = self.touching(run);
        if at == behind {
            self.reserve()?;
            self.runs.insert(at, run);
            return Ok(run.len());
        }
        let there = &self.runs()[at..behind];
        let known = there.iter().map(|there| there.len()).sum::<u64>();
        let joined = Run { first: there[0].first.min(run.first), end: there[there.len() - 1].end.max(run.end) };
        match &mut self.only {
            Some(only) => *only = joined,
            None => {
                self.runs[at] = joined;
                self.runs.drain(at + 1..behind);
            }
        }
        // The gaps between them, all of which `run` covers.
        Ok(joined.len() - known)
    }

    /// As [`insert`](Self::insert), for what must not be forgotten: where there is no memory for one more run, a run that is
    /// there is stretched as far as `run`, and what lies between is in the set, too. The nearest one is.
    pub fn insert_or_stretch(&mut self, run: Run) -> u64 {
        self.insert(run).unwrap_or_else(|NoRoom| self.stretch(run))
    }

    /// Stretches the nearest run as far as `run`, which touches none.
    fn stretch(&mut self, run: Run) -> u64 {
        let at = self.runs().partition_point(|there| there.end < run.first);
        let below = at.checked_sub(1).map(|at| self.runs()[at]);
        let (first, end) = match (below, self.runs().get(at)) {
            (Some(below), Some(above)) if run.first - below.end <= above.first - run.end => (below.end, run.end),
            (_, Some(above)) => (run.first, above.first),
            (Some(below), None) => (below.end, run.end),
            (None, None) => unreachable!("the first run needs no room"),
        };
        // It touches one that is there, so that it needs no room.
        self.insert(Run { first, end }).unwrap_or_else(|_| unreachable!("what touches another run needs no room"))
    }

    /// Takes the numbers of `run` out. Answers how many of them were there.
    ///
    /// # Errors
    /// [`NoRoom`]: a run would have to be cut in two.
    pub fn remove(&mut self, run: Run) -> Result<u64, NoRoom> {
        let at = self.runs().partition_point(|there| there.end <= run.first);
        let behind = self.runs().partition_point(|there| there.first < run.end);
        if at >= behind {
            return Ok(0);
        }
        let there = &self.runs()[at..behind];
        let (low, high) = (there[0], there[there.len() - 1]);
        let removed = there.iter().filter_map(|there| there.intersection(run)).map(Run::len).sum();
        let kept = [Run::new(low.first, run.first), Run::new(run.end, high.end)];
        let nr_kept = kept.iter().flatten().count();
        if nr_kept > behind - at {
            self.reserve()?;
        }
        match &mut self.only {
            Some(only) if nr_kept == 1 => *only = kept[0].or(kept[1]).unwrap_or(*only),
            Some(_) => self.only = None,
            None => {
                // One after the other, into the room that there is now: a splice collects what it does not know the number of.
                self.runs.drain(at..behind);
                kept.into_iter().flatten().rev().for_each(|kept| self.runs.insert(at, kept));
            }
        }
        Ok(removed)
    }

    /// The places of the runs that share a number with `run`, or touch it.
    fn touching(&self, run: Run) -> (usize, usize) {
        let at = self.runs().partition_point(|there| there.end < run.first);
        let behind = self.runs().partition_point(|there| there.first <= run.end);
        (at, behind)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use alloc::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn run(first: u64, end: u64) -> Run {
        Run::new(first, end).expect("a run of the test")
    }

    #[test]
    fn a_run_is_never_empty_and_never_wraps() {
        assert_eq!(Run::new(5, 5), None);
        assert_eq!(Run::with_len(5, 0), None);
        assert_eq!(Run::with_len(u64::MAX, 2), None);
        assert_eq!(Run::with_len(u64::MAX - 2, 2), Some(run(u64::MAX - 2, u64::MAX)));
    }

    /// covers: X3
    #[test]
    fn a_run_of_any_length_takes_the_memory_of_one_run() {
        let mut set = RunSet::default();
        assert_eq!(set.insert(run(0, u64::MAX)), Ok(u64::MAX));
        assert_eq!(set.insert(run(7, 1 << 40)), Ok(0));
        assert_eq!((set.runs(), set.runs.capacity()), (&[run(0, u64::MAX)][..], 0));
        // Cut at an end it is one run still, and in the middle two, which need a list.
        assert_eq!((set.remove(run(0, 10)), set.remove(run(100, u64::MAX))), (Ok(10), Ok(u64::MAX - 100)));
        assert_eq!((set.runs(), set.runs.capacity()), (&[run(10, 100)][..], 0));
        assert_eq!(set.remove(run(20, 30)), Ok(10));
        assert_eq!(set.runs(), [run(10, 20), run(30, 100)]);
        assert_eq!((set.remove(run(0, 1000)), set.is_empty(), set.insert(run(5, 6))), (Ok(80), true, Ok(1)));
    }

    #[test]
    fn what_is_stretched_covers_what_was_there_and_what_came() {
        // The stretching alone: memory is not short in a test.
        for (new, expected) in [
            (run(22, 23), [run(10, 23), run(40, 50)]),
            (run(38, 39), [run(10, 20), run(38, 50)]),
            (run(1, 2), [run(1, 20), run(40, 50)]),
            (run(90, 91), [run(10, 20), run(40, 91)]),
        ] {
            let mut set = RunSet { runs: alloc::vec![run(10, 20), run(40, 50)], only: None };
            set.stretch(new);
            assert_eq!(set.runs(), expected, "{new:?}");
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u64, u64),
        Remove(u64, u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..60u64, 1..20u64).prop_map(|(first, nr)| Step::Insert(first, nr)),
            (0..60u64, 1..20u64).prop_map(|(first, nr)| Step::Remove(first, nr)),
        ]
    }

    proptest! {
        /// covers: X3
        #[test]
        fn it_agrees_with_a_set_of_numbers(steps in prop::collection::vec(step(), 1..40)) {
            let (mut set, mut model) = (RunSet::default(), BTreeSet::new());
            for step in steps {
                match step {
                    Step::Insert(first, nr) => {
                        let new = (first..first + nr).filter(|&n| model.insert(n)).count() as u64;
                        prop_assert_eq!(set.insert(run(first, first + nr)), Ok(new));
                    }
                    Step::Remove(first, nr) => {
                        let gone = (first..first + nr).filter(|n| model.remove(n)).count() as u64;
                        prop_assert_eq!(set.remove(run(first, first + nr)), Ok(gone));
                    }
                }
                let listed: BTreeSet<u64> = set.runs().iter().flat_map(|run| run.first..run.end).collect();
                prop_assert_eq!(&listed, &model);
                prop_assert!(set.runs().windows(2).all(|pair| pair[0].end < pair[1].first), "they touch: {:?}", set.runs());
                for first in 0..80 {
                    let some = run(first, first + 5);
                    prop_assert_eq!(set.first_in(some), model.range(first..first + 5).next().copied());
                    prop_assert_eq!(set.contains_all(some), (first..first + 5).all(|n| model.contains(&n)));
                }
            }
        }
    }
}
