//! A schedule: at which steps another CPU goes on than the one that has just taken the step.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

/// At step `step`, counted over all CPUs from 0, player `to` goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switch {
    /// The step.
    pub step: u32,
    /// The player, numbered from 0.
    pub to: usize,
}

/// All switches of a run that nothing forced, in rising order of their steps: whoever is not named goes on. (A CPU that waits
/// for another, and one that is done, gives its turn to the next one in any case.)
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Schedule(pub Vec<Switch>);

impl Schedule {
    /// Reads what [`Display`](fmt::Display) has printed: `7:1,12:0`, or `none`.
    ///
    /// # Errors
    /// One line.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self::default());
        }
        let mut switches: Vec<Switch> = Vec::new();
        for word in text.split(',') {
            let parts = word.split_once(':').and_then(|(step, to)| Some((step.parse().ok()?, to.parse().ok()?)));
            let (step, to) =
                parts.ok_or_else(|| format!("\"{word}\" is no switch: expected STEP:PLAYER, as in 7:1"))?;
            if switches.last().is_some_and(|last| last.step >= step) {
                return Err(format!("switch {word} is not behind the one before it"));
            }
            switches.push(Switch { step, to });
        }
        Ok(Self(switches))
    }

    /// Without its `nth` switch.
    pub fn without(&self, nth: usize) -> Self {
        let mut shorter = self.clone();
        shorter.0.remove(nth);
        shorter
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        self.0.iter().enumerate().try_for_each(|(nth, switch)| {
            let comma = if nth == 0 { "" } else { "," };
            write!(f, "{comma}{}:{}", switch.step, switch.to)
        })
    }
}
