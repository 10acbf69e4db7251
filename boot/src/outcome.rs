//! How a guest ended, and what that means to whoever started it.

use crate::ktap;
use crate::records::{self, Record};
use std::fmt;
use std::process::ExitStatus;

/// How a guest ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Status {
    /// The kernel says that all is well.
    Good,
    /// The kernel says that it is not: a bad verdict, or a failed test.
    Bad(String),
    /// A script was typed at the shell, and so many lines were answered with an error; the first of them.
    Script(usize, String),
    /// The kernel panicked.
    Panic(String),
    /// The kernel refuses this machine, or what it was told to do on it.
    Refused(String),
    /// The guest took longer than it may, and was silent for the last part of it: in this.
    Hung(String),
    /// The guest took longer than it may, and was still at work: in this.
    Slow(String),
    /// QEMU itself failed, or the guest ended without the kernel's saying so (a triple fault, say).
    Qemu(String),
    /// A kernel that is not ours ended, with this exit status of QEMU: 0 where it switched the machine off or reset it, an odd
    /// number `(value << 1) | 1` where it wrote a value to the debug-exit device. What that means its caller knows.
    Ended(u8),
    /// The user ended the run.
    Interrupted,
}

/// A guest that has ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// How it ended.
    pub status: Status,
    /// The kernel's complete lines.
    pub console: Vec<String>,
    /// For a guest that took too long: where it was, line by line.
    pub hang: Vec<String>,
}

impl Outcome {
    /// The results of the tests that the kernel ran: the first report of its console.
    #[must_use]
    pub fn ktap(&self) -> ktap::Report {
        ktap::parse(&self.console)
    }

    /// All records of this topic, in order.
    pub fn records<'a>(&'a self, topic: &'a str) -> impl Iterator<Item = Record> + 'a {
        records::of_topic(&self.console, topic)
    }
}

impl Status {
    /// Reads QEMU's exit status: the debug-exit device makes it `(value << 1) | 1`.
    #[must_use]
    pub fn of(exit: ExitStatus, console: &[String], qemu: &[String]) -> Self {
        match exit.code() {
            Some(33) => Self::Good,
            Some(35) => Self::Bad(verdict(console)),
            Some(37) => Self::Panic(epitaph(console)),
            Some(39) => Self::Refused(last_words(console)),
            // Also the status of QEMU when the machine resets, which with -no-reboot ends it. The loader's page tables
            // need NX: a CPU without it faults at the first instruction behind them, before anything can be said.
            Some(0) if console.is_empty() => Self::Qemu(
                "the machine reset before the kernel's first line, as it does where the CPU has no no-execute bit (NX)"
                    .into(),
            ),
            Some(0) => Self::Qemu(format!("the machine stopped by itself (a triple fault?); {}", last_words(console))),
            _ => Self::Qemu(format!("QEMU ended with {exit}: {}", qemu.join("; "))),
        }
    }

    /// The same of a kernel that is not ours.
    #[must_use]
    pub fn of_another(exit: ExitStatus, qemu: &[String]) -> Self {
        match exit.code().and_then(|code| u8::try_from(code).ok()) {
            // With this status QEMU itself fails, too; then it says why.
            Some(1) if !qemu.is_empty() => Self::Qemu(format!("QEMU ended with {exit}: {}", qemu.join("; "))),
            Some(code) => Self::Ended(code),
            None => Self::Qemu(format!("QEMU ended with {exit}: {}", qemu.join("; "))),
        }
    }

    /// What a script comes to that was typed at the shell, and has not ended the guest otherwise.
    #[must_use]
    pub fn of_script(console: &[String]) -> Self {
        let mut errors = console.iter().filter_map(|line| line.strip_prefix("error: "));
        match errors.next() {
            Some(first) => Self::Script(1 + errors.count(), first.into()),
            None => Self::Good,
        }
    }

    /// This program's own exit status.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Good => 0,
            Self::Bad(_) | Self::Script(..) => 1,
            Self::Panic(_) => 3,
            Self::Refused(_) => 4,
            Self::Qemu(_) => 5,
            Self::Hung(_) | Self::Slow(_) => 124,
            Self::Ended(code) => *code,
            Self::Interrupted => 130,
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Good => write!(f, "the kernel's verdict is good"),
            Self::Bad(reason) => write!(f, "the kernel's verdict is bad: {reason}"),
            Self::Script(nr, first) => {
                write!(f, "{nr} of the script's commands failed, the first with {first:?}")
            }
            Self::Panic(message) => write!(f, "the kernel panicked: {message}"),
            Self::Refused(reason) => write!(f, "the kernel refuses this machine, or its options: {reason}"),
            Self::Hung(stage) => write!(f, "the guest hangs: it took longer than it may, in {stage}"),
            Self::Slow(stage) => {
                write!(
                    f,
                    "the guest took longer than it may and was still at work, in {stage} (--timeout gives it more)"
                )
            }
            Self::Qemu(message) => write!(f, "{message}"),
            Self::Ended(0) => write!(f, "the machine was switched off or reset"),
            Self::Ended(code) => write!(f, "QEMU ended with {code}"),
            Self::Interrupted => write!(f, "interrupted"),
        }
    }
}

/// The reason in the last `@verdict` line, or how many tests failed.
fn verdict(console: &[String]) -> String {
    let reason = records::of_topic(console, "verdict").last().and_then(|record| record.get("reason").map(String::from));
    reason.unwrap_or_else(|| match console.iter().filter(|line| line.starts_with("not ok ")).count() {
        0 => "no reason given".into(),
        failed => format!("{failed} in-kernel test(s) failed"),
    })
}

/// The first words of the epitaph: Rust's own begin with a line that says only where, which ends in a colon.
fn epitaph(console: &[String]) -> String {
    let Some(at) = console.iter().rposition(|line| line.starts_with("@panic")) else { return last_words(console) };
    let mut words = console[at + 1..].iter().filter(|line| !line.starts_with('@')).map(|line| line.trim());
    match (words.next(), words.next()) {
        (Some(place), Some(message)) if place.ends_with(':') => format!("{place} {message}"),
        (Some(message), _) => message.to_string(),
        (None, _) => "it left no message".into(),
    }
}

fn last_words(console: &[String]) -> String {
    match console.iter().rfind(|line| !line.is_empty()) {
        Some(line) => format!("the last line was {line:?}"),
        None => "the kernel printed nothing".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    fn status(code: i32, console: &[&str]) -> Status {
        let console: Vec<_> = console.iter().map(ToString::to_string).collect();
        Status::of(ExitStatus::from_raw(code << 8), &console, &["no such device".into()])
    }

    #[test]
    fn each_of_the_kernels_statuses_has_its_own_meaning() {
        assert_eq!(status(33, &[]), Status::Good);
        assert_eq!(status(35, &["@verdict result=bad reason=leak"]), Status::Bad("leak".into()));
        assert_eq!(status(35, &["not ok 1 a", "ok 2 b"]), Status::Bad("1 in-kernel test(s) failed".into()));
        assert_eq!(
            status(37, &["@panic cpu=1", "page 7 put twice", "@epitaph end"]),
            Status::Panic("page 7 put twice".into())
        );
        assert!(
            matches!(status(39, &["too little memory"]), Status::Refused(why) if why.contains("too little memory"))
        );
    }

    #[test]
    fn a_script_fails_with_its_first_command_that_does() {
        let of = |lines: &[&str]| Status::of_script(&lines.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(of(&["unplug> mem", "[ 1.0] x: error: y", "not error: z"]), Status::Good);
        let failed = of(&["error: no", "fine", "error: again"]);
        assert_eq!((failed.exit_code(), &failed), (1, &Status::Script(2, "no".into())));
        assert_eq!(failed.to_string(), "2 of the script's commands failed, the first with \"no\"");
    }

    #[test]
    fn a_guest_that_is_slow_is_not_called_hung() {
        let (slow, hung) = (Status::Slow("act 2".into()), Status::Hung("act 2".into()));
        assert_eq!((slow.exit_code(), hung.exit_code()), (124, 124));
        assert!(hung.to_string().contains("hangs") && hung.to_string().contains("act 2"));
        assert!(!slow.to_string().contains("hang") && slow.to_string().contains("still at work, in act 2"));
    }

    /// covers: T5
    #[test]
    fn how_another_kernel_ends_is_left_to_whoever_knows_it() {
        let of = |raw: i32, qemu: &[String]| Status::of_another(ExitStatus::from_raw(raw), qemu);
        assert_eq!(of(0, &[]), Status::Ended(0));
        assert_eq!((of(33 << 8, &[]), of(33 << 8, &[]).exit_code()), (Status::Ended(33), 33));
        assert_eq!(of(1 << 8, &[]), Status::Ended(1));
        let failed = of(1 << 8, &["no such device".into()]);
        assert!(matches!(&failed, Status::Qemu(why) if why.contains("no such device")) && failed.exit_code() == 5);
        assert!(matches!(of(9, &[]), Status::Qemu(_)));
    }

    #[test]
    fn an_end_that_the_kernel_did_not_ask_for_is_never_success() {
        for code in [0, 1, 2, 31, 34, 41] {
            let status = status(code, &["@verdict result=good"]);
            assert!(matches!(status, Status::Qemu(_)), "{code}: {status:?}");
            assert_ne!(status.exit_code(), 0);
        }
        let early = status(0, &[]).to_string();
        assert!(early.contains("NX") && !status(0, &["a line"]).to_string().contains("NX"), "{early}");
        let killed = Status::of(ExitStatus::from_raw(9), &[], &[]);
        assert!(matches!(killed, Status::Qemu(_)));
    }
}
