//! The in-kernel tests as tests of the host: one boot for each configuration, one test here for each test there.
//!
//! A test that the kernel planned and did not report, because it crashed for instance, is a failure here, and so is a
//! report with anything else wrong. So is a test that could run on none of the machines: nobody would notice it.

use boot::backing::{Dimm, Nvdimm, VirtioPmem};
use boot::cli::Mode;
use boot::ktap::{Report, Test, Verdict};
use boot::machine::{DEFAULT_NVME_BYTES, Machine};
use boot::paths::Profile;
use boot::size::{GIB, MIB, TIB};
use boot::{Builder, Error, Outcome, Status};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

/// Guests that run at the same time.
const AT_ONCE: usize = 7;

/// The machines on which the in-kernel tests run, each with a name that its tests carry.
fn configurations() -> Vec<(&'static str, Machine)> {
    // Patience alone: the guests share the host's cores with each other and with whatever else runs there.
    let base = Machine { mode: Mode::Test, timeout: Some(Duration::from_secs(900)), ..Machine::default() };
    let mut all = vec![
        ("4cpu", base.clone()),
        ("1cpu", Machine { smp: 1, ..base.clone() }),
        ("no-nvdimm", Machine { smp: 2, pmem: vec![], ..base.clone() }),
        (
            "two-nvdimms",
            Machine { smp: 2, pmem: vec![Nvdimm::temporary(GIB), Nvdimm::temporary(64 * MIB)], ..base.clone() },
        ),
    ];
    all.push(("virtio-pmem", Machine { smp: 2, virtio_pmem: vec![VirtioPmem::new(64 * MIB)], ..base.clone() }));
    let disk = Some(DEFAULT_NVME_BYTES);
    all.push(("deterministic-disk", Machine { smp: 2, deterministic: true, nvme: disk, ..base.clone() }));
    let none = Machine { iommu: false, edu: false, nvme: Some(0), ..base.clone() };
    all.push(("no-dma", Machine { smp: 1, append: vec!["tests=dma.*".into()], ..none }));
    // Four leave for good, without a word.
    let dimms = vec![Dimm::temporary(64 * MIB); 5];
    let leaving = Machine { smp: 2, dimms, append: vec!["tests=depart.*".into()], ..base.clone() };
    all.push(("dimm", leaving.clone()));
    all.push(("dimm-deterministic", Machine { deterministic: true, ..leaving }));
    all.push(("deterministic", Machine { smp: 2, deterministic: true, ..base.clone() }));
    // With trace points: their own tests, which no other kernel has, and what races with interrupts between CPUs.
    let traced = Machine { build: Profile::Trace, append: vec!["tests=trace.*".into()], ..base.clone() };
    all.push(("trace", traced.clone()));
    all.push(("trace-deterministic", Machine { smp: 2, deterministic: true, ..traced }));
    // What an idle device takes, where it would show if it grew with the device.
    let idle =
        Machine { pmem: vec![Nvdimm::temporary(6 * TIB)], append: vec!["tests=dax.idle.*".into()], ..base.clone() };
    all.push(("6-tib", idle));
    // Memory that takes no writes: nearly all tests of a device say that they cannot run there, and do not fail.
    let unarmed = Machine { smp: 1, pmem: vec![Nvdimm::temporary(64 * MIB).not_armed()], ..base.clone() };
    all.push(("unarmed", unarmed));
    if std::env::var_os("UNPLUG_FULL").is_some() {
        all.push(("deterministic-4cpu", Machine { deterministic: true, ..base.clone() }));
        all.push(("8cpu", Machine { smp: 8, ..base.clone() }));
        all.extend(long_stress(&base));
    }
    all
}

/// More than a million gup calls against map, unmap and removal, by 2, 4 and 8 CPUs in both modes.
fn long_stress(base: &Machine) -> impl Iterator<Item = (&'static str, Machine)> {
    let append = vec!["tests=stress.*".into(), "stress=full".into()];
    let base = Machine { append, timeout: Some(Duration::from_secs(3600)), ..base.clone() };
    let sizes = [
        ("stress-2cpu", 2, false),
        ("stress-4cpu", 4, false),
        ("stress-8cpu", 8, false),
        ("stress-2cpu-deterministic", 2, true),
        ("stress-4cpu-deterministic", 4, true),
        ("stress-8cpu-deterministic", 8, true),
    ];
    sizes.into_iter().map(move |(name, smp, deterministic)| (name, Machine { smp, deterministic, ..base.clone() }))
}

/// A name says which machine a failed test ran on.
fn have_names_of_their_own(all: &[(&'static str, Machine)]) -> bool {
    let names: BTreeSet<_> = all.iter().map(|(name, _)| name).collect();
    names.len() == all.len()
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    assert!(have_names_of_their_own(&configurations()), "two configurations have one name");
    // The names of the tests are in the kernel, so it has to run before anything can be said, even for a list.
    let (mut trials, mut everywhere) = (Vec::new(), Everywhere::default());
    for together in configurations().chunks(AT_ONCE) {
        let boots: Vec<_> =
            together.iter().cloned().map(|(name, machine)| (name, thread::spawn(move || boot(&machine)))).collect();
        for (name, boot) in boots {
            match boot.join() {
                Ok(Ok(outcome)) => {
                    let report = outcome.ktap();
                    everywhere.add(&report);
                    trials.extend(trials_of(name, &outcome, &report));
                }
                Ok(Err(error)) => trials.push(failure(format!("{name}::boot"), format!("{error:#}"))),
                Err(_) => trials.push(failure(format!("{name}::boot"), "panicked".into())),
            }
        }
    }
    trials.push(everywhere.trial());
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn boot(machine: &Machine) -> Result<Outcome, Error> {
    Builder::from(machine.clone()).run()
}

/// What the tests came to on all machines together.
#[derive(Default)]
struct Everywhere {
    ran: BTreeSet<String>,
    /// With one of the reasons.
    skipped: BTreeMap<String, String>,
}

impl Everywhere {
    fn add(&mut self, report: &Report) {
        for test in &report.tests {
            match &test.verdict {
                Verdict::Skipped(reason) => _ = self.skipped.insert(test.name.clone(), reason.clone()),
                Verdict::Passed | Verdict::Failed => _ = self.ran.insert(test.name.clone()),
            }
        }
    }

    /// Fails for each test that every machine has skipped: one of them has to be such that it runs.
    fn trial(&self) -> Trial {
        let nowhere = self.skipped.iter().filter(|(name, _)| !self.ran.contains(*name));
        let lines: Vec<_> = nowhere.map(|(name, reason)| format!("{name} runs on no machine: {reason}")).collect();
        let name = "every_test_runs_on_some_machine".to_string();
        if lines.is_empty() { Trial::test(name, || Ok(())) } else { failure(name, lines.join("\n")) }
    }
}

/// One trial for each test of the report, one for each that is missing, and one for how the guest ended.
fn trials_of(configuration: &str, outcome: &Outcome, report: &Report) -> Vec<Trial> {
    let mut trials: Vec<_> = report.tests.iter().map(|test| trial(configuration, test)).collect();
    for number in report.tests.len() + 1..=report.plan.unwrap_or(0) {
        let why = format!("did not run, or did not end: {}\n{}", outcome.status, report.rest.join("\n"));
        trials.push(failure(format!("{configuration}::{number}"), why));
    }
    let agrees = match outcome.status {
        Status::Good => report.is_success(),
        // The failed tests are failures of their own.
        Status::Bad(_) => report.problems.is_empty() && !report.is_success(),
        _ => false,
    };
    let ending = format!("{configuration}::ending");
    trials.push(if agrees {
        Trial::test(ending, || Ok(()))
    } else {
        let problems = report.problems.join("; ");
        let mut why = format!("{}; {problems}\n{}", outcome.status, outcome.hang.join("\n"));
        let from = outcome.console.len().saturating_sub(30);
        why.push_str(&format!("\nthe last lines:\n{}", outcome.console[from..].join("\n")));
        failure(ending, why)
    });
    trials
}

fn trial(configuration: &str, test: &Test) -> Trial {
    let name = format!("{configuration}::{}", test.name);
    let output = test.output.join("\n");
    match test.verdict.clone() {
        Verdict::Passed => Trial::test(name, || Ok(())),
        Verdict::Failed => failure(name, output),
        Verdict::Skipped(reason) => Trial::ignorable_test(name, move || Ok(Completion::ignored_with(reason))),
    }
}

fn failure(name: String, why: String) -> Trial {
    Trial::test(name, move || Err(Failed::from(why)))
}
