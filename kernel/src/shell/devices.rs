//! The shell's commands about NVDIMMs: attach, remove, read, write, and who holds what.

use alloc::format;
use alloc::string::String;

use cli::shown::shown;
use dax::removal::Method;
use mm::ledger::Kind;
use mm::meta::LiveFolio;
use mm::pagemap::MemoryKind;

use crate::console;
use crate::console::command::{Command, forced};
use crate::mem::machine::mm;
use crate::pmem::contents::{self, Over};
use crate::pmem::devices::{DeviceError, Slot};
use crate::pmem::{bytes, devices, nvdimms};
pub use crate::shell::args::{device, number};
use crate::shell::explore::held;
use crate::shell::{jobs, pin, runs};

/// The commands.
pub const COMMANDS: &[Command] = &[
    Command { name: "demo", args: "[force]", help: "the demonstration", example: "demo force", run: run_demo },
    Command {
        name: "nvdimm",
        args: "[N]",
        help: "the persistent memory and its devices; of one, all that the NFIT says",
        example: "nvdimm pmem0",
        run: nvdimm,
    },
    Command {
        name: "attach",
        args: "N [devdax|fsdax]",
        help: "attach device N (a number, or a name such as pmem0), for such a use",
        example: "attach 0 fsdax",
        run: attach,
    },
    Command {
        name: "remove",
        args: "N [force]",
        help: "remove it, whoever uses it; with force also while a pin of the shell's is held, which it waits for",
        example: "remove 0",
        run: remove,
    },
    Command {
        name: "pmem",
        args: "write N OFFSET TEXT [force]",
        help: "write to the device, durably",
        example: "pmem write 0 4096 'some text' force",
        run: pmem,
    },
    Command {
        name: "pmem",
        args: "read N OFFSET LEN",
        help: "read from it, as text; also from a namespace in sector mode",
        example: "pmem read 0 4096 9",
        run: pmem,
    },
    Command {
        name: "pmem",
        args: "flush N",
        help: "make all that was written to it last",
        example: "pmem flush 0",
        run: pmem,
    },
    Command {
        name: "ledger",
        args: "",
        help: "what is held, by kind; what pages are in use",
        example: "ledger",
        run: ledger,
    },
];

fn run_demo(args: &[&str]) -> Result<(), String> {
    let (args, force) = forced(args);
    if !args.is_empty() {
        return Err("expected: demo, or demo force".into());
    }
    (0..devices::slots().len()).try_for_each(devices::not_attached)?;
    contents::ask_for_all(force)?;
    if (runs::get().demo)() { Ok(()) } else { Err("the verdict is bad".into()) }
}

fn nvdimm(args: &[&str]) -> Result<(), String> {
    match args {
        [] => devices::slots().iter().enumerate().for_each(|(at, slot)| show(at, slot)),
        [word] => {
            let at = device(word)?;
            let slot = devices::slots().get(at).ok_or_else(|| format!("{}", DeviceError::NoSlot(at)))?;
            show(at, slot);
            // At the addresses of a module that has left there may be an NVDIMM now, which the table names.
            return nvdimms::describe(slot.region.map(|_| slot.frames));
        }
        _ => return Err("expected: nvdimm, or nvdimm N".into()),
    }
    if devices::slots().is_empty() {
        console::line(format_args!("no NVDIMM"));
    }
    Ok(())
}

fn show(at: usize, slot: &Slot) {
    let state = match devices::block(at) {
        Ok(block) => {
            let dax = if devices::has_dax(at).unwrap_or(false) { "with DAX" } else { "without DAX" };
            format!("attached {dax}, {} sectors", block.nr_sectors())
        }
        Err(error) => format!("{error}"),
    };
    let (name, provider, frames) = (&slot.name, slot.provider(), slot.frames);
    let (start, end) = (frames.start().addr(), frames.end().addr());
    let writes = if slot.read_only.is_some() { ", read-only" } else { "" };
    console::line(format_args!("{at}: {name} ({provider}{writes}) {start}..{end}: {state}"));
}

fn attach(args: &[&str]) -> Result<(), String> {
    let (at, kind) = match args {
        [at] => (at, None),
        [at, "devdax"] => (at, Some(MemoryKind::DevDax)),
        [at, "fsdax"] => (at, Some(MemoryKind::FsDax)),
        _ => return Err("expected: attach N, attach N devdax, or attach N fsdax".into()),
    };
    let at = device(at)?;
    if let (Some(slot), Some(kind)) = (devices::slots().get(at), kind) {
        slot.allows(kind)?;
    }
    contents::in_hand(at);
    let kind = kind.or_else(|| devices::slots().get(at).map(Slot::kind)).unwrap_or(MemoryKind::DevDax);
    devices::attach_as(at, kind).map_err(|error| format!("{error}"))?;
    contents::report(at);
    Ok(())
}

/// Fails while the shell itself holds a pin of device `nr` that a removal waits for.
fn refuse_while_pinned(nr: usize) -> Result<(), String> {
    let others = format!("or remove {nr} &, or remove {nr} force");
    if let Some(pin) = pin::held_on(nr) {
        return Err(format!(
            "it would wait for pin {pin}, which only this shell gives back (unpin {pin} first, {others})"
        ));
    }
    if let Some(slot) = devices::slots().get(nr)
        && let Some((pin, what)) = held::in_the_way(slot.frames)
    {
        return Err(format!("{what} is held, and a removal waits for it (task unpin {pin} first, {others})"));
    }
    Ok(())
}

fn remove(args: &[&str]) -> Result<(), String> {
    let (args, force) = forced(args);
    let [at] = args else { return Err("expected: remove N, or remove N force".into()) };
    let nr = device(at)?;
    // It would wait for as long as nobody gives the pin back, and the shell with it; not so a job.
    if !force && !jobs::is_one() {
        refuse_while_pinned(nr)?;
    }
    let report = devices::remove(nr, Method::Ranged).map_err(|error| format!("{error}"))?;
    if console::is_for_people() && log::log_enabled!(log::Level::Info) {
        // Step by step they have read it just now.
        console::line(format_args!("it is gone (removal {at} shows the report)"));
    } else {
        format!("{report}").lines().for_each(|line| console::line(format_args!("{line}")));
    }
    Ok(())
}

fn pmem(args: &[&str]) -> Result<(), String> {
    let (args, force) = forced(args);
    match args {
        ["write", at, offset, text] => {
            let (at, offset) = (device(at)?, number(offset)?);
            contents::not_left_alone(at)?;
            devices::block(at).map_err(|error| format!("{error}"))?;
            contents::ask(at, Over::Bytes, force)?;
            bytes::write(at, offset, text.as_bytes())?;
            console::line(format_args!("{} bytes written", text.len()));
            Ok(())
        }
        ["read", at, offset, len] if !force => {
            let bytes = bytes::read(device(at)?, number(offset)?, number(len)? as usize)?;
            console::line(format_args!("{}", shown(&bytes)));
            Ok(())
        }
        ["flush", at] if !force => {
            let block = devices::block(device(at)?).map_err(|error| format!("{error}"))?;
            block.flush().map_err(|error| format!("{error}"))?;
            console::line(format_args!("flushed"));
            Ok(())
        }
        _ => Err("expected: pmem write N OFFSET TEXT [force], pmem read N OFFSET LEN, or pmem flush N".into()),
    }
}

fn ledger(_: &[&str]) -> Result<(), String> {
    let snapshot = mm().ledger_snapshot();
    for &kind in Kind::ALL {
        crate::console::answer!("ledger kind={kind} count={}", snapshot.count(kind));
    }
    const SHOWN: usize = 16;
    let mut folios = arrayvec::ArrayVec::<LiveFolio, SHOWN>::new();
    let mut more = 0;
    mm().meta.for_each_live(&mut |folio| {
        if folios.try_push(folio).is_err() {
            more += 1;
        }
    });
    for folio in folios {
        console::line(format_args!("{folio}"));
    }
    if more > 0 {
        console::line(format_args!("and {more} more folios"));
    }
    Ok(())
}
