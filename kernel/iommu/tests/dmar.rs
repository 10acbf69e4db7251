//! The firmware's table, as it should be and as it should not.

use iommu::dmar::{Dmar, MAX_NOTICES, Notice, ScopeKind, TableError, parse};
use iommu::source::SourceId;
use proptest::prelude::*;

/// A table with these structures; the checksum fits.
fn table(structures: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = b"DMAR".to_vec();
    let len = 48 + structures.iter().map(Vec::len).sum::<usize>();
    bytes.extend((len as u32).to_le_bytes());
    // Revision, checksum, names; a width of 48 bits, interrupt remapping, reserved.
    bytes.extend([1, 0]);
    bytes.extend(b"BOCHS BXPC    \x01\0\0\0BXPC\x01\0\0\0");
    bytes.truncate(36);
    bytes.resize(36, 0);
    bytes.extend([47, 1]);
    bytes.resize(48, 0);
    bytes.extend(structures.concat());
    sealed(bytes)
}

fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes[9] = 0;
    let sum = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    bytes[9] = sum.wrapping_neg();
    bytes
}

fn structure(kind: u16, body: &[u8]) -> Vec<u8> {
    let len = (4 + body.len()) as u16;
    [&kind.to_le_bytes(), &len.to_le_bytes(), body].concat()
}

fn unit(flags: u8, registers: u64, scopes: &[&[u8]]) -> Vec<u8> {
    structure(0, &[&[flags, 0, 0, 0], &registers.to_le_bytes()[..], &scopes.concat()].concat())
}

fn region(base: u64, limit: u64, scopes: &[&[u8]]) -> Vec<u8> {
    structure(1, &[&[0; 4], &base.to_le_bytes()[..], &limit.to_le_bytes(), &scopes.concat()].concat())
}

/// Kind, length, two reserved bytes, number, bus, path.
fn scope(kind: u8, bus: u8, path: &[(u8, u8)]) -> Vec<u8> {
    let mut bytes = vec![kind, 6 + 2 * path.len() as u8, 0, 0, 0, bus];
    path.iter().for_each(|(device, function)| bytes.extend([*device, *function]));
    bytes
}

fn read(structures: &[Vec<u8>]) -> Dmar {
    parse(&table(structures)).unwrap()
}

#[test]
fn qemus_table_is_one_unit_for_all() {
    // An I/O APIC as scope, and a structure of a kind that we do not read.
    let dmar = read(&[unit(1, 0xfed9_0000, &[&scope(3, 0xff, &[(0, 0)])]), structure(2, &[0; 4])]);
    assert_eq!((dmar.host_address_width, dmar.interrupt_remapping, dmar.units.len()), (48, true, 1));
    assert_eq!(dmar.unit_of(0, 4, 0).map(|unit| unit.registers.as_u64()), Some(0xfed9_0000));
    assert_eq!(dmar.units[0].scopes[0].kind, ScopeKind::IoApic);
    assert!(dmar.notices.is_empty(), "{:?}", dmar.notices);
}

#[test]
fn a_device_is_behind_the_unit_that_names_it_or_a_bridge_above_it() {
    let units = [
        unit(0, 0x1000_0000, &[&scope(1, 0, &[(2, 0)])]),
        unit(0, 0x2000_0000, &[&scope(2, 0, &[(3, 0)])]),
        unit(0, 0x3000_0000, &[&scope(1, 0, &[(4, 0), (0, 1)])]),
        unit(1, 0x4000_0000, &[]),
    ];
    let dmar = read(&units);
    // Two bridges: of buses 5 to 7 and of bus 9.
    let behind = |bridge: SourceId| match (bridge.bus, bridge.device) {
        (0, 3) => Some((5, 7)),
        (0, 4) => Some((9, 9)),
        _ => None,
    };
    let of = |bus, device, function| {
        let source = SourceId { bus, device, function };
        dmar.unit_behind(0, source, &behind).map(|unit| unit.registers.as_u64() >> 28)
    };
    let all = [of(0, 2, 0), of(0, 2, 1), of(0, 3, 0), of(6, 1, 0), of(8, 1, 0), of(9, 0, 1), of(9, 0, 0)];
    assert_eq!(all, [1, 4, 2, 2, 4, 3, 4].map(Some));
    assert_eq!(dmar.unit_of(6, 1, 0).map(|unit| unit.include_all), Some(true), "no bridge can be asked");
    assert!(dmar.unit_behind(1, SourceId::default(), &behind).is_none(), "another segment");
}

#[test]
fn reserved_regions_are_kept() {
    let dmar = read(&[unit(1, 0x1000, &[]), region(0x7f00_0000, 0x7f0f_ffff, &[&scope(1, 0, &[(20, 0)])])]);
    let region = &dmar.reserved[0];
    assert_eq!((region.base.as_u64(), region.limit.as_u64(), region.scopes.len()), (0x7f00_0000, 0x7f0f_ffff, 1));
}

/// Each with its line; what is sound beside it is kept.
#[test]
fn what_is_wrong_costs_itself_and_one_line() {
    let sound = || unit(1, 0xfed9_0000, &[]);
    let good = scope(1, 0, &[(1, 0)]);
    let short_structure = structure(0, &[1, 0, 0, 0]);
    let cases: Vec<(Vec<u8>, &str, usize)> = vec![
        (vec![0, 0, 0, 0], "DMAR: structure at 0x40 claims 0 bytes where 4 are left; rest not read", 0),
        (vec![0, 0, 99, 0], "DMAR: structure at 0x40 claims 99 bytes where 4 are left; rest not read", 0),
        (vec![7], "DMAR: structure at 0x40 claims 0 bytes where 1 are left; rest not read", 0),
        (short_structure, "DMAR: structure at 0x40 (type 0) has 8 bytes, too few; skipped", 0),
        (
            unit(0, 0, &[&good]),
            "DMAR: unit at 0x40 has its registers at 0x0; a multiple of 4096 above 0 is expected; skipped",
            0,
        ),
        (
            unit(0, 0x1008, &[&good]),
            "DMAR: unit at 0x40 has its registers at 0x1008; a multiple of 4096 above 0 is expected; skipped",
            0,
        ),
        (unit(0, 0xfed9_0000, &[&good]), "DMAR: unit at 0x40 is there already; skipped", 0),
        (unit(1, 0x1000, &[&good]), "DMAR: unit at 0x40 is there already; skipped", 0),
        (unit(0, 0x1000, &[]), "DMAR: unit at 0x40 is for no device", 1),
        (unit(0, 0x1000, &[&good, &scope(1, 0, &[])]), "DMAR: scope at 0x58 names no device; skipped", 1),
        (unit(0, 0x1000, &[&scope(1, 0, &[(32, 0)]), &good]), "DMAR: scope at 0x50 names no device; skipped", 1),
        (unit(0, 0x1000, &[&scope(1, 0, &[(1, 8)]), &good]), "DMAR: scope at 0x50 names no device; skipped", 1),
        (
            unit(0, 0x1000, &[&good, &[1, 0, 0, 0, 0, 0]]),
            "DMAR: scope at 0x58 claims 0 bytes where 6 are left; rest of the structure not read",
            1,
        ),
        (
            unit(0, 0x1000, &[&good, &[1, 90, 0, 0, 0, 0]]),
            "DMAR: scope at 0x58 claims 90 bytes where 6 are left; rest of the structure not read",
            1,
        ),
        (
            region(0x1000, 0x1fff_fffe, &[&good]),
            "DMAR: reserved region at 0x40 goes from 0x1000 to 0x1ffffffe; whole pages are expected; skipped",
            0,
        ),
    ];
    for (bytes, line, more) in cases {
        let dmar = read(&[sound(), bytes]);
        let lines: Vec<String> = dmar.notices.iter().map(ToString::to_string).collect();
        assert_eq!(lines, [line]);
        assert_eq!((dmar.units.len(), dmar.reserved.len()), (1 + more, 0), "{line}");
        assert!(dmar.unit_of(0, 30, 0).is_some());
    }
}

#[test]
fn there_is_a_line_for_what_is_too_much() {
    let many: Vec<Vec<u8>> = (1..=30).map(|nth| unit(0, nth << 12, &[&scope(1, 0, &[(1, 0)])])).collect();
    let dmar = read(&many);
    assert_eq!((dmar.units.len(), dmar.notices.len(), dmar.notices_dropped), (8, MAX_NOTICES, 6));
    assert!(matches!(dmar.notices[0], Notice::TooMany { what: "units", .. }));
    let one = scope(1, 0, &[(1, 0)]);
    let dmar = read(&[unit(0, 0x1000, &[&one[..]; 20])]);
    assert_eq!((dmar.units[0].scopes.len(), dmar.notices.len()), (16, 4));
}

#[test]
fn a_table_that_is_no_table_is_refused_with_one_line() {
    let sound = table(&[unit(1, 0xfed9_0000, &[])]);
    let refused = |bytes: &[u8]| parse(bytes).unwrap_err().to_string();
    assert_eq!(refused(&sound[..40]), "DMAR: table has 40 bytes, it takes at least 48");
    assert_eq!(refused(&sound[..60]), "DMAR: table claims 64 bytes; it must be at least 48 and there are 60");
    let with = |at: usize, byte: u8| {
        let mut bytes = sound.clone();
        bytes[at] = byte;
        bytes
    };
    assert_eq!(refused(&with(4, 47)), "DMAR: table claims 47 bytes; it must be at least 48 and there are 64");
    assert_eq!(refused(&with(0, b'\n')), "DMAR: the table's signature is \"\\nMAR\"");
    assert!(matches!(parse(&with(40, 1)), Err(TableError::Checksum { .. })));
    let longer = [sound.clone(), vec![1; 9]].concat();
    assert_eq!(parse(&longer), parse(&sound), "the firmware may have mapped more than the table");
}

/// Tables that are nearly sound.
fn nearly() -> impl Strategy<Value = Vec<u8>> {
    let scopes = proptest::collection::vec(
        prop_oneof![
            (0u8..7, any::<u8>(), proptest::collection::vec((0u8..40, 0u8..10), 0..10))
                .prop_map(|(kind, bus, path)| scope(kind, bus, &path)),
            proptest::collection::vec(any::<u8>(), 0..9),
        ],
        0..20,
    );
    let structure =
        (0u16..4, any::<u64>(), any::<u64>(), any::<bool>(), scopes).prop_map(|(kind, a, b, round, scopes)| {
            let a = if round { a & !0xfff } else { a };
            let scopes: Vec<&[u8]> = scopes.iter().map(Vec::as_slice).collect();
            match kind {
                0 => unit(b as u8, a, &scopes),
                1 => region(a & 0xff_ffff, b & 0xfff_ffff | 0xfff, &scopes),
                _ => structure(kind, &scopes.concat()),
            }
        });
    let damage = proptest::collection::vec((any::<usize>(), any::<u8>()), 0..6);
    (proptest::collection::vec(structure, 0..12), damage).prop_map(|(structures, damage)| {
        let mut bytes = table(&structures);
        for (at, byte) in damage {
            let len = bytes.len();
            bytes[8.max(at % len)] = byte;
        }
        sealed(bytes)
    })
}

fn check(bytes: &[u8]) -> Result<(), TestCaseError> {
    match parse(bytes) {
        Err(error) => prop_assert!(!error.to_string().contains('\n')),
        Ok(dmar) => {
            for unit in &dmar.units {
                prop_assert!(unit.registers.as_u64() > 0 && unit.registers.is_aligned(4096));
            }
            for notice in &dmar.notices {
                prop_assert!(!notice.to_string().contains('\n'));
            }
            prop_assert!(dmar.host_address_width <= 64);
            let behind = |source: SourceId| (source.device < 9).then_some((source.function, source.bus));
            let _ = dmar.unit_behind(0, SourceId::from_bits(bytes.len() as u16), &behind);
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        check(&bytes)?;
    }

    #[test]
    fn no_damaged_table_panics(bytes in nearly()) {
        check(&bytes)?;
    }
}
