//! A stage of a grade: a program that runs a student's code, in a process group of its own, for so long and with so much
//! memory. When it ends, in whatever way, nothing of its group is left.

use crate::spawn::spawn;
use anyhow::{Context, Result};
use rustix::process::{Pid, Resource, Rlimit, Signal, WaitId, WaitIdOptions, kill_process_group, prlimit, waitid};
use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Most of what a program prints that is kept, of each stream, in bytes. The rest is read and forgotten.
const KEPT_BYTES: usize = 1 << 20;
/// How long what was printed is waited for once nothing of the group is left: somebody may have left the group.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Between two looks whether a program has ended.
const TICK: Duration = Duration::from_millis(5);

/// What a program may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Time on the clock.
    pub wall: Duration,
    /// Seconds of one process's CPU time.
    pub cpu_s: Option<u64>,
    /// Bytes of one process's address space.
    pub memory_bytes: Option<u64>,
}

/// How it ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum End {
    /// By itself, with this status.
    Exited(i32),
    /// By this signal.
    Signal(i32),
    /// It was ended: its time was up.
    OverTime,
}

/// A stage that is over.
#[derive(Debug)]
pub struct Ended {
    /// How.
    pub end: End,
    /// Its standard output, as far as it was kept.
    pub stdout: String,
    /// Its standard error, likewise.
    pub stderr: String,
}

/// What is to be ended, and removed, when this program is interrupted.
#[derive(Clone, Debug, Default)]
pub struct Running(Arc<Mutex<Vec<Kept>>>);

#[derive(Debug, PartialEq)]
enum Kept {
    Group(Pid),
    Directory(PathBuf),
}

impl Running {
    /// From now on an interrupt ends all that runs, and this program with status 130.
    ///
    /// # Errors
    /// When signals are taken already.
    pub fn install() -> Result<Self> {
        let running = Self::default();
        let all = running.clone();
        let act = move || {
            all.end_all();
            std::process::exit(130);
        };
        ctrlc::set_handler(act).context("signals")?;
        Ok(running)
    }

    /// An interrupt removes this directory.
    pub fn removes(&self, directory: PathBuf) {
        self.kept().push(Kept::Directory(directory));
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Vec<Kept>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end_all(&self) {
        for kept in self.kept().drain(..) {
            match kept {
                Kept::Group(group) => drop(kill_process_group(group, Signal::KILL)),
                Kept::Directory(directory) => drop(std::fs::remove_dir_all(directory)),
            }
        }
    }

    /// Runs a program to its end, or ends it.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn run(&self, mut command: Command, limits: Limits) -> Result<Ended> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let deadline = Instant::now() + limits.wall;
        // Nobody interrupts between its start and the note of it.
        let mut kept = self.kept();
        let name = command.get_program().to_string_lossy().into_owned();
        let mut child = spawn(command).with_context(|| format!("{name} cannot be started"))?;
        let pid = Pid::from_child(&child);
        kept.push(Kept::Group(pid));
        drop(kept);
        limit(pid, limits);
        let streams = [child.stdout.take().map(collect), child.stderr.take().map(collect)];
        let over_time = !wait(pid, deadline);
        // Before it is reaped, so that its number is still its own.
        let _ = kill_process_group(pid, Signal::KILL);
        let status = child.wait().with_context(|| format!("{name}'s end"))?;
        self.kept().retain(|kept| *kept != Kept::Group(pid));
        let [stdout, stderr] = streams.map(|stream| stream.map_or_else(String::new, said));
        Ok(Ended { end: if over_time { End::OverTime } else { end_of(status) }, stdout, stderr })
    }
}

fn end_of(status: ExitStatus) -> End {
    match (status.code(), status.signal()) {
        (Some(code), _) => End::Exited(code),
        (None, signal) => End::Signal(signal.unwrap_or_default()),
    }
}

/// Limits what a process, and whom it starts, may take. One that has ended meanwhile needs no limit.
fn limit(pid: Pid, limits: Limits) {
    let set = |resource, most: Option<u64>| {
        if let Some(most) = most {
            let _ = prlimit(Some(pid), resource, Rlimit { current: Some(most), maximum: Some(most) });
        }
    };
    set(Resource::Cpu, limits.cpu_s);
    set(Resource::As, limits.memory_bytes);
    set(Resource::Core, Some(0));
}

/// Waits until the process has ended, and leaves it to be reaped; `false` where it has not by the deadline.
fn wait(pid: Pid, deadline: Instant) -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    loop {
        match waitid(WaitId::Pid(pid), options) {
            Ok(None) => {}
            Ok(Some(_)) | Err(_) => return true,
        }
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(TICK);
    }
}

/// Reads a stream to its end, and sends what of it is kept.
fn collect(mut from: impl Read + Send + 'static) -> Receiver<Vec<u8>> {
    let (to, kept) = mpsc::channel();
    thread::spawn(move || {
        let (mut buffer, mut left) = ([0; 1 << 14], KEPT_BYTES);
        while let Ok(len @ 1..) = from.read(&mut buffer) {
            let part = len.min(left);
            left -= part;
            if part > 0 && to.send(buffer[..part].to_vec()).is_err() {
                return;
            }
        }
    });
    kept
}

fn said(stream: Receiver<Vec<u8>>) -> String {
    let deadline = Instant::now() + LAST_WORDS;
    let mut bytes = Vec::new();
    while let Ok(part) = stream.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        bytes.extend(part);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limits: Limits) -> Ended {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Running::default().run(command, limits).expect("there is a shell")
    }

    /// Waits until that `sleep` has gone: it has its signal, and ends as soon as it has a CPU. One that had none would sleep on.
    fn wait_until_gone(pid: &str) {
        let pid: i32 = pid.trim().parse().expect("the other's number");
        let state = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        while state().contains("(sleep)") && !state().contains(") Z ") {
            thread::sleep(TICK);
        }
    }

    const PATIENT: Limits = Limits { wall: Duration::from_secs(600), cpu_s: None, memory_bytes: None };

    /// covers: T5
    #[test]
    fn a_program_ends_by_itself_or_by_a_signal() {
        let ended = shell("echo out; echo err >&2; exit 3", PATIENT);
        assert_eq!((ended.end, ended.stdout.as_str(), ended.stderr.as_str()), (End::Exited(3), "out\n", "err\n"));
        assert_eq!(shell("kill -SEGV $$", PATIENT).end, End::Signal(11));
    }

    /// The second process of the group would sleep on, and hold the pipe open. covers: T5
    #[test]
    fn what_hangs_is_ended_with_all_that_it_has_started() {
        let ended = shell("sleep 1000 & echo $!; wait", Limits { wall: Duration::from_millis(300), ..PATIENT });
        assert_eq!(ended.end, End::OverTime);
        wait_until_gone(&ended.stdout);
    }

    /// One that ends and leaves another behind leaves nobody. covers: T5
    #[test]
    fn who_stays_behind_is_ended() {
        let ended = shell("sleep 1000 & echo $!", PATIENT);
        assert_eq!(ended.end, End::Exited(0));
        wait_until_gone(&ended.stdout);
    }

    /// covers: T5
    #[test]
    fn who_spins_has_so_much_cpu_time_and_no_more() {
        let ended = shell("while :; do :; done", Limits { cpu_s: Some(1), ..PATIENT });
        assert!(matches!(ended.end, End::Signal(9 | 24)), "{:?}", ended.end);
    }

    /// covers: T5
    #[test]
    fn who_prints_without_end_fills_no_memory() {
        let ended = shell("yes | head -c 8000000", PATIENT);
        assert_eq!((ended.end, ended.stdout.len()), (End::Exited(0), KEPT_BYTES));
    }

    /// covers: T5
    #[test]
    fn who_takes_too_much_memory_gets_none() {
        let script = "x=xxxxxxxxxxxxxxxx; while :; do x=$x$x; done";
        let ended = shell(script, Limits { memory_bytes: Some(256 << 20), ..PATIENT });
        assert_ne!(ended.end, End::Exited(0));
        assert_ne!(ended.end, End::OverTime);
    }

    /// covers: T5
    #[test]
    fn an_interrupt_ends_what_runs() {
        let running = Running::default();
        let other = running.clone();
        let mut command = Command::new("sleep");
        command.arg("1000");
        let stage = thread::spawn(move || other.run(command, PATIENT).expect("it starts"));
        while running.kept().is_empty() {
            thread::yield_now();
        }
        running.end_all();
        assert_eq!(stage.join().expect("it ended").end, End::Signal(9));
    }
}
