//! Whatever the bytes say: no panic, no namespace outside the range, no two that share a byte, one line for each notice.

use media::Uuid;
use proptest::prelude::*;
use testkit::media::{LabelArea, LabelOf, PagesOf, Sparse, arena, check};

const MIB: u64 = 1 << 20;

fn labels() -> impl Strategy<Value = Vec<(u32, LabelOf)>> {
    let number = prop_oneof![0..64_u64, Just(u64::MAX), any::<u64>()];
    let place = prop_oneof![(0..32_u64).prop_map(|nth| nth * 4 * MIB), number];
    let label = (0..12_u32, place.clone(), place, 0..4_u8, 0..16_u32, 0..3_u16).prop_map(
        |(slot, dpa, len_bytes, uuid, flags, nr_labels)| {
            let label = LabelOf { uuid: Uuid([uuid; 16]), dpa, len_bytes, flags, nr_labels, ..LabelOf::default() };
            (slot, label)
        },
    );
    prop::collection::vec(label, 0..8)
}

/// Changes bytes of an area, and seals what has a checksum.
fn change(bytes: &mut [u8], patches: &[(usize, u8)], sealed: &[(usize, usize, usize)]) {
    for (at, byte) in patches {
        let at = at % bytes.len();
        bytes[at] = *byte;
    }
    for &(start, len, hole) in sealed {
        media::fletcher::seal(&mut bytes[start..start + len], hole);
    }
}

proptest! {
    /// Label areas with anything in their slots, index blocks that are changed and sealed again.
    #[test]
    fn labels_give_out_no_byte_twice(
        minor in 1..3_u16,
        slots in labels(),
        sequences in (0..5_u32, 0..5_u32),
        patches in prop::collection::vec((0..1024_usize, any::<u8>()), 0..4),
        seal in any::<bool>(),
        dpa in prop_oneof![Just(0), Just(4 * MIB), any::<u64>()],
    ) {
        let used: Vec<u32> = slots.iter().map(|(slot, _)| *slot).collect();
        let area = slots.iter().fold(LabelArea::new(8192, minor), |area, (slot, label)| area.label(*slot, label));
        let mut area = area.index(0, sequences.0, &used).index(1, sequences.1, &used[..used.len() / 2]);
        let sealed = if seal { vec![(0, 256, 64), (256, 256, 64)] } else { vec![] };
        change(&mut area.bytes, &patches, &sealed);
        let range = Sparse::new(128 * MIB);
        check(&range, Some(&&area.bytes[..]), dpa);
    }

    /// Info blocks that are changed and sealed again, with and without a namespace around them.
    #[test]
    fn info_blocks_lead_nowhere_outside(
        which in 0..3_usize,
        patches in prop::collection::vec((48..128_usize, any::<u8>()), 0..6),
        seal in any::<bool>(),
        size in prop_oneof![Just(64 * MIB), Just(8192_u64), Just(12288), Just(2 * MIB)],
        at_copy in any::<bool>(),
    ) {
        let mut block = match which {
            0 => PagesOf::default().block(),
            1 => PagesOf { magic: media::info::DAX, ..PagesOf::default() }.block(),
            _ => arena(Uuid::NIL, (1, 1), 100, 64 * MIB, 0),
        };
        change(&mut block, &patches, if seal { &[(0, 4096, 4088)] } else { &[] });
        let mut range = Sparse::new(size);
        range.put(if at_copy { size - 4096 } else { 4096 }, &block);
        check(&range, None, 0);
    }

    /// Bytes of no kind at all.
    #[test]
    fn anything_is_probed(bytes in prop::collection::vec(any::<u8>(), 0..6000), labels in prop::collection::vec(any::<u8>(), 0..2048)) {
        check(&&bytes[..], Some(&&labels[..]), 0);
    }
}
