//! Bad NFITs, through the firmware and into the kernel: each is one line on the console, and the boot goes on.
//!
//! QEMU writes no NFIT of its own for a machine without NVDIMMs; the one made here is the guest's only one. QEMU and
//! the firmware both write a table's checksum anew, so a wrong one cannot be sent this way: the unit tests of `nvdimm`
//! have that case.

use crate::support::{assert_good, exit, has_line, shell, start, tail};
use boot::machine::Machine;

/// The bytes of an NFIT: the header that every ACPI table has, four reserved bytes, and structures.
fn nfit(structures: &[Vec<u8>]) -> Vec<u8> {
    let body = structures.concat();
    let mut table = Vec::new();
    table.extend(b"NFIT");
    table.extend((40 + body.len() as u32).to_le_bytes());
    // Revision, then the checksum, which is filled in below.
    table.extend([1, 0]);
    table.extend(b"UNPLUGBADTABLE");
    table.extend(1u32.to_le_bytes());
    table.extend(b"TEST");
    table.extend(1u32.to_le_bytes());
    table.extend([0; 4]);
    table.extend(body);
    table[9] = table.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte));
    table
}

/// A structure of a type, with the length that it claims.
fn structure(kind: u16, claimed_bytes: u16, body: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &claimed_bytes.to_le_bytes(), body].concat()
}

/// A System Physical Address Range Structure (ACPI 6.4, table 5.132) for persistent memory.
fn range(index: u16, base: u64, bytes: u64) -> Vec<u8> {
    const PERSISTENT_MEMORY: [u8; 16] =
        [0x79, 0xd3, 0xf0, 0x66, 0xf3, 0xb4, 0x74, 0x40, 0xac, 0x43, 0x0d, 0x33, 0x18, 0xb7, 0x8c, 0xdb];
    let mut body = Vec::new();
    body.extend(index.to_le_bytes());
    body.extend([0; 2 + 4 + 4]);
    body.extend(PERSISTENT_MEMORY);
    body.extend(base.to_le_bytes());
    body.extend(bytes.to_le_bytes());
    // Write-back, non-volatile.
    body.extend(0x8008u64.to_le_bytes());
    structure(0, 56, &body)
}

/// Boots with the table and expects one line for each of the words, no NVDIMM, and a kernel that is at your service.
fn boot_with(structures: &[Vec<u8>], words: &[&str]) {
    boot_and_find(structures, words, &[]);
}

/// As [`boot_with`]; the NVDIMMs that are found have these bases and sizes, in bytes.
fn boot_and_find(structures: &[Vec<u8>], words: &[&str], found: &[(u64, u64)]) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("nfit.bin");
    std::fs::write(&file, nfit(structures)).expect("written");
    let mut guest = start(&Machine { smp: 1, pmem: vec![], acpitables: vec![file], ..shell() });
    guest.prompt().unwrap_or_else(|error| panic!("{error:#}"));
    let outcome = exit(guest);
    assert_good(&outcome);
    assert!(has_line(&outcome, &["1 NFIT"]), "the table did not arrive\n{}", tail(&outcome));
    assert_eq!(has_line(&outcome, &["no NVDIMM found"]), found.is_empty(), "{}", tail(&outcome));
    let reported = outcome.console.iter().filter(|line| line.starts_with("@nvdimm ")).count();
    assert_eq!(reported, found.len(), "NVDIMMs\n{}", tail(&outcome));
    for (base, bytes) in found {
        assert!(has_line(&outcome, &["@nvdimm ", &format!("base={base:#x} size={bytes} ")]), "{}", tail(&outcome));
    }
    for word in words {
        let lines = outcome.console.iter().filter(|line| line.contains("nfit: ") && line.contains(word)).count();
        assert_eq!(lines, 1, "lines of the NFIT's with {word:?}\n{}", tail(&outcome));
    }
}

#[test]
fn a_length_of_zero_ends_the_walk() {
    boot_with(&[structure(0, 0, &[0; 52])], &["length of zero"]);
}

#[test]
fn a_structure_beyond_the_end_is_not_read() {
    boot_with(&[structure(0, 56, &[0; 8])], &["claims 56 bytes where 12 are left"]);
}

#[test]
fn an_unknown_structure_is_skipped_and_the_next_one_read() {
    boot_with(
        &[structure(0x7777, 12, &[0; 8]), range(1, u64::MAX - 0xfff, 0x20_0000)],
        &["unknown type 30583; skipped", "range 1 "],
    );
}

#[test]
fn ranges_that_overlap_ram_or_wrap_are_refused() {
    boot_with(
        &[range(1, 0x100_0000, 0x20_0000), range(2, u64::MAX - 0xf_ffff, 0x20_0000)],
        &["range 1 (0x1000000 + 0x200000 bytes) overlaps RAM", "range 2 (0xfffffffffff00000 + 0x200000 bytes) wraps"],
    );
}

/// The first of two ranges that overlap is used, the other one not.
#[test]
fn of_ranges_that_overlap_the_first_is_used() {
    const BASE: u64 = 8 << 30;
    boot_and_find(
        &[range(1, BASE, 0x40_0000), range(2, BASE + 0x3f_f000, 0x20_0000), range(3, BASE - 0x1f_f000, 0x20_0000)],
        &[
            "range 2 (0x2003ff000 + 0x200000 bytes) overlaps range 1; not used",
            "range 3 (0x1ffe01000 + 0x200000 bytes) overlaps range 1; not used",
        ],
        &[(BASE, 0x40_0000)],
    );
}

/// The CPU of a small machine has 40 bits of physical address. What lies below is used.
#[test]
fn a_range_above_the_cpus_limit_is_refused() {
    const LIMIT: u64 = 1 << 40;
    boot_and_find(
        &[range(1, LIMIT, 0x20_0000), range(2, LIMIT - 0x1000, 0x2000), range(3, LIMIT - 0x20_0000, 0x10_0000)],
        &[
            "range 1 (0x10000000000 + 0x200000 bytes) goes above the CPU's last physical address 0xffffffffff; not used",
            "range 2 (0xfffffff000 + 0x2000 bytes) goes above the CPU's last physical address 0xffffffffff; not used",
        ],
        &[(LIMIT - 0x20_0000, 0x10_0000)],
    );
}

#[test]
fn more_ranges_than_there_is_room_for_are_not_used() {
    let at = |index: u16| (8 << 30) + u64::from(index) * 0x20_0000;
    let many: Vec<_> = (1..=34).map(|index| range(index, at(index), 0x20_0000)).collect();
    let found: Vec<_> = (1..=32).map(|index| (at(index), 0x20_0000)).collect();
    let line =
        |index| format!("range {index} ({:#x} + 0x200000 bytes) is not used: there is room for 32 ranges", at(index));
    boot_and_find(&many, &[&line(33), &line(34)], &found);
}

/// Each fault is one line, but only so many of them: the console is not the table's to fill.
#[test]
fn more_faults_than_there_is_room_for_are_counted() {
    let many: Vec<_> =
        (1..=600).map(|index| range(index, (1 << 50) + u64::from(index) * 0x20_0000, 0x20_0000)).collect();
    boot_with(&many, &["range 1 ", " more faults"]);
}

#[test]
fn a_table_of_nothing_is_no_nvdimm() {
    boot_with(&[], &[]);
}
