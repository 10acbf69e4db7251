//! What the peer's guest printed, and the file in which it is kept.

use super::packages::Kernel;
use super::{machine, rows};
use crate::records;
use crate::whole;
use anyhow::{Result, bail};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// One figure, in guest instructions; where `counted` is `commands`, in invalidations of the IOTLB.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// The median.
    pub value: f64,
    /// The least and the most.
    pub least_most: (f64, f64),
    /// Of how many.
    pub turns: u64,
    /// What was counted: `call`, `caller`, `tasks`, `elapsed` or `commands` (see `boot/peer/guest/peerbench.c`).
    pub counted: String,
}

/// A kernel that was measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// As `uname -r` says it.
    pub kernel: String,
    /// The package and its version.
    pub package: String,
    /// What the figures depend on ([`machine::recipe`]).
    recipe: String,
    /// The version of QEMU.
    pub qemu: String,
    /// The figures, by the peer's names.
    pub figures: BTreeMap<String, Figure>,
}

impl Measured {
    /// Takes the console of a guest apart.
    ///
    /// # Errors
    /// When it did not do all that it had to: one line.
    pub fn of(lines: &[String], kernel: &Kernel, recipe: String) -> Result<Self> {
        let measured = Self {
            kernel: kernel.release.clone(),
            package: format!("{} {}", kernel.image.name, kernel.image.version),
            recipe,
            qemu: machine::qemu_version()?,
            figures: figures(lines)?,
        };
        if let Some(absent) = measured.absent() {
            bail!("Linux {} was not measured whole: no figure for {absent}", kernel.release);
        }
        Ok(measured)
    }

    /// A figure that the table wants and that is not there.
    fn absent(&self) -> Option<&'static str> {
        rows::ROWS.iter().filter_map(|row| row.linux).find(|name| !self.figures.contains_key(*name))
    }

    /// What was kept in a file, if it is whole and was made by this recipe; if not, the file goes.
    pub fn kept(file: &Path, recipe: &str) -> Option<Self> {
        let text = fs::read_to_string(file).ok()?;
        let kept = serde_json::from_str(&text).ok().and_then(|value| Self::from_json(&value));
        let good = kept.filter(|kept| kept.recipe == recipe && kept.absent().is_none());
        if good.is_none() {
            // What cannot be removed is written over.
            let _ = fs::remove_file(file);
        }
        good
    }

    /// Keeps it in a file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn keep(&self, file: &Path) -> Result<()> {
        whole::write(file, &format!("{:#}\n", self.to_json()))
    }

    fn to_json(&self) -> Value {
        let of = |pick: &dyn Fn(&Figure) -> Value| -> Map<String, Value> {
            self.figures.iter().map(|(name, figure)| (name.clone(), pick(figure))).collect()
        };
        json!({
            "kernel": self.kernel, "package": self.package, "qemu": self.qemu, "recipe": self.recipe,
            "unit": "instructions",
            "rows": of(&|figure| json!(figure.value)),
            "of": of(&|figure| {
                let (least, most) = figure.least_most;
                json!({"least": least, "most": most, "turns": figure.turns, "counted": figure.counted})
            }),
        })
    }

    fn from_json(value: &Value) -> Option<Self> {
        let text = |name: &str| value[name].as_str().map(String::from);
        let figure = |(name, figure): (&String, &Value)| {
            let of = &value["of"][name];
            let figure = Figure {
                value: figure.as_f64()?,
                least_most: (of["least"].as_f64()?, of["most"].as_f64()?),
                turns: of["turns"].as_u64()?,
                counted: of["counted"].as_str()?.into(),
            };
            Some((name.clone(), figure))
        };
        Some(Self {
            kernel: text("kernel")?,
            package: text("package")?,
            recipe: text("recipe")?,
            qemu: text("qemu")?,
            figures: value["rows"].as_object()?.iter().map(figure).collect::<Option<_>>()?,
        })
    }
}

/// The figures among a console's lines.
fn figures(lines: &[String]) -> Result<BTreeMap<String, Figure>> {
    let (mut figures, mut done) = (BTreeMap::new(), 0);
    for record in records::of_topic(lines, "peer") {
        if let Some(what) = record.get("failed") {
            bail!("Linux could not be measured: {what} failed in its guest");
        }
        done += usize::from(record.get("done").is_some());
        let Some(name) = record.get("name") else { continue };
        let number = |key: &str| record.get(key).and_then(|value| value.parse::<f64>().ok());
        let (Some(value), Some(least), Some(most), Some(turns), Some(counted)) =
            (number("value"), number("least"), number("most"), record.number("turns"), record.get("counted"))
        else {
            bail!("Linux's guest printed a figure that cannot be read: {record}");
        };
        figures.insert(name.into(), Figure { value, least_most: (least, most), turns, counted: counted.into() });
    }
    if done != machine::Boot::ALL.len() {
        let last = lines.iter().rev().find(|line| !line.is_empty()).map_or("nothing", String::as_str);
        bail!("Linux's guest ended before it had measured everything; its last line: {last}");
    }
    rows::derive(&mut figures);
    Ok(figures)
}

#[cfg(test)]
pub mod tests {
    use super::*;

    const LINE: &str = "@peer name=pin_512_of_4k_each value=244.40 least=244.39 most=249.50 turns=50 counted=call";

    /// A kernel with a figure for every row.
    pub fn measured(value: f64) -> Measured {
        let figure = Figure { value, least_most: (value, value + 1.0), turns: 3, counted: "caller".into() };
        let names = rows::ROWS.iter().filter_map(|row| row.linux);
        Measured {
            kernel: "6.1.0-1-amd64".into(),
            package: "linux-image-6.1.0-1-amd64 6.1.1-1".into(),
            recipe: "r".into(),
            qemu: "7.2".into(),
            figures: names.map(|name| (name.to_string(), figure.clone())).collect(),
        }
    }

    fn lines(lines: &[&str]) -> Vec<String> {
        lines.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_peers_lines_are_read() {
        let console = lines(&[
            "@peer kernel=6.1 cpus=1",
            "[    2.0] noise",
            LINE,
            "@peer done=small",
            "[ 3] Power down",
            "@peer done=large",
            "@peer name=iommu_unmap_1g_commands value=1.00 least=1.00 most=1.00 turns=1 counted=commands",
            "@peer done=iommu",
        ]);
        let figures = figures(&console).expect("good lines");
        let figure = &figures["pin_512_of_4k_each"];
        assert_eq!((figure.value, figure.least_most, figure.turns), (244.4, (244.39, 249.5), 50));
        assert_eq!((&*figure.counted, &*figures["iommu_unmap_1g_commands"].counted), ("call", "commands"));
    }

    #[test]
    fn what_is_not_whole_is_one_line() {
        for (console, word) in [
            (&[LINE][..], "ended before"),
            (&[LINE, "@peer done=small"], "ended before"),
            (&[LINE, "@peer done=small", "@peer done=large"], "ended before"),
            (&["@peer failed=not_strict_but_DMA-FQ"], "not_strict_but_DMA-FQ failed"),
            (&[], "nothing"),
            (&[LINE, "@peer failed=no_region errno=2"], "no_region failed"),
            (&["@peer name=pin_4k value=77x least=1 most=2 turns=3 counted=call"], "value=77x"),
            (&["@peer name=pin_4k value=77"], "cannot be read"),
        ] {
            let error = figures(&lines(console)).expect_err("it is not whole").to_string();
            assert!(error.contains(word) && error.lines().count() == 1, "{console:?}: {error}");
        }
    }

    #[test]
    fn a_kept_file_is_used_only_where_it_is_whole_and_of_the_same_recipe() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let file = directory.path().join("linux-6.1.json");
        assert_eq!(Measured::kept(&file, "r"), None);
        let whole = measured(748.0);
        whole.keep(&file).expect("written");
        assert_eq!(Measured::kept(&file, "r"), Some(whole.clone()));
        let json: Value = serde_json::from_str(&fs::read_to_string(&file).expect("read")).expect("JSON");
        assert_eq!((&json["kernel"], &json["rows"]["pin_4k"]), (&json!("6.1.0-1-amd64"), &json!(748.0)));
        assert_eq!(Measured::kept(&file, "of another package"), None);
        assert!(!file.exists());
        let mut lacking = whole;
        lacking.figures.remove("pin_4k");
        lacking.keep(&file).expect("written");
        assert_eq!(Measured::kept(&file, "r"), None);
        fs::write(&file, "{\"kernel\":").expect("written");
        assert_eq!(Measured::kept(&file, "r"), None);
        assert!(!file.exists());
    }
}
