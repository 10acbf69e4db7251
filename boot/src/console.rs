//! The guest's serial console, read by a thread of its own into lines that others can wait for.
//!
//! The firmware writes to the same serial port before the kernel does. Its chatter is kept apart: the console begins
//! with the kernel's first line, which for ours is `@unplug …`; of another kernel the caller says how it begins, or all
//! counts.

use std::io::{ErrorKind, Read, Write};
use std::process::{ChildStderr, ChildStdout};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Where the console goes besides memory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Echo {
    /// Nowhere.
    Off,
    /// To standard output, byte by byte as it comes, from the kernel's first line on.
    Stdout,
}

/// What the kernel's shell prints when it waits for a command.
pub const PROMPT: &str = "unplug> ";

/// How the kernel's first line begins.
const FIRST: &str = "@unplug ";

/// What of a kernel's console has a meaning of its own.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Dialect {
    /// How its first line begins, maybe in the middle of a line of the firmware's. Empty: the first byte is the kernel's.
    pub first: String,
    /// What its shell prints in column 0 when it waits for a command. Empty: it has none.
    pub prompt: String,
    /// Terminal escapes and other control characters are taken out of its lines.
    pub is_painted: bool,
}

impl Default for Dialect {
    /// Our own kernel's.
    fn default() -> Self {
        Self { first: FIRST.into(), prompt: PROMPT.into(), is_painted: false }
    }
}

impl Dialect {
    /// That of a kernel of which nothing is known.
    #[must_use]
    pub fn foreign() -> Self {
        Self { first: String::new(), prompt: String::new(), is_painted: true }
    }
}

/// A message of QEMU 7.2 about each feature that `-cpu max` promises and TCG does not have. The kernel asks CPUID.
const NOT_NEWS: &str = "TCG doesn't support requested feature";

#[derive(Debug, Default)]
struct State {
    dialect: Dialect,
    /// The kernel's complete lines.
    lines: Vec<String>,
    /// The line that has no end yet: a prompt, for instance.
    partial: Vec<u8>,
    /// How many complete lines there were before each prompt, rising. Kept, because a line that the kernel prints by
    /// itself may end the prompt's line before anybody looks.
    prompts: Vec<usize>,
    /// What came before the kernel's first line.
    firmware: Vec<String>,
    started: bool,
    /// QEMU's own messages.
    qemu: Vec<String>,
    /// When the kernel printed last.
    spoke: Option<Instant>,
    /// It is told when to go on at each `@next`.
    has_stops: bool,
    /// Since when it waits for that, and how long it has waited before.
    stopped: Option<Instant>,
    stopped_before: Duration,
    ended: bool,
}

/// The console of one guest.
#[derive(Debug, Default)]
pub struct Console {
    state: Mutex<State>,
    changed: Condvar,
}

/// Why a wait ended without what was waited for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Gone {
    /// The guest has closed its console: it is at its end.
    Ended,
    /// The deadline has passed.
    Late,
}

impl Console {
    /// The console of a kernel that speaks so.
    #[must_use]
    pub fn new(dialect: Dialect) -> Self {
        let state = State { started: dialect.first.is_empty(), dialect, ..State::default() };
        Self { state: Mutex::new(state), ..Self::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A reader that panicked leaves whole lines behind it; they are worth reading.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the threads that read QEMU's two output pipes; the first ends when the guest does.
    pub(crate) fn read_from(self: Arc<Self>, out: ChildStdout, mut err: ChildStderr, echo: Echo) -> JoinHandle<()> {
        let console = self.clone();
        let messages = thread::spawn(move || {
            let mut text = String::new();
            let _ = err.read_to_string(&mut text);
            let news = text.lines().filter(|line| !line.contains(NOT_NEWS)).map(String::from);
            console.lock().qemu.extend(news);
        });
        thread::spawn(move || {
            self.pump(out, echo);
            let _ = messages.join();
            self.lock().ended = true;
            self.changed.notify_all();
        })
    }

    fn pump(&self, mut from: impl Read, echo: Echo) {
        let mut buffer = [0; 4096];
        loop {
            match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(len) => self.feed(&buffer[..len], echo),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
    }

    /// Takes bytes from the serial port.
    fn feed(&self, bytes: &[u8], echo: Echo) {
        let mut shown = Vec::new();
        let mut state = self.lock();
        for &byte in bytes {
            if state.started {
                shown.push(byte);
            }
            if byte == b'\n' {
                state.end_line();
            } else {
                state.partial.push(byte);
                if state.partial == state.dialect.prompt.as_bytes() {
                    let before = state.lines.len();
                    state.prompts.push(before);
                }
                if !state.started && state.partial.ends_with(state.dialect.first.as_bytes()) {
                    state.start();
                    shown.extend_from_slice(state.dialect.first.as_bytes());
                }
            }
        }
        if state.started {
            state.spoke = Some(Instant::now());
        }
        drop(state);
        self.changed.notify_all();
        if echo == Echo::Stdout && !shown.is_empty() {
            // A reader of ours that has gone away (`| head`) is no reason to end the guest.
            let mut stdout = std::io::stdout().lock();
            let _ = stdout.write_all(&shown).and_then(|()| stdout.flush());
        }
    }

    /// Takes text as from the serial port.
    #[cfg(test)]
    pub(crate) fn say(&self, text: &str) {
        self.feed(text.as_bytes(), Echo::Off);
    }

    /// Ends it.
    #[cfg(test)]
    pub(crate) fn say_the_end(&self) {
        self.lock().ended = true;
        self.changed.notify_all();
    }

    /// Every complete line of the kernel so far.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.lock().lines.clone()
    }

    /// The last `count` lines, with the one that is not complete; the firmware's if the kernel has not begun.
    #[must_use]
    pub fn tail(&self, count: usize) -> Vec<String> {
        let state = self.lock();
        let mut lines = if state.started { state.lines.clone() } else { state.firmware.clone() };
        if !state.partial.is_empty() {
            lines.push(String::from_utf8_lossy(&state.partial).into_owned());
        }
        lines.split_off(lines.len().saturating_sub(count))
    }

    /// Has the kernel printed its first line?
    #[must_use]
    pub fn started(&self) -> bool {
        self.lock().started
    }

    /// How long the kernel has printed nothing; for ever if it never has.
    #[must_use]
    pub fn quiet_for(&self) -> Duration {
        self.lock().spoke.map_or(Duration::MAX, |spoke| spoke.elapsed())
    }

    /// QEMU's own messages: complete once the guest has ended.
    #[must_use]
    pub fn qemu_messages(&self) -> Vec<String> {
        self.lock().qemu.clone()
    }

    /// Waits for a complete line from index `from` on that `wanted` takes, and says its index.
    ///
    /// # Errors
    /// [`Gone`] when the guest ends first or the deadline passes; every line that has come was looked at.
    pub fn wait_line(
        &self,
        from: usize,
        deadline: Option<Instant>,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<usize, Gone> {
        let mut next = from;
        self.wait(deadline, |state| {
            let found = state.lines.iter().skip(next).position(|line| wanted(line)).map(|at| next + at);
            next = next.max(state.lines.len());
            found
        })
    }

    /// Waits for text from line `from` on that `wanted` takes: a complete line, or as much of one as has come. Says how many
    /// complete lines come before it, and what it was.
    ///
    /// # Errors
    /// As [`Console::wait_line`].
    pub fn wait_text(
        &self,
        from: usize,
        deadline: Option<Instant>,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<(usize, String), Gone> {
        let mut next = from;
        self.wait(deadline, |state| {
            let found = state.lines.iter().enumerate().skip(next).find(|(_, line)| wanted(line));
            next = next.max(state.lines.len());
            if let Some((at, line)) = found {
                return Some((at, line.clone()));
            }
            let begun = state.started && !state.partial.is_empty() && state.lines.len() >= from;
            let partial = begun.then(|| state.text(&state.partial)).filter(|text| wanted(text))?;
            Some((state.lines.len(), partial))
        })
    }

    /// Waits for complete lines from index `from` on, and returns those that have come.
    ///
    /// # Errors
    /// [`Gone::Ended`] when there are no more.
    pub fn more(&self, from: usize) -> Result<Vec<String>, Gone> {
        self.wait(None, |state| state.lines.get(from..).filter(|lines| !lines.is_empty()).map(<[String]>::to_vec))
    }

    /// The line that has no end yet, of a kernel that has begun.
    #[must_use]
    pub fn partial(&self) -> Option<String> {
        let state = self.lock();
        let is_there = state.started && !state.partial.is_empty();
        is_there.then(|| String::from_utf8_lossy(&state.partial).into_owned())
    }

    /// From now on the guest stops at each `@next` until [`go_on`](Self::go_on): while it does, its time does not pass.
    pub fn stops_at_each_act(&self) {
        self.lock().has_stops = true;
    }

    /// The guest is told to go on.
    pub fn go_on(&self) {
        let mut state = self.lock();
        let waited = state.stopped.take().map_or(Duration::ZERO, |since| since.elapsed());
        state.stopped_before += waited;
        state.spoke = Some(Instant::now());
        drop(state);
        self.changed.notify_all();
    }

    /// Waits for the end of the console. The deadline is put off by as long as the guest was stopped.
    ///
    /// # Errors
    /// [`Gone::Late`] when the deadline passes first.
    pub(crate) fn wait_end_with_stops(&self, deadline: Option<Instant>) -> Result<(), Gone> {
        loop {
            let going = self.wait(None, |state| state.stopped.is_none().then_some(state.stopped_before));
            let Ok(stopped) = going else { return Ok(()) };
            match self.wait(deadline.and_then(|deadline| deadline.checked_add(stopped)), |state| state.stopped) {
                Ok(_) => {}
                Err(Gone::Ended) => return Ok(()),
                Err(Gone::Late) => return Err(Gone::Late),
            }
        }
    }

    /// Waits for the first prompt with at least `from` complete lines before it, and says how many there are.
    ///
    /// # Errors
    /// As [`Console::wait_line`].
    pub fn wait_prompt(&self, from: usize, deadline: Option<Instant>) -> Result<usize, Gone> {
        self.wait_prompts(from, 1, deadline)
    }

    /// The same for the last of so many prompts, one at least.
    ///
    /// # Errors
    /// As [`wait_prompt`](Self::wait_prompt).
    pub fn wait_prompts(&self, from: usize, nr: usize, deadline: Option<Instant>) -> Result<usize, Gone> {
        self.wait(deadline, |state| {
            let at = state.prompts.partition_point(|&before| before < from);
            state.prompts.get(at + nr - 1).copied()
        })
    }

    /// Waits for the end of the console.
    ///
    /// # Errors
    /// [`Gone::Late`] when the deadline passes first.
    pub fn wait_end(&self, deadline: Option<Instant>) -> Result<(), Gone> {
        match self.wait(deadline, |_| None::<()>) {
            Err(Gone::Ended) | Ok(()) => Ok(()),
            Err(Gone::Late) => Err(Gone::Late),
        }
    }

    fn wait<T>(&self, deadline: Option<Instant>, mut look: impl FnMut(&State) -> Option<T>) -> Result<T, Gone> {
        let mut state = self.lock();
        loop {
            if let Some(found) = look(&state) {
                return Ok(found);
            }
            if state.ended {
                return Err(Gone::Ended);
            }
            state = match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(left) if left.is_zero() => return Err(Gone::Late),
                Some(left) => self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
    }
}

impl State {
    /// The kernel's first line begins here, maybe in the middle of a line of the firmware's.
    fn start(&mut self) {
        self.started = true;
        let before = self.partial.len() - self.dialect.first.len();
        let rest = self.partial.split_off(before);
        if !self.partial.is_empty() {
            self.firmware.push(without_escapes(&self.partial));
        }
        self.partial = rest;
    }

    /// The kernel's bytes as text.
    fn text(&self, bytes: &[u8]) -> String {
        if self.dialect.is_painted {
            return without_escapes(bytes);
        }
        let text = String::from_utf8_lossy(bytes);
        text.strip_suffix('\r').unwrap_or(&text).to_string()
    }

    fn end_line(&mut self) {
        let bytes = std::mem::take(&mut self.partial);
        if self.started {
            let line = self.text(&bytes);
            if self.has_stops && line.starts_with("@next ") {
                self.stopped = Some(Instant::now());
            }
            self.lines.push(line);
        } else {
            self.firmware.push(without_escapes(&bytes));
        }
    }
}

/// The firmware paints its screen with terminal escapes; in a report they would paint the user's.
fn without_escapes(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut plain = String::new();
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        match char {
            '\u{1b}' => while chars.next().is_some_and(|c| !c.is_ascii_alphabetic()) {},
            c if c.is_control() && c != '\t' => {}
            c => plain.push(c),
        }
    }
    plain
}

#[cfg(test)]
mod tests;
