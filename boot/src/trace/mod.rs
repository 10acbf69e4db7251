//! The job `trace`: what a kernel has said of its traces (`@trace`), as pictures: SVG, a page, and a file for Perfetto.
//!
//! What events are, which of them begin and end something, and what is said of each is `mm::trace`'s, the kernel's own.

mod capture;
mod drawing;
mod page;
mod perfetto;
mod slices;

use self::capture::Capture;
use self::slices::Story;
use crate::cli::{Refusal, words_of};
use crate::out::outln;
use crate::whole::Place;
use anyhow::{Context, Result};
use clap::Parser;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

#[derive(Debug, Parser)]
#[command(
    name = "trace",
    bin_name = "./run-qemu.sh trace",
    about = "Draws what `trace show` printed: NAME.svg, NAME.html (one page that needs no other file) and NAME.json (for ui.perfetto.dev or chrome://tracing)"
)]
struct Cli {
    /// What the console has printed, or the part of it with the @trace lines; the last `trace show` in it counts.
    file: PathBuf,
    /// Where the three files go; by default beside FILE.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Does the job. A wrong command line, or a file that cannot be drawn, ends the process with one line and status 2.
///
/// # Errors
/// One line, when a file cannot be written.
pub fn job(args: impl IntoIterator<Item = OsString>) -> Result<u8> {
    let cli: Cli = words_of(args, "trace --help");
    let given = read(&cli.file).and_then(|capture| Ok((capture, places(&cli)?)));
    let (capture, places) = given.unwrap_or_else(|error| Refusal::Bad(format!("{error:#}")).exit("trace --help"));
    for (text, (path, place)) in draw(&capture)?.into_iter().zip(places) {
        place.write(&text)?;
        outln!("{}", path.display());
    }
    Ok(0)
}

fn read(path: &Path) -> Result<Capture> {
    let shown = path.display();
    let bytes = std::fs::read(path).with_context(|| shown.to_string())?;
    Capture::parse(&String::from_utf8_lossy(&bytes)).with_context(|| shown.to_string())
}

/// All three, before any of them is written.
fn places(cli: &Cli) -> Result<Vec<(PathBuf, Place)>> {
    let beside = cli.file.parent().unwrap_or(Path::new("")).to_path_buf();
    let stem = cli.file.file_stem().unwrap_or(cli.file.as_os_str());
    let base = cli.out.clone().unwrap_or(beside).join(stem);
    let place = |extension| {
        // Not `with_extension`: a name may have dots.
        let mut path = base.clone().into_os_string();
        path.push(format!(".{extension}"));
        let path = PathBuf::from(path);
        Ok((path.clone(), Place::reserve(&path)?))
    };
    ["svg", "html", "json"].into_iter().map(place).collect()
}

/// The texts of the three files: SVG, HTML, JSON.
fn draw(capture: &Capture) -> Result<[String; 3]> {
    let story = Story::of(&capture.events);
    let svg = drawing::svg(capture, &story);
    let page = page::page(capture, &story, &svg);
    Ok([svg, page, serde_json::to_string(&perfetto::json(capture, &story))?])
}

#[cfg(test)]
mod tests;
