//! What a person sees of a demonstration while it runs: its [summary](crate::summary), and on a terminal how far it is. Keeps
//! the whole log too, and with `--step` tells the guest when to go on.

use crate::cli::Options;
use crate::console::Console;
use crate::guest::Guest;
use crate::keep::Kept;
use crate::outcome::{Outcome, Status};
use crate::paths;
use crate::records::Record;
use crate::summary::{Row, Summary, Tone};
use anstyle::{AnsiColor, Style};
use std::env;
use std::io::{BufRead, IsTerminal, Write, stdin, stdout};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How often the line that says how far it is changes at most.
const TICK: Duration = Duration::from_millis(100);

/// How to see more.
const MORE: &str = "More: --verbose shows it as it comes, --step stops at each act, and --help.";

/// What is shown besides the console itself.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Shows {
    /// The summary, instead of it.
    Summary,
    /// What comes next, where it stops at each act.
    Steps,
    /// Nothing.
    Nothing,
}

/// A screen for one guest.
#[derive(Debug)]
pub(crate) struct Screen {
    follower: JoinHandle<Follower>,
    shows: Shows,
}

/// Is the console itself left out?
pub(crate) fn replaces_the_console(options: &Options) -> bool {
    !options.verbose && !options.quiet
}

impl Screen {
    /// Begins to follow the guest's console.
    pub(crate) fn start(guest: &mut Guest, options: &Options) -> Self {
        let shows = match (replaces_the_console(options), options.step) {
            (true, _) => Shows::Summary,
            (false, true) => Shows::Steps,
            (false, false) => Shows::Nothing,
        };
        let console = guest.console();
        if options.step {
            console.stops_at_each_act();
            if let Some(to) = guest.take_input() {
                let console = console.clone();
                // It ends with the guest, or with this program.
                thread::spawn(move || go_on_at_each_line(&console, stdin().lock(), to));
            }
        }
        let follower = Follower {
            summary: Summary::default(),
            kept: Kept::begin(&paths::target().join("log"), "demo"),
            paint: Paint::of_stdout(),
            shows,
            asks: options.step && stdin().is_terminal(),
        };
        Self { follower: thread::spawn(move || follower.follow(&console)), shows }
    }

    /// The guest has ended, with this outcome: what is left to say. Answers whether that was all.
    pub(crate) fn end(self, outcome: &Outcome, quiet: bool) -> bool {
        let Ok(mut follower) = self.follower.join() else { return false };
        let place = follower.kept.place();
        if self.shows != Shows::Summary {
            if let Some(place) = place.filter(|_| !quiet || outcome.status != Status::Good) {
                eprintln!("run-qemu: {place}");
            }
            return false;
        }
        let mut rows = follower.summary.end();
        rows.extend(place.map(|place| Row::whole(Tone::Plain, place)));
        rows.push(Row::whole(Tone::Plain, MORE));
        follower.paint.show(&rows, None);
        outcome.status == Status::Good
    }
}

/// Reads the console line by line.
#[derive(Debug)]
struct Follower {
    summary: Summary,
    kept: Kept,
    paint: Paint,
    shows: Shows,
    /// Somebody sits there who can answer.
    asks: bool,
}

impl Follower {
    fn follow(mut self, console: &Console) -> Self {
        let mut next = 0;
        let mut shown: Option<Instant> = None;
        self.show(&[], false);
        while let Ok(lines) = console.more(next) {
            next += lines.len();
            self.kept.add(&lines);
            let mut rows = Vec::new();
            for line in &lines {
                let more = self.summary.line(line);
                let is_shown = self.shows == Shows::Summary || is_next(line);
                rows.extend(more.into_iter().filter(|_| is_shown));
            }
            let waits = lines.last().is_some_and(|line| is_next(line));
            if !rows.is_empty() || waits || shown.is_none_or(|shown| shown.elapsed() >= TICK) {
                shown = Some(Instant::now());
                self.show(&rows, waits);
            }
        }
        // A line that has no end: the guest stopped in the middle of it.
        self.kept.add(&console.partial().into_iter().collect::<Vec<_>>());
        self
    }

    fn show(&self, rows: &[Row], waits: bool) {
        let line = match self.shows {
            Shows::Nothing => return,
            _ if waits => self.asks.then(|| "    Enter goes on: ".to_string()),
            Shows::Steps => None,
            Shows::Summary => Some(self.summary.under_way()),
        };
        self.paint.show(rows, line.as_deref());
    }
}

/// Does the guest wait to be told to go on?
pub(crate) fn is_next(line: &str) -> bool {
    Record::parse(line).is_some_and(|record| record.topic == "next")
}

/// Sends the end of a line for each line of the input, one at each stop; at its end the guest goes on by itself.
fn go_on_at_each_line(console: &Console, mut from: impl BufRead, mut to: impl Write) {
    let (mut next, mut has_ended) = (0, false);
    while let Ok(at) = console.wait_line(next, None, is_next) {
        next = at + 1;
        if !has_ended && !matches!(from.skip_until(b'\n'), Ok(1..)) {
            has_ended = true;
            eprintln!("run-qemu: standard input has ended: the demonstration goes on without stopping");
        }
        console.go_on();
        if to.write_all(b"\n").is_err() {
            return;
        }
    }
}

/// Standard output, with what can be done there.
#[derive(Clone, Copy, Debug)]
struct Paint {
    /// A line can be taken back.
    is_terminal: bool,
    colours: bool,
}

impl Paint {
    fn of_stdout() -> Self {
        let is_set = |name| env::var_os(name).is_some_and(|value| !value.is_empty());
        let is_terminal = stdout().is_terminal() && env::var_os("TERM").is_none_or(|term| term != "dumb");
        Self { is_terminal, colours: is_terminal && !is_set("NO_COLOR") }
    }

    /// Shows rows, and on a terminal below them a line that the next call takes back.
    fn show(self, rows: &[Row], line: Option<&str>) {
        // Where the console itself is shown, a line of that may stand here.
        if rows.is_empty() && line.is_none() {
            return;
        }
        let text = self.text(rows, line);
        // A reader that has gone away (`| head`) is no reason to end the guest.
        let mut stdout = stdout().lock();
        let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    }

    fn text(self, rows: &[Row], line: Option<&str>) -> String {
        let mut text = String::from(if self.is_terminal { "\r\x1b[K" } else { "" });
        for row in rows {
            text.push_str(&self.paint(row));
            text.push('\n');
        }
        text.push_str(line.filter(|_| self.is_terminal).unwrap_or_default());
        text
    }

    fn paint(self, row: &Row) -> String {
        let style = match row.tone {
            Tone::Plain => Style::new(),
            Tone::Heading => Style::new().bold(),
            Tone::Good => AnsiColor::Green.on_default().bold(),
            Tone::Bad => AnsiColor::Red.on_default().bold(),
            Tone::Warning => AnsiColor::Yellow.on_default(),
        };
        let (painted, rest) = row.text.split_at(row.painted);
        if self.colours && !painted.is_empty() && style != Style::new() {
            format!("{style}{painted}{style:#}{rest}")
        } else {
            row.text.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_and_a_line_that_is_taken_back_are_for_a_terminal() {
        let row = Row { tone: Tone::Good, painted: 3, text: "1/6 all".into() };
        let paint =
            |is_terminal, colours| Paint { is_terminal, colours }.text(std::slice::from_ref(&row), Some("goes on"));
        assert_eq!(paint(false, false), "1/6 all\n");
        assert_eq!(paint(true, false), "\r\u{1b}[K1/6 all\ngoes on");
        assert_eq!(paint(true, true), "\r\u{1b}[K\u{1b}[1m\u{1b}[32m1/6\u{1b}[0m all\ngoes on");
    }

    #[test]
    fn each_line_of_the_input_is_one_act_and_after_its_end_nothing_stops() {
        let console = Console::default();
        console.stops_at_each_act();
        console.say("@unplug v\n@next n=1\n@act n=1\n@next n=2\n@next n=3\n");
        console.say_the_end();
        let mut to = Vec::new();
        go_on_at_each_line(&console, &b"\nfarther\n"[..], &mut to);
        assert_eq!(to, b"\n\n\n");
    }
}
