//! Benchmarks: what the verbs of memory management cost. How a figure is had is said in `figures.rs`.
//! May import: cpu, console, mem, task, pmem, ktest.

mod figures;
mod flush;
mod gup;
mod removal;
mod zap;

use alloc::string::String;

use mm::addr::PageSize;

use self::figures::Figures;
use crate::console::{self, report};
use crate::cpu::time;
use crate::ktest::fixtures::Device;
use crate::ktest::test::Ctx;
use crate::mem::paging;
use crate::pmem::devices;

/// Runs all benchmarks; answers whether they could be run and every bound was met. Where costs are not counted in
/// instructions the bounds say nothing, and a bound that is missed is no failure.
pub fn run() -> bool {
    let mut figures = Figures::default();
    let ran = measure(&mut figures);
    console::line(format_args!(""));
    console::line(format_args!("{:<36} {:>12} {:>9} {:<7} Linux 6.1", "", time::cost_unit(), "bound", ""));
    figures.lines.iter().for_each(|line| console::line(format_args!("{line}")));
    report!("bench figures={} missed={}", figures.lines.len(), figures.missed);
    if let Err(error) = &ran {
        log::error!("bench: {error}");
    }
    let held = figures.missed == 0 || !time::is_deterministic();
    if !held {
        log::error!("bench: {} bounds were missed", figures.missed);
        report!("verdict result=bad reason={}_bounds_missed", figures.missed);
    }
    ran.is_ok() && held
}

fn measure(figures: &mut Figures) -> Result<(), String> {
    const GIB: u64 = 1 << 30;
    if devices::slots().is_empty() {
        return Err("no NVDIMM was found: there is nothing to measure (start with --pmem 1G)".into());
    }
    let whole = Device::with_leaf(&mut Ctx::default(), GIB, PageSize::Size1G, |_, device| {
        gup::run(figures, device)?;
        zap::run(figures, device)
    });
    whole?;
    if figures.lines.is_empty() {
        return Err("NVDIMM 0 is too small, or begins at no multiple of 1 GiB: one whole GiB is needed".into());
    }
    if !paging::has_gib_leaves() {
        log::warn!("this CPU has no 1 GiB leaves: figures about them are left out");
    }
    (0..devices::slots().len()).try_for_each(|at| removal::run(figures, at))
}
