//! Memory that leaves and arrives while the kernel runs: pulled out without a word, asked for, put back, plugged in.

use crate::kills::{SIZE, TASKS, Victim, spin};
use crate::support::{ask, assert_good, exit, has, refused, shell, start_shell};
use boot::backing::{Dimm, Nvdimm};
use boot::guest::Guest;
use boot::machine::{Machine, Spare};
use boot::records::Record;
use boot::size::{GIB, MIB};
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};
use testkit::sim::Random;

/// The first line of this topic that nobody has waited for, and that has these words.
fn record(guest: &mut Guest, topic: &str, words: &[&str]) -> Record {
    let head = format!("@{topic} ");
    let wanted = |line: &str| line.starts_with(&head) && words.iter().all(|word| line.contains(word));
    let line = guest.line(&head, wanted).unwrap_or_else(|error| panic!("{error:#}"));
    Record::parse(&line).expect("a record")
}

fn prompt(guest: &mut Guest) {
    guest.prompt().unwrap_or_else(|error| panic!("{error:#}"));
}

fn shell_with(dimms: Vec<Dimm>) -> Machine {
    Machine { smp: 2, pmem: vec![], dimms, ..shell() }
}

/// The host pulls a module with a mounted file system out, and puts it back.
// covers: S1 S2 S3
#[test]
fn a_module_that_is_pulled_out_is_noticed_and_is_back_as_it_was_when_it_is_put_back() {
    let mut guest = start_shell(&shell_with(vec![Dimm::temporary(64 * MIB), Dimm::temporary(32 * MIB)]));
    has(&ask(&mut guest, "nvdimm"), &["0: dimm0 (dimm)", "1: dimm1 (dimm)"]);
    for line in ["attach dimm0 fsdax", "mkfs 0", "mount 0", "write 0 /a 64 synced", "touch 0 /a", "fsync 0 /a"] {
        ask(&mut guest, line);
    }
    ask(&mut guest, "attach dimm1");
    ask(&mut guest, "pmem write dimm1 4096 other");
    for round in 0..2 {
        guest.hand().pull(0).expect("pulled");
        let departed = record(&mut guest, "departed", &["device=dimm0", "slot=0", "cause=gone"]);
        let (unreachable, done) = (departed.number("unreachable_after_ns"), departed.number("done_after_ns"));
        assert!(unreachable <= done && departed.number("noticed_ns") > Some(0), "{departed:?}");
        // Nothing of it answers success, and the other one works.
        for line in ["cat 0 /a", "mount 0", "fsck 0", "attach 0", "pmem read 0 0 16"] {
            refused(&mut guest, line);
        }
        has(&ask(&mut guest, "removal dimm0"), &["removal of dimm0, which has gone", "holder dimm0: done"]);
        has(&ask(&mut guest, "pmem read dimm1 4096 5"), &["other"]);
        guest.hand().put(0).expect("put back");
        record(&mut guest, "arrived", &["device=dimm0", "provider=dimm", "kind=fsdax", "mounted=1"]);
        has(&ask(&mut guest, "cat 0 /a 64 6"), &["synced"]);
        ask(&mut guest, &format!("write 0 /round{round} 0 more"));
    }
    has(&ask(&mut guest, "ls 0 /"), &["round0", "round1"]);
    ask(&mut guest, "umount 0");
    has(&ask(&mut guest, "fsck 0"), &["problems=0"]);
    // Of one that is not attached nobody looks whether it is there; when it is back it is as it was.
    ask(&mut guest, "remove dimm1");
    guest.hand().pull(1).expect("pulled");
    has(&refused(&mut guest, "attach dimm1"), &["the memory is not there"]);
    guest.hand().put(1).expect("put back");
    record(&mut guest, "arrived", &["device=dimm1", "kind=none"]);
    ask(&mut guest, "attach dimm1");
    has(&ask(&mut guest, "pmem read dimm1 4096 5"), &["other"]);
    // The kernel's own two stores do the same.
    ask(&mut guest, "pull dimm1");
    record(&mut guest, "departed", &["device=dimm1", "cause=gone"]);
    has(&refused(&mut guest, "pull 99"), &["no device"]);
    ask(&mut guest, "remove dimm0");
    has(&ask(&mut guest, "ledger"), &["@ledger kind=claims count=0", "@ledger kind=dax_devices count=0"]);
    assert_good(&exit(guest));
}

/// Of a device that has gone nothing is said before nobody can reach it any more: not of its registrations either, and not by
/// the file system on it before its own mappings are gone.
// covers: S1
#[test]
fn the_first_word_of_a_device_that_has_gone_is_that_nobody_reaches_it() {
    let mut guest = start_shell(&shell_with(vec![Dimm::temporary(64 * MIB)]));
    ask(&mut guest, "attach dimm0");
    ask(&mut guest, "register dimm0 8 50000");
    let (console, from) = (guest.console(), guest.console().lines().len());
    guest.hand().pull(0).expect("pulled");
    record(&mut guest, "departed", &["device=dimm0", "cause=gone"]);
    let lines = console.lines()[from..].to_vec();
    let at = |words: &str| {
        lines.iter().position(|line| line.contains(words)).unwrap_or_else(|| panic!("{words}: {lines:#?}"))
    };
    let gone = at("dimm0: has gone, by range");
    assert!(gone <= at("dimm0"), "{lines:#?}");
    // Nobody was asked, and nothing is wanted back within a time.
    assert!(
        !lines.iter().any(|line| line.contains("wants registration") || line.contains("state=asked")),
        "{lines:#?}"
    );
    let called_in = at("grace_ns=0 state=called-in device=dimm0");
    assert!(
        lines[called_in].starts_with("@registration key=1 owner=holder place=kernel/src/shell/pins.rs:"),
        "{lines:#?}"
    );
    assert!(called_in < at("@removal device=dimm0 step=kill_dax"), "{lines:#?}");
    assert!(called_in < at("state=revoked device=dimm0"), "{lines:#?}");
    assert_good(&exit(guest));
}

const PATIENCE: Duration = Duration::from_secs(300);

/// How many pulls, and their seed.
fn plan() -> (u64, u64) {
    let pulls = if std::env::var_os("UNPLUG_FULL").is_some() { 200 } else { 5 };
    let number = |name| std::env::var(name).ok().and_then(|value| value.parse().ok());
    let seed = number("UNPLUG_PULL_SEED").unwrap_or_else(|| RandomState::new().hash_one(0) % 1_000_000);
    (number("UNPLUG_PULLS").unwrap_or(pulls), seed)
}

/// Tasks change a file system, and the module under it is pulled out at random moments. The file behind it holds then what a
/// kill would have left; put back, it is mounted, and everything that was acknowledged is there.
// covers: S2 S3
#[test]
fn whatever_was_acknowledged_is_there_when_the_module_is_put_back() {
    let (pulls, seed) = plan();
    println!("{pulls} pulls, UNPLUG_PULL_SEED={seed}");
    let directory = tempfile::tempdir().expect("a temporary directory");
    let image = directory.path().join("module");
    let dimm = Dimm::kept(&image, Some(SIZE), SIZE).unwrap_or_else(|error| panic!("{error:#}"));
    let mut guest = start_shell(&shell_with(vec![dimm]));
    for line in ["attach 0 fsdax", "mkfs 0"] {
        ask(&mut guest, line);
    }
    let mut victim = Victim { image, seed, known: Default::default() };
    let mut random = Random::new(seed);
    for pull in 0..pulls {
        guest.allow(PATIENCE);
        let (console, from) = (guest.console(), guest.console().lines().len());
        // A line of the load's may come before the prompt or behind it, so nobody waits for them in one order.
        let heard = |from, head: &str| {
            let found = console.wait_line(from, Some(Instant::now() + PATIENCE), |line| line.starts_with(head));
            found.unwrap_or_else(|gone| panic!("{gone:?} before {head:?}: {:?}", console.tail(20)))
        };
        guest.send(&format!("fsload 0 {} {TASKS} 0", victim.seed)).unwrap_or_else(|error| panic!("{error:#}"));
        // Now and then in the mount and its recovery, or soon after it.
        let mut at = from;
        for _ in 0..if pull % 5 == 3 { 0 } else { 1 + random.below(60) } {
            at = heard(at, "@fsload task=") + 1;
        }
        spin(random.below(5_000));
        guest.hand().pull(0).expect("pulled");
        // The load ends by itself: every task by an error.
        prompt(&mut guest);
        let departed = heard(from, "@departed device=dimm0 slot=0 cause=gone");
        let acked = Victim::acked(&console.lines()[from..]);
        let left = victim.judge(std::fs::read(&victim.image).expect("the file"), acked);
        println!("pull {pull}: acknowledged {acked:?}, found {:?}", victim.known.each_ref().map(|known| known.nr));
        guest.hand().put(0).expect("put back");
        let at = heard(departed, "@arrived device=dimm0 ");
        let arrived = &console.lines()[at];
        assert!(arrived.contains("kind=fsdax"), "{arrived}");
        if arrived.ends_with("mounted=1") {
            ask(&mut guest, "umount 0");
        }
        has(&ask(&mut guest, "fsck 0"), &["problems=0"]);
        victim.begin_anew(left);
    }
    ask(&mut guest, "mount 0");
    ask(&mut guest, "umount 0");
    ask(&mut guest, "remove 0");
    assert_good(&exit(guest));
}

/// The host asks for a module: it goes after an orderly removal; or the policy refuses it, and the host hears that.
// covers: S4
#[test]
fn a_module_that_is_asked_for_goes_in_order_or_the_host_hears_that_it_does_not() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let image = directory.path().join("module");
    let dimm = Dimm::kept(&image, Some(64 * MIB), 0).unwrap_or_else(|error| panic!("{error:#}"));
    let mut guest = start_shell(&shell_with(vec![dimm]));
    // A task stores the number of each page in it: 1 in front of what was written.
    for line in ["attach dimm0 fsdax", "mkfs 0", "mount 0", "write 0 /a 4160 kept", "touch 0 /a"] {
        ask(&mut guest, line);
    }
    ask(&mut guest, "policy dimm0 keep");
    let hand = guest.hand();
    {
        let mut qmp = hand.monitor().expect("a monitor");
        qmp.execute("device_del", serde_json::json!({ "id": "dimm0" })).expect("accepted");
        let told = qmp.event("ACPI_DEVICE_OST").expect("told")["info"].clone();
        // An ejection request, and "in use" (ACPI 6.5 §6.3.5).
        assert_eq!((&told["device"], &told["source"], &told["status"]), (&"dimm0".into(), &3.into(), &0x82.into()));
    }
    record(&mut guest, "departure", &["device=dimm0", "answer=refused"]);
    assert!(hand.has(0).expect("an answer"), "it has gone all the same");
    has(&ask(&mut guest, "cat 0 /a 4160 4"), &["kept"]);
    ask(&mut guest, "policy dimm0 yield");
    {
        let mut qmp = hand.monitor().expect("a monitor");
        qmp.execute("device_del", serde_json::json!({ "id": "dimm0" })).expect("accepted");
        let told = qmp.event("ACPI_DEVICE_OST").expect("told")["info"].clone();
        assert_eq!((&told["source"], &told["status"]), (&3.into(), &0x84.into()), "the ejection is in progress");
        assert_eq!(qmp.event("DEVICE_DELETED").expect("told")["device"], "dimm0");
    }
    record(&mut guest, "departure", &["device=dimm0", "answer=accepted"]);
    record(&mut guest, "departed", &["device=dimm0", "cause=announced"]);
    let report = ask(&mut guest, "removal dimm0");
    has(&report, &["which the host wants back", "holder dimm0: done"]);
    assert!(!hand.has(0).expect("an answer"));
    // What a task had stored and not synced was saved, for there was time: the medium has it.
    let medium = std::fs::read(&image).expect("the file");
    let pages: Vec<_> = medium.chunks(4096).filter(|page| &page[64..68] == b"kept").collect();
    assert!(!pages.is_empty(), "what was written is not on the medium");
    let whole = |page: &&[u8]| page[..8] == 1_u64.to_le_bytes() && page[8..64] == [0; 56] && page[68..] == [0; 4028];
    assert!(pages.iter().any(whole), "what the task has stored is not on the medium: {:?}", &pages[0][..80]);
    hand.put(0).expect("put back");
    record(&mut guest, "arrived", &["device=dimm0", "mounted=1"]);
    has(&ask(&mut guest, "cat 0 /a 4160 4"), &["kept"]);
    ask(&mut guest, "umount 0");
    has(&ask(&mut guest, "fsck 0"), &["problems=0"]);
    asked_for_before_anybody_looks(&mut guest);
    assert_good(&exit(guest));
}

/// The host plugs a module in and asks for it at once, so that the kernel finds both in one look: it arrives, and goes again.
/// And it asks for one that has left by then: the next one in the slot is not meant.
fn asked_for_before_anybody_looks(guest: &mut Guest) {
    let hand = guest.hand();
    hand.pull(0).expect("pulled");
    record(guest, "departed", &["device=dimm0", "cause=gone"]);
    {
        let mut qmp = hand.monitor().expect("a monitor");
        let device = serde_json::json!({ "driver": "pc-dimm", "memdev": "module0", "id": "dimm0", "slot": 0 });
        let gone = serde_json::json!({ "id": "dimm0" });
        for (command, arguments) in
            [("stop", None), ("device_add", Some(device)), ("device_del", Some(gone)), ("cont", None)]
        {
            let arguments = arguments.unwrap_or_else(|| serde_json::json!({}));
            qmp.execute(command, arguments).unwrap_or_else(|error| panic!("{command}: {error:#}"));
        }
        assert_eq!(qmp.event("DEVICE_DELETED").expect("told")["device"], "dimm0");
    }
    record(guest, "arrived", &["device=dimm0", "kind=fsdax"]);
    record(guest, "departure", &["device=dimm0", "answer=accepted"]);
    record(guest, "departed", &["device=dimm0", "cause=announced"]);
    hand.put(0).expect("put back");
    record(guest, "arrived", &["device=dimm0", "kind=fsdax"]);
    assert!(hand.has(0).expect("an answer"));
}

/// A machine without any, and free slots: a module is plugged in, and an NVDIMM, and both are there without a reboot.
// covers: S5
#[test]
fn modules_and_nvdimms_that_are_plugged_in_are_found_and_attached() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let spare = Spare { slots: 4, bytes: 4 * GIB, nvdimms: true };
    let mut guest = start_shell(&Machine { smp: 2, pmem: vec![], spare, ..shell() });
    has(&ask(&mut guest, "nvdimm"), &["no NVDIMM"]);
    guest.hand().plug_module(2, &directory.path().join("module"), 64 * MIB).expect("taken");
    let module = record(&mut guest, "arrived", &["device=dimm0", "provider=dimm", "size=67108864", "kind=devdax"]);
    has(&ask(&mut guest, "nvdimm"), &["0: dimm0 (dimm)", "attached with DAX"]);
    ask(&mut guest, "pmem write dimm0 0 hello");
    guest.hand().plug_nvdimm("late", &directory.path().join("late"), 128 * MIB).expect("taken");
    record(&mut guest, "arrived", &["device=pmem0", "provider=nvdimm", "size=134217728"]);
    has(&ask(&mut guest, "nvdimm"), &["1: pmem0 (nvdimm)"]);
    ask(&mut guest, "pmem write pmem0 0 hello");
    has(&ask(&mut guest, "pmem read pmem0 0 5"), &["hello"]);
    has(&ask(&mut guest, "nvdimm pmem0"), &["memory device"]);
    ask(&mut guest, "arrivals");
    guest.hand().pull(2).expect("pulled");
    record(&mut guest, "departed", &["device=dimm0", "slot=2"]);
    // What has left has its addresses no more: something else comes there.
    guest.hand().plug_nvdimm("after", &directory.path().join("after"), 32 * MIB).expect("taken");
    let after = record(&mut guest, "arrived", &["device=pmem1", "provider=nvdimm", "size=33554432"]);
    assert_eq!(after.get("base"), module.get("base"), "QEMU puts it elsewhere: the test says nothing");
    ask(&mut guest, "pmem write pmem1 0 after");
    has(&ask(&mut guest, "pmem read pmem1 0 5"), &["after"]);
    // And another module, by which the one that left is not there either.
    guest.hand().plug_module(3, &directory.path().join("other"), 32 * MIB).expect("taken");
    record(&mut guest, "arrived", &["device=dimm1", "provider=dimm", "size=33554432"]);
    refused(&mut guest, "attach dimm0");
    // Nor does a smaller module in the slot that it had answer to its name.
    let backend = serde_json::json!({ "id": "module2" });
    guest.hand().monitor().expect("a monitor").execute("object-del", backend).expect("nobody uses it");
    guest.hand().plug_module(2, &directory.path().join("smaller"), 32 * MIB).expect("taken");
    record(&mut guest, "arrived", &["device=dimm2", "provider=dimm", "size=33554432"]);
    for line in ["pull dimm0", "policy dimm0", "policy dimm0 keep"] {
        has(&refused(&mut guest, line), &["the module of dimm0 is not there"]);
    }
    has(&ask(&mut guest, "policy dimm2"), &["yield"]);
    assert!(guest.hand().has(2).expect("an answer"), "another module was pulled out");
    for device in ["dimm2", "pmem1", "pmem0", "dimm1"] {
        ask(&mut guest, &format!("remove {device}"));
    }
    assert_good(&exit(guest));
    // Beside one that was there at boot, and is left as it is.
    let spare = Spare { slots: 2, bytes: 4 * GIB, nvdimms: true };
    let pmem = vec![Nvdimm::temporary(64 * MIB)];
    let mut guest = start_shell(&Machine { smp: 2, pmem, spare, ..shell() });
    ask(&mut guest, "attach 0");
    ask(&mut guest, "pmem write 0 0 first");
    guest.hand().plug_nvdimm("second", &directory.path().join("second"), 32 * MIB).expect("taken");
    record(&mut guest, "arrived", &["device=pmem1", "provider=nvdimm", "size=33554432", "kind=devdax"]);
    has(&ask(&mut guest, "pmem read 0 0 5"), &["first"]);
    has(&ask(&mut guest, "nvdimm"), &["0: pmem0 (nvdimm)", "1: pmem1 (nvdimm)"]);
    ask(&mut guest, "remove 0");
    ask(&mut guest, "remove 1");
    assert_good(&exit(guest));
}
