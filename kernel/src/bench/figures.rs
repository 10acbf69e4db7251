//! A figure of the benchmarks: how it is had, and what it is held against.
//!
//! Meant for `--deterministic`, where the time-stamp counter counts instructions, exactly, and every run prints the
//! same figures; otherwise they are cycles, and the bounds say nothing. The counter is the machine's: what other CPUs
//! execute counts too. So everything is measured while the other CPUs are halted.
//!
//! A figure is the cost of one of many turns of a loop, less the cost of the empty loop, or of one call from the call to its
//! return, less an empty pair of readings. The column "Linux 6.1" is for
//! orientation: the same acts, measured in the same way in the same emulator.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::hint::black_box;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::console::report;
use crate::cpu::time;

/// Width of the names in the table.
pub const NAME: usize = 40;
/// Rounds of a loop, where a round is cheap.
pub const TURNS: u64 = 1000;

/// Parts of one that a cost is counted in: fine enough that what is cut off moves no row by a percent.
const PARTS: u64 = 10_000;

/// A cost, so that the cost of one of 512 pages can be said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cost(u64);

impl Cost {
    /// `total` shared by `parts`.
    pub fn of(total: u64, parts: u64) -> Self {
        Self(total.saturating_mul(PARTS) / parts.max(1))
    }

    /// Shared by `parts` once more, rounded up.
    pub fn shared_by(self, parts: u64) -> Self {
        Self(self.0.div_ceil(parts.max(1)))
    }

    /// With `other`.
    pub fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// How many times `other` is in it, in whole.
    pub fn over(self, other: Self) -> Self {
        Self((self.0 / other.0.max(1)).saturating_mul(PARTS))
    }

    /// A ratio, in percent.
    pub fn in_percent(self) -> Self {
        Self(self.0.saturating_mul(100))
    }

    /// How many times `other`.
    pub fn times(self, other: Self) -> Self {
        Self(self.0.saturating_mul(PARTS) / other.0.max(1))
    }
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self.0 % PARTS {
            0 => format!("{}", self.0 / PARTS),
            rest => format!("{}.{rest:04}", self.0 / PARTS),
        };
        f.pad(if text.contains('.') { text.trim_end_matches('0') } else { &text })
    }
}

/// What a figure is held against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// No bound: it is printed to be looked at.
    None,
    /// At most this.
    AtMost(Cost),
    /// At least this.
    AtLeast(Cost),
}

impl Bound {
    /// At most `limit`.
    pub const fn at_most(limit: u64) -> Self {
        Self::AtMost(Cost(limit * PARTS))
    }

    /// At most so many hundredths.
    pub const fn at_most_hundredths(limit: u64) -> Self {
        Self::AtMost(Cost(limit * (PARTS / 100)))
    }

    /// At least `limit`.
    pub const fn at_least(limit: u64) -> Self {
        Self::AtLeast(Cost(limit * PARTS))
    }

    /// The word for its kind, and the limit.
    fn parts(self) -> (&'static str, Cost) {
        match self {
            Self::None => ("none", Cost(0)),
            Self::AtMost(limit) => ("at_most", limit),
            Self::AtLeast(limit) => ("at_least", limit),
        }
    }

    fn is_met_by(self, value: Cost) -> bool {
        match self {
            Self::None => true,
            Self::AtMost(limit) => value <= limit,
            Self::AtLeast(limit) => value >= limit,
        }
    }

    fn in_words(self) -> String {
        match self {
            Self::None => String::new(),
            Self::AtMost(limit) => format!("<= {limit}"),
            Self::AtLeast(limit) => format!(">= {limit}"),
        }
    }
}

/// What a pair of readings costs that has nothing between it.
static EMPTY_PAIR: AtomicU64 = AtomicU64::new(0);

/// The figures so far.
pub struct Figures {
    /// How many missed their bounds.
    pub missed: usize,
    /// A line for people for each.
    pub lines: Vec<String>,
}

impl Figures {
    /// None yet; finds out what an empty pair of readings costs, which [`once`] leaves out from here on.
    pub fn new() -> Self {
        EMPTY_PAIR.store(0, Ordering::Relaxed);
        EMPTY_PAIR.store(median((0..TURNS).map(|_| once(|| ()).0).collect()), Ordering::Relaxed);
        Self { missed: 0, lines: Vec::new() }
    }

    /// Takes a figure of cost down. `linux` is what Linux 6.1 takes for it, in words.
    pub fn cost(&mut self, name: &str, value: Cost, bound: Bound, linux: &str) {
        self.add(name, time::cost_unit(), value, bound, linux);
    }

    /// Takes the median of `repeats` of the same act down, and beside it the least and the most of them.
    pub fn median(&mut self, name: &str, repeats: Vec<u64>, bound: Bound, linux: &str) {
        self.median_of(name, (repeats, 1), bound, linux);
    }

    /// The same, shared by `parts`.
    pub fn median_of(&mut self, name: &str, (repeats, parts): (Vec<u64>, u64), bound: Bound, linux: &str) {
        let of = |cost: Option<&u64>| Cost::of(cost.copied().unwrap_or(0), parts);
        let (least, most) = (of(repeats.iter().min()), of(repeats.iter().max()));
        let spread = format!(" least={least} most={most} repeats={}", repeats.len());
        self.put(name, time::cost_unit(), (Cost::of(median(repeats), parts), &spread), bound, linux);
    }

    /// Takes a figure down, in any unit.
    pub fn add(&mut self, name: &str, unit: &str, value: Cost, bound: Bound, linux: &str) {
        self.put(name, unit, (value, ""), bound, linux);
    }

    /// A figure with a bound that cannot be had, with the reason: it counts as missed.
    pub fn cannot(&mut self, name: &str, bound: Bound, why: &str) {
        let (kind, limit) = bound.parts();
        report!("bench name={name} unit={} value=none bound={limit} kind={kind} met=0", time::cost_unit());
        log::warn!("bench: {name}: {why}");
        self.missed += 1;
        self.lines.push(format!("{name:<NAME$} {:>12} {:>10} MISSED  {why}", "none", bound.in_words()));
    }

    fn put(&mut self, name: &str, unit: &str, (value, more): (Cost, &str), bound: Bound, linux: &str) {
        let ((kind, limit), met) = (bound.parts(), bound.is_met_by(value));
        report!("bench name={name} unit={unit} value={value} bound={limit} kind={kind} met={}{more}", u8::from(met));
        self.missed += usize::from(!met);
        let verdict = if met { "" } else { "MISSED" };
        self.lines.push(format!("{name:<NAME$} {value:>12} {:>10} {verdict:<7} {linux}", bound.in_words()));
    }
}

/// The median: what a tick of the timer adds to one of many is not in it.
pub fn median(mut costs: Vec<u64>) -> u64 {
    costs.sort_unstable();
    costs.get(costs.len() / 2).copied().unwrap_or(0)
}

/// The cost of one of `turns` turns of `work`, less that of the loop around it.
pub fn each(turns: u64, mut work: impl FnMut(u64)) -> Cost {
    let empty = time::cost();
    for turn in 0..turns {
        black_box(turn);
    }
    let start = time::cost();
    for turn in 0..turns {
        work(black_box(turn));
    }
    let end = time::cost();
    Cost::of((end - start).saturating_sub(start - empty), turns)
}

/// The cost of one of `turns` calls, from the call to its return: the median of what `call` answers as its own cost (see
/// [`once`]).
pub fn each_call(turns: u64, mut call: impl FnMut() -> u64) -> Cost {
    Cost::of(median((0..turns).map(|_| call()).collect()), 1)
}

/// The cost of `work`, done once, less an empty pair of readings.
#[inline(always)]
pub fn once<R>(work: impl FnOnce() -> R) -> (u64, R) {
    let start = time::cost();
    let result = work();
    let cost = time::cost() - start;
    (cost.saturating_sub(EMPTY_PAIR.load(Ordering::Relaxed)), result)
}
