//! The bug zoo: scenarios in which a few CPUs race, the conductor that lets one of them go on at a time, the search for a
//! schedule at which a deliberate fault strikes. Only in a kernel that is built for it.
//! May import: cpu, console, mem, task, trap, bringup, io, pmem, ktest.

mod conductor;
mod lanes;
mod scenarios;
mod search;

use ::zoo::{Bug, ShownBy};
use alloc::string::String;

use self::search::Failed;
use crate::bringup::options;
use crate::bringup::zoo::Zoo;
use crate::console::{self, report};

/// Switches a fault on for good: what is run next runs with it.
pub fn switch_on(bug: &'static Bug) {
    assert!(set(bug, true), "{}: the package {} has no fault \"{}\"", bug.name, bug.package, bug.fault);
    console::line(format_args!("zoo: {} is on: {}", bug.name, bug.what));
}

/// Switches a fault on or off; answers whether there is such a fault.
fn set(bug: &Bug, on: bool) -> bool {
    let word = on.then_some(bug.fault);
    match bug.package {
        "mm" => mm::mutant::Mutant::switch(word),
        "dax" => dax::mutant::Mutant::switch(word),
        "fs" => fs::mutant::Mutant::switch(word),
        "iommu" => iommu::mutant::Mutant::switch(word),
        "nvdimm" => nvdimm::mutant::Mutant::switch(word),
        "nvme" => nvme::mutant::Mutant::switch(word),
        "sched" => ::sched::mutant::Mutant::switch(word),
        _ => false,
    }
}

/// Searches for a schedule at which the fault of the options strikes, and says what it found. Without a fault: that there is
/// none. Answers whether that is so.
pub fn run() -> bool {
    let options = &options::get().zoo;
    match search(options) {
        Ok(as_expected) => {
            report!("verdict result={}", if as_expected { "good" } else { "bad" });
            as_expected
        }
        Err(failed) => {
            let (error, reason) = match failed {
                Failed::NotBegun(error) => (error, "not-searched"),
                Failed::Broken(error) => (error, "search-failed"),
            };
            console::line(format_args!("zoo: {error}"));
            report!("verdict result=bad reason={reason}");
            false
        }
    }
}

fn search(options: &Zoo) -> Result<bool, Failed> {
    search::run(scenario(options).map_err(Failed::NotBegun)?, options)
}

/// The scenario that was asked for.
fn scenario(options: &Zoo) -> Result<&'static scenarios::Scenario, String> {
    let name = match options.bug.map(|bug| bug.shown_by) {
        Some(ShownBy::Test(test)) => {
            return Err(alloc::format!("any schedule shows this one: boot with mode=test tests={test}"));
        }
        Some(ShownBy::Schedule(name)) if options.scenario.is_empty() => name,
        _ => &options.scenario,
    };
    scenarios::ALL.iter().find(|scenario| scenario.name == name).ok_or_else(|| {
        let names: alloc::vec::Vec<&str> = scenarios::ALL.iter().map(|scenario| scenario.name).collect();
        alloc::format!("there is no scenario \"{name}\" (expected one of {})", names.join(", "))
    })
}
