//! Both removals side by side.

use super::words::{group, time, wrap};
use super::{COLUMNS, Row, Tone};
use crate::records::Record;

/// How wide the names and each of the two columns are.
const NAMES: usize = 28;
const FIGURES: usize = 16;

/// What a row is called; `None` where it says nothing to a reader that the others do not.
fn name(row: &str) -> Option<String> {
    Some(match row {
        "frames_covered" => "page frames".into(),
        "entries_visited" => "page-table entries visited".into(),
        "leaves" => "mappings of pages removed".into(),
        "table_pages" => "page tables freed".into(),
        "rounds" => "shootdowns".into(),
        "ipis" => "interrupts to other CPUs".into(),
        "page_flushes" => "flushes of one page".into(),
        "full_flushes" => "flushes of a whole TLB".into(),
        "ns" => "time".into(),
        "ns_per_frame" => "time for each frame".into(),
        // The first counts a page of 1 GiB as all its frames, each time that it is mapped; the second is the time once more.
        "pages" | "cycles" => return None,
        other => other.replace('_', " "),
    })
}

/// The figures that have come.
#[derive(Debug, Default)]
pub(super) struct Table {
    figures: Vec<(String, u64, u64)>,
}

impl Table {
    pub(super) fn add(&mut self, record: &Record) {
        let figures = record.number("ranged").zip(record.number("perframe"));
        if let Some((row, (ranged, per_frame))) = record.get("row").zip(figures) {
            self.figures.push((row.to_string(), ranged, per_frame));
        }
    }

    /// The table, once; nothing where no figure has come.
    pub(super) fn rows(&mut self) -> Vec<Row> {
        let figures = std::mem::take(&mut self.figures);
        if figures.is_empty() {
            return Vec::new();
        }
        let line = |name: &str, [ranged, per_frame]: [&str; 2]| {
            format!("{name:<NAMES$}{ranged:>FIGURES$}{per_frame:>FIGURES$}")
        };
        let mut rows = vec![
            Row::whole(Tone::Plain, ""),
            Row::whole(Tone::Heading, line("What the removal took:", ["by range", "frame by frame"])),
        ];
        for (row, ranged, per_frame) in &figures {
            let Some(name) = name(row).filter(|_| (*ranged, *per_frame) != (0, 0)) else { continue };
            let show = |figure: u64| if row.starts_with("ns") { time(figure.into()) } else { group(figure) };
            rows.push(Row::whole(Tone::Plain, line(&name, [&show(*ranged), &show(*per_frame)])));
        }
        let text = extrapolated(&figures).unwrap_or_default();
        rows.extend(wrap(&text, 0, COLUMNS).into_iter().map(|text| Row::whole(Tone::Plain, text)));
        rows
    }
}

/// What all frames would have taken one by one.
fn extrapolated(figures: &[(String, u64, u64)]) -> Option<String> {
    let find = |name: &str| figures.iter().find(|(row, ..)| row == name);
    let (&(_, all, some), &(_, _, ns)) = (find("frames_covered")?, find("ns")?);
    let whole = (u128::from(ns) * u128::from(all)).checked_div(some.into())?;
    Some(format!("One by one, all {} frames would have taken {} (extrapolated).", group(all), time(whole)))
}
