//! The parts of labs in the kernel's sources, between two comments:
//!
//! ```text
//! // lab 5 begin: look again
//! …
//! // lab 5 end
//! ```
//!
//! What stands between them is taken out for a student, and put back for a model: [`Part::replace`] does both. The comments
//! stay where they are, and a part never changes anything outside them.

use anyhow::{Context, Result, bail, ensure};
use std::ops::Range;

/// What every such comment begins with.
const WORD: &str = "// lab ";

/// One part: which lab's, its name, and where in its source what can be replaced is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Part {
    /// The lab's number.
    pub lab: u32,
    /// What the comment calls it.
    pub name: String,
    /// The lines between the comments, as bytes of the source.
    pub inside: Range<usize>,
}

/// A comment that is one of the two.
enum Marker<'s> {
    Begin(u32, &'s str),
    End(u32),
}

impl Part {
    /// The text between the comments.
    #[must_use]
    pub fn text<'s>(&self, source: &'s str) -> &'s str {
        &source[self.inside.clone()]
    }

    /// The source with `text` in the place of the part; where the text does not end its last line, the line is ended.
    #[must_use]
    pub fn replace(&self, source: &str, text: &str) -> String {
        let end = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
        format!("{}{text}{end}{}", &source[..self.inside.start], &source[self.inside.end..])
    }
}

/// Reads a line; `None` where it is none of the comments.
///
/// # Errors
/// It begins like one and is not.
fn marker(line: &str) -> Result<Option<Marker<'_>>> {
    let Some(rest) = line.trim().strip_prefix(WORD) else { return Ok(None) };
    let wrong = || format!("{line:?} is neither `// lab N begin: NAME` nor `// lab N end`");
    let (number, rest) = rest.split_once(' ').with_context(wrong)?;
    let number = number.parse().ok().with_context(wrong)?;
    match rest.strip_prefix("begin: ") {
        Some(name) if !name.trim().is_empty() => Ok(Some(Marker::Begin(number, name.trim()))),
        None if rest == "end" => Ok(Some(Marker::End(number))),
        _ => bail!(wrong()),
    }
}

/// All parts of a source, in its order.
///
/// # Errors
/// One line: a comment that is wrong, has no partner, or stands inside another part; or two parts of one name.
pub fn parts(source: &str) -> Result<Vec<Part>> {
    let mut found: Vec<Part> = Vec::new();
    let mut open: Option<Part> = None;
    let mut at = 0;
    for line in source.split_inclusive('\n') {
        let next = at + line.len();
        match (marker(line)?, open.take()) {
            (None, still) => open = still,
            (Some(Marker::Begin(lab, name)), None) => {
                let twice = found.iter().any(|part| part.lab == lab && part.name == name);
                ensure!(!twice, "two parts of lab {lab} are called \"{name}\"");
                open = Some(Part { lab, name: name.into(), inside: next..next });
            }
            (Some(Marker::Begin(lab, name)), Some(part)) => {
                bail!("\"{name}\" of lab {lab} begins inside \"{}\" of lab {}", part.name, part.lab)
            }
            (Some(Marker::End(lab)), Some(part)) if part.lab == lab => {
                found.push(Part { inside: part.inside.start..at, ..part });
            }
            (Some(Marker::End(lab)), Some(part)) => {
                bail!("\"{}\" of lab {} ends as a part of lab {lab}", part.name, part.lab)
            }
            (Some(Marker::End(lab)), None) => bail!("a part of lab {lab} ends that has not begun"),
        }
        at = next;
    }
    if let Some(part) = open {
        bail!("\"{}\" of lab {} does not end", part.name, part.lab);
    }
    Ok(found)
}

/// The one part of that lab and name.
///
/// # Errors
/// As [`parts`], or there is none.
pub fn part(source: &str, lab: u32, name: &str) -> Result<Part> {
    let mut all = parts(source)?.into_iter();
    all.find(|part| part.lab == lab && part.name == name)
        .with_context(|| format!("the comments `// lab {lab} begin: {name}` and `// lab {lab} end` are gone"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str =
        "fn a() {}\n// lab 5 begin: look\nfn b() {}\n// lab 5 end\n    // lab 3 begin: zap\n    // lab 3 end\n";

    /// covers: T5
    #[test]
    fn a_part_is_taken_out_and_put_back() {
        let found = parts(SOURCE).expect("they are balanced");
        assert_eq!(
            found.iter().map(|part| (part.lab, part.name.as_str())).collect::<Vec<_>>(),
            [(5, "look"), (3, "zap")]
        );
        assert_eq!((found[0].text(SOURCE), found[1].text(SOURCE)), ("fn b() {}\n", ""));
        for text in ["", "todo!()", "fn c() {}\n\nfn d() {}\n"] {
            let out = found[0].replace(SOURCE, text);
            assert_ne!(out, SOURCE);
            let back = part(&out, 5, "look").expect("it is there");
            assert_eq!(back.text(&out).trim_end_matches('\n'), text.trim_end_matches('\n'));
            assert_eq!(back.replace(&out, found[0].text(SOURCE)), SOURCE, "byte for byte");
        }
    }

    /// covers: T5
    #[test]
    fn comments_that_do_not_fit_are_one_line() {
        for (source, words) in [
            ("// lab 5 begin: a\n", "does not end"),
            ("// lab 5 end\n", "has not begun"),
            ("// lab 5 begin: a\n// lab 4 end\n", "ends as a part of lab 4"),
            ("// lab 5 begin: a\n// lab 4 begin: b\n", "begins inside"),
            ("// lab 5 begin: a\n// lab 5 end\n// lab 5 begin: a\n// lab 5 end\n", "two parts"),
            ("// lab five begin: a\n", "is neither"),
            ("// lab 5 begin:\n", "is neither"),
            ("// lab 5 ends\n", "is neither"),
        ] {
            let error = parts(source).expect_err(source).to_string();
            assert!(error.contains(words) && error.lines().count() == 1, "{error}");
        }
        assert!(part(SOURCE, 5, "zap").expect_err("lab 3 has it").to_string().contains("are gone"));
    }
}
