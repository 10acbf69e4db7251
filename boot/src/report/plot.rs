//! Plots as SVG.

use super::points::Series;
use anyhow::{Result, ensure};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::collections::BTreeMap;

/// Pixels.
const WIDTH: u32 = 960;
const HEIGHT: u32 = 460;
/// Of text in a plot.
const TEXT: (&str, u32) = ("sans-serif", 15);
/// Apart from each other for those who do not tell red from green, too.
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 90, 181),
    RGBColor(220, 50, 32),
    RGBColor(0, 0, 0),
    RGBColor(230, 159, 0),
    RGBColor(0, 128, 96),
    RGBColor(140, 80, 170),
];

/// What a line plot says on its axes. Both are logarithmic.
pub struct Axes<'a> {
    /// Below.
    pub x: &'a str,
    /// At the side.
    pub y: &'a str,
}

/// A number as short as it can be read: `6144`, `1.6M`.
fn short(value: f64) -> String {
    let (scaled, unit) = match value {
        v if v >= 1e12 => (v / 1e12, "T"),
        v if v >= 1e9 => (v / 1e9, "G"),
        v if v >= 1e6 => (v / 1e6, "M"),
        v if v >= 1e4 => (v / 1e3, "k"),
        v => (v, ""),
    };
    let text = match scaled {
        v if v >= 100.0 || (v - v.round()).abs() < 1e-9 => format!("{v:.0}"),
        v if v >= 1.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    };
    text + unit
}

/// Lines over logarithmic axes. A zero stands at the lower edge, where the axis begins.
///
/// # Errors
/// Where there is no point.
pub fn lines(axes: &Axes<'_>, series: &BTreeMap<String, Series>) -> Result<String> {
    let xs = series.values().flat_map(|points| points.keys().map(|x| *x as f64));
    let (left, right) = xs.fold((f64::MAX, 0f64), |(least, most), x| (least.min(x), most.max(x)));
    ensure!(left <= right, "there is no point");
    let ys = series.values().flat_map(|points| points.values().copied());
    let (low, high) = ys.filter(|y| *y > 0.0).fold((f64::MAX, 1f64), |(least, most), y| (least.min(y), most.max(y)));
    // Whole decades, so that there is a label for each and no other.
    let low = 10f64.powf((low.min(high) / 1.2).log10().floor());
    let high = 10f64.powf((high * 1.2).log10().ceil());
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (WIDTH, HEIGHT)).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .margin(12)
            .margin_top(44)
            .margin_right(28)
            .x_label_area_size(48)
            .y_label_area_size(80)
            .build_cartesian_2d((left..right.max(left * 2.0)).log_scale().base(2.0), (low..high).log_scale())?;
        chart
            .configure_mesh()
            .x_desc(axes.x)
            .y_desc(axes.y)
            .x_labels(12)
            .x_label_formatter(&|x| short(*x))
            .y_label_formatter(&|y| short(*y))
            .label_style(TEXT)
            .axis_desc_style(TEXT)
            .light_line_style(WHITE)
            .bold_line_style(BLACK.mix(0.12))
            .draw()?;
        for (points, colour) in series.values().zip(COLOURS.iter().cycle()) {
            let points: Vec<_> = points.iter().map(|(x, y)| (*x as f64, y.max(low))).collect();
            chart.draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))?;
            chart.draw_series(points.iter().map(|point| Circle::new(*point, 3, colour.filled())))?;
        }
        let names: Vec<_> = series.keys().map(|name| name.replace('_', " ")).collect();
        legend(&root, &names, 92)?;
        root.present()?;
    }
    Ok(svg)
}

/// Groups of bars, one for each of `names` that has a value, on a logarithmic axis from `axis.0` to `axis.1`.
///
/// # Errors
/// Where there is no bar.
pub fn bars(names: &[String], groups: &[(String, Vec<Option<f64>>)], unit: &str) -> Result<String> {
    let values = || groups.iter().flat_map(|(_, values)| values.iter().flatten().copied()).filter(|value| *value > 0.0);
    let (low, high) = values().fold((f64::MAX, 0f64), |(least, most), value| (least.min(value), most.max(value)));
    ensure!(low <= high, "there is no bar");
    let start = (low / 1.5).min(1.0);
    let edge = |value: f64| (start.log10(), value.max(start).log10());
    let label = |value: f64| short(value);
    draw_bars(&Bars { names, groups, unit, range: (start.log10(), (high * 2.5).log10()) }, edge, label, |at| {
        short(10f64.powf(at))
    })
}

/// Groups of one bar each, from zero to the left or to the right: percents.
///
/// # Errors
/// Where there is no bar.
pub fn percents(groups: &[(String, Vec<Option<f64>>)], unit: &str) -> Result<String> {
    ensure!(!groups.is_empty(), "there is no bar");
    let most = groups.iter().flat_map(|(_, values)| values.iter().flatten()).fold(2f64, |most, v| most.max(v.abs()));
    let most = most * 1.25;
    let bars = Bars { names: &[], groups, unit, range: (-most, most) };
    draw_bars(&bars, |value| (0.0, value), |value| format!("{value:+.2} %"), |at| format!("{at:+.0}"))
}

/// What is drawn as bars.
struct Bars<'a> {
    names: &'a [String],
    groups: &'a [(String, Vec<Option<f64>>)],
    unit: &'a str,
    range: (f64, f64),
}

fn draw_bars(
    bars: &Bars<'_>,
    edge: impl Fn(f64) -> (f64, f64),
    label: impl Fn(f64) -> String,
    tick: impl Fn(f64) -> String,
) -> Result<String> {
    const ROW: u32 = 17;
    let of_group = bars.names.len().max(1);
    let height = bars.groups.len() as u32 * (of_group as u32 * ROW + 10) + 110;
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        root.fill(&WHITE)?;
        let rows = bars.groups.len() as f64;
        let mut chart = ChartBuilder::on(&root)
            .margin(12)
            .margin_left(350)
            .margin_top(if bars.names.is_empty() { 12 } else { 44 })
            .x_label_area_size(48)
            .build_cartesian_2d(bars.range.0..bars.range.1, 0.0..rows)?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .y_labels(0)
            .x_desc(bars.unit)
            .x_label_formatter(&|at| tick(*at))
            .label_style(TEXT)
            .axis_desc_style(TEXT)
            .light_line_style(WHITE)
            .bold_line_style(BLACK.mix(0.12))
            .draw()?;
        let share = 0.84 / of_group as f64;
        for (nth, (_, values)) in bars.groups.iter().enumerate() {
            for (at, value) in values.iter().enumerate() {
                let Some(value) = value else { continue };
                let (from, to) = edge(*value);
                let top = rows - nth as f64 - 0.08 - at as f64 * share;
                let colour = COLOURS[at % COLOURS.len()];
                let bar = Rectangle::new([(from, top), (to, top - share * 0.9)], colour.filled());
                chart.draw_series(std::iter::once(bar))?;
                let place = Pos::new(if to < from { HPos::Right } else { HPos::Left }, VPos::Center);
                let style = TEXT.into_font().color(&BLACK).pos(place);
                let text = Text::new(format!(" {} ", label(*value)), (to, top - share * 0.45), style);
                chart.draw_series(std::iter::once(text))?;
            }
        }
        name_groups(&root, &chart, bars)?;
        root.present()?;
    }
    Ok(svg)
}

type Chart<'a, 'b> = ChartContext<
    'a,
    SVGBackend<'b>,
    Cartesian2d<plotters::coord::types::RangedCoordf64, plotters::coord::types::RangedCoordf64>,
>;
type Root<'b> = DrawingArea<SVGBackend<'b>, plotters::coord::Shift>;

/// What each group is, at its left; and which bar is whose, above.
fn name_groups<'b>(root: &Root<'b>, chart: &Chart<'_, 'b>, bars: &Bars<'_>) -> Result<()> {
    let rows = bars.groups.len() as f64;
    let right = TEXT.into_font().color(&BLACK).pos(Pos::new(HPos::Right, VPos::Center));
    for (nth, (what, _)) in bars.groups.iter().enumerate() {
        let (_, y) = chart.backend_coord(&(bars.range.0, rows - nth as f64 - 0.5));
        root.draw(&Text::new(what.clone(), (344, y), right.clone()))?;
    }
    legend(root, bars.names, 20)
}

/// Which colour is whose, above the plot from `x` on.
fn legend(root: &Root<'_>, names: &[String], mut x: i32) -> Result<()> {
    for (name, colour) in names.iter().zip(COLOURS) {
        root.draw(&Rectangle::new([(x, 14), (x + 14, 28)], colour.filled()))?;
        let style = TEXT.into_font().color(&BLACK).pos(Pos::new(HPos::Left, VPos::Center));
        root.draw(&Text::new(name.clone(), (x + 20, 21), style))?;
        x += 50 + 8 * name.len() as i32;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let shown: Vec<_> = [0.25, 1.0, 2.68, 118.0, 6144.0, 15_360.0, 668_262.0, 1e9].map(short).into();
        assert_eq!(shown, ["0.25", "1", "2.7", "118", "6144", "15.4k", "668k", "1G"]);
    }

    #[test]
    fn lines_have_their_names_and_a_zero_is_drawn() {
        let idle = Series::from([(6, 0.0), (6144, 0.0)]);
        let mapped = Series::from([(6, 8704.0), (6144, 8704.0)]);
        let series = BTreeMap::from([("idle".to_string(), idle), ("16_extents".to_string(), mapped)]);
        let svg = lines(&Axes { x: "GiB", y: "bytes" }, &series).unwrap();
        for word in ["16 extents", "idle", "GiB", "bytes"] {
            assert!(svg.contains(word), "{word}");
        }
        assert_eq!(svg.matches("<circle").count(), 4);
        assert!(lines(&Axes { x: "", y: "" }, &BTreeMap::new()).is_err());
    }

    #[test]
    fn a_bar_is_drawn_for_each_value_that_there_is() {
        let groups = [("pin".to_string(), vec![Some(118.0), Some(748.0), None]), ("unpin".into(), vec![Some(27.0); 3])];
        let names = ["ours", "Linux 6.1", "Linux 6.12"].map(String::from);
        let svg = bars(&names, &groups, "instructions").unwrap();
        for word in ["pin", "unpin", "ours", "Linux 6.12", " 748 ", "instructions"] {
            assert!(svg.contains(word), "{word}");
        }
        assert!(bars(&names, &[], "").is_err() && percents(&[], "").is_err());
        let svg = percents(&[("row".into(), vec![Some(-3.0)])], "percent").unwrap();
        assert!(svg.contains("-3.00 %"));
    }
}
