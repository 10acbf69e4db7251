//! Who holds pins, since when, from where, and on which terms.
//!
//! Each line for people has one for programs beside it, that begins with `@`.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use core::fmt;

use mm::machine::Machine;
use mm::pagemap::{LongTermPin, MemoryKind};
use mm::pins::Word;
use mm::region::{MemoryRegion, Notice, RegionInfo, RegionOwner, Terms};
use mm::space::Access;

use crate::console;
use crate::console::command::Command;
use crate::mem::machine::mm;
use crate::pmem::registrations::Fields;
use crate::shell::devices::{device, number};
use crate::shell::pin;
use crate::task::sched;

/// The commands.
pub const COMMANDS: &[Command] = &[
    Command {
        name: "pins",
        args: "",
        help: "who holds pins, since when, from where, and who may",
        example: "pins",
        run: pins,
    },
    Command {
        name: "pins",
        args: "exempt on|off",
        help: "are pins of reserved memory left out of limits?",
        example: "pins exempt off",
        run: pins,
    },
    Command {
        name: "pins",
        args: "limit OWNER PAGES",
        help: "set an account's limit",
        example: "pins limit holder 16",
        run: pins,
    },
    Command {
        name: "register",
        args: "N PAGES [MICROSECONDS] [from=PAGE] [read|write]",
        help: "a task that pins so many pages of device N long-term; wanted back, it has so long to give them",
        example: "register 0 8 50000 from=512 read",
        run: register,
    },
];

/// How often that task uses its registration, in nanoseconds.
const TURN_NS: u64 = 1_000_000;

/// Prints through the console's lock, line by line.
fn say(line: fmt::Arguments<'_>) {
    console::line(line);
}

fn pins(args: &[&str]) -> Result<(), String> {
    match args {
        [] => list(),
        ["exempt", "on"] => mm().pins.exempt_reserved(true),
        ["exempt", "off"] => mm().pins.exempt_reserved(false),
        ["limit", owner, pages] => set_limit(owner, number(pages)?)?,
        _ => return Err("expected: pins, pins exempt on, pins exempt off, or pins limit OWNER PAGES".into()),
    }
    Ok(())
}

fn set_limit(owner: &str, pages: u64) -> Result<(), String> {
    let mut nr = 0;
    mm().pins.for_each_account(&mut |account| {
        if format!("{}", Word(account.owner())) == owner {
            account.set_limit_pages(pages);
            nr += 1;
        }
    });
    if nr == 0 { Err(format!("there is no account of \"{owner}\"")) } else { Ok(()) }
}

const REGISTER: &str = "expected: register N PAGES [MICROSECONDS] [from=PAGE] [read|write]";

/// What `register` was told besides the device and the number of pages.
struct Told {
    grace_us: u64,
    from: u64,
    write: bool,
}

impl Told {
    fn parse(words: &[&str]) -> Result<Self, String> {
        let mut told = Self { grace_us: 1000, from: 0, write: true };
        for (nth, word) in words.iter().enumerate() {
            match (*word, word.strip_prefix("from=")) {
                ("read", _) => told.write = false,
                ("write", _) => told.write = true,
                (_, Some(page)) => told.from = number(page)?,
                (grace_us, None) if nth == 0 => told.grace_us = number(grace_us)?,
                _ => return Err(REGISTER.into()),
            }
        }
        Ok(told)
    }
}

/// Starts a task that holds pages of a device by a registration, and uses it, until that is taken back.
fn register(args: &[&str]) -> Result<(), String> {
    let [at, pages, words @ ..] = args else {
        return Err(REGISTER.into());
    };
    let (at, nr_pages, Told { grace_us, from, write }) = (device(at)?, number(pages)?, Told::parse(words)?);
    let (space, address) = pin::mapped(at, "holder", (from, nr_pages), write)?;
    let account = space.account();
    let owner: Arc<dyn RegionOwner> = Arc::new(|_: &Notice| ());
    let terms = Terms { flags: pin::flags(write), grace_ns: grace_us.saturating_mul(1000), account: &account };
    let region = MemoryRegion::register(&space, address, nr_pages, &terms, Arc::downgrade(&owner));
    let region = region.map_err(|error| format!("{error}"))?;
    let key = region.key();
    let (inside, cpu) = (Arc::clone(&space), arch::percpu::cpu());
    let holder = sched::try_spawn("holder", cpu, Some(space), move || {
        // What it holds beside the registration, for as long.
        let _held = (inside, account, owner);
        let error = loop {
            match region.reference().access(Access::Read) {
                Ok(transfer) => drop(transfer),
                Err(error) => break error,
            }
            sched::sleep_ns(TURN_NS);
        };
        log::info!(target: "shell_pins", "holder: {error}");
        Ok(())
    });
    holder.map_err(|error| format!("{error}"))?;
    console::line(format_args!("registration {key} of {nr_pages} pages"));
    Ok(())
}

/// Everything that there is to know.
pub fn list() {
    let now = mm().machine.now_ns();
    let mut holders = 0;
    mm().pins.for_each(&mut |record| {
        holders += 1;
        say(format_args!("{}", record.describe(now)));
        crate::console::report!("pin {}", record.fields(now));
    });
    say(format_args!("{holders} holders, {} pins in all", mm().meta.totals().pins));
    mm().regions.for_each(&mut |region| list_region(region, now));
    mm().pins.for_each_account(&mut |account| {
        let (owner, limit) = (account.owner(), account.limit_pages());
        let (used, exempt) = (account.used_pages(), account.exempt_pages());
        say(format_args!("account {owner}: {used} of {limit} pages used, and {exempt} exempt"));
        crate::console::report!("account owner={} limit={limit} used={used} exempt={exempt}", Word(owner));
    });
    for kind in MemoryKind::ALL {
        let exempt = mm().pins.is_exempt(kind);
        say(format_args!("{kind} memory: {}", kind.policy(exempt)));
        let long_term = match kind.long_term() {
            LongTermPin::Revocable => "revocable",
            LongTermPin::Refused => "refused",
        };
        let reserved = u8::from(kind.is_reserved());
        crate::console::report!(
            "policy kind={kind} long_term={long_term} reserved={reserved} exempt={}",
            u8::from(exempt)
        );
    }
    mm().meta.for_each_map(&mut |map| {
        let start = map.ranges()[0].start().addr();
        say(format_args!("{} memory at {start}: {} folios in use", map.kind(), map.live_folios()));
    });
}

fn list_region(region: &RegionInfo<'_>, now: u64) {
    let age_ms = now.saturating_sub(region.since_ns) / 1_000_000;
    let uses = region.uses;
    match region.deadline_ns {
        None => say(format_args!("{region}, {age_ms} ms ago: {uses} uses in flight")),
        Some(at) => {
            let left = at.saturating_sub(now) / 1_000_000;
            say(format_args!("{region}, {age_ms} ms ago: {uses} uses in flight, wanted back within {left} ms"));
        }
    }
    let state = if region.deadline_ns.is_some() { "asked" } else { "live" };
    crate::console::report!("registration {} state={state} uses={uses}", Fields(region));
}
