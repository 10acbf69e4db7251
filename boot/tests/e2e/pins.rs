//! Long-term pins on the shell: who holds them, who may, and what becomes of them when the device goes.

use crate::support::{assert_good, command, exit, shell, start};
use boot::guest::Guest;
use boot::machine::Machine;

/// Fails unless one line of the answer to `line` has all of `words`.
fn says(guest: &mut Guest, line: &str, words: &[&[&str]]) {
    let answer = command(guest, line);
    for words in words {
        let found = answer.iter().any(|line| words.iter().all(|word| line.contains(word)));
        assert!(found, "{line:?} does not say {words:?}: {answer:#?}");
    }
}

// covers: L5 L6 L7
#[test]
fn a_holder_is_listed_limited_and_revoked() {
    let mut guest = start(&Machine { smp: 2, ..shell() });
    guest.prompt().unwrap_or_else(|error| panic!("{error:#}"));
    command(&mut guest, "attach 0");
    says(&mut guest, "register 0 8 50000", &[&["registration 1 of 8 pages"]]);
    says(
        &mut guest,
        "pins",
        &[
            &["8 pages from frame", "long-term (registration 1) by holder at", "0 pages count, 8 are exempt"],
            &["@pin owner=holder place=kernel/src/shell/pins.rs:", "term=long registration=1", "exempt=8"],
            &["1 holders, 8 pins in all"],
            &["@registration key=1 owner=holder", "pages=8 grace_ns=50000000 state=live"],
            &["@account owner=holder limit=2048 used=0 exempt=8"],
            &["devdax memory: ", "long-term by registration, which a removal takes back"],
            &["@policy kind=devdax long_term=revocable reserved=1 exempt=1"],
            &["@policy kind=fsdax long_term=refused reserved=0 exempt=0"],
        ],
    );
    command(&mut guest, "pins exempt off");
    says(&mut guest, "register 0 2049", &[&["error: over the owner's pin limit: 2049 pages wanted, 0 of 2048 used"]]);
    says(
        &mut guest,
        "register 0 2 1000001",
        &[&["error: a grace period of 1000001000 ns; expected at most 1000000000"]],
    );
    says(&mut guest, "register 0 0", &[&["error: invalid argument: no pages are asked for"]]);
    says(&mut guest, "pins limit nobody 5", &[&["error: there is no account of \"nobody\""]]);
    says(
        &mut guest,
        "remove 0",
        &[
            &["wants registration 1 of holder (8 pages from frame", "back within 50000 us"],
            &["@registration key=1 owner=holder", "state=asked device=pmem0"],
            &["@registration key=1 owner=holder", "state=revoked device=pmem0 uses="],
            &["registration 1 of holder (8 pages): revoked after"],
        ],
    );
    says(&mut guest, "pins", &[&["0 holders, 0 pins in all"], &["@policy kind=devdax", "exempt=0"]]);
    assert!(!command(&mut guest, "attach 0").iter().any(|line| line.starts_with("error")));
    assert_good(&exit(guest));
}
