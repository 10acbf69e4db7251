//! The acts of the demonstration: what comes, and what came of it.

use super::{Row, Tone};
use crate::records::Record;

/// How wide an act's number and name are.
const LABEL: usize = 14;

/// What an act is called.
pub(super) fn title(name: &str) -> String {
    name.replace('_', " ")
}

/// What an act of that name shows, and why it matters.
#[must_use]
pub fn coming(name: &str) -> &'static str {
    match name {
        "by_range" => {
            "every CPU maps the NVDIMM, pins its pages, reads and writes it. Then it is pulled out, and all its translations \
             go at once: one shootdown, however large it is."
        }
        "per_frame" => {
            "the same load and the same end, but the first frames go one after the other, as they do where each counts as a \
             memory error of its own. The table at the end has both side by side."
        }
        "page" => {
            "each step of attaching and of removing fails once, and nothing may leak. Then a machine check takes one page \
             away: only the task that maps this page may notice."
        }
        "files" => {
            "a file system, used by databases, by programs that map files, and by callers, is pulled out from under them. All \
             of them have to be told, and what was synced has to be there afterwards."
        }
        "lent" => {
            "memory that the host lends (virtio-pmem), where there is some, goes through the same driver: other hardware, \
             the same rules."
        }
        "desk" => {
            "two memory modules leave without a word, as when the chassis falls off the desk: with files on the one, and \
             devices that transfer to the other. What a device says of memory that is gone may not be believed."
        }
        _ => "an act that this program does not know.",
    }
}

/// An act that has begun.
#[derive(Debug)]
pub(super) struct Act {
    name: String,
    label: String,
    records: Vec<Record>,
    is_told: bool,
}

/// What came of an act, in words.
struct Found {
    words: String,
    /// What is not as it should be, by the names of the fields.
    wrong: Vec<&'static str>,
}

impl Act {
    pub(super) fn new(record: &Record) -> Self {
        let field = |key| record.get(key).unwrap_or("?");
        let name = field("name").to_string();
        let number = format!("{}/{} ", field("n"), field("of"));
        let label = format!("{:<LABEL$}", format!("{number}{} ", title(&name)));
        Self { name, label, records: Vec::new(), is_told: false }
    }

    pub(super) fn label(&self) -> &str {
        &self.label
    }

    /// Takes a record, and says what came of the act where this is the last one that it needs.
    pub(super) fn note(&mut self, record: &Record) -> Option<Vec<Row>> {
        let topic = record.topic.as_str();
        if !matches!(topic, "round" | "page" | "files" | "lent" | "desk") {
            return None;
        }
        self.records.push(record.clone());
        let last = match self.name.as_str() {
            "by_range" | "per_frame" => "round",
            "lent" => return None,
            name => name,
        };
        (topic == last).then(|| self.close())
    }

    /// It is over.
    pub(super) fn close(&mut self) -> Vec<Row> {
        if std::mem::replace(&mut self.is_told, true) {
            return Vec::new();
        }
        let Some(Found { mut words, wrong }) = self.found() else {
            return self.row(Tone::Bad, "no outcome was told");
        };
        if wrong.is_empty() {
            return self.row(Tone::Good, &words);
        }
        words = format!("BAD: {words} (wrong: {})", wrong.join(", "));
        self.row(Tone::Bad, &words)
    }

    /// It did not come to its end.
    pub(super) fn cut_off(&mut self) -> Vec<Row> {
        if std::mem::replace(&mut self.is_told, true) {
            Vec::new()
        } else {
            self.row(Tone::Bad, "did not come to its end")
        }
    }

    fn row(&self, tone: Tone, words: &str) -> Vec<Row> {
        Row::labelled(tone, &self.label, words, LABEL)
    }

    fn find(&self, topic: &str) -> Option<&Record> {
        self.records.iter().find(|record| record.topic == topic)
    }

    fn found(&self) -> Option<Found> {
        match self.name.as_str() {
            "by_range" | "per_frame" => self.find("round").map(round),
            "page" => self.find("page").map(page),
            "files" => self.find("files").map(files),
            "lent" => Some(lent(&self.records)),
            "desk" => match (self.find("files"), self.find("desk")) {
                (Some(of_files), Some(of_desk)) => Some(desk(of_files, of_desk)),
                (Some(_), None) => None,
                (None, _) => Some(Found::of("left out: it takes two modules (--dimm), an IOMMU and edu")),
            },
            _ => None,
        }
    }
}

impl Found {
    fn of(words: impl Into<String>) -> Self {
        Self { words: words.into(), wrong: Vec::new() }
    }

    /// These have to be so many; `none` is right too, where nobody has looked.
    fn expect(mut self, record: &Record, keys: &[&'static str], wanted: u64) -> Self {
        let is_right = |key: &&&str| record.get(key) == Some("none") || record.number(key) == Some(wanted);
        self.wrong.extend(keys.iter().filter(|key| !is_right(key)));
        self
    }

    /// Each of the second has to be as many as the first.
    fn expect_all(mut self, record: &Record, pairs: &[(&'static str, &'static str)]) -> Self {
        let is_right =
            |pair: &&(&str, &str)| record.number(pair.0).is_some_and(|all| record.number(pair.1) == Some(all));
        self.wrong.extend(pairs.iter().filter(|pair| !is_right(pair)).map(|(_, some)| *some));
        self
    }
}

/// `15 of 15`, summed up.
fn share(record: &Record, pairs: &[(&str, &str)]) -> String {
    let sum = |keys: &mut dyn Iterator<Item = &str>| {
        keys.map(|key| record.number(key).unwrap_or(0)).fold(0u64, u64::saturating_add)
    };
    let all = sum(&mut pairs.iter().map(|(all, _)| *all));
    let some = sum(&mut pairs.iter().map(|(_, some)| *some));
    format!("{some} of {all}")
}

fn field<'a>(record: &'a Record, key: &str) -> &'a str {
    record.get(key).unwrap_or("?")
}

const OTHERS: (&str, &str) = ("bystanders", "went_on");
const FILE_USERS: [(&str, &str); 3] = [("programs", "sigbus"), ("databases", "caught"), ("callers", "refused")];

fn round(record: &Record) -> Found {
    let users = [("users", "sigbus")];
    let words = format!("{} users ended by SIGBUS, {} others went on", share(record, &users), share(record, &[OTHERS]));
    Found::of(words).expect_all(record, &users).expect_all(record, &[OTHERS]).expect(record, &["wrong_stamps"], 0)
}

fn page(record: &Record) -> Found {
    let words = format!(
        "{} faults, {} leaks; a lost page: its task told, healed by a write",
        field(record, "faults"),
        field(record, "leaks")
    );
    let found = Found::of(words).expect(record, &["leaks"], 0).expect_all(record, &[("users", "sigbus")]);
    found.expect(record, &["same", "told", "read_on", "io_error", "healed"], 1)
}

fn files(record: &Record) -> Found {
    let words = format!(
        "{} users told, {} others went on; {} synced records lost",
        share(record, &FILE_USERS),
        share(record, &[OTHERS]),
        field(record, "lost")
    );
    of_files(Found::of(words), record).expect(record, &["nothing"], 0)
}

fn of_files(found: Found, record: &Record) -> Found {
    let found = found.expect_all(record, &FILE_USERS).expect_all(record, &[OTHERS]);
    found.expect(record, &["wrong", "damage", "lost"], 0)
}

fn lent(records: &[Record]) -> Found {
    if records.is_empty() {
        return Found::of("left out: no virtio-pmem device (--virtio-pmem 64M adds one)");
    }
    let names: Vec<_> = records.iter().map(|record| field(record, "device")).collect();
    let found = Found::of(format!("{}: written, flushed, read again", names.join(", ")));
    records.iter().fold(found, |found, record| found.expect(record, &["same"], 1))
}

fn desk(files: &Record, desk: &Record) -> Found {
    let afterwards = match desk.number("back") {
        Some(1) => format!("put back: {} records lost", field(files, "lost")),
        _ => "the modules stay away".into(),
    };
    let blocked = field(desk, "blocked");
    let plural = if blocked == "1" { "" } else { "s" };
    let words = format!("{} users told, {blocked} transfer{plural} blocked; {afterwards}", share(files, &FILE_USERS));
    let found = of_files(Found::of(words), files).expect(desk, &["edu_refused", "kept"], 1);
    found.expect(desk, &["edu_landed"], 0)
}
