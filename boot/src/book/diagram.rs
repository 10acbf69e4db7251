//! Diagrams, drawn from the text that stands in a page between ```` ```bob CAPTION ```` and ```` ``` ````.

use anyhow::{Result, ensure};
use svgbob::Settings;

/// The widest diagram, in characters: more is too small to be read on a page.
const MOST_COLUMNS: usize = 100;

/// The drawing and its caption, as a block of HTML without empty lines (which would end it).
pub(super) fn figure(text: &str, caption: &str) -> Result<String> {
    ensure!(!caption.is_empty(), "it has no caption: expected ```bob and what it shows");
    ensure!(!text.trim().is_empty(), "it is empty");
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

/// Where characters that are no part of a line go while it is drawn: to Unicode's private ones, which nobody draws with.
const PRIVATE: u32 = 0xe000;

/// The text in which no letter of a word, and no mark in one, is taken for a part of a line: `stop_io`, `gup-fast`, `I/O`.
fn guarded(text: &str) -> String {
    let letters: Vec<_> = text.chars().collect();
    let is_word = |at: Option<usize>| at.and_then(|at| letters.get(at)).is_some_and(|letter| letter.is_alphanumeric());
    let is_end = |at: usize| letters.get(at).is_none_or(|letter| letter.is_whitespace());
    let guard = |(at, letter): (usize, &char)| {
        let (before, after) = (is_word(at.checked_sub(1)), is_word(Some(at + 1)));
        let is_letter = letter.is_ascii_alphanumeric() && (before || after);
        let is_mark = "_-/.',:".contains(*letter) && before && (after || is_end(at + 1));
        let private = char::from_u32(PRIVATE + u32::from(*letter));
        private.filter(|_| is_letter || is_mark).unwrap_or(*letter)
    };
    letters.iter().enumerate().map(guard).collect()
}

fn unguarded(drawn: &str) -> String {
    let is_private = |letter: &char| (PRIVATE..PRIVATE + 0x80).contains(&u32::from(*letter));
    let back = |letter: char| char::from_u32(u32::from(letter) - PRIVATE).unwrap_or(letter);
    drawn.chars().map(|letter| if is_private(&letter) { back(letter) } else { letter }).collect()
}

/// As text and as an attribute of HTML.
pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
