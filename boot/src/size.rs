//! Sizes as people write them: `512M`, `1G`, `6T`, `1048576`.

/// The size of the smallest page, in bytes: what an NVDIMM's size has to be a multiple of.
pub const PAGE_BYTES: u64 = 4096;

/// 1 KiB, 1 MiB, 1 GiB and 1 TiB, in bytes.
pub const KIB: u64 = 1 << 10;
/// See [`KIB`].
pub const MIB: u64 = 1 << 20;
/// See [`KIB`].
pub const GIB: u64 = 1 << 30;
/// See [`KIB`].
pub const TIB: u64 = 1 << 40;

/// Reads a size: decimal digits, then nothing or one of `K`, `M`, `G`, `T` (either case, powers of 1024).
///
/// # Errors
/// A sentence that says what is wrong: no digits, an unknown unit, or a number of bytes beyond 64 bits.
pub fn parse(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" => 1,
        "K" => KIB,
        "M" => MIB,
        "G" => GIB,
        "T" => TIB,
        other => return Err(format!("unknown unit {other:?}: use K, M, G or T")),
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err("a size is a number, with K, M, G or T after it if you like: 512M, 6T".into());
    }
    let number: u64 = digits.parse().map_err(|_| "that is more than 64 bits".to_string())?;
    number.checked_mul(unit).ok_or_else(|| "that is more than 64 bits of bytes".into())
}

/// Writes a size with the largest unit that divides it: `1073741824` is `1G`, `4097` stays as it is.
#[must_use]
pub fn show(bytes: u64) -> String {
    for (unit, letter) in [(TIB, "T"), (GIB, "G"), (MIB, "M"), (KIB, "K")] {
        if bytes >= unit && bytes.is_multiple_of(unit) {
            return format!("{}{letter}", bytes / unit);
        }
    }
    bytes.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_is_a_power_of_1024() {
        for (text, bytes) in
            [("0", 0), ("1048576", MIB), ("4k", 4096), ("512M", 512 * MIB), ("1G", GIB), ("6t", 6 * TIB)]
        {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_size_is_refused() {
        for text in ["", "G", "1X", "1GB", "-1", "1.5G", " 1G", "0x10", "1 G", "+1", "1G1", "18446744073709551616"] {
            assert!(parse(text).is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn a_size_beyond_64_bits_is_refused_rather_than_wrapped() {
        assert!(parse("16777216T").is_err());
        assert_eq!(parse("16777215T"), Ok(16_777_215 * TIB));
    }

    #[test]
    fn what_is_shown_reads_back_the_same() {
        for bytes in [0, 1, 4096, 4097, MIB, 3 * GIB / 2, 6 * TIB, u64::MAX] {
            assert_eq!(parse(&show(bytes)), Ok(bytes));
        }
    }
}
