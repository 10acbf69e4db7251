//! Diagrams, drawn from the text that stands in a page between ```` ```bob CAPTION ```` and ```` ``` ````.

use anyhow::{Result, ensure};
use svgbob::Settings;

/// The widest diagram, in characters: more is too small to be read on a page.
const MOST_COLUMNS: usize = 100;

/// The drawing and its caption, as a block of HTML without empty lines (which would end it).
pub(super) fn figure(text: &str, caption: &str) -> Result<String> {
    ensure!(!caption.is_empty(), "it has no caption: expected ```bob and what it shows");
    ensure!(!text.trim().is_empty(), "it is empty");
    let guards = MARKS.map(|(_, guard)| guard);
    ensure!(!text.contains(guards), "it has one of the characters {guards:?}, which cannot be drawn");
    let columns = text.lines().map(|line| line.chars().count()).max().unwrap_or(0);
    ensure!(columns <= MOST_COLUMNS, "it has {columns} columns, and there is room for {MOST_COLUMNS}");
    // Colours are those of the page, which has light and dark ones: they are in the style sheet.
    let settings = Settings { include_backdrop: false, include_styles: false, ..Settings::default() };
    let drawn = unguarded(&svgbob::to_svg_with_settings(&guarded(text), &settings));
    let drawn: Vec<_> = drawn.lines().filter(|line| !line.trim().is_empty()).collect();
    let label = escaped(caption);
    let drawn = drawn.join("\n").replacen("<svg ", &format!("<svg role=\"img\" aria-label=\"{label}\" "), 1);
    Ok(format!("<figure class=\"diagram\">\n{drawn}\n<figcaption>{label}</figcaption>\n</figure>\n\n"))
}

/// Marks that are lines by themselves and letters in a word, each with what stands for it while it is drawn. (It has to be
/// one byte: the library takes bytes for columns.)
const MARKS: [(char, char); 3] = [('_', '@'), ('-', '$'), ('/', '%')];

/// The text in which no mark of a word is taken for a line: `stop_io`, `gup-fast`, `I/O`.
fn guarded(text: &str) -> String {
    let letters: Vec<_> = text.chars().collect();
    let is_word = |at: Option<usize>| at.and_then(|at| letters.get(at)).is_some_and(|letter| letter.is_alphanumeric());
    let guard = |(at, letter): (usize, &char)| {
        let is_inside = is_word(at.checked_sub(1)) && is_word(Some(at + 1));
        let mark = MARKS.iter().find(|(mark, _)| mark == letter && is_inside);
        mark.map_or(*letter, |(_, guard)| *guard)
    };
    letters.iter().enumerate().map(guard).collect()
}

/// The text of a drawing, as it was before.
fn unguarded(drawn: &str) -> String {
    let back = |letter: char| MARKS.iter().find(|(_, guard)| *guard == letter).map_or(letter, |(mark, _)| *mark);
    drawn.chars().map(back).collect()
}

/// As text and as an attribute of HTML.
pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
