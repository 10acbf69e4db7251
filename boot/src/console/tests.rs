//! What is heard, and how long one waits for it.

use super::*;
use std::time::Duration;

fn soon() -> Option<Instant> {
    Some(Instant::now())
}

#[test]
fn the_console_begins_with_the_kernels_first_line() {
    let console = Console::default();
    console.feed(b"\x1b[2J\x1b[01;01HBdsDxe: starting\r\n\x1b[0m@unp", Echo::Off);
    assert!(!console.started());
    assert_eq!(console.tail(9), ["BdsDxe: starting", "\u{1b}[0m@unp"]);
    console.feed(b"lug version=0.1.0\nnext\r\nprom", Echo::Off);
    assert_eq!(console.lines(), ["@unplug version=0.1.0", "next"]);
    assert_eq!(console.tail(2), ["next", "prom"]);
}

#[test]
fn a_wait_looks_at_each_line_once_and_from_where_it_was_told() {
    let console = Console::default();
    console.feed(b"@unplug v\na\nb\na\n", Echo::Off);
    assert_eq!(console.wait_line(0, soon(), |line| line == "a"), Ok(1));
    assert_eq!(console.wait_line(2, soon(), |line| line == "a"), Ok(3));
    assert_eq!(console.wait_line(4, soon(), |line| line == "a"), Err(Gone::Late));
}

#[test]
fn a_prompt_is_a_line_without_an_end() {
    let console = Console::default();
    console.feed(b"@unplug v\nunplug>", Echo::Off);
    assert_eq!(console.wait_prompt(0, soon()), Err(Gone::Late));
    console.feed(b" ", Echo::Off);
    assert_eq!(console.wait_prompt(0, soon()), Ok(1));
    // The prompt that was answered is not the next one: that comes after at least one more line.
    assert_eq!(console.wait_prompt(2, soon()), Err(Gone::Late));
    console.feed(b"help\nwords\nunplug> ", Echo::Off);
    assert_eq!(console.wait_prompt(2, soon()), Ok(3));
}

/// A line that the kernel prints by itself begins in column 0, and so ends the prompt's line.
#[test]
fn a_prompt_that_a_line_follows_at_once_has_come() {
    let console = Console::default();
    console.feed(b"@unplug v\nunplug> \n[    1.0] by itself\n", Echo::Off);
    assert_eq!(console.wait_prompt(0, soon()), Ok(1));
    assert_eq!(console.wait_prompt(2, soon()), Err(Gone::Late));
    console.feed(b"help\nwords\nunplug> ", Echo::Off);
    assert_eq!(console.wait_prompt(2, soon()), Ok(5));
}

#[test]
fn a_wait_ends_when_the_guest_does() {
    let console = Arc::new(Console::default());
    let waiter = console.clone();
    let thread = thread::spawn(move || waiter.wait_line(0, Some(Instant::now() + Duration::from_secs(60)), |_| false));
    console.lock().ended = true;
    console.changed.notify_all();
    assert_eq!(thread.join().expect("no panic"), Err(Gone::Ended));
    assert_eq!(console.wait_end(soon()), Ok(()));
}

/// covers: T5
#[test]
fn a_kernel_of_which_nothing_is_known_begins_with_its_first_byte() {
    let console = Console::new(Dialect { prompt: "# ".into(), ..Dialect::foreign() });
    console.feed(b"\x1b[1mLinux\x1b[0m version 6\r\r\n\tlogin: ", Echo::Off);
    assert_eq!(console.lines(), ["Linux version 6"]);
    let found = console.wait_text(0, soon(), |text| text.ends_with("login: "));
    assert_eq!(found, Ok((1, "\tlogin: ".into())));
    assert_eq!(console.wait_text(2, soon(), |_| true), Err(Gone::Late), "that line was looked at");
    console.feed(b"me\n# ", Echo::Off);
    assert_eq!(console.wait_prompt(0, soon()), Ok(2));
    assert_eq!(console.wait_text(1, soon(), |_| true), Ok((1, "\tlogin: me".into())));
    let nothing_is_a_prompt = Console::new(Dialect::foreign());
    nothing_is_a_prompt.feed(b"\n\n", Echo::Off);
    assert_eq!(nothing_is_a_prompt.wait_prompt(0, soon()), Err(Gone::Late));
}

#[test]
fn bytes_that_are_not_text_do_not_lose_the_line() {
    let console = Console::default();
    console.feed(b"@unplug v\n\xff\xfe ok\n", Echo::Off);
    assert_eq!(console.lines()[1], "\u{fffd}\u{fffd} ok");
}

#[test]
fn the_time_of_a_guest_that_is_stopped_does_not_pass() {
    let console = Console::default();
    console.feed(b"@unplug v\n@next n=1\n", Echo::Off);
    // Nobody has promised to tell it to go on: it is as late as any other.
    assert_eq!(console.wait_end_with_stops(soon()), Err(Gone::Late));
    console.stops_at_each_act();
    let began = Instant::now();
    console.feed(b"@next n=2\n", Echo::Off);
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| console.wait_end_with_stops(Some(began)));
        // However long that takes, the deadline, which has passed, is none while it is stopped.
        assert_eq!(console.wait_line(0, Some(began + Duration::from_millis(50)), |_| false), Err(Gone::Late));
        assert!(!waits.is_finished());
        console.go_on();
        assert_eq!(waits.join().expect("no panic"), Err(Gone::Late));
    });
    console.feed(b"@next n=3\n", Echo::Off);
    console.say_the_end();
    assert_eq!(console.wait_end_with_stops(soon()), Ok(()));
}

/// The last moment that there is.
fn last_moment() -> Instant {
    let mut last = Instant::now();
    let steps = (0..63).rev().map(|bit| Duration::from_secs(1 << bit));
    for step in steps.chain((0..30).rev().map(|bit| Duration::from_nanos(1 << bit))) {
        last = last.checked_add(step).unwrap_or(last);
    }
    last
}

#[test]
fn a_deadline_beyond_the_end_of_time_is_none() {
    let console = Console::default();
    console.stops_at_each_act();
    console.feed(b"@unplug v\n@next n=1\n", Echo::Off);
    console.go_on();
    console.say_the_end();
    assert_eq!(console.wait_end_with_stops(Some(last_moment())), Ok(()));
}

#[test]
fn lines_are_handed_out_once_and_the_last_one_without_its_end() {
    let console = Console::default();
    console.feed(b"firmware", Echo::Off);
    assert_eq!(console.partial(), None);
    console.feed(b"@unplug v\nsecond\nthi", Echo::Off);
    assert_eq!(console.more(0).expect("lines"), ["@unplug v", "second"]);
    assert_eq!(console.more(1).expect("a line"), ["second"]);
    assert_eq!(console.partial().as_deref(), Some("thi"));
    console.say_the_end();
    assert_eq!(console.more(2), Err(Gone::Ended));
}
