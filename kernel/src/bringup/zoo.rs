//! Boot options of a kernel with faults: which one is on, and how a schedule is searched at which it strikes.

use ::zoo::Bug;
use arrayvec::ArrayString;

use crate::bringup::options::Bad;

/// How schedules are chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strategy {
    /// At each step another CPU goes on with a chance of one in four.
    #[default]
    Random,
    /// Priorities that change at a few steps (Burckhardt and others, "A randomized scheduler with probabilistic guarantees of
    /// finding bugs", ASPLOS 2010).
    Pct,
    /// Every schedule with no more than two switches that nobody forced, the ones with few first.
    Exhaustive,
}

/// Most schedules that can be asked for.
const MAX_SCHEDULES: u64 = 100_000_000;

/// The options.
#[derive(Clone, Debug)]
pub struct Zoo {
    /// `bug=`
    pub bug: Option<&'static Bug>,
    /// `scenario=`: for a search without a fault; empty: that of the fault.
    pub scenario: ArrayString<32>,
    /// `schedules=`: how many are tried.
    pub schedules: u64,
    /// `seed=`: the first of them.
    pub seed: u64,
    /// `strategy=`
    pub strategy: Strategy,
    /// `schedule=`: this one and no other.
    pub schedule: Option<ArrayString<512>>,
}

impl Default for Zoo {
    fn default() -> Self {
        Self {
            bug: None,
            scenario: ArrayString::new(),
            schedules: 10_000,
            seed: 1,
            strategy: Strategy::Random,
            schedule: None,
        }
    }
}

impl Zoo {
    /// Reads one of them.
    pub(crate) fn set(&mut self, key: &str, value: &str) -> Result<(), Bad> {
        match key {
            "bug" => self.bug = Some(Bug::find(value).ok_or(Bad::Value("a name of the zoo: docs/zoo lists them"))?),
            "scenario" => {
                self.scenario = ArrayString::from(value).map_err(|_| Bad::Value("a scenario's name"))?;
            }
            "schedules" => match value.parse() {
                Ok(schedules @ 1..=MAX_SCHEDULES) => self.schedules = schedules,
                _ => return Err(Bad::Value("1 to 100000000")),
            },
            "seed" => self.seed = value.parse().map_err(|_| Bad::Value("a number from 0 to 2^64 - 1"))?,
            "strategy" => {
                self.strategy = match value {
                    "random" => Strategy::Random,
                    "pct" => Strategy::Pct,
                    "exhaustive" => Strategy::Exhaustive,
                    _ => return Err(Bad::Value("random, pct, exhaustive")),
                }
            }
            "schedule" => {
                let text = ArrayString::from(value).map_err(|_| Bad::Value("a schedule of at most 512 characters"))?;
                self.schedule = Some(text);
            }
            _ => return Err(Bad::Key),
        }
        Ok(())
    }
}
