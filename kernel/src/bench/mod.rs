//! Benchmarks: what the verbs of memory management cost. How a figure is had is said in `figures.rs`.
//! May import: cpu, console, mem, task, io, pmem, ktest.

mod dma;
mod extents;
mod figures;
mod flush;
mod gone;
mod gup;
mod page;
mod removal;
mod sweep;
mod zap;

use alloc::format;
use alloc::string::String;

use mm::addr::PageSize;

use self::figures::{Figures, NAME};
use crate::console::{self, report};
use crate::cpu::time;
use crate::ktest::fixtures::Device;
use crate::ktest::test::Ctx;
use crate::mem::{memory, paging};
use crate::pmem::devices;

/// The groups of figures, as the boot option `bench=` names them, in the order in which they are measured.
const GROUPS: [&str; 9] = ["gup", "zap", "dma", "page", "idle", "extents", "mapped", "perframe", "gone"];
/// Sweeps for plots, which `all` does not have in it.
const SWEEP: Selection = Selection(1 << GROUPS.len());

/// Smaller free blocks than this (16 MiB) are taken out before anything is measured. What boot leaves of them depends on where
/// the kernel's image ends, and so on how long the paths are that it was built under; what it costs to take frames and to give
/// them back depends on which blocks have to be cut and can be merged, and in which range of RAM they lie.
const WHOLE: u32 = 12;
/// With less usable RAM they are left: there would not be enough for what is measured.
const ENOUGH_BYTES: u64 = 256 << 20;

/// Which groups are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Selection(u32);

impl Selection {
    /// Reads what the option `bench=` says: names of groups with `+` between them, or `all`.
    ///
    /// # Errors
    /// One line, where a word is none of them.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text == "all" {
            return Ok(Self((1 << GROUPS.len()) - 1));
        }
        if text == "sweep" {
            return Ok(SWEEP);
        }
        let bit = |word: &str| {
            let at = GROUPS.iter().position(|group| *group == word);
            at.map(|at| 1 << at).ok_or_else(|| {
                format!(
                    "option \"bench\" cannot be \"{text}\" (allowed: all, sweep, or of {} some with + between them)",
                    GROUPS.join(", ")
                )
            })
        };
        text.split('+').try_fold(0, |all, word| Ok(all | bit(word)?)).map(Self)
    }

    fn has(self, group: &str) -> bool {
        GROUPS.iter().position(|known| *known == group).is_some_and(|at| self.0 & (1 << at) != 0)
    }
}

/// Runs the benchmarks of `selection`; answers whether they could be run and every bound was met. Where costs are not
/// counted in instructions the bounds say nothing, and a bound that is missed is no failure.
pub fn run(selection: Selection) -> bool {
    if selection == SWEEP {
        let swept = sweep::run().inspect_err(|error| log::error!("sweep: {error}"));
        report!("sweep ended={}", u8::from(swept.is_ok()));
        return swept.is_ok();
    }
    if memory::ram_bytes().1 >= ENOUGH_BYTES {
        memory::reserve_fragments(WHOLE);
    }
    let mut figures = Figures::new();
    let ran = measure(&mut figures, selection);
    console::line(format_args!(""));
    console::line(format_args!("{:<NAME$} {:>12} {:>10} {:<7} Linux 6.1", "", time::cost_unit(), "bound", ""));
    figures.lines.iter().for_each(|line| console::line(format_args!("{line}")));
    let ended = u8::from(ran.is_ok());
    report!("bench figures={} missed={} ended={ended}", figures.lines.len(), figures.missed);
    if let Err(error) = &ran {
        log::error!("bench: {error}");
        report!("verdict result=bad reason=not_measured");
        return false;
    }
    let held = figures.missed == 0 || !time::is_deterministic();
    if !held {
        log::error!("bench: {} bounds were missed", figures.missed);
        report!("verdict result=bad reason={}_bounds_missed", figures.missed);
    }
    held
}

fn measure(figures: &mut Figures, selection: Selection) -> Result<(), String> {
    const GIB: u64 = 1 << 30;
    if devices::slots().is_empty() {
        return Err("no NVDIMM was found: there is nothing to measure (start with --pmem 1G)".into());
    }
    if !paging::has_gib_leaves() {
        log::warn!("this CPU has no 1 GiB leaves: figures about them are left out");
    }
    let mut begun = false;
    Device::with_leaf(&mut Ctx::default(), GIB, PageSize::Size1G, |_, device| {
        begun = true;
        let parts: [(&str, Part); 4] = [("gup", gup::run), ("zap", zap::run), ("dma", dma::run), ("page", page::run)];
        parts.into_iter().filter(|(group, _)| selection.has(group)).try_for_each(|(_, part)| part(figures, device))
    })?;
    if !begun {
        return Err("NVDIMM 0 is too small, or begins at no multiple of 1 GiB: one whole GiB is needed".into());
    }
    removals(figures, selection)
}

/// A group that measures one device.
type Part = fn(&mut Figures, &Device) -> Result<(), String>;

/// The groups that attach and remove devices by themselves.
fn removals(figures: &mut Figures, selection: Selection) -> Result<(), String> {
    let (small, large) = (0, removal::largest());
    if selection.has("dma") {
        dma::removals(figures, large)?;
    }
    if selection.has("idle") {
        // A row is named by the size: one device of each.
        let first = |slot: &usize| (0..*slot).all(|other| removal::size_name(other) != removal::size_name(*slot));
        (0..devices::slots().len()).filter(first).try_for_each(|slot| removal::idle(figures, slot))?;
        removal::spaces(figures, small)?;
        if removal::size_name(small) != removal::size_name(large) {
            removal::by_size(figures, small, large)?;
        }
    }
    if selection.has("extents") {
        extents::run(figures, large)?;
    }
    if selection.has("mapped") {
        removal::mapped_throughout(figures, large)?;
    }
    if selection.has("perframe") {
        removal::small_pages(figures, large)?;
    }
    if selection.has("gone") {
        gone::run(figures, small)?;
    }
    Ok(())
}
