//! Bytes of a medium, as the shell shows them.

use cli::shown::shown;

/// Of what the console says by itself nothing can come from a medium; other text stays as it is.
#[test]
fn what_the_console_says_is_escaped() {
    for (text, line) in [
        ("error: boom", "\\x65rror: boom"),
        ("job 1", "\\x6aob 1"),
        ("KTAP version 1", "\\x4bTAP version 1"),
        ("TAP version 13", "\\x54AP version 13"),
        ("1..3", "\\x31..3"),
        ("Bail out! no", "\\x42ail out! no"),
        ("   # a", "   \\x23 a"),
        (" not ok 1", " \\x6eot ok 1"),
        ("\tok 1", "\\tok 1"),
    ] {
        assert_eq!(shown(text.as_bytes()), line);
    }
    for text in ["", "  ", "an error: no", "1.", "TAPE", "Bail out"] {
        assert_eq!(shown(text.as_bytes()), text);
    }
}
