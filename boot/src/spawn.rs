//! Programs that end with this one, however it ends: SIGKILL leaves it no time to end them.
//!
//! The host's kernel does it (`PR_SET_PDEATHSIG`), but when the *thread* ends that started the program. So one thread starts
//! all of them, and lives as long as this program does: a caller may start a guest on one thread and use it on another.

use rustix::io::Errno;
use rustix::process::{Signal, getpid, getppid, set_parent_process_death_signal};
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::mpsc::{self, Sender};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::thread;

type Asked = (Command, Sender<io::Result<Child>>);

static STARTER: LazyLock<Mutex<Sender<Asked>>> = LazyLock::new(|| {
    let (to, asked) = mpsc::channel::<Asked>();
    thread::spawn(move || {
        for (mut command, answer) in asked {
            // Whoever asked is there still, and waits.
            let _ = answer.send(command.spawn());
        }
    });
    Mutex::new(to)
});

/// Starts a program that ends with this one.
///
/// # Errors
/// When it cannot be started.
pub(crate) fn spawn(mut command: Command) -> io::Result<Child> {
    let parent = getpid();
    let ask = move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // It may have ended before it was asked for.
        if getppid() == Some(parent) { Ok(()) } else { Err(Errno::SRCH.into()) }
    };
    // SAFETY: between fork and exec only two system calls are made: nothing is allocated, and no lock is taken.
    unsafe { command.pre_exec(ask) };
    let (answer, started) = mpsc::channel();
    let starter = STARTER.lock().unwrap_or_else(PoisonError::into_inner).clone();
    starter.send((command, answer)).expect("its thread has no end");
    started.recv().expect("it answers each")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Stdio;

    /// covers: T5
    #[test]
    fn a_program_outlives_the_thread_that_asked_for_it() {
        let started = thread::spawn(|| {
            let mut command = Command::new("cat");
            command.stdin(Stdio::piped());
            spawn(command).expect("it starts")
        });
        let mut child = started.join().expect("no panic");
        // Its input ends, and so does it, by itself.
        drop(child.stdin.take());
        assert!(child.wait().expect("its end").success());
    }

    #[test]
    fn what_is_not_there_is_an_error() {
        assert_eq!(spawn(Command::new("/nowhere/cat")).expect_err("nowhere").kind(), io::ErrorKind::NotFound);
    }
}
