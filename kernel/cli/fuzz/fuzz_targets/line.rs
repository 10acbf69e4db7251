//! Feeds the shell's parser, the completion and both ways of reading a line arbitrary bytes. Run with `cargo fuzz run line`
//! from `kernel/cli`.
//!
//! Of an input the first byte says how wide the terminal is; the rest is typed.

#![no_main]

use cli::complete::{Completion, Names, Usage, complete};
use cli::edit::{Editor, Input, Tty};
use cli::plain::Plain;
use cli::{MAX_LINE, Typed, help, words};
use libfuzzer_sys::fuzz_target;

const USAGES: &[Usage<'_>] = &[
    Usage { name: "help", args: "[COMMAND]" },
    Usage { name: "mv", args: "N PATH NEW" },
    Usage { name: "pmem", args: "write N OFFSET TEXT [force]" },
    Usage { name: "register", args: "N PAGES [MICROSECONDS] [from=PAGE] [read|write]" },
];

struct Known;

impl Names for Known {
    fn devices(&self) -> Vec<String> {
        vec!["pmem0".into(), "pmem1".into()]
    }
    fn entries(&self, _: &str, _: &str) -> Vec<String> {
        ["a", "my file", "it's", "d/"].map(String::from).into()
    }
    fn topics(&self) -> Vec<String> {
        vec!["removal".into()]
    }
}

struct Typist<'a>(std::slice::Iter<'a, u8>);

impl Tty for Typist<'_> {
    fn read(&mut self) -> Input {
        self.0.next().map_or(Input::End, |byte| Input::Byte(*byte))
    }
    fn write(&mut self, text: &str) {
        assert!(text.is_ascii());
    }
    fn complete(&mut self, before_cursor: &str) -> Completion {
        complete(before_cursor, USAGES, &Known)
    }
}

/// A line is words, or one line of error; what is said of it fits any terminal.
fn look_at(typed: &Typed, width: usize) {
    let Typed::Line(line) = typed else { return };
    assert!(line.len() <= 4 * MAX_LINE);
    match words::split(line) {
        Ok(taken) => {
            assert!(line.is_ascii());
            assert!(taken.words.iter().map(String::len).sum::<usize>() <= line.len());
        }
        Err(error) => assert_eq!(error.to_string().lines().count(), 1),
    }
    help::rows(line, line, width);
    complete(line, USAGES, &Known);
}

fuzz_target!(|input: &[u8]| {
    let Some((&width, typed)) = input.split_first() else { return };
    let width = usize::from(width);
    let mut plain = Plain::default();
    for byte in typed {
        if let Some(typed) = plain.push(*byte, &mut |_| ()) {
            look_at(&typed, width);
        }
    }
    let (mut editor, mut typist) = (Editor::new(width), Typist(typed.iter()));
    loop {
        match editor.read("unplug> ", &mut typist) {
            Typed::Left if typist.0.len() == 0 => return,
            typed => look_at(&typed, width),
        }
    }
});
