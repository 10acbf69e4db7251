//! The shell's commands about memory that leaves and arrives.

use alloc::format;
use alloc::string::String;
use core::sync::atomic::Ordering;

use crate::console;
use crate::console::command::Command;
use crate::pmem::dimms::Dimm;
use crate::pmem::{departure, devices};
use crate::shell::devices::device;

/// The commands.
pub const COMMANDS: &[Command] = &[
    Command {
        name: "pull",
        args: "N",
        help: "let a memory module go without a word, as if it was pulled out",
        example: "pull dimm0",
        run: pull,
    },
    Command {
        name: "policy",
        args: "N [keep|yield]",
        help: "may the host have the module back?",
        example: "policy dimm0 keep",
        run: policy,
    },
    Command {
        name: "arrivals",
        args: "",
        help: "look for memory that has arrived, event or not",
        example: "arrivals",
        run: arrivals,
    },
];

/// The module of a device, which is there.
fn dimm(word: &str) -> Result<&'static Dimm, String> {
    let slot = devices::slots().get(device(word)?).ok_or_else(|| format!("there is no device {word}"))?;
    let dimm = slot.dimm().ok_or_else(|| format!("{} is no memory module: it cannot leave by itself", slot.name))?;
    // The slot that it had may have another one by now.
    if slot.is_in() { Ok(dimm) } else { Err(format!("the module of {} is not there", slot.name)) }
}

fn pull(args: &[&str]) -> Result<(), String> {
    let [word] = args else { return Err("expected: pull N".into()) };
    let place = &dimm(word)?.place;
    // Nothing else: that it has gone is noticed as it would be if somebody else had done it.
    match place.hotplug().eject(place.slot()) {
        true => Ok(()),
        false => Err(format!("slot {} does not let its module go", place.slot())),
    }
}

fn policy(args: &[&str]) -> Result<(), String> {
    let (word, keep) = match args {
        [word] => (word, None),
        [word, "keep"] => (word, Some(true)),
        [word, "yield"] => (word, Some(false)),
        _ => return Err("expected: policy N, policy N keep, or policy N yield".into()),
    };
    let dimm = dimm(word)?;
    if let Some(keep) = keep {
        dimm.keep.store(keep, Ordering::Relaxed);
    }
    let words = if dimm.keep.load(Ordering::Relaxed) { "keep" } else { "yield" };
    console::line(format_args!("{words}"));
    Ok(())
}

fn arrivals(args: &[&str]) -> Result<(), String> {
    debug_assert!(args.is_empty(), "a command without arguments is given none");
    departure::look_at_all();
    Ok(())
}
