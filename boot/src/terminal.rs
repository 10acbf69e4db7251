//! The user's terminal: what is typed goes to the guest's shell, and Ctrl-C ends the guest.

use crate::console::Console;
use crate::guest::Guest;
use crate::qmp::Qmp;
use anyhow::{Context, Result};
use rustix::termios::{self, LocalModes, OptionalActions, Termios};
use serde_json::json;
use std::io::{self, ErrorKind, IsTerminal, Read, Write, stdin};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// Puts the terminal back as it was.
#[derive(Debug)]
pub struct Restore(Termios);

impl Drop for Restore {
    fn drop(&mut self) {
        let _ = termios::tcsetattr(stdin(), OptionalActions::Now, &self.0);
    }
}

/// Connects standard input with the guest's console. A terminal stops echoing and editing lines, which the guest's
/// shell does, until what is returned is dropped; Ctrl-C keeps its meaning. The end of input is the command `exit`.
///
/// # Errors
/// When the terminal's settings cannot be read or changed.
pub fn connect(guest: &mut Guest) -> Result<Option<Restore>> {
    let restore = if stdin().is_terminal() { Some(make_raw()?) } else { None };
    if let Some(to) = guest.take_input() {
        let console = guest.console();
        // It ends with the guest, whose input it cannot write to any more, or with this program.
        thread::spawn(move || forward(&console, to));
    }
    Ok(restore)
}

fn make_raw() -> Result<Restore> {
    let before = termios::tcgetattr(stdin()).context("the terminal's settings")?;
    let mut raw = before.clone();
    raw.local_modes -= LocalModes::ICANON | LocalModes::ECHO;
    termios::tcsetattr(stdin(), OptionalActions::Now, &raw).context("the terminal's settings")?;
    Ok(Restore(before))
}

/// Copies standard input to the guest. It begins at the first prompt: before that, the firmware would read it.
fn forward(console: &Console, mut to: impl Write) {
    if console.wait_prompt(0, None).is_err() || copy_commands(stdin(), &mut to).is_err() {
        return;
    }
    // The pipe stays open: QEMU would take its end for a hang-up.
    let _ = console.wait_end(None);
}

/// Copies `from`, and adds the command `exit` where it ends: on a line of its own, also after a last line without an end.
fn copy_commands(mut from: impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = [0; 256];
    let mut last = b'\n';
    loop {
        match from.read(&mut buffer) {
            Ok(len @ 1..) => {
                to.write_all(&buffer[..len])?;
                last = buffer[len - 1];
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => break,
        }
    }
    if last != b'\n' {
        to.write_all(b"\n")?;
    }
    to.write_all(b"exit\n")
}

/// Ends the guest when the user interrupts this program, so that it can clean up.
#[derive(Clone, Debug, Default)]
pub struct Interrupt {
    came: Arc<AtomicBool>,
    /// The monitor of the guest to end; `None` until one runs.
    socket: Arc<Mutex<Option<PathBuf>>>,
}

impl Interrupt {
    /// Takes over the signals that end a program. Once in a process.
    ///
    /// # Errors
    /// When they have been taken already.
    pub fn install() -> Result<Self> {
        let interrupt = Self::default();
        let handler = interrupt.clone();
        ctrlc::set_handler(move || handler.act()).context("signals")?;
        Ok(interrupt)
    }

    /// Says which guest an interrupt ends.
    pub fn ends(&self, guest: &Guest) {
        *self.socket.lock().unwrap_or_else(PoisonError::into_inner) = Some(guest.qmp_socket().to_path_buf());
    }

    /// Has there been an interrupt?
    #[must_use]
    pub fn came(&self) -> bool {
        self.came.load(Ordering::Relaxed)
    }

    fn act(&self) {
        self.came.store(true, Ordering::Relaxed);
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match socket {
            // Ctrl-C reaches QEMU as well, which may be gone before it can be asked to go.
            Some(socket) => drop(Qmp::connect(&socket).and_then(|mut qmp| qmp.execute("quit", json!({})))),
            None => std::process::exit(130),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `printf mem | ./run-qemu.sh run --mode shell` was `memexit` to the shell, which waited for more.
    #[test]
    fn a_last_line_without_an_end_is_a_command_too() {
        for (typed, sent) in
            [("mem", "mem\nexit\n"), ("mem\n", "mem\nexit\n"), ("", "exit\n"), ("a\nb", "a\nb\nexit\n")]
        {
            let mut to = Vec::new();
            copy_commands(typed.as_bytes(), &mut to).expect("memory");
            assert_eq!(String::from_utf8_lossy(&to), sent);
        }
        let long = "x".repeat(256);
        let mut to = Vec::new();
        copy_commands(long.as_bytes(), &mut to).expect("memory");
        assert!(to.ends_with(b"x\nexit\n"));
    }
}
