//! Numbers.

/// A number, in decimal or with `0x`; digits alone, no sign. `None`: it is none, or does not fit.
pub fn number(word: &str) -> Option<u64> {
    let (digits, radix) = word.strip_prefix("0x").map_or((word, 10), |hex| (hex, 16));
    // `from_str_radix` takes a plus.
    let all = digits.chars().all(|c| c.is_digit(radix));
    all.then(|| u64::from_str_radix(digits, radix).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn digits_alone_are_a_number() {
        for (word, value) in
            [("0", 0), ("4096", 4096), ("0xff", 255), ("0xFF", 255), ("18446744073709551615", u64::MAX)]
        {
            assert_eq!(number(word), Some(value));
        }
        for word in ["", "0x", "+1", "-1", "0x+1", "1k", "ff", "18446744073709551616", " 1", "٣"] {
            assert_eq!(number(word), None, "{word:?}");
        }
    }
}
