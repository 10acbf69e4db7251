//! The user's terminal: what is typed goes to the guest's shell. Until its first prompt, and in any other mode, Ctrl-C ends
//! the guest; from then on it goes to the shell like every other key, and Ctrl-] ends the guest.

use crate::console::Console;
use crate::guest::Guest;
use crate::qmp::Qmp;
use crate::whole;
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

/// The key that ends the guest: Ctrl-].
const END: u8 = 0x1d;

/// How wide the terminal is, if both what is typed and what is shown are a terminal's.
#[must_use]
pub fn columns() -> Option<usize> {
    let both = stdin().is_terminal() && io::stdout().is_terminal();
    both.then(|| size().map_or(80, |(_, columns)| columns))
}

/// Rows and columns, as far as the terminal knows.
fn size() -> Option<(usize, usize)> {
    let size = termios::tcgetwinsize(io::stdout()).ok()?;
    (size.ws_col > 0).then(|| (size.ws_row.into(), usize::from(size.ws_col).min(MAX_COLUMNS)))
}

/// As many columns the kernel takes.
const MAX_COLUMNS: usize = 1000;

/// Connects standard input with the guest's console. A terminal stops echoing and editing lines, which the guest's
/// shell does, until what is returned is dropped. The end of input is the command `exit`.
///
/// # Errors
/// When the terminal's settings cannot be read or changed.
pub fn connect(guest: &mut Guest, interrupt: &Interrupt) -> Result<Option<Restore>> {
    let is_terminal = stdin().is_terminal();
    let restore = if is_terminal {
        eprintln!("run-qemu: Ctrl-C drops the line, exit or Ctrl-D leaves, Ctrl-] ends the guest at once");
        let before = termios::tcgetattr(stdin()).context("the terminal's settings")?;
        silence(LocalModes::ICANON | LocalModes::ECHO)?;
        Some(Restore(before))
    } else {
        None
    };
    if let Some(to) = guest.take_input() {
        let console = guest.console();
        let interrupt = interrupt.clone();
        // It ends with the guest, whose input it cannot write to any more, or with this program.
        thread::spawn(move || forward(&console, to, is_terminal.then_some(interrupt)));
    }
    Ok(restore)
}

/// Takes from the terminal what it does by itself.
fn silence(modes: LocalModes) -> Result<()> {
    let mut settings = termios::tcgetattr(stdin()).context("the terminal's settings")?;
    settings.local_modes -= modes;
    termios::tcsetattr(stdin(), OptionalActions::Now, &settings).context("the terminal's settings")
}

/// Copies standard input to the guest. It begins at the first prompt: before that, the firmware would read it.
fn forward(console: &Console, mut to: impl Write, terminal: Option<Interrupt>) {
    if console.wait_prompt(0, None).is_err() {
        return;
    }
    let copied = match terminal {
        Some(interrupt) => {
            // From here on Ctrl-C is a key like the others. Where that cannot be had it ends the guest, as before.
            let _ = silence(LocalModes::ISIG | LocalModes::IEXTEN);
            copy_keys(stdin(), &mut to, size, &interrupt)
        }
        None => copy_commands(stdin(), &mut to),
    };
    if copied.is_err() {
        return;
    }
    // The pipe stays open: QEMU would take its end for a hang-up.
    let _ = console.wait_end(None);
}

/// Copies what is typed until [`END`] is. Where the terminal's size is another than before, the guest is told first, as a
/// terminal would tell it (xterm: `ESC [ 8 ; rows ; columns t`).
fn copy_keys(
    mut from: impl Read,
    to: &mut impl Write,
    size: impl Fn() -> Option<(usize, usize)>,
    interrupt: &Interrupt,
) -> io::Result<()> {
    let mut buffer = [0; 256];
    let mut known = size();
    loop {
        let len = match from.read(&mut buffer) {
            Ok(len @ 1..) => len,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Ok(0) | Err(_) => return to.write_all(b"\nexit\n"),
        };
        if buffer[..len].contains(&END) {
            interrupt.act();
            return Ok(());
        }
        let now = size();
        if let Some((rows, columns)) = now.filter(|_| now != known) {
            known = now;
            write!(to, "\x1b[8;{rows};{columns}t")?;
        }
        to.write_all(&buffer[..len])?;
    }
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
            None => {
                whole::remove_unfinished();
                std::process::exit(130)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn the_guest_is_told_of_another_size_before_the_next_key() {
        let (asked, mut to) = (Cell::new(0), Vec::new());
        let size = || {
            asked.set(asked.get() + 1);
            Some((24, if asked.get() < 3 { 80 } else { 40 }))
        };
        // One read for each part.
        let typed = b"a".chain(&b"b"[..]).chain(&b"c"[..]);
        copy_keys(typed, &mut to, size, &Interrupt::default()).expect("memory");
        assert_eq!(String::from_utf8_lossy(&to), "a\x1b[8;24;40tbc\nexit\n");
    }

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
