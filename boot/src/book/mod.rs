//! The job `book`: `docs/` as a book of HTML pages that needs no network and no server.
//!
//! mdBook makes the pages, the sidebar and the search index. What it does not know is done before (`chapter`): pages link
//! to sources, which are no pages of the book, and are made pages beside it (`sources`); and diagrams are drawn from the
//! text that stands in the page (`diagram`).

mod chapter;
mod diagram;
mod sources;
#[cfg(test)]
mod tests;

use crate::cli::{Refusal, words_of};
use crate::out::outln;
use crate::paths;
use anyhow::{Context, Result, bail};
use clap::Parser;
use mdbook_driver::MDBook;
use mdbook_driver::config::Config;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

/// Where the pages are, below the project's root. Its `SUMMARY.md` says which, and in which order.
const PAGES: &str = "docs";
/// The file by which an earlier book is known: what is not one is not written over.
const MARK: &str = "unplug-book.txt";
/// How diagrams and sources look.
const STYLE: &str = "boot/src/book/style.css";

#[derive(Debug, Parser)]
#[command(
    name = "book",
    bin_name = "./run-qemu.sh book",
    about = "Makes a book of docs/, with a search, in a directory"
)]
struct Cli {
    /// The directory. It is made, or was made by this command before.
    #[arg(long, value_name = "DIR", default_value_os_t = paths::target().join("book"))]
    output: PathBuf,
}

/// Does the job. A wrong command line, or a directory with something else in it, ends the process with one line and status 2.
///
/// # Errors
/// One line.
pub fn job(args: impl IntoIterator<Item = OsString>) -> Result<u8> {
    let cli: Cli = words_of(args, "book --help");
    if let Err(error) = may_be_replaced(&cli.output) {
        Refusal::Bad(format!("{error:#}")).exit("book --help");
    }
    build(&cli.output)?;
    outln!("{}", cli.output.join("index.html").display());
    Ok(0)
}

/// Is there nothing that is not an earlier book?
fn may_be_replaced(output: &Path) -> Result<()> {
    let shown = output.display();
    if !output.exists() {
        return Ok(());
    }
    let mut entries = fs::read_dir(output).with_context(|| format!("{shown} cannot be the directory of the book"))?;
    if entries.next().is_some() && !output.join(MARK).exists() {
        bail!("{shown} holds something else than an earlier book: name an empty directory, or a new one");
    }
    Ok(())
}

/// Makes the book: all of it, and then in the place of what was there.
///
/// # Errors
/// One line; what was there is as before.
pub fn build(output: &Path) -> Result<()> {
    may_be_replaced(output)?;
    let parent = output.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let cannot = || format!("{} cannot be written", output.display());
    fs::create_dir_all(parent).with_context(cannot)?;
    let unfinished = tempfile::Builder::new().prefix(crate::whole::UNFINISHED).tempdir_in(parent);
    let unfinished = unfinished.with_context(cannot)?;
    let made = unfinished.path().canonicalize().with_context(cannot)?.join("book");
    render(&made)?;
    if output.exists() {
        fs::remove_dir_all(output).with_context(cannot)?;
    }
    fs::rename(&made, output).with_context(cannot)
}

/// Makes the pages in a directory that is not there yet.
fn render(directory: &Path) -> Result<()> {
    let root = paths::root().canonicalize().context("the project's directory")?;
    let mut book = MDBook::load_with_config(&root, config(directory)?)?;
    let linked = chapter::prepare(&root, &mut book.book)?;
    book.build().context("mdBook")?;
    sources::write(&root, linked, directory)?;
    fs::write(directory.join(MARK), "Made by ./run-qemu.sh book, which writes over it.\n")?;
    Ok(())
}

/// Everything comes from here, and nothing from files or variables of the user's.
fn config(directory: &Path) -> Result<Config> {
    let mut config = Config::default();
    config.book.title = Some("Unplug".into());
    config.book.description = Some("A kernel whose memory can be pulled out".into());
    config.book.language = Some("en".into());
    config.book.src = PAGES.into();
    config.build.build_dir = directory.into();
    config.build.create_missing = false;
    // They would read `{{` in a page as a command.
    config.build.use_default_preprocessors = false;
    // It would be for a server, with paths that begin there.
    config.set("output.html.input-404", "")?;
    config.set("output.html.additional-css", [STYLE])?;
    config.set("output.html.playground.runnable", false)?;
    config.set("output.html.print.enable", false)?;
    config.set("output.html.fold.enable", true)?;
    config.set("output.html.fold.level", 0)?;
    config.set("output.html.no-section-label", true)?;
    config.set("output.html.search.heading-split-level", 2)?;
    Ok(config)
}
