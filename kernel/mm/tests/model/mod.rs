//! What the property tests draw from, and the reference model of an address space that they compare with.

use std::collections::BTreeMap;

use proptest::prelude::*;

pub const CPUS: usize = 3;
pub const SPACES: usize = 2;
/// Pages of the device: one 1 GiB block, and a tail that no huge leaf fits.
pub const DEVICE_PAGES: u64 = (1 << 18) + 1024 + 7;
/// Positions are drawn from these, plus or minus a few pages, so that sequences meet at the same boundaries.
pub const LANDMARKS: [u64; 8] = [0, 3, 512, 1024, 1536, 1 << 18, (1 << 18) + 512, (1 << 18) + 1024];

/// Where an operation acts: mostly inside something that is mapped at that moment, near one of its boundaries.
#[derive(Clone, Copy, Debug)]
pub struct Spot {
    /// Which area, and where in it; `None`: at `at`, whatever is there.
    pub area: Option<(usize, u64)>,
    pub at: u64,
}

#[derive(Clone, Debug)]
pub enum Op {
    Map { space: usize, at: u64, len: u64, offset: u64, write: bool },
    Unmap { space: usize, at: Spot, len: u64 },
    Protect { space: usize, at: Spot, len: u64, write: bool },
    Load { cpu: usize, at: Spot },
    Store { cpu: usize, at: Spot },
    Pin { cpu: usize, space: usize, at: Spot, len: u64, write: bool, no_fault: bool },
    Unpin { which: usize },
    Invalidate { offset: u64, len: u64 },
    Populate { space: usize, at: Spot, len: u64 },
    Promote { space: usize, at: Spot, len: u64 },
    Switch { cpu: usize, to: Option<usize> },
    Idle { cpu: usize },
    Wake { cpu: usize },
}

pub fn position() -> impl Strategy<Value = u64> {
    (0..LANDMARKS.len(), 0u64..3, any::<bool>())
        .prop_map(|(mark, by, down)| if down { LANDMARKS[mark].saturating_sub(by) } else { LANDMARKS[mark] + by })
}

pub fn spot() -> impl Strategy<Value = Spot> {
    (proptest::option::weighted(0.85, (0usize..4, 0u64..12)), position()).prop_map(|(area, at)| Spot { area, at })
}

pub fn length() -> impl Strategy<Value = u64> {
    prop_oneof![5 => 1u64..6, 2 => Just(512u64), 1 => Just(1024u64), 1 => Just(1u64 << 18), 1 => 500u64..1100]
}

pub fn op() -> impl Strategy<Value = Op> {
    let (cpu, space) = (0..CPUS, 0..SPACES);
    prop_oneof![
        4 => (space.clone(), position(), length(), position(), any::<bool>()).prop_map(
            |(space, at, len, offset, aligned)| {
                // Half of the mappings are congruent, so that huge leaves are common.
                Op::Map { space, at, len, offset: if aligned { at } else { offset }, write: at % 5 != 3 }
            }),
        3 => (space.clone(), spot(), length()).prop_map(|(space, at, len)| Op::Unmap { space, at, len }),
        2 => (space.clone(), spot(), length(), any::<bool>())
            .prop_map(|(space, at, len, write)| Op::Protect { space, at, len, write }),
        8 => (cpu.clone(), spot()).prop_map(|(cpu, at)| Op::Load { cpu, at }),
        8 => (cpu.clone(), spot()).prop_map(|(cpu, at)| Op::Store { cpu, at }),
        4 => (cpu.clone(), space.clone(), spot(), 1u64..9, any::<bool>(), any::<bool>()).prop_map(
            |(cpu, space, at, len, write, no_fault)| Op::Pin { cpu, space, at, len, write, no_fault }),
        3 => (0usize..8).prop_map(|which| Op::Unpin { which }),
        1 => (space.clone(), spot(), length()).prop_map(|(space, at, len)| Op::Populate { space, at, len }),
        1 => (space.clone(), spot(), length()).prop_map(|(space, at, len)| Op::Promote { space, at, len }),
        2 => (position(), length()).prop_map(|(offset, len)| Op::Invalidate { offset, len }),
        2 => (cpu.clone(), proptest::option::weighted(0.85, space)).prop_map(|(cpu, to)| Op::Switch { cpu, to }),
        1 => cpu.clone().prop_map(|cpu| Op::Idle { cpu }),
        2 => cpu.prop_map(|cpu| Op::Wake { cpu }),
    ]
}

/// A mapped range as the model knows it, in pages from `BASE`; the key of the map it is in is its first page.
#[derive(Clone, Copy, Debug)]
pub struct Area {
    pub end: u64,
    pub offset: u64,
    pub write: bool,
}

/// The model of one address space.
#[derive(Debug, Default)]
pub struct Model {
    pub areas: BTreeMap<u64, Area>,
    /// Pages that must be present, as runs that do not touch each other (first page, one past the last): what a leaf
    /// mapped when one of its pages was last touched, minus what was taken away since.
    pub present: BTreeMap<u64, u64>,
}

impl Model {
    pub fn area(&self, at: u64) -> Option<(u64, Area)> {
        let (&start, &area) = self.areas.range(..=at).next_back()?;
        (at < area.end).then_some((start, area))
    }

    /// The offset in the device that `at` maps.
    pub fn offset(&self, at: u64) -> Option<u64> {
        self.area(at).map(|(start, area)| area.offset + (at - start))
    }

    /// The page that a spot means at this moment.
    pub fn at(&self, spot: Spot) -> u64 {
        let Some((which, within)) = spot.area.filter(|_| !self.areas.is_empty()) else { return spot.at };
        let (&start, area) = self.areas.iter().nth(which % self.areas.len()).expect("which is in range");
        let at = match within {
            0..4 => start + within,
            4..8 => area.end.saturating_sub(within - 3),
            // Around the first 2 MiB boundary inside.
            _ => (start + 1).next_multiple_of(512) + within - 10,
        };
        at.clamp(start, area.end - 1)
    }

    pub fn cut(&mut self, at: u64) {
        if let Some((start, area)) = self.area(at)
            && start < at
        {
            self.areas.insert(start, Area { end: at, ..area });
            self.areas.insert(at, Area { offset: area.offset + (at - start), ..area });
        }
    }

    /// The runs that share a page with `from .. to`, or touch it.
    pub fn near(&self, from: u64, to: u64) -> Vec<(u64, u64)> {
        let first = self.present.range(..from).next_back().map_or(from, |(&start, _)| start);
        let runs = self.present.range(first..=to).map(|(&start, &end)| (start, end));
        runs.filter(|&(_, end)| from <= end).collect()
    }

    pub fn take_present(&mut self, from: u64, to: u64) {
        for (start, end) in self.near(from, to) {
            self.present.remove(&start);
            for (start, end) in [(start, end.min(from)), (start.max(to), end)] {
                if start < end {
                    self.present.insert(start, end);
                }
            }
        }
    }

    pub fn add_present(&mut self, mut from: u64, mut to: u64) {
        for (start, end) in self.near(from, to) {
            self.present.remove(&start);
            (from, to) = (from.min(start), to.max(end));
        }
        self.present.insert(from, to);
    }

    pub fn is_present(&self, at: u64) -> bool {
        self.present.range(..=at).next_back().is_some_and(|(_, &end)| at < end)
    }
}
