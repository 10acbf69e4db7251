//! What is no good demonstration is told as one, in a line that says why, and the demonstration ends.

use crate::support::{ask, exit, has, machine, refused, shell, start, start_shell, tail};
use boot::backing::{Dimm, Nvdimm};
use boot::guest::Guest;
use boot::machine::Machine;
use boot::outcome::{Outcome, Status};
use boot::records::{self, Record};
use boot::size::MIB;
use serde_json::json;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Takes a page of device `at` away for good, with its contents.
fn lose(guest: &mut Guest, at: usize) {
    for line in [
        &format!("badblocks init {at} force"),
        &format!("attach {at}"),
        &format!("poison {at} 8192"),
        &format!("remove {at}"),
    ] {
        ask(guest, line);
    }
}

/// The reason that the demonstration gives, which is bad.
fn why_bad(guest: &mut Guest) -> String {
    has(&refused(guest, "demo force"), &["the verdict is bad"]);
    let lines = guest.console().lines();
    let verdict = records::of_topic(&lines, "verdict").last().expect("a verdict");
    verdict.get("reason").expect("a reason").to_string()
}

/// Each task that does not use the device that goes uses another one, of which all lose the same page.
// covers: R1
#[test]
fn all_bystanders_end_and_the_demonstration_does_so_too() {
    let pmem = vec![Nvdimm::temporary(256 * MIB), Nvdimm::temporary(64 * MIB)];
    let mut guest = start_shell(&Machine { pmem, ..shell() });
    lose(&mut guest, 1);
    assert_eq!(why_bad(&mut guest), "a-task-that-did-not-use-the-device-did-not-go-on");
    exit(guest);
}

/// SIGBUS ends the tasks that use the device: for a page of it that is lost, and not because it goes.
// covers: R1
#[test]
fn a_task_that_ended_before_the_device_went_is_not_ended_by_that() {
    let mut guest = start_shell(&Machine { pmem: vec![Nvdimm::temporary(256 * MIB)], ..shell() });
    lose(&mut guest, 0);
    let reason = why_bad(&mut guest);
    has(&reason, &["-ended-before-the-device-went,-by-sigbus-", "-cause=poisoned"]);
    exit(guest);
}

/// Grants what the kernel asks for up to its end, a page that is to be lost and modules that are to go and to come back; what
/// was on the second one is not there when it comes.
fn with_an_empty_module(machine: &Machine, second: &File) -> Outcome {
    let mut guest = start(machine);
    let mut pulled = Vec::new();
    loop {
        let wanted = |line: &str| line.starts_with("@host_request ");
        let line = guest.line("a request", wanted).unwrap_or_else(|error| panic!("{error:#}"));
        let request = Record::parse(&line).expect("a record");
        let slot = || request.number("slot").expect("a slot") as usize;
        match request.get("what") {
            Some("pull") => {
                guest.hand().pull(slot()).expect("pulled");
                pulled.push(slot());
            }
            Some("put") if slot() == pulled[0] => guest.hand().put(slot()).expect("put back"),
            Some("put") => {
                second.write_all_at(&vec![0; (128 * MIB) as usize], 0).expect("written");
                guest.hand().put(slot()).expect("put back");
                return guest.finish().unwrap_or_else(|error| panic!("{error:#}"));
            }
            _ => {
                // As QEMU takes it: uncorrected, with an address and its size, and the program can go on.
                let addr = request.number("addr").expect("an address");
                let line = format!("mce 0 9 0xbd000000000000c0 5 {addr:#x} 0x8c");
                guest.qmp("human-monitor-command", json!({ "command-line": line })).expect("a machine check");
            }
        }
    }
}

/// A module that is back in its slot, and whose file system is not mounted: nobody can say that the modules stayed away.
// covers: S3
#[test]
fn a_module_that_is_put_back_and_not_taken_as_it_was_is_bad() {
    let place = tempfile::tempdir().expect("a temporary directory");
    let file = place.path().join("second");
    let second = Dimm::kept(&file, Some(128 * MIB), 0).expect("a module");
    second.make().expect("made");
    let dimms = vec![Dimm::temporary(128 * MIB), second];
    let append = vec!["host_requests=60".into()];
    let machine = Machine { dimms, grants_host_requests: false, append, ..machine() };
    let outcome = with_an_empty_module(&machine, &File::options().write(true).open(&file).expect("it was made"));
    let Status::Bad(reason) = &outcome.status else { panic!("{}", tail(&outcome)) };
    assert_eq!(reason, "desk:-dimm1-was-put-back,-and-is-not-mounted", "{}", tail(&outcome));
}
