//! NVDIMMs: none, one, two, and contents that outlive a run.

use crate::support::{
    ask, assert_good, command, exit, has, has_line, machine, records, refused, run, shell, start, start_shell, tail,
};
use boot::backing::{Dimm, Nvdimm};
use boot::cli::Mode;
use boot::guest::Guest;
use boot::machine::Machine;
use boot::outcome::Status;
use boot::size::{GIB, MIB, PAGE_BYTES};

/// The in-kernel tests of a machine without an NVDIMM are in `tests/guest.rs`; a demonstration has nothing to show, says
/// so, and comes to an end by itself.
#[test]
fn no_nvdimm_is_said() {
    let outcome = run(&Machine { pmem: vec![], ..machine() });
    assert_eq!(records(&outcome, "nvdimm"), []);
    assert!(has_line(&outcome, &["no NVDIMM found"]), "{}", tail(&outcome));
    assert_eq!(records(&outcome, "verdict").len(), 1, "{}", tail(&outcome));
}

#[test]
fn two_nvdimms_are_found_with_their_own_sizes() {
    let outcome =
        run(&Machine { smp: 2, pmem: vec![Nvdimm::temporary(GIB), Nvdimm::temporary(64 * MIB)], ..machine() });
    assert_good(&outcome);
    let mut found: Vec<_> = records(&outcome, "nvdimm")
        .iter()
        .filter_map(|nvdimm| Some((nvdimm.number("base")?, nvdimm.number("size")?)))
        .collect();
    found.sort_unstable();
    found.dedup();
    let sizes: Vec<_> = found.iter().map(|(_, size)| *size).collect();
    assert_eq!(sizes, [GIB, 64 * MIB], "{}", tail(&outcome));
    assert!(found[0].0 + found[0].1 <= found[1].0, "they overlap: {found:x?}");
}

/// The label area is on top of the size that was asked for, and the size need not be a multiple of a large leaf.
#[test]
fn an_odd_size_is_what_the_guest_sees() {
    let size = 64 * MIB + 3 * PAGE_BYTES;
    let outcome = run(&Machine { smp: 1, pmem: vec![Nvdimm::temporary(size)], ..machine() });
    assert_good(&outcome);
    assert_eq!(records(&outcome, "nvdimm").iter().find_map(|nvdimm| nvdimm.number("size")), Some(size));
}

/// An NVDIMM that is not armed is read, mapped for reading, and checked; whatever writes is refused with the reason.
// covers: M4
#[test]
fn an_nvdimm_that_is_not_armed_takes_no_writes() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("kept");
    let kept = || Nvdimm::kept(&file, None, 64 * MIB).unwrap_or_else(|error| panic!("{error:#}"));
    let mut guest = start_shell(&Machine { smp: 1, pmem: vec![kept()], ..shell() });
    for line in ["attach 0 fsdax", "mkfs 0", "mount 0", "write 0 /a 0 hello", "umount 0"] {
        ask(&mut guest, line);
    }
    assert_good(&exit(guest));
    let before = std::fs::read(&file).expect("the file");

    let unarmed = || Machine { smp: 1, pmem: vec![kept().not_armed()], ..shell() };
    let mut guest = start_shell(&unarmed());
    let why = "takes no writes: a memory device behind it is not armed";
    assert!(refused(&mut guest, "badblocks init 0").contains(why));
    ask(&mut guest, "attach 0 fsdax");
    for line in ["mkfs 0", "mount 0", "pmem write 0 8192 hello"] {
        let refusal = refused(&mut guest, line);
        assert!(refusal.contains(why), "{line}: {refusal}");
    }
    has(&ask(&mut guest, "fsck 0"), &["problems=0"]);
    ask(&mut guest, "pmem read 0 0 64");
    ask(&mut guest, "remove 0");
    ask(&mut guest, "attach 0");
    assert!(refused(&mut guest, "register 0 4").contains("the memory takes no writes"));
    has(&ask(&mut guest, "hold 0 4096"), &["reads the page at 0x1000 of 0"]);
    ask(&mut guest, "remove 0");
    assert_good(&exit(guest));
    let outcome = run(&Machine { mode: Mode::Test, append: vec!["tests=*.read_only.*".into()], ..unarmed() });
    assert_good(&outcome);
    let passed = outcome.console.iter().filter(|line| line.starts_with("ok ") && !line.contains("SKIP")).count();
    assert_eq!(passed, 3, "{}", tail(&outcome));
    // Nothing to demonstrate, which is said.
    let outcome = run(&Machine { mode: Mode::Demo, timeout: machine().timeout, ..unarmed() });
    assert!(matches!(&outcome.status, Status::Bad(_)), "{}", tail(&outcome));
    assert!(has_line(&outcome, &[why]), "{}", tail(&outcome));
    assert!(std::fs::read(&file).expect("the file") == before, "the file has changed");
}

/// A device begins where the one before it ends: here at no multiple of 1 GiB, beside a module of RAM, although it is
/// large enough to be mapped by a leaf of that size.
#[test]
fn a_device_at_a_crooked_address_is_mapped_by_what_fits() {
    let machine = |mode| Machine {
        smp: 2,
        dimms: vec![Dimm::temporary(256 * MIB)],
        pmem: vec![Nvdimm::temporary(GIB + 2 * MIB)],
        mode,
        append: vec!["tests=mm.*".into()],
        ..machine()
    };
    let outcome = run(&machine(Mode::Demo));
    let base = records(&outcome, "nvdimm").iter().find_map(|nvdimm| nvdimm.number("base"));
    assert!(base.is_some_and(|base| !base.is_multiple_of(GIB) && base.is_multiple_of(2 * MIB)), "{base:x?}");
    assert_good(&outcome);
    assert!(has_line(&outcome, &["the device begins at a multiple of 2MiB"]), "{}", tail(&outcome));
    // The in-kernel tests that need a leaf of 1 GiB say that they cannot have it.
    let outcome = run(&machine(Mode::Test));
    assert_good(&outcome);
    assert!(has_line(&outcome, &["a_1g_leaf", "SKIP", "does not begin at a multiple of 1GiB"]), "{}", tail(&outcome));
}

/// Attaches the first NVDIMM's device: the shell of a fresh boot has none.
fn attach(guest: &mut Guest) {
    let answer = command(guest, "attach 0");
    assert!(!answer.iter().any(|line| line.starts_with("error")), "{answer:?}");
}

#[test]
fn what_one_boot_wrote_the_next_boot_reads() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("kept, with a comma");
    let machine = || {
        let nvdimm = Nvdimm::kept(&file, None, 64 * MIB).unwrap_or_else(|error| panic!("{error:#}"));
        Machine { smp: 1, pmem: vec![nvdimm], ..shell() }
    };
    let mut first = start(&machine());
    first.prompt().unwrap_or_else(|error| panic!("{error:#}"));
    attach(&mut first);
    let answer = command(&mut first, "pmem write 0 4096 hello");
    assert!(!answer.iter().any(|line| line.starts_with("error")), "{answer:?}");
    assert_good(&exit(first));

    let mut second = start(&machine());
    second.prompt().unwrap_or_else(|error| panic!("{error:#}"));
    attach(&mut second);
    let answer = command(&mut second, "pmem read 0 4096 5");
    assert!(answer.iter().any(|line| line.contains("hello")), "{answer:?}");
    // The neighbouring bytes are still those of an empty file: the write went where it was sent.
    let before = command(&mut second, "pmem read 0 4091 5");
    assert!(!before.iter().any(|line| line.contains("hello")), "{before:?}");
    assert_good(&exit(second));
}

#[test]
fn the_shell_answers_bad_input_with_one_line_and_goes_on() {
    let mut guest = start(&Machine { smp: 1, ..shell() });
    guest.prompt().unwrap_or_else(|error| panic!("{error:#}"));
    for bad in [
        "dance",
        "pmem",
        "pmem read 9 0 5",
        "pmem read 0 -1 5",
        "pmem write 0 99999999999999999999 x",
        "attach x",
        "fsload",
        "fsload 0 1 99 0",
        "fsload 9 1 1 1",
    ] {
        let answer = command(&mut guest, bad);
        assert!(answer.len() == 1 && answer[0].starts_with("error: "), "{bad:?}: {answer:?}");
    }
    // A device by its number, also in hexadecimal, and by its name.
    for good in ["attach 0x0", "pmem read 0 0 5", "pmem read pmem0 0 5", "remove 0x0"] {
        let answer = command(&mut guest, good);
        assert!(!answer.iter().any(|line| line.starts_with("error")), "{good:?}: {answer:?}");
    }
    assert_good(&exit(guest));
}

/// Behind the window for persistent memory QEMU keeps room for PCI: with some sizes it did not start.
#[test]
fn a_device_of_1000_gib_is_attached() {
    let mut guest = start_shell(&Machine { smp: 1, pmem: vec![Nvdimm::temporary(1000 * GIB)], ..shell() });
    ask(&mut guest, "attach 0");
    ask(&mut guest, "remove 0");
    let outcome = exit(guest);
    assert_good(&outcome);
    assert_eq!(records(&outcome, "nvdimm")[0].number("size"), Some(1000 * GIB));
}

#[test]
fn a_lost_page_and_a_medium_without_a_file_system_are_told_as_what_they_are() {
    let mut guest = start_shell(&Machine { smp: 1, pmem: vec![Nvdimm::temporary(64 * MIB)], ..shell() });
    ask(&mut guest, "attach 0");
    ask(&mut guest, "poison 0 4096");
    let refusal = refused(&mut guest, "hold 0 4096");
    assert!(refusal.contains("cannot read the page at 0x1000 of 0: SIGBUS"), "{refusal}");
    assert!(refusal.contains("the page is lost"), "{refusal}");
    ask(&mut guest, "hold 0 8192");
    ask(&mut guest, "remove 0");
    ask(&mut guest, "attach 0 fsdax");
    let refusal = refused(&mut guest, "mount 0");
    assert!(
        refusal.contains("there is no file system of Unplug's on it (mkfs 0 makes one)")
            && !refusal.contains("damaged"),
        "{refusal}"
    );
    assert_good(&exit(guest));
}
