//! What the README and the docs point to is there: files by their links, sections by their headings, sources by name.

use crate::paths;
use std::fs;
use std::path::{Path, PathBuf};

/// The Markdown files of the project that readers are led to.
fn pages() -> Vec<PathBuf> {
    let mut pages = vec![paths::root().join("README.md")];
    let mut directories = vec![paths::root().join("docs")];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                pages.push(path);
            }
        }
    }
    pages
}

/// The text without its blocks of code.
fn prose(text: &str) -> String {
    let mut in_code = false;
    let lines = text.lines().filter(|line| {
        let fence = line.trim_start().starts_with("```");
        in_code ^= fence;
        !fence && !in_code
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Where the links of a page lead, but for those to other places of the net.
fn links(text: &str) -> Vec<&str> {
    let ends = text.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
    ends.map(|(target, _)| target).filter(|target| !target.contains("://")).collect()
}

/// A heading as a link names it: lower case, without marks, a hyphen for each space.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.collect::<String>().trim().to_lowercase().replace(' ', "-")
}

fn has_anchor(page: &str, wanted: &str) -> bool {
    let headings = page.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#'));
    headings.map(anchor).any(|found| found == wanted)
}

/// What is wrong with a link of a page in `directory`, if anything.
fn broken(directory: &Path, page: &str, target: &str) -> Option<String> {
    let (file, section) = target.split_once('#').unwrap_or((target, ""));
    let path = directory.join(file);
    if !file.is_empty() && !path.exists() {
        return Some(format!("there is no {file}"));
    }
    let text = match file {
        "" => page.to_string(),
        _ if section.is_empty() || !file.ends_with(".md") => return None,
        _ => fs::read_to_string(path).unwrap(),
    };
    (!has_anchor(&prose(&text), section)).then(|| format!("{file} has no section {section}"))
}

/// The sources that a text names by their whole path, wherever: `kernel/src/main.rs:12` names one.
fn named_sources(text: &str) -> Vec<&str> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || "_-./*".contains(c)));
    let whole = words.filter(|word| word.starts_with("kernel/") || word.starts_with("boot/"));
    whole.filter(|word| word.ends_with(".rs") && !word.contains('*')).collect()
}

/// The book's list of pages names every page of `docs/` once, and the front page.
// covers: T5
#[test]
fn every_page_is_in_the_book_once() {
    let docs = paths::root().join("docs");
    let summary = fs::read_to_string(docs.join("SUMMARY.md")).unwrap();
    let mut listed: Vec<_> = links(&summary).into_iter().map(|page| docs.join(page)).collect();
    let front = listed.iter_mut().find(|page| page.ends_with("../README.md")).expect("the front page");
    *front = paths::root().join("README.md");
    let mut expected: Vec<_> = pages().into_iter().filter(|page| !page.ends_with("SUMMARY.md")).collect();
    listed.sort();
    expected.sort();
    for page in &expected {
        let nr = listed.iter().filter(|listed| *listed == page).count();
        assert_eq!(nr, 1, "docs/SUMMARY.md lists {} {nr} times; see docs/contributing.md", page.display());
    }
    assert_eq!(listed.len(), expected.len(), "docs/SUMMARY.md lists a page that is not there: {listed:#?}");
}

#[test]
fn what_the_docs_point_to_is_there() {
    let mut faults = Vec::new();
    let (mut nr_links, mut nr_sources) = (0, 0);
    for path in pages() {
        let text = fs::read_to_string(&path).unwrap();
        let page = prose(&text);
        for target in links(&page) {
            nr_links += 1;
            let fault = broken(path.parent().unwrap(), &text, target);
            faults.extend(fault.map(|fault| format!("{}: {target}: {fault}", path.display())));
        }
        for source in named_sources(&text) {
            nr_sources += 1;
            if !paths::root().join(source).exists() {
                faults.push(format!("{}: there is no {source}", path.display()));
            }
        }
    }
    assert!(nr_links > 100 && nr_sources > 10, "{nr_links} links and {nr_sources} sources were found");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// The functions that a page names with their file: `` `name` in [`file.rs`](../path/file.rs) ``.
fn named_functions(text: &str) -> Vec<(&str, &str)> {
    let named = text.split("` in [`").collect::<Vec<_>>();
    let pairs = named.windows(2).filter_map(|pair| {
        let name = pair[0].rsplit('`').next()?;
        let (_, path) = pair[1].split_once("](../")?;
        Some((name, path.split_once(')')?.0))
    });
    pairs.collect()
}

// covers: T5
#[test]
fn the_functions_in_the_life_of_a_page_are_where_it_says() {
    let text = fs::read_to_string(paths::root().join("docs/life-of-a-page.md")).unwrap();
    let named = named_functions(&text);
    assert!(named.len() > 20, "{} functions", named.len());
    for (name, path) in named {
        let source = fs::read_to_string(paths::root().join(path)).unwrap();
        let is_there = [format!("fn {name}("), format!("fn {name}<")].iter().any(|head| source.contains(head));
        assert!(is_there, "there is no function {name} in {path}");
    }
}

#[test]
fn a_link_that_leads_nowhere_is_seen() {
    let docs = paths::root().join("docs");
    let page = "# One\n[a](boot.md) [b](no-such.md) [c](#one) [d](#two) [e](boot.md#the-end) [f](boot.md#no-end)\n\
                [g](https://example.org/x)\n```\n[h](neither.md)\n```\n";
    let text = prose(page);
    let wrong: Vec<_> = links(&text).into_iter().filter(|target| broken(&docs, page, target).is_some()).collect();
    assert_eq!(wrong, ["no-such.md", "#two", "boot.md#no-end"]);
    assert_eq!(
        named_sources("at kernel/src/main.rs:12, `kernel/*/src/x.rs`, (boot/src/no.rs)"),
        ["kernel/src/main.rs", "boot/src/no.rs"]
    );
}
