use super::*;
use crate::lab::catalog::Check;
use proc_macro2::{Delimiter, TokenStream, TokenTree};
use std::io::Write;
use std::process::{Command, Stdio};

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every source of the kernel.
fn kernel_sources() -> Vec<(PathBuf, String)> {
    let files = tree::sources().expect("the project is there");
    let sources = files.into_iter().filter(|(path, _)| path.extension().is_some_and(|extension| extension == "rs"));
    sources.map(|(path, bytes)| (path, String::from_utf8(bytes).expect("a source is text"))).collect()
}

/// covers: T5
#[test]
fn every_part_in_the_kernel_is_of_a_lab_and_every_lab_has_its_parts() {
    let mut found = Vec::new();
    for (path, text) in kernel_sources() {
        let parts = markers::parts(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        found.extend(parts.into_iter().map(|part| (part.lab, part.name, path.display().to_string())));
    }
    let wanted =
        LABS.iter().flat_map(|lab| lab.parts.iter().map(|part| (lab.number, part.name.into(), part.file.into())));
    let mut wanted: Vec<(u32, String, String)> = wanted.collect();
    found.sort();
    wanted.sort();
    assert_eq!(found, wanted);
}

/// The head of each function of a text: all before its body.
fn signatures(text: &str) -> Vec<String> {
    let stream: TokenStream = text.parse().unwrap_or_else(|error| panic!("it is not Rust: {error}\n{text}"));
    let (mut all, mut head) = (Vec::new(), None);
    for token in stream {
        match (&token, &mut head) {
            (TokenTree::Ident(word), None) if *word == "fn" => head = Some(String::from("fn")),
            (TokenTree::Group(body), Some(text)) if body.delimiter() == Delimiter::Brace => {
                all.push(std::mem::take(text));
                head = None;
            }
            (token, Some(text)) => *text += &format!(" {token}"),
            _ => {}
        }
    }
    all
}

/// A student writes what the kernel calls: where a function of it has changed, so has its starting point. covers: T5
#[test]
fn a_starting_point_has_the_functions_of_the_model() {
    for (lab, place) in places() {
        let source = read(&paths::root().join(place.file));
        let part = markers::part(&source, lab.number, place.name).expect("it has its comments");
        let (model, start) = (part.text(&source), start(lab, place).expect("it is there"));
        let (model, theirs) = (signatures(model), signatures(&start));
        assert!(!theirs.is_empty() && start.contains("todo!("), "lab {}: {}", lab.number, place.name);
        assert!(theirs.iter().all(|one| model.contains(one)), "lab {}: {theirs:#?} are not {model:#?}", lab.number);
    }
}

fn places() -> impl Iterator<Item = (&'static Lab, &'static Place)> {
    LABS.into_iter().flat_map(|lab| lab.parts.iter().map(move |place| (lab, place)))
}

/// Taken out and put back it is the kernel's own source, byte for byte. covers: T5
#[test]
fn a_part_that_is_taken_out_and_put_back_changes_nothing() {
    let ours = tree::sources().expect("the project is there");
    for lab in LABS {
        let mut theirs = ours.clone();
        tree::with_parts(&mut theirs, lab, &|place| start(lab, place)).expect("its parts are there");
        let changed: Vec<_> =
            ours.iter().filter(|(path, bytes)| theirs[*path] != **bytes).map(|(path, _)| path).collect();
        assert_eq!(changed.len(), lab.files().len(), "lab {}: {changed:?}", lab.number);
        let text = |place: &Place| {
            let source = read(&paths::root().join(place.file));
            Ok(markers::part(&source, lab.number, place.name)?.text(&source).to_string())
        };
        tree::with_parts(&mut theirs, lab, &text).expect("its parts are there still");
        assert!(theirs == ours, "lab {}", lab.number);
    }
}

/// A student's copy is as tidy as the kernel. covers: T5
#[test]
fn a_starting_point_is_formatted() {
    for (lab, place) in places() {
        let source = read(&paths::root().join(place.file));
        let part = markers::part(&source, lab.number, place.name).expect("it has its comments");
        let text = part.replace(&source, &start(lab, place).expect("it is there"));
        let mut rustfmt = Command::new("rustfmt")
            .args(["--check", "--edition", "2024", "--config-path"])
            .arg(paths::root())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("`run-qemu.sh test` has installed rustfmt");
        rustfmt.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("it reads");
        let said = rustfmt.wait_with_output().expect("it ends");
        assert!(
            said.status.success(),
            "lab {}, {}:\n{}",
            lab.number,
            place.name,
            String::from_utf8_lossy(&said.stdout)
        );
    }
}

/// covers: T5
#[test]
fn a_lab_has_a_page_ten_points_and_a_hint_for_each() {
    for (nth, lab) in LABS.into_iter().enumerate() {
        assert_eq!((lab.number as usize, lab.most()), (nth + 1, 10), "{}", lab.title);
        let page = read(&paths::root().join(lab.page()));
        assert!(page.starts_with(&format!("# Lab {}: {}\n", lab.number, lab.title)), "{}", lab.page().display());
        for words in ["## Aim", "## Read", "## Do", "## How it is graded", &format!("{} minutes", lab.minutes)] {
            assert!(page.contains(words), "{}: {words}", lab.page().display());
        }
        for point in lab.points {
            assert!(page.contains(&format!("| {} | {} |", point.what, point.points)), "{}: {}", lab.title, point.what);
            assert!(point.points > 0 && point.hint.len() > 40 && !point.hint.contains('\n'), "{}", point.what);
        }
        // They are printed in the order in which they are found out.
        let stage = |check| match check {
            Check::Answers(_) | Check::Host(_) => 0,
            Check::Model(_) => 1,
            Check::Loom(_) => 2,
            Check::Guest(_) => 3,
        };
        assert!(lab.points.is_sorted_by_key(|point| stage(point.check)), "{}", lab.title);
    }
}

/// covers: T5
#[test]
fn the_tests_that_give_points_exist() {
    let kernel: String = kernel_sources()
        .into_iter()
        .filter(|(path, _)| path.starts_with("kernel/src/ktest"))
        .map(|(_, text)| text)
        .collect();
    for point in LABS.iter().flat_map(|lab| lab.points) {
        match point.check {
            Check::Host(names) | Check::Model(names) | Check::Loom(names) => {
                for name in names {
                    let (file, test) = name.split_once("::").expect("a file and a test");
                    let text = read(&paths::root().join(format!("kernel/mm/tests/{file}.rs")));
                    assert!(text.contains(&format!("fn {test}()")), "there is no {name}");
                }
            }
            Check::Guest(names) => {
                names.iter().for_each(|name| assert!(kernel.contains(&format!("\"{name}\"")), "{name}"))
            }
            Check::Answers(_) => {}
        }
    }
}

/// covers: T5
#[test]
fn a_wrong_solution_names_a_part_and_a_point_that_there_are() {
    for lab in LABS {
        let mut nr = 0;
        for entry in fs::read_dir(lab.directory().join("wrong")).expect("it has some").flatten() {
            let text = read(&entry.path());
            let value = |key: &str| text.lines().find_map(|line| line.trim_start_matches(['/', '#']).strip_prefix(key));
            let lost = value("= loses: ").unwrap_or_else(|| panic!("{}", entry.path().display()));
            assert!(lab.points.iter().any(|point| point.what == lost), "{}: {lost}", entry.path().display());
            if !lab.parts.is_empty() {
                let part = value("= part: ").expect("it says which part it is in the place of");
                assert!(lab.parts.iter().any(|place| place.name == part), "{}: {part}", entry.path().display());
            }
            nr += 1;
        }
        assert!(nr >= 3, "lab {} has {nr} wrong solutions", lab.number);
    }
}

/// covers: T5
#[test]
fn a_directory_that_is_no_lab_is_one_line() {
    let place = tempfile::tempdir().expect("a temporary directory");
    let lab = Lab::find(5).expect("there is one");
    let line = |lab| work(lab, place.path(), Duration::ZERO).expect_err("refused");
    assert!(line(lab).to_string().contains("is no lab: it has no .lab, which `lab new 5"));
    fs::write(place.path().join(NOTE), "lab = 3\nseed = 1\n").expect("written");
    assert!(line(lab).to_string().contains("is lab 3, not lab 5"));
    fs::write(place.path().join(NOTE), "lab = 5\nseed = 1\n").expect("written");
    let file = place.path().join(lab.parts[0].file);
    fs::create_dir_all(file.parent().expect("it has one")).expect("made");
    assert!(format!("{:#}", line(lab)).contains("No such file"));
    for (bytes, words) in
        [(&b"fn a() {}"[..], "are gone"), (b"\xff\xfe", "is no text"), (b"// lab 5 end\n", "has not begun")]
    {
        fs::write(&file, bytes).expect("written");
        let error = format!("{:#}", line(lab));
        assert!(error.contains(words) && error.lines().count() == 1, "{error}");
    }
    fs::write(&file, vec![b' '; MOST_BYTES as usize + 1]).expect("written");
    assert!(line(lab).to_string().contains("more than a source has"));
    assert!(find(0).is_err_and(|error| error.to_string().contains("expected 1 to")));
    assert!(refuse_full(place.path()).is_err_and(|error| error.to_string().contains("is not empty")));
    assert!(refuse_full(&place.path().join("new")).is_ok());
}

/// Whatever stands in the place of a student's file, reading it comes to an end. covers: T5
#[test]
fn what_is_no_file_is_refused_and_a_long_one_is_not_read() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let at = |name: &str| directory.path().join(name);
    let made = Command::new("mkfifo").args([at("fifo"), at(answers::FILE), at(NOTE)]).status().expect("it starts");
    assert!(made.success());
    std::os::unix::fs::symlink("/dev/zero", at("zero")).expect("a link");
    fs::write(at("long"), vec![b' '; MOST_BYTES as usize + 1]).expect("written");
    let home = directory.path().to_path_buf();
    let read = move |name: &str| {
        let (tell, told) = std::sync::mpsc::channel();
        let (home, name) = (home.clone(), name.to_string());
        let shown = name.clone();
        std::thread::spawn(move || {
            let said = match &*name {
                NOTE => note(LABS[0], &home).map(drop),
                answers::FILE => answers::is_nobodys(&home, 1).map(drop),
                "check" => answers::check(&home, 1, LABS[0]).map(|marks| {
                    assert!(marks.iter().all(|mark| *mark != grade::Mark::Had), "{marks:?}");
                }),
                other => source(&home.join(other)).map(drop),
            };
            let _ = tell.send(said.map_err(|error| format!("{error:#}")));
        });
        told.recv_timeout(Duration::from_secs(10)).unwrap_or_else(|_| panic!("{shown} is read for ever"))
    };
    for (name, word) in [
        ("fifo", "is not a regular file"),
        (NOTE, "is not a regular file"),
        (answers::FILE, "is not a regular file"),
        ("zero", "is not a regular file"),
        ("long", "more than a source has"),
    ] {
        let said = read(name).expect_err("it is refused");
        assert!(said.contains(word) && !said.contains('\n'), "{name}: {said}");
    }
    // Without answers there are no points.
    assert_eq!(read("check"), Ok(()));
}
