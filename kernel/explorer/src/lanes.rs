//! What has happened, as text: a column for each CPU and device, a line for each mark.

use crate::conductor::Line;

/// Characters of a column.
const WIDTH: usize = 34;

/// The lines. Marks of one kind that follow each other are one line.
pub fn lanes(names: &[String], trace: &[Line]) -> String {
    let mut text = String::new();
    let head: Vec<String> = names.iter().map(|name| format!("{name:<WIDTH$}")).collect();
    push(&mut text, &head.concat());
    let mut at = 0;
    while at < trace.len() {
        let line = &trace[at];
        let alike = |other: &&Line| other.cpu == line.cpu && other.what == line.what && other.mark.is_some();
        let nr = if line.mark.is_some() { trace[at..].iter().take_while(alike).count() } else { 1 };
        let what = match (line.mark, nr) {
            (None, _) => format!("      {}", line.what),
            (Some(mark), 1) => format!("{mark:>4}  {}", line.what),
            (Some(mark), nr) => format!("{mark:>4}  {} (to {})", line.what, mark as usize + nr - 1),
        };
        push(&mut text, &format!("{}{what}", " ".repeat(WIDTH * line.cpu)));
        at += nr;
    }
    text
}

fn push(text: &mut String, line: &str) {
    text.push_str(line.trim_end());
    text.push('\n');
}
