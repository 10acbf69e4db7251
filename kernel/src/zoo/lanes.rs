//! A run in lanes: a column for each player, time downwards.

use alloc::format;
use alloc::string::String;

use mm::machine::Point;

use crate::console;
use crate::mem::machine::steps::Step;
use crate::zoo::conductor::{Event, Taken};
use crate::zoo::scenarios::Scenario;

/// Width of a column.
const WIDTH: usize = 30;
/// As many steps are shown.
const SHOWN: usize = 200;

/// Prints what was done, step by step.
pub fn print(scenario: &Scenario, log: &[Taken]) {
    let mut head = String::from("  step ");
    for player in 0..scenario.parts.len() {
        head.push_str(&format!("| {:<WIDTH$}", format!("player {player} (CPU {})", player + 1)));
    }
    console::line(format_args!("zoo: {}", head.trim_end()));
    let mut last = None;
    for taken in log.iter().take(SHOWN) {
        let step = taken.step.map_or_else(String::new, |step| format!("{step}"));
        // A switch shows as a change of the column; a mark says that it was one.
        let mark = if last.is_some_and(|last| last != taken.player) { ">" } else { " " };
        last = Some(taken.player);
        let mut line = format!("{mark} {step:>4} ");
        for player in 0..scenario.parts.len() {
            let text = if player == taken.player { words(taken.event) } else { String::new() };
            line.push_str(&format!("| {text:<WIDTH$}"));
        }
        console::line(format_args!("zoo: {}", line.trim_end()));
    }
    if log.len() > SHOWN {
        console::line(format_args!("zoo: and {} more", log.len() - SHOWN));
    }
}

fn words(event: Event) -> String {
    match event {
        Event::Part(place) => format!("-- {place}"),
        Event::Fault => "** the fault".into(),
        Event::Machine(step) => match step {
            Step::Entry(_) => "looks at an entry".into(),
            Step::IrqsOn => "interrupts are on".into(),
            Step::Waits => "waits".into(),
            Step::RootLoaded => "has loaded the root".into(),
            Step::Flush => "is about to flush".into(),
            Step::Flushed => "has flushed".into(),
            Step::SendIpi => "is about to interrupt".into(),
            Step::IpiSent => "has sent an interrupt".into(),
            Step::FreeTable(table) => format!("frees page table {table}"),
            Step::At(Point::GupLeafRead) => "gup: has read the leaf".into(),
            Step::At(Point::GupPinned) => "gup: has a reference".into(),
            Step::At(Point::SwitchLoaded) => "switch: the root is loaded".into(),
            Step::At(Point::InstallReady) => "fault: is about to install".into(),
            Step::At(point) => format!("{point:?}"),
        },
    }
}
