//! The search: schedules by a strategy until one strikes; then that one again, and with as few switches as will do.

use ::zoo::exhaustive::Exhaustive;
use ::zoo::schedule::Schedule;
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use dax::removal::Method;

use crate::bringup::zoo::{Strategy, Zoo};
use crate::console::{self, report};
use crate::cpu::percpu;
use crate::ktest::fixtures::{Device, spawn_in};
use crate::ktest::random::Random;
use crate::mem::machine::steps;
use crate::pmem::devices;
use crate::task::sched;
use crate::zoo::conductor::{self, Chooser, Ended, MAX_PLAYERS};
use crate::zoo::lanes;
use crate::zoo::scenarios::Scenario;

/// Change points of the strategy with priorities.
const DEPTH: usize = 3;
/// Switches that the exhaustive strategy makes at most.
const MOST_SWITCHES: usize = 2;
/// How often it is told how far the search is.
const TOLD_EVERY: u64 = 10_000;

/// Another player with a chance of one in four.
struct Walk(Random);

impl Chooser for Walk {
    fn choose(&mut self, _step: u32, me: usize, able: &[usize]) -> usize {
        if self.0.one_in(4) { able[self.0.below(able.len() as u64) as usize] } else { me }
    }
}

/// The player of the highest priority; at each change point the one that goes on falls behind all others.
struct Priorities {
    of: [u64; MAX_PLAYERS],
    changes: [u64; DEPTH],
    lowest: u64,
}

impl Priorities {
    fn new(random: &mut Random, steps: u64) -> Self {
        let of = core::array::from_fn(|_| 1000 + random.below(1 << 20));
        Self { of, changes: core::array::from_fn(|_| random.below(steps.max(1))), lowest: 999 }
    }
}

impl Chooser for Priorities {
    fn choose(&mut self, step: u32, me: usize, able: &[usize]) -> usize {
        if self.changes.contains(&u64::from(step)) {
            self.of[me] = self.lowest;
            self.lowest = self.lowest.saturating_sub(1);
        }
        able.iter().copied().max_by_key(|&player| self.of[player]).unwrap_or(me)
    }
}

/// What a schedule says.
struct Replay(Schedule);

impl Chooser for Replay {
    fn choose(&mut self, step: u32, me: usize, _able: &[usize]) -> usize {
        self.0.0.iter().find(|switch| switch.step == step).map_or(me, |switch| switch.to)
    }
}

/// Where schedules come from.
struct Source<'o> {
    options: &'o Zoo,
    players: usize,
    /// How many steps the usual run has: with the seed, all that a schedule is made of.
    steps: u64,
    /// For the exhaustive strategy: what is still to be tried.
    all: Exhaustive,
}

impl Source<'_> {
    /// The `nth` chooser; `None`: there are no more.
    fn chooser(&mut self, nth: u64) -> Option<Box<dyn Chooser>> {
        // Any seed will do but 0, which the generator cannot leave; neighbours are made to differ in more than a bit.
        let seed = self.options.seed.wrapping_add(nth).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut random = Random(seed);
        random.below(2);
        Some(match self.options.strategy {
            Strategy::Random => Box::new(Walk(random)),
            Strategy::Pct => Box::new(Priorities::new(&mut random, self.steps)),
            Strategy::Exhaustive => Box::new(Replay(self.all.next(self.players)?)),
        })
    }

    /// A run has ended. Answers whether it was one more schedule: of the exhaustive strategy one can come to what was tried
    /// before.
    fn learn(&mut self, ended: &Ended) -> bool {
        if self.options.strategy != Strategy::Exhaustive {
            return true;
        }
        let who = ended.log.iter().filter(|taken| taken.step.is_some()).map(|taken| taken.player as u8);
        self.all.learn(&ended.schedule, ended.steps, who.collect())
    }
}

/// Why there is no answer.
pub enum Failed {
    /// Nothing was run: what was asked for cannot be.
    NotBegun(String),
    /// What goes wrong is no strike.
    Broken(String),
}

/// Searches; answers whether what was found is what was to be: a strike with a fault, none without.
///
/// # Errors
/// One line.
pub fn run(scenario: &Scenario, options: &Zoo) -> Result<bool, Failed> {
    let (device, schedule) = prepare(scenario, options).map_err(Failed::NotBegun)?;
    struck(scenario, &device, options, schedule).map(|struck| struck == options.bug.is_some()).map_err(Failed::Broken)
}

/// All that comes before the first run: the device, and the schedule that was asked for.
fn prepare(scenario: &Scenario, options: &Zoo) -> Result<(Device, Option<Schedule>), String> {
    let schedule = options.schedule.as_deref().map(Schedule::parse).transpose()?;
    let (players, switches) = (scenario.parts.len(), schedule.iter().flat_map(|schedule| &schedule.0));
    if let Some(switch) = switches.into_iter().find(|switch| switch.to >= players) {
        return Err(format!("there is no player {} (expected less than {players})", switch.to));
    }
    let cpus = percpu::online().len() as usize;
    if cpus < scenario.parts.len() {
        return Err(format!("{} wants {} CPUs, and there are {cpus}", scenario.name, scenario.parts.len()));
    }
    steps::tell(conductor::took);
    mutants::watch(conductor::faulted);
    let frames = devices::slots().first().ok_or("there is no NVDIMM")?.frames;
    devices::attach(0).map_err(|error| format!("attach: {error}"))?;
    let device = Device { frames };
    for (player, part) in scenario.parts.iter().enumerate() {
        console::line(format_args!("zoo: player {player} {part}"));
    }
    Ok((device, schedule))
}

/// Has anything struck?
fn struck(scenario: &Scenario, device: &Device, options: &Zoo, schedule: Option<Schedule>) -> Result<bool, String> {
    let found = match schedule {
        Some(schedule) => Some((0, one(scenario, device, options, Box::new(Replay(schedule)))?)),
        None => search(scenario, device, options)?,
    };
    let struck = match found {
        None => false,
        Some((nth, ended)) => tell(scenario, device, options, nth, ended)?,
    };
    // After a strike the books are what they are: the machine ends.
    if !struck {
        devices::remove(0, Method::Ranged).map_err(|error| format!("removal: {error}"))?;
    }
    Ok(struck)
}

fn search(scenario: &Scenario, device: &Device, options: &Zoo) -> Result<Option<(u64, Ended)>, String> {
    let all = Exhaustive::new(MOST_SWITCHES);
    let mut source = Source { options, players: scenario.parts.len(), steps: 0, all };
    if options.strategy == Strategy::Pct {
        let usual = one(scenario, device, options, Box::new(Replay(Schedule::default())))?;
        if usual.strike.is_some() {
            return Ok(Some(found(scenario, 1, usual)));
        }
        source.steps = u64::from(usual.steps);
    }
    let (mut tried, mut steps, mut is_complete) = (0, 0, false);
    while tried < options.schedules {
        let Some(chooser) = source.chooser(tried) else {
            is_complete = true;
            break;
        };
        let ended = one(scenario, device, options, chooser)?;
        steps = ended.steps;
        let is_new = source.learn(&ended);
        tried += u64::from(is_new);
        if ended.strike.is_some() {
            return Ok(Some(found(scenario, tried, ended)));
        }
        if is_new && tried.is_multiple_of(TOLD_EVERY) && tried < options.schedules {
            console::line(format_args!("zoo: {tried} schedules, no strike"));
        }
    }
    let complete = u8::from(is_complete);
    report!("zoo found=0 scenario={} tried={tried} steps={steps} complete={complete}", scenario.name);
    let all = if is_complete { format!(", all with at most {MOST_SWITCHES} switches") } else { String::new() };
    console::line(format_args!("zoo: {tried} schedules{all}, no strike"));
    Ok(None)
}

/// Says that a schedule strikes: that many were tried.
fn found(scenario: &Scenario, tried: u64, ended: Ended) -> (u64, Ended) {
    report!("zoo found=1 scenario={} tried={tried} steps={}", scenario.name, ended.steps);
    console::line(format_args!("zoo: schedule {tried} strikes"));
    (tried, ended)
}

/// One run by this chooser.
fn one(scenario: &Scenario, device: &Device, options: &Zoo, chooser: Box<dyn Chooser>) -> Result<Ended, String> {
    let play = (scenario.make)(device)?;
    let nr_cpus = percpu::online().len() as usize;
    conductor::begin(play.parts.len(), chooser, play.observer);
    options.bug.inspect(|bug| _ = super::set(bug, true));
    let start = |(me, part): (usize, crate::zoo::scenarios::Part)| {
        spawn_in((me + 1) % nr_cpus, &play.space, move || {
            conductor::play(me, part);
            Ok(())
        })
    };
    let tasks: Vec<_> = play.parts.into_iter().enumerate().map(start).collect();
    while !conductor::is_over() {
        sched::yield_now();
        arch::cpu::pause();
    }
    if let Some(ended) = conductor::end_of_stuck() {
        return Ok(ended);
    }
    for task in &tasks {
        sched::join(task).map_err(|signal| format!("a player ended by {signal}"))?;
    }
    options.bug.inspect(|bug| _ = super::set(bug, false));
    let mut ended = conductor::end().ok_or("the run is lost")?;
    drop(tasks);
    drop(play.space);
    if let Err(wrong) = (play.check)() {
        ended.strike.get_or_insert(wrong);
    }
    Ok(ended)
}

/// Says what struck, does it again, and makes the schedule as short as it can be. Answers whether it struck each time.
fn tell(scenario: &Scenario, device: &Device, options: &Zoo, nth: u64, first: Ended) -> Result<bool, String> {
    let Some(strike) = first.strike.clone() else {
        console::line(format_args!("zoo: schedule {} does not strike", first.schedule));
        lanes::print(scenario, &first.log);
        return Ok(false);
    };
    console::line(format_args!("zoo: {strike}"));
    let seed = options.seed.wrapping_add(nth.saturating_sub(1));
    report!("zoo_strike scenario={} seed={seed} schedule={}", scenario.name, first.schedule);
    if first.is_stuck {
        console::line(format_args!("zoo: its CPUs cannot be had back: it is not done again, nor made shorter"));
        lanes::print(scenario, &first.log);
        return Ok(true);
    }
    let mut shortest = first;
    let mut runs = 0;
    let mut again = |schedule: &Schedule| {
        runs += 1;
        one(scenario, device, options, Box::new(Replay(schedule.clone())))
    };
    let replayed = again(&shortest.schedule)?;
    if replayed.strike.is_none() || replayed.schedule != shortest.schedule {
        return Err(format!("schedule {} does not do the same again: {}", shortest.schedule, replayed.schedule));
    }
    let mut at = 0;
    while at < shortest.schedule.0.len() {
        let shorter = again(&shortest.schedule.without(at))?;
        let is_stuck = shorter.is_stuck;
        // What is left of it is what counts: a switch to who goes on anyway is none.
        if shorter.strike.is_some() && shorter.schedule.0.len() < shortest.schedule.0.len() {
            shortest = shorter;
            at = 0;
        } else {
            at += 1;
        }
        if is_stuck {
            break;
        }
    }
    let switches = shortest.schedule.0.len();
    report!("zoo_shortest scenario={} switches={switches} schedule={} runs={runs}", scenario.name, shortest.schedule);
    let s = if switches == 1 { "" } else { "es" };
    console::line(format_args!("zoo: it strikes with {switches} switch{s}: schedule={}", shortest.schedule));
    lanes::print(scenario, &shortest.log);
    if let Some(strike) = &shortest.strike {
        console::line(format_args!("zoo: {strike}"));
    }
    Ok(true)
}
