//! Words laid out for a terminal of any width.

use alloc::string::String;
use alloc::vec::Vec;

/// Where the words begin that stand beside a usage.
const WORDS_AT: usize = 29;
/// The words of a narrower terminal stand below the usage.
const TWO_COLUMNS: usize = 60;
/// As far are they indented there.
const INDENT: usize = 4;
/// With fewer columns nothing can be laid out; what does not fit is wrapped by the terminal.
const LEAST: usize = 16;

/// `text` in rows of at most `width` characters, all but the first behind `indent` blanks. A word that is longer than a
/// row has one to itself.
pub fn wrap(text: &str, width: usize, indent: usize) -> Vec<String> {
    let width = width.max(LEAST).max(indent + LEAST);
    let mut rows: Vec<String> = Vec::new();
    let (mut row, mut is_empty) = (String::new(), true);
    for word in text.split_ascii_whitespace() {
        if !is_empty && row.chars().count() + 1 + word.chars().count() > width {
            rows.push(core::mem::replace(&mut row, " ".repeat(indent)));
            is_empty = true;
        }
        if !is_empty {
            row.push(' ');
        }
        row.push_str(word);
        is_empty = false;
    }
    if !is_empty {
        rows.push(row);
    }
    rows
}

/// A usage and what it does: in two columns where there is room, else one below the other.
pub fn rows(usage: &str, words: &str, width: usize) -> Vec<String> {
    if width < TWO_COLUMNS {
        let mut rows = wrap(usage, width, 2 * INDENT);
        rows.extend(indented(words, width, INDENT));
        return rows;
    }
    let mut right = wrap(words, width - WORDS_AT, 0);
    let mut rows = wrap(usage, width, WORDS_AT);
    if rows.len() == 1 && usage.len() < WORDS_AT && !right.is_empty() {
        let blanks = WORDS_AT - usage.len();
        rows = Vec::from([usage
            .chars()
            .chain(core::iter::repeat_n(' ', blanks))
            .chain(right.remove(0).chars())
            .collect()]);
    }
    rows.extend(right.into_iter().map(|row| " ".repeat(WORDS_AT) + &row));
    rows
}

/// Rows that are indented all.
pub fn indented(words: &str, width: usize, indent: usize) -> Vec<String> {
    let rows = wrap(words, width.saturating_sub(indent), 0);
    rows.into_iter().map(|row| " ".repeat(indent) + &row).collect()
}

/// Short words side by side, downwards, as `ls` does.
pub fn columns(words: &[String], width: usize) -> Vec<String> {
    let widest = words.iter().map(|word| word.chars().count()).max().unwrap_or(0) + 2;
    let nr_columns = (width / widest).max(1);
    let nr_rows = words.len().div_ceil(nr_columns);
    let row = |at: usize| {
        let mut row = String::new();
        for word in words.iter().skip(at).step_by(nr_rows.max(1)) {
            let used = row.chars().count();
            row.extend(core::iter::repeat_n(' ', used.next_multiple_of(widest) - used));
            row.push_str(word);
        }
        row
    };
    (0..nr_rows).map(row).collect()
}
