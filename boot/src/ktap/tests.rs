//! Reports whole and broken, flat and nested.

use super::*;

fn read(text: &str) -> Report {
    parse(&text.lines().map(String::from).collect::<Vec<_>>())
}

#[test]
fn a_whole_report_among_noise() {
    let report = read(
        "@unplug version=0.1.0\nok 9 not.part.of.it\nKTAP version 1\n1..3\n[    0.1] mm: working\n\
         ok 1 mm.table # covers: G1\n@cpu id=1\nnot ok 2 mm.gup\n# freed early\n# at 7\nok 3 two # SKIP there is one\n\
         @verdict result=bad",
    );
    let names: Vec<_> = report.tests.iter().map(|test| test.name.as_str()).collect();
    assert_eq!(names, ["mm.table", "mm.gup", "two"]);
    assert_eq!(report.tests[0].output, ["[    0.1] mm: working"]);
    assert_eq!(report.tests[1].output, ["@cpu id=1", "# freed early", "# at 7"]);
    assert_eq!(report.tests[2].verdict, Verdict::Skipped("there is one".into()));
    assert!(report.problems.is_empty() && !report.is_success());
    assert_eq!(report.rest, ["@verdict result=bad"]);
}

#[test]
fn why_a_test_failed_is_its_own_although_another_task_spoke_before_it() {
    let report = read("KTAP version 1\n1..2\nnot ok 1 a\n[    0.1] dma: late\n# freed early\nok 2 b\n# passed: 1");
    assert_eq!(report.tests[0].output, ["# freed early"]);
    assert_eq!(report.tests[1].output, ["[    0.1] dma: late", "# passed: 1"]);
}

#[test]
fn all_passed_or_skipped_is_success() {
    assert!(read("KTAP version 1\n1..2\nok 1 a\nok 2 - b # SKIP no").is_success());
}

#[test]
fn what_is_not_a_whole_report_is_never_success() {
    for text in [
        "",
        "no report at all",
        "KTAP version 1",
        "KTAP version 1\n1..0",
        "KTAP version 1\nok 1 a",
        "KTAP version 1\n1..2\nok 1 a",
        "KTAP version 1\n1..1\nok 1 a\nok 2 b",
        "KTAP version 1\n1..2\nok 2 b\nok 1 a",
        "KTAP version 1\n1..2\nok 1 a\nok 1 a",
        "KTAP version 1\n1..2\n1..1\nok 1 a\nok 2 b",
        "KTAP version 1\n1..1\nok 1 a\nKTAP version 1",
        "KTAP version 1\n1..1\nok 1 a\nBail out! no memory",
        "KTAP version 1\n1..1\nok",
        "KTAP version 1\n1..1\nok one a",
        "KTAP version 1\n1..1\n[ 0.1] ok 1 a",
        "KTAP version 1\n1..99999999999999999999\nok 1 a",
    ] {
        assert!(!read(text).is_success(), "{text:?}");
    }
}

#[test]
fn a_crash_leaves_its_words_in_the_rest() {
    let report = read("KTAP version 1\n1..3\nok 1 a\n@panic cpu=0\npage 7 put twice\n@epitaph end");
    assert_eq!(report.rest, ["@panic cpu=0", "page 7 put twice", "@epitaph end"]);
    assert_eq!(report.problems, ["2 of 3 tests did not run, or did not end"]);
}

/// As KTAP's own text has it (`Documentation/dev-tools/ktap.rst` of Linux), and all parsers of others.
#[test]
fn a_test_that_says_skip_is_skipped_and_one_that_says_another_word_is_not() {
    let verdict = |line: &str| read(&format!("KTAP version 1\n1..1\n{line}")).tests[0].verdict.clone();
    assert_eq!(verdict("not ok 1 a # SKIP no"), Verdict::Skipped("no".into()));
    for line in ["not ok 1 a # TODO", "not ok 1 a # XFAIL no", "not ok 1 a # TIMEOUT", "not ok 1 a"] {
        assert_eq!(verdict(line), Verdict::Failed, "{line}");
    }
}

/// As KUnit prints it, by way of the kernel's log.
const KUNIT: &str = "[    0.9] noise
[    1.000000] KTAP version 1
[    1.000001] 1..2
[    1.000002]     KTAP version 1
[    1.000003]     # Subtest: list
[    1.000004]     # module: list_test
[    1.000005]     1..3
[    1.000006]     ok 1 list_add
[    1.000007]         KTAP version 1
[    1.000008]         # Subtest: list_del
[    1.000009]         ok 1 head
[    1.000010]         ok 2 tail # SKIP there is none
[    1.000011]         1..2
[    1.000012]     ok 2 list_del
[    1.000013]     # list_move: EXPECTATION FAILED at lib/list.c:7
[    1.000014]     not ok 3 list_move
[    1.000015] # list: pass:2 fail:1 skip:0 total:3
[    1.000016] not ok 1 list
[    1.000017] ok 2 empty
[    2.0] reboot: Power down";

/// covers: T5
#[test]
fn what_is_tested_in_a_test_is_below_it() {
    let report = read(KUNIT);
    assert_eq!(report.problems, [""; 0]);
    assert!(!report.is_success());
    let list = &report.tests[0];
    assert_eq!((&*list.name, list.subtests.len(), report.tests[1].subtests.len()), ("list", 3, 0));
    let names: Vec<_> = list.subtests[1].subtests.iter().map(|test| &*test.name).collect();
    assert_eq!(names, ["head", "tail"]);
    assert_eq!(list.subtests[2].output, ["    # list_move: EXPECTATION FAILED at lib/list.c:7"]);
    assert_eq!(report.rest, ["reboot: Power down"]);
    // Those in which nothing else is tested, as `kunit.py` counts them.
    assert_eq!(report.counts(), Counts { passed: 3, failed: 1, skipped: 1 });
}

/// covers: T5
#[test]
fn a_report_in_a_report_that_is_not_whole_is_a_problem() {
    let nested = |inner: &str, outer: &str| {
        let inner: String = inner.lines().map(|line| format!("  {line}\n")).collect();
        read(&format!("KTAP version 1\n1..1\n{inner}{outer}")).problems.join("; ")
    };
    assert_eq!(nested("KTAP version 1\n1..1\nok 1 a", "ok 1 x"), "");
    assert_eq!(nested("# Subtest: x\n1..1\nok 1 a", "ok 1 x"), "");
    for (inner, outer, problem) in [
        ("KTAP version 1\n1..2\nok 1 a", "ok 1 x", "x: 1 of 2 tests did not run, or did not end"),
        ("KTAP version 1\n1..1\nok 2 a", "ok 1 x", "x: result 2 (a) came where 1 was due"),
        ("KTAP version 1\n1..1\nnot ok 1 a", "ok 1 x", "x is said to have passed, and a test in it failed"),
        (
            "KTAP version 1\n1..1\nok 1 a",
            "",
            "1 of 1 tests did not run, or did not end; what was tested last had no result",
        ),
        (
            "KTAP version 1\nok 1 a\nKTAP version 1\n",
            "ok 1 x",
            "x: a second report begins inside the first; x: the report has no plan",
        ),
    ] {
        assert_eq!(nested(inner, outer), problem, "{inner:?}");
    }
}

/// covers: T5
#[test]
fn one_report_after_the_other_are_so_many() {
    let text = "noise\nKTAP version 1\n1..1\nok 1 a\nTAP version 14\n1..2\nok 1 - b\nnot ok 2\n";
    let all = parse_all(&text.lines().map(String::from).collect::<Vec<_>>());
    let names: Vec<_> = all.iter().flat_map(|report| &report.tests).map(|test| &*test.name).collect();
    assert_eq!((all.len(), names), (2, vec!["a", "b", ""]));
    assert!(all[0].is_success() && all[1].problems.is_empty() && !all[1].is_success());
    assert!(parse_all(&[]).is_empty());
}

/// A line that says `not ok` is never passed over. covers: T5
#[test]
fn a_result_without_a_number_is_the_next_one_and_in_ktap_a_problem_too() {
    let report = read("TAP version 14\n1..4\nok\nok - b\nnot ok c # why\nok 4 d # 7");
    let names: Vec<_> = report.tests.iter().map(|test| (test.number, &*test.name)).collect();
    assert_eq!(names, [(1, ""), (2, "b"), (3, "c"), (4, "d")]);
    assert_eq!((report.counts(), &report.problems[..]), (Counts { passed: 3, failed: 1, skipped: 0 }, &[][..]));
    assert!(read("TAP version 13\n1..2\nok a\nok 2").is_success());
    for text in ["TAP version 13\n1..2\nok 1 a\nnot ok", "TAP version 13\n1..1\nok 1 a\nnot ok b"] {
        assert!(!read(text).is_success(), "{text:?}");
    }
    for (line, problem) in [
        ("not ok b", "result 2 (b) has no number; 2 results, but a plan of 1"),
        ("not ok", "result 2 () has no number; 2 results, but a plan of 1"),
        ("not ok\t2 b", "2 results, but a plan of 1"),
        ("not ok 99999999999999999999 b", "\"not ok 99999999999999999999 b\" cannot be read"),
    ] {
        let report = read(&format!("KTAP version 1\n1..1\nok 1 a\n{line}"));
        assert_eq!(report.problems.join("; "), problem, "{line:?}");
    }
    // It is no result at all.
    for line in ["okay", "ok: then", "not okay 2", "not  ok 2"] {
        assert!(read(&format!("KTAP version 1\n1..1\nok 1 a\n{line}")).is_success(), "{line:?}");
    }
}

/// covers: T5
#[test]
fn a_directive_is_read_in_any_case_and_as_a_whole_word() {
    let verdict = |line: &str| read(&format!("TAP version 14\n1..1\n{line}")).tests[0].verdict.clone();
    for line in ["ok 1 a # skip no", "not ok 1 a # Skip no", "ok a #SKIP no", "ok # sKiP no"] {
        assert_eq!(verdict(line), Verdict::Skipped("no".into()), "{line}");
    }
    assert_eq!(verdict("ok 1 a # SKIP"), Verdict::Skipped(String::new()));
    for line in ["not ok 1 a # skipping the end", "not ok 1 a # Todo", "not ok 1 a # é"] {
        assert_eq!(verdict(line), Verdict::Failed, "{line}");
    }
}

/// covers: T5
#[test]
fn a_plan_may_say_why_there_is_nothing_to_run() {
    for text in ["1..0 # SKIP no device", "1..0 # skipped: no device", "1..1 # one\nok 1 a", "1..1\t\nok 1 a"] {
        let report = read(&format!("TAP version 13\n{text}"));
        assert!(report.is_success(), "{text:?}: {:?}", report.problems);
    }
    assert_eq!(read("KTAP version 1\n1..0 # SKIP no device").plan, Some(0));
    for text in ["1..0", "1..0 # none", "1..0 # SKIP no\nok 1 a", "1..1 # SKIP no", "1..1 ok 1 a"] {
        assert!(!read(&format!("TAP version 13\n{text}")).is_success(), "{text:?}");
    }
}

/// As TAP 14 has it: the comment that names what is tested in a test may stand in the test's own column. covers: T5
#[test]
fn a_subtest_may_be_named_in_the_column_of_its_test() {
    let text = "TAP version 14\n1..2\nok 1 - a\n# Subtest: b\n    1..2\n    ok 1 - c\n    # Subtest\n        not ok 1 - e\n\
                \x20       1..1\n    not ok 2 - d\nnot ok 2 - b";
    let report = read(text);
    assert_eq!(report.problems, [""; 0]);
    assert_eq!((report.tests[0].output.len(), &*report.tests[1].subtests[1].subtests[0].name), (0, "e"));
    assert_eq!(report.counts(), Counts { passed: 2, failed: 1, skipped: 0 });
    assert_eq!(
        read(&text.replace("\nnot ok 2", "\nok 2")).problems,
        ["b is said to have passed, and a test in it failed"]
    );
}

/// What is on a medium cannot begin a report, nor be a line of one: the kernel shows it so that it is none. covers: T5
#[test]
fn what_a_medium_holds_is_no_line_of_a_report() {
    for text in [
        "KTAP version 1",
        "TAP version 14",
        "1..3",
        "1..0 # SKIP no",
        "ok 1 a",
        "ok",
        "not ok 1 a",
        "# Subtest: a",
        "# a",
        "Bail out! a",
        "[    0.1] KTAP version 1",
        "[    0.1][   T1] ok 1 a",
    ] {
        for blanks in ["", " ", "    "] {
            let line = cli::shown::shown(format!("{blanks}{text}").as_bytes());
            let text = unstamped(&line).unwrap_or(&line).trim_start_matches(' ');
            assert_eq!(classify(text), Line::Noise, "{line}");
            assert!(!begins(&line), "{line}");
        }
    }
}
