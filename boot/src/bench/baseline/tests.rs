use super::*;
use crate::whole::Place;

fn row(value: Option<f64>, kind: Kind, met: bool) -> Figure {
    Figure { unit: "instructions".into(), value, kind, met }
}

fn baseline(rows: &[(&str, Figure)]) -> Baseline {
    let subject =
        Subject { build: "checked".into(), cpus: 4, mode: "deterministic".into(), memory: "512M 6G 6T".into() };
    Baseline { subject, figures: rows.iter().map(|(name, figure)| (name.to_string(), figure.clone())).collect() }
}

fn some() -> Baseline {
    baseline(&[
        ("fell", row(Some(100.0), Kind::AtMost, true)),
        ("gone", row(Some(5.0), Kind::None, true)),
        ("lost", row(Some(5.0), Kind::AtMost, true)),
        ("missed", row(Some(27.02), Kind::AtMost, false)),
        ("never", row(None, Kind::AtMost, false)),
        ("rose", row(Some(200.0), Kind::AtMost, true)),
        ("same", row(Some(1000.0), Kind::AtMost, true)),
    ])
}

#[test]
fn what_is_written_is_what_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("baseline.json");
    std::fs::write(&path, "what was there before").unwrap();
    let stored = some();
    Place::reserve(&path).unwrap().write(&stored.text()).unwrap();
    assert_eq!(Baseline::read(&path).unwrap(), stored);
    assert_eq!(Baseline::read_for(&path, &stored.subject).unwrap(), stored);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "nothing is left beside it");
    // A line for each row.
    let lines = std::fs::read_to_string(&path).unwrap();
    assert_eq!(lines.lines().filter(|line| line.contains("\"unit\"")).count(), stored.figures.len());
}

/// What is not written leaves what was there.
#[test]
fn a_place_that_is_given_up_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("baseline.json");
    std::fs::write(&path, some().text()).unwrap();
    drop(Place::reserve(&path).unwrap());
    assert_eq!(Baseline::read(&path).unwrap(), some());
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[test]
fn a_damaged_file_is_one_line() {
    let good = some().text();
    let half = &good[..good.len() / 2];
    for (text, word) in [
        ("", "EOF"),
        ("[]", "no cpus"),
        (half, "EOF"),
        (&good.replace("\"cpus\": 4", "\"cpus\": \"four\""), "no cpus"),
        (&good.replace("\"mode\"", "\"modus\""), "no mode"),
        (&good.replace("at_most", "at_best"), "the row fell"),
        (&good.replace("\"value\":27.02", "\"value\":\"27\""), "the row missed"),
        (&good.replace("\"value\":27.02", "\"worth\":27.02"), "the row missed"),
        (r#"{"build": "checked", "cpus": 4, "mode": "deterministic", "memory": "", "rows": {}}"#, "no rows"),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("damaged.json");
        std::fs::write(&path, text).unwrap();
        let error = format!("{:#}", Baseline::read(&path).expect_err("it is damaged"));
        assert!(error.contains(word) && error.contains("damaged.json is no baseline"), "{text:?}: {error}");
        assert!(!error.contains('\n'), "{error}");
    }
    let absent = format!("{:#}", Baseline::read(Path::new("/no/such/file")).expect_err("it is not there"));
    assert!(absent.starts_with("/no/such/file: "), "{absent}");
}

#[test]
fn a_baseline_of_something_else_is_refused_with_both() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("other.json");
    std::fs::write(&path, some().text()).unwrap();
    let own = some().subject;
    for other in [
        Subject { build: "release".into(), ..own.clone() },
        Subject { cpus: 8, ..own.clone() },
        Subject { mode: "wall".into(), ..own.clone() },
        Subject { memory: "512M 1G".into(), ..own.clone() },
    ] {
        let error = Baseline::read_for(&path, &other).expect_err("it is of something else").to_string();
        let both = error.contains(&own.to_string()) && error.contains(&other.to_string());
        assert!(both && !error.contains('\n'), "{error}");
    }
}

#[test]
fn what_moved_by_more_than_a_percent_is_said_and_what_is_new_or_gone() {
    let now = baseline(&[
        ("fell", row(Some(50.0), Kind::AtMost, true)),
        ("lost", row(None, Kind::AtMost, false)),
        ("missed", row(Some(27.1), Kind::AtMost, false)),
        ("never", row(None, Kind::AtMost, false)),
        ("new", row(Some(1.0), Kind::None, true)),
        ("rose", row(Some(203.0), Kind::AtMost, true)),
        ("same", row(Some(1009.0), Kind::AtMost, true)),
    ]);
    let changes = some().changes(&now.figures);
    let names: Vec<_> = changes.iter().map(|change| change.name.as_str()).collect();
    assert_eq!(names, ["fell", "lost", "new", "rose", "gone"]);
    let worse: Vec<_> = changes.iter().filter(|change| change.is_worse()).map(|change| change.name.as_str()).collect();
    assert_eq!(worse, ["lost", "rose"]);
    let words = |at: usize| changes[at].to_string().split_whitespace().map(String::from).collect::<Vec<_>>().join(" ");
    assert_eq!(words(0), "fell 100 50 -50.0 %");
    assert_eq!(words(1), "lost 5 none worse");
    assert_eq!(words(2), "new 1 new");
    assert_eq!(words(3), "rose 200 203 +1.5 % worse");
    assert_eq!(words(4), "gone 5 gone");
}

#[test]
fn a_miss_is_known_with_its_value_and_no_worse() {
    let stored = some();
    let missed = |value| row(value, Kind::AtMost, false);
    assert!(stored.knows_miss("missed", &missed(Some(27.1))) && stored.knows_miss("missed", &missed(Some(20.0))));
    assert!(!stored.knows_miss("missed", &missed(Some(28.0))), "it has become worse");
    assert!(!stored.knows_miss("missed", &missed(None)), "it cannot be had any more");
    assert!(stored.knows_miss("never", &missed(None)) && stored.knows_miss("never", &missed(Some(7.0))));
    assert!(!stored.knows_miss("rose", &missed(Some(200.0))), "it was met");
    assert!(!stored.knows_miss("new", &missed(Some(1.0))), "nobody knows it");
}

/// The tree's own: of what `bench` measures unasked.
#[test]
fn the_tree_keeps_one_of_the_default_machine() {
    let pmem = super::super::PMEM_BYTES.map(crate::backing::Nvdimm::temporary).to_vec();
    let machine = Machine { deterministic: true, pmem, ..Machine::default() };
    let stored = Baseline::read_for(&of_tree(), &Subject::of(&machine, Profile::Dev)).unwrap();
    assert!(stored.figures.len() > 50);
}
