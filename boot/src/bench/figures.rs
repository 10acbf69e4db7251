//! The figures of a run of `bench`, as its records on the console have them.

use crate::records::{self, Record};
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;

/// What a figure is held against.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// It is printed to be looked at.
    None,
    /// Less is better.
    AtMost,
    /// More is better.
    AtLeast,
}

impl Kind {
    /// The word in a record and in a file.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::AtMost => "at_most",
            Self::AtLeast => "at_least",
        }
    }

    /// Reads that word.
    #[must_use]
    pub fn of(word: &str) -> Option<Self> {
        [Self::None, Self::AtMost, Self::AtLeast].into_iter().find(|kind| kind.word() == word)
    }
}

/// One row.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// What it counts.
    pub unit: String,
    /// How many; `None` where it could not be had.
    pub value: Option<f64>,
    /// What it is held against.
    pub kind: Kind,
    /// Its goal is reached, or it has none.
    pub met: bool,
}

impl Figure {
    /// The same row is worse now than it was `before`, by more than one percent. A figure that is only there to be looked
    /// at is a cost where it counts instructions or interrupts; otherwise it has no better and no worse.
    #[must_use]
    pub fn is_worse_than(&self, before: &Self) -> bool {
        let (Some(now), Some(then)) = (self.value, before.value) else {
            return self.value.is_none() && before.value.is_some();
        };
        let up = now > then;
        has_moved(then, now)
            && match self.kind {
                Kind::AtMost => up,
                Kind::AtLeast => !up,
                Kind::None => up && matches!(self.unit.as_str(), "instructions" | "interrupts" | "rounds"),
            }
    }
}

/// By more than one percent.
#[must_use]
pub fn has_moved(before: f64, now: f64) -> bool {
    (now - before).abs() > before.abs() / 100.0
}

/// The rows by name.
pub type Figures = BTreeMap<String, Figure>;

/// Reads the figures of a whole run.
///
/// # Errors
/// One line, where a record makes no sense, or the run did not measure everything.
pub fn of_console(console: &[String]) -> Result<Figures> {
    let mut figures = Figures::new();
    let mut ended = None;
    for record in records::of_topic(console, "bench") {
        let Some(name) = record.get("name") else {
            ended = record.number("ended").zip(record.number("figures"));
            continue;
        };
        let figure = figure(&record).with_context(|| format!("the record {record} makes no sense"))?;
        ensure!(figures.insert(name.into(), figure).is_none(), "the row {name} was measured twice");
    }
    match (ended, figures.is_empty()) {
        (Some((1, nr)), false) => {
            let rows = figures.len() as u64;
            ensure!(nr == rows, "{rows} rows could be read, and {nr} were measured");
            Ok(figures)
        }
        (Some(_), _) => bail!("not everything could be measured"),
        (None, true) => bail!("there is no record of a measurement"),
        (None, false) => bail!("the measurements have no end: they were cut off after {} rows", figures.len()),
    }
}

fn figure(record: &Record) -> Option<Figure> {
    let value = match record.get("value")? {
        "none" => None,
        text => Some(text.parse().ok().filter(|value: &f64| value.is_finite())?),
    };
    let met = match record.number("met")? {
        0 => false,
        1 => true,
        _ => return None,
    };
    Some(Figure { unit: record.get("unit")?.into(), value, kind: Kind::of(record.get("kind")?)?, met })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn console(lines: &[&str]) -> Vec<String> {
        lines.iter().map(ToString::to_string).collect()
    }

    const ROW: &str = "@bench name=pin unit=instructions value=27.02 bound=18 kind=at_most met=0 least=1 most=2";

    #[test]
    fn the_rows_of_a_whole_run_are_read() {
        let left_out = "@bench name=many unit=instructions value=none bound=400 kind=at_most met=0";
        let read = of_console(&console(&["noise", ROW, left_out, "@bench figures=2 missed=2 ended=1"])).unwrap();
        let pin = Figure { unit: "instructions".into(), value: Some(27.02), kind: Kind::AtMost, met: false };
        assert_eq!(read["pin"], pin);
        assert_eq!(read["many"].value, None);
    }

    #[test]
    fn what_is_cut_off_or_garbled_is_refused_with_one_line() {
        for (lines, word) in [
            (&[][..], "no record"),
            (&["[ 1.0] noise"], "no record"),
            (&[ROW], "no end"),
            (&[ROW, "@bench figures=1 missed=0 ended=0"], "not everything"),
            (&[ROW, ROW, "@bench figures=2 missed=0 ended=1"], "twice"),
            (&[ROW, "@bench figures=2 missed=0 ended=1"], "1 rows could be read, and 2 were measured"),
            (&[ROW, "@bench missed=0 ended=1"], "no end"),
            (&["@bench name=pin unit=instructions value=many kind=none met=1"], "makes no sense"),
            (&["@bench name=pin unit=instructions value=NaN kind=none met=1"], "makes no sense"),
            (&["@bench name=pin unit=instructions value=1 kind=about met=1"], "makes no sense"),
            (&["@bench name=pin value=1 kind=none met=1"], "makes no sense"),
            (&["@bench name=pin unit=instructions value=1 kind=none met=2"], "makes no sense"),
        ] {
            let error = format!("{:#}", of_console(&console(lines)).expect_err("it cannot be read"));
            assert!(error.contains(word) && !error.contains('\n'), "{lines:?}: {error}");
        }
    }

    #[test]
    fn worse_is_up_for_a_cost_and_down_for_a_gain_and_neither_for_a_mere_ratio() {
        let row = |kind, unit: &str, value| Figure { unit: unit.into(), value, kind, met: true };
        for (kind, unit, up, down) in [
            (Kind::AtMost, "instructions", true, false),
            (Kind::AtLeast, "times", false, true),
            (Kind::None, "instructions", true, false),
            (Kind::None, "times", false, false),
        ] {
            let (before, more, less) =
                (row(kind, unit, Some(100.0)), row(kind, unit, Some(101.5)), row(kind, unit, Some(98.5)));
            assert_eq!((more.is_worse_than(&before), less.is_worse_than(&before)), (up, down), "{kind:?} {unit}");
            assert!(!row(kind, unit, Some(100.9)).is_worse_than(&before));
            assert!(!row(kind, unit, Some(99.1)).is_worse_than(&before));
            // The kernel says enough digits that one more of the last is less than a percent.
            let (before, more) = (row(kind, unit, Some(0.9893)), row(kind, unit, Some(0.9901)));
            assert!(!more.is_worse_than(&before));
            let before = row(kind, unit, Some(100.0));
            assert!(row(kind, unit, None).is_worse_than(&before) && !before.is_worse_than(&row(kind, unit, None)));
        }
    }
}
