//! What lies in an NVDIMM's backing file: looked at before anything writes, and listed as `ndctl list` would.

use crate::backing::LABEL_BYTES;
use crate::size::MIB;
use anyhow::{Context, Result, bail, ensure};
use media::namespace::{Field, Listing, Namespace, list};
use media::probe::{Findings, What, first_data, probe};
use media::{Medium, Part, Unreadable};
use rustix::fs::SeekFrom;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The largest label area that is looked for at the end of a file.
const LARGEST_LABELS: u64 = 2 * MIB;

/// A backing file, of which nothing is changed.
struct Backing<'a> {
    file: &'a File,
    len_bytes: u64,
}

impl Medium for Backing<'_> {
    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Unreadable> {
        self.file.read_exact_at(into, offset).map_err(|_| Unreadable)
    }
}

/// What is known of a backing file.
pub struct Contents {
    /// Its namespaces.
    pub listing: Listing,
    /// Where the labels begin; so many bytes does the NVDIMM have.
    pub range_bytes: u64,
    /// What lies there. Empty: nothing, not a single byte.
    pub findings: Findings,
}

/// Opens a file to look at it. What would wait for somebody at its other end is not opened.
///
/// # Errors
/// It cannot be opened, or is no regular file.
fn open(path: &Path) -> Result<File> {
    let cannot = || format!("{} cannot be opened", path.display());
    ensure!(path.metadata().with_context(cannot)?.is_file(), "{} is not a regular file", path.display());
    File::open(path).with_context(cannot)
}

/// Looks at a file: at the places of labels, info blocks and signatures and, where nothing is found, at every byte that is
/// no hole.
///
/// # Errors
/// Its size cannot be had.
pub fn look(file: &File) -> Result<Contents> {
    let backing = Backing { file, len_bytes: file.metadata()?.len() };
    let label_bytes = label_bytes(&backing);
    let range_bytes = backing.len_bytes.saturating_sub(label_bytes);
    let range = Part::new(&backing, 0, range_bytes).context("a file that shrinks")?;
    let labels = Part::new(&backing, range_bytes, backing.len_bytes - range_bytes);
    let listing = list(&range, labels.as_ref().map(|labels| labels as &dyn Medium), 0);
    let mut findings = Findings::default();
    if listing.is_labelled {
        for namespace in &listing.namespaces {
            match namespace.label {
                Some(_) => findings.add(What::Namespace(namespace.mode()), namespace.start),
                None => findings.add(What::Labels, range_bytes),
            }
            inside(&range, namespace).iter().for_each(|found| findings.add(found.what, found.at));
        }
    }
    if findings.is_empty() {
        findings = probe(&range);
    }
    // Where no labels are, their place is as good as any other for somebody's bytes.
    let end = if listing.is_labelled { range_bytes } else { backing.len_bytes };
    if findings.is_empty()
        && let Some(found) = any_data(&backing, end)
    {
        findings.add(found.what, found.at);
    }
    Ok(Contents { listing, range_bytes, findings })
}

/// What lies in a namespace, at its places in the range.
fn inside(range: &dyn Medium, namespace: &Namespace) -> Findings {
    let Some(part) = Part::new(range, namespace.start, namespace.len_bytes) else { return Findings::default() };
    let mut findings = Findings::default();
    probe(&part).iter().for_each(|found| findings.add(found.what, found.at.saturating_add(namespace.start)));
    findings
}

/// How many bytes of labels are at the end of a file: as many as an index block is found behind, else what QEMU is asked
/// for here.
fn label_bytes(backing: &Backing<'_>) -> u64 {
    let mut sizes =
        std::iter::successors(Some(LABEL_BYTES), |size| Some(size * 2)).take_while(|size| *size <= LARGEST_LABELS);
    let has_labels = |size: &u64| {
        let start = backing.len_bytes.checked_sub(*size);
        let area = start.and_then(|start| Part::new(backing, start, *size));
        area.is_some_and(|area| media::label::read(&area).is_some())
    };
    sizes.find(has_labels).unwrap_or(LABEL_BYTES.min(backing.len_bytes))
}

/// The first byte below `end` that is not zero and in no hole.
fn any_data(backing: &Backing<'_>, end: u64) -> Option<media::probe::Found> {
    let mut at = 0;
    while at < end {
        // A file system that cannot tell has no holes.
        let data = match rustix::fs::seek(backing.file, SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(rustix::io::Errno::NXIO) => return None,
            Err(_) => at,
        };
        let hole = rustix::fs::seek(backing.file, SeekFrom::Hole(data)).unwrap_or(end).clamp(data, end);
        if let Some(found) = first_data(backing, data, hole) {
            return Some(found);
        }
        at = hole.max(data + 1);
    }
    None
}

/// Refuses to write over what somebody may still want.
///
/// # Errors
/// One line that says what lies in the file.
pub fn refuse(path: &Path) -> Result<()> {
    refuse_open(&open(path)?, path)
}

/// The same for a file that is open, so that it is the one that is written to.
pub(crate) fn refuse_open(file: &File, path: &Path) -> Result<()> {
    let Contents { findings, .. } = look(file)?;
    if !findings.is_empty() {
        bail!("{} holds {findings}: nothing was written (--force writes over it)", path.display());
    }
    Ok(())
}

/// The job `media`: what lies in `path`. The namespaces go to `out` in the form of `ndctl list`, and what was found in
/// them, or instead of them, to standard error. Status 1 where something is wrong and left alone.
///
/// # Errors
/// The file cannot be looked at.
pub fn job(path: &Path, out: &mut impl Write) -> Result<u8> {
    let contents = look(&open(path)?)?;
    let name = path.display();
    write!(out, "{}", as_json(&contents.listing))?;
    if !contents.findings.is_empty() {
        eprintln!("run-qemu: {name} holds {}", contents.findings);
    }
    for notice in &contents.listing.notices {
        eprintln!("run-qemu: {name}: {notice}");
    }
    Ok(u8::from(!contents.listing.notices.is_empty()))
}

/// The namespaces as `ndctl list --namespaces` prints them for the first region, with `raw_uuid` as its `--verbose` adds.
fn as_json(listing: &Listing) -> String {
    let objects: Vec<_> = listing.namespaces.iter().map(object).collect();
    if objects.is_empty() { "[\n]\n".into() } else { format!("[\n{}\n]\n", objects.join(",\n")) }
}

fn object(namespace: &Namespace) -> String {
    let field = |(key, value)| match value {
        Field::Text(text) => format!("    \"{key}\":{}", serde_json::Value::from(text)),
        Field::Number(number) => format!("    \"{key}\":{number}"),
    };
    let fields: Vec<_> = namespace.fields(0).into_iter().map(field).collect();
    format!("  {{\n{}\n  }}", fields.join(",\n"))
}

#[cfg(test)]
mod tests;
