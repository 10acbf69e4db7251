//! Events as lanes of text: one column for each CPU, time downwards, an arrow where one CPU interrupts another.
//!
//! A gup that meets an unmap on the other CPU:
//! ```
//! use mm::trace::{Event, Kind, Mark, lanes};
//!
//! let at = |ns, cpu, kind, a, b| Event { ns, cpu, mark: Mark::new(kind, a, b) };
//! let events = [
//!     at(1_000, 0, Kind::GupBegun, 0x40_0000_0000, 1),
//!     at(1_200, 1, Kind::Shootdown, 0b11, 0),
//!     at(1_300, 1, Kind::Sent, 0, 7),
//!     at(1_350, 0, Kind::GupDone, 1, 0),
//!     at(1_400, 0, Kind::Received, 7, 0),
//!     at(1_500, 0, Kind::Acknowledged, 7, 0),
//!     at(1_600, 1, Kind::Synced, 0b1, 0),
//! ];
//! let mut text = String::new();
//! lanes::draw(&events, 44, &mut |line| text.extend([line, "\n"]));
//! assert_eq!(
//!     text,
//!     "       us CPU 0            CPU 1\n\
//!      \x20   0.000 /gup 4000000     .\n\
//!      \x20   0.200 |                /shoot 0,1\n\
//!      \x20   0.300 |                |ipi 0 #7\n\
//!      \x20         <----------------o\n\
//!      \x20   0.350 \\got 1           |\n\
//!      \x20   0.400 /recv #7         |\n\
//!      \x20   0.500 \\ack #7          |\n\
//!      \x20   0.600 .                \\sync\n"
//! );
//! ```

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::{self, Write};

use super::{Event, Kind, Mark, Role, Span};
use crate::addr::{PAGE_SHIFT, PhysAddr};
use crate::entry::Entry;
use crate::machine::{CpuId, CpuMask};

/// Columns of the time, with a space behind it.
const TIME: usize = 10;
/// A lane is at least so wide, and at most.
const NARROWEST: usize = 10;
const WIDEST: usize = 18;

/// What is said of an event, in a few words: addresses by their page, in hexadecimal; `x` so many pages, where it is not one;
/// `#` the number of a request.
pub struct Words(pub Mark);

impl fmt::Display for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Mark { kind, arguments: [a, b] } = self.0;
        f.write_str(kind.word())?;
        match kind {
            Kind::GupBegun => pages(f, a >> PAGE_SHIFT, b),
            Kind::EntryRead => pages(f, Entry::from_bits(a).pfn().as_u64(), b),
            Kind::ZapBegun => pages(f, a >> PAGE_SHIFT, b.wrapping_sub(a) >> PAGE_SHIFT),
            Kind::RefTaken | Kind::RefRefused | Kind::Kept | Kind::Stale => pages(f, a, b),
            Kind::Cleared | Kind::PinnedSlow | Kind::Unpinned => pages(f, a, b),
            Kind::GupDone | Kind::LeavesPut => write!(f, " {a}"),
            Kind::ZapDone | Kind::Synced => Ok(()),
            Kind::Unlinked => write!(f, " {a:x} L{b}"),
            Kind::TableFreed => write!(f, " {a:x}"),
            Kind::Shootdown => cpus(f, CpuMask::from_bits(a)),
            Kind::Sent => write!(f, " {a} #{b}"),
            Kind::Received | Kind::Acknowledged => write!(f, " #{a}"),
            Kind::Flushed if b == 0 => f.write_str(" all"),
            Kind::Flushed => pages(f, a >> PAGE_SHIFT, b),
            Kind::Switched if a == 0 => f.write_str(" none"),
            Kind::Switched => write!(f, " {:x}", PhysAddr::new(a).pfn().as_u64()),
            Kind::Faulted => write!(f, " {:x} {}", a >> PAGE_SHIFT, ["r", "w", "x"].get(b as usize).unwrap_or(&"?")),
            Kind::DmaMapped | Kind::DmaRevoked => pages(f, a >> PAGE_SHIFT, b >> PAGE_SHIFT),
            Kind::RemovalStep => write!(f, " {a}{}", if b == 0 { "" } else { " bad" }),
        }
    }
}

fn pages(f: &mut fmt::Formatter<'_>, first: u64, nr: u64) -> fmt::Result {
    write!(f, " {first:x}")?;
    match nr {
        1 => Ok(()),
        nr => {
            // As far as it is whole.
            let steps = if nr == 0 { 0 } else { (nr.trailing_zeros() / 10).min(4) };
            write!(f, " x{}{}", nr >> (10 * steps), ["", "k", "M", "G", "T"][steps as usize])
        }
    }
}

fn cpus(f: &mut fmt::Formatter<'_>, cpus: CpuMask) -> fmt::Result {
    let mut between = " ";
    cpus.iter().try_for_each(|cpu| write!(f, "{}{cpu}", core::mem::replace(&mut between, ",")))
}

/// One CPU's column.
struct Lane {
    cpu: CpuId,
    open: Vec<Span>,
}

impl Lane {
    /// One for each open span, so far as there is room.
    fn bars(&self) -> &'static str {
        const BARS: &str = "||||";
        &BARS[..self.open.len().min(BARS.len())]
    }

    /// What stands before an event's words: a bar for each span around it, and the end or the beginning of its own.
    fn lead(&mut self, role: Role) -> String {
        let mut lead = String::new();
        match role {
            Role::Begins(span) => {
                lead.push_str(self.bars());
                lead.push('/');
                self.open.push(span);
            }
            Role::Ends(span) => {
                if let Some(at) = self.open.iter().rposition(|open| *open == span) {
                    self.open.truncate(at);
                }
                lead.push_str(self.bars());
                lead.push('\\');
            }
            Role::Moment if self.open.is_empty() => lead.push(' '),
            Role::Moment => lead.push_str(self.bars()),
        }
        lead
    }

    /// What stands there while something happens elsewhere.
    fn idle(&self) -> String {
        if self.open.is_empty() { ".".into() } else { self.bars().into() }
    }
}

/// The picture while it is drawn.
struct Lanes<'l> {
    lanes: Vec<Lane>,
    width: usize,
    line: &'l mut dyn FnMut(&str),
}

impl Lanes<'_> {
    fn column(&self, cpu: CpuId) -> Option<usize> {
        self.lanes.iter().position(|lane| lane.cpu == cpu)
    }

    /// One line: the time, and what `cell` says of each lane.
    fn row(&mut self, time: &str, mut cell: impl FnMut(usize, &mut Lane) -> String) {
        let mut text = String::new();
        _ = write!(text, "{time:>width$} ", width = TIME - 1);
        let width = self.width;
        for (nth, lane) in self.lanes.iter_mut().enumerate() {
            _ = write!(text, "{:<width$}", cell(nth, lane));
        }
        (self.line)(text.trim_end());
    }

    fn event(&mut self, event: &Event, since: u64) {
        let ns = event.ns.saturating_sub(since);
        let mut time = String::new();
        _ = write!(time, "{}.{:03}", ns / 1000, ns % 1000);
        let width = self.width;
        self.row(&time, |_, lane| {
            if lane.cpu != event.cpu {
                return lane.idle();
            }
            let mut words = lane.lead(event.mark.kind.role());
            _ = write!(words, "{}", Words(event.mark));
            // Cut where the next lane begins. ASCII, so bytes are columns.
            if words.len() >= width {
                words.truncate(width - 2);
                words.push('~');
            }
            words
        });
    }

    /// An arrow from a sender to those who were sent an interrupt.
    fn arrow(&mut self, from: CpuId, to: CpuMask) {
        let Some(from) = self.column(from) else { return };
        let to: Vec<usize> = to.iter().filter_map(|cpu| self.column(cpu)).filter(|&column| column != from).collect();
        let first = to.iter().copied().fold(from, usize::min);
        let last = to.iter().copied().fold(from, usize::max);
        let width = self.width;
        self.row("", |nth, lane| {
            let rest = |mark: char, end: usize| {
                let fill = if nth < end { "-".repeat(width - 1) } else { String::new() };
                alloc::format!("{mark}{fill}")
            };
            match nth {
                _ if nth == from => rest('o', last),
                _ if to.contains(&nth) && nth < from => rest('<', from),
                _ if to.contains(&nth) => rest('>', last),
                _ if nth > first && nth < from => rest('-', from),
                _ if nth > from && nth < last => rest('-', last),
                _ => lane.idle(),
            }
        });
    }
}

/// Draws events, the oldest first, at most `width` columns wide, and gives it `line` by line. CPUs for which there is no room are
/// left out, and counted in the last line.
pub fn draw(events: &[Event], width: usize, line: &mut dyn FnMut(&str)) {
    let Some(first) = events.first() else { return };
    let seen = |event: &Event| {
        let to = if event.mark.kind == Kind::Sent { 1_u64.checked_shl(event.mark.arguments[0] as u32) } else { None };
        CpuMask::single(event.cpu).bits() | to.unwrap_or(0)
    };
    let all = CpuMask::from_bits(events.iter().fold(0, |all, event| all | seen(event)));
    let room = (width.saturating_sub(TIME) / NARROWEST).max(1);
    let lanes: Vec<Lane> = all.iter().take(room).map(|cpu| Lane { cpu, open: Vec::new() }).collect();
    let lane_width = (width.saturating_sub(TIME) / lanes.len().max(1)).clamp(NARROWEST, WIDEST);
    let left_out = all.len() as usize - lanes.len();
    let mut drawn = Lanes { lanes, width: lane_width, line };
    drawn.row("us", |_, lane| alloc::format!("CPU {}", lane.cpu));
    let mut sent = CpuMask::EMPTY;
    for (nth, event) in events.iter().enumerate() {
        drawn.event(event, first.ns);
        if event.mark.kind != Kind::Sent {
            continue;
        }
        // Those of one round are one arrow.
        sent = CpuMask::from_bits(sent.bits() | seen(event)).without(event.cpu);
        let goes_on = events.get(nth + 1).is_some_and(|next| next.cpu == event.cpu && next.mark.kind == Kind::Sent);
        if !goes_on {
            drawn.arrow(event.cpu, core::mem::take(&mut sent));
        }
    }
    if left_out > 0 {
        (drawn.line)(&alloc::format!("and {left_out} more CPUs, for which there is no room in {width} columns"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(events: &[(u64, CpuId, Kind, u64, u64)], width: usize) -> Vec<String> {
        let event =
            |&(ns, cpu, kind, a, b): &(u64, CpuId, Kind, u64, u64)| Event { ns, cpu, mark: Mark::new(kind, a, b) };
        let events: Vec<_> = events.iter().map(event).collect();
        let mut lines = Vec::new();
        draw(&events, width, &mut |line| lines.push(line.into()));
        lines
    }

    #[test]
    fn an_arrow_reaches_every_receiver_and_passes_over_others() {
        let events = [(0, 1, Kind::Sent, 0, 1), (5, 1, Kind::Sent, 3, 9), (9, 2, Kind::GupBegun, 0, 1)];
        let lines = drawn(&events, 80);
        assert_eq!(
            lines,
            [
                "       us CPU 0            CPU 1            CPU 2            CPU 3",
                "    0.000 .                 ipi 0 #1        .                .",
                "    0.005 .                 ipi 3 #9        .                .",
                "          <----------------o---------------------------------> ".trim_end(),
                "    0.009 .                .                /gup 0           .",
            ]
        );
        assert!(lines.iter().all(|line| line.len() <= 80));
    }

    #[test]
    fn spans_nest_and_what_began_before_ends_all_the_same() {
        let kinds =
            [Kind::Acknowledged, Kind::ZapBegun, Kind::Received, Kind::Acknowledged, Kind::Cleared, Kind::ZapDone];
        let events: Vec<_> = kinds.iter().map(|&kind| (0, 0, kind, 0x1000, 1)).collect();
        let cells: Vec<_> = drawn(&events, 80).iter().skip(1).map(|line| line[TIME..].to_string()).collect();
        assert_eq!(cells.map_first(), ["\\ack", "/zap", "|/recv", "|\\ack", "|clear", "\\zapped"]);
    }

    trait FirstWords {
        fn map_first(&self) -> Vec<&str>;
    }
    impl FirstWords for Vec<String> {
        fn map_first(&self) -> Vec<&str> {
            self.iter().filter_map(|cell| cell.split(' ').next()).collect()
        }
    }

    #[test]
    fn every_kind_fits_a_lane_of_four_cpus_or_is_cut() {
        for &kind in Kind::ALL {
            let events =
                [(0, 0, kind, u64::MAX, u64::MAX), (1, 3, kind, 0, 0), (2, 1, kind, 1, 1), (3, 2, kind, 5, 1024)];
            assert!(drawn(&events, 80).iter().all(|line| line.len() <= 80 && line.is_ascii()), "{kind:?}");
        }
    }

    #[test]
    fn cpus_that_have_no_room_are_counted() {
        let events: Vec<_> = (0..64).map(|cpu| (cpu as u64, cpu, Kind::Synced, 0, 0)).collect();
        let lines = drawn(&events, 80);
        assert!(lines.iter().all(|line| line.len() <= 80));
        assert_eq!(
            lines.last().map(String::as_str),
            Some("and 57 more CPUs, for which there is no room in 80 columns")
        );
        assert_eq!(drawn(&[], 80), Vec::<String>::new());
    }
}
