//! Lines taken apart, and put together again.

use cli::words::{Bad, split};
use proptest::prelude::*;

fn words(line: &str) -> Vec<String> {
    let line = split(line).unwrap_or_else(|error| panic!("{line:?}: {error}"));
    assert!(!line.is_job);
    line.words
}

// covers: X3
#[test]
fn quotes_and_backslashes_keep_blanks() {
    let cases: &[(&str, &[&str])] = &[
        ("", &[]),
        (" \t ", &[]),
        ("write 0 /a 0 hello", &["write", "0", "/a", "0", "hello"]),
        (r#"write 0 "/my file" 0 'it is'"#, &["write", "0", "/my file", "0", "it is"]),
        (r"a\ b \\ \' \&", &["a b", r"\", "'", "&"]),
        (r#""a \" b \\ c \n""#, &[r#"a " b \ c \n"#]),
        (r#"'a \ "b"'"#, &[r#"a \ "b""#]),
        (r#"a"b"'c'd"#, &["abcd"]),
        (r#"x "" ''"#, &["x", "", ""]),
        ("a & b".split(' ').next().unwrap_or_default(), &["a"]),
        ("a&b '&'", &["a&b", "&"]),
    ];
    for (line, expected) in cases {
        assert_eq!(words(line), *expected, "{line:?}");
    }
}

#[test]
fn an_ampersand_at_the_end_makes_a_job() {
    let line = split("fsload 0 1 2 3 & ").expect("a job");
    assert!(line.is_job);
    assert_eq!(line.words, ["fsload", "0", "1", "2", "3"]);
    assert!(!split("say '&'").expect("a word").is_job);
    assert_eq!(split(" &"), Err(Bad::JobOfNothing));
    assert_eq!(split("a & b"), Err(Bad::Ampersand(3)));
    assert_eq!(split("a & &"), Err(Bad::Ampersand(3)));
    assert_eq!(split("& a"), Err(Bad::Ampersand(1)));
}

#[test]
fn what_is_no_line_is_said_in_one() {
    for (line, says) in [
        ("cat 0 \"/a", "the \" at character 7 is not closed; nothing was done"),
        ("it's", "the ' at character 3 is not closed; nothing was done"),
        ("a\\", "a backslash at the end has nothing behind it; nothing was done"),
        ("mkdir 0 /ä", "character 10, \"ä\", is not ASCII; nothing was done"),
        ("\u{fffd}", "character 1 is not ASCII, nor UTF-8; nothing was done"),
        ("mem\x1b[A", "character 4 is a control character, 0x1b; nothing was done"),
        ("\0", "character 1 is a control character, 0x00; nothing was done"),
        ("\x7f", "character 1 is a control character, 0x7f; nothing was done"),
    ] {
        assert_eq!(split(line).expect_err(line).to_string(), says);
    }
}

/// A word in a way in which it can be typed.
fn typed(word: &str, how: u8) -> String {
    let escape = |within: &[char]| {
        word.chars().fold(String::new(), |mut text, c| {
            if within.contains(&c) {
                text.push('\\');
            }
            text.push(c);
            text
        })
    };
    match how {
        0 if !word.contains('\'') => format!("'{word}'"),
        1 => format!("\"{}\"", escape(&['"', '\\'])),
        _ if word.is_empty() => "''".into(),
        _ => escape(&[' ', '\t', '"', '\'', '\\', '&']),
    }
}

proptest! {
    #[test]
    fn whatever_is_quoted_comes_back(all in prop::collection::vec(("[ -~\t]{0,12}", 0u8..3), 0..8), job in any::<bool>()) {
        let line: Vec<String> = all.iter().map(|(word, how)| typed(word, *how)).collect();
        let mut line = line.join(" ");
        let expected: Vec<&String> = all.iter().map(|(word, _)| word).collect();
        let is_job = job && !expected.is_empty();
        if is_job {
            line.push_str(" &");
        }
        let found = split(&line).map_err(|error| TestCaseError::fail(error.to_string()))?;
        prop_assert_eq!(found.words.iter().collect::<Vec<_>>(), expected);
        prop_assert_eq!(found.is_job, is_job);
    }

    #[test]
    fn any_text_is_a_line_or_one_line_of_error(text in "\\PC{0,40}|[ -~\\x00-\\x1f]{0,40}") {
        match split(&text) {
            Ok(line) => {
                // Nothing is made up: a word has no more characters than were typed.
                let len: usize = line.words.iter().map(String::len).sum();
                prop_assert!(len <= text.len() && text.is_ascii());
            }
            Err(error) => prop_assert_eq!(error.to_string().lines().count(), 1),
        }
    }
}
