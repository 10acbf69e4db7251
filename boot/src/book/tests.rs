//! The book is made in a temporary directory, and looked through: every page, every link, the search, and nothing from the net.

use super::{build, diagram, may_be_replaced};
use crate::paths;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The elements of a page: each tag with its attributes, without what stands in scripts.
fn tags(html: &str) -> Vec<(String, BTreeMap<String, String>)> {
    let mut tags = Vec::new();
    let mut rest = html;
    while let Some((_, from)) = rest.split_once('<') {
        let (tag, behind) = from.split_once('>').expect("a tag ends");
        rest = behind;
        let (name, words) = tag.split_once(char::is_whitespace).unwrap_or((tag, ""));
        let pieces: Vec<_> = words.split('"').collect();
        let attributes = pieces.chunks_exact(2).map(|pair| {
            let name = pair[0].trim().trim_end_matches('=').rsplit(char::is_whitespace).next().unwrap_or("");
            (name.to_string(), pair[1].replace("&amp;", "&"))
        });
        tags.push((name.to_string(), attributes.collect()));
        if name == "script" {
            rest = rest.split_once("</script>").expect("a script ends").1;
        }
    }
    tags
}

/// All files of the book, from its directory on.
fn files(book: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut open = vec![book.to_path_buf()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { open.push(path) } else { files.push(path) }
        }
    }
    files
}

/// The pages, with what can be linked to in each, and where it leads.
fn pages(book: &Path) -> BTreeMap<PathBuf, (BTreeSet<String>, Vec<String>)> {
    let html = files(book).into_iter().filter(|file| file.extension().is_some_and(|extension| extension == "html"));
    let read = |page: PathBuf| {
        let tags = tags(&fs::read_to_string(&page).unwrap());
        let of = |name: &str| tags.iter().filter_map(|(_, with)| with.get(name).cloned()).collect::<Vec<_>>();
        let ids = of("id").into_iter().collect();
        (page, (ids, [of("href"), of("src")].concat()))
    };
    html.map(read).collect()
}

/// What is wrong with the links of the pages.
fn broken(pages: &BTreeMap<PathBuf, (BTreeSet<String>, Vec<String>)>) -> (usize, Vec<String>) {
    let mut faults = Vec::new();
    let mut nr = 0;
    for (page, (_, links)) in pages {
        for link in links.iter().filter(|link| !link.contains("://") && !link.starts_with("data:")) {
            nr += 1;
            let (file, section) = link.split_once('#').unwrap_or((link, ""));
            let to = if file.is_empty() { page.clone() } else { page.parent().unwrap().join(file) };
            let to = to.canonicalize().unwrap_or(to);
            let leads =
                to.is_file() && (section.is_empty() || pages.get(&to).is_some_and(|(ids, _)| ids.contains(section)));
            if !leads {
                faults.push(format!("{}: {link}", page.display()));
            }
        }
    }
    (nr, faults)
}

/// What the browser would fetch from elsewhere when it shows the page, or the style sheet.
fn fetched(file: &Path) -> Vec<String> {
    let text = fs::read_to_string(file).unwrap_or_default();
    let is_away =
        |target: &String| !target.starts_with("data:") && (target.contains("://") || target.starts_with("//"));
    if file.extension().is_some_and(|extension| extension == "css") {
        let urls = text.split("url(").skip(1).filter_map(|rest| rest.split_once(')'));
        let imports = text.split("@import").skip(1).filter_map(|rest| rest.split_once(';'));
        let all = urls.chain(imports).map(|(url, _)| url.trim_matches([' ', '"', '\'']).to_string());
        return all.filter(is_away).collect();
    }
    let tags = tags(&text).into_iter();
    // A link that the reader follows is no request of the page.
    let mut found: Vec<_> = tags
        .filter(|(name, _)| !matches!(name.as_str(), "a" | "svg"))
        .flat_map(|(_, attributes)| ["href", "src", "srcset", "data"].map(|name| attributes.get(name).cloned()))
        .flatten()
        .collect();
    found.retain(is_away);
    found
}

/// Every page is there, every link and every section leads somewhere, the search finds, and nothing comes from the net.
// covers: T5
#[test]
fn the_book_is_whole() {
    let directory = tempfile::tempdir().unwrap();
    let book = directory.path().canonicalize().unwrap().join("book");
    build(&book).unwrap();
    let pages = pages(&book);
    for page in ["index.html", "project.html", "removal.html", "zoo/index.html", "zoo/no-look-again.html", "toc.html"] {
        assert!(pages.contains_key(&book.join(page)), "there is no {page}");
    }
    let source = book.join("source/kernel/mm/src/gup/mod.rs.html");
    assert!(pages[&source].0.contains("L12"), "a line of a source can be linked to");
    let (nr, faults) = broken(&pages);
    assert!(nr > 2000, "{nr} links");
    assert!(faults.is_empty(), "{} of {nr} links lead nowhere:\n{}", faults.len(), faults.join("\n"));
    let asked: Vec<_> = files(&book)
        .into_iter()
        .filter(|file| file.extension().is_some_and(|extension| extension == "html" || extension == "css"))
        .flat_map(|file| fetched(&file))
        .collect();
    assert!(asked.is_empty(), "pages ask the network for {asked:?}");
    assert_search(&book);
    // Its own work may be replaced, and is, as a whole.
    fs::write(book.join("removal.html"), "").unwrap();
    build(&book).unwrap();
    assert_ne!(fs::read_to_string(book.join("removal.html")).unwrap(), "");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "nothing unfinished is left");
}

/// The index has a word of a page, and leads to that page.
fn assert_search(book: &Path) {
    let is_index = |file: &&PathBuf| {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        name.starts_with("searchindex") && name.ends_with(".js")
    };
    let files = files(book);
    let index = fs::read_to_string(files.iter().find(is_index).expect("an index")).unwrap();
    for part in ["removal.html#why-by-range", "1.6 billion PFNs"] {
        assert!(index.contains(part), "{part:?} is not in the index of the search");
    }
}

#[test]
fn a_link_that_leads_nowhere_and_what_would_be_fetched_are_seen() {
    let directory = tempfile::tempdir().unwrap();
    let book = directory.path().canonicalize().unwrap();
    let page = book.join("one.html");
    let html = "<h1 id=\"a\">x</h1><a class=\"c\" href=\"#a\">1</a><a href=\"#b\">2</a><a href=\"two.html\">3</a>\
                <script>if (1 < 2) { '<a href=\"no\">' }</script><img src=\"//net/x\"><link href=\"https://net/y\">";
    fs::write(&page, html).unwrap();
    let pages = pages(&book);
    let (nr, faults) = broken(&pages);
    let page = page.display();
    assert_eq!((nr, faults), (4, vec![format!("{page}: #b"), format!("{page}: two.html"), format!("{page}: //net/x")]));
    assert_eq!(fetched(&book.join("one.html")), ["//net/x", "https://net/y"]);
    fs::write(book.join("s.css"), "@import 'https://net/z'; a { b: url(\"x.png\") } c { d: url(https://net/f) }")
        .unwrap();
    assert_eq!(fetched(&book.join("s.css")), ["https://net/f", "https://net/z"]);
}

#[test]
fn what_is_no_book_is_not_written_over() {
    let directory = tempfile::tempdir().unwrap();
    assert!(may_be_replaced(directory.path()).is_ok());
    fs::write(directory.path().join("thesis.tex"), "years of work").unwrap();
    let refused = build(directory.path()).unwrap_err().to_string();
    assert!(refused.contains("something else than an earlier book"), "{refused}");
    assert!(directory.path().join("thesis.tex").exists());
    let refused = may_be_replaced(&paths::root().join("README.md")).unwrap_err().to_string();
    assert!(refused.contains("cannot be the directory of the book"), "{refused}");
}

#[test]
fn a_diagram_needs_a_caption_and_room() {
    let figure = diagram::figure("+--+   +---+\n|ab|-->| & |\n+--+   +---+\n", "a <to> b").unwrap();
    assert!(figure.contains("aria-label=\"a &lt;to&gt; b\"") && figure.contains("&amp;"), "{figure}");
    assert!(!figure.trim_end().contains("\n\n"), "an empty line would end it");
    let words = diagram::figure("+----------+\n| stop_io  |\n| gup-fast |\n+----------+", "c").unwrap();
    assert!(words.contains("stop_io") && words.contains("gup-fast"), "a word's marks are no lines: {words}");
    assert!(diagram::figure("5 %", "c").unwrap_err().to_string().contains("cannot be drawn"));
    assert!(diagram::figure("x", "").unwrap_err().to_string().contains("no caption"));
    assert!(diagram::figure("\n", "c").unwrap_err().to_string().contains("empty"));
    assert!(diagram::figure(&"-".repeat(101), "c").unwrap_err().to_string().contains("101 columns"));
}
