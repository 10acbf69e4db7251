//! The serial console: whole lines, from any CPU, never mixed.
//!
//! Two kinds of lines: plain words with a time and a subsystem, through the `log` facade, and machine-readable lines
//! that begin with `@`, through [`report!`](crate::console::report). A line is put together on the caller's stack and sent
//! under one lock. Nothing is printed from an interrupt handler: see [`crate::console::ring`].

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arrayvec::ArrayString;
use log::{Level, LevelFilter, Metadata, Record};
use uart_16550::backend::PioBackend;
use uart_16550::{BaudRate, Config, Uart16550};

use crate::cpu::lock::IrqLock;
use crate::cpu::{percpu, time};

/// Longest line, in bytes; what is beyond is cut off and marked.
pub const MAX_LINE: usize = 1024;
const CUT: &str = " [cut]";

/// COM1.
static UART: IrqLock<Option<Uart16550<PioBackend>>> = IrqLock::new(None);
/// What was sent last did not end a line. Under the lock of the UART.
static MID_LINE: AtomicBool = AtomicBool::new(false);
/// Set once: the machine is going down, one CPU runs, and the rule about interrupt handlers is off.
static LAST_WORDS: AtomicBool = AtomicBool::new(false);

/// Opens COM1 at 115200 8N1 and makes the logger the one of the `log` crate. Without the device nothing is printed.
pub fn init() {
    // SAFETY: 0x3f8 is COM1, and this is the only driver for it.
    let uart = unsafe { Uart16550::new_port(0x3f8) };
    if let Ok(mut uart) = uart
        && uart.init(Config { baud_rate: BaudRate::Baud115200, ..Config::DEFAULT }).is_ok()
    {
        *UART.lock() = Some(uart);
    }
    // The only call; it cannot fail.
    let _ = log::set_logger(&LOGGER);
    log::set_max_level(LevelFilter::Info);
}

/// A line being put together: never fails, cuts instead.
struct Line {
    text: ArrayString<MAX_LINE>,
    cut: bool,
}

impl Write for Line {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        if self.cut {
            return Ok(());
        }
        let room = MAX_LINE - CUT.len() - 1 - self.text.len();
        let mut end = s.len().min(room);
        while !s.is_char_boundary(end) {
            end -= 1;
        }
        self.text.push_str(&s[..end]);
        if end < s.len() {
            self.cut = true;
            self.text.push_str(CUT);
        }
        Ok(())
    }
}

/// Sends bytes; a whole line begins in column 0 even where a prompt is waiting.
fn send(bytes: &[u8], is_line: bool) {
    if let Some(uart) = UART.lock().as_mut() {
        let fresh: &[u8] = if is_line && MID_LINE.load(Ordering::Relaxed) { b"\n" } else { b"" };
        MID_LINE.store(!bytes.ends_with(b"\n"), Ordering::Relaxed);
        for &byte in fresh.iter().chain(bytes) {
            while uart.try_send_byte(byte).is_err() {
                arch::cpu::pause();
            }
        }
    }
}

/// What lines have cost so far, and whether a line is being counted: of those that several CPUs print at once one is, so that
/// nothing counts twice.
static COST: AtomicU64 = AtomicU64::new(0);
static COUNTING: AtomicBool = AtomicBool::new(false);

/// What lines have cost so far, as [`time::cost`] has it: for who says what something costs without what is said of it.
pub fn cost() -> u64 {
    COST.load(Ordering::Relaxed)
}

/// Prints one line. A newline is added.
///
/// # Panics
/// In an interrupt handler: the interrupted code may hold what printing needs, and the sender of the interrupt
/// waits.
pub fn line(args: fmt::Arguments<'_>) {
    assert!(
        !percpu::in_interrupt() || LAST_WORDS.load(Ordering::Relaxed),
        "something was printed from an interrupt handler"
    );
    let began = (!COUNTING.swap(true, Ordering::Acquire)).then(time::cost);
    let mut line = Line { text: ArrayString::new(), cut: false };
    // `Line` never fails; an error can only come from a `Display` that gives up, and then its beginning is printed.
    let _ = line.write_fmt(args);
    line.text.push('\n');
    send(line.text.as_bytes(), true);
    if let Some(began) = began {
        COST.fetch_add(time::cost().saturating_sub(began), Ordering::Relaxed);
        COUNTING.store(false, Ordering::Release);
    }
}

/// Prints one line of words that are not the log's: a row of a table, say. Not where only warnings are wanted.
pub fn words(args: fmt::Arguments<'_>) {
    if log::max_level() >= LevelFilter::Info {
        line(args);
    }
}

/// Sends text as it is, without a newline: the prompt and the echo of what is typed.
pub fn raw(text: &str) {
    send(text.as_bytes(), false);
}

/// The next byte that was typed, if any.
pub fn try_read() -> Option<u8> {
    UART.lock().as_mut()?.try_receive_byte().ok()
}

/// Takes the console from whoever holds it, for the epitaph.
///
/// # Safety
/// Every other CPU has stopped for good.
pub unsafe fn seize() {
    LAST_WORDS.store(true, Ordering::Relaxed);
    // Where the epitaph begins and ends is for whoever started the machine, also where people watch.
    FOR_PEOPLE.store(false, Ordering::Relaxed);
    // SAFETY: by this function's contract nobody else uses the UART any more; a half-sent line does no harm.
    unsafe { UART.force_unlock() };
}

/// A terminal with somebody in front of it reads this: what is for programs is left out.
static FOR_PEOPLE: AtomicBool = AtomicBool::new(false);

/// From here on only people read the console.
pub fn for_people() {
    FOR_PEOPLE.store(true, Ordering::Relaxed);
}

/// Do only people read it?
pub fn is_for_people() -> bool {
    FOR_PEOPLE.load(Ordering::Relaxed)
}

/// Is what was sent last no whole line: the prompt, and what is typed?
pub fn has_prompt() -> bool {
    MID_LINE.load(Ordering::Relaxed)
}

/// Prints a machine-readable line. Where only people read, nothing.
pub fn record(args: fmt::Arguments<'_>) {
    if !is_for_people() {
        line(format_args!("@{args}"));
    }
}

/// Prints a machine-readable line that is a command's whole answer: where only people read, in words.
pub fn answer_record(args: fmt::Arguments<'_>) {
    match is_for_people() {
        true => line(format_args!("{}", cli::record::in_words(&alloc::format!("{args}")))),
        false => record(args),
    }
}

/// Prints a machine-readable line: `report!("cpu id={id} state=online")` gives `@cpu id=1 state=online`.
macro_rules! report {
    ($($format:tt)+) => {
        $crate::console::serial::record(format_args!($($format)+))
    };
}
pub(crate) use report;

/// The same for a line that is all that a command answers: people are to read it as well.
macro_rules! answer {
    ($($format:tt)+) => {
        $crate::console::serial::answer_record(format_args!($($format)+))
    };
}
pub(crate) use answer;

struct Logger;
static LOGGER: Logger = Logger;

impl log::Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        // `kernel::smp` is the subsystem `smp`.
        let subsystem = record.target().rsplit("::").next().unwrap_or("kernel");
        let ns = time::since_first_line_ns();
        let (secs, micros) = (ns / 1_000_000_000, ns / 1000 % 1_000_000);
        let mark = match record.level() {
            Level::Error => "error: ",
            Level::Warn => "warning: ",
            _ => "",
        };
        line(format_args!("[{secs:5}.{micros:06}] {subsystem}: {mark}{}", record.args()));
    }

    fn flush(&self) {}
}
