//! Linux's figures, beside ours: those that `bench --linux` left, or else those that are kept in the tree.

use crate::bench::figures::Figures;
use crate::peer::{Series, rows};
use anyhow::{Context, Result};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// A kernel, and what was measured of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Peer {
    /// Its release.
    pub kernel: String,
    /// Its figures by name.
    pub rows: BTreeMap<String, f64>,
}

/// The peers, and where their figures come from.
#[derive(Clone, Debug, PartialEq)]
pub struct Peers {
    /// The kernels.
    pub kernels: Vec<Peer>,
    /// How their figures were had.
    pub source: String,
}

/// What both sides have: words for people, and Linux's name, to which ours is [listed](rows).
pub const PAIRS: [(&str, &str); 9] = [
    ("pin one 4 KiB page, called", "pin_4k"),
    ("pin one page under a 2 MiB leaf, called", "pin_2m"),
    ("pin one page under a 1 GiB leaf, called", "pin_1g"),
    ("unpin one 4 KiB page", "unpin_4k"),
    ("pin 512 over 4 KiB leaves, array, a page", "pin_512_of_4k_each"),
    ("pin 512 under 2 MiB, array, a page", "pin_512_of_2m_each"),
    ("unmap 1 GiB of 4 KiB pages, a page", "unmap_1g_of_4k_each"),
    ("remove 4 GiB mapped at 4 KiB, a page", "removal_mapped_4k_4g_each"),
    ("memory_failure, called (Linux: page stays mapped)", "memory_failure_late"),
];

impl Peers {
    /// What `bench --linux` left in `target/peer`, if it did for a kernel; else what the tree keeps.
    ///
    /// # Errors
    /// One line about a file that is damaged.
    pub fn find() -> Result<Self> {
        let files = Series::ALL.map(|series| series.results());
        let kernels =
            files.iter().filter(|file| file.exists()).map(|file| Peer::read(file)).collect::<Result<Vec<_>>>()?;
        if !kernels.is_empty() {
            let source = "measured on this machine by <code>./run-qemu.sh bench --linux</code>";
            return Ok(Self { kernels, source: source.into() });
        }
        Self::parse(include_str!("../../report/linux.json")).context("boot/report/linux.json")
    }

    fn parse(text: &str) -> Result<Self> {
        let value: Value = serde_json::from_str(text)?;
        let kernels = value["kernels"].as_array().context("it has no kernels")?;
        let source = value["source"].as_str().context("it has no source")?;
        Ok(Self { kernels: kernels.iter().map(Peer::of).collect::<Result<_>>()?, source: source.into() })
    }
}

impl Peer {
    fn read(file: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
        let value = serde_json::from_str(&text).with_context(|| format!("{} is damaged", file.display()))?;
        Self::of(&value).with_context(|| format!("{} is damaged", file.display()))
    }

    fn of(value: &Value) -> Result<Self> {
        let kernel = value["kernel"].as_str().context("it names no kernel")?;
        let rows = value["rows"].as_object().context("it has no rows")?;
        let row = |(name, value): (&String, &Value)| {
            Ok((name.clone(), value.as_f64().with_context(|| format!("the row {name} is no number"))?))
        };
        Ok(Self { kernel: kernel.into(), rows: rows.iter().map(row).collect::<Result<_>>()? })
    }
}

/// For each pair that both sides have: the words, our figure, and each kernel's.
#[must_use]
pub fn compared(ours: &Figures, peers: &Peers) -> Vec<(String, Vec<Option<f64>>)> {
    let pair = |(words, name): &(&str, &str)| {
        let own = ours.get(rows::ours_of(name)?)?.value?;
        let theirs: Vec<_> = peers.kernels.iter().map(|peer| peer.rows.get(*name).copied()).collect();
        let all = std::iter::once(Some(own)).chain(theirs).collect();
        Some(((*words).to_string(), all))
    };
    PAIRS.iter().filter_map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_has_both_kernels_with_all_rows() {
        let peers = Peers::parse(include_str!("../../report/linux.json")).unwrap();
        assert_eq!(peers.kernels.len(), 2);
        for peer in &peers.kernels {
            assert!(PAIRS.iter().all(|(_, name)| peer.rows.contains_key(*name)), "{}", peer.kernel);
        }
        assert!(peers.kernels[0].kernel.starts_with("6.1.") && peers.kernels[1].kernel.starts_with("6.12."));
    }

    #[test]
    fn a_damaged_file_is_one_line() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("linux-6.1.json");
        for text in ["", "{}", r#"{"kernel": "6.1"}"#, r#"{"kernel": "6.1", "rows": {"pin_4k": "many"}}"#] {
            std::fs::write(&file, text).unwrap();
            let error = format!("{:#}", Peer::read(&file).expect_err("it is damaged"));
            assert!(error.contains("linux-6.1.json is damaged") && !error.contains('\n'), "{error}");
        }
    }
}
