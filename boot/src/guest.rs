//! A guest that runs: QEMU as a child process, its serial console as lines, and how it ended.

use crate::answer::Answer;
use crate::backing::{self, Ready};
use crate::builder::Builder;
use crate::console::{Console, Dialect, Echo, Gone};
use crate::error::{Error, SEEN_LINES};
use crate::hang;
use crate::host_request;
use crate::hotplug::Hotplug;
use crate::machine::{Boots, Files, Machine};
use crate::outcome::{Outcome, Status};
use crate::paths::{self, Firmware};
use crate::progress;
use crate::qmp::Qmp;
use crate::spawn;
use anyhow::{Context, ensure};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use serde_json::Value;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

type Result<T> = std::result::Result<T, Error>;

/// How many guests of one process run at once; a further one waits. More would only take each other's time on the two
/// cores that the time limits are meant for.
const MOST_GUESTS: usize = 2;

static RUNNING: (Mutex<usize>, Condvar) = (Mutex::new(0), Condvar::new());

/// The right to run a guest.
#[derive(Debug)]
struct Slot;

impl Slot {
    fn take() -> Self {
        let (running, freed) = &RUNNING;
        let running = running.lock().unwrap_or_else(PoisonError::into_inner);
        let mut running =
            freed.wait_while(running, |running| *running >= MOST_GUESTS).unwrap_or_else(PoisonError::into_inner);
        *running += 1;
        Self
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let (running, freed) = &RUNNING;
        *running.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        freed.notify_one();
    }
}

/// A guest that runs. Dropping it ends QEMU and removes every temporary file.
#[derive(Debug)]
pub struct Guest {
    child: Child,
    stdin: Option<ChildStdin>,
    console: Arc<Console>,
    reader: Option<JoinHandle<()>>,
    deadline: Option<Instant>,
    /// From when the deadline was set until then.
    allowed: Duration,
    /// Index of the first console line that no wait has looked at.
    cursor: usize,
    /// What its shell prints when it waits; empty where that is not known.
    prompt: String,
    /// It has done so.
    is_up: bool,
    /// Lines that were sent and whose prompt no wait has come to: from which console line on their prompts count, and how many.
    unanswered: Option<(usize, usize)>,
    hand: Arc<Hotplug>,
    qmp_socket: PathBuf,
    /// Our kernel's ELF file, for the names in it; `None` of another kernel.
    kernel: Option<PathBuf>,
    _backings: Vec<Ready>,
    _scratch: tempfile::TempDir,
    _slot: Slot,
}

/// Makes each device's backing ready, by its number among those of its kind.
fn each<T>(devices: &[T], prepare: impl Fn(&T, usize) -> anyhow::Result<Ready>) -> anyhow::Result<Vec<Ready>> {
    devices.iter().enumerate().map(|(index, device)| prepare(device, index)).collect()
}

/// A line that the kernel prints by itself, after the prompt and before the command, pushes the command's echo from the
/// prompt's line to one of its own.
fn without_echo(command: &str, mut lines: Vec<String>) -> Vec<String> {
    if let Some(at) = lines.iter().position(|line| !command.is_empty() && line == command) {
        lines.remove(at);
    }
    lines
}

/// When a wait ends that begins `now`, and how long it was allowed to take. `own` is when the guest's time is up, and how long
/// that was. One that would end when there is no time any more has no end.
fn deadline_of_wait(now: Instant, own: Option<(Instant, Duration)>, within: Duration) -> (Option<Instant>, Duration) {
    let asked = now.checked_add(within);
    match own {
        Some((own, allowed)) if asked.is_none_or(|asked| own < asked) => (Some(own), allowed),
        _ => (asked, within),
    }
}

impl Guest {
    /// Describes a machine, and starts a guest on it: see [`Builder`].
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Starts QEMU. What the guest prints also goes to `echo`, as it comes.
    ///
    /// # Errors
    /// [`Error::Machine`] when there is no disk image or firmware, when a backing file cannot be had, or when QEMU cannot be
    /// started.
    pub fn start(machine: &Machine, echo: Echo) -> Result<Self> {
        let dialect = if machine.boots.is_unplug() { Dialect::default() } else { Dialect::foreign() };
        Self::start_with(machine, echo, dialect)
    }

    pub(crate) fn start_with(machine: &Machine, echo: Echo, dialect: Dialect) -> Result<Self> {
        Self::try_start(machine, echo, dialect).map_err(Error::machine)
    }

    fn try_start(machine: &Machine, echo: Echo, dialect: Dialect) -> anyhow::Result<Self> {
        let image = machine.image();
        if let Some(image) = &image {
            ensure!(image.exists(), no_image(image, machine));
        }
        let slot = Slot::take();
        // Short, because the path of a socket may not have more than 107 bytes.
        let scratch = tempfile::Builder::new().prefix("unplug").tempdir().context("a temporary directory")?;
        let firmware = image.as_ref().map(|_| own_firmware(scratch.path())).transpose()?;
        let qmp_socket = scratch.path().join("qmp");
        let backings = each(&machine.pmem, |nvdimm, index| nvdimm.prepare(scratch.path(), index))?;
        let virtio_backings = each(&machine.virtio_pmem, |lent, index| lent.prepare(scratch.path(), index))?;
        let dimm_backings = each(&machine.dimms, |dimm, index| dimm.prepare(scratch.path(), index))?;
        let nvme = match machine.nvme_bytes() {
            0 => None,
            bytes => Some(backing::nvme_file(scratch.path(), bytes)?),
        };
        let files = Files {
            disk: image.as_deref().zip(firmware.as_ref()),
            qmp_socket: &qmp_socket,
            backings: &backings,
            dimm_backings: &dimm_backings,
            virtio_backings: &virtio_backings,
            nvme: nvme.as_deref(),
        };
        let mut command = Command::new("qemu-system-x86_64");
        command.args(machine.arguments(&files)?).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = spawn::spawn(command).context("qemu-system-x86_64 cannot be started")?;
        let prompt = dialect.prompt.clone();
        let console = Arc::new(Console::new(dialect));
        let pipes = (child.stdout.take(), child.stderr.take());
        let (Some(stdout), Some(stderr)) = pipes else { unreachable!("both were asked for as pipes") };
        let reader = console.clone().read_from(stdout, stderr, echo);
        let hand = Hotplug::new(&qmp_socket);
        if machine.promises_host_requests() {
            host_request::grant_all(console.clone(), qmp_socket.clone(), hand.clone());
        }
        Ok(Self {
            stdin: child.stdin.take(),
            child,
            console,
            reader: Some(reader),
            deadline: machine.timeout.and_then(|timeout| Instant::now().checked_add(timeout)),
            allowed: machine.timeout.unwrap_or_default(),
            cursor: 0,
            prompt,
            is_up: false,
            unanswered: None,
            hand,
            qmp_socket,
            kernel: machine.kernel(),
            _backings: backings.into_iter().chain(dimm_backings).collect(),
            _scratch: scratch,
            _slot: slot,
        })
    }

    /// Waits for a line that `wanted` takes, among those that no wait has looked at, and returns it.
    ///
    /// # Errors
    /// When the guest ends or its time is up first; the message has the last lines.
    pub fn line(&mut self, what: &str, wanted: impl Fn(&str) -> bool) -> Result<String> {
        let found = self.console.wait_line(self.cursor, self.deadline, wanted);
        let at = found.map_err(|gone| self.unheard(what, gone, self.allowed))?;
        self.cursor = at + 1;
        Ok(self.console.lines()[at].clone())
    }

    /// Waits at most so long for a line with these words, among those that no wait has looked at, and returns it. The lines
    /// of a command's answer have been looked at.
    ///
    /// # Errors
    /// [`Error::TimedOut`], or [`Error::Ended`] when the guest ends first; both have what was seen instead.
    pub fn expect(&mut self, words: &str, within: Duration) -> Result<String> {
        let wanted = |line: &str| line.contains(words);
        let came = self.expect_that(&format!("{words:?}"), within, wanted);
        let was_read = || self.console.lines().iter().take(self.cursor).any(|line| wanted(line));
        came.map_err(|error| match was_read() {
            true => error.awaited_with(" (which is in lines that were read before)"),
            false => error,
        })
    }

    /// The same for a line that `wanted` takes; `what` says in an error what that would have been.
    ///
    /// # Errors
    /// As [`Guest::expect`].
    pub fn expect_that(&mut self, what: &str, within: Duration, wanted: impl Fn(&str) -> bool) -> Result<String> {
        let (deadline, after) = self.until(within);
        let found = self.console.wait_line(self.cursor, deadline, wanted);
        let at = found.map_err(|gone| self.unheard(what, gone, after))?;
        self.cursor = at + 1;
        Ok(self.console.lines()[at].clone())
    }

    /// The same for text that may have no end yet, such as `login: `. Returns the line as far as it has come; what comes
    /// behind in it counts as looked at.
    ///
    /// # Errors
    /// As [`Guest::expect`].
    pub fn expect_text(&mut self, words: &str, within: Duration) -> Result<String> {
        let (deadline, after) = self.until(within);
        let found = self.console.wait_text(self.cursor, deadline, |text| text.contains(words));
        let (at, text) = found.map_err(|gone| self.unheard(&format!("{words:?}"), gone, after))?;
        self.cursor = at + 1;
        self.is_up |= text == self.prompt;
        Ok(text)
    }

    /// When a wait ends that begins now, and how long it was allowed to take: the guest's own time may be up before.
    fn until(&self, within: Duration) -> (Option<Instant>, Duration) {
        deadline_of_wait(Instant::now(), self.deadline.map(|own| (own, self.allowed)), within)
    }

    /// Sends a line to the guest's serial console, and waits for nothing. What comes before the shell's first
    /// [prompt](Self::prompt) may be lost: nobody reads then.
    ///
    /// # Errors
    /// When the guest has ended.
    pub fn send(&mut self, line: &str) -> Result<()> {
        if self.is_up && !self.prompt.is_empty() {
            let (from, nr) = self.unanswered.unwrap_or((self.console.lines().len(), 0));
            self.unanswered = Some((from, nr + 1 + line.matches('\n').count()));
        }
        self.write(line)
    }

    fn write(&mut self, line: &str) -> Result<()> {
        let sent = self.stdin.as_mut().map(|stdin| stdin.write_all(format!("{line}\n").as_bytes()));
        match sent {
            Some(Ok(())) => Ok(()),
            Some(Err(_)) => Err(self.unheard(&format!("{line:?}"), Gone::Ended, self.allowed)),
            None => Err(Error::Machine("the guest's input has been given away".into())),
        }
    }

    /// Waits for the shell's prompt and returns the lines before it that no wait has looked at.
    ///
    /// # Errors
    /// As [`Guest::line`].
    pub fn prompt(&mut self) -> Result<Vec<String>> {
        if self.prompt.is_empty() {
            return Err(Error::Machine("what prompt this kernel has was not said (Builder::prompt)".into()));
        }
        let found = self.console.wait_prompt(self.cursor, self.deadline);
        let end = found.map_err(|gone| self.unheard("a prompt", gone, self.allowed))?;
        let lines = self.console.lines()[self.cursor.min(end)..end].to_vec();
        // The next prompt comes only after the line that answers this one.
        self.cursor = end + 1;
        self.is_up = true;
        if let Some((_, nr)) = self.unanswered.filter(|(from, _)| end > *from) {
            self.unanswered = (nr > 1).then_some((end, nr - 1));
        }
        Ok(lines)
    }

    /// Sends a command to the shell and returns what it printed, without the command's echo. Lines that were
    /// [sent](Self::send) before are answered first.
    ///
    /// # Errors
    /// As [`Guest::line`]; [`Error::Refused`] where the command is more than one line.
    pub fn command(&mut self, command: &str) -> Result<Vec<String>> {
        if command.contains(['\n', '\r']) {
            let reason = "a command is one line".into();
            return Err(Error::Refused { command: command.into(), reason });
        }
        if let Some((from, nr)) = self.unanswered.take() {
            let found = self.console.wait_prompts(from + 1, nr, self.deadline);
            let end = found.map_err(|gone| self.unheard("an answer to what was sent", gone, self.allowed))?;
            self.cursor = self.cursor.max(end + 1);
        }
        self.cursor = self.cursor.saturating_sub(1);
        let start = self.cursor;
        self.write(command)?;
        let found = self.console.wait_prompt(start + 1, self.deadline);
        let end = found.map_err(|gone| self.unheard(&format!("the end of {command:?}"), gone, self.allowed))?;
        self.cursor = end + 1;
        Ok(without_echo(command, self.console.lines()[start + 1..end].to_vec()))
    }

    /// Sends a command to the shell, and returns its answer. The first call waits for the shell.
    ///
    /// # Errors
    /// [`Error::Refused`] where the answer is `error: …`; else as [`Guest::line`].
    pub fn shell(&mut self, command: &str) -> Result<Answer> {
        if !self.is_up {
            self.prompt()?;
        }
        Answer::of(command, self.command(command)?)
    }

    /// Runs a command of QEMU's monitor (QMP), and returns what it answers.
    ///
    /// # Errors
    /// [`Error::Qmp`] with QEMU's words where it is refused, [`Error::Monitor`] when QEMU has ended.
    pub fn qmp(&self, command: &str, arguments: Value) -> Result<Value> {
        Qmp::connect(&self.qmp_socket)?.execute(command, arguments)
    }

    /// Gives the guest this much time from now on, whatever it had before.
    pub fn allow(&mut self, time: Duration) {
        self.deadline = Instant::now().checked_add(time);
        self.allowed = time;
    }

    /// The guest's time is up at this moment, and was so long: what it has said in the last part of it counts.
    pub fn allow_until_now(&mut self, time: Duration) {
        self.deadline = Some(Instant::now());
        self.allowed = time;
    }

    /// Hands the guest's input to a thread, for a user who types.
    #[must_use]
    pub fn take_input(&mut self) -> Option<ChildStdin> {
        self.stdin.take()
    }

    /// Stops QEMU in the middle of whatever it does, as `SIGSTOP` does, until [`thaw`](Self::thaw): what its backing
    /// files hold when this returns is what a kill at this moment would leave.
    ///
    /// # Errors
    /// When QEMU has ended.
    pub fn freeze(&self) -> Result<()> {
        let stopped = kill_process(self.pid(), Signal::STOP).and_then(|()| {
            // Until all of its threads have stopped.
            waitpid(Some(self.pid()), WaitOptions::UNTRACED)
        });
        match stopped {
            Ok(Some((_, status))) if status.stopped() => Ok(()),
            Ok(_) => Err(Error::Machine("QEMU has ended instead of stopping".into())),
            Err(error) => Err(Error::Machine(format!("QEMU cannot be stopped: {error}"))),
        }
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// When QEMU has ended.
    pub fn thaw(&self) -> Result<()> {
        kill_process(self.pid(), Signal::CONT).map_err(|error| Error::Machine(format!("QEMU cannot go on: {error}")))
    }

    /// QEMU's process.
    #[must_use]
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// The guest's console.
    #[must_use]
    pub fn console(&self) -> Arc<Console> {
        self.console.clone()
    }

    /// Who pulls this machine's modules out, and plugs others in.
    #[must_use]
    pub fn hand(&self) -> Arc<Hotplug> {
        self.hand.clone()
    }

    /// Where QEMU's monitor listens.
    #[must_use]
    pub fn qmp_socket(&self) -> &Path {
        &self.qmp_socket
    }

    /// Waits for the guest's end. When its time is up, it is asked where it is, and ended.
    ///
    /// # Errors
    /// When QEMU's exit status cannot be had.
    pub fn finish(mut self) -> Result<Outcome> {
        let late = self.console.wait_end_with_stops(self.deadline).is_err();
        let at_work = progress::is_at_work(self.console.quiet_for(), self.allowed);
        let mut hang = Vec::new();
        if late {
            hang = hang::report(&self.qmp_socket, &self.console, self.kernel.as_deref());
            self.child.kill().map_err(|error| Error::Machine(format!("QEMU cannot be ended: {error}")))?;
        }
        let exit = self.child.wait().map_err(|error| Error::Machine(format!("QEMU's exit status: {error}")))?;
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        let console = self.console.lines();
        let status = match (late, at_work) {
            (true, true) => Status::Slow(self.stage(&console)),
            (true, false) => Status::Hung(self.stage(&console)),
            (false, _) if self.kernel.is_none() => Status::of_another(exit, &self.console.qemu_messages()),
            (false, _) => Status::of(exit, &console, &self.console.qemu_messages()),
        };
        Ok(Outcome { status, console, hang })
    }

    /// What the guest was in.
    fn stage(&self, console: &[String]) -> String {
        match &self.kernel {
            Some(_) => progress::stage(console),
            None => format!("what it did after {} lines", console.len()),
        }
    }

    fn unheard(&self, what: &str, gone: Gone, after: Duration) -> Error {
        let mut seen = self.console.tail(SEEN_LINES);
        // That it waits is no news.
        if !self.prompt.is_empty() && seen.last() == Some(&self.prompt) {
            seen.pop();
        }
        seen.extend(self.console.qemu_messages());
        match gone {
            Gone::Ended => Error::Ended { awaited: what.into(), seen },
            Gone::Late => Error::TimedOut { awaited: what.into(), after, seen },
        }
    }
}

/// This run's own copy of the firmware's variables, and its code.
fn own_firmware(scratch: &Path) -> anyhow::Result<Firmware> {
    let installed = paths::firmware()?;
    let vars = scratch.join("vars");
    std::fs::copy(&installed.vars, &vars).with_context(|| installed.vars.display().to_string())?;
    Ok(Firmware { code: installed.code, vars })
}

/// What is said where there is no disk image.
fn no_image(image: &Path, machine: &Machine) -> String {
    let made = match machine.boots {
        Boots::Unplug => format!(": {} makes it", paths::front_door(machine.build)),
        _ => String::new(),
    };
    format!("there is no disk image at {}{made}", image.display())
}

impl Drop for Guest {
    fn drop(&mut self) {
        // After `finish` both of these do nothing.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::{deadline_of_wait, without_echo};
    use std::time::{Duration, Instant};

    #[test]
    fn a_wait_of_any_length_ends_with_the_guests_time_at_the_latest() {
        let (now, minute) = (Instant::now(), Duration::from_secs(60));
        assert_eq!(deadline_of_wait(now, None, Duration::MAX), (None, Duration::MAX));
        assert_eq!(deadline_of_wait(now, None, minute), (Some(now + minute), minute));
        let own = Some((now + minute, minute * 2));
        assert_eq!(deadline_of_wait(now, own, Duration::MAX), (Some(now + minute), minute * 2));
        assert_eq!(deadline_of_wait(now, own, minute / 2), (Some(now + minute / 2), minute / 2));
    }

    #[test]
    fn an_echo_on_a_line_of_its_own_is_no_answer() {
        let lines = |lines: &[&str]| lines.iter().map(ToString::to_string).collect::<Vec<_>>();
        let answer = without_echo("pmem read 0 1 8", lines(&["@task id=1", "pmem read 0 1 8", "error: lost"]));
        assert_eq!(answer, ["@task id=1", "error: lost"]);
        assert_eq!(without_echo("", lines(&["", "a"])), ["", "a"]);
    }
}
