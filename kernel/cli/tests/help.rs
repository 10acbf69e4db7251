//! Help at any width.

use cli::help;
use proptest::prelude::*;

// covers: X3
#[test]
fn a_narrow_terminal_has_the_words_below_and_a_wide_one_beside() {
    let usage = "register N PAGES [MICROSECONDS]";
    let words = "a task that pins device N long-term";
    assert_eq!(
        help::rows("mem", "physical memory, heap, page tables", 80),
        ["mem                          physical memory, heap, page tables"]
    );
    assert_eq!(
        help::rows(usage, words, 80),
        [usage, "                             a task that pins device N long-term"]
    );
    assert_eq!(help::rows(usage, words, 40), [usage, "    a task that pins device N long-term"]);
    assert_eq!(
        help::rows("cat N PATH [OFFSET [LEN]]", words, 24),
        ["cat N PATH [OFFSET", "        [LEN]]", "    a task that pins", "    device N long-term"]
    );
    assert_eq!(help::rows("x", "", 80), ["x"]);
    let names: Vec<String> = ["a", "bb", "ccc", "d", "e"].map(String::from).into();
    assert_eq!(help::columns(&names, 12), ["a    d", "bb   e", "ccc"]);
    assert_eq!(help::columns(&names, 1), ["a", "bb", "ccc", "d", "e"]);
    assert!(help::columns(&[], 80).is_empty());
}

proptest! {
    #[test]
    fn no_word_is_lost_and_no_row_is_too_long(
        usage in "[a-zA-Z]{1,9}( [A-Z\\[\\]|]{1,12}){0,5}",
        words in "[a-z,;]{1,14}( [a-z,;]{1,14}){0,20}",
        width in 0usize..140,
    ) {
        let rows = help::rows(&usage, &words, width);
        let shown = rows.join(" ");
        let expected: Vec<&str> = usage.split_whitespace().chain(words.split_whitespace()).collect();
        prop_assert_eq!(shown.split_whitespace().collect::<Vec<_>>(), expected);
        let most = rows.iter().map(|row| row.trim_end().len()).max().unwrap_or(0);
        prop_assert!(width < 40 || most <= width, "{} of {}: {:?}", most, width, rows);
    }
}
