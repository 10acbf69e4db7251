//! Who goes on: at random, by priorities that change, every way within a bound, or as a schedule says.

use mm::machine::CpuId;
use rand_core::{RngCore, SeedableRng};
use rand_pcg::Pcg64Mcg;

use crate::schedule::Schedule;

/// A mark at which somebody has to be chosen.
#[derive(Clone, Copy, Debug)]
pub struct Choice {
    /// Who has come to it.
    pub cpu: CpuId,
    /// The number of this mark of that CPU.
    pub mark: u32,
    /// Who can go on, bit n for CPU n; not empty.
    pub candidates: u64,
    /// Who goes on where nobody says otherwise.
    pub usual: CpuId,
    /// `cpu` cannot go on: somebody else has to.
    pub forced: bool,
}

/// How schedules are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// A random walk.
    Random,
    /// Priorities, of which `depth - 1` change on the way: finds what takes an order of `depth` steps with a probability
    /// of at least 1/(n k^(depth-1)), of n CPUs and k marks (Burckhardt et al., ASPLOS 2010).
    Pct {
        /// That many.
        depth: u32,
    },
    /// Every schedule with at most so many switches away from a CPU that could have gone on (Musuvathi and Qadeer, PLDI
    /// 2007).
    Exhaustive {
        /// That many.
        preemptions: u32,
    },
}

/// Switches that random schedules have on average, one kind as often as another. What needs one CPU to go far while
/// another stands still is not found by one that switches at every other mark, nor what needs many switches by one that
/// hardly ever does.
const SWITCHES: [u32; 5] = [1, 2, 4, 8, 16];

/// Who decides in one schedule.
#[derive(Debug)]
pub enum Pilot {
    /// As it is written.
    Replay(Schedule),
    /// A random walk, with a chance of a switch at each mark, in 65,536ths.
    Random(Pcg64Mcg, u32),
    /// PCT.
    Pct(Pct),
    /// One of all schedules.
    Exhaustive(Tree),
}

impl Pilot {
    /// The `nth` random schedule of `seed`. `marks`: about how many marks a schedule of it has.
    ///
    /// # Panics
    /// Where `strategy` is the exhaustive one, which is no row of schedules with numbers.
    pub fn nth(strategy: Strategy, seed: u64, nth: u64, cpus: usize, marks: u32) -> Self {
        let mut rng = Pcg64Mcg::seed_from_u64(seed ^ nth.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        match strategy {
            Strategy::Random => {
                let switches = SWITCHES[below(&mut rng, SWITCHES.len() as u32) as usize];
                Self::Random(rng, ((switches << 16) / marks.max(1)).min(1 << 15))
            }
            Strategy::Pct { depth } => Self::Pct(Pct::new(rng, depth, cpus, marks)),
            Strategy::Exhaustive { .. } => panic!("an exhaustive search has no random schedule"),
        }
    }

    /// Who goes on: one of the candidates.
    pub fn choose(&mut self, at: &Choice) -> CpuId {
        let chosen = match self {
            Self::Replay(schedule) => schedule.at(at.cpu, at.mark).unwrap_or(at.usual),
            Self::Random(rng, chance) => {
                if at.forced || (rng.next_u32() & 0xffff) < *chance {
                    pick(rng, at.candidates)
                } else {
                    at.usual
                }
            }
            Self::Pct(pct) => pct.choose(at),
            Self::Exhaustive(tree) => tree.choose(at),
        };
        // A schedule that was made shorter, or for another build, may name one that cannot go on.
        if at.candidates & 1 << chosen != 0 { chosen } else { at.usual }
    }
}

/// A number below `end`. (The bias of 2^-32 matters to nobody.)
fn below(rng: &mut Pcg64Mcg, end: u32) -> u32 {
    ((u64::from(rng.next_u32()) * u64::from(end)) >> 32) as u32
}

/// One of the CPUs of a mask that is not empty.
fn pick(rng: &mut Pcg64Mcg, mask: u64) -> CpuId {
    let mut rest = mask;
    for _ in 0..below(rng, mask.count_ones()) {
        rest &= rest - 1;
    }
    rest.trailing_zeros() as CpuId
}

/// The state of a schedule of PCT.
#[derive(Debug)]
pub struct Pct {
    /// By CPU; the highest goes on.
    priorities: Vec<u32>,
    /// The marks, of all CPUs together, at which the running one falls behind all others.
    changes: Vec<u32>,
    seen: u32,
}

impl Pct {
    fn new(mut rng: Pcg64Mcg, depth: u32, cpus: usize, marks: u32) -> Self {
        let first = depth;
        let mut priorities: Vec<u32> = (first..first + cpus as u32).collect();
        for nth in (1..priorities.len()).rev() {
            priorities.swap(nth, below(&mut rng, nth as u32 + 1) as usize);
        }
        let changes = (1..depth).map(|_| 1 + below(&mut rng, marks)).collect();
        Self { priorities, changes, seen: 0 }
    }

    fn choose(&mut self, at: &Choice) -> CpuId {
        self.seen += 1;
        if let Some(nth) = self.changes.iter().position(|mark| *mark == self.seen) {
            self.priorities[at.cpu] = nth as u32;
        }
        let can = (0..self.priorities.len()).filter(|cpu| at.candidates & 1 << cpu != 0);
        can.max_by_key(|cpu| self.priorities[*cpu]).unwrap_or(at.usual)
    }
}

/// One choice on the way to a leaf.
#[derive(Clone, Copy, Debug)]
struct Branch {
    chosen: CpuId,
    /// Those that are still to be tried.
    rest: u64,
}

/// All schedules, as a tree that is walked in depth. Each schedule is run from its beginning.
#[derive(Debug)]
pub struct Tree {
    path: Vec<Branch>,
    at: usize,
    most: u32,
    preemptions: u32,
}

impl Tree {
    /// At the first schedule of those with at most so many preemptions.
    pub fn new(preemptions: u32) -> Self {
        Self { path: Vec::new(), at: 0, most: preemptions, preemptions: 0 }
    }

    /// Goes to the next schedule; `false` after the last.
    pub fn advance(&mut self) -> bool {
        (self.at, self.preemptions) = (0, 0);
        while let Some(last) = self.path.last_mut() {
            if last.rest != 0 {
                last.chosen = last.rest.trailing_zeros() as CpuId;
                last.rest &= last.rest - 1;
                return true;
            }
            self.path.pop();
        }
        false
    }

    fn choose(&mut self, at: &Choice) -> CpuId {
        if self.at == self.path.len() {
            let may_switch = at.forced || self.preemptions < self.most;
            let rest = if may_switch { at.candidates & !(1 << at.usual) } else { 0 };
            self.path.push(Branch { chosen: at.usual, rest });
        }
        let chosen = self.path[self.at].chosen;
        self.at += 1;
        self.preemptions += u32::from(chosen != at.usual && !at.forced);
        chosen
    }
}
