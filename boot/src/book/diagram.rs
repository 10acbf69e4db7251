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
    let drawn = svgbob::to_svg_with_settings(text, &settings);
    let drawn: Vec<_> = drawn.lines().filter(|line| !line.trim().is_empty()).collect();
    let label = escaped(caption);
    let drawn = drawn.join("\n").replacen("<svg ", &format!("<svg role=\"img\" aria-label=\"{label}\" "), 1);
    Ok(format!("<figure class=\"diagram\">\n{drawn}\n<figcaption>{label}</figcaption>\n</figure>\n\n"))
}

/// As text and as an attribute of HTML.
pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
