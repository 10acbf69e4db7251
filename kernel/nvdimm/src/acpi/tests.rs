//! A small physical memory with tables in it, sound and broken.

use alloc::string::ToString;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::*;

/// Physical memory that begins at `BASE`.
struct Memory(Vec<u8>);

const BASE: u64 = 0xe0000;
const RSDP: u64 = BASE + 0x10;
const RSDT: u64 = BASE + 0x40;
const XSDT: u64 = BASE + 0x80;
const TABLES: u64 = BASE + 0x200;

impl PhysMemory for Memory {
    fn bytes(&self, base: u64, len_bytes: u64) -> Option<&[u8]> {
        let start = usize::try_from(base.checked_sub(BASE)?).ok()?;
        self.0.get(start..start.checked_add(usize::try_from(len_bytes).ok()?)?)
    }
}

fn seal(bytes: &mut [u8], checksum: usize) {
    bytes[checksum] = 0;
    bytes[checksum] = 0_u8.wrapping_sub(sdt::byte_sum(bytes));
}

fn table(signature: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let mut bytes = alloc::vec![0; sdt::HEADER_BYTES];
    bytes[..4].copy_from_slice(signature);
    bytes[4..8].copy_from_slice(&((sdt::HEADER_BYTES + body.len()) as u32).to_le_bytes());
    bytes.extend_from_slice(body);
    seal(&mut bytes, 9);
    bytes
}

fn madt(entries: &[u8]) -> Vec<u8> {
    let mut body = 0xfee0_0000_u32.to_le_bytes().to_vec();
    body.extend_from_slice(&[1, 0, 0, 0]);
    body.extend_from_slice(entries);
    table(b"APIC", &body)
}

fn cpu(apic_id: u8, flags: u8) -> [u8; 8] {
    [0, 8, apic_id, apic_id, flags, 0, 0, 0]
}

fn fadt() -> Vec<u8> {
    let mut body = [0; 200];
    body[76 - 36..][..4].copy_from_slice(&0x608_u32.to_le_bytes());
    body[91 - 36] = 4;
    body[112 - 36..][..4].copy_from_slice(&(1_u32 << 8).to_le_bytes());
    table(b"FACP", &body)
}

impl Memory {
    /// A sound chain to the tables given. `extra` are further entries of both root tables.
    fn new(tables: &[Vec<u8>], extra: &[u32]) -> Self {
        let mut memory = Self(alloc::vec![0; 0x4000]);
        let (mut next, mut bases) = (TABLES, Vec::new());
        for table in tables {
            memory.put(next, table);
            bases.push(next as u32);
            next += table.len() as u64 + 1;
        }
        bases.extend_from_slice(extra);
        let narrow: Vec<u8> = bases.iter().flat_map(|base| base.to_le_bytes()).collect();
        let wide: Vec<u8> = bases.iter().flat_map(|base| u64::from(*base).to_le_bytes()).collect();
        memory.put(RSDT, &table(b"RSDT", &narrow));
        memory.put(XSDT, &table(b"XSDT", &wide));
        let mut rsdp = *b"RSD PTR \0UNPLUG\x02....\x24\0\0\0........\0\0\0\0";
        rsdp[16..20].copy_from_slice(&(RSDT as u32).to_le_bytes());
        rsdp[24..32].copy_from_slice(&XSDT.to_le_bytes());
        seal(&mut rsdp[..20], 8);
        seal(&mut rsdp, 32);
        memory.put(RSDP, &rsdp);
        memory
    }

    fn put(&mut self, base: u64, bytes: &[u8]) {
        self.0[(base - BASE) as usize..][..bytes.len()].copy_from_slice(bytes);
    }

    fn byte(&mut self, base: u64) -> &mut u8 {
        &mut self.0[(base - BASE) as usize]
    }
}

fn lines(info: &AcpiInfo<'_>) -> Vec<alloc::string::String> {
    info.notices.iter().map(ToString::to_string).collect()
}

fn apic_ids(info: &AcpiInfo<'_>) -> Vec<u32> {
    info.madt.as_ref().map_or(Vec::new(), |madt| madt.cpus.iter().map(|cpu| cpu.apic_id).collect())
}

fn usual() -> [Vec<u8>; 3] {
    [madt(&[cpu(0, 1), cpu(4, 1), cpu(5, 0)].concat()), fadt(), table(b"NFIT", &[0; 4])]
}

#[test]
fn a_sound_chain_gives_everything() {
    let tables = usual();
    let memory = Memory::new(&tables, &[]);
    let info = discover(&memory, RSDP).unwrap();
    assert_eq!(lines(&info), [""; 0]);
    assert_eq!((info.nr_tables, apic_ids(&info)), (3, [0, 4].to_vec()));
    let madt = info.madt.as_ref().unwrap();
    assert_eq!((madt.nr_disabled, madt.local_apic_base), (1, 0xfee0_0000));
    assert_eq!(info.pm_timer, Some(PmTimer { port: 0x608, bits: 32 }));
    assert_eq!(info.nfits.as_slice(), [tables[2].as_slice()]);
}

#[test]
fn a_bad_root_pointer_is_an_error() {
    let mut memory = Memory::new(&usual(), &[]);
    for base in [0, BASE - 1, BASE + 0x4000 - 19, u64::MAX] {
        assert_eq!(discover(&memory, base).unwrap_err(), RootError::RsdpUnreadable { base });
    }
    assert_eq!(discover(&memory, RSDP + 1).unwrap_err(), RootError::RsdpSignature { base: RSDP + 1 });
    *memory.byte(RSDP + 10) ^= 1;
    let error = discover(&memory, RSDP).unwrap_err().to_string();
    assert!(error.starts_with("the RSDP has a bad checksum: its bytes add up to 0x"), "{error}");
}

#[test]
fn the_rsdt_serves_where_the_xsdt_is_bad() {
    let mut memory = Memory::new(&usual(), &[]);
    *memory.byte(XSDT + 9) ^= 1;
    let info = discover(&memory, RSDP).unwrap();
    assert_eq!((info.nfits.len(), apic_ids(&info)), (1, [0, 4].to_vec()));
    assert!(lines(&info)[0].starts_with("XSDT: table has a bad checksum"), "{:?}", lines(&info));

    let mut memory = Memory::new(&usual(), &[]);
    *memory.byte(RSDP + 33) ^= 1;
    {
        let info = discover(&memory, RSDP).unwrap();
        assert_eq!((info.nfits.len(), lines(&info).len()), (1, 1));
    }

    *memory.byte(RSDT + 9) ^= 1;
    assert_eq!(discover(&memory, RSDP).unwrap_err(), RootError::NoRootTable);
}

#[test]
fn an_entry_that_points_nowhere_costs_nothing_else() {
    let memory = Memory::new(&usual(), &[0, 0xffff_fff0, 0x10]);
    let info = discover(&memory, RSDP).unwrap();
    assert_eq!((info.nfits.len(), apic_ids(&info)), (1, [0, 4].to_vec()));
    assert_eq!(
        lines(&info),
        [
            "no table can be read at 0xfffffff0, to which a root table points; skipped",
            "no table can be read at 0x10, to which a root table points; skipped",
        ]
    );
}

#[test]
fn an_nfit_with_a_bad_checksum_is_handed_on_for_its_own_line() {
    let mut bad = table(b"NFIT", &[0; 4]);
    bad[9] ^= 1;
    let memory = Memory::new(&[bad, madt(&cpu(3, 1))], &[]);
    let info = discover(&memory, RSDP).unwrap();
    assert_eq!((lines(&info).len(), apic_ids(&info)), (0, [3].to_vec()));
    let limits = crate::nfit::Limits { phys_bits: 40, taken: &[] };
    let nfit = crate::nfit::parse(info.nfits.iter().copied(), limits);
    assert_eq!(nfit.notices[0].key(), "bad_checksum");
}

#[test]
fn a_table_with_an_impossible_length_gives_its_line() {
    for length in [0_u32, 35, 0x4000, u32::MAX] {
        let mut tables = usual();
        for table in &mut tables {
            table[4..8].copy_from_slice(&length.to_le_bytes());
        }
        let memory = Memory::new(&tables, &[]);
        let info = discover(&memory, RSDP).unwrap();
        assert_eq!((apic_ids(&info).len(), info.pm_timer, lines(&info).len()), (0, None, 2));
        assert!(lines(&info)[0].starts_with("APIC: table claims a length of"), "{:?}", lines(&info));
        let limits = crate::nfit::Limits { phys_bits: 40, taken: &[] };
        assert_eq!(crate::nfit::parse(info.nfits.iter().copied(), limits).notices[0].key(), "bad_length");
    }
}

#[test]
fn a_bad_entry_of_the_madt_ends_its_walk() {
    for (length, line) in [
        (0, "MADT: entry at 0x34 claims 0 bytes where 16 are left; rest not read"),
        (1, "MADT: entry at 0x34 claims 1 bytes where 16 are left; rest not read"),
        (17, "MADT: entry at 0x34 claims 17 bytes where 16 are left; rest not read"),
    ] {
        let mut second = cpu(1, 1);
        second[1] = length;
        let memory = Memory::new(&[madt(&[cpu(0, 1), second, cpu(2, 1)].concat())], &[]);
        let info = discover(&memory, RSDP).unwrap();
        assert_eq!((apic_ids(&info), lines(&info)), ([0].to_vec(), [line.to_string()].to_vec()));
    }
}

#[test]
fn a_short_or_repeated_entry_of_the_madt_is_skipped() {
    let entries = [&[0, 4, 9, 9][..], &cpu(1, 1), &cpu(1, 1), &[5, 6, 0, 0, 0, 0], &[77, 2]].concat();
    let memory = Memory::new(&[madt(&entries)], &[]);
    let info = discover(&memory, RSDP).unwrap();
    assert_eq!(apic_ids(&info), [1]);
    assert_eq!(
        lines(&info),
        [
            "MADT: entry at 0x2c (type 0) has 4 bytes, too few; skipped",
            "MADT: the CPU with APIC 1 is listed twice",
            "MADT: entry at 0x40 (type 5) has 6 bytes, too few; skipped",
        ]
    );
}

#[test]
fn wide_apic_identifiers_and_addresses_are_read() {
    let mut entries = [9, 16, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0].to_vec();
    entries.extend_from_slice(&[5, 12, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
    let memory = Memory::new(&[madt(&entries)], &[]);
    let info = discover(&memory, RSDP).unwrap();
    let madt = info.madt.unwrap();
    assert_eq!(madt.cpus.as_slice(), [Cpu { apic_id: 0x100, acpi_uid: 7 }]);
    assert_eq!(madt.local_apic_base, 1 << 32);
}

/// The one that boots runs, whatever the table says of it.
#[test]
fn the_cpu_that_boots_counts_whether_or_not_the_table_names_it() {
    let short = [&[0, 4, 9, 9][..], &cpu(1, 1)].concat();
    for (entries, nr_cpus) in [
        (short, 2),
        ([cpu(0, 0), cpu(1, 1)].concat(), 2),
        ([cpu(0, 1), cpu(1, 1)].concat(), 2),
        ([cpu(1, 1), cpu(2, 1), cpu(0, 1)].concat(), 3),
        (cpu(0, 1).to_vec(), 1),
        (Vec::new(), 1),
    ] {
        let memory = Memory::new(&[madt(&entries)], &[]);
        let madt = discover(&memory, RSDP).unwrap().madt.unwrap();
        assert_eq!(madt.nr_cpus(0), nr_cpus, "{entries:?}");
        assert_eq!(madt.others(0).count(), nr_cpus - 1, "{entries:?}");
    }
}

fn wide_cpu(apic_id: u32, flags: u8) -> Vec<u8> {
    [&[9, 16, 0, 0][..], &apic_id.to_le_bytes(), &[flags, 0, 0, 0], &[0; 4]].concat()
}

/// The destination of an interrupt command has 8 bits, or 32 with x2APIC, and with all of them set it is everybody.
#[test]
fn a_cpu_that_no_interrupt_can_name_alone_is_none_to_start() {
    let entries = [cpu(0xff, 1).to_vec(), wide_cpu(u32::MAX, 1), cpu(0xff, 0).to_vec(), cpu(0xfe, 1).to_vec()];
    let more = [wide_cpu(0xff, 1), wide_cpu(0x100, 1), wide_cpu(u32::MAX - 1, 1)];
    let memory = Memory::new(&[madt(&[&entries[..], &more].concat().concat())], &[]);
    let info = discover(&memory, RSDP).unwrap();
    assert_eq!(
        lines(&info),
        [
            "MADT: entry at 0x2c: APIC 255 is no CPU's, but stands for all; skipped",
            "MADT: entry at 0x34: APIC 4294967295 is no CPU's, but stands for all; skipped",
        ]
    );
    let madt = info.madt.as_ref().unwrap();
    assert_eq!((apic_ids(&info), madt.nr_disabled), ([0xfe, 0xff, 0x100, u32::MAX - 1].to_vec(), 1));
    let reachable = |x2apic| madt.cpus.iter().map(|cpu| cpu.is_reachable(x2apic)).collect::<Vec<_>>();
    assert_eq!(reachable(false), [true, false, false, false]);
    assert_eq!(reachable(true), [true; 4]);
}

#[test]
fn cpus_beyond_our_room_are_reported() {
    let entries: Vec<u8> = (0..MAX_CPUS as u8 + 1).flat_map(|id| cpu(id, 1)).collect();
    let memory = Memory::new(&[madt(&entries)], &[]);
    let info = discover(&memory, RSDP).unwrap();
    assert_eq!(apic_ids(&info).len(), MAX_CPUS);
    assert_eq!(lines(&info), ["MADT: the CPU with APIC 64 is left out: there is room for 64"]);
}

fn events_at(port: u32, len_bytes: u8, control: u32) -> (Option<Events>, Vec<alloc::string::String>, Option<PmTimer>) {
    let mut tables = usual();
    let fadt = &mut tables[1];
    fadt[46] = 9;
    fadt[64..68].copy_from_slice(&control.to_le_bytes());
    fadt[80..84].copy_from_slice(&port.to_le_bytes());
    fadt[92] = len_bytes;
    seal(fadt, 9);
    let memory = Memory::new(&tables, &[]);
    let info = discover(&memory, RSDP).unwrap();
    (info.events, lines(&info), info.pm_timer)
}

#[test]
fn a_block_of_events_lies_within_the_io_ports() {
    for (port, len_bytes) in [(0x620, 16), (0xfff0, 16), (0xff01, 255), (0xfffe, 2), (0xfffc, 3)] {
        let (events, said, _) = events_at(port, len_bytes, 0x604);
        let events = events.expect("events");
        assert_eq!((u32::from(events.gpe0_port), events.status_bytes, said.len()), (port, len_bytes / 2, 0));
        assert_eq!(u32::from(events.enable_port()), port + u32::from(len_bytes / 2));
    }
    for (port, len_bytes) in [(0xfff1, 16), (0xffff, 2), (0xff02, 255), (0xfffe, 3)] {
        let (events, said, timer) = events_at(port, len_bytes, 0x604);
        let line =
            alloc::format!("FADT: {len_bytes} bytes of events at I/O port {port:#x} go beyond the last port; not used");
        assert_eq!((events, said), (None, [line].to_vec()));
        assert!(timer.is_some(), "it costs the events alone");
    }
    // None at all is no fault.
    for (port, len_bytes, control) in
        [(0x620, 0, 0x604), (0x620, 1, 0x604), (0, 16, 0x604), (0x620, 16, 0), (0x620, 16, 0xffff)]
    {
        assert_eq!(events_at(port, len_bytes, control).0, None);
        assert_eq!(events_at(port, len_bytes, control).1, [""; 0]);
    }
}

#[test]
fn a_line_is_one_that_an_io_apic_can_have() {
    let io = |base: u32, first: u32| {
        let mut entry = [1, 12, 0, 0].to_vec();
        entry.extend_from_slice(&base.to_le_bytes());
        entry.extend_from_slice(&first.to_le_bytes());
        entry
    };
    let moved = |irq: u8, line: u32, flags: u8| {
        let mut entry = [2, 10, 0, irq].to_vec();
        entry.extend_from_slice(&line.to_le_bytes());
        entry.extend_from_slice(&[flags, 0]);
        entry
    };
    let route = |entries: &[Vec<u8>], irq: u16| {
        let memory = Memory::new(&[madt(&entries.concat())], &[]);
        let madt = discover(&memory, RSDP).unwrap().madt.unwrap();
        madt.route(irq).map(|(io, line, active_low)| (io.base, line, active_low))
    };
    let one = io(0xfec0_0400, 0);
    assert_eq!(
        route(core::slice::from_ref(&one), 9),
        Some((0xfec0_0400, 9, true)),
        "its address is as the table has it"
    );
    assert_eq!(route(&[one.clone(), moved(9, 20, 0b1101)], 9), Some((0xfec0_0400, 20, false)));
    assert_eq!(route(&[one.clone(), moved(9, 119, 0)], 9), Some((0xfec0_0400, 119, true)));
    for line in [120, 128, 255, 0x7fff_fff8, u32::MAX] {
        assert_eq!(route(&[one.clone(), moved(9, line, 0)], 9), None, "line {line}");
    }
    assert_eq!(route(core::slice::from_ref(&one), 500), None);
    // Of two that whose lines begin nearest below it.
    let two = [io(0xfec1_0000, 24), one, moved(9, 130, 0)];
    assert_eq!(route(&two, 9), Some((0xfec1_0000, 106, true)));
    assert_eq!(route(&[moved(9, 9, 0)], 9), None, "there is no I/O APIC");
    assert_eq!(route(&[io(0xfec0_0000, 16)], 9), None, "its lines begin behind it");
}

#[test]
fn a_machine_without_a_timer_has_none() {
    let mut tables = usual();
    tables[1][91] = 0;
    seal(&mut tables[1], 9);
    let memory = Memory::new(&tables, &[]);
    assert_eq!(discover(&memory, RSDP).unwrap().pm_timer, None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    /// Damage anywhere: no panic, no endless walk, and each notice is one line.
    #[test]
    fn damaged_memory(
        changes in prop::collection::vec((0..0x400_u64, any::<u8>()), 1..16),
        rsdp in prop_oneof![Just(RSDP), BASE..BASE + 0x400],
        reseal in any::<bool>(),
    ) {
        let mut memory = Memory::new(&usual(), &[]);
        for (at, byte) in changes {
            *memory.byte(BASE + at) = byte;
        }
        if reseal {
            let at = |base: u64, len: usize| (base - BASE) as usize..(base - BASE) as usize + len;
            seal(&mut memory.0[at(RSDP, 20)], 8);
            seal(&mut memory.0[at(XSDT, 36 + 24)], 9);
        }
        match discover(&memory, rsdp) {
            Ok(info) => prop_assert!(lines(&info).iter().all(|line| line.len() < 160 && !line.contains('\n'))),
            Err(error) => prop_assert!(!error.to_string().contains('\n')),
        }
    }
}
