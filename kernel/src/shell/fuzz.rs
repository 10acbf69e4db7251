//! The shell's command that gives the others lines at random: what they do is real, and none of them may end in a panic.
//!
//! A line is made from what `help` says of a command: a word in capitals becomes a number, a path or a text, with a
//! liking for numbers at which arithmetic breaks. Some lines lack a word, or have one too many. The same seed gives the same
//! lines. They write over whatever lies on the devices, so it asks first. Each is printed before it is run, so that the
//! last one on the console is the one to look at.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::console;
use crate::console::command::{Command, forced};
use crate::pmem::{contents, devices};
use crate::shell::devices::number;
use crate::shell::explore::{held, tasks};

/// The command.
pub const COMMANDS: &[Command] = &[Command {
    name: "fuzz",
    args: "SEED LINES [force]",
    help: "give the other commands so many lines at random",
    example: "fuzz 1 100 force",
    run: fuzz,
}];

/// What ends the machine, or takes long by itself.
const NOT: &[&str] = &["fuzz", "panic", "overflow", "hang", "exit", "demo", "test", "help", "fsload", "touch", "wait"];
/// Values around which something begins or ends.
const EDGES: [u64; 12] = [0, 1, 8, 512, 4096, 1 << 16, 1 << 20, 1 << 30, 1 << 44, 1 << 52, 1 << 63, u64::MAX];
const PATHS: [&str; 10] = ["/a", "/b", "/d", "/d/a", "/d/b", "/", "a", "/../a", "//", "/a/"];
const TEXTS: [&str; 4] = ["x", "hello", "0123456789abcdef0123456789abcdef0123456789", "\"quoted text\""];

/// Without these in between, most lines would find nothing mounted and nothing attached.
const PREPARE: [&str; 13] = [
    "inject off",
    "attach 0 fsdax",
    "mkfs 0 force",
    "mount 0",
    "thaw 0",
    "mkdir 0 /d",
    "write 0 /a 0 hello",
    "badblocks 0",
    "task new fuzz",
    "task map fuzz 0 at=0x4000000000 pages=4 write force",
    "task pin fuzz 0x4000000000 2 write",
    "task map fuzz 0 /a at=0x5000000000 pages=1 write",
    "task pin fuzz 0x5000000000 1 write",
];

/// Random numbers (xorshift64: Marsaglia, "Xorshift RNGs", 2003).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 8) % limit.max(1)
    }
    fn one_in(&mut self, many: u64) -> bool {
        self.below(many) == 0
    }
    fn choose<'c, T>(&mut self, from: &'c [T]) -> Option<&'c T> {
        from.get(self.below(from.len() as u64) as usize)
    }
    fn number(&mut self) -> String {
        let edge = self.choose(&EDGES).copied().unwrap_or(0);
        let value = match self.below(4) {
            0 => self.below(1 << 20),
            1 => self.below(256) * 4096,
            2 => edge.wrapping_add(self.below(9)),
            _ => edge.wrapping_sub(self.below(9)),
        };
        match self.below(16) {
            0 => format!("0x{value:x}"),
            1 => format!("-{value}"),
            2 => format!("{value}0000000000"),
            3 => "0x".to_string(),
            _ => format!("{value}"),
        }
    }
    /// Where the task of the prepared lines maps something, or somewhere else.
    fn address(&mut self) -> String {
        match self.below(8) {
            0 => self.number(),
            1 => format!("0x{:x}", 0xffff_8000_0000_0000 + self.below(1 << 32)),
            _ => format!("0x{:x}", 0x40_0000_0000 + self.below(6) * 4096),
        }
    }
    /// A frame of the first device, or another.
    fn frame(&mut self) -> String {
        match devices::slots().first() {
            Some(slot) if !self.one_in(4) => format!("0x{:x}", slot.frames.start().as_u64() + self.below(8)),
            _ => self.number(),
        }
    }
    fn few(&mut self) -> String {
        if self.one_in(8) { self.number() } else { format!("{}", self.below(6)) }
    }
    fn device(&mut self) -> String {
        match self.below(16) {
            0 => "1".into(),
            1 => "pmem0".into(),
            2 => self.number(),
            _ => "0".into(),
        }
    }
}

fn fuzz(args: &[&str]) -> Result<(), String> {
    let (args, force) = forced(args);
    let [seed, lines] = args else { return Err("expected: fuzz SEED LINES [force]".into()) };
    let (seed, lines) = (number(seed)?, number(lines)?);
    // Its lines make file systems and write, with the word that lets them.
    contents::ask_for_all(force)?;
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let commands: Vec<&Command> = super::commands().filter(|command| !NOT.contains(&command.name)).collect();
    let (mut refused, mut done) = (0_u64, 0_u64);
    for nr in 0..lines {
        let prepared = random.one_in(4).then(|| random.choose(&PREPARE)).flatten();
        let line = match (prepared, random.choose(&commands)) {
            (Some(prepared), _) => prepared.to_string(),
            (None, Some(command)) => line(command, &mut random),
            (None, None) => break,
        };
        console::line(format_args!("fuzz {nr}: {line}"));
        if line.starts_with("remove ") && line.ends_with(" force") {
            // It would wait for ever: nobody gives the pins back meanwhile.
            held::give_back_plain();
        }
        match super::execute(&line) {
            Ok(()) => done += 1,
            Err(message) => {
                refused += 1;
                console::line(format_args!("refused: {message}"));
            }
        }
    }
    // So that a person can go on, and the books can be compared.
    tasks::end_all();
    super::execute("inject off")?;
    crate::console::report!("fuzz seed={seed} lines={lines} done={done} refused={refused}");
    Ok(())
}

/// A line for a command.
fn line(command: &Command, random: &mut Random) -> String {
    let mut words: Vec<String> = Vec::from([command.name.to_string()]);
    for form in command.args.split_ascii_whitespace() {
        if form.starts_with('[') && random.one_in(2) {
            break;
        }
        let form = form.trim_matches(|c| c == '[' || c == ']');
        words.push(word(form, words.len(), random));
    }
    match random.below(16) {
        // A line has its command at least.
        0 if words.len() > 1 => _ = words.pop(),
        1 => words.push(random.number()),
        2 => {
            let at = random.below(words.len() as u64) as usize;
            words[at] = random.number();
        }
        _ => {}
    }
    words.join(" ")
}

/// A word in place of what `help` calls `form`, which is the `nth` of the line.
fn word(form: &str, nth: usize, random: &mut Random) -> String {
    let any =
        |random: &mut Random, from: &[&str]| random.choose(from).map_or_else(String::new, |word| word.to_string());
    if let Some((name, form)) = form.split_once('=') {
        return format!("{name}={}", word(form, usize::MAX, random));
    }
    match form {
        "N" if nth <= 2 => random.device(),
        "DEVICE" => random.device(),
        "ID" => any(random, &["fuzz", "fuzz", "fuzz", "user", "0"]),
        "ADDR" | "ADDRESS" => random.address(),
        "PFN" => random.frame(),
        "N" | "PAGES" | "PAGE" | "PIN" => random.few(),
        "PATH" | "NEW" => any(random, &PATHS),
        "TEXT" | "LABEL" | "OWNER" => any(random, &TEXTS),
        _ if form.contains('|') => match any(random, &form.split('|').collect::<Vec<_>>()) {
            capitals if capitals.bytes().all(|c| c.is_ascii_uppercase()) => word(&capitals, nth, random),
            chosen => chosen,
        },
        _ if form.bytes().any(|c| c.is_ascii_lowercase()) => form.into(),
        _ => random.number(),
    }
}
