//! Whose answer it is: commands beside lines that were only sent, and beside jobs in the background.

use super::{Done, trial};
use boot::size::GIB;
use boot::{Error, Guest};
use libtest_mimic::{Completion, Trial};
use std::time::Duration;

const LONG: Duration = Duration::from_secs(60);

pub fn trials() -> Vec<Trial> {
    vec![trial("answers::each_command_has_its_own", answers)]
}

/// What `cpus` says of the first one.
const A_CPU: &str = "CPU 0: apic 0";

fn lists_cpus(guest: &mut Guest) -> Result<(), String> {
    let answer = guest.shell("cpus").map_err(|error| error.to_string())?;
    let is_there = answer.text().any(|line| line.starts_with(A_CPU));
    if is_there { Ok(()) } else { Err(format!("cpus was answered with {:?}", answer.lines)) }
}

/// The reason of a refusal.
fn refused<T>(answer: Result<T, Error>, reason: &str) -> Result<(), String> {
    match answer {
        Err(Error::Refused { reason: said, .. }) if said.contains(reason) => Ok(()),
        Err(error) => Err(format!("expected {reason:?}, found {error}")),
        Ok(_) => Err(format!("expected {reason:?}, and it was done")),
    }
}

/// covers: T5
fn answers() -> Done {
    let mut guest = Guest::builder().cpus(1).nvdimm(GIB).start()?;
    guest.prompt()?;
    guest.send("attach 0")?;
    guest.expect("@attached", LONG)?;
    refused(guest.shell("attach 7"), "no NVDIMM 7")?;
    lists_cpus(&mut guest)?;
    guest.send("cpus")?;
    guest.send("mem")?;
    refused(guest.shell("attach 7"), "no NVDIMM 7")?;
    // A job's failure is its own.
    guest.shell("attach 7 &")?;
    lists_cpus(&mut guest)?;
    refused(guest.shell("wait 1"), "no NVDIMM 7")?;
    refused(guest.shell("cpus\ncpus"), "one line")?;
    lists_cpus(&mut guest)?;
    // What was an answer is no news.
    let late = guest.expect(A_CPU, Duration::ZERO).expect_err("it was read");
    if !late.to_string().contains("in lines that were read before") {
        return Err(late.to_string().into());
    }
    Ok(Completion::Completed)
}
