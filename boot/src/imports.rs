//! What the README's table says of which package imports which, held to the packages' own lists of dependencies.

use crate::paths;
use std::collections::BTreeSet;
use std::fs;

type Names = BTreeSet<String>;

/// What is nobody's package to import: the two that everything is put together in.
const ENDS: [&str; 2] = ["kernel", "boot"];

/// The last part of a directory's name, which is the name of the package there.
fn name_of(directory: &str) -> &str {
    directory.rsplit('/').next().unwrap_or(directory)
}

/// What stands in backticks.
fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// The rows of the table: a package's directory, and what it is said to import.
fn rows(readme: &str) -> Vec<(&str, &str)> {
    let (_, table) = readme.split_once("\n| package | is | imports |\n").expect("the README has the table");
    let rows = table.lines().skip(1).take_while(|line| line.starts_with('|'));
    let cells = rows.filter_map(|row| row.trim_end_matches([' ', '|']).rsplit_once('|'));
    cells.filter_map(|(front, imports)| Some((*quoted(front).first()?, imports))).collect()
}

/// The packages that a cell names: these, or all but these.
fn said(cell: &str, all: &Names) -> Names {
    let named: Names = quoted(cell).into_iter().map(String::from).collect();
    if !cell.trim_start().starts_with("all but ") {
        return named;
    }
    all.iter().filter(|name| !named.contains(*name) && !ENDS.contains(&name.as_str())).cloned().collect()
}

/// Which of `all` a manifest lists, also as optional; what only its tests import is not among them.
fn listed(manifest: &str, all: &Names) -> Names {
    let (_, behind) = manifest.split_once("\n[dependencies]\n").unwrap_or_default();
    let list = behind.split("\n[").next().unwrap_or_default();
    let names = list.lines().filter_map(|line| line.split(['.', ' ', '=']).next());
    names.filter(|name| all.contains(*name)).map(String::from).collect()
}

// covers: T5
#[test]
fn each_package_imports_what_the_readme_says() {
    let read = |file: &str| fs::read_to_string(paths::root().join(file)).unwrap();
    let (readme, workspace) = (read("README.md"), read("Cargo.toml"));
    let rows = rows(&readme);
    let (_, members) = workspace.split_once("members = [").unwrap();
    let members = members.split(']').next().unwrap().split('"').skip(1).step_by(2);
    // The program that makes the disk image has no row of its own.
    let members: BTreeSet<_> = members.filter(|directory| *directory != "boot/diskimage").collect();
    assert_eq!(rows.iter().map(|(directory, _)| *directory).collect::<BTreeSet<_>>(), members);
    let all: Names = members.into_iter().map(|directory| name_of(directory).to_string()).collect();
    for (directory, cell) in rows {
        let manifest = read(&format!("{directory}/Cargo.toml"));
        assert_eq!(said(cell, &all), listed(&manifest, &all), "README.md, and {directory}/Cargo.toml");
    }
}

#[test]
fn a_list_of_dependencies_ends_where_that_of_the_tests_begins() {
    let all: Names = ["mm", "fs", "zoo", "kernel"].map(String::from).into();
    let manifest = "[package]\nname = \"x\"\n\n[dependencies]\nmm.workspace = true\n# fs\n\
                    zoo = { workspace = true, optional = true }\n\n[dev-dependencies]\nfs.workspace = true\n";
    assert_eq!(listed(manifest, &all), ["mm", "zoo"].map(String::from).into());
    assert_eq!(said(" `mm`; `zoo` for faults ", &all), ["mm", "zoo"].map(String::from).into());
    assert_eq!(said(" all but `fs` ", &all), ["mm", "zoo"].map(String::from).into());
    assert_eq!(said(" nothing of ours ", &all), Names::new());
}
