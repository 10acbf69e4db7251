//! A guest that runs: QEMU as a child process, its serial console as lines, and how it ended.

use crate::backing::{self, Ready};
use crate::console::{Console, Echo, Gone};
use crate::hang;
use crate::host_request;
use crate::hotplug::Hotplug;
use crate::machine::{Files, Machine};
use crate::outcome::{Outcome, Status};
use crate::paths::{self, Firmware};
use crate::progress;
use anyhow::{Context, Result, bail, ensure};
use rustix::io::Errno;
use rustix::process::{
    Pid, Signal, WaitOptions, getpid, getppid, kill_process, set_parent_process_death_signal, waitpid,
};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

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
    hand: Arc<Hotplug>,
    qmp_socket: PathBuf,
    /// The kernel's ELF file, for the names in it.
    kernel: PathBuf,
    _backings: Vec<Ready>,
    _scratch: tempfile::TempDir,
    _slot: Slot,
}

/// Lets the host's kernel end QEMU when the thread that starts it ends, however that is: SIGKILL leaves this program no
/// time to do it. The thread is the one that works with the guest.
pub(crate) fn ends_with_us(command: &mut Command) {
    let parent = getpid();
    let ask = move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // It may have ended before it was asked for.
        if getppid() == Some(parent) { Ok(()) } else { Err(Errno::SRCH.into()) }
    };
    // SAFETY: between fork and exec only two system calls are made: nothing is allocated, and no lock is taken.
    unsafe { command.pre_exec(ask) };
}

/// Makes each device's backing ready, by its number among those of its kind.
fn each<T>(devices: &[T], prepare: impl Fn(&T, usize) -> Result<Ready>) -> Result<Vec<Ready>> {
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

impl Guest {
    /// Starts QEMU. What the guest prints also goes to `echo`, as it comes.
    ///
    /// # Errors
    /// When there is no disk image or firmware, when a backing file cannot be had, or when QEMU cannot be started.
    pub fn start(machine: &Machine, echo: Echo) -> Result<Self> {
        let image = machine.image();
        if !image.exists() {
            bail!(
                "there is no disk image at {}: run-qemu.sh makes it, and `run-qemu.sh test` names it",
                image.display()
            );
        }
        let slot = Slot::take();
        // Short, because the path of a socket may not have more than 107 bytes.
        let scratch = tempfile::Builder::new().prefix("unplug").tempdir().context("a temporary directory")?;
        let installed = paths::firmware()?;
        let vars = scratch.path().join("vars");
        std::fs::copy(&installed.vars, &vars).with_context(|| installed.vars.display().to_string())?;
        let firmware = Firmware { code: installed.code, vars };
        let qmp_socket = scratch.path().join("qmp");
        let backings = each(&machine.pmem, |nvdimm, index| nvdimm.prepare(scratch.path(), index))?;
        let virtio_backings = each(&machine.virtio_pmem, |lent, index| lent.prepare(scratch.path(), index))?;
        let dimm_backings = each(&machine.dimms, |dimm, index| dimm.prepare(scratch.path(), index))?;
        let nvme = match machine.nvme_bytes() {
            0 => None,
            bytes => Some(backing::nvme_file(scratch.path(), bytes)?),
        };
        let files = Files {
            image: &image,
            firmware: &firmware,
            qmp_socket: &qmp_socket,
            backings: &backings,
            dimm_backings: &dimm_backings,
            virtio_backings: &virtio_backings,
            nvme: nvme.as_deref(),
        };
        let mut command = Command::new("qemu-system-x86_64");
        command.args(machine.arguments(&files)?).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        ends_with_us(&mut command);
        let mut child = command.spawn().context("qemu-system-x86_64 cannot be started")?;
        let console = Arc::new(Console::default());
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
            deadline: machine.timeout.map(|timeout| Instant::now() + timeout),
            allowed: machine.timeout.unwrap_or_default(),
            cursor: 0,
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
        let at = found.map_err(|gone| self.unheard(what, gone))?;
        self.cursor = at + 1;
        Ok(self.console.lines()[at].clone())
    }

    /// Sends a line to the guest's serial console.
    ///
    /// # Errors
    /// When the guest has ended.
    pub fn send(&mut self, line: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().context("the guest's input has been closed")?;
        stdin.write_all(format!("{line}\n").as_bytes()).context("the guest does not listen any more")
    }

    /// Waits for the shell's prompt and returns the lines before it that no wait has looked at.
    ///
    /// # Errors
    /// As [`Guest::line`].
    pub fn prompt(&mut self) -> Result<Vec<String>> {
        let found = self.console.wait_prompt(self.cursor, self.deadline);
        let end = found.map_err(|gone| self.unheard("a prompt", gone))?;
        let lines = self.console.lines()[self.cursor.min(end)..end].to_vec();
        // The next prompt comes only after the line that answers this one.
        self.cursor = end + 1;
        Ok(lines)
    }

    /// Sends a command to the shell and returns what it printed, without the command's echo.
    ///
    /// # Errors
    /// As [`Guest::line`].
    pub fn command(&mut self, command: &str) -> Result<Vec<String>> {
        self.cursor = self.cursor.saturating_sub(1);
        let start = self.cursor;
        self.send(command)?;
        let found = self.console.wait_prompt(start + 1, self.deadline);
        let end = found.map_err(|gone| self.unheard(&format!("the end of {command:?}"), gone))?;
        self.cursor = end + 1;
        Ok(without_echo(command, self.console.lines()[start + 1..end].to_vec()))
    }

    /// Gives the guest this much time from now on, whatever it had before.
    pub fn allow(&mut self, time: Duration) {
        self.deadline = Some(Instant::now() + time);
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
        let pid = self.pid();
        kill_process(pid, Signal::STOP).context("QEMU cannot be stopped")?;
        // Until all of its threads have stopped.
        let stopped = waitpid(Some(pid), WaitOptions::UNTRACED).context("QEMU's state")?;
        ensure!(stopped.is_some_and(|(_, status)| status.stopped()), "QEMU has ended instead of stopping");
        Ok(())
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// When QEMU has ended.
    pub fn thaw(&self) -> Result<()> {
        kill_process(self.pid(), Signal::CONT).context("QEMU cannot go on")
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
            hang = hang::report(&self.qmp_socket, &self.console, &self.kernel);
            self.child.kill().context("QEMU cannot be ended")?;
        }
        let exit = self.child.wait().context("QEMU's exit status")?;
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        let console = self.console.lines();
        let status = match (late, at_work) {
            (true, true) => Status::Slow(progress::stage(&console)),
            (true, false) => Status::Hung(progress::stage(&console)),
            (false, _) => Status::of(exit, &console, &self.console.qemu_messages()),
        };
        Ok(Outcome { status, console, hang })
    }

    fn unheard(&self, what: &str, gone: Gone) -> anyhow::Error {
        let why = match gone {
            Gone::Ended => "the guest ended",
            Gone::Late => "its time was up",
        };
        let mut tail = self.console.tail(20);
        tail.extend(self.console.qemu_messages());
        anyhow::anyhow!("{why} before {what} came; the last lines were:\n    {}", tail.join("\n    "))
    }
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
    use super::without_echo;

    #[test]
    fn an_echo_on_a_line_of_its_own_is_no_answer() {
        let lines = |lines: &[&str]| lines.iter().map(ToString::to_string).collect::<Vec<_>>();
        let answer = without_echo("pmem read 0 1 8", lines(&["@task id=1", "pmem read 0 1 8", "error: lost"]));
        assert_eq!(answer, ["@task id=1", "error: lost"]);
        assert_eq!(without_echo("", lines(&["", "a"])), ["", "a"]);
    }
}
