//! When things go wrong: a guest that hangs, is slow or panics, one with too little memory, a CPU that lacks something,
//! a host program that is killed, bad boot options.

use crate::support::{assert_good, has_line, machine, run, shell, start, tail};
use boot::cli::{LEAST_MEM_BYTES, Mode};
use boot::machine::{Boots, Machine};
use boot::outcome::Status;
use boot::size::MIB;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

#[test]
fn a_hung_guest_is_ended_and_the_report_says_where() {
    let mut guest = start(&Machine { smp: 2, ..shell() });
    guest.prompt().unwrap_or_else(|error| panic!("{error:#}"));
    guest.send("hang").unwrap_or_else(|error| panic!("{error:#}"));
    guest.line("the shell's word", |line| line.starts_with("hanging")).unwrap_or_else(|error| panic!("{error:#}"));
    guest.allow(Duration::from_secs(1));
    let outcome = guest.finish().unwrap_or_else(|error| panic!("{error:#}"));
    let in_the_shell = |stage: &str| stage.starts_with("the shell, ") && stage.ends_with("the command \"hang\"");
    assert!(matches!(&outcome.status, Status::Hung(stage) if in_the_shell(stage)), "{}", outcome.status);
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

/// What the tool takes the kernel takes too, with room for an image that is some megabytes larger.
#[test]
fn the_least_memory_that_can_be_asked_for_is_enough() {
    let append = vec!["tests=platform.paging.*".into()];
    for mem_bytes in [LEAST_MEM_BYTES, LEAST_MEM_BYTES - 4 * MIB] {
        assert_good(&run(&Machine { mode: Mode::Test, mem_bytes, append: append.clone(), ..machine() }));
    }
}

/// What the kernel uses it asks for. A CPU without NX cannot be told so by the kernel: the loader does not get that far.
// covers: X4
#[test]
fn a_cpu_without_what_is_used_is_refused_in_one_line() {
    let with = |cpu: &[&str]| run(&Machine { smp: 1, cpu: cpu.iter().map(ToString::to_string).collect(), ..machine() });
    let outcome = with(&["clflush=off", "clflushopt=off", "clwb=off"]);
    assert!(matches!(outcome.status, Status::Refused(_)), "{}", tail(&outcome));
    assert!(has_line(&outcome, &["this CPU has no CLFLUSH, CLFLUSHOPT or CLWB"]), "{}", tail(&outcome));
    let outcome = with(&["nx=off"]);
    assert!(outcome.status.to_string().contains("the CPU has no no-execute bit (NX)"), "{}", tail(&outcome));
    assert_ne!(outcome.status.exit_code(), 0);
    let outcome = with(&["clflushopt=off", "clwb=off"]);
    assert_good(&outcome);
    assert!(has_line(&outcome, &["write_back=clflush"]), "{}", tail(&outcome));
}

/// A time limit that is over while lines still come is no hang.
#[test]
fn a_guest_that_is_slow_is_not_called_hung() {
    let mut guest = start(&Machine { smp: 1, ..machine() });
    guest.line("the first act", |line| line.starts_with("@act n=1 ")).unwrap_or_else(|error| panic!("{error:#}"));
    // So much of it may have passed in silence that whatever the guest does it counts as being at work.
    guest.allow_until_now(Duration::from_secs(3600));
    let outcome = guest.finish().unwrap_or_else(|error| panic!("{error:#}"));
    let stage = "act 1 of 6 of the demonstration (by_range), ";
    assert!(matches!(&outcome.status, Status::Slow(at) if at.starts_with(stage)), "{}", outcome.status);
    assert_eq!(outcome.status.exit_code(), 124);
}

/// In the environment of the process that is killed in the next test.
const TO_BE_KILLED: &str = "UNPLUG_TEST_TO_BE_KILLED";

/// This program starts a guest and is killed, which it cannot notice: QEMU ends all the same.
#[test]
fn a_host_program_that_is_killed_takes_qemu_along() {
    if std::env::var_os(TO_BE_KILLED).is_some() {
        let mut guest = start(&Machine { smp: 1, ..shell() });
        guest.prompt().unwrap_or_else(|error| panic!("{error:#}"));
        println!("\nqemu={}", guest.pid().as_raw_nonzero());
        // Until it is killed: nobody writes there.
        let _ = std::io::stdin().read_line(&mut String::new());
        return;
    }
    let name = "faults::a_host_program_that_is_killed_takes_qemu_along";
    let mut host = Command::new(std::env::current_exe().expect("this program"))
        .args([name, "--exact", "--nocapture"])
        .env(TO_BE_KILLED, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let lines = BufReader::new(host.stdout.take().expect("a pipe")).lines();
    let pid = lines.map_while(Result::ok).find_map(|line| line.strip_prefix("qemu=")?.parse().ok());
    let pid = pid.and_then(Pid::from_raw).expect("the number of QEMU's process");
    // While it lives: so it cannot be that of another process by the time it is waited for.
    let qemu = pidfd_open(pid, PidfdFlags::empty()).expect("QEMU runs");
    host.kill().expect("killed");
    host.wait().expect("its end");
    let minute = Timespec { tv_sec: 60, tv_nsec: 0 };
    let ended = poll(&mut [PollFd::new(&qemu, PollFlags::IN)], Some(&minute)).expect("poll");
    if ended == 0 {
        kill_process(pid, Signal::KILL).expect("QEMU is ended");
    }
    assert_eq!(ended, 1, "QEMU goes on without the program that started it");
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

/// The host gives no more than the kernel reads; whoever starts QEMU by hand may.
#[test]
fn boot_options_beyond_the_room_for_them_are_no_options() {
    let ours = Machine { smp: 1, ..machine() };
    let words = format!("{}inject=attach:1", "quiet=0 ".repeat(127));
    let option = format!("name=opt/unplug/cmdline,string={words}");
    let boots = Boots::Disk(ours.image().expect("our own kernel's"));
    let outcome = run(&Machine { boots, qemu: vec!["-fw_cfg".into(), option], ..ours });
    let expected = format!("options: {} bytes of boot options (allowed: 1024)", words.len());
    // Of a kernel that it was given the host does not know what its end means.
    assert!(outcome.status != Status::Good && outcome.console.contains(&expected), "{}", tail(&outcome));
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
