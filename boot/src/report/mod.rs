//! The job `report`: boots the kernel's sweeps and measurements, and draws them on a page for people.

mod page;
mod peer;
mod plot;
mod points;

use self::page::{Section, escaped, page};
use self::peer::{Peers, compared};
use self::plot::{Axes, bars, lines, percents};
use self::points::Points;
use crate::backing::Nvdimm;
use crate::bench::baseline::{Baseline, IN_TREE, of_tree};
use crate::bench::figures::{self, Figures, Kind};
use crate::bench::{BENCH_PATIENCE_S, PMEM_BYTES, was_measured};
use crate::cli::{Mode, Refusal, words_of};
use crate::console::Echo;
use crate::guest::Guest;
use crate::machine::Machine;
use crate::out::outln;
use crate::paths::{self, Profile};
use crate::size::{GIB, TIB, show};
use crate::terminal::Interrupt;
use crate::whole::{self, Place};
use crate::{build, image};
use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Devices by whose size is swept, in bytes.
const SIZES: [u64; 7] = [6 * GIB, 64 * GIB, 512 * GIB, TIB, 3 * TIB, 6 * TIB, 15 * TIB];
/// RAM of that machine, for as many mappings as may be had.
const SWEEP_RAM: u64 = 2 * GIB;
/// Numbers of CPUs that are swept.
const CPUS: [u32; 5] = [2, 4, 8, 16, 32];
/// The line before what a boot printed, in a file of records: `#boot sweep`, `#boot cpus`, `#boot bench`.
const BOOT: &str = "#boot ";

#[derive(Debug, Parser)]
#[command(
    name = "report",
    bin_name = "./run-qemu.sh report",
    about = "Measures, and draws what it costs on one page of HTML that needs no other file"
)]
struct Cli {
    /// The page.
    #[arg(long, value_name = "FILE", default_value_os_t = paths::target().join("report.html"))]
    output: PathBuf,
    /// Draw what an earlier run has measured, and start no machine. Each run leaves its records in
    /// `target/report.records`.
    #[arg(long, value_name = "FILE")]
    records: Option<PathBuf>,
}

/// Does the job. A wrong command line ends the process with one line and status 2.
///
/// # Errors
/// One line.
pub fn job(args: impl IntoIterator<Item = OsString>) -> Result<u8> {
    let cli: Cli = words_of(args, "report --help");
    // Before there is something to be cleaned up.
    let _interrupt = Interrupt::install()?;
    let from_file = cli.records.as_deref().map(read_records).transpose();
    let given = from_file.and_then(|records| Ok((records, Place::reserve(&cli.output)?)));
    let (records, place) = match given {
        Ok(given) => given,
        Err(error) => Refusal::Bad(format!("{error:#}")).exit("report --help"),
    };
    let records = match records {
        Some(records) => records,
        None => measure()?,
    };
    place.write(&draw(&records, &Peers::find()?)?)?;
    outln!("{}", cli.output.display());
    Ok(0)
}

/// What was measured.
#[derive(Debug, Default)]
struct Records {
    points: Points,
    figures: Figures,
}

impl Records {
    /// Takes what boots printed, each behind its line `#boot WHICH`.
    fn parse(text: &str) -> Result<Self> {
        let mut records = Self::default();
        let boots: Vec<_> = format!("\n{text}").split(&format!("\n{BOOT}")).skip(1).map(String::from).collect();
        ensure!(!boots.is_empty(), "it holds no records of a report");
        for boot in &boots {
            let (which, rest) = boot.split_once('\n').unwrap_or((boot, ""));
            let console: Vec<_> = rest.lines().map(String::from).collect();
            match which {
                "sweep" => records.points.add(&console, |plot| !is_of_cpus(plot))?,
                "cpus" => records.points.add(&console, is_of_cpus)?,
                "bench" => records.figures = figures::of_console(&console)?,
                other => bail!("there is no kind of boot {other:?}"),
            }
        }
        ensure!(!records.figures.is_empty(), "it holds no figures of bench");
        Ok(records)
    }
}

fn is_of_cpus(plot: &str) -> bool {
    matches!(plot, "cpus" | "interrupts")
}

fn read_records(path: &Path) -> Result<Records> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).with_context(|| shown.to_string())?;
    Records::parse(&text).with_context(|| format!("{shown} cannot be drawn"))
}

/// Boots everything, and leaves the records in a file.
fn measure() -> Result<Records> {
    let kernel = build::kernel(Profile::Dev, false)?;
    image::make(&kernel)?;
    let base = Machine {
        mode: Mode::Bench,
        deterministic: true,
        timeout: Some(Duration::from_secs(BENCH_PATIENCE_S)),
        ..Machine::default()
    };
    let sweep = Machine { append: vec!["bench=sweep".into()], ..base.clone() };
    let sizes = SIZES.map(Nvdimm::temporary).to_vec();
    let mut boots = vec![("sweep", Machine { pmem: sizes, mem_bytes: SWEEP_RAM, ..sweep.clone() })];
    boots.extend(CPUS.map(|smp| ("cpus", Machine { smp, ..sweep.clone() })));
    boots.push(("bench", Machine { pmem: PMEM_BYTES.map(Nvdimm::temporary).to_vec(), ..base }));
    let mut text = String::new();
    let nr = boots.len();
    for (nth, (which, machine)) in boots.iter().enumerate() {
        eprintln!("run-qemu: boot {} of {nr}: {which}, {} CPUs", nth + 1, machine.smp);
        let outcome = Guest::start(machine, Echo::Off)?.finish()?;
        ensure!(was_measured(&outcome.status), "boot {which}: {}", outcome.status);
        text.push_str(&format!("{BOOT}{which}\n"));
        outcome.console.iter().filter(|line| line.starts_with('@')).for_each(|line| text.extend([line, "\n"]));
    }
    let records = Records::parse(&text)?;
    whole::write(&paths::target().join("report.records"), &text)?;
    Ok(records)
}

/// The text of the page.
fn draw(records: &Records, peers: &Peers) -> Result<String> {
    let stored = Baseline::read(&of_tree())?;
    let mut sections = swept(&records.points);
    sections.push(beside_linux(&records.figures, peers));
    sections.push(since_baseline(&records.figures, &stored));
    let missed = records.figures.values().filter(|figure| !figure.met).count();
    let summary = format!(
        "The checked build in deterministic mode, in which the time-stamp counter counts the instructions of all CPUs \
         together; 4 CPUs where nothing else is said. {} rows of <code>bench</code> were measured, and {missed} of them \
         miss their goals: <code>docs/benchmarks.md</code> has them all. The axes of lines are logarithmic, and a zero \
         stands at the lower edge.",
        records.figures.len(),
    );
    Ok(page(&summary, &sections))
}

/// The command of the sweep over sizes and extents.
fn sweep_command() -> String {
    let sizes: String = SIZES.iter().map(|size| format!(" --pmem {}", show(*size))).collect();
    format!("./run-qemu.sh bench --append bench=sweep --mem {}{sizes}", show(SWEEP_RAM))
}

fn swept(points: &Points) -> Vec<Section> {
    let section = |title: &str, plot: &str, axes: Axes<'_>, command: String, meaning: &str| Section {
        title: title.into(),
        drawing: lines(&axes, &points.of(plot)).map_err(|error| format!("{error:#}")),
        command,
        meaning: meaning.into(),
    };
    let (gib, instructions) = ("size of the device, GiB", "instructions");
    let cpus = || "for n in 2 4 8 16 32; do ./run-qemu.sh bench --append bench=sweep --smp $n --pmem 1G; done".into();
    vec![
        section(
            "Removal by size of the device",
            "size",
            Axes { x: gib, y: instructions },
            sweep_command(),
            "What a removal costs, while nobody uses the device and with the same 16 extents of 2 MiB in four address \
             spaces. A flat line means that only what is mapped is paid for; what rises is the direct map, by one store \
             for each half TiB.",
        ),
        section(
            "Attach by size of the device",
            "attach",
            Axes { x: gib, y: instructions },
            sweep_command(),
            "What it costs to attach a device that nobody uses yet. No page metadata is made; what rises is the direct \
             map, by one store for each half TiB.",
        ),
        section(
            "Memory by size of the device",
            "bytes",
            Axes { x: gib, y: "bytes of RAM" },
            sweep_command(),
            "Page metadata and page tables of an attached device: idle, and with 16 extents of 2 MiB mapped in four \
             address spaces. They follow what is mapped and not the size of the device; Linux's <code>struct page</code> \
             of 64 bytes for each 4 KiB would be 96 MiB for 6 GiB and 96 GiB for 6 TiB.",
        ),
        section(
            "Removal by number of mapped extents",
            "extents",
            Axes { x: "extents of 2 MiB", y: "instructions for each" },
            sweep_command(),
            "What each extent adds to the removal of an idle device: extents that are mappings of their own, and leaves \
             of one mapping. A flat line means linear cost; where the line ends before 1,000,000, there is no \
             RAM for more, or the device has no room.",
        ),
        section(
            "Pins by batch and leaf",
            "batch",
            Axes { x: "pages in a call", y: "instructions for each page" },
            sweep_command(),
            "Pins of pages that follow each other, through leaves of 4 KiB, 2 MiB and 1 GiB, into an array of frames and \
             as ranges. Under one large leaf a range costs the same however long it is, so each page of it costs ever \
             less.",
        ),
        section(
            "Interrupts by number of CPUs",
            "interrupts",
            Axes { x: "CPUs", y: "interrupts of a removal" },
            cpus(),
            "64 pages that every CPU has loaded are taken away: by range, and frame by frame. By range each other CPU is \
             interrupted once for all pages; frame by frame it is once for each page.",
        ),
        section(
            "The same in instructions",
            "cpus",
            Axes { x: "CPUs", y: instructions },
            cpus(),
            "The whole removal of those 64 pages. The distance of the lines is what the range saves, and it grows with \
             the number of CPUs that have to answer.",
        ),
    ]
}

fn beside_linux(figures: &Figures, peers: &Peers) -> Section {
    let names: Vec<_> = std::iter::once("Unplug".to_string())
        .chain(peers.kernels.iter().map(|peer| format!("Linux {}", peer.kernel)))
        .collect();
    Section {
        title: "Ours and Linux's".into(),
        drawing: bars(&names, &compared(figures, peers), "instructions").map_err(|error| format!("{error:#}")),
        command: "./run-qemu.sh bench; ./run-qemu.sh bench --linux".into(),
        meaning: format!(
            "The same acts on both sides, on a logarithmic axis: shorter is cheaper. Linux's figures count the caller \
             alone and ours every CPU; they were {}.",
            peers.source
        ),
    }
}

/// How many rows are drawn at most.
const MOST_ROWS: usize = 40;

fn since_baseline(figures: &Figures, stored: &Baseline) -> Section {
    let percent = |name: &String, now: f64| {
        let before = stored.figures.get(name)?.value.filter(|before| *before != 0.0)?;
        Some((now - before) / before * 100.0)
    };
    let mut rows: Vec<_> = figures
        .iter()
        .filter_map(|(name, figure)| Some((name, figure, percent(name, figure.value?)?)))
        .filter(|(_, figure, percent)| figure.kind != Kind::None || percent.abs() > 1.0)
        .collect();
    rows.sort_by(|(_, _, one), (_, _, other)| other.abs().total_cmp(&one.abs()));
    rows.truncate(MOST_ROWS);
    let groups: Vec<_> = rows.into_iter().map(|(name, _, percent)| (name.clone(), vec![Some(percent)])).collect();
    let changes = stored.changes(figures);
    let moved = changes.iter().filter(|change| change.before.is_some() && change.now.is_some()).count();
    Section {
        title: "Today's build against the stored baseline".into(),
        drawing: percents(&groups, "percent since the baseline was stored").map_err(|error| format!("{error:#}")),
        command: format!("./run-qemu.sh bench --baseline {IN_TREE}"),
        meaning: format!(
            "By how many percent each row with a goal has moved since <code>{}</code> was stored, and each other row \
             that moved by more than 1 %; at most {MOST_ROWS}, those that moved most first. {moved} rows have moved by \
             more than 1 %, {} are new or gone.",
            escaped(IN_TREE),
            changes.len() - moved
        ),
    }
}

#[cfg(test)]
mod tests;
