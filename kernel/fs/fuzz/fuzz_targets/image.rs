//! Mounts and checks damaged images: a small file system with something of everything, patched by the input, as it is
//! and with the checksums made right so that the damage gets past them. An error, never a panic, never an endless
//! loop, nothing written. Run with `cargo fuzz run image` from `kernel/fs`.

#![no_main]

use testkit::damage::{check_image, reseal, sample};
use libfuzzer_sys::fuzz_target;
use std::sync::OnceLock;

/// Bytes of one patch: where, and four bytes to put there.
const PATCH: usize = 8;

fuzz_target!(|bytes: &[u8]| {
    static SAMPLE: OnceLock<Vec<u8>> = OnceLock::new();
    let mut image = SAMPLE.get_or_init(sample).clone();
    for patch in bytes.chunks_exact(PATCH).take(32) {
        let place = u32::from_le_bytes([patch[0], patch[1], patch[2], patch[3]]) as usize;
        let place = place * 4 % image.len();
        image[place..place + 4].copy_from_slice(&patch[4..]);
    }
    check_image(&image);
    reseal(&mut image);
    check_image(&image);
    // The input itself, which is hardly ever a file system.
    check_image(bytes);
});
