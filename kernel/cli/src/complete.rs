//! What Tab adds to a line: read from the usages that `help` prints.
//!
//! Of a usage a word in capitals stands for something, and the others for themselves: `N` is a device, `PATH` and `NEW`
//! are paths in the file system of that device, `COMMAND` is a command or a topic of `help`, `a|b` is one of several.
//! What stands in `[…]` may be left out.

use alloc::borrow::ToOwned;
use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;

use crate::words::Scan;

/// What is typed to have something done.
#[derive(Clone, Copy, Debug)]
pub struct Usage<'u> {
    /// Its first word.
    pub name: &'u str,
    /// What follows it.
    pub args: &'u str,
}

/// What can be named.
pub trait Names {
    /// The devices.
    fn devices(&self) -> Vec<String>;
    /// The entries of a directory of the file system of a device; a directory ends in `/`. Empty where there is none.
    fn entries(&self, device: &str, directory: &str) -> Vec<String>;
    /// What has a page of help and is no command.
    fn topics(&self) -> Vec<String>;
}

/// What could follow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Completion {
    /// What is certain: to be typed as it is.
    pub insert: String,
    /// What there is to choose from.
    pub candidates: Vec<String>,
}

/// What could follow `before`, the part of a line in front of the cursor.
pub fn complete(before: &str, usages: &[Usage<'_>], names: &dyn Names) -> Completion {
    let Ok(Scan { words, last, quote, escape: false, .. }) = Scan::of(before) else { return Completion::default() };
    let (last, quote) = (last.unwrap_or_default(), quote.map(|(quote, _)| quote));
    let words: Vec<&str> = words.iter().map(|(word, _)| word.as_str()).collect();
    let mut found = BTreeSet::new();
    match words.split_first() {
        None => found.extend(usages.iter().map(|usage| usage.name.to_owned())),
        Some((name, args)) => {
            for usage in usages.iter().filter(|usage| usage.name == *name) {
                for form in forms_at(usage.args, args) {
                    found.extend(of_form(form, &last, usage, args, usages, names));
                }
            }
        }
    }
    found.retain(|word| word.starts_with(&last));
    let candidates: Vec<String> = found.into_iter().collect();
    let Some(first) = candidates.first() else { return Completion::default() };
    // Sorted: what the first and the last have in common, all have.
    let common: usize = candidates.last().map_or(0, |other| {
        first.chars().zip(other.chars()).take_while(|(a, b)| a == b).map(|(c, _)| c.len_utf8()).sum()
    });
    let mut insert = quoted(&first[last.len().min(common)..common], quote);
    if let [only] = candidates.as_slice()
        && !only.ends_with(['/', '='])
    {
        insert.extend(quote);
        insert.push(' ');
    }
    // Of a path the last part is what tells it from the others.
    let shown = |word: String| match word.trim_end_matches('/').rfind('/') {
        Some(at) if word.len() > 1 => word[at + 1..].to_owned(),
        _ => word,
    };
    Completion { insert, candidates: candidates.into_iter().map(shown).collect() }
}

/// The forms that the next word may have, after `args`; none where these are not of the usage.
fn forms_at<'u>(usage: &'u str, args: &[&str]) -> Vec<&'u str> {
    let forms: Vec<&str> = usage.split_ascii_whitespace().collect();
    let fits = |(form, arg): (&&str, &&str)| {
        let form = bare(form);
        !is_literal(form) || form.contains('=') || form.split('|').any(|word| word == *arg)
    };
    if !forms.iter().zip(args).all(fits) {
        return Vec::new();
    }
    let mut next = Vec::new();
    for form in forms.iter().skip(args.len()) {
        next.push(bare(form));
        if !form.starts_with('[') {
            break;
        }
    }
    next
}

fn bare(form: &str) -> &str {
    form.trim_matches(['[', ']', '.'])
}

/// Does it stand for itself?
fn is_literal(form: &str) -> bool {
    form.bytes().any(|c| c.is_ascii_lowercase() || c == b'-')
}

/// The words that have a form.
fn of_form(
    form: &str,
    last: &str,
    usage: &Usage<'_>,
    args: &[&str],
    usages: &[Usage<'_>],
    names: &dyn Names,
) -> Vec<String> {
    match form {
        "N" => names.devices(),
        "COMMAND" => usages.iter().map(|usage| usage.name.to_owned()).chain(names.topics()).collect(),
        "PATH" | "NEW" => {
            let at = usage.args.split_ascii_whitespace().position(|form| bare(form) == "N");
            let Some(device) = at.and_then(|at| args.get(at)) else { return Vec::new() };
            let directory = last.rfind('/').map_or("", |at| &last[..=at]);
            if directory.is_empty() {
                // Every path begins at the root.
                return Vec::from(["/".to_owned()]);
            }
            names.entries(device, directory).into_iter().map(|entry| directory.to_owned() + &entry).collect()
        }
        _ if is_literal(form) => {
            let words = form.split('|').map(|word| word.split_inclusive('=').next().unwrap_or(word).to_owned());
            words.collect()
        }
        _ => Vec::new(),
    }
}

/// `text` as it is typed within a quote, or outside of all.
fn quoted(text: &str, quote: Option<char>) -> String {
    let mut typed = String::new();
    for c in text.chars() {
        let escaped = match quote {
            None => matches!(c, ' ' | '\t' | '"' | '\'' | '\\' | '&'),
            Some('"') => matches!(c, '"' | '\\'),
            Some(_) => false,
        };
        if escaped {
            typed.push('\\');
        }
        typed.push(c);
    }
    typed
}
