//! What the console says of a removal, beside its steps: how the DAX device was killed, and the last report.

use alloc::format;
use alloc::string::String;

use dax::kill::{KillReport, Phase};
use dax::removal::Step;

use crate::shell::Command;
use crate::shell_devices::number;
use crate::{console, devices};

/// The commands.
pub const COMMANDS: &[Command] =
    &[Command { name: "removal", args: "N", help: "the report of the last removal of device N", run: removal }];

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
    crate::report!("kill device={device} phase={phase} told={} failed={failed}", kill.answers.len());
}

fn removal(args: &[&str]) -> Result<(), String> {
    let [at] = args else { return Err("expected: removal N".into()) };
    let last = devices::last_removal(number(at)? as usize).map_err(|error| format!("{error}"))?;
    let report = last.ok_or("no report of a removal is kept")?;
    format!("{report}").lines().for_each(|line| console::line(format_args!("{line}")));
    Ok(())
}
