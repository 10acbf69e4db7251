//! The steps of a removal, by name and number, and the record that each leaves.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use mm::machine::Machine;

use super::report::{copy_list, copy_of};

macro_rules! steps {
    ($($(#[$doc:meta])* $step:ident = $name:literal, $meaning:literal;)*) => {
        /// The steps, in the order in which they are done. None is left out; one that has nothing to do says so.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Step { $($(#[$doc])* $step,)* }

        impl Step {
            /// All steps, in order.
            pub const ALL: [Self; [$($name),*].len()] = [$(Self::$step),*];

            /// The word for the console.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$step => $name,)* }
            }
            /// What it does, in plain words.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$step => $meaning,)* }
            }
            /// Its number, from 1.
            pub const fn number(self) -> usize {
                self as usize + 1
            }
        }
    };
}

// The one place that says which steps there are, and in which order: a removal goes through this list.
steps! {
    /// New I/O is refused, and what is under way ends: the block path must not touch what goes next.
    StopIo = "stop_io", "new I/O is refused";
    /// The holders are told while the device is alive, then it dies: no new mapping can be made.
    KillDax = "kill_dax", "holders told, device dead, readers gone";
    /// Every translation of every address space is taken out of the page tables.
    Invalidate = "invalidate", "translations taken out of all page tables";
    /// One round for all of them: no CPU uses an old translation, and no gup-fast walk that could is under way.
    Shootdown = "shootdown", "no CPU uses them any more";
    /// Table pages and the mappings' references are given back, tasks are told, long-term pins are taken back, and
    /// transient ones are waited for.
    Drain = "drain", "tables and references given back, long-term pins taken back, others waited for";
    /// The page map goes: no frame of the device has metadata any more.
    FreeMetadata = "free_metadata", "page map forgotten";
    /// The kernel's own mapping goes last, for everything before it may still have read through it.
    UnmapDirectMap = "unmap_direct_map", "the kernel's own mapping is gone";
    /// Name and range are free: the device can be attached again.
    Release = "release", "name and range are free";
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Something that a step could not do. It is recorded, and the removal goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem(pub String);

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Room for the facts of a step: a list that grows would be a good part of what an idle removal costs.
const FACTS: usize = 12;

/// What a step found, as names and numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts(Vec<(&'static str, u64)>);

impl Facts {
    pub(super) fn note(&mut self, name: &'static str, value: u64) {
        if self.0.capacity() == 0 {
            self.0.reserve_exact(FACTS);
        }
        self.0.push((name, value));
    }
    /// The number called `name`.
    pub fn get(&self, name: &str) -> Option<u64> {
        self.iter().find_map(|(known, value)| (known == name).then_some(value))
    }
    /// All of them, in the order in which they were found.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.0.iter().copied()
    }
}

/// The record of one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepRecord {
    /// Which step.
    pub step: Step,
    /// How long it took, in nanoseconds.
    pub ns: u64,
    /// Instructions of this CPU, where they are counted.
    pub instructions: u64,
    /// What it found.
    pub facts: Facts,
    /// What it could not do.
    pub problem: Option<Problem>,
}

impl StepRecord {
    /// See [`RemovalReport::try_clone`](super::RemovalReport::try_clone).
    pub(super) fn try_clone<M: Machine>(&self, machine: &M) -> Option<Self> {
        let facts = Facts(copy_list(machine, &self.facts.0, |fact| Some(*fact))?);
        let problem = match &self.problem {
            None => None,
            Some(Problem(problem)) => Some(Problem(copy_of(machine, problem)?)),
        };
        Some(Self { facts, problem, ..*self })
    }
    /// The same as `key=value` pairs without spaces inside: `step=kill_dax n=2 of=8 ns=… holders=1 …`.
    pub fn fields(&self) -> Fields<'_> {
        Fields(self)
    }
}

/// Plain words: `2/8 kill_dax: holders told, device dead, readers gone (holders 1, users 2)`.
impl fmt::Display for StepRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} {}: {}", self.step.number(), Step::ALL.len(), self.step, self.step.meaning())?;
        for (at, (name, value)) in self.facts.iter().filter(is_news).enumerate() {
            f.write_str(if at == 0 { " (" } else { ", " })?;
            for (at, word) in in_plain_words(name).split('_').enumerate() {
                write!(f, "{}{word}", if at == 0 { "" } else { " " })?;
            }
            write!(f, " {value}")?;
        }
        if self.facts.iter().any(|fact| is_news(&fact)) {
            f.write_str(")")?;
        }
        match &self.problem {
            Some(problem) => write!(f, "; problem: {problem}"),
            None => Ok(()),
        }
    }
}

/// What a fact is called where people read it, for those whose names say too little. The shell's `help removal` explains them.
fn in_plain_words(name: &str) -> &str {
    match name {
        "extents" => "mapped extents",
        "extents_not_named" => "mapped extents without a name for want of memory",
        "registrations_looked_at" => "registrations of this device",
        // A page that is mapped twice counts twice.
        "pages" => "pages in all mappings",
        name => name,
    }
}

/// That everything could be named is no news.
fn is_news((name, value): &(&str, u64)) -> bool {
    *name != "extents_not_named" || *value != 0
}

/// See [`StepRecord::fields`].
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a>(&'a StepRecord);

impl fmt::Display for Fields<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let StepRecord { step, ns, instructions, facts, problem } = self.0;
        write!(f, "step={step} n={} of={} ns={ns} instructions={instructions}", step.number(), Step::ALL.len())?;
        for (name, value) in facts.iter() {
            write!(f, " {name}={value}")?;
        }
        if let Some(Problem(problem)) = problem {
            f.write_str(" problem=")?;
            for (at, word) in problem.split_whitespace().enumerate() {
                write!(f, "{}{word}", if at == 0 { "" } else { "-" })?;
            }
        }
        Ok(())
    }
}
