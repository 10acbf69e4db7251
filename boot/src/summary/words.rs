//! Numbers, times and long lines as people read them.

/// Breaks a text at its spaces into rows of at most `columns` characters; all but the first are indented. A word that is
/// longer has a row of its own.
pub(super) fn wrap(text: &str, indent: usize, columns: usize) -> Vec<String> {
    let first = text.len() - text.trim_start().len();
    let mut rows = Vec::new();
    let mut row = " ".repeat(first);
    let mut is_empty = true;
    for piece in text[first..].split_inclusive(' ') {
        let word = piece.trim_end();
        if !is_empty && row.chars().count() + word.chars().count() > columns {
            rows.push(row.trim_end().to_string());
            row = " ".repeat(indent);
        }
        row.push_str(piece);
        is_empty = false;
    }
    rows.push(row.trim_end().to_string());
    rows
}

/// A number with a comma between each three digits.
pub(super) fn group(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// A time in nanoseconds, in the largest unit of which there are ten.
pub(super) fn time(ns: u128) -> String {
    const UNITS: [(u128, &str); 6] = [
        (86_400_000_000_000, "days"),
        (3_600_000_000_000, "hours"),
        (60_000_000_000, "min"),
        (1_000_000_000, "s"),
        (1_000_000, "ms"),
        (1_000, "us"),
    ];
    let (unit, name) = UNITS.into_iter().find(|(unit, _)| ns >= 10 * unit).unwrap_or((1, "ns"));
    format!("{} {name}", group(u64::try_from(ns / unit).unwrap_or(u64::MAX)))
}
