//! Damaged images: an error, never a panic, never an endless loop, nothing written.

use fs::damage::{check_image, reseal, sample};
use fs::sim::Random;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    /// Bytes and words changed anywhere, with and without the checksums made right afterwards.
    #[test]
    fn any_damage_is_survived(
        patches in prop::collection::vec((0_usize..256 * 4096 / 8, any::<u64>(), 0_u8..4), 1..12),
        metadata_only: bool,
        sealed: bool,
    ) {
        let mut image = sample();
        for (word, value, how) in patches {
            // The first blocks are where everything is that is not data.
            let at = if metadata_only { word * 8 % (40 * 4096) } else { word * 8 };
            let old = u64::from_le_bytes(image[at..at + 8].try_into().unwrap());
            let new = match how {
                0 => value,
                1 => old ^ 1 << (value % 64),
                2 => old.wrapping_add(value % 5).wrapping_sub(2),
                _ => [0, u64::MAX, u64::from(u32::MAX), 1][(value % 4) as usize],
            };
            image[at..at + 8].copy_from_slice(&new.to_le_bytes());
        }
        if sealed {
            reseal(&mut image);
        }
        check_image(&image);
    }

    /// Inodes, mapping blocks and directory blocks changed where their fields are, and sealed.
    #[test]
    fn any_sealed_field_is_survived(seed: u64, nr in 1..6) {
        let mut image = sample();
        let mut random = Random::new(seed);
        let places: Vec<usize> = (0..image.len()).step_by(256).filter(|&at| image[at..].starts_with(b"UP")).collect();
        for _ in 0..nr {
            let place = places[random.below(places.len() as u64) as usize];
            let field = place + 8 + 4 * random.below(62) as usize;
            let value = [random.below(300), random.next_u64(), 0, u64::MAX][random.below(4) as usize] as u32;
            image[field..field + 4].copy_from_slice(&value.to_le_bytes());
        }
        reseal(&mut image);
        check_image(&image);
    }

    /// No file system at all.
    #[test]
    fn garbage_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..9000)) {
        check_image(&bytes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// The inode table, which whoever looks at every inode goes through, with its own inode changed.
    #[test]
    fn any_inode_table_is_survived(extent in 0_usize..8, field in 0_usize..4, value: u32, few in 0_u32..300, small: bool) {
        let mut image = sample();
        let table = (0..image.len()).step_by(4096).find(|&at| image[at + 256..].starts_with(b"UPIN")).unwrap();
        let field = table + 256 + 128 + extent * 16 + field * 4;
        image[field..field + 4].copy_from_slice(&if small { few } else { value }.to_le_bytes());
        reseal(&mut image);
        check_image(&image);
    }
}

#[test]
fn the_sample_itself_is_sound_and_resealing_changes_nothing() {
    let image = sample();
    let mut sealed = image.clone();
    reseal(&mut sealed);
    assert!(image == sealed);
    check_image(&image);
}

#[test]
fn a_truncated_image_is_refused() {
    let image = sample();
    for len in [0, 100, 4096, 5000, image.len() / 2, image.len() - 4096] {
        check_image(&image[..len]);
    }
}

/// Found by the fuzz target: the table's extent moved to the far end of the largest file, so that there seemed to be
/// 68 billion inodes.
#[test]
fn an_inode_table_with_a_hole_is_refused() {
    let mut image = sample();
    let table = (0..image.len()).step_by(4096).find(|&at| image[at + 256..].starts_with(b"UPIN")).unwrap();
    image[table + 256 + 128..][..4].copy_from_slice(&0xf000_0000_u32.to_le_bytes());
    reseal(&mut image);
    check_image(&image);
}
