//! Properties over arbitrary, damaged and sound tables.

use proptest::prelude::*;

use super::*;

/// Structures that are mostly sound, some with wild fields.
fn arbitrary_structure() -> impl Strategy<Value = NfitBuilder> {
    let range = (0..6_u16, 0..1_u64 << 41, prop_oneof![0..1_u64 << 33, any::<u64>()])
        .prop_map(|(index, base, len)| NfitBuilder::new().persistent(index, base, len));
    let other = (0..9_u16, 0..RangeKind::GUIDS.len(), 0..1_u64 << 36, 0..1_u64 << 32).prop_map(
        |(index, kind, base, len_bytes)| {
            NfitBuilder::new().range(index, RangeKind::GUIDS[kind].0, ByteRange { base, len_bytes })
        },
    );
    let device = (any::<u32>(), 0..6_u16, 0..4_u16, any::<u64>(), any::<u16>()).prop_map(
        |(handle, range, control, len, flags)| {
            NfitBuilder::new().device(handle, range, control, len, DeviceFlags::from_bits_retain(flags))
        },
    );
    let control = (0..4_u16, any::<u32>()).prop_map(|(i, serial)| NfitBuilder::new().control(i, serial));
    let platform = (any::<u8>(), any::<u32>())
        .prop_map(|(highest, bits)| NfitBuilder::new().platform(highest, PlatformCapabilities::from_bits_retain(bits)));
    let wild = (0..12_u16, 0..80_u16, prop::collection::vec(any::<u8>(), 0..80))
        .prop_map(|(kind, length, body)| NfitBuilder::new().raw(kind, length, &body));
    prop_oneof![4 => range, 1 => other, 3 => device, 1 => control, 1 => platform, 1 => wild]
}

fn arbitrary_table() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(arbitrary_structure(), 0..60).prop_map(|structures| {
        let whole = structures
            .into_iter()
            .map(|one| one.finish())
            .fold(NfitBuilder::new(), |all, one| all.bytes(&one[FIRST_STRUCTURE..]));
        whole.finish()
    })
}

fn arbitrary_ram() -> impl Strategy<Value = Vec<Taken>> {
    let one = prop_oneof![(0..1_u64 << 41, 0..1_u64 << 33), (any::<u64>(), any::<u64>()),];
    prop::collection::vec(one.prop_map(|(base, len_bytes)| ram(base, len_bytes)), 0..8)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn arbitrary_bytes(bytes in prop::collection::vec(any::<u8>(), 0..600), bits in any::<u8>()) {
        check(&[&bytes], Limits { phys_bits: bits, taken: &RAM });
    }

    #[test]
    fn arbitrary_structures(
        table in arbitrary_table(), ram in arbitrary_ram(), bits in any::<u8>()
    ) {
        check(&[&table], Limits { phys_bits: bits, taken: &ram });
        check(&[&table, &table], Limits { phys_bits: bits, taken: &[] });
    }

    /// Bytes changed after the fact, with the checksum made right again so that the parser gets to see them.
    #[test]
    fn damaged_tables(
        table in arbitrary_table(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        cut in any::<prop::sample::Index>(),
        resize in any::<bool>(),
    ) {
        let mut table = table;
        for (at, byte) in changes {
            let at = at.index(table.len());
            table[at] = byte;
        }
        if resize {
            table.truncate(cut.index(table.len() + 1));
            if let Some(length) = table.get(..8).map(|_| table.len() as u32) {
                table[4..8].copy_from_slice(&length.to_le_bytes());
            }
        }
        seal(&mut table);
        check(&[&table], LIMITS);
    }

    /// The ranges that are kept are the lowest of those that would be if there were room for all, whatever their order.
    /// covers: X1
    #[test]
    fn the_lowest_ranges_are_kept(
        asked in prop::collection::vec((0..200_u64, 1..4_u64), 0..120)
    ) {
        let mut builder = NfitBuilder::new();
        let mut wanted: Vec<ByteRange> = Vec::new();
        for (index, (at, len)) in (1_u16..).zip(asked) {
            let range = ByteRange { base: 8 * GIB + at * MIB, len_bytes: len * MIB };
            builder = builder.persistent(index, range.base, range.len_bytes);
            if !wanted.iter().any(|other| other.overlaps(&range)) {
                wanted.push(range);
            }
        }
        wanted.sort_unstable_by_key(|range| range.base);
        wanted.truncate(MAX_RANGES);
        let got: Vec<_> = read(&builder.finish()).ranges.iter().map(|range| range.bytes()).collect();
        prop_assert_eq!(got, wanted);
    }

    /// A sound table comes back as it was built, without a word.
    #[test]
    fn round_trip(
        sizes in prop::collection::vec((1..1_u64 << 20, 1..1_u64 << 20, any::<u32>()), 0..MAX_RANGES)
    ) {
        let (mut builder, mut wanted, mut next) = (NfitBuilder::new(), Vec::new(), 8 * GIB);
        for (index, (gap_pages, pages, serial)) in (1_u16..).zip(sizes) {
            let (base, len) = (next + gap_pages * PAGE_BYTES, pages * PAGE_BYTES);
            next = base + len;
            builder = builder
                .persistent(index, base, len)
                .device(u32::from(index) << 4, index, index, len, DeviceFlags::HEALTH_ENABLED)
                .control(index, serial);
            wanted.push((base, len, index, serial));
        }
        let table = builder.finish();
        let nfit = check(&[&table], Limits { phys_bits: 46, taken: &RAM });
        prop_assert!(nfit.notices.is_empty(), "{:?}", nfit.notices);
        let mut got = Vec::new();
        for range in &nfit.ranges {
            let devices: Vec<_> = nfit.devices_of(range).collect();
            prop_assert_eq!(devices.len(), 1);
            prop_assert_eq!(devices[0].region_len_bytes, range.len_bytes);
            prop_assert_eq!(devices[0].handle.0, u32::from(range.range_index) << 4);
            got.push((range.base, range.len_bytes, range.range_index, devices[0].serial_number.unwrap()));
        }
        prop_assert_eq!(got, wanted);
    }
}
