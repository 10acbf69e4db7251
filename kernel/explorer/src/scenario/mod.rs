//! The scenarios: what the CPUs do in each, and what must not happen.
//!
//! | file | what is raced |
//! |---|---|
//! | `gup` | gup-fast against what takes pages and tables away |
//! | `reach` | loads and stores against what takes translations away |
//! | `loads` | loads of an address space, and idle CPUs, against zaps |
//! | `count` | references and pins of a folio against each other, and faults of one page |
//! | `region` | registrations: uses, and who gives them back, against a revocation |
//! | `dma` | a device's transfers against what takes its translations away, on the IOMMU of `rig` |
//! | `files` | a file that is cut short, and a file system that is frozen, against tasks that use it |
//!
//! A detector is a panic: it names the CPU, the page, and what it should not have seen. The emulated machine has its own
//! (a table page that is freed while somebody may be walking there), and so has `mm` (a broken count).

mod count;
mod dma;
mod files;
mod gup;
mod loads;
mod reach;
mod region;
mod rig;

use std::rc::Rc;
use std::sync::Arc;

use mm::addr::VirtAddr;

use crate::board::{Board, Shape, Space};
use crate::conductor::Program;
use crate::fault::Fault;

/// A scenario.
#[derive(Clone, Copy)]
pub struct Scenario {
    /// Its name.
    pub name: &'static str,
    /// What it races, in a line.
    pub what: &'static str,
    /// The faults that it can make strike.
    pub faults: &'static [Fault],
    /// What it runs on.
    pub shape: Shape,
    /// Makes ready one schedule.
    pub stage: fn(&Rc<Board>) -> Stage,
}

/// One schedule, ready to begin.
pub struct Stage {
    /// By CPU.
    pub programs: Vec<Program>,
    /// The spaces that it uses: they are dropped at the end, when no CPU has them loaded any more.
    pub spaces: Vec<Arc<Space>>,
    /// Fetched ahead of need by a CPU that has a new root.
    pub fetched: Vec<VirtAddr>,
    /// What must hold once all programs have ended.
    pub finale: Box<dyn FnOnce(&Board)>,
}

impl Stage {
    /// These programs, with this space.
    fn of(spaces: Vec<Arc<Space>>, programs: Vec<Program>) -> Self {
        Self { programs, spaces, fetched: Vec::new(), finale: Box::new(|_| ()) }
    }
    /// And every CPU may fetch these pages as soon as it can.
    fn fetching(self, fetched: Vec<VirtAddr>) -> Self {
        Self { fetched, ..self }
    }
    /// And this must hold at the end.
    fn ends(self, finale: impl FnOnce(&Board) + 'static) -> Self {
        Self { finale: Box::new(finale), ..self }
    }
}

/// All of them, those of one file side by side.
pub fn all() -> impl Iterator<Item = &'static Scenario> {
    gup::ALL
        .iter()
        .chain(reach::ALL)
        .chain(loads::ALL)
        .chain(count::ALL)
        .chain(region::ALL)
        .chain(dma::ALL)
        .chain(files::ALL)
}

/// The scenario of this name.
pub fn find(name: &str) -> Option<&'static Scenario> {
    all().find(|scenario| scenario.name == name)
}

/// Those that make `fault` strike.
pub fn of(fault: Fault) -> impl Iterator<Item = &'static Scenario> {
    all().filter(move |scenario| scenario.faults.contains(&fault))
}
