//! What a page of `docs/` needs before mdBook makes HTML of it: links that lead somewhere in the book, and diagrams that are
//! drawn.

use super::{PAGES, diagram, sources};
use anyhow::{Context, Result, bail};
use mdbook_driver::book::Book;
use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

/// The front page of the project, which is no page of `docs/`; where it is in the book.
const FRONT: (&str, &str) = ("README.md", "project.md");

/// Prepares every page. Answers what pages link to that is no page of the book: files and directories, below the root.
///
/// # Errors
/// One line: a link that leads nowhere, a diagram that is none.
pub(super) fn prepare(root: &Path, book: &mut Book) -> Result<BTreeSet<PathBuf>> {
    let mut pages = BTreeMap::new();
    book.for_each_chapter_mut(|chapter| {
        let Some(path) = chapter.path.clone() else { return };
        let source = normal(&Path::new(PAGES).join(path));
        let place = place(&source);
        chapter.path = Some(place.clone());
        chapter.source_path = Some(place.clone());
        pages.insert(source, place);
    });
    let places: BTreeMap<_, _> = pages.iter().map(|(source, place)| (place.clone(), source.clone())).collect();
    let mut linked = BTreeSet::new();
    let mut faults = Vec::new();
    book.for_each_chapter_mut(|chapter| {
        let Some(place) = &chapter.path else { return };
        let page = Page { root, pages: &pages, source: &places[place], place };
        match page.prepared(&chapter.content, &mut linked) {
            Ok(content) => chapter.content = content,
            Err(error) => faults.push(format!("{}: {error:#}", page.source.display())),
        }
    });
    if faults.is_empty() { Ok(linked) } else { bail!("{}", faults.join("; ")) }
}

/// Where in the book a page is, whose file is `source` below the root.
fn place(source: &Path) -> PathBuf {
    if source == Path::new(FRONT.0) {
        return FRONT.1.into();
    }
    let place = source.strip_prefix(PAGES).unwrap_or(source);
    if place.ends_with("README.md") { place.with_file_name("index.md") } else { place.into() }
}

/// One page, and what it has to know of the others.
struct Page<'a> {
    root: &'a Path,
    /// The pages of the book: where each comes from, and where it is.
    pages: &'a BTreeMap<PathBuf, PathBuf>,
    source: &'a Path,
    place: &'a Path,
}

impl Page<'_> {
    /// The page as mdBook is to have it.
    fn prepared(&self, text: &str, linked: &mut BTreeSet<PathBuf>) -> Result<String> {
        let mut changes: Vec<(Range<usize>, String)> = Vec::new();
        for (event, range) in Parser::new_ext(text, Options::ENABLE_TABLES).into_offset_iter() {
            match event {
                Event::Start(Tag::Link { dest_url, .. }) if !is_elsewhere(&dest_url) => {
                    let at = text[range.clone()].rfind(&*dest_url).context("a link by reference")? + range.start;
                    changes.push((at..at + dest_url.len(), self.link(&dest_url, linked)?));
                }
                Event::Start(Tag::CodeBlock(CodeBlockKind::Fenced(info))) => {
                    changes.extend(fence(text, &info, range)?);
                }
                _ => {}
            }
        }
        let mut prepared = text.to_string();
        for (range, new) in changes.into_iter().rev() {
            prepared.replace_range(range, &new);
        }
        Ok(prepared)
    }

    /// A link to `target`, from this page as it is in the book.
    fn link(&self, target: &str, linked: &mut BTreeSet<PathBuf>) -> Result<String> {
        let (file, section) = match target.split_once('#') {
            Some((file, section)) => (file, format!("#{section}")),
            None => (target, String::new()),
        };
        if file.is_empty() {
            return Ok(target.into());
        }
        let directory = self.source.parent().unwrap_or(Path::new(""));
        let path = normal(&directory.join(file));
        // A directory that has a page is that page.
        let page = self.pages.get(&path).or_else(|| self.pages.get(&path.join("README.md")));
        let to = if let Some(page) = page {
            page.with_extension("html")
        } else if self.root.join(&path).exists() {
            let place = sources::place(self.root, &path);
            linked.insert(path);
            place
        } else {
            bail!("{target} leads nowhere");
        };
        let up = self.place.components().count().saturating_sub(1);
        Ok(format!("{}{}{section}", "../".repeat(up), to.display()))
    }
}

/// Does a link leave the project?
fn is_elsewhere(target: &str) -> bool {
    target.contains("://") || target.starts_with("mailto:")
}

/// What is to stand in the place of a block of code, if it is not to stay.
fn fence(text: &str, info: &str, range: Range<usize>) -> Result<Option<(Range<usize>, String)>> {
    let (language, rest) = info.split_once(' ').unwrap_or((info, ""));
    let block = &text[range.clone()];
    let (opening, body) = block.split_once('\n').context("a block of code without lines")?;
    let body = body.rsplit_once("```").map_or(body, |(body, _)| body);
    if language == "bob" {
        let drawn = diagram::figure(body, rest).with_context(|| format!("the diagram {rest:?}"))?;
        return Ok(Some((range, drawn)));
    }
    // The words behind the language are for the tests; mdBook would take them for names of styles.
    if rest.is_empty() {
        return Ok(None);
    }
    let marks = &opening[..opening.len() - opening.trim_start_matches('`').len()];
    Ok(Some((range.start..range.start + opening.len(), format!("{marks}{language}"))))
}

/// The path without `.` and `..`.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => drop(normal.pop()),
            Component::CurDir => {}
            other => normal.push(other),
        }
    }
    normal
}
