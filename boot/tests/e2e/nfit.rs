//! Bad NFITs, through the firmware and into the kernel: each is one line on the console, and the boot goes on.
//!
//! QEMU writes no NFIT of its own for a machine without NVDIMMs; the one made here is the guest's only one. QEMU and
//! the firmware both write a table's checksum anew, so a wrong one cannot be sent this way: the unit tests of `nvdimm`
//! have that case.

use crate::support::{ask, assert_good, exit, has, has_line, refused, shell, start, start_shell, tail};
use boot::backing::Dimm;
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

/// A System Physical Address Range Structure (ACPI 6.5 §5.2.26.2) for persistent memory.
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

/// A Memory Device to System Physical Address Range Map Structure (ACPI 6.5 §5.2.26.3): a device that has all of the range.
fn device(handle: u32, range_index: u16, control_index: u16, bytes: u64, flags: u16) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend(handle.to_le_bytes());
    body.extend([0; 4]);
    body.extend(range_index.to_le_bytes());
    body.extend(control_index.to_le_bytes());
    body.extend(bytes.to_le_bytes());
    body.extend([0; 16]);
    body.extend([0, 0, 1, 0]);
    body.extend(flags.to_le_bytes());
    body.extend([0; 2]);
    structure(1, 48, &body)
}

/// An NVDIMM Control Region Structure (ACPI 6.5 §5.2.26.6).
fn control(index: u16, serial: u32) -> Vec<u8> {
    let mut body = vec![0; 28];
    body[..2].copy_from_slice(&index.to_le_bytes());
    body[20..24].copy_from_slice(&serial.to_le_bytes());
    structure(4, 32, &body)
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
    // The lowest come last.
    let many: Vec<_> = (1..=34).rev().map(|index| range(index, at(index), 0x20_0000)).collect();
    let found: Vec<_> = (1..=32).map(|index| (at(index), 0x20_0000)).collect();
    let line = |index| {
        format!("range {index} ({:#x} + 0x200000 bytes) is not used: there is room for the lowest 32 ranges", at(index))
    };
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

/// The memory of a module of RAM that the memory map does not name, described as an NVDIMM that lost data at the last
/// restore: it is there to be read, and takes no writes.
// covers: M4
#[test]
fn a_device_that_failed_to_restore_its_data_is_read_only() {
    const BASE: u64 = 4 << 30;
    const BYTES: u64 = 64 << 20;
    let table = [range(1, BASE, BYTES), device(7, 1, 0, BYTES, 1 << 1)];
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("nfit.bin");
    std::fs::write(&file, nfit(&table)).expect("written");
    let machine =
        Machine { smp: 1, pmem: vec![], dimms: vec![Dimm::temporary(256 << 20)], acpitables: vec![file], ..shell() };
    let mut guest = start_shell(&machine);
    has(&ask(&mut guest, "nvdimm"), &["0: pmem0 (nvdimm, read-only) 0x100000000..0x104000000"]);
    ask(&mut guest, "attach 0");
    has(&ask(&mut guest, "pmem read 0 4096 2"), &["\\x00\\x00"]);
    let why = "pmem0 takes no writes: a memory device behind it failed to restore its data";
    assert!(refused(&mut guest, "pmem write 0 4096 hello").contains(why));
    has(&ask(&mut guest, "pmem read 0 4096 5"), &["\\x00\\x00\\x00\\x00\\x00"]);
    let outcome = exit(guest);
    assert_good(&outcome);
    let record = outcome.console.iter().find(|line| line.starts_with("@nvdimm ")).cloned().unwrap_or_default();
    assert!(record.ends_with("read_only=1"), "{record}");
}

/// What lies at these addresses is no memory, by the firmware's memory map and by what PCI functions say.
#[test]
fn ranges_over_devices_are_refused_with_the_right_word() {
    let at = |index, base| range(index, base, 0x1000);
    boot_with(
        &[
            at(1, 0xfec0_0000),
            at(2, 0xfee0_0000),
            at(3, 0xb000_0000),
            at(4, 0xfed0_0000),
            at(5, 0xa_0000),
            at(6, 0x7000),
        ],
        &[
            "range 1 (0xfec00000 + 0x1000 bytes) overlaps the interrupt controllers' registers",
            "range 2 (0xfee00000 + 0x1000 bytes) overlaps the interrupt controllers' registers",
            "range 3 (0xb0000000 + 0x1000 bytes) overlaps memory that the firmware has reserved",
            "range 4 (0xfed00000 + 0x1000 bytes) overlaps device addresses",
            "range 5 (0xa0000 + 0x1000 bytes) overlaps device addresses",
            "range 6 (0x7000 + 0x1000 bytes) overlaps RAM",
        ],
    );
}

/// The shell says all that the table says; a device that is behind no range is told of at boot.
#[test]
fn an_nvdimm_is_described_on_demand() {
    const BASE: u64 = 8 << 30;
    let capabilities = structure(7, 16, &[1, 0, 0, 0, 0b11, 0, 0, 0, 0, 0, 0, 0]);
    let table = [
        range(1, BASE, 0x40_0000),
        device(0x1234, 1, 9, 0x40_0000, 1 << 4),
        control(9, 0xabcd),
        device(0x55, 0, 0, 0, 1 << 6),
        capabilities,
    ];
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("nfit.bin");
    std::fs::write(&file, nfit(&table)).expect("written");
    let mut guest = start_shell(&Machine { smp: 1, pmem: vec![], acpitables: vec![file], ..shell() });
    let answer = ask(&mut guest, "nvdimm 0");
    has(
        &answer,
        &[
            "0: pmem0 (nvdimm) 0x200000000..0x200400000",
            "range 1 (0x200000000 + 0x400000 bytes), proximity domain none, attributes wb, nv, 1 memory devices",
            "memory device 0x1234 (node 0, socket 1, controller 2, channel 3, slot 4), serial 0x0000abcd,",
            "ways 1, state has reported a health event",
            "platform capabilities: cache flush, memory flush",
        ],
    );
    assert!(refused(&mut guest, "nvdimm 1").contains("there is no NVDIMM 1"));
    let outcome = exit(guest);
    assert_good(&outcome);
    assert!(has_line(&outcome, &["behind no range: memory device 0x55 was not mapped"]), "{}", tail(&outcome));
}
