//! The demonstration as a screenful: the kernel's console lines go in one by one, what a person is to see comes out.
//!
//! One row says what machine was booted, one what came of each act; a table has both removals, and the last row the verdict.
//! Warnings and errors of the kernel come through as they are, and so does whatever follows a panic. Nothing here knows of a
//! guest or of a terminal.

mod acts;
mod table;
mod words;

use self::acts::Act;
pub use self::acts::coming;
use self::table::Table;
use self::words::{group, wrap};
use crate::records::Record;
use crate::size;

/// How wide a row is at most, in characters, but for what is shown as it came.
pub const COLUMNS: usize = 80;

/// How a row, or the beginning of it, is painted where there are colours.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Tone {
    /// As all else.
    Plain,
    /// What the rows below are about.
    Heading,
    /// As it should be.
    Good,
    /// Not as it should be.
    Bad,
    /// A warning of the kernel's.
    Warning,
}

/// One row of the screen.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Row {
    /// How it is painted.
    pub tone: Tone,
    /// So many bytes of it, from the beginning.
    pub painted: usize,
    /// Without an end of line.
    pub text: String,
}

impl Row {
    /// A row in one tone.
    #[must_use]
    pub fn whole(tone: Tone, text: impl Into<String>) -> Self {
        let text = text.into();
        Self { tone, painted: text.len(), text }
    }

    /// Words behind a label, in as many rows as they need; those after the first are indented.
    fn labelled(tone: Tone, label: &str, words: &str, indent: usize) -> Vec<Self> {
        let rows = wrap(&format!("{label}{words}"), indent, COLUMNS);
        let paint = |at| if at == 0 { label.len() } else { 0 };
        rows.into_iter().enumerate().map(|(at, text)| Self { tone, painted: paint(at), text }).collect()
    }
}

/// What has been seen of a demonstration.
#[derive(Debug, Default)]
pub struct Summary {
    machine: Machine,
    is_introduced: bool,
    act: Option<Act>,
    table: Table,
    /// Lines since the act began.
    lines: usize,
    /// A panic's epitaph is coming in.
    is_dying: bool,
}

impl Summary {
    /// Takes a line of the console, and says what is to be shown then.
    pub fn line(&mut self, line: &str) -> Vec<Row> {
        self.lines += 1;
        if self.is_dying {
            self.is_dying = !line.starts_with("@epitaph");
            return vec![Row::whole(Tone::Bad, line)];
        }
        if let Some(record) = Record::parse(line) {
            return self.record(&record, line);
        }
        if let Some(text) = logged(line) {
            let tone = if text.contains(": error: ") { Tone::Bad } else { Tone::Warning };
            let is_shown = [": error: ", ": warning: "].iter().any(|level| text.contains(level));
            let rows = if is_shown { wrap(&format!("    {text}"), 8, COLUMNS) } else { Vec::new() };
            return rows.into_iter().map(|text| Row::whole(tone, text)).collect();
        }
        // Before the first act: why the kernel does not begin. Afterwards: its own table and reports.
        if self.act.is_none() && !line.is_empty() { vec![Row::whole(Tone::Plain, line)] } else { Vec::new() }
    }

    fn record(&mut self, record: &Record, line: &str) -> Vec<Row> {
        let mut rows = Vec::new();
        if matches!(record.topic.as_str(), "act" | "next" | "verdict" | "panic") {
            rows.extend(self.introduce());
        }
        match record.topic.as_str() {
            "act" => {
                rows.extend(self.close());
                self.act = Some(Act::new(record));
                self.lines = 0;
            }
            "next" => {
                rows.extend(self.close());
                rows.extend(next(record));
            }
            "table" => {
                rows.extend(self.close());
                self.table.add(record);
            }
            "verdict" => {
                rows.extend(self.close());
                rows.extend(self.table.rows());
                rows.extend(verdict(record));
            }
            "panic" => {
                rows.extend(self.cut_off());
                self.is_dying = true;
                rows.push(Row::whole(Tone::Bad, line));
            }
            topic => {
                self.machine.note(topic, record);
                rows.extend(self.act.as_mut().and_then(|act| act.note(record)).unwrap_or_default());
            }
        }
        rows
    }

    /// The guest has ended: what there is to say of what did not come to its end.
    pub fn end(&mut self) -> Vec<Row> {
        let mut rows = self.introduce();
        rows.extend(self.cut_off());
        rows
    }

    /// What goes on now, in a few words.
    #[must_use]
    pub fn under_way(&self) -> String {
        match &self.act {
            Some(act) => format!("{}... {} lines", act.label(), group(self.lines as u64)),
            None if self.lines == 0 => "the machine starts, and its firmware...".into(),
            None => format!("the kernel starts... {} lines", group(self.lines as u64)),
        }
    }

    /// What machine was booted, once.
    fn introduce(&mut self) -> Vec<Row> {
        if self.is_introduced || self.lines == 0 {
            return Vec::new();
        }
        self.is_introduced = true;
        Row::labelled(Tone::Heading, "Unplug: ", &self.machine.words(), 8)
    }

    /// The act is over, as its successor says.
    fn close(&mut self) -> Vec<Row> {
        self.act.as_mut().map(Act::close).unwrap_or_default()
    }

    /// Nothing comes any more.
    fn cut_off(&mut self) -> Vec<Row> {
        self.act.as_mut().map(Act::cut_off).unwrap_or_default()
    }
}

/// The text of a line of the kernel's log, without its time.
fn logged(line: &str) -> Option<&str> {
    let (time, text) = line.strip_prefix('[')?.split_once("] ")?;
    time.trim_start().parse::<f64>().ok().map(|_| text)
}

/// What comes next, and why it matters.
fn next(record: &Record) -> Vec<Row> {
    let field = |key| record.get(key).unwrap_or("?");
    let label = format!("Next, {} of {}, {}: ", field("n"), field("of"), acts::title(field("name")));
    Row::labelled(Tone::Heading, &label, coming(field("name")), 4)
}

fn verdict(record: &Record) -> Vec<Row> {
    match (record.get("result"), record.get("reason")) {
        (Some("good"), _) => vec![Row::whole(Tone::Good, "Verdict: good")],
        (_, reason) => {
            let reason = reason.unwrap_or("no reason given").replace('-', " ");
            Row::labelled(Tone::Bad, "Verdict: bad: ", &reason, 4)
        }
    }
}

/// The machine, as bring-up tells of it.
#[derive(Debug, Default)]
struct Machine {
    cpus: u64,
    missing: u64,
    ram_bytes: u64,
    deterministic: bool,
    nvdimms: Vec<u64>,
    modules: Vec<u64>,
    lent: Vec<u64>,
    others: Vec<&'static str>,
}

impl Machine {
    fn note(&mut self, topic: &str, record: &Record) {
        let size = record.number("size").unwrap_or(0);
        let number = |key| record.number(key).unwrap_or(0);
        match topic {
            "boot" => {
                (self.cpus, self.missing, self.ram_bytes) = (number("cpus"), number("missing"), number("ram_bytes"));
                self.deterministic = number("deterministic") == 1;
            }
            "nvdimm" => self.nvdimms.push(size),
            "dimm" => self.modules.push(size),
            "virtio_pmem" => self.lent.push(size),
            "iommu" => self.other("IOMMU"),
            "edu" => self.other("edu"),
            "nvme" => self.other("NVMe"),
            _ => {}
        }
    }

    fn other(&mut self, what: &'static str) {
        if !self.others.contains(&what) {
            self.others.push(what);
        }
    }

    fn words(&self) -> String {
        let plural = |number: u64| if number == 1 { "" } else { "s" };
        let mut words = vec![
            format!("{} CPU{}", self.cpus, plural(self.cpus)),
            // What the firmware keeps of it is less than half of one.
            format!("{} MiB RAM", self.ram_bytes / size::MIB),
        ];
        if self.missing > 0 {
            words.insert(1, format!("{} more did not start", self.missing));
        }
        for (kind, sizes) in [("NVDIMM", &self.nvdimms), ("module", &self.modules), ("virtio-pmem device", &self.lent)]
        {
            let bytes = sizes.iter().fold(0u64, |sum, size| sum.saturating_add(*size));
            if !sizes.is_empty() {
                let number = sizes.len() as u64;
                words.push(format!("{number} {kind}{} ({})", plural(number), size::show(bytes)));
            }
        }
        words.extend(self.others.iter().map(ToString::to_string));
        if self.deterministic {
            words.push("deterministic".into());
        }
        words.join(", ")
    }
}

#[cfg(test)]
mod tests;
