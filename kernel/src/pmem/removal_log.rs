//! What the console says of a removal: its steps, and how the DAX device was killed.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use dax::inject::Place;
use dax::kill::{KillReport, Phase};
use dax::removal::{Cause, Method, Problem, RemovalReport, RemovalWatch, Step, StepRecord, Waiting};
use mm::addr::PfnRange;
use mm::machine::Machine;
use mm::region::{RegionInfo, TakeBack};
use mm::trace::{Kind, Mark};

use crate::console::{self, report};
use crate::cpu::{time, trace};
use crate::io::dma;
use crate::mem::machine::{KernelMachine, mm};
use crate::mem::reserve::FAULTS;
use crate::pmem::registrations;
use crate::task::{services, tcb};

/// Says every step of a removal on the console, as it ends.
pub struct Watch<'a> {
    /// The device's name.
    pub name: &'a str,
    /// Its frames.
    pub frames: PfnRange,
    /// Why it is removed.
    pub cause: Cause,
    /// Where the time goes at which no CPU has a translation of it any more, in nanoseconds since the first line.
    pub shot_down: &'a AtomicU64,
    /// Called when the device's holders have been told, once that step has been said, unless `quiet`.
    pub told: &'a mut dyn FnMut(),
    /// Called whenever the removal says for which pages it waits.
    pub waits: &'a mut dyn FnMut(&Waiting),
    /// Say nothing, but for what is waited for.
    pub quiet: bool,
}

impl RemovalWatch<KernelMachine> for Watch<'_> {
    fn cause(&mut self) -> Cause {
        self.cause
    }
    fn begin(&mut self, step: Step) -> Result<(), Problem> {
        match FAULTS.goes_off(Place::Remove, step.number() as u64) {
            true => Err("the first attempt was made to fail".into()),
            false => Ok(()),
        }
    }
    fn phase(&mut self, phase: Phase, kill: &KillReport) {
        if !self.quiet && !self.holds_back() {
            say_phase(self.name, phase, kill);
        }
    }
    fn for_each_task(&mut self, each: &mut dyn FnMut(u64, u64, &str)) {
        tcb::for_each_user(&mut |space, task| each(space, task.id, &task.name));
    }
    fn asked(&mut self, region: &RegionInfo<'_>) {
        if !self.quiet && !self.holds_back() {
            registrations::say_asked(self.name, region);
        }
    }
    fn taking_back(&mut self, told: &TakeBack<'_>) {
        if !self.quiet {
            registrations::say_taking_back(self.name, told);
        }
    }
    fn waiting(&mut self, waiting: &Waiting) {
        log::info!("{}: {waiting}", self.name);
        let now = mm().machine.now_ns();
        mm().pins.for_each(&mut |record| {
            if record.holds_any(self.frames) {
                log::info!("{}: waits for {}", self.name, record.describe(now));
            }
        });
        (self.waits)(waiting);
    }
    fn observe(&mut self, record: &StepRecord) {
        if trace::BUILT_IN {
            mm().machine.mark(Mark::new(
                Kind::RemovalStep,
                record.step.number() as u64,
                record.problem.is_some().into(),
            ));
        }
        if record.step == Step::Shootdown {
            self.shot_down.store(time::since_first_line_ns(), Ordering::Relaxed);
        }
        let later = self.holds_back() && record.step <= Step::Shootdown;
        if !self.quiet && !later {
            self.say(record);
        }
    }
    fn unreachable(&mut self, so_far: &RemovalReport) {
        if self.quiet || !self.holds_back() {
            return;
        }
        log::info!("{}: has gone, {}", self.name, method_in_words(so_far.method));
        for record in &so_far.steps {
            if let Some(kill) = so_far.kill.as_ref().filter(|_| record.step == Step::KillDax) {
                Phase::ALL.iter().for_each(|phase| match phase {
                    // Before anybody was told.
                    Phase::Dying => say_phase(self.name, *phase, &KillReport::default()),
                    _ => say_phase(self.name, *phase, kill),
                });
            }
            if record.step == Step::KillDax {
                so_far.registrations.iter().for_each(|region| registrations::say_called_in(self.name, region));
            }
            self.say(record);
        }
    }
    fn blocked_transfers(&mut self) -> u64 {
        dma::nr_blocked()
    }
    fn instructions(&mut self) -> u64 {
        // Also without what a holder says while it is told.
        time::cost().saturating_sub(console::cost())
    }
}

impl Watch<'_> {
    /// Of memory that has gone the translations are urgent, and a line takes longer than all that is done: so what there is to
    /// say is said when none is left.
    fn holds_back(&self) -> bool {
        self.cause == Cause::Gone
    }

    fn say(&mut self, record: &StepRecord) {
        log::info!("{}: {record}", self.name);
        report!(
            "removal device={} step={} n={} of={} ns={} problem={}{}",
            self.name,
            record.step,
            record.step.number(),
            Step::ALL.len(),
            record.ns,
            u8::from(record.problem.is_some()),
            FactWords(record),
        );
        if record.step == Step::KillDax {
            (self.told)();
        }
    }
}

/// The facts of a step as ` key=value` words.
struct FactWords<'a>(&'a StepRecord);

impl fmt::Display for FactWords<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.facts.iter().try_for_each(|(name, value)| write!(f, " {name}={value}"))
    }
}

/// How mappings will be invalidated.
pub fn method_in_words(method: Method) -> String {
    match method {
        Method::Ranged => "by range: one shootdown for everything".into(),
        Method::PerFrame(frames) => format!("frame by frame for {} frames, the rest by range", frames.nr_pages()),
    }
}

/// A copy of the report of a removal that ran short of memory, of which nothing is in the reserve. `None` where there is
/// no memory for it.
pub fn out_of_reserve(report: &RemovalReport) -> Option<Arc<RemovalReport>> {
    // A section again: what cannot ask for memory first gets it from the reserve, and then goes back at once.
    let section = services::enter_section();
    let copy = report.try_clone(&mm().machine).map(Arc::new).filter(|_| section.shortages() == 0);
    drop(section);
    copy
}

/// A phase of the kill is over. What the holders answered is said while the device is alive.
pub fn say_phase(device: &str, phase: Phase, kill: &KillReport) {
    let (step, of) = (Step::KillDax, Step::ALL.len());
    log::info!(target: "devices", "{device}: {}/{of} {step}: {phase}: {}", step.number(), phase.meaning());
    if phase == Phase::Told {
        for answer in &kill.answers {
            log::info!(target: "devices", "{device}: {}/{of} {step}: holder {answer}", step.number());
        }
    }
    let failed = kill.answers.iter().filter(|answer| answer.result.is_err()).count();
    report!("kill device={device} phase={phase} told={} failed={failed}", kill.answers.len());
}
