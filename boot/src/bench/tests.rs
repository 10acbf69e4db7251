use super::*;
use crate::cli::Cli;
use clap::Parser;

const MISSED: &str = "@bench name=pin unit=instructions value=118 bound=80 kind=at_most met=0";
const MET: &str = "@bench name=unpin unit=instructions value=27 bound=40 kind=at_most met=1";
const END: &str = "@bench figures=2 missed=1 ended=1";

fn outcome(lines: &[&str]) -> Outcome {
    let status = Status::Bad("1_bounds_missed".into());
    Outcome { status, console: lines.iter().map(ToString::to_string).collect(), hang: vec![] }
}

fn held(args: &[&str]) -> Result<Held> {
    let mut options = Cli::parse_from(["run-qemu.sh", "bench"].iter().chain(args)).options;
    options.deterministic = true;
    // Not the default machine: the tree's own baseline is out of this.
    options.pmem = vec![2 * GIB];
    let machine = Machine::from_options(&options)?;
    Held::from_options(&options, &machine)
}

fn is_bad(status: &Status, word: &str) -> bool {
    matches!(status, Status::Bad(why) if why.contains(word) && !why.contains('\n'))
}

#[test]
fn whoever_steps_through_a_measurement_has_no_time_limit() {
    let timeout = |args: &[&str]| {
        let asked = Cli::parse_from(["run-qemu.sh", "bench"].iter().chain(args)).options;
        let machine = Machine::from_options(&options(&asked, &PMEM_BYTES)).unwrap();
        machine.timeout.map(|timeout| timeout.as_secs())
    };
    assert_eq!([timeout(&[]), timeout(&["--smp", "64"])], [Some(BENCH_PATIENCE_S); 2]);
    assert_eq!([timeout(&["--debug"]), timeout(&["--timeout", "0"])], [None; 2]);
    assert_eq!(timeout(&["--debug", "--timeout", "5"]), Some(5));
}

#[test]
fn a_goal_that_is_missed_is_bad_until_its_figure_is_stored() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("stored.json");
    let path = path.to_str().unwrap();
    let run = outcome(&[MISSED, MET, END]);
    assert!(is_bad(&held(&[]).unwrap().judge(&run), "not known to be: pin"));
    assert_eq!(held(&["--save", path]).unwrap().judge(&run), Status::Good);
    let against = |lines: &[&str]| held(&["--baseline", path]).unwrap().judge(&outcome(lines));
    assert_eq!(against(&[MISSED, MET, END]), Status::Good);
    // Less is no worse; more is; a miss that was none is one.
    assert_eq!(against(&[&MISSED.replace("118", "100"), MET, END]), Status::Good);
    assert!(is_bad(&against(&[&MISSED.replace("118", "120"), MET, END]), "not known to be: pin"));
    assert!(is_bad(&against(&[MISSED, &MET.replace("=27", "=28"), END]), "1 rows are worse"));
    assert!(is_bad(&against(&[MISSED, &MET.replace("met=1", "met=0"), END]), "not known to be: unpin"));
    // What was cut off is neither good nor stored.
    assert!(is_bad(&against(&[MISSED, MET]), "cut off"));
    let before = std::fs::read(path).unwrap();
    assert!(is_bad(&held(&["--save", path]).unwrap().judge(&outcome(&[MISSED])), "cut off"));
    assert_eq!(std::fs::read(path).unwrap(), before);
}

#[test]
fn what_is_stored_is_compared_first() {
    let directory = tempfile::tempdir().unwrap();
    let [old, new] = ["old", "new"].map(|name| directory.path().join(name).display().to_string());
    assert_eq!(held(&["--save", &old]).unwrap().judge(&outcome(&[MISSED, MET, END])), Status::Good);
    let worse = outcome(&[MISSED, &MET.replace("=27", "=28"), END]);
    for to in [&new, &old] {
        let status = held(&["--baseline", &old, "--save", to]).unwrap().judge(&worse);
        assert!(is_bad(&status, "1 rows are worse"), "{status}");
        assert!(std::fs::read_to_string(to).unwrap().contains("28"), "{to}");
    }
    // Those are the ones that it is held against from now on.
    assert_eq!(held(&["--baseline", &old, "--save", &new]).unwrap().judge(&worse), Status::Good);
}

#[test]
fn a_sweep_has_no_rows_to_judge() {
    let good = Outcome { status: Status::Good, ..outcome(&["@sweep ended=1"]) };
    assert_eq!(held(&["--append", "bench=sweep"]).unwrap().judge(&good), Status::Good);
    assert!(is_bad(&held(&[]).unwrap().judge(&good), "no record of a measurement"));
}

/// Whatever else ended the guest is what it was.
#[test]
fn a_guest_that_did_not_measure_is_judged_as_it_ended() {
    for status in [Status::Panic("x".into()), Status::Bad("not_measured".into()), Status::Hung("x".into())] {
        let ended = Outcome { status: status.clone(), ..outcome(&[MET, "@bench figures=1 missed=0 ended=1"]) };
        assert_eq!(held(&[]).unwrap().judge(&ended), status);
    }
}

#[test]
fn what_cannot_be_compared_or_stored_is_refused_before_anything_is_built() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    let refused = |args: &[&str]| format!("{:#}", held(args).expect_err("it is refused"));
    for (args, word) in [
        (&["--baseline", "/no/such/file"][..], "--baseline: /no/such/file"),
        (&["--save", "/no/such/directory/x"], "--save: /no/such/directory/x cannot be written"),
        (&["--save", &path("")], "directory"),
        (&["--save", &path("x"), "--append", "bench=gup"], "--save stores all rows"),
        (&["--save", &path("x"), "--append", "bench=sweep"], "--save stores all rows"),
        (&["--baseline", &path("x"), "--append", "bench=sweep"], "bench=sweep measures none"),
    ] {
        let error = refused(args);
        assert!(error.contains(word) && !error.contains('\n'), "{args:?}: {error}");
    }
    let stored = path("stored.json");
    let good = held(&["--save", &stored]).unwrap().judge(&outcome(&[MISSED, MET, END]));
    assert_eq!(good, Status::Good);
    for args in [&["--smp", "8"][..], &["--release"], &["--mem", "1G"]] {
        let error = refused(&[&["--baseline", &stored][..], args].concat());
        assert!(error.contains("cannot be compared with") && !error.contains('\n'), "{args:?}: {error}");
    }
    let part = held(&["--baseline", &stored, "--append", "bench=gup"]).unwrap();
    assert_eq!(part.judge(&outcome(&[MISSED, "@bench figures=1 missed=1 ended=1"])), Status::Good);
}
