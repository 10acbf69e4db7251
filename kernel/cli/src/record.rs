//! A line for programs (`topic key=value key=value`) in a form for people.

use alloc::string::String;

/// `df fs=a free_inodes=3` is `df: fs a, free inodes 3`.
pub fn in_words(record: &str) -> String {
    let mut words = record.split_ascii_whitespace();
    let mut text: String = words.next().unwrap_or_default().replace('_', " ");
    for (at, word) in words.enumerate() {
        text.push_str(if at == 0 { ": " } else { ", " });
        match word.split_once('=') {
            Some((key, value)) => {
                text.push_str(&key.replace('_', " "));
                text.push(' ');
                text.push_str(value);
            }
            None => text.push_str(word),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::in_words;

    #[test]
    fn keys_become_words() {
        assert_eq!(in_words("df fs=a b=4 free_inodes=3"), "df: fs a, b 4, free inodes 3");
        assert_eq!(in_words("fsload unmounted device=pmem0"), "fsload: unmounted, device pmem0");
        assert_eq!((in_words("topic"), in_words("")), ("topic".into(), "".into()));
    }
}
