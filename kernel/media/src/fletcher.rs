//! Fletcher's checksum over 32-bit words, in 64 bits: what labels and info blocks carry.
//!
//! Linux: `nd_fletcher64` in `drivers/nvdimm/core.c`; UEFI 2.10 §13.19.4.

/// The checksum of whole little-endian words, where the eight bytes from `hole` on, a multiple of four, count as zero: the
/// place of the checksum itself. Bytes behind the last whole word do not count.
#[must_use]
pub fn checksum(bytes: &[u8], hole: usize) -> u64 {
    let (before, rest) = bytes.split_at(hole.min(bytes.len()));
    let (of_hole, after) = rest.split_at(rest.len().min(8));
    let mut sums = (0, 0);
    add(&mut sums, before);
    // As many words of zeroes as the hole has.
    add(&mut sums, &[0; 8][..of_hole.len()]);
    add(&mut sums, after);
    let (low, high) = sums;
    (high << 32) | u64::from(low)
}

fn add((low, high): &mut (u32, u64), words: &[u8]) {
    for word in words.chunks_exact(4) {
        *low = low.wrapping_add(u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
        *high = high.wrapping_add(u64::from(*low));
    }
}

/// Is the checksum at `hole` the right one?
#[must_use]
pub fn is_right(bytes: &[u8], hole: usize) -> bool {
    crate::u64_at(bytes, hole) == checksum(bytes, hole)
}

/// Writes the right checksum at `hole`, for whoever makes such a structure.
pub fn seal(bytes: &mut [u8], hole: usize) {
    let sum = checksum(bytes, hole).to_le_bytes();
    if let Some(place) = bytes.get_mut(hole..hole.saturating_add(8)) {
        place.copy_from_slice(&sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_of_linux() {
        // The interleave set's cookie of QEMU's first NVDIMM: offset 0, serial number 0x123456, in four words.
        let mut set = [0_u8; 24];
        set[8..12].copy_from_slice(&0x0012_3456_u32.to_le_bytes());
        assert_eq!(checksum(&set[..16], 100), 0x0024_68ac_0012_3456);
        let mut sealed = [7_u8; 32];
        seal(&mut sealed, 8);
        assert!(is_right(&sealed, 8));
        sealed[31] ^= 1;
        assert!(!is_right(&sealed, 8));
    }

    #[test]
    fn short_bytes_and_a_hole_beyond_them_do_no_harm() {
        assert_eq!(checksum(&[1, 2, 3], 0), 0);
        seal(&mut [1, 2, 3], 8);
        seal(&mut [0; 4], usize::MAX - 4);
        assert!(is_right(&[], 0));
    }
}
