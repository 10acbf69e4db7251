//! What `bench` measured at some time, in a file: a later run is held against it.

use super::figures::{Figure, Figures, Kind, has_moved};
use crate::machine::Machine;
use crate::paths::{self, Profile};
use crate::size;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::fmt;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// What was measured, and so what may be compared with it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Subject {
    /// The build: `checked` or `release`.
    pub build: String,
    /// Number of CPUs.
    pub cpus: u64,
    /// `deterministic`, where instructions are counted, or `wall`.
    pub mode: String,
    /// The memory: RAM, then the NVDIMMs.
    pub memory: String,
}

impl Subject {
    /// What a run on this machine measures.
    #[must_use]
    pub fn of(machine: &Machine, profile: Profile) -> Self {
        let build = if profile == Profile::Release { "release" } else { "checked" };
        let mode = if machine.deterministic { "deterministic" } else { "wall" };
        let sizes = std::iter::once(machine.mem_bytes).chain(machine.pmem.iter().map(|nvdimm| nvdimm.size_bytes));
        let memory = sizes.map(size::show).collect::<Vec<_>>().join(" ");
        Self { build: build.into(), cpus: machine.smp.into(), mode: mode.into(), memory }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { build, cpus, mode, memory } = self;
        write!(f, "the {build} build with {cpus} CPUs in {mode} mode, memory {memory}")
    }
}

/// A stored run.
#[derive(Clone, Debug, PartialEq)]
pub struct Baseline {
    /// What was measured.
    pub subject: Subject,
    /// Its rows.
    pub figures: Figures,
}

/// The baseline that the tree keeps.
#[must_use]
pub fn of_tree() -> PathBuf {
    paths::root().join(IN_TREE)
}

/// Where that is in the tree.
pub const IN_TREE: &str = "boot/bench-baseline.json";

impl Baseline {
    /// Reads a file.
    ///
    /// # Errors
    /// One line, where it cannot be read or is damaged.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        Self::parse(&text).with_context(|| format!("{} is no baseline of bench", path.display()))
    }

    /// As [`read`](Self::read), of a baseline that a run of `subject` can be compared with.
    ///
    /// # Errors
    /// One line, also where it is of something else.
    pub fn read_for(path: &Path, subject: &Subject) -> Result<Self> {
        let stored = Self::read(path)?;
        let (before, path) = (&stored.subject, path.display());
        ensure!(before == subject, "{path} is of {before}, and cannot be compared with {subject}");
        Ok(stored)
    }

    /// Reads a file's text.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self> {
        let value: Value = serde_json::from_str(text)?;
        let word = |name: &str| value[name].as_str().map(String::from).with_context(|| format!("it has no {name}"));
        let cpus = value["cpus"].as_u64().context("it has no cpus")?;
        let subject = Subject { build: word("build")?, cpus, mode: word("mode")?, memory: word("memory")? };
        let rows = value["rows"].as_object().context("it has no rows")?;
        ensure!(!rows.is_empty(), "it has no rows");
        let figures = rows.iter().map(|(name, row)| {
            Ok((name.clone(), figure(row).with_context(|| format!("the row {name} makes no sense"))?))
        });
        Ok(Self { subject, figures: figures.collect::<Result<_>>()? })
    }

    /// The text of a file: JSON, with a line for each row, so that a change of one is a change of one line.
    #[must_use]
    pub fn text(&self) -> String {
        let Subject { build, cpus, mode, memory } = &self.subject;
        let mut text = format!("{{\n  \"build\": {},\n  \"cpus\": {cpus},\n", json!(build));
        let _ = write!(text, "  \"mode\": {},\n  \"memory\": {},\n  \"rows\": {{", json!(mode), json!(memory));
        for (nth, (name, figure)) in self.figures.iter().enumerate() {
            let comma = if nth == 0 { "" } else { "," };
            let row = json!({
                "unit": figure.unit,
                "value": figure.value,
                "kind": figure.kind.word(),
                "met": figure.met,
            });
            let _ = write!(text, "{comma}\n    {}: {row}", json!(name));
        }
        text.push_str("\n  }\n}\n");
        text
    }

    /// Is the goal of this row known to be missed, and is it no worse now than it was then?
    #[must_use]
    pub fn knows_miss(&self, name: &str, now: &Figure) -> bool {
        self.figures.get(name).is_some_and(|before| !before.met && !now.is_worse_than(before))
    }

    /// What has changed since.
    #[must_use]
    pub fn changes(&self, now: &Figures) -> Vec<Change> {
        let mut changes = Vec::new();
        for (name, figure) in now {
            let before = self.figures.get(name);
            let moved = match (before.map(|before| before.value), figure.value) {
                (Some(Some(before)), Some(now)) => has_moved(before, now),
                (Some(before), now) => before.is_some() != now.is_some(),
                (None, _) => true,
            };
            if moved {
                changes.push(Change { name: name.clone(), before: before.cloned(), now: Some(figure.clone()) });
            }
        }
        let gone = self.figures.iter().filter(|(name, _)| !now.contains_key(*name));
        changes.extend(gone.map(|(name, before)| Change {
            name: name.clone(),
            before: Some(before.clone()),
            now: None,
        }));
        changes
    }
}

fn figure(row: &Value) -> Option<Figure> {
    let value = match &row["value"] {
        Value::Null => row.as_object()?.contains_key("value").then_some(None)?,
        value => Some(value.as_f64()?),
    };
    let kind = Kind::of(row["kind"].as_str()?)?;
    Some(Figure { unit: row["unit"].as_str()?.into(), value, kind, met: row["met"].as_bool()? })
}

/// A row that is new, gone, or has moved.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// Its name.
    pub name: String,
    /// What it was.
    pub before: Option<Figure>,
    /// What it is.
    pub now: Option<Figure>,
}

impl Change {
    /// It is worse now.
    #[must_use]
    pub fn is_worse(&self) -> bool {
        matches!((&self.before, &self.now), (Some(before), Some(now)) if now.is_worse_than(before))
    }
}

impl fmt::Display for Change {
    /// One line: name, before, now, percent.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = |figure: &Figure| figure.value.map_or_else(|| "none".into(), |value| value.to_string());
        let name = &self.name;
        match (&self.before, &self.now) {
            (Some(before), Some(now)) => {
                write!(f, "{name:<42} {:>14} {:>14}", value(before), value(now))?;
                match (before.value, now.value) {
                    (Some(before), Some(now)) if before != 0.0 => {
                        write!(f, " {:>+8.1} %", (now - before) / before * 100.0)?;
                    }
                    _ => write!(f, " {:>10}", "")?,
                }
                f.write_str(if self.is_worse() { " worse" } else { "" })
            }
            (None, Some(now)) => write!(f, "{name:<42} {:>14} {:>14} new", "", value(now)),
            (Some(before), None) => write!(f, "{name:<42} {:>14} {:>14} gone", value(before), ""),
            (None, None) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
