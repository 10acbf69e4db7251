//! The rooms of `kernel/src`: who imports whom, read from the sources and held to the order in
//! `docs/decisions/rooms.md`; and the circles of `kernel/mm/src`, which may not grow (`docs/decisions/one-context.md`).
//!
//! A module is a file; a room is a folder with all that is in it. A module imports another where a path in it leads
//! there: in a `use`, in the middle of an expression, in a macro's arguments. Comments and strings lead nowhere.

use crate::paths;
use proc_macro2::{Delimiter, Spacing, TokenStream, TokenTree};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// A module by its path from the crate's root; the root itself (`main.rs`, `lib.rs`) is empty.
type Module = Vec<String>;

/// As many modules of one room may lead to each other in a circle.
const LARGEST_KNOT: usize = 5;
/// As many modules of `mm` do.
const KNOT_OF_MM: usize = 11;
/// As many lines may say what a room is for.
const LONGEST_HEAD: usize = 5;
/// What a head says in front of the rooms that may be imported.
const MAY_IMPORT: &str = "May import: ";

/// One token of a path, or something else.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Token {
    Word(String),
    /// `::`
    Colons,
    /// `{` of a group
    Open,
    Close,
    Comma,
    Other,
}

/// The tokens of a source, one after the other.
fn flat(stream: TokenStream, into: &mut Vec<Token>) {
    let mut tokens = stream.into_iter().peekable();
    while let Some(token) = tokens.next() {
        match token {
            TokenTree::Ident(word) => into.push(Token::Word(word.to_string())),
            TokenTree::Punct(punct) if punct.as_char() == ':' && punct.spacing() == Spacing::Joint => {
                match tokens.next_if(|next| matches!(next, TokenTree::Punct(next) if next.as_char() == ':')) {
                    Some(_) => into.push(Token::Colons),
                    None => into.push(Token::Other),
                }
            }
            TokenTree::Punct(punct) if punct.as_char() == ',' => into.push(Token::Comma),
            TokenTree::Punct(_) | TokenTree::Literal(_) => into.push(Token::Other),
            TokenTree::Group(group) => {
                let brace = group.delimiter() == Delimiter::Brace;
                into.push(if brace { Token::Open } else { Token::Other });
                flat(group.stream(), into);
                into.push(if brace { Token::Close } else { Token::Other });
            }
        }
    }
}

/// The paths that begin at `at`, with what is in front of them: several where there is a group. Answers where they end.
fn paths_at(tokens: &[Token], mut at: usize, prefix: &[String], into: &mut Vec<Module>) -> usize {
    let mut path = prefix.to_vec();
    loop {
        match tokens.get(at) {
            Some(Token::Word(word)) => {
                match word.as_str() {
                    "self" => {}
                    "super" => drop(path.pop()),
                    name => path.push(name.into()),
                }
                at += 1;
                if tokens.get(at) != Some(&Token::Colons) {
                    into.push(path);
                    return at;
                }
                at += 1;
            }
            Some(Token::Open) => {
                at += 1;
                while let Some(token) = tokens.get(at) {
                    match token {
                        Token::Close => return at + 1,
                        // An element's own group is consumed by the call; what else there is (`as x`, a comma) is not it.
                        Token::Comma => at += 1,
                        _ => {
                            at = paths_at(tokens, at, &path, into);
                            while tokens.get(at).is_some_and(|token| !matches!(token, Token::Comma | Token::Close)) {
                                at += 1;
                            }
                        }
                    }
                }
                return at;
            }
            // A star, a generic argument: the path in front of it is what is named.
            _ => {
                into.push(path);
                return at + 1;
            }
        }
    }
}

/// Who imports whom.
#[derive(Debug, Default)]
struct Graph {
    imports: BTreeMap<Module, BTreeSet<Module>>,
}

impl Graph {
    /// Reads it from the sources.
    fn of(sources: &BTreeMap<Module, String>) -> Self {
        let mut graph = Self::default();
        for (module, source) in sources {
            let mut tokens = Vec::new();
            flat(source.parse().unwrap_or_else(|error| panic!("{module:?} is not Rust: {error}")), &mut tokens);
            let named = named_in(module, &tokens, sources);
            let found = named.into_iter().map(|path| home(path, sources)).filter(|to| to != module).collect();
            graph.imports.insert(module.clone(), found);
        }
        graph
    }

    fn nr_imports(&self) -> usize {
        self.imports.values().map(BTreeSet::len).sum()
    }

    /// The same between what `part` makes of the modules: rooms, say.
    fn between(&self, part: impl Fn(&Module) -> Option<Module>) -> Self {
        let mut parts = Self::default();
        for (from, to) in &self.imports {
            let Some(from) = part(from) else { continue };
            let to: Vec<_> = to.iter().filter_map(&part).filter(|to| *to != from).collect();
            parts.imports.entry(from).or_default().extend(to);
        }
        parts
    }

    fn reachable<'a>(&'a self, from: &'a Module) -> BTreeSet<&'a Module> {
        let (mut seen, mut open) = (BTreeSet::new(), vec![from]);
        while let Some(next) = open.pop() {
            open.extend(self.imports.get(next).into_iter().flatten().filter(|to| seen.insert(*to)));
        }
        seen
    }

    /// Modules that lead to each other in a circle, the largest set first.
    fn knots(&self) -> Vec<BTreeSet<&Module>> {
        let reachable: BTreeMap<_, _> = self.imports.keys().map(|module| (module, self.reachable(module))).collect();
        let knot = |module: &&Module| -> BTreeSet<_> {
            let back = |to: &&Module| reachable.get(to).is_some_and(|from_there| from_there.contains(module));
            reachable[*module].iter().copied().filter(back).collect()
        };
        let knots: BTreeSet<_> =
            self.imports.keys().map(|module| knot(&module)).filter(|knot| knot.len() > 1).collect();
        let mut knots: Vec<_> = knots.into_iter().collect();
        knots.sort_by_key(|knot| std::cmp::Reverse(knot.len()));
        knots
    }
}

/// Every path in `tokens` that begins with `crate`, `self`, `super`, or the name of one of the module's own children.
fn named_in(module: &Module, tokens: &[Token], sources: &BTreeMap<Module, String>) -> Vec<Module> {
    let mut named = Vec::new();
    for at in 0..tokens.len() {
        let Token::Word(first) = &tokens[at] else { continue };
        let begins = at == 0 || tokens[at - 1] != Token::Colons;
        if !begins || tokens.get(at + 1) != Some(&Token::Colons) {
            continue;
        }
        let child = [&module[..], std::slice::from_ref(first)].concat();
        let base = match first.as_str() {
            "crate" => Vec::new(),
            "self" => module.clone(),
            "super" => module[..module.len().saturating_sub(1)].to_vec(),
            _ if sources.contains_key(&child) => child,
            _ => continue,
        };
        paths_at(tokens, at + 2, &base, &mut named);
    }
    named
}

/// The module that a path leads into.
fn home(mut path: Module, sources: &BTreeMap<Module, String>) -> Module {
    while !sources.contains_key(&path) && !path.is_empty() {
        path.pop();
    }
    path
}

fn room_of(module: &Module) -> Option<Module> {
    module.first().map(|room| vec![room.clone()])
}

fn shown(module: &Module) -> String {
    if module.is_empty() { "main".into() } else { module.join("::") }
}

/// What a room's head says: how many lines, and the rooms that it may import. `None` where it does not say that.
fn head(source: &str) -> (usize, Option<Vec<String>>) {
    let lines: Vec<_> = source.lines().map_while(|line| line.strip_prefix("//!")).collect();
    let allowed = lines.iter().find_map(|line| line.trim().strip_prefix(MAY_IMPORT)).map(|list| {
        let list = list.trim_end_matches('.').split(", ").map(String::from);
        list.filter(|room| room != "no other room").collect()
    });
    (lines.len(), allowed)
}

/// Everything that is wrong with rooms in this order, each in a line.
fn faults(sources: &BTreeMap<Module, String>, order: &[String]) -> Vec<String> {
    let graph = Graph::of(sources);
    let mut faults = Vec::new();
    for module in sources.keys().filter(|module| module.first().is_some_and(|room| !order.contains(room))) {
        faults.push(format!("{} is in no room that the order names", shown(module)));
    }
    for knot in graph.between(room_of).knots() {
        let rooms: Vec<_> = knot.into_iter().map(shown).collect();
        faults.push(format!("rooms import each other in a circle: {}", rooms.join(", ")));
    }
    for (at, room) in order.iter().enumerate() {
        let Some(source) = sources.get(std::slice::from_ref(room)) else {
            faults.push(format!("{room} is no room"));
            continue;
        };
        let (lines, allowed) = head(source);
        if lines > LONGEST_HEAD {
            faults.push(format!("{room}: a head of {lines} lines"));
        }
        let Some(allowed) = allowed else {
            faults.push(format!("{room}: the head does not say whom it may import"));
            continue;
        };
        for other in allowed.iter().filter(|other| !order[..at].contains(other)) {
            faults.push(format!("{room}: the head allows {other}, which is no room to its left"));
        }
        for (from, to) in graph.imports.iter().filter(|(from, _)| from.first() == Some(room)) {
            for to in to.iter().filter(|to| to.first() != Some(room)) {
                match to.first() {
                    Some(other) if !order[..at].contains(other) => {
                        faults.push(format!("{} imports {}, which is not to its left", shown(from), shown(to)));
                    }
                    Some(other) if !allowed.contains(other) => {
                        faults.push(format!("{} imports {}, which the head does not allow", shown(from), shown(to)));
                    }
                    Some(_) => {}
                    None => faults.push(format!("{} imports main, which imports everybody", shown(from))),
                }
            }
        }
        let inside = graph.between(|module| (module.first() == Some(room)).then(|| module.clone()));
        for knot in inside.knots().into_iter().filter(|knot| knot.len() > LARGEST_KNOT) {
            let modules: Vec<_> = knot.into_iter().map(shown).collect();
            faults.push(format!("{} modules import each other in a circle: {}", modules.len(), modules.join(", ")));
        }
    }
    faults
}

/// Every source below `directory`, by its module.
fn sources_below(directory: &Path, module: &Module, into: &mut BTreeMap<Module, String>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let mut child = module.clone();
        match path.file_stem().and_then(|stem| stem.to_str()).unwrap() {
            "main" | "lib" | "mod" if path.is_file() => {}
            name => child.push(name.into()),
        }
        if path.is_dir() {
            sources_below(&path, &child, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.insert(child, fs::read_to_string(&path).unwrap());
        }
    }
}

/// The rooms from left to right: the rows of the table in the docs.
fn order() -> Vec<String> {
    let docs = fs::read_to_string(paths::root().join("docs/decisions/rooms.md")).unwrap();
    let rows = docs.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    rows.map(|(room, _)| room.to_string()).collect()
}

/// A tree that is made up: path and source of each module.
fn tree(modules: &[(&str, &str)]) -> BTreeMap<Module, String> {
    let module = |path: &str| path.split("::").filter(|name| !name.is_empty()).map(String::from).collect();
    modules.iter().map(|&(path, source)| (module(path), source.to_string())).collect()
}

/// `low` and `high` in this order, with more modules or other ones; what is wrong with them.
fn faults_with(modules: &[(&str, &str)]) -> Vec<String> {
    let mut all = tree(&[
        ("", "mod low; mod high;"),
        ("low", "//! Stands below.\n//! May import: no other room.\nmod a; mod b;"),
        ("low::a", "pub struct A;"),
        ("low::b", "use crate::low::a::A;"),
        ("high", "//! Stands above.\n//! May import: low.\nmod c;"),
        ("high::c", "use crate::low::{a::{self, A}, b};"),
    ]);
    all.extend(tree(modules));
    faults(&all, &["low".into(), "high".into()])
}

#[test]
fn the_kernels_rooms_import_to_their_left_alone() {
    let mut sources = BTreeMap::new();
    sources_below(&paths::root().join("kernel/src"), &Vec::new(), &mut sources);
    let graph = Graph::of(&sources);
    let largest = graph.knots().first().map_or(1, BTreeSet::len);
    println!("{} modules, {} imports, {largest} in the largest circle", sources.len(), graph.nr_imports());
    assert!(sources.len() > 60 && graph.nr_imports() > 300, "the sources were not read: {graph:?}");
    let faults = faults(&sources, &order());
    assert!(faults.is_empty(), "see docs/decisions/rooms.md\n{}", faults.join("\n"));
}

/// The modules that lead to each other through the context are those that the docs name; the other circles are small.
#[test]
fn the_circles_of_the_heart_do_not_grow() {
    let mut sources = BTreeMap::new();
    sources_below(&paths::root().join("kernel/mm/src"), &Vec::new(), &mut sources);
    sources.retain(|module, _| !module.iter().any(|name| name == "tests"));
    let graph = Graph::of(&sources);
    assert!(sources.len() > 40 && graph.nr_imports() > 150, "the sources were not read: {graph:?}");
    let knots = graph.knots();
    let docs = fs::read_to_string(paths::root().join("docs/decisions/one-context.md")).unwrap();
    let (_, list) = docs.split_once("import each other in a circle: ").unwrap();
    let named: BTreeSet<_> = list.split_once(". ").unwrap().0.split('`').skip(1).step_by(2).map(String::from).collect();
    let found: BTreeSet<_> = knots[0].iter().map(|module| shown(module)).collect();
    assert_eq!((found.len(), &found), (KNOT_OF_MM, &named), "see docs/decisions/one-context.md");
    assert!(knots[1..].iter().all(|knot| knot.len() <= LARGEST_KNOT), "{knots:?}");
}

#[test]
fn a_sound_tree_has_no_faults() {
    assert_eq!(faults_with(&[]), Vec::<String>::new());
}

/// Each way to name a module of the room to the right, from the one to the left.
#[test]
fn an_import_to_the_right_is_seen_however_it_is_written() {
    let ways = [
        "use crate::high::c;",
        "use crate::{low::a, high::c::{self as other, Thing}};",
        "use crate::high::c::*;",
        "use super::super::high::c;",
        "fn f() { crate::high::c::g::<u8>(); }",
        "fn f() -> Vec<crate::high::c::Thing> { vec![] }",
        "fn f() { log!(\"{}\", crate::high::c::g()); }",
        "macro_rules! m { () => { $crate::high::c::g() } }",
    ];
    for way in ways {
        let found = faults_with(&[("low::a", way)]);
        let circle = "rooms import each other in a circle: high, low";
        let expected = ["low::a imports high::c, which is not to its left"];
        assert_eq!(found.iter().filter(|fault| *fault != circle).collect::<Vec<_>>(), expected, "{way}");
        assert_eq!(found.iter().filter(|fault| *fault == circle).count(), 1, "{way}: {found:?}");
    }
}

#[test]
fn comments_and_strings_import_nothing() {
    let source = "//! [`c`](crate::high::c)\n/// crate::high::c\n// use crate::high::c;\npub const A: &str = \"crate::high::c\";";
    assert_eq!(faults_with(&[("low::a", source)]), Vec::<String>::new());
}

#[test]
fn the_head_is_held_to_what_it_says() {
    let long = "//! 1\n//! 2\n//! 3\n//! 4\n//! 5\n//! May import: low.";
    assert_eq!(faults_with(&[("high", long)]), ["high: a head of 6 lines"]);
    let silent = "//! Stands above.";
    assert_eq!(faults_with(&[("high", silent)]), ["high: the head does not say whom it may import"]);
    let narrow = "//! Stands above.\n//! May import: no other room.";
    let expected = ["a", "b"].map(|to| format!("high::c imports low::{to}, which the head does not allow"));
    assert_eq!(faults_with(&[("high", narrow)]), expected);
    let wide = "//! Stands below.\n//! May import: high.";
    assert_eq!(faults_with(&[("low", wide)]), ["low: the head allows high, which is no room to its left"]);
}

#[test]
fn nobody_imports_the_root_and_nobody_lives_outside() {
    let found = faults_with(&[("low::a", "use crate::SOMETHING;")]);
    assert_eq!(found, ["low::a imports main, which imports everybody"]);
    assert_eq!(faults_with(&[("stray", "")]), ["stray is in no room that the order names"]);
}

/// Modules of `low` in a circle: as many as are allowed, and one more.
#[test]
fn a_large_circle_in_a_room_is_seen() {
    let circle = |nr: usize| {
        let name = |at: usize| format!("low::n{}", at % nr);
        let modules: Vec<_> = (0..nr).map(|at| (name(at), format!("use super::n{}::X;", (at + 1) % nr))).collect();
        faults_with(&modules.iter().map(|(name, source)| (&**name, &**source)).collect::<Vec<_>>())
    };
    assert_eq!(circle(LARGEST_KNOT), Vec::<String>::new());
    let found = circle(LARGEST_KNOT + 1);
    assert!(found.len() == 1 && found[0].starts_with("6 modules import each other in a circle: low::n0,"), "{found:?}");
    // A parent that uses its child by name alone, and a child that uses its parent.
    let both = tree(&[("low", "mod a; fn f() { a::g() }"), ("low::a", "use super::f;"), ("", "")]);
    assert_eq!(Graph::of(&both).knots().len(), 1);
}
