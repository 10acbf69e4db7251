//! Lines from a program.

use cli::plain::Plain;
use cli::{MAX_LINE, Typed};

fn all(typed: &[u8]) -> (Vec<Typed>, String) {
    let (mut plain, mut echo, mut lines) = (Plain::default(), String::new(), Vec::new());
    for byte in typed {
        lines.extend(plain.push(*byte, &mut |text| echo.push_str(text)));
    }
    (lines, echo)
}

// covers: X3
#[test]
fn a_line_is_echoed_and_comes_whole() {
    assert_eq!(all(b"mem\n"), (vec![Typed::Line("mem".into())], "mem\n".into()));
    assert_eq!(all(b"memx\x08\r").0, [Typed::Line("mem".into())]);
    assert_eq!(all(b"junk\x03mem\n").0, [Typed::Dropped, Typed::Line("mem".into())]);
    assert_eq!(all(b"\x04").0, [Typed::Left]);
    assert_eq!(all(b"a\tb\n"), (vec![Typed::Line("a\tb".into())], "a b\n".into()));
}

#[test]
fn nothing_vanishes() {
    assert_eq!(all("ä\x1b[A\n".as_bytes()), (vec![Typed::Line("ä\x1b[A".into())], "??[A\n".into()));
    assert_eq!(all("aä\x08\n".as_bytes()).0, [Typed::Line("a".into())]);
    assert_eq!(all(b"\xff\n").0, [Typed::Line("\u{fffd}".into())]);
    let long = [&[b'x'; 10_000][..], b"\nmem\n"].concat();
    assert_eq!(all(&long).0, [Typed::TooLong, Typed::Line("mem".into())]);
    let fits = [&[b'x'; MAX_LINE][..], b"\n"].concat();
    assert_eq!(all(&fits).0, [Typed::Line("x".repeat(MAX_LINE))]);
}
