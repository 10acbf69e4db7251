//! Transient pins by hand: pages of a device that stay pinned until they are given back, and for which a removal waits.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use dax::devdax::OpenOptions;
use mm::addr::{PAGE_SIZE, VirtAddr};
use mm::entry::Prot;
use mm::gup::GupFlags;
use mm::pins::PinnedPages;
use mm::space::VmOps;
use mm::sync::Mutex;

use crate::console;
use crate::console::command::Command;
use crate::mem::machine::{KernelMachine, Space, mm};
use crate::pmem::devices;
use crate::shell::args::{device, number};

/// The commands.
pub const COMMANDS: &[Command] = &[
    Command {
        name: "pin",
        args: "N PAGE COUNT [write]",
        help: "pin so many pages of device N from PAGE on, for a transfer that lasts until unpin; a removal waits for it",
        example: "pin 0 512 8 write",
        run: pin,
    },
    Command { name: "unpin", args: "PIN", help: "give back what pin has pinned", example: "unpin 1", run: unpin },
];

/// Where the device is mapped.
const BASE: VirtAddr = VirtAddr::new(0x40_0000_0000);
/// So many may be held.
const MOST: usize = 64;

/// Pages that are held.
struct Held {
    nr: u64,
    at: usize,
    _pins: PinnedPages<KernelMachine>,
    _space: Arc<Space>,
}

/// All of them, and the last one's number.
static HELD: Mutex<(u64, Vec<Held>)> = Mutex::new((0, Vec::new()));

/// An address space in which all of a device is mapped, and the address of `nr_pages` pages of it from `page` on.
pub fn mapped(
    at: usize,
    name: &str,
    (page, nr_pages): (u64, u64),
    write: bool,
) -> Result<(Arc<Space>, VirtAddr), String> {
    let file = devices::file(at).map_err(|error| format!("{error}"))?;
    let ops: Arc<dyn VmOps<KernelMachine>> =
        file.open(OpenOptions::default()).map_err(|error| format!("open: {error}"))?;
    let pages = file.size_bytes() / PAGE_SIZE;
    if page.checked_add(nr_pages).is_none_or(|end| end > pages) {
        return Err(format!("{nr_pages} pages from page {page} on; the device has {pages}"));
    }
    let space = Space::new(mm(), name).map_err(|error| format!("address space: {error}"))?;
    let prot = if write { Prot::USER_WRITE } else { Prot::USER_READ };
    space.map(BASE, file.size_bytes(), prot, &ops, 0).map_err(|error| format!("map: {error}"))?;
    Ok((space, VirtAddr::new(BASE.as_u64() + page * PAGE_SIZE)))
}

/// What the word `write` at the end of a command means.
pub fn flags(write: bool) -> GupFlags {
    if write { GupFlags::WRITE } else { GupFlags::empty() }
}

/// The number of a pin that is held here on a device: whoever waits for it on the console waits for ever.
pub fn held_on(at: usize) -> Option<u64> {
    HELD.lock().1.iter().find(|held| held.at == at).map(|held| held.nr)
}

fn pin(args: &[&str]) -> Result<(), String> {
    let (at, page, count, write) = match args {
        [at, page, count] => (at, page, count, false),
        [at, page, count, "write"] => (at, page, count, true),
        _ => return Err("expected: pin N PAGE COUNT [write]".into()),
    };
    let (at, page, count) = (device(at)?, number(page)?, number(count)?);
    if HELD.lock().1.len() >= MOST {
        return Err(format!("{MOST} pins are held already (unpin gives one back)"));
    }
    let (space, address) = mapped(at, "pin", (page, count), write)?;
    let pins = PinnedPages::pin(&space, address, count, flags(write)).map_err(|error| format!("{error}"))?;
    let mut held = HELD.lock();
    held.0 += 1;
    let nr = held.0;
    held.1.push(Held { nr, at, _pins: pins, _space: space });
    drop(held);
    console::line(format_args!("pin {nr}: {count} pages from page {page} on"));
    Ok(())
}

fn unpin(args: &[&str]) -> Result<(), String> {
    let [nr] = args else { return Err("expected: unpin PIN".into()) };
    let nr = number(nr)?;
    let found = {
        let mut held = HELD.lock();
        let at = held.1.iter().position(|held| held.nr == nr);
        at.map(|at| held.1.swap_remove(at))
    };
    // Given back without the lock.
    found.map(drop).ok_or_else(|| format!("there is no pin {nr}"))
}
