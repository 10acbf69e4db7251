//! Faults on demand and bad input, from the boot options and the shell: one line each.

use crate::support::{assert_good, command, exit, shell, start};
use boot::backing::Nvdimm;
use boot::machine::Machine;
use boot::size::{MIB, PAGE_BYTES};

/// covers: A6
#[test]
fn a_fault_from_the_boot_options_goes_off_once() {
    let pmem = vec![Nvdimm::temporary(64 * MIB), Nvdimm::temporary(16 * PAGE_BYTES)];
    let append = vec!["inject=attach:3".into()];
    let mut guest = start(&Machine { smp: 2, pmem, append, ..shell() });
    guest.prompt().unwrap_or_else(|error| panic!("{error:#}"));
    let answer = command(&mut guest, "attach 0");
    assert_eq!(answer.last().map(String::as_str), Some("error: step map: it was made to fail"), "{answer:?}");
    assert!(!command(&mut guest, "attach 0").iter().any(|line| line.starts_with("error")));
    // A removal goes on, and says what it met.
    assert!(command(&mut guest, "inject remove 5").is_empty());
    let removal = command(&mut guest, "remove 0");
    let met: Vec<_> =
        removal.iter().filter(|line| line.starts_with("@removal") && line.contains("problem=1")).collect();
    assert!(met.len() == 1 && met[0].contains("step=drain"), "{removal:?}");
    // A removal for which there is no memory at all goes on as well, and its report can be read afterwards.
    assert!(!command(&mut guest, "attach pmem0").iter().any(|line| line.starts_with("error")));
    assert!(command(&mut guest, "inject alloc 1+").is_empty());
    let starved = command(&mut guest, "remove pmem0");
    assert!(starved.iter().any(|line| line.contains("the report is kept in the reserve")), "{starved:?}");
    let kept = command(&mut guest, "removal pmem0");
    assert!(kept.iter().any(|line| line.contains(" release: ")), "{kept:?}");
    let refused = command(&mut guest, "attach 0");
    assert!(refused.iter().any(|line| line.contains("the report of its removal is kept no longer")), "{refused:?}");
    assert!(refused.last().is_some_and(|line| line.ends_with("memory ran out")), "{refused:?}");
    assert_eq!(command(&mut guest, "removal 0"), ["error: no report of a removal is kept"]);
    assert!(command(&mut guest, "inject off").is_empty());
    assert!(!command(&mut guest, "attach 0").iter().any(|line| line.starts_with("error")));
    command(&mut guest, "inject remove 5");
    command(&mut guest, "remove 0");
    // Every phase of the kill is on the console, before the step that it belongs to is done; and the report is kept.
    let phases: Vec<_> = removal.iter().filter(|line| line.starts_with("@kill")).collect();
    assert!(phases.len() == 5 && phases[1].contains("phase=holders_told told=0 failed=0"), "{removal:?}");
    let kept = command(&mut guest, "removal 0");
    let words = ["removal of pmem0 (idle)", " stop_io: ", "first attempt was made to fail"];
    assert!(words.iter().all(|words| kept.iter().any(|line| line.contains(words))), "{kept:?}");
    for (bad, line) in [
        ("removal 1", "no report of a removal is kept"),
        ("remove pmem7", "\"pmem7\" is no number of a device, and no name of one"),
        ("removal 7", "there is no NVDIMM 7 (there are 2)"),
        ("inject attach 0", "a fault is attach, remove or alloc, and a number from 1, perhaps with a +"),
        ("inject detach 1", "a fault is attach, remove or alloc, and a number from 1, perhaps with a +"),
        ("remove 0", "no device is attached here"),
        ("remove 7", "there is no NVDIMM 7 (there are 2)"),
        ("badblocks 0", "no device is attached here"),
        ("badblocks drop 0", "the device has no area of its own"),
        (
            "badblocks init 1",
            "the device is smaller than its own metadata: 65536 bytes, and the area alone takes 65536",
        ),
    ] {
        assert_eq!(command(&mut guest, bad), [format!("error: {line}")], "{bad:?}");
    }
    assert!(!command(&mut guest, "attach 0").iter().any(|line| line.starts_with("error")));
    // What cannot be while the device is attached, what has no name, and what would be passed over.
    for (bad, line) in [
        ("badblocks init 0", "device 0 is attached (remove 0 first)"),
        ("badblocks drop 0", "device 0 is attached (remove 0 first)"),
        ("demo", "device 0 is attached (remove 0 first)"),
        ("mem now", "expected: mem, with nothing behind it"),
        ("test zzz", "no test's name matches \"zzz\" (test --list names them)"),
        ("test --list zzz", "no test's name matches \"zzz\" (test --list names them)"),
        ("test --lost", "expected: test [GLOB] [force], or test --list [GLOB]"),
        ("pmem read 0 67108864 1", "out of range: the device has 67108864 bytes"),
        ("zero 0 67108864 512", "out of range: the device has 67108864 bytes"),
        ("mkfs 0 a-label-of-more-than-thirty-two-bytes", "mkfs: a label has at most 32 bytes, not 37"),
    ] {
        assert_eq!(command(&mut guest, bad), [format!("error: {line}")], "{bad:?}");
    }
    let listed = command(&mut guest, "test --list platform.*");
    assert!(listed.len() > 3 && listed.iter().all(|name| name.starts_with("platform.")), "{listed:?}");
    let twice = command(&mut guest, "attach 0");
    // A step has its line when it begins: that of the first, which fails here.
    assert!(twice.first().is_some_and(|line| line == "@attach device=pmem0 step=check n=1 of=10"), "{twice:?}");
    assert!(twice.last().is_some_and(|line| line.ends_with("a device of this name is attached already")), "{twice:?}");
    let outcome = exit(guest);
    assert_good(&outcome);
}
