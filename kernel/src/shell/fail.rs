//! The shell's commands about failure: bad blocks, poisoned pages, faults on demand.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;

use dax::devdax::OpenOptions;
use dax::inject::{Fault, Place};
use mm::addr::{PAGE_SHIFT, PAGE_SIZE, PageSize, VirtAddr};
use mm::entry::Prot;
use mm::space::VmOps;
use nvdimm::pmem::block::SECTOR_BYTES;

use crate::console;
use crate::console::command::{Command, forced};
use crate::cpu::percpu;
use crate::mem::machine::{KernelMachine, Space, mm};
use crate::mem::reserve::FAULTS;
use crate::pmem::contents::{self, Over};
use crate::pmem::{bytes, devices};
use crate::shell::devices::{device, number};
use crate::task::{sched, user};
use crate::trap::memory_error;

/// The commands.
pub const COMMANDS: &[Command] = &[
    Command {
        name: "badblocks",
        args: "N",
        help: "the sectors of NVDIMM N that are lost",
        example: "badblocks 0",
        run: badblocks,
    },
    Command {
        name: "badblocks",
        args: "init N [force]",
        help: "keep that list on the device, in 64 KiB",
        example: "badblocks init 0",
        run: badblocks,
    },
    Command {
        name: "badblocks",
        args: "drop N",
        help: "keep it there no longer",
        example: "badblocks drop 0",
        run: badblocks,
    },
    Command {
        name: "zero",
        args: "N OFFSET LEN [force]",
        help: "write zeroes, which heals whole sectors and pages",
        example: "zero 0 4096 4096",
        run: zero,
    },
    Command {
        name: "poison",
        args: "N OFFSET",
        help: "fail one page, as a machine check does",
        example: "poison 0 20480",
        run: poison,
    },
    Command {
        name: "hold",
        args: "N OFFSET",
        help: "a task that maps a page and reads it until a signal",
        example: "hold 0 20480",
        run: hold,
    },
    Command {
        name: "inject",
        args: "attach|remove|alloc N",
        help: "let the Nth of them fail, once",
        example: "inject remove 3",
        run: inject,
    },
    Command {
        name: "inject",
        args: "attach|remove|alloc N+",
        help: "the Nth and all after it",
        example: "inject alloc 10+",
        run: inject,
    },
    Command { name: "inject", args: "off", help: "let nothing fail any more", example: "inject off", run: inject },
];

/// Where `hold` maps its page.
const HELD: VirtAddr = VirtAddr::new(0x40_0000_0000);
/// How often its task reads, in nanoseconds.
const READ_NS: u64 = 1_000_000;

fn badblocks(args: &[&str]) -> Result<(), String> {
    let (args, force) = forced(args);
    match args {
        ["init", at] => {
            let at = device(at)?;
            devices::not_attached(at)?;
            contents::ask(at, Over::Area, force)?;
            contents::in_hand(at);
            devices::set_area(at, true)
        }
        ["drop", at] if !force => {
            let at = device(at)?;
            contents::in_hand(at);
            devices::set_area(at, false)
        }
        [at] if !force => list(device(at)?),
        _ => Err("expected: badblocks N, badblocks init N [force], or badblocks drop N".into()),
    }
}

fn list(at: usize) -> Result<(), String> {
    let block = devices::block(at).map_err(|error| format!("{error}"))?;
    let runs = block.lost_sectors().map_err(|error| format!("{error}"))?;
    for run in &runs {
        console::line(format_args!("sectors {}..{}", run.first, run.end()));
    }
    let own = block.area().into_iter().flat_map(|area| area.lost_sectors(block.nr_sectors()));
    for run in own {
        console::line(format_args!(
            "sectors {}..{}, where the device keeps this list: in a copy that is not used",
            run.first,
            run.end()
        ));
    }
    let lost: u64 = runs.iter().map(|run| run.nr_sectors).sum();
    let kept = match block.area() {
        None => "not kept on the device".into(),
        Some(area) => format!(
            "kept on the device, list {}{}{}",
            area.sequence,
            if area.cut { ", cut short" } else { "" },
            if area.stale { ", older than this one: the medium did not take it" } else { "" }
        ),
    };
    console::line(format_args!("{lost} sectors are lost; {kept}"));
    Ok(())
}

fn zero(args: &[&str]) -> Result<(), String> {
    let (args, force) = forced(args);
    let [at, offset, len] = args else { return Err("expected: zero N OFFSET LEN [force]".into()) };
    let (at, offset, len) = (device(at)?, number(offset)?, number(len)?);
    const MOST: u64 = 1 << 20;
    if offset % SECTOR_BYTES != 0 || len % SECTOR_BYTES != 0 || !(1..=MOST).contains(&len) {
        return Err(format!("offset and length are multiples of {SECTOR_BYTES}, and the length is 1 to {MOST}"));
    }
    contents::not_left_alone(at)?;
    let block = devices::block(at).map_err(|error| format!("{error}"))?;
    contents::ask(at, Over::Bytes, force)?;
    let zeroes = bytes::zeroes(len as usize)?;
    block.write(offset / SECTOR_BYTES, &zeroes).map_err(|error| bytes::in_bytes(&error))
}

fn poison(args: &[&str]) -> Result<(), String> {
    let [at, offset] = args else { return Err("expected: poison N OFFSET".into()) };
    let (at, offset) = (device(at)?, number(offset)?);
    devices::block(at).map_err(|error| format!("{error}"))?;
    let frames = devices::slots()[at].frames;
    if offset >> PAGE_SHIFT >= frames.nr_pages() {
        return Err(format!("the device has {} bytes", frames.nr_pages() * PAGE_SIZE));
    }
    memory_error::fail(frames.start().add(offset >> PAGE_SHIFT));
    Ok(())
}

fn hold(args: &[&str]) -> Result<(), String> {
    let [at, offset] = args else { return Err("expected: hold N OFFSET".into()) };
    let (at, offset) = (device(at)?, number(offset)?);
    if offset % PAGE_SIZE != 0 {
        return Err(format!("an offset is a multiple of {PAGE_SIZE}"));
    }
    let file = devices::file(at).map_err(|error| format!("{error}"))?;
    let ops: Arc<dyn VmOps<KernelMachine>> =
        file.open(OpenOptions::exactly(PageSize::Size4K)).map_err(|error| format!("{error}"))?;
    let space = Space::new(mm(), "hold").map_err(|error| format!("{error}"))?;
    space.map(HELD, PAGE_SIZE, Prot::USER_READ, &ops, offset >> PAGE_SHIFT).map_err(|error| format!("{error}"))?;
    let cpu = percpu::online().iter().last().unwrap_or(0);
    let task = sched::try_spawn("hold", cpu, Some(space), || {
        loop {
            user::read_u64(HELD)?;
            sched::sleep_ns(READ_NS);
        }
    });
    let task = task.map_err(|error| format!("{error}"))?;
    // Mapped and read once: from here on a failure of the page concerns the task.
    while task.exit().is_none() && task.faults.load(core::sync::atomic::Ordering::Relaxed) == 0 {
        sched::yield_now();
    }
    if let Some(Err(signal)) = task.exit() {
        return Err(format!("task {} cannot read the page at {offset:#x} of {at}: {}", task.id, signal.in_words()));
    }
    console::line(format_args!("task {} reads the page at {offset:#x} of {at} on CPU {cpu}", task.id));
    Ok(())
}

fn inject(args: &[&str]) -> Result<(), String> {
    match args {
        ["off"] => {
            for place in Place::ALL {
                FAULTS.disarm(place);
            }
        }
        [place, nth] => FAULTS.arm(Fault::new(place, nth).map_err(|error| format!("{error}"))?),
        _ => return Err("expected: inject attach|remove|alloc N, the same with N+, or inject off".into()),
    }
    Ok(())
}
