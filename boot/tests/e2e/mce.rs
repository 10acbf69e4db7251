//! Machine checks, raised by QEMU's monitor: one page is lost and one task pays for it, or the kernel says why it stops.
//!
//! QEMU's `mce` writes a bank's registers and raises the exception on one CPU, or shuts the machine down where one is
//! still in progress there, as a CPU does.

use crate::support::{assert_good, command, exit, shell, start, tail};
use boot::backing::Nvdimm;
use boot::guest::Guest;
use boot::machine::Machine;
use boot::outcome::{Outcome, Status};
use boot::qmp::Qmp;
use boot::size::MIB;
use serde_json::json;

/// Valid, uncorrected, with address and MISC; a memory error found by scrubbing, so that nobody waits for an answer.
const LOST: u64 = 0xbd00_0000_0000_00c0;
/// The same with the processor's context corrupt.
const CORRUPT: u64 = LOST | 1 << 57;
/// In progress, and the interrupted program can go on.
const RESTARTABLE: u64 = 0b101;

/// A guest with a shell, its NVDIMM attached, and a line to QEMU's monitor.
struct Patient {
    guest: Guest,
    qmp: Qmp,
    base: u64,
}

/// What a command answers, without what the kernel says of failures meanwhile: that comes when it comes.
fn answer(guest: &mut Guest, words: &str) -> Vec<String> {
    let meanwhile =
        |line: &String| ["[", "@machine_check", "@memory_failure", "@task"].iter().any(|start| line.starts_with(start));
    command(guest, words).into_iter().filter(|line| !meanwhile(line)).collect()
}

impl Patient {
    fn new() -> Self {
        Self::on(&Machine { smp: 2, pmem: vec![Nvdimm::temporary(64 * MIB)], ..shell() })
    }

    fn on(machine: &Machine) -> Self {
        let mut guest = start(machine);
        let line =
            guest.line("the NVDIMM", |line| line.starts_with("@nvdimm id=0")).unwrap_or_else(|e| panic!("{e:#}"));
        let base = line.split("base=0x").nth(1).and_then(|rest| rest.split(' ').next()).expect("a base");
        let base = u64::from_str_radix(base, 16).expect("a hexadecimal number");
        guest.prompt().unwrap_or_else(|error| panic!("{error:#}"));
        let qmp = Qmp::connect(guest.qmp_socket()).unwrap_or_else(|error| panic!("{error:#}"));
        Self { guest, qmp, base }
    }

    /// The answer to a command that is no error.
    fn run(&mut self, words: &str) -> Vec<String> {
        let answer = answer(&mut self.guest, words);
        assert!(!answer.iter().any(|line| line.starts_with("error")), "{words:?}: {answer:?}");
        answer
    }

    fn execute(&mut self, name: &str) {
        self.qmp.execute(name, json!({})).unwrap_or_else(|error| panic!("{error:#}"));
    }

    /// Raises a machine check for the 4 KiB at an address.
    fn raise(&mut self, cpu: u32, status: u64, addr: u64) {
        let line = format!("mce {cpu} 9 {status:#x} {RESTARTABLE:#x} {addr:#x} 0x8c");
        let said = self.qmp.monitor(&line).unwrap_or_else(|error| panic!("{error:#}"));
        assert_eq!(said, "", "{line}");
    }

    /// Waits for a line that comes by itself.
    fn wait(&mut self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        self.guest.line(what, wanted).unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// After such lines: an empty command brings the next prompt.
    fn settle(&mut self) {
        command(&mut self.guest, "");
    }

    fn finish(self) -> Outcome {
        self.guest.finish().unwrap_or_else(|error| panic!("{error:#}"))
    }
}

/// The epitaph of a guest that stopped over a machine check, for this reason.
fn assert_stopped(outcome: &Outcome, reason: &str) {
    assert!(matches!(outcome.status, Status::Panic(_)), "{}", tail(outcome));
    let said = outcome.console.iter().any(|line| line.contains("machine check") && line.contains(reason));
    assert!(said, "no word of {reason:?}\n{}", tail(outcome));
    assert!(outcome.console.iter().any(|line| line == "@epitaph end"), "{}", tail(outcome));
}

/// covers: P1 P2 P3
#[test]
fn a_machine_check_costs_the_page_and_the_task_that_maps_it() {
    let mut patient = Patient::new();
    patient.run("attach 0");
    patient.run("pmem write 0 36864 survivor");
    patient.run("hold 0 20480");
    patient.run("hold 0 36864");
    let addr = patient.base + 20480;
    patient.raise(0, LOST, addr + 0x123);
    let failed = patient.wait("the failure", |line| line.contains("@memory_failure"));
    assert!(failed.contains(&format!("pfn={:#x}", addr >> 12)) && failed.contains("users=1 leaves=1"), "{failed}");
    // The task may have met its fault before the failure was reported.
    let is_end = |line: &str| line.starts_with("@task") && line.contains("name=hold");
    let before = patient.guest.console().lines().into_iter().find(|line| is_end(line));
    let ended = before.unwrap_or_else(|| patient.wait("the task's end", is_end));
    assert!(ended.contains("sigbus addr=0x4000000000 len=4096"), "{ended}");
    patient.settle();
    let lost = answer(&mut patient.guest, "pmem read 0 20480 8");
    assert_eq!(lost, ["error: I/O error: the contents of bytes 20480..20992 are lost"]);
    assert_eq!(patient.run("badblocks 0"), ["sectors 40..48", "8 sectors are lost; not kept on the device"]);
    // The neighbour, its mapping and the task that reads it are as before.
    assert_eq!(patient.run("pmem read 0 36864 8"), ["survivor"]);
    let books = patient.run("ledger");
    assert!(books.iter().any(|line| line == "@ledger kind=mappings count=1"), "{books:?}");
    // A full write makes it usable again.
    patient.run("zero 0 20480 4096");
    assert_eq!(patient.run("badblocks 0"), ["0 sectors are lost; not kept on the device"]);
    patient.run("hold 0 20480");
    assert_good(&exit(patient.guest));
}

/// Both CPUs are in their handlers at the same time: the machine is stopped while the two are raised.
/// covers: P2
#[test]
fn two_at_once_on_two_cpus_are_both_dealt_with() {
    let mut patient = Patient::new();
    patient.run("attach 0");
    let base = patient.base;
    patient.execute("stop");
    patient.raise(0, LOST, base + 0x1000);
    patient.raise(1, LOST, base + 0x3000);
    patient.execute("cont");
    patient.wait("the first failure", |line| line.contains("@memory_failure"));
    patient.wait("the second failure", |line| line.contains("@memory_failure"));
    patient.settle();
    let listed = patient.run("badblocks 0");
    assert_eq!(listed, ["sectors 8..16", "sectors 24..32", "16 sectors are lost; not kept on the device"]);
    let console = patient.guest.console().lines();
    for (cpu, addr) in [(0, base + 0x1000), (1, base + 0x3000)] {
        let noted = format!("@machine_check by=host cpu={cpu} addr={addr:#x} len=4096");
        assert_eq!(console.iter().filter(|line| **line == noted).count(), 1, "{noted}");
    }
    assert_good(&exit(patient.guest));
}

/// covers: P2
#[test]
fn a_second_one_on_a_cpu_that_handles_the_first_shuts_the_machine_down() {
    let mut patient = Patient::new();
    let base = patient.base;
    patient.execute("stop");
    patient.raise(0, LOST, base);
    // QEMU may say so, and resets, which ends it.
    let _ = patient.qmp.monitor(&format!("mce 0 9 {LOST:#x} {RESTARTABLE:#x} {base:#x} 0x8c"));
    let _ = patient.qmp.execute("cont", json!({}));
    let outcome = patient.finish();
    assert!(matches!(outcome.status, Status::Qemu(_)), "{}", tail(&outcome));
    assert_eq!(outcome.status.exit_code(), 5);
}

/// covers: P2
#[test]
fn one_in_ram_stops_the_kernel_and_says_why() {
    let mut patient = Patient::new();
    patient.raise(0, LOST, 32 * MIB);
    assert_stopped(&patient.finish(), "it is in RAM, which the kernel uses");
}

/// covers: P2
#[test]
fn one_that_is_not_recoverable_stops_the_kernel_and_says_why() {
    let mut patient = Patient::new();
    let base = patient.base;
    patient.raise(1, CORRUPT, base);
    assert_stopped(&patient.finish(), "the processor's context is corrupt");
}

/// covers: P2 P4
#[test]
fn a_nonsensical_address_is_one_line() {
    let mut patient = Patient::new();
    patient.run("attach 0");
    for (addr, frame) in [(0xf_dead_beef_f000, "0xfdeadbeeff"), (u64::MAX - 0xfff, "0xfffffffffffff")] {
        patient.raise(0, LOST, addr);
        let said = patient.wait("a line about it", |line| line.contains("a memory error is not in a device"));
        assert!(said.contains(&format!("frame {frame} belongs to no registered device")), "{said}");
    }
    patient.settle();
    assert_eq!(patient.run("badblocks 0"), ["0 sectors are lost; not kept on the device"]);
    let outcome = exit(patient.guest);
    assert_good(&outcome);
    assert_eq!(outcome.console.iter().filter(|line| line.contains("memory error")).count(), 2, "{}", tail(&outcome));
}

/// covers: P3
#[test]
fn the_next_boot_knows_what_was_lost() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("kept");
    let machine = || {
        let nvdimm = Nvdimm::kept(&file, None, 64 * MIB).unwrap_or_else(|error| panic!("{error:#}"));
        Machine { smp: 1, pmem: vec![nvdimm], ..shell() }
    };
    let mut first = Patient::on(&machine());
    first.run("badblocks init 0");
    first.run("attach 0");
    let addr = first.base + 0x2000;
    first.raise(0, LOST, addr);
    first.wait("the failure", |line| line.contains("@memory_failure"));
    assert_good(&exit(first.guest));

    let mut second = Patient::on(&machine());
    second.run("attach 0");
    assert_eq!(second.run("badblocks 0"), ["sectors 16..24", "8 sectors are lost; kept on the device, list 2"]);
    let read = answer(&mut second.guest, "pmem read 0 8192 8");
    assert_eq!(read, ["error: I/O error: the contents of bytes 8192..8704 are lost"]);
    let held = answer(&mut second.guest, "hold 0 8192");
    assert!(
        held.last().is_some_and(|line| line.starts_with("error") && line.ends_with("the page is lost")),
        "{held:?}"
    );
    second.run("zero 0 8192 4096");
    assert_eq!(second.run("badblocks 0"), ["0 sectors are lost; kept on the device, list 3"]);
    assert_good(&exit(second.guest));
}
