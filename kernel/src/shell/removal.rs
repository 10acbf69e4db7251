//! The shell's command about removals that are over.

use alloc::format;
use alloc::string::String;

use crate::console;
use crate::console::command::Command;
use crate::pmem::devices;
use crate::shell::devices::device;

/// The commands.
pub const COMMANDS: &[Command] = &[Command {
    name: "removal",
    args: "N",
    help: "the report of the last removal of device N",
    example: "removal 0",
    run: removal,
}];

fn removal(args: &[&str]) -> Result<(), String> {
    let [at] = args else { return Err("expected: removal N".into()) };
    let last = devices::last_removal(device(at)?).map_err(|error| format!("{error}"))?;
    let report = last.ok_or("no report of a removal is kept")?;
    format!("{report}").lines().for_each(|line| console::line(format_args!("{line}")));
    Ok(())
}
