//! Where memory is plugged in and out, as the firmware's programs and tables say it: QEMU's own, and damaged ones.
//!
//! `tables/` holds what QEMU 7.2 makes for `-machine q35,nvdimm=on -m 512M,slots=4,maxmem=8G` with a module and an NVDIMM.

use nvdimm::acpi::aml::{self, MemoryHotplug};
use nvdimm::acpi::{PhysMemory, discover, sdt};
use nvdimm::nfit::ByteRange;
use proptest::prelude::*;

const DSDT: &[u8] = include_bytes!("tables/q35-dsdt.aml");
const SSDT: &[u8] = include_bytes!("tables/q35-ssdt-nvdimm.aml");
const SRAT: &[u8] = include_bytes!("tables/q35-srat.bin");

/// Replaces the one place at which `from` stands.
fn changed(program: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let at = program.windows(from.len()).position(|bytes| bytes == from).expect("it is there");
    let mut changed = program.to_vec();
    changed.splice(at..at + from.len(), to.iter().copied());
    changed
}

fn line(program: &[u8]) -> String {
    match aml::memory_hotplug(&[program]) {
        Ok(found) => format!("{found:?}"),
        Err(fault) => fault.to_string(),
    }
}

#[test]
fn what_qemu_says_is_read() {
    let found = MemoryHotplug { port: 0xa00, nr_slots: 4 };
    assert_eq!(aml::memory_hotplug(&[DSDT, SSDT]), Ok(Some(found)));
    assert_eq!(aml::memory_hotplug(&[SSDT, DSDT]), Ok(Some(found)));
    assert_eq!(aml::nvdimm_port(&[DSDT, SSDT]), Ok(Some(0xa18)));
    assert_eq!((aml::memory_hotplug(&[SSDT]), aml::nvdimm_port(&[DSDT])), (Ok(None), Ok(None)));
    assert_eq!((aml::memory_hotplug(&[]), aml::nvdimm_port(&[&[]])), (Ok(None), Ok(None)));
}

const CRS: &[u8] = b"\x08_CRS\x11\x0d\x0a\x0a\x47\x01\x00\x0a\x00\x0a\x00\x18\x79\x00";

#[test]
fn what_is_another_shape_is_one_line_and_not_used() {
    assert!(DSDT.windows(CRS.len()).any(|bytes| bytes == CRS), "the descriptor is not what the cases below change");
    for (to, what) in [
        // No resources, no buffer, a buffer beyond the end, one whose length is no constant.
        (&b"\x08_CRX\x11\x0d\x0a\x0a\x47\x01\x00\x0a\x00\x0a\x00\x18\x79\x00"[..], "no resources with an I/O port"),
        (b"\x08_CRS\x12\x0d\x0a\x0a\x47\x01\x00\x0a\x00\x0a\x00\x18\x79\x00", "no resources with an I/O port"),
        (b"\x08_CRS\x11\x8f\x0a\x0a\x47\x01\x00\x0a\x00\x0a\x00\x18\x79\x00", "no resources with an I/O port"),
        (b"\x08_CRS\x11\x0d\x60\x0a\x47\x01\x00\x0a\x00\x0a\x00\x18\x79\x00", "no resources with an I/O port"),
        // No port among the resources.
        (b"\x08_CRS\x11\x0d\x0a\x0a\x79\x01\x00\x0a\x00\x0a\x00\x18\x79\x00", "no resources with an I/O port"),
        (b"\x08_CRS\x11\x0d\x0a\x0a\x8a\xff\xff\x0a\x00\x0a\x00\x18\x79\x00", "no resources with an I/O port"),
        // At two places, at none, too few.
        (b"\x08_CRS\x11\x0d\x0a\x0a\x47\x01\x00\x0a\x00\x0b\x00\x18\x79\x00", "its I/O ports are not 24"),
        (b"\x08_CRS\x11\x0d\x0a\x0a\x47\x01\x00\x00\x00\x00\x00\x18\x79\x00", "its I/O ports are not 24"),
        (b"\x08_CRS\x11\x0d\x0a\x0a\x47\x01\x00\x0a\x00\x0a\x00\x17\x79\x00", "its I/O ports are not 24"),
        (b"\x08_CRS\x11\x0d\x0a\x0a\x47\x01\xff\xff\xff\xff\x00\x18\x79\x00", "its I/O ports are not 24"),
    ] {
        let said = line(&changed(DSDT, CRS, to));
        assert!(said.contains(what) && said.starts_with("AML: \"MHPD\"") && !said.contains('\n'), "{said}");
    }
    let slots: &[u8] = b"MDNR\x0a\x04";
    assert!(line(&changed(DSDT, slots, b"MDNR\x0b\x00\x01")).contains("nr_slots: 256"));
    for to in [&b"MDNR\x0b\x01\x01"[..], b"MDNR\x60\x04", b"MDNS\x0a\x04", b"MDNR\x0e\x04"] {
        assert!(
            line(&changed(DSDT, slots, to)).contains("the number of slots is no constant of at most 256"),
            "{to:?}"
        );
    }
    let no_slots = DSDT.windows(4).position(|bytes| bytes == b"MHPC").expect("it is there");
    assert!(line(&DSDT[..no_slots + 8]).contains("a length beyond the end of the table"));
    let renamed = changed(DSDT, b"._SB_MHPC", b"._SB_MHPX");
    assert!(line(&renamed).contains("the device that says how many slots there are is missing"));
    for (to, fine) in [
        (&b"NPIO\x01\x0b\x18\x0a\x0a\x04"[..], true),
        (b"NPIO\x00\x0b\x18\x0a\x0a\x04", false),
        (b"NPIO\x01\x60\x18\x0a\x0a\x04", false),
        (b"NPIO\x01\x0b\x00\x00\x0a\x04", false),
        (b"NPIO\x01\x0c\x18\x0a\x01\x00\x0a\x04", false),
        (b"NPIO\x01\x0b\x18\x0a\x0a\x08", false),
    ] {
        let asked = aml::nvdimm_port(&[&changed(SSDT, b"NPIO\x01\x0b\x18\x0a\x0a\x04", to)]);
        assert_eq!(asked.is_ok(), fine, "{to:?}");
    }
}

/// Tables one behind the other, from `BASE` on.
struct Memory(Vec<u8>);

const BASE: u64 = 0xe0000;

impl PhysMemory for Memory {
    fn bytes(&self, base: u64, len_bytes: u64) -> Option<&[u8]> {
        let start = usize::try_from(base.checked_sub(BASE)?).ok()?;
        self.0.get(start..start.checked_add(usize::try_from(len_bytes).ok()?)?)
    }
}

fn seal(table: &mut [u8], at: usize) {
    table[at] = 0;
    table[at] = 0_u8.wrapping_sub(sdt::byte_sum(table));
}

fn table(signature: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; sdt::HEADER_BYTES];
    bytes[..4].copy_from_slice(signature);
    bytes[4..8].copy_from_slice(&((sdt::HEADER_BYTES + body.len()) as u32).to_le_bytes());
    bytes.extend_from_slice(body);
    seal(&mut bytes, 9);
    bytes
}

/// A root pointer, the table that it points to, and these; the last is the DSDT, to which only the FADT points.
fn memory(tables: &[Vec<u8>], dsdt: &[u8]) -> Memory {
    let mut next = BASE + 0x400;
    let dsdt_at = BASE + 0x100_000;
    let mut fadt = [0; 208];
    fadt[40 - 36..44 - 36].copy_from_slice(&(dsdt_at as u32).to_le_bytes());
    fadt[46 - 36] = 9;
    fadt[64 - 36..][..2].copy_from_slice(&0x604_u16.to_le_bytes());
    fadt[80 - 36..][..2].copy_from_slice(&0x620_u16.to_le_bytes());
    fadt[92 - 36] = 16;
    let tables: Vec<_> = [table(b"FACP", &fadt)].into_iter().chain(tables.iter().cloned()).collect();
    let (mut bytes, mut bases) = (vec![0; 0x100_000 + dsdt.len()], Vec::new());
    for table in &tables {
        bytes[(next - BASE) as usize..][..table.len()].copy_from_slice(table);
        bases.push(next as u32);
        next += table.len() as u64;
    }
    bytes[0x100_000..].copy_from_slice(dsdt);
    let root = table(b"RSDT", &bases.iter().flat_map(|base| base.to_le_bytes()).collect::<Vec<_>>());
    bytes[0x100..][..root.len()].copy_from_slice(&root);
    let mut rsdp = *b"RSD PTR \0UNPLUG\0....";
    rsdp[16..20].copy_from_slice(&(BASE as u32 + 0x100).to_le_bytes());
    seal(&mut rsdp, 8);
    bytes[..rsdp.len()].copy_from_slice(&rsdp);
    Memory(bytes)
}

#[test]
fn programs_events_and_ranges_come_with_the_chain_of_tables() {
    let memory = memory(&[SSDT.to_vec(), SRAT.to_vec()], DSDT);
    let info = discover(&memory, BASE).expect("a chain");
    assert_eq!(info.notices.len(), 0, "{:?}", info.notices);
    assert_eq!(info.programs.iter().map(|program| program.len()).collect::<Vec<_>>(), [DSDT.len(), SSDT.len()]);
    let events = info.events.expect("events");
    assert_eq!((events.gpe0_port, events.status_bytes, events.sci, events.control_port), (0x620, 8, 9, 0x604));
    // The NVDIMM's own range is hot-pluggable in QEMU's view by the one around it.
    assert_eq!(info.hot_ranges.as_slice(), [ByteRange { base: 1 << 32, len_bytes: 0x2_e000_0000 }]);
}

fn srat(entries: &[&[u8]]) -> Vec<u8> {
    table(b"SRAT", &[&[0; 12][..], &entries.concat()].concat())
}

fn range(base: u64, len: u64, flags: u32) -> Vec<u8> {
    let mut entry = vec![1, 40];
    entry.extend_from_slice(&[0; 6]);
    entry.extend_from_slice(&base.to_le_bytes());
    entry.extend_from_slice(&len.to_le_bytes());
    entry.extend_from_slice(&[0; 4]);
    entry.extend_from_slice(&flags.to_le_bytes());
    entry.extend_from_slice(&[0; 8]);
    entry
}

#[test]
fn a_bad_entry_of_the_srat_costs_itself_or_what_comes_behind_it() {
    let good = range(1 << 32, 1 << 30, 3);
    let hot = |tables: &[u8]| {
        let memory = memory(&[tables.to_vec()], DSDT);
        let info = discover(&memory, BASE).expect("a chain");
        (info.hot_ranges.len(), info.notices.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    assert_eq!(hot(&srat(&[&good, &range(0, 1 << 20, 1), &range(1 << 33, 1 << 30, 2), &good])), (2, vec![]));
    for (bad, kept, line) in [
        (vec![1, 0], 1, "SRAT: entry at 0x58 claims 0 bytes where 42 are left; rest not read"),
        (vec![1, 200], 1, "SRAT: entry at 0x58 claims 200 bytes where 42 are left; rest not read"),
        (vec![1, 8, 0, 0, 0, 0, 0, 0], 2, "SRAT: entry at 0x58 (memory) has 8 bytes, too few; skipped"),
        (range(1 << 32, 0, 3), 2, "SRAT: entry at 0x58: 0x0 bytes at 0x100000000 are no range; skipped"),
        (range(u64::MAX, 2, 3), 2, "SRAT: entry at 0x58: 0x2 bytes at 0xffffffffffffffff are no range; skipped"),
    ] {
        assert_eq!(hot(&srat(&[&good, &bad, &good])), (kept, vec![line.to_string()]));
    }
    let many: Vec<_> = (0..17).map(|nr| range(nr << 32, 1 << 30, 3)).collect();
    let many: Vec<&[u8]> = many.iter().map(Vec::as_slice).collect();
    let (kept, lines) = hot(&srat(&many));
    assert_eq!((kept, &*lines[0]), (16, "SRAT: the range at 0x1000000000 is left out: there is room for 16"));
    let mut unsealed = srat(&[&good]);
    unsealed[60] ^= 1;
    assert_eq!(hot(&unsealed).0, 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Damage anywhere in a program: no panic, and an answer of one line.
    #[test]
    fn damaged_programs(
        changes in prop::collection::vec((0x1d40..0x1dd4_usize, any::<u8>()), 1..8),
        cut in prop_oneof![Just(DSDT.len()), 0x1d40..DSDT.len()],
    ) {
        let mut program = DSDT.to_vec();
        for (at, byte) in changes {
            program[at] = byte;
        }
        program.truncate(cut);
        prop_assert!(!line(&program).contains('\n'));
        let _ = aml::nvdimm_port(&[&program]);
    }
}
