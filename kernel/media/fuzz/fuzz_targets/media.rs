//! Feeds labels, info blocks and the probe arbitrary bytes: as they are, and with the checksums made right so that what
//! is behind them is reached too. Run with `cargo fuzz run media` from `kernel/media`.
//!
//! Of an input the first byte says how it is used; then come 4 KiB of label area, and the rest lies where an info block is.

#![no_main]

use libfuzzer_sys::fuzz_target;
use media::fletcher::seal;
use testkit::media::{LabelArea, LabelOf, PagesOf, Sparse, arena, check};

const AREA: usize = 4096;
const MIB: u64 = 1 << 20;

/// Changes bytes by a list of places and values, four bytes each.
fn patch(bytes: &mut [u8], patches: &[u8]) {
    for patch in patches.chunks_exact(4) {
        let at = usize::from(u16::from_le_bytes([patch[0], patch[1]])) % bytes.len();
        bytes[at] = patch[2];
        // Both bytes of a number of two.
        bytes[(at + 1) % bytes.len()] ^= patch[3];
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((&how, rest)) = input.split_first() else { return };
    let (of_labels, of_info) = rest.split_at(rest.len() / 2);
    let minor = 1 + u16::from(how & 1);
    let mut area = (0..4)
        .fold(LabelArea::new(AREA, minor), |area, slot| {
            let of = LabelOf { uuid: media::Uuid([slot as u8; 16]), dpa: u64::from(slot) * 16 * MIB, ..LabelOf::default() };
            area.label(slot, &of)
        })
        .index(0, 1, &[0, 1])
        .index(1, 2, &[1, 2, 3]);
    patch(&mut area.bytes, of_labels);
    if how & 2 != 0 {
        let half = area.index_at(1);
        seal(&mut area.bytes[..half], 64);
        seal(&mut area.bytes[half..2 * half], 64);
        for slot in (0..4).filter(|_| minor == 2) {
            let at = area.slot_at(slot);
            seal(&mut area.bytes[at..at + 256], 248);
        }
    }
    let mut info = match how >> 4 & 3 {
        0 => PagesOf::default().block(),
        1 => PagesOf { magic: media::info::DAX, parent: media::Uuid([1; 16]), ..PagesOf::default() }.block(),
        // The last arena, or one of several.
        2 => arena(media::Uuid::NIL, (1, 1), 100, 16 * MIB, if how & 0x40 != 0 { 0 } else { 4 * MIB }),
        _ => vec![0; 4096],
    };
    patch(&mut info, of_info);
    if how & 4 != 0 {
        seal(&mut info, 4088);
    }
    let mut range = Sparse::new(64 * MIB);
    for place in [4096, 16 * MIB + 4096, 20 * MIB + 4096, 64 * MIB - 4096] {
        range.put(place, &info);
    }
    range.put(0, of_info);
    // A map and a log, where they are those of an arena.
    let of_table = &of_labels[..of_labels.len().min(4096)];
    for place in [4096 + 16 * MIB - 3 * 4096, 4096 + 16 * MIB - 2 * 4096] {
        range.put(place, of_table);
    }
    let dpa = if how & 8 != 0 { 16 * MIB } else { 0 };
    check(&range, Some(&&area.bytes[..]), dpa);
    check(&range, None, 0);
    check(&input, Some(&of_labels), dpa);
});
