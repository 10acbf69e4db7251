//! What there is to type, and what it means.

use alloc::format;
use alloc::string::String;

use cli::help::{indented, rows, wrap};

use crate::console;
use crate::console::command::Command;
use crate::shell::{GROUPS, commands, typing};

/// The command.
pub const COMMANDS: &[Command] = &[Command {
    name: "help",
    args: "[COMMAND]",
    help: "every command; of one, what it does and an example; also help removal, and help typing",
    example: "help attach",
    run: help,
}];

/// What needs more than a line, in paragraphs.
pub const TOPICS: &[(&str, &[&str])] = &[("removal", REMOVAL), ("typing", TYPING)];

const REMOVAL: &[&str] = &[
    "A removal takes a device away from whoever uses it, in eight steps; none of them can fail. Each says what it found, in brackets:",
    "1 stop_io: requests for blocks are refused from here on; those under way end first.",
    "2 kill_dax: the holders (a file system, say) are told while the device still works; then it is dead, and no fault is answered any more. Registrations of this device: its long-term pins, whose owners are asked for them.",
    "3 invalidate: every translation is taken out of the page tables. Mapped extents: stretches of address space that map the device; where memory is so short that the report cannot name one, that is said. Entries visited: page-table entries that were looked at for it.",
    "4 shootdown: one round of interrupts, so that no CPU remembers a translation. IPIs are the interrupts, and flushes what the CPUs did for them.",
    "5 drain: the page tables are given back. Leaves: entries that mapped memory, of 4 KiB, 2 MiB or 1 GiB each. Pages in all mappings: how many 4 KiB pages those leaves mapped; what two address spaces map counts twice, so there can be more of them than the device has. Registrations are taken back from owners who have not given them back themselves, and pins of transfers under way are waited for.",
    "6 free_metadata, 7 unmap_direct_map, 8 release: what the kernel kept about the device's pages goes, then its own mapping, then the name and the addresses are free.",
    "A task that touches the device afterwards is sent SIGBUS. removal N shows the last report of device N once more.",
];

const TYPING: &[&str] = &[
    "A word with blanks stands in quotes: \"two words\" or 'two words'. A backslash takes the meaning from the next character, also within \"...\".",
    "An & at the end runs the command beside the shell: jobs lists those, wait waits for them.",
    "At a terminal: the arrows, Home and End move and recall lines, Tab completes commands, devices and paths (twice: lists what there is), Ctrl-A and Ctrl-E go to the beginning and the end, Ctrl-K deletes what is behind the cursor, Ctrl-U the line, Ctrl-W a word, Ctrl-L paints a fresh screen, Ctrl-C drops the line, ends a wait, and gives the prompt back while a command runs, which goes on as a job (not so demo, fuzz and test), Ctrl-D on an empty line leaves.",
];

/// Does every command have an example that begins with its name?
const fn have_examples(groups: &[&[Command]]) -> bool {
    let mut group = 0;
    while group < groups.len() {
        let mut at = 0;
        while at < groups[group].len() {
            let (name, example) = (groups[group][at].name.as_bytes(), groups[group][at].example.as_bytes());
            let mut byte = 0;
            while byte < name.len() {
                if byte >= example.len() || example[byte] != name[byte] {
                    return false;
                }
                byte += 1;
            }
            if example.len() > name.len() && example[name.len()] != b' ' {
                return false;
            }
            at += 1;
        }
        group += 1;
    }
    true
}

// Seen when this is compiled: the name of a command that has none is not in the error, but it is the one that was added.
const _: () = assert!(have_examples(GROUPS), "a command has no example that begins with its name");

fn say(rows: impl IntoIterator<Item = String>) {
    rows.into_iter().for_each(|row| console::line(format_args!("{row}")));
}

fn help(args: &[&str]) -> Result<(), String> {
    let width = typing::columns();
    let usage = |command: &Command| format!("{} {}", command.name, command.args);
    match args {
        [] => {
            commands().for_each(|command| say(rows(usage(command).trim_end(), command.help, width)));
            Ok(())
        }
        [name] => {
            let topic = TOPICS.iter().find(|(topic, _)| topic == name);
            let mut known = topic.is_some();
            for command in commands().filter(|command| command.name == *name) {
                known = true;
                say(rows(usage(command).trim_end(), command.help, width));
                say(indented(&format!("for example: {}", command.example), width, 4));
            }
            for paragraph in topic.iter().flat_map(|(_, text)| *text) {
                say(wrap(paragraph, width, 2));
            }
            match known {
                true => Ok(()),
                false => Err(format!("there is no command \"{name}\" (help lists them)")),
            }
        }
        _ => Err("expected: help, or help COMMAND".into()),
    }
}
