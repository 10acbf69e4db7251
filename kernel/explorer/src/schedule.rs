//! A schedule: where it departs from "the CPU that runs goes on".
//!
//! ```text
//! no_entry_recheck:gup-against-zap:0@0>1,1@14>0
//! ```
//! The fault, the scenario, and the switches: CPU 1 begins in place of CPU 0, and when it has come to its 14th mark CPU 0
//! goes on. Everything else follows: who can go on does, and where one waits or has ended the next one does, round about.
//! So a schedule is short, and each of its switches can be left out.

use core::fmt;
use core::str::FromStr;

use anyhow::{Context, Error, ensure};
use mm::machine::{CpuId, MAX_CPUS};

/// At its `mark`-th mark (0: before it has begun) `cpu` does not go on, or is not followed by the next one, but `next` goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Switch {
    /// Who has come to a mark.
    pub cpu: CpuId,
    /// The number of the mark, from 1 on, counted for each CPU.
    pub mark: u32,
    /// Who goes on.
    pub next: CpuId,
}

impl fmt::Display for Switch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}>{}", self.cpu, self.mark, self.next)
    }
}

impl FromStr for Switch {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let parts = text.split_once('@').and_then(|(cpu, rest)| Some((cpu, rest.split_once('>')?)));
        let (cpu, (mark, next)) = parts.with_context(|| format!("expected CPU@MARK>CPU, found `{text}`"))?;
        let cpu_of = |text: &str| -> Result<CpuId, Error> {
            let cpu = text.parse().with_context(|| format!("expected the number of a CPU, found `{text}`"))?;
            ensure!(cpu < MAX_CPUS, "expected a CPU below {MAX_CPUS}, found {cpu}");
            Ok(cpu)
        };
        let mark = mark.parse().with_context(|| format!("expected the number of a mark, found `{mark}`"))?;
        Ok(Self { cpu: cpu_of(cpu)?, mark, next: cpu_of(next)? })
    }
}

/// The switches, in the order in which they come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Schedule(pub Vec<Switch>);

impl Schedule {
    /// Who goes on at this mark, if the schedule says so.
    pub fn at(&self, cpu: CpuId, mark: u32) -> Option<CpuId> {
        self.0.iter().find(|switch| (switch.cpu, switch.mark) == (cpu, mark)).map(|switch| switch.next)
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (nth, switch) in self.0.iter().enumerate() {
            write!(f, "{}{switch}", if nth == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl FromStr for Schedule {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        text.split(',').filter(|part| !part.is_empty()).map(str::parse).collect::<Result<_, _>>().map(Self)
    }
}

/// A schedule with what it is of, as it is printed and given to `--replay`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// The fault's word, or `none`.
    pub bug: String,
    /// The scenario's name.
    pub scenario: String,
    /// Its switches.
    pub schedule: Schedule,
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.bug, self.scenario, self.schedule)
    }
}

impl FromStr for Named {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let mut parts = text.splitn(3, ':');
        let (Some(bug), Some(scenario), Some(switches)) = (parts.next(), parts.next(), parts.next()) else {
            anyhow::bail!("expected BUG:SCENARIO:SWITCHES, found `{text}`");
        };
        Ok(Self { bug: bug.into(), scenario: scenario.into(), schedule: switches.parse()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_can_be_read() {
        for text in ["none:a:", "no_entry_recheck:gup-against-zap:0@0>1,1@14>0"] {
            assert_eq!(text.parse::<Named>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_schedule_is_one_clear_line() {
        for (text, error) in [
            ("a:b", "expected BUG:SCENARIO:SWITCHES, found `a:b`"),
            ("a:b:1", "expected CPU@MARK>CPU, found `1`"),
            ("a:b:1@x>2", "expected the number of a mark, found `x`"),
            ("a:b:1@2>64", "expected a CPU below 64, found 64"),
            ("a:b:-1@2>0", "expected the number of a CPU, found `-1`"),
        ] {
            assert_eq!(text.parse::<Named>().unwrap_err().to_string(), error, "{text}");
        }
    }
}
