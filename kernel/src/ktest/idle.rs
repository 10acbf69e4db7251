//! What it costs to attach and to remove a device that nobody uses: measured by a test, and by a benchmark.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;

use dax::removal::{Method, RemovalReport};
use mm::addr::PageSize;

use crate::cpu::time;
use crate::ktest::fixtures::no_problems;
use crate::pmem::devices;

/// What attaching or removing an idle device may cost, in instructions.
const IDLE: u64 = 20_000;
/// The same for each GiB: its leaf in the direct map, where it was not kept from the time before.
const IDLE_PER_GIB: u64 = 5;

/// What attaching or removing an idle device of so many frames may cost, in instructions.
pub fn idle_bound(nr_frames: u64) -> u64 {
    IDLE + IDLE_PER_GIB * nr_frames.div_ceil(PageSize::Size1G.nr_pages())
}

/// Attaches the device of slot `slot`, without a word on the console.
pub fn attach(slot: usize) -> Result<(), String> {
    devices::attach_supervised(slot, &mut |_| Ok(())).map(drop).map_err(|error| format!("attach: {error}"))
}

/// Removes it; fails where a step met a problem.
pub fn remove(slot: usize, method: Method) -> Result<Arc<RemovalReport>, String> {
    let report = devices::remove(slot, method).map_err(|error| format!("removal: {error}"))?;
    no_problems(&report)?;
    Ok(report)
}

/// The cost of attaching and of removing a device that nobody uses; the console's work is not in it.
pub fn idle(slot: usize) -> Result<(u64, u64), String> {
    let start = time::cost();
    let attached = attach(slot);
    let cost = time::cost() - start;
    attached?;
    Ok((cost, remove(slot, Method::Ranged)?.instructions()))
}
