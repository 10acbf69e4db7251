//! The files outside of `docs/` to which pages link, as plain pages beside the book: with numbered lines, as `main.rs.html#L12`.

use super::diagram::escaped;
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Where they are in the book.
const PLACE: &str = "source";
/// How they look, in light and in dark.
const STYLE: &str = "body{font:15px/1.5 monospace;margin:1em 2em;color-scheme:light dark;color:CanvasText;background:Canvas}\
a{color:LinkText}pre{font:inherit;tab-size:4}pre>a{display:inline-block;width:4em;color:GrayText;text-decoration:none}\
pre>a:target{color:CanvasText;background:Highlight}";

/// Where in the book the page of a file or directory is, whose `path` begins at the root.
pub(super) fn place(root: &Path, path: &Path) -> PathBuf {
    if root.join(path).is_dir() {
        return Path::new(PLACE).join(path).join("index.html");
    }
    // mdBook takes everything up to `.md` in a link for the name of a page of its own.
    let name = path.display().to_string().replace(".md", "-md");
    Path::new(PLACE).join(format!("{name}.html"))
}

/// Makes the pages of what is `linked`, and of all that is in the directories among it.
///
/// # Errors
/// A file that cannot be read or written.
pub(super) fn write(root: &Path, linked: BTreeSet<PathBuf>, book: &Path) -> Result<()> {
    let mut open: Vec<_> = linked.into_iter().collect();
    let mut done = BTreeSet::new();
    while let Some(path) = open.pop() {
        if !done.insert(path.clone()) {
            continue;
        }
        let page = if root.join(&path).is_dir() {
            let entries = entries(root, &path)?;
            open.extend(entries.iter().cloned());
            directory(root, &path, &entries)
        } else {
            file(root, &path)?
        };
        let place = book.join(place(root, &path));
        fs::create_dir_all(place.parent().unwrap_or(book))?;
        fs::write(&place, page).with_context(|| place.display().to_string())?;
    }
    Ok(())
}

/// What is in a directory, but for what is hidden or was built.
fn entries(root: &Path, path: &Path) -> Result<Vec<PathBuf>> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(root.join(path)).with_context(|| path.display().to_string())? {
        let name = entry?.file_name();
        let is_ours = !name.to_string_lossy().starts_with('.') && name != "target" && name != "corpus";
        if is_ours {
            entries.push(path.join(name));
        }
    }
    entries.sort();
    Ok(entries)
}

fn directory(root: &Path, path: &Path, entries: &[PathBuf]) -> String {
    let up = "../".repeat(path.components().count() + 1);
    let item = |entry: &PathBuf| {
        let name = entry.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let slash = if root.join(entry).is_dir() { "/" } else { "" };
        let to = place(root, entry).display().to_string();
        format!("<li><a href=\"{up}{}\">{}{slash}</a></li>\n", escaped(&to), escaped(&name))
    };
    let items: String = entries.iter().map(item).collect();
    page(path, &format!("<ul>\n{items}</ul>\n"))
}

fn file(root: &Path, path: &Path) -> Result<String> {
    let bytes = fs::read(root.join(path)).with_context(|| path.display().to_string())?;
    let Ok(text) = String::from_utf8(bytes) else {
        return Ok(page(path, "<p>Its contents are not text.</p>\n"));
    };
    let line = |(at, line): (usize, &str)| format!("<a id=\"L{0}\" href=\"#L{0}\">{0}</a>{1}\n", at + 1, escaped(line));
    let lines: String = text.lines().enumerate().map(line).collect();
    Ok(page(path, &format!("<pre>{lines}</pre>\n")))
}

/// A page with the path as its heading, and a way back.
fn page(path: &Path, body: &str) -> String {
    let title = escaped(&path.display().to_string());
    let front = "../".repeat(path.components().count() + 1);
    // The page of a file is in its directory, that of a directory in itself.
    let front = if body.starts_with("<ul>") { front } else { front[3..].into() };
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\
         <meta name=\"viewport\" content=\"width=device-width\"><style>{STYLE}</style></head>\n\
         <body><p><a href=\"{front}index.html\">Unplug</a></p><h1>{title}</h1>\n{body}</body></html>\n"
    )
}
