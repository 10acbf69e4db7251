//! What Tab adds.

use cli::complete::{Completion, Names, Usage, complete};
use proptest::prelude::*;

const USAGES: &[Usage<'_>] = &[
    Usage { name: "help", args: "[COMMAND]" },
    Usage { name: "mem", args: "" },
    Usage { name: "mount", args: "N" },
    Usage { name: "mounts", args: "" },
    Usage { name: "cat", args: "N PATH [OFFSET [LEN]]" },
    Usage { name: "mv", args: "N PATH NEW" },
    Usage { name: "attach", args: "N [devdax|fsdax]" },
    Usage { name: "pmem", args: "write N OFFSET TEXT [force]" },
    Usage { name: "pmem", args: "read N OFFSET LEN" },
    Usage { name: "register", args: "N PAGES [MICROSECONDS] [from=PAGE] [read|write]" },
];

struct Found;

impl Names for Found {
    fn devices(&self) -> Vec<String> {
        ["pmem0", "pmem1"].map(String::from).into()
    }
    fn entries(&self, device: &str, directory: &str) -> Vec<String> {
        let entries: &[&str] = match (device, directory) {
            ("pmem0" | "0", "/") => &["a", "my file", "sub/"],
            ("pmem0" | "0", "/sub/") => &["deep"],
            _ => &[],
        };
        entries.iter().map(ToString::to_string).collect()
    }
    fn topics(&self) -> Vec<String> {
        vec!["removal".into()]
    }
}

fn at(before: &str) -> Completion {
    complete(before, USAGES, &Found)
}

/// What is added.
fn adds(before: &str) -> String {
    at(before).insert
}

// covers: X3
#[test]
fn commands_devices_and_paths_are_completed() {
    assert_eq!(adds("he"), "lp ");
    assert_eq!(adds("mo"), "unt");
    assert_eq!(at("mount").candidates, ["mount", "mounts"]);
    assert_eq!(adds("mount"), "");
    assert_eq!(adds("mounts"), " ");
    assert_eq!(adds("mount p"), "mem");
    assert_eq!(at("mount pmem").candidates, ["pmem0", "pmem1"]);
    assert_eq!(adds("cat pmem0 "), "/");
    assert_eq!(at("cat 0 /").candidates, ["a", "my file", "sub/"]);
    assert_eq!(adds("cat 0 /s"), "ub/");
    assert_eq!(adds("cat 0 /sub/"), "deep ");
    assert_eq!(adds("mv 0 /a /su"), "b/");
    assert_eq!(adds("cat 1 /"), "");
    assert_eq!(adds("attach 0 f"), "sdax ");
    assert_eq!(adds("help remo"), "val ");
    assert_eq!(adds("register 0 8 fr"), "om=");
    assert_eq!(adds("register 0 8 1000 w"), "rite ");
}

#[test]
fn a_name_with_blanks_is_typed_so_that_it_is_one_word() {
    assert_eq!(adds("cat 0 /m"), "y\\ file ");
    assert_eq!(adds("cat 0 \"/m"), "y file\" ");
    assert_eq!(adds("cat 0 '/m"), "y file' ");
}

#[test]
fn only_the_usages_that_fit_what_was_typed_count() {
    assert_eq!(adds("pmem re"), "ad ");
    assert_eq!(at("pmem read ").candidates, ["pmem0", "pmem1"]);
    assert_eq!(adds("pmem wrong "), "");
    assert_eq!(adds("pmem write 0 0 text f"), "orce ");
    for nothing in ["nosuch ", "mem x", "cat \\", "ä", "\x1b"] {
        assert_eq!(at(nothing), Completion::default(), "{nothing:?}");
    }
}

proptest! {
    /// What is added can be taken apart with the rest of the line.
    #[test]
    fn whatever_is_added_belongs_to_a_line(before in "(cat|mv|mount|pmem|he|x)( (0|pmem0|/|/s|/m|re)){0,4} ?") {
        let line = before.clone() + &at(&before).insert;
        prop_assert!(cli::words::split(&line).is_ok(), "{}", line);
    }

    #[test]
    fn nothing_that_is_typed_is_too_much(before in "\\PC{0,30}|[ -~]{0,30}") {
        at(&before);
    }
}
