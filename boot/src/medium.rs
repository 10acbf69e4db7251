//! What lies in an NVDIMM's backing file: looked at before anything writes, and listed as `ndctl list` would.

use crate::backing::LABEL_BYTES;
use crate::size::MIB;
use anyhow::{Context, Result, bail, ensure};
use media::namespace::{Listing, Namespace, list};
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
struct Backing {
    file: File,
    len_bytes: u64,
}

impl Medium for Backing {
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

/// Looks at a file: at the places of labels, info blocks and signatures and, where nothing is found, at every byte that is
/// no hole.
///
/// # Errors
/// It cannot be opened, or is no regular file.
pub fn look(path: &Path) -> Result<Contents> {
    let file = File::open(path).with_context(|| format!("{} cannot be opened", path.display()))?;
    let meta = file.metadata()?;
    ensure!(meta.is_file(), "{} is not a regular file", path.display());
    let backing = Backing { file, len_bytes: meta.len() };
    let label_bytes = label_bytes(&backing);
    let range_bytes = backing.len_bytes.saturating_sub(label_bytes);
    let range = Part::new(&backing, 0, range_bytes).context("a file that shrinks")?;
    let labels = Part::new(&backing, range_bytes, backing.len_bytes - range_bytes);
    let listing = list(&range, labels.as_ref().map(|labels| labels as &dyn Medium), 0);
    let mut findings = Findings::default();
    if listing.is_labelled {
        for namespace in &listing.namespaces {
            let what = if namespace.label.is_some() { What::Namespace(namespace.mode()) } else { What::Labels };
            findings.add(what, namespace.start);
            inside(&range, namespace).iter().for_each(|found| findings.add(found.what, found.at));
        }
        // Labels of which none can be used were somebody's all the same.
        if listing.namespaces.is_empty() && !listing.notices.is_empty() {
            findings.add(What::Labels, range_bytes);
        }
    }
    if findings.is_empty() {
        findings = probe(&range);
    }
    if findings.is_empty()
        && let Some(found) = any_data(&backing, range_bytes)?
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
fn label_bytes(backing: &Backing) -> u64 {
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
fn any_data(backing: &Backing, end: u64) -> Result<Option<media::probe::Found>> {
    let mut at = 0;
    while at < end {
        // A file system that cannot tell has no holes.
        let data = match rustix::fs::seek(&backing.file, SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(rustix::io::Errno::NXIO) => return Ok(None),
            Err(_) => at,
        };
        let hole = rustix::fs::seek(&backing.file, SeekFrom::Hole(data)).unwrap_or(end).clamp(data, end);
        if let Some(found) = first_data(backing, data, hole) {
            return Ok(Some(found));
        }
        at = hole.max(data + 1);
    }
    Ok(None)
}

/// Refuses to write over what somebody may still want.
///
/// # Errors
/// One line that says what lies in the file.
pub fn refuse(path: &Path) -> Result<()> {
    let Contents { findings, .. } = look(path)?;
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
    let contents = look(path)?;
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
    use media::info::Info;
    use media::namespace::Mode;
    let mut fields = Vec::new();
    let mut text = |key: &str, value: String| fields.push(format!("    \"{key}\":{}", serde_json::Value::from(value)));
    let (id, mode) = (namespace.id, namespace.mode());
    text("dev", format!("namespace0.{id}"));
    text("mode", mode.name().into());
    let pages = match namespace.info {
        Some(Info::Pages(pages)) => Some(pages),
        _ => None,
    };
    pages.into_iter().for_each(|pages| text("map", pages.map.name().into()));
    fields.push(format!("    \"size\":{}", namespace.size()));
    let mut text = |key: &str, value: String| fields.push(format!("    \"{key}\":{}", serde_json::Value::from(value)));
    namespace.uuid().into_iter().for_each(|uuid| text("uuid", uuid.to_string()));
    let raw = namespace.raw_uuid().filter(|raw| namespace.uuid() != Some(*raw));
    raw.into_iter().for_each(|uuid| text("raw_uuid", uuid.to_string()));
    if mode == Mode::DevDax {
        text("chardev", format!("dax0.{id}"));
    } else {
        fields.push(format!("    \"sector_size\":{}", namespace.sector_bytes()));
    }
    pages.into_iter().for_each(|pages| fields.push(format!("    \"align\":{}", pages.align)));
    let mut text = |key: &str, value: String| fields.push(format!("    \"{key}\":{}", serde_json::Value::from(value)));
    if mode != Mode::DevDax {
        let number = if id == 0 { String::new() } else { format!(".{id}") };
        text("blockdev", format!("pmem0{number}{}", if mode == Mode::Sector { "s" } else { "" }));
    }
    if !namespace.name().is_empty() {
        text("name", namespace.name().into());
    }
    format!("  {{\n{}\n  }}", fields.join(",\n"))
}

#[cfg(test)]
mod tests;
