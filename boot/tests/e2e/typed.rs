//! What is typed at the shell, by programs and at a terminal: quotes, jobs, help, and what no line can have.

use crate::support::{ask, assert_good, command, exit, has, refused, shell, start_shell};
use boot::guest::Guest;
use boot::machine::Machine;
use boot::outcome::Status;
use boot::records;

/// The answer of `line`, without what the kernel says by itself.
fn answer(guest: &mut Guest, line: &str) -> Vec<String> {
    command(guest, line).into_iter().filter(|line| !line.starts_with(['[', '@'])).collect()
}

// covers: X3
#[test]
fn a_program_types_quotes_jobs_and_what_is_no_line() {
    let mut guest = start_shell(&Machine { smp: 2, ..shell() });
    ask(&mut guest, "attach 0 fsdax");
    ask(&mut guest, "mkfs 0");
    ask(&mut guest, "mount 0");
    has(&ask(&mut guest, r#"write 0 "/my file" 0 'two  "words"'"#), &["12 bytes written"]);
    has(&ask(&mut guest, r"cat 0 /my\ file"), &["two  \\\"words\\\""]);
    has(&ask(&mut guest, "stat 0 '/my file'"), &["@stat path=/my-file ino="]);
    what_is_no_line(&mut guest);
    jobs(&mut guest);
    pins(&mut guest);
    assert_good(&exit(guest));
}

/// One clear line for each, and the console goes on.
fn what_is_no_line(guest: &mut Guest) {
    let long = "x".repeat(10_000);
    for (line, says) in [
        ("cat 0 \"/my file", "error: the \" at character 7 is not closed; nothing was done"),
        ("mem \\", "error: a backslash at the end has nothing behind it; nothing was done"),
        ("mkdir 0 /ä", "error: character 10, \"ä\", is not ASCII; nothing was done"),
        ("mem\u{1b}[", "error: character 4 is a control character, 0x1b; nothing was done"),
        ("\u{1b}[Amem", "error: character 1 is a control character, 0x1b; nothing was done"),
        ("mem\u{0}", "error: character 4 is a control character, 0x00; nothing was done"),
        (&long, "error: a line of more than 512 characters; nothing was done"),
        ("& mem", "error: the & at character 1 is not at the end (in quotes it is a word); nothing was done"),
        ("&", "error: expected a command in front of the &; nothing was done"),
        ("mem +1", "error: expected: mem, with nothing behind it"),
        ("df +0", "error: \"+0\" is no number of a device, and no name of one"),
    ] {
        let errors: Vec<_> = answer(guest, line).into_iter().filter(|line| line.starts_with("error")).collect();
        assert_eq!(errors, [says], "{line:.40}");
        has(&ask(guest, "mem"), &["RAM"]);
    }
    has(&refused(guest, "mem\tjunk"), &["expected: mem, with nothing behind it"]);
}

/// Commands beside the shell, and a removal under their load.
fn jobs(guest: &mut Guest) {
    assert_eq!(answer(guest, "jobs"), ["no job"]);
    has(&refused(guest, "exit &"), &["exit cannot be a job; nothing was done"]);
    has(&ask(guest, "mem &"), &["job 1 is running: mem", "@job id=1 state=running"]);
    command(guest, "wait 1");
    has(&refused(guest, "wait 1"), &["there is no job 1 (jobs lists them)"]);
    command(guest, "df 9 &");
    command(guest, "wait");
    let said = guest.console().lines();
    assert!(said.iter().any(|line| line.starts_with("error: job 2 (df 9): ")), "{said:?}");
    ask(guest, "umount 0");
    ask(guest, "fsload 0 1 2 0 &");
    guest.line("the load", |line| line.starts_with("@fsload task=") && line.contains("acked=")).expect("it works");
    has(&ask(guest, "jobs"), &["job 3 is running: fsload 0 1 2 0"]);
    // The load may have said by then that it has failed.
    has(&command(guest, "remove 0").join("\n"), &["@removal device=pmem0 step=release n=8"]);
    command(guest, "wait");
    assert_eq!(answer(guest, "jobs"), ["no job"]);
}

/// Pages of choice, and a removal that waits for them.
fn pins(guest: &mut Guest) {
    ask(guest, "attach 0 devdax");
    has(
        &refused(guest, "pin 0 0xfffffffffffffff0 16"),
        &["16 pages from page 18446744073709551600 on; the device has "],
    );
    has(&refused(guest, "pin 0 0 0"), &["error: "]);
    has(&ask(guest, "pin 0 513 3 write"), &["pin 1: 3 pages from page 513 on"]);
    has(&ask(guest, "register 0 2 50000 from=1024 read"), &["registration "]);
    has(&refused(guest, "register 0 2 50000 7"), &["expected: register N PAGES"]);
    has(&ask(guest, "pins"), &["3 pages", "2 pages", "by holder at", "by pin at"]);
    has(&refused(guest, "remove 0"), &["it would wait for pin 1"]);
    ask(guest, "remove 0 &");
    guest.line("the wait", |line| line.contains("waits for 3 pages")).expect("the removal says so");
    ask(guest, "unpin 1");
    command(guest, "wait");
    has(&ask(guest, "pins"), &["0 holders, 0 pins in all"]);
    has(&refused(guest, "unpin 1"), &["there is no pin 1"]);
}

/// A terminal of so many columns.
fn terminal(columns: usize) -> Machine {
    Machine { smp: 1, append: vec![format!("tty=1 columns={columns}")], ..shell() }
}

// covers: X3
#[test]
fn somebody_at_a_terminal_edits_recalls_and_completes() {
    let mut guest = start_shell(&terminal(80));
    // Nobody asks the terminal anything, and what is for programs is not shown.
    let before = guest.console().lines();
    assert!(!before.iter().any(|line| line.contains('\u{1b}') || line.starts_with("@boot")), "{before:?}");
    has(&ask(&mut guest, "mme\u{1b}[D\u{1b}[D\u{7f}\u{1b}[Fm\u{1b}[H\u{1b}[3~m"), &["RAM"]);
    has(&ask(&mut guest, "\u{1b}[A\u{1b}[Bmem"), &["RAM"]);
    has(&ask(&mut guest, "\u{1b}[A"), &["RAM"]);
    has(&ask(&mut guest, "junk\u{15}mem"), &["RAM"]);
    has(&ask(&mut guest, "att\tpm\tfs\t"), &["pmem0"]);
    ask(&mut guest, "mkfs 0");
    has(&ask(&mut guest, "mount 0"), &["mounted: fs "]);
    ask(&mut guest, "mkdir 0 /directory");
    ask(&mut guest, "write 0 '/directory/my file' 0 hello");
    has(&ask(&mut guest, "cat pmem0 \td\tm\t"), &["hello"]);
    has(&ask(&mut guest, "stat 0 '/directory/my file'"), &["stat: path /directory/my-file, ino "]);
    ask(&mut guest, "truncate 0 '/directory/my file' 8192");
    has(&ask(&mut guest, "touch 0 '/directory/my file'"), &["pages 2", ": 1 runs of its pages are durable now"]);
    // The last to close it has done that already.
    has(&ask(&mut guest, "fsync 0 '/directory/my file'"), &["nothing was stored since the last time"]);
    // The list stands where the second Tab was pressed.
    has(&command(&mut guest, "mo\t\t\ts").join("\n"), &["mount   mounts"]);
    has(&guest.prompt().unwrap_or_else(|error| panic!("{error:#}")).join("\n"), &["in use"]);
    for (line, says) in [
        ("m\u{1b}", "unknown command \"m\""),
        ("m\u{1b}[1;", "unknown command \"m\""),
        ("mém", "character 2, \"é\", is not ASCII; nothing was done"),
        (&"x".repeat(10_000), "a line of more than 512 characters; nothing was done"),
    ] {
        has(&refused(&mut guest, line), &[says]);
    }
    let removal = ask(&mut guest, "remove 0");
    has(&removal, &["8/8 release", "it is gone (removal 0 shows the report)", "mapped extents"]);
    assert!(!removal.contains('@') && removal.matches("8/8").count() == 1, "{removal}");
    guest.send("\u{4}").unwrap_or_else(|error| panic!("{error:#}"));
    assert_good(&guest.finish().unwrap_or_else(|error| panic!("{error:#}")));
}

// covers: X3
#[test]
fn control_c_gives_the_prompt_back_and_the_command_goes_on_as_a_job() {
    let mut guest = start_shell(&Machine { smp: 2, ..terminal(80) });
    ask(&mut guest, "attach 0 fsdax");
    ask(&mut guest, "mkfs 0");
    guest.send("fsload 0 1 2 0").unwrap_or_else(|error| panic!("{error:#}"));
    guest.line("the load", |line| line.starts_with("fsload: mounted, ")).expect("it works");
    guest.send("\u{3}").unwrap_or_else(|error| panic!("{error:#}"));
    guest.line("the prompt's return", |line| line == "job 1 is running: fsload 0 1 2 0").expect("it goes on");
    // One more prompt: behind the character there was the end of a line.
    (0..2).for_each(|_| drop(guest.prompt().unwrap_or_else(|error| panic!("{error:#}"))));
    has(&command(&mut guest, "jobs").join("\n"), &["job 1 is running: fsload 0 1 2 0"]);
    has(&command(&mut guest, "remove 0").join("\n"), &["8/8 release"]);
    command(&mut guest, "wait");
    let said = guest.console().lines().join("\n");
    has(&said, &["error: job 1 (fsload 0 1 2 0): "]);
    // One that ends by itself says what is wrong, as ever, and is no job.
    has(&refused(&mut guest, "df 9"), &["device 9"]);
    has(&ask(&mut guest, "jobs"), &["no job"]);
    assert_good(&exit(guest));
}

// covers: X3
#[test]
fn help_fits_a_terminal_of_forty_columns() {
    let mut guest = start_shell(&terminal(40));
    for line in ["help", "help removal", "help typing", "help register"] {
        let rows = answer(&mut guest, line);
        let widest = rows.iter().map(String::len).max().unwrap_or(0);
        assert!(rows.len() > 3 && widest <= 40, "{line}: {rows:#?}");
    }
    let names: Vec<String> = answer(&mut guest, "help").iter().filter(|row| !row.starts_with(' ')).cloned().collect();
    for name in names.iter().filter_map(|row| row.split_whitespace().next()) {
        let example = format!("for example: {name}");
        has(&answer(&mut guest, &format!("help {name}")).join("\n"), &[&example]);
    }
    has(&refused(&mut guest, "help nosuch"), &["there is no command \"nosuch\" (help lists them)"]);
    // As a terminal says that it is wider now.
    has(&ask(&mut guest, "\u{1b}[8;24;80thelp"), &["mem                          physical memory, heap, page tables"]);
    // What the host side needs of an epitaph it gets here too.
    guest.send("panic").unwrap_or_else(|error| panic!("{error:#}"));
    let outcome = guest.finish().unwrap_or_else(|error| panic!("{error:#}"));
    let Status::Panic(words) = &outcome.status else { panic!("{}", outcome.status) };
    has(words, &["asked for on the console"]);
    assert!(records::of_topic(&outcome.console, "kernel").next().is_some(), "where the kernel was loaded");
}

// covers: X3
#[test]
fn a_script_fails_where_a_command_of_it_does() {
    for (lines, status) in [(&["mem", "exit"][..], 0), (&["mem", "dance", "mem &", "exit"], 1)] {
        let mut guest = start_shell(&Machine { smp: 1, ..shell() });
        lines.iter().for_each(|line| guest.send(line).unwrap_or_else(|error| panic!("{error:#}")));
        let outcome = guest.finish().unwrap_or_else(|error| panic!("{error:#}"));
        assert_good(&outcome);
        assert_eq!(Status::of_script(&outcome.console).exit_code(), status, "{:?}", outcome.console);
    }
}
