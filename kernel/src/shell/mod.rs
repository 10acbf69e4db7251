//! A line-reading shell on the serial console: for people, and for test harnesses that wait for the next prompt.
//! May import: cpu, console, mem, task, trap, io, pmem.

mod args;
mod devices;
mod dma;
pub mod explore;
mod fail;
pub mod fs;
mod fsload;
mod fuzz;
mod help;
mod hotplug;
mod input;
pub mod jobs;
mod namespaces;
mod pin;
mod pins;
mod removal;
pub mod runs;
mod trace;
mod typing;

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use cli::{MAX_LINE, Typed, words};
use mm::addr::PAGE_SIZE;

use self::runs::Runs;
use crate::console::command::{Command, forced};
use crate::console::{self, ring};
use crate::cpu::exit;
use crate::mem::{heap, memory, paging};
use crate::pmem::contents;
use crate::task::runner;

/// What a harness waits for.
pub const PROMPT: &str = "unplug> ";

/// Every command, by subject.
const GROUPS: &[&[Command]] = &[
    help::COMMANDS,
    GROUND,
    devices::COMMANDS,
    namespaces::COMMANDS,
    pins::COMMANDS,
    pin::COMMANDS,
    dma::COMMANDS,
    fail::COMMANDS,
    removal::COMMANDS,
    fs::COMMANDS,
    fsload::COMMANDS,
    fuzz::COMMANDS,
    hotplug::COMMANDS,
    explore::COMMANDS,
    explore::tasks::COMMANDS,
    jobs::COMMANDS,
    trace::COMMANDS,
];

/// Every command.
fn commands() -> impl Iterator<Item = &'static Command> {
    GROUPS.iter().copied().flatten()
}

const GROUND: &[Command] = &[
    Command { name: "cpus", args: "", help: "every CPU and what it runs", example: "cpus", run: cpus },
    Command { name: "mem", args: "", help: "physical memory, heap, page tables", example: "mem", run: mem },
    Command {
        name: "test",
        args: "[GLOB] [force]",
        help: "run the in-kernel tests",
        example: "test mm.map.*",
        run: test,
    },
    Command { name: "test", args: "--list [GLOB]", help: "only name them", example: "test --list dax.*", run: test },
    Command {
        name: "panic",
        args: "",
        help: "panic, to see an epitaph",
        example: "panic",
        run: |_| panic!("asked for on the console"),
    },
    Command {
        name: "overflow",
        args: "",
        help: "overflow a kernel stack, to see it caught",
        example: "overflow",
        run: overflow,
    },
    Command { name: "hang", args: "", help: "stop answering, with interrupts off", example: "hang", run: hang },
    Command {
        name: "exit",
        args: "",
        help: "leave QEMU with status 0",
        example: "exit",
        run: |_| exit::now(exit::SUCCESS),
    },
];

/// Reads and runs commands for ever. `runs` is what two of them start; at the other end of the console is a terminal
/// or a program, so many columns wide.
pub fn run(runs: Runs, columns: usize, is_terminal: bool) -> ! {
    runs::set(runs);
    let mut reader = typing::Reader::new(columns, is_terminal);
    loop {
        ring::drain();
        let done = match reader.read() {
            Typed::Line(line) if is_terminal => execute_by(&line, jobs::watch),
            Typed::Line(line) => execute(&line),
            Typed::TooLong => Err(format!("a line of more than {MAX_LINE} characters; nothing was done")),
            Typed::Dropped => Ok(()),
            Typed::Left => execute("exit"),
        };
        if let Err(message) = done {
            console::line(format_args!("error: {message}"));
        }
    }
}

/// Does what a line says, and waits for it.
fn execute(line: &str) -> Result<(), String> {
    execute_by(line, |command, words| {
        let args: Vec<&str> = words.iter().skip(1).map(String::as_str).collect();
        (command.run)(&args)
    })
}

/// Does what a line says; `run` does a command that is no job, with all of its words.
fn execute_by(line: &str, run: impl FnOnce(&'static Command, &[String]) -> Result<(), String>) -> Result<(), String> {
    let line = words::split(line).map_err(|error| format!("{error}"))?;
    let words: Vec<&str> = line.words.iter().map(String::as_str).collect();
    let Some((&name, args)) = words.split_first() else { return Ok(()) };
    let named = || commands().filter(|command| command.name == name);
    let Some(command) = named().next() else { return Err(format!("unknown command \"{name}\" (try help)")) };
    if !args.is_empty() && named().all(|command| command.args.is_empty()) {
        return Err(format!("expected: {name}, with nothing behind it"));
    }
    match line.is_job {
        true => jobs::start(command, &line.words),
        false => run(command, &line.words),
    }
}

fn cpus(_: &[&str]) -> Result<(), String> {
    for cpu in runner::all() {
        let task = cpu.queue.lock().current_name();
        console::line(format_args!(
            "CPU {}: apic {}, {} switches, {} timer interrupts, runs {}",
            cpu.id(),
            cpu.apic_id.load(Ordering::Relaxed),
            cpu.switches.load(Ordering::Relaxed),
            cpu.ticks.load(Ordering::Relaxed),
            task.unwrap_or_else(|| "nothing".to_string()),
        ));
    }
    Ok(())
}

fn mem(_: &[&str]) -> Result<(), String> {
    let (ram, usable) = memory::ram_bytes();
    let stats = memory::stats().unwrap_or_default();
    let (heap_used, heap_free) = heap::usage();
    let mut leaves = [0u64; 3];
    paging::for_each_leaf(|_, _, size| leaves[size.level() as usize - 1] += 1);
    console::line(format_args!("RAM {} MiB, usable {} MiB", ram >> 20, usable >> 20));
    let in_use = memory::used_frames();
    console::line(format_args!("frames in use {in_use} ({} KiB)", (in_use * PAGE_SIZE) >> 10));
    console::line(format_args!(
        "frames free {}, cached by CPUs {}, largest free order {}",
        stats.free,
        stats.cached,
        stats.largest_free_order().unwrap_or(0)
    ));
    console::line(format_args!("heap {} KiB used, {} KiB free", heap_used >> 10, heap_free >> 10));
    let [small, medium, large] = leaves;
    console::line(format_args!("kernel leaves: {small} of 4 KiB, {medium} of 2 MiB, {large} of 1 GiB"));
    Ok(())
}

fn test(args: &[&str]) -> Result<(), String> {
    let tests = runs::get();
    let (args, force) = forced(args);
    let (glob, lists) = match args {
        [] => ("*", false),
        ["--list"] if !force => ("*", true),
        ["--list", glob] if !force => (*glob, true),
        [glob] if !glob.starts_with('-') => (*glob, false),
        _ => return Err("expected: test [GLOB] [force], or test --list [GLOB]".into()),
    };
    let named = (tests.list)(glob);
    if named.is_empty() {
        return Err(format!("no test's name matches \"{glob}\" (test --list names them)"));
    }
    if lists {
        named.iter().for_each(|name| console::line(format_args!("{name}")));
        return Ok(());
    }
    contents::ask_for_all(force)?;
    match (tests.tests)(glob) {
        0 => Ok(()),
        failed => Err(format!("{failed} tests failed")),
    }
}

#[expect(unconditional_recursion, clippy::only_used_in_recursion, reason = "that is what the command is for")]
fn overflow(args: &[&str]) -> Result<(), String> {
    let big = core::hint::black_box([0u8; 256]);
    let result = overflow(args);
    core::hint::black_box(&big);
    result
}

fn hang(_: &[&str]) -> Result<(), String> {
    // First, so that whoever has read the line finds it so.
    arch::cpu::irq_disable();
    console::line(format_args!("hanging, with interrupts off"));
    loop {
        arch::cpu::pause();
    }
}
