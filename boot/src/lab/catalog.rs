//! The labs: what of the kernel each takes out, and what each point is given for.

mod metadata;
mod paging;
mod pinning;
mod removal;

use crate::paths;
use std::path::PathBuf;

/// A lab.
#[derive(Debug)]
pub struct Lab {
    /// Its number, from 1.
    pub number: u32,
    /// Its page is `docs/labs/N-NAME.md`, and what belongs to it is in `boot/labs/N-NAME`.
    pub name: &'static str,
    /// What it is about.
    pub title: &'static str,
    /// How long it takes a student who has read the pages that it names, in minutes.
    pub minutes: u32,
    /// What is taken out of the kernel; nothing where the student answers questions.
    pub parts: &'static [Place],
    /// The in-kernel tests that are run, with `*` for any text; empty where no point needs a guest.
    pub guest: &'static str,
    /// Does that guest need an IOMMU and a device with a DMA engine?
    pub devices: bool,
    /// What points are given for.
    pub points: &'static [Point],
}

/// Where a part is.
#[derive(Debug)]
pub struct Place {
    /// What its comments call it; its starting point is the file `start/NAME.rs`, with hyphens for spaces.
    pub name: &'static str,
    /// Its source, from the project's root.
    pub file: &'static str,
}

/// What points are given for.
#[derive(Debug)]
pub struct Point {
    /// What is as it should be where they are had.
    pub what: &'static str,
    /// How many.
    pub points: u32,
    /// All of these have to pass.
    pub check: Check,
    /// What a student is told who loses them.
    pub hint: &'static str,
}

/// How it is looked at.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Check {
    /// Tests of `mm` on the emulated machine, as `file::test`.
    Host(&'static [&'static str]),
    /// Models of `mm` under shuttle, likewise: many interleavings.
    Model(&'static [&'static str]),
    /// Models of `mm` under loom, likewise: weak ordering, too.
    Loom(&'static [&'static str]),
    /// In-kernel tests.
    Guest(&'static [&'static str]),
    /// Answers, by their names, with spaces between them.
    Answers(&'static str),
}

/// All of them, in their order.
pub const LABS: [&Lab; 8] = [
    &paging::WALK_BY_HAND,
    &paging::WALK,
    &paging::INSTALL_AND_ZAP,
    &paging::WAIT,
    &pinning::LOOK_AGAIN,
    &metadata::ON_DEMAND,
    &removal::RANGED,
    &removal::REVOKE,
];

impl Lab {
    /// The lab of that number.
    #[must_use]
    pub fn find(number: u32) -> Option<&'static Self> {
        LABS.into_iter().find(|lab| lab.number == number)
    }

    /// All points that there are.
    #[must_use]
    pub fn most(&self) -> u32 {
        self.points.iter().map(|point| point.points).sum()
    }

    /// Its number and name, as its files have it.
    #[must_use]
    pub fn slug(&self) -> String {
        format!("{}-{}", self.number, self.name)
    }

    /// Its page, from the project's root.
    #[must_use]
    pub fn page(&self) -> PathBuf {
        format!("docs/labs/{}.md", self.slug()).into()
    }

    /// Where what belongs to it is.
    #[must_use]
    pub fn directory(&self) -> PathBuf {
        paths::root().join("boot/labs").join(self.slug())
    }

    /// The files that its parts are in, each once.
    #[must_use]
    pub fn files(&self) -> Vec<&'static str> {
        let mut files: Vec<_> = self.parts.iter().map(|part| part.file).collect();
        files.dedup();
        files
    }
}

impl Place {
    /// Its starting point, in the lab's directory.
    #[must_use]
    pub fn start(&self, lab: &Lab) -> PathBuf {
        lab.directory().join("start").join(format!("{}.rs", self.name.replace(' ', "-")))
    }
}
