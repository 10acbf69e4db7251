//! When things go wrong: a guest that hangs, one that panics, one with too little memory, bad boot options.

use crate::support::{has_line, machine, run, shell, start, tail};
use boot::cli::Mode;
use boot::machine::Machine;
use boot::outcome::Status;
use boot::size::MIB;
use std::time::Duration;

#[test]
fn a_hung_guest_is_ended_and_the_report_says_where() {
    let mut guest = start(&Machine { smp: 2, ..shell() });
    guest.prompt().unwrap_or_else(|error| panic!("{error:#}"));
    guest.send("hang").unwrap_or_else(|error| panic!("{error:#}"));
    guest.line("the shell's word", |line| line.starts_with("hanging")).unwrap_or_else(|error| panic!("{error:#}"));
    guest.allow(Duration::from_secs(1));
    let outcome = guest.finish().unwrap_or_else(|error| panic!("{error:#}"));
    assert_eq!(outcome.status, Status::Hung);
    assert_eq!(outcome.status.exit_code(), 124);
    let report = outcome.hang.join("\n");
    assert!(report.contains("    hanging"), "no console lines in {report}");
    let cpu = |id: u32| outcome.hang.iter().find(|line| line.trim_start().starts_with(&format!("CPU {id}:")));
    let spinning = cpu(0).unwrap_or_else(|| panic!("no CPU 0 in {report}"));
    assert!(spinning.contains("interrupts off"), "{report}");
    // On a slow host perhaps still in what it calls to say its line.
    assert!(report.contains("shell::hang"), "{report}");
    assert!(report.contains("called from kernel::shell::run"), "{report}");
    assert!(cpu(1).is_some() && cpu(2).is_none(), "{report}");
}

#[test]
fn a_panic_leaves_an_epitaph_and_its_own_status() {
    let mut guest = start(&Machine { smp: 4, ..shell() });
    guest.prompt().unwrap_or_else(|error| panic!("{error:#}"));
    guest.send("panic").unwrap_or_else(|error| panic!("{error:#}"));
    let outcome = guest.finish().unwrap_or_else(|error| panic!("{error:#}"));
    assert!(matches!(outcome.status, Status::Panic(_)), "{}", tail(&outcome));
    assert_eq!(outcome.status.exit_code(), 3);
    let begin = outcome.console.iter().position(|line| line.starts_with("@panic cpu="));
    let end = outcome.console.iter().position(|line| line == "@epitaph end");
    assert!(begin.zip(end).is_some_and(|(begin, end)| begin < end), "{}", tail(&outcome));
    for words in [&["panic: asked for on the console"][..], &["  rsp ", "cr3"], &["kernel::shell::run"], &["CPU 3: at"]]
    {
        assert!(has_line(&outcome, words), "{words:?} is missing: {}", tail(&outcome));
    }
}

/// The guard page below a stack makes the overflow a double fault, which is taken on a stack of its own.
#[test]
fn a_stack_overflow_is_named_and_leaves_registers_and_a_backtrace() {
    let mut guest = start(&Machine { smp: 2, ..shell() });
    guest.prompt().unwrap_or_else(|error| panic!("{error:#}"));
    guest.send("overflow").unwrap_or_else(|error| panic!("{error:#}"));
    let outcome = guest.finish().unwrap_or_else(|error| panic!("{error:#}"));
    assert!(matches!(&outcome.status, Status::Panic(why) if why.contains("stack overflow")), "{}", tail(&outcome));
    for words in [&["  rip ", "shell::overflow"][..], &["  rax ", "rbx"], &["  cr2 ", "cr3"], &["CPU 1: at"]] {
        assert!(has_line(&outcome, words), "{words:?} is missing: {}", tail(&outcome));
    }
    // A recursion is one line of the backtrace.
    assert!(has_line(&outcome, &["shell::overflow", " times"]), "{}", tail(&outcome));
}

#[test]
fn too_little_memory_is_refused_with_a_reason() {
    let outcome = run(&Machine { smp: 1, mem_bytes: 80 * MIB, ..machine() });
    assert!(matches!(outcome.status, Status::Refused(_)), "{}", tail(&outcome));
    assert_eq!(outcome.status.exit_code(), 4);
    assert!(has_line(&outcome, &["memory"]), "{}", tail(&outcome));
}

#[test]
fn each_bad_boot_option_is_named_and_nothing_is_run() {
    let append = vec!["flavour=mint".into(), "inject=nonsense".into(), "quiet".into()];
    let outcome = run(&Machine { smp: 1, append, ..machine() });
    assert!(matches!(outcome.status, Status::Refused(_)), "{}", tail(&outcome));
    for words in [["unknown option", "flavour"], ["\"inject\" cannot be", "nonsense"], ["\"quiet\" cannot be", "0, 1"]]
    {
        assert!(has_line(&outcome, &words), "{}", tail(&outcome));
    }
    assert!(!has_line(&outcome, &["@boot"]), "{}", tail(&outcome));
}

#[test]
fn tests_that_no_name_matches_are_refused() {
    let outcome = run(&Machine { smp: 1, mode: Mode::Test, append: vec!["tests=zzz".into()], ..machine() });
    assert!(
        matches!(&outcome.status, Status::Refused(line) if line.contains("no test's name matches")),
        "{}",
        tail(&outcome)
    );
}
