//! The shell's commands for traces: what the CPUs have just done to each other.

use alloc::format;
use alloc::string::String;

use mm::trace::{EVERY, Event, Group, Kind, lanes, named};

use crate::console::command::Command;
use crate::console::{self, report};
use crate::cpu::{percpu, trace};

/// The commands.
pub const COMMANDS: &[Command] = &[
    Command {
        name: "trace",
        args: "on [KIND]...",
        help: "record events, of all kinds or of these",
        example: "trace on",
        run: control,
    },
    Command {
        name: "trace",
        args: "off",
        help: "record no more; what there is stays",
        example: "trace off",
        run: control,
    },
    Command {
        name: "trace",
        args: "show [EVENTS]",
        help: "the latest events, a lane for each CPU",
        example: "trace show 40",
        run: control,
    },
    Command { name: "trace", args: "clear", help: "forget what was recorded", example: "trace clear", run: control },
];

/// Events that are shown if nobody says how many: some two screens.
const SHOWN: usize = 60;
/// Columns of a terminal.
const WIDTH: usize = 80;

fn control(args: &[&str]) -> Result<(), String> {
    if !trace::BUILT_IN {
        return Err(
            "this kernel is built without trace points: boot it with ./run-qemu.sh run --mode shell --trace".into()
        );
    }
    match args {
        ["on", kinds @ ..] => on(kinds),
        ["off"] => {
            trace::record_only(0);
            Ok(())
        }
        ["clear"] => {
            trace::clear();
            Ok(())
        }
        ["show"] => show(SHOWN),
        ["show", events] => {
            let most = events.parse().ok().filter(|most| (1..=trace::KEPT).contains(most));
            show(most.ok_or_else(|| format!("expected: how many events, from 1 to {}, not \"{events}\"", trace::KEPT))?)
        }
        _ => Err("expected: trace on [KIND]..., trace off, trace show [EVENTS], or trace clear".into()),
    }
}

fn on(words: &[&str]) -> Result<(), String> {
    let kinds = match words {
        [] => EVERY,
        _ => named(words.iter().copied()).map_err(|word| {
            let mut known = String::new();
            for group in Group::ALL {
                known.push_str(&format!(" {}", group.word()));
            }
            format!("\"{word}\" is no kind of event; expected some of{known}, or single ones, as trace show names them")
        })?,
    };
    trace::record_only(kinds);
    let nr = kinds.count_ones();
    console::line(format_args!("recording {nr} of {} kinds of event", Kind::ALL.len()));
    Ok(())
}

/// For programs first, so that the picture is what stands above the prompt.
fn show(most: usize) -> Result<(), String> {
    let events = trace::latest(most).ok_or("not enough memory for so many events")?;
    let counts = trace::counts();
    let trace::Counts { events: all, overwritten, lost } = counts;
    let (shown, cpus) = (events.len(), percpu::all().count());
    report!("trace events={all} shown={shown} overwritten={overwritten} lost={lost} cpus={cpus}");
    events.iter().for_each(record);
    report!("trace ended={shown}");
    if events.is_empty() {
        let why = if trace::recorded() == 0 { " (trace on begins it)" } else { "" };
        console::line(format_args!("nothing was recorded{why}"));
    }
    lanes::draw(&events, WIDTH, &mut |line| console::line(format_args!("{line}")));
    if lost > 0 {
        console::line(format_args!("{lost} events were lost while they were being written"));
    }
    Ok(())
}

fn record(event: &Event) {
    let [a, b] = event.mark.arguments;
    report!("trace cpu={} ns={} kind={} a={a:#x} b={b:#x}", event.cpu, event.ns, event.mark.kind.word());
}
