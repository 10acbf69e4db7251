//! What the guest asks of its host: a machine check, which nobody but QEMU can raise as the hardware does; or that a memory
//! module is pulled out, or put back.
//!
//! Where the boot option `host_requests=` has promised that somebody grants it, the kernel says what it asks for in a
//! line of its console, `@host_request what=machine_check addr=… len=… within_ns=…`, or `what=pull slot=… within_ns=…`, or
//! `what=put slot=…` likewise, and waits for a while. A thread of its own reads the console with everybody else and grants such a request through QEMU's monitor. The monitor serves
//! one connection at a time, so each request has its own, which ends at once.

use crate::console::Console;
use crate::hotplug::Hotplug;
use crate::qmp::Qmp;
use crate::records::Record;
use anyhow::{Result, ensure};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// How long the kernel waits for a request, in seconds: for a host that has very much else to do.
pub(crate) const PATIENCE_S: u64 = 60;
/// The CPU that QEMU raises it on: every machine has this one.
const CPU: u32 = 0;
/// The bank: the last of the ten that QEMU's CPUs have.
const BANK: u32 = 9;
/// MCi_STATUS: valid, uncorrected, with address and MISC; a memory error found by scrubbing, so that nobody waits for an
/// answer.
const STATUS: u64 = 0xbd00_0000_0000_00c0;
/// MCG_STATUS: in progress, and the interrupted program can go on.
const RESTARTABLE: u64 = 0b101;
/// MCi_MISC: the address is physical; bits 0 to 5 are log2 of what is lost.
const PHYSICAL: u64 = 0b10 << 6;
/// The smallest and the largest loss that a request can be for, in bytes: a page, and what the kernel takes away for one
/// machine check.
const LEN_BYTES: std::ops::RangeInclusive<u64> = 4096..=2 << 20;

/// What is asked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum What {
    /// A machine check: the physical address of what is to be lost, and how much: a power of two.
    MachineCheck { addr: u64, len_bytes: u64 },
    /// A module is to be pulled out of this slot, without a word.
    Pull { slot: usize },
    /// It is to be put back.
    Put { slot: usize },
}

/// A request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct HostRequest {
    what: What,
    /// How long the guest waits for it.
    within: Duration,
}

impl HostRequest {
    /// Reads a console line; `None` where it is no request, or one that makes no sense.
    fn parse(line: &str) -> Option<Self> {
        let record = Record::parse(line).filter(|record| record.topic == "host_request")?;
        let slot = || usize::try_from(record.number("slot")?).ok();
        let what = match record.get("what")? {
            "machine_check" => {
                let (addr, len_bytes) = (record.number("addr")?, record.number("len")?);
                let is_whole = len_bytes.is_power_of_two() && addr.is_multiple_of(len_bytes);
                (is_whole && LEN_BYTES.contains(&len_bytes)).then_some(What::MachineCheck { addr, len_bytes })?
            }
            "pull" => What::Pull { slot: slot()? },
            "put" => What::Put { slot: slot()? },
            _ => return None,
        };
        Some(Self { what, within: Duration::from_nanos(record.number("within_ns")?) })
    }

    /// Does it. What comes when the guest no longer waits would be one too many.
    fn grant(&self, qmp_socket: &Path, hand: &Hotplug, since: Instant) -> Result<()> {
        let mut qmp = Qmp::connect(qmp_socket)?;
        ensure!(since.elapsed() < self.within, "the guest has waited for {:?} and waits no more", self.within);
        let (addr, len_bytes) = match self.what {
            What::MachineCheck { addr, len_bytes } => (addr, len_bytes),
            What::Pull { slot } => {
                drop(qmp);
                return Ok(hand.pull(slot)?);
            }
            What::Put { slot } => {
                drop(qmp);
                return Ok(hand.put(slot)?);
            }
        };
        let misc = PHYSICAL | u64::from(len_bytes.ilog2());
        let said = qmp.monitor(&format!("mce {CPU} {BANK} {STATUS:#x} {RESTARTABLE:#x} {addr:#x} {misc:#x}"))?;
        ensure!(said.trim().is_empty(), "QEMU's monitor says {:?}", said.trim());
        Ok(())
    }
}

/// Starts a thread that grants every request until the guest ends. One that cannot be granted is one line, and the guest
/// goes on without.
pub(crate) fn grant_all(console: Arc<Console>, qmp_socket: PathBuf, hand: Arc<Hotplug>) {
    thread::spawn(move || {
        let mut next = 0;
        while let Ok(at) = console.wait_line(next, None, |line| HostRequest::parse(line).is_some()) {
            let since = Instant::now();
            next = at + 1;
            let Some(request) = console.lines().get(at).and_then(|line| HostRequest::parse(line)) else { continue };
            if let Err(error) = request.grant(&qmp_socket, &hand, since) {
                eprintln!("run-qemu: what the guest asks for is not granted: {error:#}");
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixListener;

    const LINE: &str = "@host_request what=machine_check addr=0x100005000 len=4096 within_ns=60000000000";

    #[test]
    fn a_host_request_is_read() {
        let what = What::MachineCheck { addr: 0x1_0000_5000, len_bytes: 4096 };
        let request = HostRequest { what, within: Duration::from_secs(60) };
        assert_eq!(HostRequest::parse(LINE), Some(request));
        let within = Duration::from_nanos(5);
        let pull = HostRequest { what: What::Pull { slot: 3 }, within };
        assert_eq!(HostRequest::parse("@host_request what=pull slot=3 within_ns=5"), Some(pull));
        let put = HostRequest { what: What::Put { slot: 0 }, within };
        assert_eq!(HostRequest::parse("@host_request what=put slot=0 within_ns=5"), Some(put));
        for line in ["what=pull within_ns=5", "what=put slot=-1 within_ns=5", "what=pull slot=0"] {
            assert_eq!(HostRequest::parse(&format!("@host_request {line}")), None, "{line}");
        }
    }

    #[test]
    fn what_is_no_wish_or_makes_no_sense_is_passed_over() {
        for (from, to) in [
            ("@host_request", "@host_requests"),
            ("@host_request", "host_request"),
            ("machine_check", "power_cut"),
            ("what=machine_check ", ""),
            ("0x100005000", "0x100005800"),
            ("0x100005000", "somewhere"),
            ("0x100005000", "0x1ffffffffffffffff"),
            ("0x100005000", "-1"),
            ("addr=", "address="),
            ("len=4096", "len=0"),
            ("len=4096", "len=64"),
            ("len=4096", "len=12288"),
            ("len=4096", "len=0x100000"),
            ("len=4096", ""),
            ("within_ns=60000000000", "within_ns=soon"),
            ("within_ns=60000000000", ""),
        ] {
            let line = LINE.replace(from, to);
            assert!(line != LINE && HostRequest::parse(&line).is_none(), "{line:?}");
        }
        let huge = "@host_request what=machine_check addr=0x100000000 len=0x40000000 within_ns=1";
        assert!(HostRequest::parse(huge).is_none() && HostRequest::parse("").is_none());
    }

    /// Grants the request of a guest that has said `line`, on a monitor that says `words`: the result, and the requests
    /// that the monitor was sent.
    fn grant(line: &str, words: &str) -> (Result<()>, Vec<String>) {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let socket = directory.path().join("qmp");
        let listener = UnixListener::bind(&socket).expect("a socket");
        let answer = format!("{{\"return\": {words:?}}}\n");
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            stream.write_all(b"{\"QMP\": {}}\n").expect("a reader");
            let requests = BufReader::new(stream.try_clone().expect("a second handle")).lines();
            requests
                .map_while(Result::ok)
                .inspect(|_| stream.write_all(answer.as_bytes()).expect("a reader"))
                .collect::<Vec<_>>()
        });
        let result =
            HostRequest::parse(line).expect("a request").grant(&socket, &Hotplug::new(&socket), Instant::now());
        // The connection has ended, or the server would wait for the next request.
        (result, server.join().expect("no panic"))
    }

    #[test]
    fn a_host_request_is_one_command_on_a_connection_of_its_own() {
        let (result, requests) = grant(LINE, "");
        result.expect("granted");
        assert_eq!(requests.len(), 2, "{requests:?}");
        assert!(requests[1].contains("\"mce 0 9 0xbd000000000000c0 0x5 0x100005000 0x8c\""), "{requests:?}");
        let (result, requests) = grant(&LINE.replace("0x100005000 len=4096", "0x100200000 len=0x200000"), "");
        result.expect("granted");
        assert!(requests[1].contains(" 0x100200000 0x95\""), "{requests:?}");
    }

    #[test]
    fn what_stands_in_the_way_is_said() {
        let (refused, _) = grant(LINE, "invalid CPU index");
        assert!(refused.expect_err("refused").to_string().contains("invalid CPU index"));
        let (late, requests) = grant(&LINE.replace("within_ns=60000000000", "within_ns=0"), "");
        assert!(late.expect_err("late").to_string().contains("waits no more"));
        assert_eq!(requests.len(), 1, "nothing is raised: {requests:?}");
        let request = HostRequest::parse(LINE).expect("a request");
        assert!(
            request
                .grant(Path::new("/nonexistent/qmp"), &Hotplug::new(Path::new("/nonexistent/qmp")), Instant::now())
                .is_err()
        );
    }

    #[test]
    fn every_host_request_of_a_console_is_granted_until_the_guest_ends() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let socket = directory.path().join("qmp");
        let listener = UnixListener::bind(&socket).expect("a socket");
        let console = Arc::new(Console::default());
        grant_all(console.clone(), socket.clone(), Hotplug::new(&socket));
        for addr in ["0x100005000", "0x100007000"] {
            console.say(&format!("@unplug v\n@host_request what=nonsense\n{}\n", LINE.replace("0x100005000", addr)));
            let (mut stream, _) = listener.accept().expect("a connection");
            stream.write_all(b"{\"QMP\": {}}\n").expect("a reader");
            let mut requests = BufReader::new(stream.try_clone().expect("a second handle")).lines();
            for wanted in ["qmp_capabilities", addr] {
                let request = requests.next().expect("a request").expect("a line");
                assert!(request.contains(wanted), "{request}");
                stream.write_all(b"{\"return\": \"\"}\n").expect("a reader");
            }
        }
    }
}
