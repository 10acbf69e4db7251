//! The lines `@trace` of a console, taken apart.

use crate::records::Record;
use anyhow::{Context, Result, bail, ensure};
use mm::machine::MAX_CPUS;
use mm::trace::{Event, Kind, Mark};

/// What one `trace show` has printed.
#[derive(Debug, Default)]
pub struct Capture {
    /// The events, by their time.
    pub events: Vec<Event>,
    /// How many there had been since they were last cleared.
    pub all: u64,
    /// How many were lost while they were being written.
    pub lost: u64,
}

impl Capture {
    /// Takes a console apart; the last `trace show` in it counts.
    ///
    /// # Errors
    /// One line: there is none, it was cut, a line of it makes no sense, or nothing was recorded.
    pub fn parse(text: &str) -> Result<Self> {
        let mut found: Option<(Self, u64, bool)> = None;
        for (nr, line) in text.lines().enumerate() {
            // A prompt may stand before it where lines of two were mixed.
            let Some(record) = Record::parse(line.trim_end()).filter(|record| record.topic == "trace") else {
                continue;
            };
            let nr = nr + 1;
            if record.get("events").is_some() {
                let number = |key| record.number(key).with_context(|| cut(nr, key));
                let (all, lost) = (number("events")?, number("lost")?);
                found = Some((Self { events: Vec::new(), all, lost }, number("shown")?, false));
                continue;
            }
            let Some((capture, shown, ended)) = found.as_mut().filter(|(_, _, ended)| !ended) else {
                bail!(
                    "line {nr}: an event that belongs to no `trace show`: its first line, @trace events=, is missing"
                );
            };
            if record.get("ended").is_some() {
                ensure!(
                    record.number("ended") == Some(*shown) && capture.events.len() as u64 == *shown,
                    "line {nr}: expected {shown} events before it, found {}: some are missing",
                    capture.events.len()
                );
                *ended = true;
                continue;
            }
            capture.events.push(event(&record).with_context(|| format!("line {nr}"))?);
        }
        let (mut capture, shown, ended) =
            found.context("no @trace lines: it is to be what the console printed of `trace show`")?;
        ensure!(ended, "it ends after {} of {shown} events: it was cut", capture.events.len());
        ensure!(!capture.events.is_empty(), "nothing was recorded: `trace on` comes before what is to be seen");
        capture.events.sort_by_key(|event| event.ns);
        Ok(capture)
    }
}

fn cut(nr: usize, key: &str) -> String {
    format!("line {nr}: expected a number after {key}=: the line was cut")
}

fn event(record: &Record) -> Result<Event> {
    let number =
        |key: &str| record.number(key).with_context(|| format!("expected a number after {key}=: the line was cut"));
    let (cpu, ns) = (number("cpu")?, number("ns")?);
    let word = record.get("kind").context("expected a word after kind=: the line was cut")?;
    let kind = Kind::from_word(word).with_context(|| format!("\"{word}\" is no kind of event that is known here"))?;
    let mark = Mark::new(kind, number("a")?, number("b")?);
    ensure!(cpu < MAX_CPUS as u64, "CPU {cpu}; there are at most {MAX_CPUS}");
    Ok(Event { ns, cpu: cpu as usize, mark })
}
