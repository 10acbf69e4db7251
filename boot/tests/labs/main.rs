//! The labs as a teacher has them: handed out, and graded right, wrong and hanging. Lab 5 in each run; every lab's model, starting
//! point and wrong solutions where `UNPLUG_FULL` is 1.
//!
//! What a grade is made of is built where `run-qemu.sh` builds, so that it is built once.

mod bench;

use bench::{Bench, Grade};
use boot::lab::catalog::{LABS, Lab};
use boot::paths;
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use std::process::ExitCode;

/// What the student has written in the place of a part.
const HANGS: &str = "loop {\n    core::hint::spin_loop();\n}";

/// covers: T5
fn lab_5_is_handed_out_and_graded_right_wrong_and_hanging() {
    let bench = Bench::new(Lab::find(5).expect("there is one"), None);
    let grade = bench.grade();
    assert_eq!((grade.points, grade.status), (0, 1), "what was handed out has no points:\n{grade}");
    bench.put_model();
    let grade = bench.grade();
    assert_eq!((grade.points, grade.status), (10, 0), "the kernel's own text has all of them:\n{grade}");
    bench.put_wrong("leaf-only");
    let refused = bench.lab(&["model", "5", &bench.shown()]);
    assert!(refused.status == 2 && refused.error.contains("somebody has written in"), "{refused}");
    let grade = bench.grade();
    assert!(grade.points < 10 && grade.status == 1, "{grade}");
    let hint = grade.hint("a page table that was unlinked is noticed").unwrap_or_else(|| panic!("{grade}"));
    assert!(hint.contains("Look at the entry above, too"), "{hint}");
    is_what_the_page_shows(&grade);

    bench.put_body("look again", HANGS);
    let grade = bench.grade();
    assert_eq!((grade.points, grade.status), (0, 1), "it hangs:\n{grade}");
    assert!(grade.text.contains("it does not end"), "{grade}");
    bench.assert_nothing_runs();
    bench.interrupt_a_grade();
    bench.assert_nothing_runs();

    bench.put_body("look again", "this is no Rust");
    let grade = bench.grade();
    assert_eq!((grade.points, grade.status), (0, 1), "{grade}");
    assert!(grade.text.contains("# said: it does not build: error"), "{grade}");

    bench.put_part("look again", "// lab 5 end\n");
    let grade = bench.grade();
    assert_eq!(grade.status, 2, "{grade}");
    assert!(grade.text.is_empty() && grade.error.lines().count() == 1, "{grade}");
}

/// The excerpt in `docs/labs/README.md` is of this grade: its lines, as far as a `…`, in their order.
fn is_what_the_page_shows(grade: &Grade) {
    let page = std::fs::read_to_string(paths::root().join("docs/labs/README.md")).expect("the page");
    let block = page.split("```console by boot/tests/labs/main.rs\n").nth(1).expect("the excerpt");
    let mut said = grade.text.lines();
    for shown in block.lines().take_while(|line| !line.starts_with("```")) {
        let is_shown = |line: &str| match shown.strip_suffix('…') {
            Some(begins) => line.starts_with(begins),
            None => line == shown,
        };
        assert!(said.any(is_shown), "{shown:?} is not there, or not in its place:\n{grade}");
    }
}

/// covers: T5
fn lab_1_is_another_one_for_each_seed_and_its_wrong_answers_are_known() {
    let lab = Lab::find(1).expect("there is one");
    let (one, two) = (Bench::new(lab, Some(1)), Bench::new(lab, Some(2)));
    assert_ne!(one.read("dump.txt"), two.read("dump.txt"));
    one.put_model();
    std::fs::copy(one.place().join("answers.txt"), two.place().join("answers.txt")).expect("copied");
    assert!(two.grade().points < 10, "one student's answers are not another's");
    whole(lab);
}

/// covers: T5
fn a_lab_that_is_not_there_or_has_no_room_is_one_line() {
    let bench = Bench::new(Lab::find(1).expect("there is one"), None);
    for (args, words) in [
        (&["new", "9", "/tmp/x"][..], "there is no lab 9 (expected 1 to 8)"),
        (&["new", "x", "/tmp/x"], "x"),
        (&["new", "5", &bench.shown()], "is not empty"),
        (&["grade", "5", &bench.shown()], "is lab 1, not lab 5"),
        (&["grade", "5", "/nowhere"], "there is no directory /nowhere"),
        (&["new", "5", "/nowhere/x", "--seed", "3"], "--seed is for a lab with random questions"),
        (&["grade", "5", &bench.shown(), "--seconds", "1"], "--seconds"),
        (&["dance"], "dance"),
    ] {
        let Grade { status, text, error, .. } = bench.lab(args);
        assert_eq!((status, text.as_str(), error.lines().count()), (2, "", 1), "{args:?}: {error}");
        assert!(error.starts_with("run-qemu: ") && error.contains(words), "{args:?}: {error}");
    }
}

/// The model, the starting point, and the wrong solutions of a lab.
fn whole(lab: &'static Lab) {
    // The wrong answers of lab 1 are those of this seed.
    let bench = Bench::new(lab, lab.parts.is_empty().then_some(7));
    let grade = bench.grade();
    assert_eq!((grade.points, grade.status), (0, 1), "lab {}, the starting point:\n{grade}", lab.number);
    bench.put_model();
    let grade = bench.grade();
    assert_eq!((grade.points, grade.status), (10, 0), "lab {}, the model:\n{grade}", lab.number);
    for name in bench.wrong_ones() {
        let loses = bench.put_wrong(&name);
        let grade = bench.grade();
        let point = lab.points.iter().find(|point| point.what == loses).expect("it names a point");
        assert_eq!(grade.hint(&loses).as_deref(), Some(point.hint), "lab {}, {name}:\n{grade}", lab.number);
    }
}

/// A lab as a whole, which takes minutes; the first one is a part of a test of its own.
fn whole_with_full(lab: &'static Lab) -> Result<Completion, Failed> {
    if std::env::var_os("UNPLUG_FULL").is_none() {
        return Ok(Completion::ignored_with("with --full alone"));
    }
    whole(lab);
    Ok(Completion::Completed)
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let quick: [(&str, fn()); 3] = [
        (
            "lab_5_is_handed_out_and_graded_right_wrong_and_hanging",
            lab_5_is_handed_out_and_graded_right_wrong_and_hanging,
        ),
        (
            "lab_1_is_another_one_for_each_seed_and_its_wrong_answers_are_known",
            lab_1_is_another_one_for_each_seed_and_its_wrong_answers_are_known,
        ),
        ("a_lab_that_is_not_there_or_has_no_room_is_one_line", a_lab_that_is_not_there_or_has_no_room_is_one_line),
    ];
    let quick = quick.map(|(name, test)| {
        Trial::test(name, move || {
            test();
            Ok(())
        })
    });
    let slow = LABS.into_iter().filter(|lab| lab.number != 1).map(|lab| {
        let name = format!("lab_{}_knows_its_model_its_starting_point_and_its_wrong_solutions", lab.number);
        Trial::ignorable_test(name, move || whole_with_full(lab))
    });
    libtest_mimic::run(&arguments, quick.into_iter().chain(slow).collect()).exit_code()
}
