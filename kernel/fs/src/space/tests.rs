//! Bitmaps against a list of bits: what is found, taken and given back.

use alloc::boxed::Box;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::*;

mod groups;

/// Blocks of the groups of these tests: some areas, the last of them cut.
const MOST: u64 = 6 * HUGE_BLOCKS;

/// The same as [`Bits`], one by one. What lies beyond the end of the group is in use.
struct Model(Vec<bool>);

/// The first run of `want` free bits of `range`, or else the first of the longest.
fn first_or_longest(model: &Model, range: core::ops::Range<u64>, want: u64) -> Option<(u64, u64)> {
    let mut best: Option<(u64, u64)> = None;
    let mut at = range.start;
    while at < range.end {
        let nr = (at..range.end).take_while(|&bit| !model.0[bit as usize]).count() as u64;
        if nr.min(want) > best.map_or(0, |(_, nr)| nr) {
            best = Some((at, nr.min(want)));
        }
        at += nr + 1;
    }
    best
}

impl Model {
    fn area(&self, area: u64) -> &[bool] {
        &self.0[(area * HUGE_BLOCKS) as usize..][..HUGE_BLOCKS as usize]
    }
    fn is_free(&self, area: u64) -> bool {
        self.area(area).iter().all(|&used| !used)
    }
    fn areas_from(&self, first: u64, nr_bits: u64, want: u64) -> Option<(u64, u64)> {
        let whole = nr_bits / HUGE_BLOCKS;
        let free = (first..whole).take_while(|&area| self.is_free(area)).count() as u64 * HUGE_BLOCKS;
        (free > 0).then(|| (first * HUGE_BLOCKS, free.min(want)))
    }
    fn find_areas(&self, nr_bits: u64, want: u64) -> Option<(u64, u64)> {
        let first = (0..nr_bits / HUGE_BLOCKS).find(|&area| self.is_free(area))?;
        self.areas_from(first, nr_bits, want)
    }
    /// From areas that are in use in part: the first that has all of it, or else the first that has most; where there
    /// is no such area, from anywhere.
    fn find_small(&self, nr_bits: u64, want: u64) -> Option<(u64, u64)> {
        let is_broken = |&area: &u64| self.area(area).contains(&true) && self.area(area).contains(&false);
        let mut best: Option<(u64, u64)> = None;
        for area in (0..nr_bits.div_ceil(HUGE_BLOCKS)).filter(is_broken) {
            let range = area * HUGE_BLOCKS..((area + 1) * HUGE_BLOCKS).min(nr_bits);
            let found = first_or_longest(self, range, want);
            if found.map_or(0, |(_, nr)| nr) > best.map_or(0, |(_, nr)| nr) {
                best = found;
            }
        }
        best.or_else(|| first_or_longest(self, 0..nr_bits, want))
    }
}

/// Runs of free and used bits, some of them as long as whole areas, cut at `nr_bits`.
fn bitmap() -> impl Strategy<Value = (u64, Vec<(u64, bool)>)> {
    let len = prop_oneof![1..=20_u64, Just(8), 1..=HUGE_BLOCKS, Just(HUGE_BLOCKS), Just(2 * HUGE_BLOCKS)];
    (prop_oneof![1..=MOST, Just(MOST), Just(4 * HUGE_BLOCKS)], prop::collection::vec((len, any::<bool>()), 1..40))
}

fn build(nr_bits: u64, runs: &[(u64, bool)]) -> (Box<Bytes>, Model) {
    let mut bytes: Box<Bytes> = Box::new([0; BLOCK_SIZE as usize]);
    let mut model = Model(alloc::vec![true; GROUP_BLOCKS as usize]);
    let mut at = 0;
    for &(len, used) in runs.iter().cycle() {
        let end = (at + len).min(nr_bits);
        model.0[at as usize..end as usize].fill(used);
        at = end;
        if at == nr_bits {
            break;
        }
    }
    for (bit, &used) in model.0.iter().enumerate() {
        bytes[bit / 8] |= u8::from(used) << (bit % 8);
    }
    (bytes, model)
}

fn same(bits: &Bits<'_>, model: &Model) -> bool {
    model.0.iter().enumerate().all(|(bit, &used)| bits.get(bit as u64) == used)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_found_is_what_is_asked_for(
        (nr_bits, runs) in bitmap(),
        want in prop_oneof![1..=10_u64, 1..=MOST, Just(HUGE_BLOCKS)],
        (from, to) in (0..MOST, 0..=MOST),
        area in 0..MOST / HUGE_BLOCKS,
    ) {
        let (mut bytes, model) = build(nr_bits, &runs);
        let bits = Bits(&mut bytes);
        prop_assert!(same(&bits, &model));
        let (from, to) = (from.min(to), from.max(to));
        prop_assert_eq!(bits.find(from, to, want), first_or_longest(&model, from..to, want), "find");
        prop_assert_eq!(bits.find_small(nr_bits, want), model.find_small(nr_bits, want), "find_small");
        prop_assert_eq!(bits.find_areas(nr_bits, want), model.find_areas(nr_bits, want), "find_areas");
        prop_assert_eq!(bits.areas_from(area, nr_bits, want), model.areas_from(area, nr_bits, want), "areas_from");
    }

    #[test]
    fn a_run_is_taken_or_given_back_as_a_whole_and_nothing_beside_it(
        (nr_bits, runs) in bitmap(),
        (first, nr) in (0..MOST, prop_oneof![1..=20_u64, 1..=MOST]),
        value in any::<bool>(),
    ) {
        let (mut bytes, mut model) = build(nr_bits, &runs);
        let run = &mut model.0[first as usize..(first + nr) as usize];
        let all = run.iter().all(|&used| used != value);
        run.fill(value);
        let mut bits = Bits(&mut bytes);
        prop_assert_eq!(bits.set(first, nr, value), all);
        prop_assert!(same(&bits, &model));
    }
}
