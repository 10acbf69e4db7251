//! Lines at a terminal: a small one that does what it is sent, against what was typed.

use cli::complete::Completion;
use cli::edit::{Editor, Input, Tty};
use cli::{MAX_LINE, Typed};
use proptest::prelude::*;
use std::collections::VecDeque;

const PROMPT: &str = "unplug> ";

/// A terminal of so many columns, which wraps as a VT100 does: late, when one more character comes.
struct Terminal {
    typed: VecDeque<Input>,
    columns: usize,
    rows: Vec<Vec<char>>,
    at: (usize, usize),
    wraps: bool,
    escape: Option<String>,
    bells: usize,
    sent: String,
}

impl Terminal {
    fn new(columns: usize, typed: &[u8]) -> Self {
        let typed = typed.iter().map(|byte| Input::Byte(*byte)).collect();
        let (rows, sent) = (vec![Vec::new()], String::new());
        Self { typed, columns, rows, at: (0, 0), wraps: false, escape: None, bells: 0, sent }
    }

    fn put(&mut self, c: char) {
        if std::mem::take(&mut self.wraps) {
            self.at = (self.at.0 + 1, 0);
        }
        let (row, column) = self.at;
        while self.rows.len() <= row {
            self.rows.push(Vec::new());
        }
        while self.rows[row].len() <= column {
            self.rows[row].push(' ');
        }
        self.rows[row][column] = c;
        if column + 1 == self.columns {
            self.wraps = true;
        } else {
            self.at.1 += 1;
        }
    }

    fn sequence(&mut self, sequence: &str) {
        self.wraps = false;
        let (number, last) = sequence[1..].split_at(sequence.len() - 2);
        let nr: usize = number.parse().unwrap_or(1);
        let (row, column) = self.at;
        match last {
            "A" => self.at.0 = row.checked_sub(nr).expect("above the terminal"),
            "B" => self.at.0 = row + nr,
            "C" => self.at.1 = (column + nr).min(self.columns - 1),
            "H" => self.at = (0, 0),
            "J" => {
                self.rows.truncate(row + 1);
                self.rows[row].truncate(column);
                if number == "2" {
                    self.rows = vec![Vec::new()];
                }
            }
            _ => panic!("{sequence:?}"),
        }
        while self.rows.len() <= self.at.0 {
            self.rows.push(Vec::new());
        }
    }

    /// What is on it, with one row in one line.
    fn text(&self) -> String {
        let rows: Vec<String> = self.rows.iter().map(|row| row.iter().collect()).collect();
        rows.join("\n")
    }
}

impl Tty for Terminal {
    fn read(&mut self) -> Input {
        let input = self.typed.pop_front().unwrap_or(Input::End);
        if input == Input::Printed {
            // As the kernel does: in a row of its own.
            self.write("\nsaid\n");
        }
        input
    }

    fn write(&mut self, text: &str) {
        self.sent.push_str(text);
        for c in text.chars() {
            if let Some(mut sequence) = self.escape.take() {
                sequence.push(c);
                if sequence.len() > 1 && c.is_ascii_alphabetic() {
                    self.sequence(&sequence);
                } else {
                    self.escape = Some(sequence);
                }
                continue;
            }
            match c {
                '\x1b' => self.escape = Some(String::new()),
                '\x07' => self.bells += 1,
                '\r' => (self.at.1, self.wraps) = (0, false),
                // As the host's terminal does.
                '\n' => {
                    (self.at, self.wraps) = ((self.at.0 + 1, 0), false);
                    while self.rows.len() <= self.at.0 {
                        self.rows.push(Vec::new());
                    }
                }
                c => self.put(c),
            }
        }
    }

    fn complete(&mut self, before: &str) -> Completion {
        match before {
            "he" => Completion { insert: "lp ".into(), candidates: vec!["help".into()] },
            "m" => Completion { insert: String::new(), candidates: vec!["mem".into(), "mount".into()] },
            _ => Completion::default(),
        }
    }
}

/// Reads all lines that are typed.
fn all(columns: usize, typed: &[u8]) -> (Vec<Typed>, Terminal) {
    let (mut editor, mut terminal) = (Editor::new(columns), Terminal::new(columns, typed));
    let mut lines = Vec::new();
    loop {
        let typed = editor.read(PROMPT, &mut terminal);
        if typed == Typed::Left {
            return (lines, terminal);
        }
        lines.push(typed);
    }
}

fn line(typed: &[u8]) -> String {
    match all(80, typed).0.remove(0) {
        Typed::Line(line) => line,
        other => panic!("{typed:?}: {other:?}"),
    }
}

// covers: X3
#[test]
fn a_line_is_edited() {
    for (typed, expected) in [
        (&b"mem\r"[..], "mem"),
        (b"mme\x1b[D\x1b[D\x7f\x1b[F\x02m\r", "mme"),
        (b"em\x1b[Hm\r", "mem"),
        (b"em\x1bOHm\x1bOF!\r", "mem!"),
        (b"xmem\x1b[1~\x1b[3~\r", "mem"),
        (b"mem junk\x17\x7f\r", "mem"),
        (b"junk\x15mem\r", "mem"),
        (b"memjunk\x02\x02\x02\x02\x0b\r", "mem"),
        (b"em\x01m\x05s\r", "mems"),
        (b"he\t0\r", "help 0"),
        (b"mem\x04\r", "mem"),
        (b"memx\x02\x04\r", "mem"),
    ] {
        assert_eq!(line(typed), expected, "{typed:?}");
    }
}

// covers: X3
#[test]
fn half_a_sequence_ends_where_it_cannot_go_on() {
    for typed in [
        &b"\x1b\rmem\r"[..],
        b"\x1b[\rmem\r",
        b"\x1b[1;\rmem\r",
        b"\x1bO\rmem\r",
        b"\x1b[1;1;1;1;1;1;1;1;1;1;1;1;1;1;1\rmem\r",
    ] {
        let (lines, terminal) = all(80, typed);
        assert_eq!(lines.last(), Some(&Typed::Line("mem".into())), "{typed:?}: {lines:?}");
        assert!(lines.len() == 2 && terminal.bells > 0, "{typed:?}: {lines:?}");
    }
    // What a terminal answers is no key, nor is what no keyboard sends.
    assert_eq!(line(b"\x1b[24;80Rmem\x1b[99~\x1b[1;2q\r"), "mem");
    assert_eq!(line(b"m\x00\x1c\x1aem\x1b\x1b[200~\r"), "mem");
}

#[test]
fn lines_are_recalled() {
    let (lines, _) = all(80, b"one\rtwo\rtwo\r\x1b[A\x1b[A\r\x1b[A\x1b[A\x1b[B\r");
    let lines: Vec<_> =
        lines.into_iter().map(|line| if let Typed::Line(line) = line { line } else { "?".into() }).collect();
    assert_eq!(lines, ["one", "two", "two", "one", "one"]);
    let many: Vec<u8> = (0..300).flat_map(|nr| format!("line {nr}\r").into_bytes()).collect();
    let (lines, _) = all(80, &[&many[..], b"\x10\r"].concat());
    assert_eq!(lines.last(), Some(&Typed::Line("line 299".into())));
}

#[test]
fn a_line_is_dropped_left_or_too_long() {
    assert_eq!(all(80, b"junk\x03mem\r").0, [Typed::Dropped, Typed::Line("mem".into())]);
    assert_eq!(all(80, b"mem\r\x04never\r").0, [Typed::Line("mem".into())]);
    let long = [&[b'x'; 10_000][..], b"\rmem\r"].concat();
    let (lines, terminal) = all(80, &long);
    assert_eq!(lines, [Typed::TooLong, Typed::Line("mem".into())]);
    assert_eq!(terminal.bells, 1);
    let fits = [&[b'x'; MAX_LINE][..], b"\r"].concat();
    assert_eq!(all(33, &fits).0, [Typed::Line("x".repeat(MAX_LINE))]);
    let cut = [&[b'x'; MAX_LINE + 1][..], b"\x15mem\r"].concat();
    assert_eq!(line(&cut), "mem");
}

#[test]
fn what_is_not_ascii_stays_in_the_line() {
    assert_eq!(line("mkdir 0 /ä\r".as_bytes()), "mkdir 0 /ä");
    assert_eq!(line("日本\x7f\r".as_bytes()), "日");
    assert_eq!(line(b"a\xffb\xc3\r"), "a\u{fffd}b\u{fffd}");
}

#[test]
fn candidates_are_listed_at_the_second_tab() {
    let (lines, terminal) = all(80, b"m\t\tem\r");
    assert_eq!(lines, [Typed::Line("mem".into())]);
    assert_eq!(terminal.text().trim_end(), format!("{PROMPT}m\nmem    mount\n{PROMPT}mem\n{PROMPT}").trim_end());
}

#[test]
fn a_line_that_somebody_prints_does_not_eat_what_is_typed() {
    let (mut editor, mut terminal) = (Editor::new(80), Terminal::new(80, b"me"));
    terminal.typed.extend([Input::Printed, Input::Byte(b'm'), Input::Byte(b'\r')]);
    assert_eq!(editor.read(PROMPT, &mut terminal), Typed::Line("mem".into()));
    assert_eq!(terminal.text(), format!("{PROMPT}me\nsaid\n{PROMPT}mem\n"));
}

/// A harness, which knows no terminal, finds the prompt as if nobody edited, and the terminal is asked nothing.
#[test]
fn the_prompt_is_sent_as_it_is() {
    let (_, terminal) = all(80, b"mem\r");
    assert_eq!(terminal.sent, format!("{PROMPT}mem\n{PROMPT}\n"));
}

#[test]
fn a_terminal_says_how_wide_it_is() {
    let (mut editor, mut terminal) = (Editor::new(80), Terminal::new(40, b"\x1b[8;24;40tmem\r"));
    assert_eq!(editor.read(PROMPT, &mut terminal), Typed::Line("mem".into()));
    assert_eq!(editor.columns(), 40);
}

fn keys() -> impl Strategy<Value = Vec<u8>> {
    let key = prop_oneof![
        6 => "[a-z ]{1,9}".prop_map(String::into_bytes),
        1 => Just("é".as_bytes().to_vec()),
        6 => prop::sample::select(vec![
            "\x01", "\x02", "\x05", "\x06", "\x08", "\x0b", "\x0e", "\x10", "\x14", "\x15", "\x17", "\x1b[3~", "\x0c", "\t", "\r",
        ]).prop_map(|key| key.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..6),
    ];
    prop::collection::vec(key, 0..60).prop_map(|keys| keys.concat())
}

proptest! {
    /// The terminal shows at each moment what the editor would answer, whatever its width.
    #[test]
    fn the_terminal_shows_the_line(typed in keys(), columns in 9usize..90) {
        let (lines, terminal) = all(columns, &[&typed[..], b"\r"].concat());
        // What was there before the last refresh has gone from it.
        let cleared = terminal.sent.contains("\x1b[2J");
        let text = terminal.text().replace('\n', "");
        for line in lines.iter().filter(|_| !cleared) {
            if let Typed::Line(line) = line {
                let shown: String = line.chars().map(|c| if c.is_ascii() { c } else { '?' }).collect();
                prop_assert!(text.contains(&format!("{PROMPT}{shown}")), "{:?} is not in {:?}", line, terminal.text());
            }
        }
    }

    #[test]
    fn no_bytes_end_it(typed in prop::collection::vec(any::<u8>(), 0..300), columns in 0usize..100) {
        let mut editor = Editor::new(columns);
        // It is not looked at how this is painted: a terminal with no columns paints nothing.
        struct Blind(VecDeque<u8>);
        impl Tty for Blind {
            fn read(&mut self) -> Input {
                self.0.pop_front().map_or(Input::End, Input::Byte)
            }
            fn write(&mut self, _: &str) {}
            fn complete(&mut self, _: &str) -> Completion {
                Completion { insert: "ab ".into(), candidates: Vec::new() }
            }
        }
        let mut tty = Blind(typed.into());
        for _ in 0..=300 {
            if let Typed::Line(line) = editor.read(PROMPT, &mut tty) {
                prop_assert!(line.chars().count() <= MAX_LINE);
            }
        }
    }
}
