//! The points of the kernel's sweeps, as its records on the console have them.

use crate::records::{self, Record};
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;

/// Points of one series, by x.
pub type Series = BTreeMap<u64, f64>;

/// What was swept: by plot, then by series.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Points(BTreeMap<String, BTreeMap<String, Series>>);

impl Points {
    /// Adds the points of a whole run that `wanted` takes, by the plot's name.
    ///
    /// # Errors
    /// One line, where a record makes no sense, or the run did not come to its end.
    pub fn add(&mut self, console: &[String], wanted: impl Fn(&str) -> bool) -> Result<()> {
        let mut ended = None;
        let mut nr = 0;
        for record in records::of_topic(console, "sweep") {
            if record.get("plot").is_none() {
                ended = record.number("ended");
                continue;
            }
            let (plot, series, x, value) =
                point(&record).with_context(|| format!("the record {record} makes no sense"))?;
            nr += 1;
            if wanted(&plot) {
                self.0.entry(plot).or_default().entry(series).or_default().insert(x, value);
            }
        }
        match ended {
            Some(1) => ensure!(nr > 0, "there is no record of a sweep"),
            Some(_) => bail!("not everything could be swept"),
            None if nr == 0 => bail!("there is no record of a sweep"),
            None => bail!("the sweep has no end: it was cut off after {nr} points"),
        }
        Ok(())
    }

    /// The series of a plot, by name.
    #[must_use]
    pub fn of(&self, plot: &str) -> BTreeMap<String, Series> {
        self.0.get(plot).cloned().unwrap_or_default()
    }
}

fn point(record: &Record) -> Option<(String, String, u64, f64)> {
    let value: f64 = record.get("value")?.parse().ok()?;
    let good = value.is_finite() && value >= 0.0;
    good.then_some((record.get("plot")?.into(), record.get("series")?.into(), record.number("x")?, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn console(lines: &[&str]) -> Vec<String> {
        lines.iter().map(ToString::to_string).collect()
    }

    const POINT: &str = "@sweep plot=size series=idle x=6144 value=219976.50";

    #[test]
    fn the_points_of_a_whole_run_are_read() {
        let mut points = Points::default();
        let other = "@sweep plot=batch series=array_4k x=512 value=21";
        points.add(&console(&["noise", POINT, other, "@sweep ended=1"]), |plot| plot != "batch").unwrap();
        assert_eq!(points.of("size")["idle"], Series::from([(6144, 219_976.5)]));
        assert!(points.of("batch").is_empty() && points.of("nothing").is_empty());
    }

    #[test]
    fn what_is_cut_off_or_garbled_is_refused_with_one_line() {
        for (lines, word) in [
            (&[][..], "no record of a sweep"),
            (&["@sweep ended=1"], "no record of a sweep"),
            (&[POINT], "cut off after 1 points"),
            (&[POINT, "@sweep ended=0"], "not everything"),
            (&["@sweep plot=size series=idle x=six value=1"], "makes no sense"),
            (&["@sweep plot=size series=idle x=6 value=inf"], "makes no sense"),
            (&["@sweep plot=size series=idle x=6 value=-1"], "makes no sense"),
            (&["@sweep plot=size x=6 value=1"], "makes no sense"),
        ] {
            let added = Points::default().add(&console(lines), |_| true);
            let error = format!("{:#}", added.expect_err("it cannot be read"));
            assert!(error.contains(word) && !error.contains('\n'), "{lines:?}: {error}");
        }
    }
}
