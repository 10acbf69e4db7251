//! Both kernels' figures in one table: for people, as JSON and as CSV.

use super::Series;
use super::results::Measured;
use super::rows::{ROWS, Row};
use crate::bench::figures::{self, Figures};
use crate::paths::Profile;
use crate::whole;
use anyhow::Result;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// What our `bench` printed.
#[derive(Debug)]
pub struct Ours {
    /// How the kernel was built.
    profile: Profile,
    /// The figures.
    figures: Figures,
}

impl Ours {
    /// Reads the console of a whole run.
    ///
    /// # Errors
    /// One line, where a record makes no sense, or not everything was measured.
    pub fn of(console: &[String], profile: Profile) -> Result<Self> {
        Ok(Self { profile, figures: figures::of_console(console)? })
    }

    fn build(&self) -> &'static str {
        match self.profile {
            Profile::Dev => "checked build",
            Profile::Release => "release build",
            Profile::Trace => "build with trace points",
            Profile::Zoo => "build with faults",
        }
    }

    /// The row's figure and its name.
    fn of_row(&self, row: &Row) -> Option<(&'static str, f64)> {
        let name = row.ours?;
        Some((name, self.figures.get(name)?.value?))
    }
}

/// Everything that was measured.
#[derive(Debug)]
pub struct Comparison {
    /// Ours.
    pub ours: Ours,
    /// Linux's.
    pub peers: Vec<(Series, Measured)>,
}

/// A row's figures of one kernel: what the caller executes, all tasks, and how many times ours the caller's is.
struct Cell {
    caller: Option<f64>,
    tasks: Option<f64>,
    ratio: Option<f64>,
}

impl Comparison {
    fn cell(&self, row: &Row, peer: &Measured) -> Cell {
        let figure = |name: &str| peer.figures.get(name).map(|figure| figure.value);
        let caller = row.linux.and_then(figure);
        let tasks = row.linux.and_then(|name| figure(&format!("{name}_tasks")));
        let ours = self.ours.of_row(row).map(|(_, value)| value);
        let ratio = caller.zip(ours).filter(|(_, ours)| *ours > 0.0).map(|(caller, ours)| caller / ours);
        Cell { caller, tasks, ratio }
    }

    /// The table.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut text = String::from("| guest instructions |");
        for (_, peer) in &self.peers {
            text.push_str(&format!(" Linux {} |", peer.kernel));
        }
        text.push_str(&format!(" Unplug, {} |", self.ours.build()));
        for (series, _) in &self.peers {
            text.push_str(&format!(" {} over ours |", series.word()));
        }
        text.push_str(" |\n|---|");
        text.push_str(&"---:|".repeat(2 * self.peers.len() + 1));
        text.push_str("---|\n");
        for row in ROWS {
            let cells: Vec<_> = self.peers.iter().map(|(_, peer)| self.cell(row, peer)).collect();
            text.push_str(&format!("| {} |", row.what));
            cells.iter().for_each(|cell| text.push_str(&format!(" {} |", both(cell))));
            let ours = self.ours.of_row(row).map_or_else(|| "–".into(), |(_, value)| number(value));
            text.push_str(&format!(" {ours} |"));
            cells
                .iter()
                .for_each(|cell| text.push_str(&format!(" {} |", cell.ratio.map_or_else(|| "–".into(), times))));
            text.push_str(&format!(" {} |\n", row.note));
        }
        text + &self.legend()
    }

    fn legend(&self) -> String {
        let packages: Vec<_> = self.peers.iter().map(|(_, peer)| peer.package.clone()).collect();
        let qemu = self.peers.first().map_or("", |(_, peer)| &peer.qemu);
        format!(
            "\nQEMU {qemu}, TCG, -icount, -cpu max,{}; {}. Linux: medians on one CPU of what the caller executes, in brackets \
             what all tasks do where that is not the same; the ratio is the caller's. Ours: what every CPU executes, of 4.\n",
            super::CPU.join(","),
            packages.join(", ")
        )
    }

    /// Keeps it as JSON and as CSV, and says where.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn keep(&self, place: &Path) -> Result<PathBuf> {
        let file = place.join("comparison.json");
        whole::write(&file, &format!("{:#}\n", self.json()))?;
        whole::write(&file.with_extension("csv"), &self.csv())?;
        Ok(file)
    }

    fn json(&self) -> Value {
        let row = |row: &Row| {
            let ours = self.ours.of_row(row);
            let linux = self.peers.iter().map(|(series, peer)| {
                let Cell { caller, tasks, ratio } = self.cell(row, peer);
                (series.word().to_string(), json!({"caller": caller, "tasks": tasks, "over_ours": ratio}))
            });
            json!({
                "what": row.what, "linux_name": row.linux, "note": row.note,
                "our_name": ours.map(|(name, _)| name), "ours": ours.map(|(_, value)| value),
                "linux": linux.collect::<serde_json::Map<_, _>>(),
            })
        };
        let figures: serde_json::Map<_, _> =
            self.ours.figures.iter().map(|(name, figure)| (name.clone(), json!(figure.value))).collect();
        let kernels = self.peers.iter().map(|(series, peer)| {
            (series.word().to_string(), json!({"kernel": peer.kernel, "package": peer.package, "qemu": peer.qemu}))
        });
        json!({
            "unit": "instructions", "our_build": self.ours.build(), "our_figures": figures,
            "kernels": kernels.collect::<serde_json::Map<_, _>>(), "rows": ROWS.iter().map(row).collect::<Vec<_>>(),
        })
    }

    fn csv(&self) -> String {
        let mut lines = vec![vec!["what".to_string(), "our_name".into(), "ours".into(), "linux_name".into()]];
        for (series, _) in &self.peers {
            lines[0].extend(["caller", "tasks", "over_ours"].map(|what| format!("linux_{}_{what}", series.word())));
        }
        lines[0].push("note".into());
        let plain = |value: Option<f64>| value.map_or_else(String::new, |value| format!("{value:.2}"));
        for row in ROWS {
            let ours = self.ours.of_row(row);
            let name = ours.map_or("", |(name, _)| name);
            let mut line = vec![row.what.into(), name.into(), plain(ours.map(|(_, value)| value))];
            line.push(row.linux.unwrap_or_default().into());
            for (_, peer) in &self.peers {
                let Cell { caller, tasks, ratio } = self.cell(row, peer);
                line.extend([caller, tasks, ratio].map(plain));
            }
            line.push(row.note.into());
            lines.push(line);
        }
        lines.iter().map(|line| line.iter().map(|field| quoted(field)).collect::<Vec<_>>().join(",") + "\n").collect()
    }
}

/// A field of CSV (RFC 4180).
fn quoted(field: &str) -> String {
    if field.contains([',', '"', '\n']) { format!("\"{}\"", field.replace('"', "\"\"")) } else { field.into() }
}

/// The caller's figure, and that of all tasks where people would see a difference.
fn both(cell: &Cell) -> String {
    let Some(caller) = cell.caller.map(number) else { return "–".into() };
    match cell.tasks.map(number) {
        Some(tasks) if tasks != caller => format!("{caller} ({tasks})"),
        _ => caller,
    }
}

/// A figure as people read it: a hundredth where it is small, thousands apart where it is large.
fn number(value: f64) -> String {
    if value < 100.0 {
        let text = format!("{value:.2}");
        return text.trim_end_matches('0').trim_end_matches('.').into();
    }
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A ratio: a tenth where it is small.
fn times(ratio: f64) -> String {
    if ratio < 9.95 { format!("{ratio:.1}") } else { number(ratio.round()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::results::tests::measured;

    fn comparison() -> Comparison {
        let console = [
            "@bench name=unpin_4k unit=instructions value=26.5 bound=40 kind=at_most met=1",
            "@bench figures=1 missed=0 ended=1",
        ];
        let ours = Ours::of(&console.map(String::from), Profile::Dev).expect("a whole run");
        Comparison { ours, peers: vec![(Series::V6_1, measured(106.0)), (Series::V6_12, measured(53.0))] }
    }

    #[test]
    fn figures_and_ratios_are_as_people_read_them() {
        let figures = [0.0, 2.7, 88.734, 99.999, 100.4, 748.0, 1234.5, 12_009_531.0];
        assert_eq!(figures.map(number), ["0", "2.7", "88.73", "100", "100", "748", "1,234", "12,009,531"]);
        assert_eq!([0.84, 1.0, 9.94, 9.96, 10.4, 1599.6].map(times), ["0.8", "1.0", "9.9", "10", "10", "1,600"]);
    }

    #[test]
    fn a_row_has_both_kernels_ours_and_the_ratios() {
        let table = comparison().markdown();
        assert!(table.contains("\n| unpin it | 106 | 53 | 26.5 | 4.0 | 2.0 | ours is part of its caller"), "{table}");
        // Ours was not measured, or Linux has none: no ratio, and why.
        assert!(table.contains("| pin one 4 KiB page | 106 | 53 | – | – | – | a called"), "{table}");
        assert!(table.contains("| – | – | – | – | – | Linux answers pins with arrays only |"), "{table}");
        let columns = |line: &str| line.matches('|').count();
        assert!(table.lines().take(ROWS.len() + 2).all(|line| columns(line) == 8), "{table}");
    }

    #[test]
    fn the_callers_share_stands_before_that_of_all_tasks() {
        let cell = |caller, tasks| both(&Cell { caller: Some(caller), tasks: Some(tasks), ratio: None });
        assert_eq!([cell(5_727_861.0, 6_274_614.0), cell(88.734, 88.731)], ["5,727,861 (6,274,614)", "88.73"]);
    }

    #[test]
    fn csv_and_json_have_a_line_for_each_row() {
        let comparison = comparison();
        let csv = comparison.csv();
        assert_eq!(csv.lines().count(), ROWS.len() + 1);
        assert!(csv.contains("unpin it,unpin_4k,26.50,unpin_4k,106.00,,4.00,53.00,,2.00,"), "{csv}");
        assert_eq!(quoted("a,\"b\""), "\"a,\"\"b\"\"\"");
        let json = comparison.json();
        assert_eq!(json["rows"].as_array().map(Vec::len), Some(ROWS.len()));
        assert_eq!(json["rows"][1]["linux"]["6.1"]["over_ours"], json!(4.0));
        assert_eq!(json["kernels"]["6.12"]["kernel"], json!("6.1.0-1-amd64"));
    }
}
