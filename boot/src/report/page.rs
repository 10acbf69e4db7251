//! The page: one file that needs no other.

use std::fmt::Write;

/// A plot, with what a reader needs to know of it.
pub struct Section {
    /// Its heading.
    pub title: String,
    /// The drawing; where there is none, why.
    pub drawing: Result<String, String>,
    /// The command that makes its figures.
    pub command: String,
    /// What it means, in two sentences.
    pub meaning: String,
}

const STYLE: &str = "body{font-family:sans-serif;max-width:1000px;margin:2em auto;padding:0 1em;line-height:1.45;\
color:#111;background:#fff}svg{max-width:100%;height:auto;border:1px solid #ccc}code{background:#eee;\
padding:.1em .3em;overflow-wrap:anywhere}h2{margin-top:2.2em}p.none{border:1px solid #ccc;padding:1em}";

/// The text of the page. `summary` and what a section means may have markup; everything else is taken as it is.
#[must_use]
pub fn page(summary: &str, sections: &[Section]) -> String {
    let mut text = String::from("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n");
    let _ = writeln!(text, "<title>Unplug: what it costs</title>\n<style>{STYLE}</style>\n</head>\n<body>");
    let _ = writeln!(text, "<h1>Unplug: what it costs</h1>\n<p>{summary}</p>");
    for section in sections {
        let _ = writeln!(text, "<section>\n<h2>{}</h2>", escaped(&section.title));
        let _ = match &section.drawing {
            Ok(svg) => writeln!(text, "{}", svg.trim()),
            Err(why) => writeln!(text, "<p class=\"none\">Not drawn: {}.</p>", escaped(why)),
        };
        let _ = writeln!(text, "<p>Made by <code>{}</code></p>", escaped(&section.command));
        let _ = writeln!(text, "<p>{}</p>\n</section>", section.meaning);
    }
    text.push_str("</body>\n</html>\n");
    text
}

/// Text that means itself in HTML.
#[must_use]
pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
