//! The summary of a console that was kept from a real run, and of what can become of one.

use super::*;

/// The lines of a run that the summary is about, and some of those that it leaves out.
const GOOD: &str = include_str!("good.txt");

fn screen(console: &str) -> Vec<String> {
    let mut summary = Summary::default();
    let mut rows: Vec<_> = console.lines().flat_map(|line| summary.line(line)).collect();
    rows.extend(summary.end());
    rows.into_iter().map(|row| row.text).collect()
}

/// The console without the lines that begin so.
fn without(console: &str, beginnings: &[&str]) -> String {
    let is_kept = |line: &&str| !beginnings.iter().any(|beginning| line.starts_with(beginning));
    console.lines().filter(is_kept).collect::<Vec<_>>().join("\n")
}

/// The row that begins so.
fn row<'a>(screen: &'a [String], beginning: &str) -> &'a str {
    let found = screen.iter().find(|row| row.starts_with(beginning));
    found.unwrap_or_else(|| panic!("no {beginning:?} in\n{}", screen.join("\n")))
}

#[test]
fn a_good_run_is_a_screenful() {
    let screen = screen(GOOD);
    let said = screen.join("\n");
    assert!(screen.len() <= 36 && screen.iter().all(|row| row.chars().count() <= COLUMNS), "{said}");
    assert_eq!(screen[0], "Unplug: 4 CPUs, 511 MiB RAM, 1 NVDIMM (1G), 2 modules (2G), IOMMU, edu, NVMe");
    for (beginning, end) in [
        ("1/6 by range", "15 of 15 users ended by SIGBUS, 4 of 4 others went on"),
        ("2/6 per frame", "15 of 15 users ended by SIGBUS, 4 of 4 others went on"),
        ("3/6 page", "19 faults, 0 leaks; a lost page: its task told, healed by a write"),
        ("4/6 files", "12 of 12 users told, 4 of 4 others went on; 0 synced records lost"),
        ("5/6 lent", "left out: no virtio-pmem device (--virtio-pmem 64M adds one)"),
        ("6/6 desk", "12 of 12 users told, 1 transfer blocked; put back: 0 records lost"),
        ("page frames", "262,144              64"),
        ("shootdowns", "1              64"),
        ("time ", "95 ms          638 ms"),
        ("One by one, all 262,144 frames would have taken", "43 min (extrapolated)."),
    ] {
        assert!(row(&screen, beginning).ends_with(end), "{said}");
    }
    assert_eq!(screen.iter().filter(|row| row.contains(": warning: ")).count(), 4, "{said}");
    assert_eq!(screen.last().map(String::as_str), Some("Verdict: good"), "{said}");
    assert!(!said.contains('@') && !said.contains("stop_io") && !said.contains("BAD"), "{said}");
}

#[test]
fn what_is_not_as_it_should_be_is_named_with_its_act() {
    let console = GOOD
        .replace("method=per-frame users=15 sigbus=15", "method=per-frame users=15 sigbus=14")
        .replace("leaks=0 same=1", "leaks=2 same=0")
        .replace("edu_landed=0", "edu_landed=1")
        .replace("@verdict result=good", "[    7.0] verdict: error: a page carried a wrong stamp\n@verdict result=bad reason=a-page-carried-a-wrong-stamp");
    let screen = screen(&console);
    assert!(row(&screen, "2/6").contains("BAD: 14 of 15 users"), "{screen:?}");
    let said = screen.join(" ");
    for words in ["(wrong: sigbus)", "(wrong: leaks, same)", "(wrong: edu_landed)", "error: a page carried"] {
        assert!(said.split_whitespace().collect::<Vec<_>>().join(" ").contains(words), "{words:?} in {said}");
    }
    assert_eq!(row(&screen, "Verdict"), "Verdict: bad: a page carried a wrong stamp");
    assert!(row(&screen, "1/6").ends_with("went on"));
}

/// A key that is missing is not taken for what it should be.
#[test]
fn an_outcome_that_is_garbled_or_missing_is_not_good() {
    let screen = screen(&GOOD.replace("wrong_stamps=0", "wrong_sta").replace("@page faults", "@pa faults"));
    assert!(row(&screen, "1/6").contains("BAD"), "{screen:?}");
    assert!(row(&screen, "3/6").ends_with("no outcome was told"), "{screen:?}");
}

#[test]
fn a_panic_shows_its_epitaph_as_it_is() {
    let begun = GOOD.split("@act n=3").next().expect("a beginning");
    let long = format!("  {}", "x".repeat(200));
    let screen = screen(&format!(
        "{begun}@act n=3 of=6 name=page\n@panic cpu=1\n  kernel/src/x.rs:1:2:\n{long}\n@epitaph end\n@cpu id=7\n"
    ));
    let tail = &screen[screen.len() - 5..];
    assert_eq!(
        tail,
        ["3/6 page      did not come to its end", "@panic cpu=1", "  kernel/src/x.rs:1:2:", &long, "@epitaph end"]
    );
}

#[test]
fn a_guest_that_stops_in_an_act_and_one_that_says_nothing() {
    let begun = GOOD.split("@files act=files").next().expect("a beginning");
    let said = screen(begun);
    assert_eq!(said.last().map(String::as_str), Some("4/6 files     did not come to its end"));
    assert!(screen("").is_empty());
    assert_eq!(screen("@unplug version=0.1.0"), ["Unplug: 0 CPUs, 0 MiB RAM"]);
}

/// `--dimm none`: nothing can fall off the desk.
#[test]
fn without_modules_the_last_act_is_left_out() {
    let screen = screen(&without(GOOD, &["@dimm ", "@departed", "@files act=desk", "@desk", "[    6."]));
    assert!(!screen[0].contains("module"), "{screen:?}");
    assert!(row(&screen, "6/6").ends_with("left out: it takes two modules (--dimm), an IOMMU and edu"), "{screen:?}");
    assert_eq!(screen.last().map(String::as_str), Some("Verdict: good"));
}

/// In deterministic mode nobody puts the modules back, and there is no disk.
#[test]
fn what_nobody_has_looked_at_is_not_wrong() {
    let console = without(GOOD, &["@nvme"])
        .replace("damage=0 lost=0\n@desk", "damage=none lost=none\n@desk")
        .replace(
            "edu_landed=0 reads=94 read_refused=1 blocked=1 back=1 kept=1",
            "edu_landed=none reads=none read_refused=none blocked=2 back=0 kept=none",
        )
        .replace("deterministic=0", "deterministic=1")
        .replace("row=cycles", "row=instructions");
    let screen = screen(&console);
    assert!(
        row(&screen, "6/6").ends_with("12 of 12 users told, 2 transfers blocked; the modules stay away"),
        "{screen:?}"
    );
    assert!(screen.iter().any(|row| row.starts_with("instructions") && row.contains("1,510,011,947")), "{screen:?}");
    assert!(screen[1].contains("deterministic") || screen[0].contains("deterministic"), "{screen:?}");
}

#[test]
fn one_cpu_and_lent_memory() {
    let console = GOOD
        .replace("@boot cpus=4", "@virtio_pmem id=0 pci=0 base=0 size=67108864\n@boot cpus=1")
        .replace("@act n=6", "@lent device=vpmem0 dax=1 same=1\n@lent device=vpmem1 dax=1 same=1\n@act n=6");
    let said = screen(&console);
    assert!(
        said[0].starts_with("Unplug: 1 CPU, ") && said[..2].join("").contains("1 virtio-pmem device        (64M), "),
        "{said:?}"
    );
    assert!(row(&said, "5/6").ends_with("vpmem0, vpmem1: written, flushed, read again"), "{said:?}");
    let said = screen(&console.replace("vpmem1 dax=1 same=1", "vpmem1 dax=1 same=0"));
    assert!(row(&said, "5/6").contains("BAD"), "{said:?}");
}

/// Why a kernel does not begin is on lines of its own, which nothing else of the console is before the first act.
#[test]
fn what_is_refused_before_the_first_act_is_shown() {
    let line = "options: unknown option \"flavour\" (known: mode)";
    assert_eq!(screen(&format!("@unplug version=0.1.0\n{line}\n"))[0], line);
    let said = screen(
        "@unplug version=0\n@boot cpus=2 missing=1 ram_bytes=0\n[    1.0] verdict: error: no-nvdimm\n@verdict result=bad reason=no-nvdimm\n",
    );
    assert_eq!(said[1..], ["Unplug: 2 CPUs, 1 more did not start, 0 MiB RAM", "Verdict: bad: no nvdimm"]);
    assert!(said[0].contains("error: no-nvdimm"));
}

/// Every act that the kernel knows has its sentences.
#[test]
fn each_stop_says_what_comes() {
    for name in ["by_range", "per_frame", "page", "files", "lent", "desk"] {
        let said = screen(&format!("@unplug v\n@next n=2 of=6 name={name}\n"));
        assert!(said[1].starts_with(&format!("Next, 2 of 6, {}: ", acts::title(name))), "{said:?}");
        assert!(said.len() <= 5 && said.iter().all(|row| row.chars().count() <= COLUMNS), "{said:?}");
        assert_ne!(coming(name), coming(""));
    }
    let kernel =
        std::fs::read_to_string(crate::paths::root().join("kernel/src/demo/mod.rs")).expect("the kernel's source");
    let acts: Vec<_> = kernel.lines().filter_map(|line| line.trim().strip_prefix("act(")?.split('"').nth(1)).collect();
    assert_eq!(acts.len(), 6, "{acts:?}");
    assert!(acts.iter().all(|name| coming(name) != coming("")), "{acts:?}");
}

/// Random bytes, and real lines cut anywhere: no panic, and no row that is too wide but for what is shown as it came.
#[test]
fn no_line_is_too_odd() {
    for (at, _) in GOOD.char_indices() {
        let (head, tail) = GOOD.split_at(at);
        let cut = format!("{}\n{}", head.lines().next_back().unwrap_or(""), tail.lines().next().unwrap_or(""));
        let _ = screen(&cut);
    }
    for line in [
        "@",
        "@act",
        "@act n=x",
        "@table row=ns ranged=18446744073709551615 perframe=18446744073709551615",
        "[",
        "[ 1] x",
        "@verdict",
    ] {
        let _ = screen(&format!(
            "{line}\n@table row=frames_covered ranged=1 perframe=0\n@act n=1 of=1 name=desk\n@files\n@desk\n@verdict"
        ));
    }
}

#[test]
fn numbers_times_and_long_lines() {
    assert_eq!([0, 999, 1000, 1_234_567].map(group), ["0", "999", "1,000", "1,234,567"]);
    assert_eq!(
        [9_999, 10_000, 9_999_999, 600_000_000_000].map(words::time),
        ["9,999 ns", "10 us", "9,999 us", "10 min"]
    );
    assert_eq!(words::time(u128::MAX).split(' ').next_back(), Some("days"));
    assert_eq!(wrap("  aa bb cc", 4, 7), ["  aa bb", "    cc"]);
    assert_eq!(wrap("aaaaaaaaaa bb", 0, 4), ["aaaaaaaaaa", "bb"]);
    assert_eq!(wrap("", 2, 4), [""]);
}
